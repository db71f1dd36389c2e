"""`python -m learner`: main.py in a child of a small parent process, see supervision.py; or a study of many runs."""

import sys
from typing import NoReturn

from common.output import run_as_process
from learner.supervision import Supervisor, fork_training


def run() -> NoReturn:
    """Also the entry point of `heldout-learner`."""
    if sys.argv[1:2] == ["study"]:
        from learner.study.command import main  # training does not need it

        run_as_process(lambda: main(sys.argv[2:]))
    supervisor = fork_training()
    run_as_process(lambda: _main(supervisor))


def _main(supervisor: Supervisor) -> int:
    try:
        from learner.main import main  # after the fork: it imports torch

        return main(supervisor=supervisor)
    finally:
        supervisor.tell_exiting()


if __name__ == "__main__":
    run()
