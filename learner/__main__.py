"""`python -m learner`: main.py in a child of a small parent process. See supervision.py."""

from typing import NoReturn

from common.output import run_as_process
from learner.supervision import Supervisor, fork_training


def run() -> NoReturn:
    """Also the entry point of `heldout-learner`."""
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
