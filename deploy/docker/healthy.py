#!/usr/bin/env python
"""Health check of a container: does its raylet answer, and with the argument `head`, does the cluster's head?"""

import sys
import urllib.request

AGENT = "http://127.0.0.1:52365/api/local_raylet_healthz"
DASHBOARD = "http://127.0.0.1:8265/api/gcs_healthz"

for url in [AGENT, DASHBOARD] if sys.argv[1:] == ["head"] else [AGENT]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            if b"success" not in answer.read():
                sys.exit(f"{url}: not healthy")
    except OSError as error:
        sys.exit(f"{url}: {error}")
