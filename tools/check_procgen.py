"""Steps one real Procgen environment.

Exit status 3 and the library's name on standard output: a system library that Procgen needs is missing.
"""

import sys

from common.procgen_env import MissingLibrary, step_once


def main() -> int:
    try:
        step_once()
    except MissingLibrary as missing:
        print(missing)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
