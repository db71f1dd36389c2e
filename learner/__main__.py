"""`python -m learner`: main.py in a child of a small parent (startup/supervision.py), or a study of many runs."""

import sys
from collections.abc import Callable
from typing import NoReturn

from common.cli import USAGE_EXIT_CODE, UsageError, import_module, require_current_directory
from common.output import print_error, run_as_process
from learner.startup.supervision import Supervisor, fork_training
from learner.stopping import heed_ignored_signals

INTERRUPTED_EXIT_CODE = 130


def run() -> NoReturn:
    """Also the entry point of `heldout-learner`."""
    if sys.argv[1:2] == ["study"]:
        heed_ignored_signals()
        run_as_process(lambda: _errors_in_one_line("learner study", _study))
    supervisor = fork_training()
    run_as_process(lambda: _errors_in_one_line("learner", lambda: _train(supervisor)))


def _study() -> int:
    exit_code: int = import_module("learner.study.command").main(sys.argv[2:])  # training does not need it
    return exit_code


def _train(supervisor: Supervisor) -> int:
    try:
        exit_code: int = import_module("learner.main").main(supervisor=supervisor)  # after the fork: it imports torch
        return exit_code
    finally:
        supervisor.tell_exiting()


def _errors_in_one_line(name: str, command: Callable[[], int]) -> int:
    try:
        require_current_directory()
        return command()
    except UsageError as error:
        print_error(f"{name}: {error}")
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:  # before training handles signals, or where nothing needs to be stopped
        print_error(f"{name}: interrupted")
        return INTERRUPTED_EXIT_CODE


if __name__ == "__main__":
    run()
