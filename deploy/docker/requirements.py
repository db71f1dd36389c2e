"""Writes the image's requirements from pyproject.toml: build.txt (build tool), run.txt (with the extra `cluster`)."""

import sys
from pathlib import Path

import tomllib

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
extras = project["optional-dependencies"]
builder = [line for line in extras["dev"] if line.startswith("setuptools==")]
Path("build.txt").write_text("\n".join(builder) + "\n")
Path("run.txt").write_text("\n".join(project["dependencies"] + extras["cluster"]) + "\n")
