"""What the command lines of all roles have in common: wrong usage is one line and exit code 2."""

import argparse
import sys
from typing import NoReturn

USAGE_EXIT_CODE = 2


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `PROG: message` on stderr, without the usage text before them."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message.removeprefix('argument ')}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
