"""`python -m evaluator COMMAND`: scores, compares and shows what runs have learned. Does not use Ray."""

import os
import sys
from typing import NoReturn

from common.cli import USAGE_EXIT_CODE, UsageError, import_module, require_current_directory
from common.output import CLOSED_PIPE_EXIT_CODE, OutputError, checked_output, print_error, run_as_process
from common.process import prepare_matplotlib
from evaluator.commands.parser import parse

OUTPUT_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    0, 1 if standard output could not be written, 2 for invalid usage, 130 for Ctrl-C, 141 if its reader closed it.
    """
    try:
        require_current_directory()
        with checked_output():
            options = parse(sys.argv[1:] if arguments is None else arguments)
            prepare_matplotlib()
            # Only the chosen command's module: importing torch takes seconds, which --help need not wait for.
            import_module(f"evaluator.commands.{options.command}").run(options)
    except UsageError as error:
        print_error(f"evaluator: {error}")
        return USAGE_EXIT_CODE
    except OSError as error:
        if error.filename is None:
            raise
        print_error(f"evaluator: {os.fspath(error.filename)}: {error.strerror}")
        return USAGE_EXIT_CODE
    except OutputError as error:
        if error.is_closed_pipe:
            return CLOSED_PIPE_EXIT_CODE
        print_error(f"evaluator: cannot write to standard output: {error}")
        return OUTPUT_EXIT_CODE
    except KeyboardInterrupt:
        print_error("evaluator: interrupted")
        return INTERRUPTED_EXIT_CODE
    return 0


def run() -> NoReturn:
    """The entry point of `heldout-evaluator`."""
    try:
        run_as_process(main)
    except SystemExit as end:
        if end.code == INTERRUPTED_EXIT_CODE:
            # A scoring thread would abort in native code when the interpreter ends. Its files are complete at any time.
            os._exit(INTERRUPTED_EXIT_CODE)
        raise


if __name__ == "__main__":
    run()
