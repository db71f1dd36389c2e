"""`python -m evaluator report`: a run as one HTML file."""

import argparse
from pathlib import Path
from typing import Any

from evaluator.commands.arguments import UsageError, require_new_file, require_run, write_new_file

REPORT_FILE = "report.html"


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "report",
        help="write a run's scores, curves, levels and films as one HTML file",
        description="Writes one HTML file with everything in it, to open in a browser, mail or print. Plays nothing.",
    )
    parser.add_argument("path", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the page, which must not exist (default: RUN_DIR/{REPORT_FILE}, which is written anew each time)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Raises UsageError where there is nothing to report, or nowhere to put it."""
    directory = require_run(options.path)
    if options.output is not None:
        require_new_file("--output", options.output)
    from common.config import ConfigError
    from common.process import keep_files_private
    from common.storage.atomic_files import write_atomically
    from evaluator.output.html_report import NothingScored, render_report

    keep_files_private()
    try:
        page = render_report(directory).encode()
    except (ConfigError, NothingScored) as error:
        raise UsageError(str(error)) from error
    if options.output is not None:
        write_new_file("--output", options.output, page)
        print(options.output)
        return
    path = directory.path / REPORT_FILE
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); name another place with --output") from error
    print(path)
