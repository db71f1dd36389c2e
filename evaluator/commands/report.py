"""`python -m evaluator report`: a run as one HTML file."""

import argparse
import sys

from common.cli import UsageError
from common.process import set_file_modes
from common.storage.atomic_files import write_atomically
from evaluator.commands.files import open_run, write_new_file
from evaluator.output.html_report import render_report
from evaluator.output.text import other_weights_warning


def run(options: argparse.Namespace) -> None:
    """Writes the page and prints its path; UsageError if nothing is scored or the page cannot be written."""
    directory = open_run(options.path)
    if warning := other_weights_warning(directory):
        print(f"evaluator: {warning}", file=sys.stderr)
    set_file_modes(directory.read_config().group_readable)
    path = options.output or directory.report
    page = render_report(directory).encode(errors="backslashreplace")
    if options.output is not None:
        write_new_file(path, page)
    else:
        try:
            write_atomically(path, page)
        except OSError as error:
            raise UsageError(f"cannot write {path} ({error.strerror}); choose another path with --output") from error
    print(path)
