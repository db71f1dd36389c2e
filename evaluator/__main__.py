"""`python -m evaluator COMMAND`: scores, comparisons, films and reports of runs. No Ray."""

import argparse
import sys

from common.cli import USAGE_EXIT_CODE, OneLineParser
from evaluator.commands import compare, levels, report, score, video, watch
from evaluator.commands.arguments import UsageError

COMMANDS = {"score": score, "compare": compare, "film": video, "levels": levels, "report": report, "watch": watch}
INTERRUPTED_EXIT_CODE = 130


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for what the user must change, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    # `python -m evaluator RUN_DIR` scores it.
    if given and given[0] not in COMMANDS and not given[0].startswith("-"):
        given = ["score", *given]
    options = _parser().parse_args(given)
    try:
        options.run(options)
    except UsageError as error:
        print(f"evaluator: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:
        print("evaluator: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="evaluator",
        usage="python -m evaluator COMMAND ...",
        description="Scores, compares and shows what runs of python -m learner have learned. Without a command: score.",
        epilog="python -m evaluator COMMAND --help tells more. Wrong usage ends with one line and exit code 2.",
    )
    subparsers = parser.add_subparsers(
        prog="evaluator", title="commands", metavar="COMMAND", required=True, dest="command"
    )
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
