"""`python -m learner`: main.py in a child of a small parent (startup/supervision.py), or a study of many runs."""

import sys
from typing import NoReturn

from common.cli import USAGE_EXIT_CODE, UsageError, import_module, require_current_directory
from common.output import print_error, run_as_process
from learner.startup.supervision import Supervisor, fork_training

INTERRUPTED_EXIT_CODE = 130


def run() -> NoReturn:
    """Also the entry point of `heldout-learner`."""
    if sys.argv[1:2] == ["study"]:
        from learner.study.command import main  # training does not need it

        run_as_process(lambda: main(sys.argv[2:]))
    supervisor = fork_training()
    run_as_process(lambda: _main(supervisor))


def _main(supervisor: Supervisor) -> int:
    try:
        require_current_directory()
        return import_module("learner.main").main(supervisor=supervisor)  # after the fork: it imports torch
    except UsageError as error:
        print_error(f"learner: {error}")
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:  # in the doctor, or before training handles signals
        print_error("learner: interrupted")
        return INTERRUPTED_EXIT_CODE
    finally:
        supervisor.tell_exiting()


if __name__ == "__main__":
    run()
