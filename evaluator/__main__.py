"""`python -m evaluator COMMAND`: scores, compares and shows what runs have learned. Does not use Ray."""

import importlib
import sys

from common.cli import USAGE_EXIT_CODE, UsageError
from common.process import prepare_matplotlib
from evaluator.commands.parser import parse

INTERRUPTED_EXIT_CODE = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for wrong usage, 130 for Ctrl-C."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    prepare_matplotlib()
    try:
        # Only the chosen command's module: importing torch takes seconds, which --help need not wait for.
        importlib.import_module(f"evaluator.commands.{options.command}").run(options)
    except UsageError as error:
        print(f"evaluator: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:
        print("evaluator: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
