"""`python -m learner study DIR`: many runs over games, variants and seeds. Imports neither torch nor Ray."""

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.cli import OneLineParser, UsageError, at_least_one, directory_path
from common.games import GAMES
from common.output import (
    CLOSED_PIPE_EXIT_CODE,
    OutputError,
    checked_output,
    harmless_output,
    make_console,
    print_error,
)
from common.process import set_file_modes
from common.storage.file_lock import FileIsLocked, FileLock
from common.storage.run_directory import RunDirectory
from common.text import format_count
from learner.startup.flags import learner_flags
from learner.study import run_files
from learner.study.plan import (
    DEFAULT_SEEDS,
    Plan,
    PlannedRun,
    Study,
    grown,
    is_stored,
    make_plan,
    read_plan,
    write_plan,
)
from learner.study.processes import Learners, StudySignals, cores_of_each
from learner.study.progress import StudyProgress, status_lines

LOCK_FILE = ".study.lock"
logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs a study, or prints what --list and --status ask for, and returns the exit code.

    0, 1 if a run failed or what was asked for could not be printed, 2 for invalid usage, 128 + n after signal n, 141 if
    the reader of what was asked for closed the pipe.
    """
    try:
        with harmless_output():
            options = _parse(argv)
        with checked_output() if options.list or options.status else harmless_output():
            return _run(options)
    except UsageError as error:
        print_error(f"learner study: {error}")
        return 2
    except OutputError as error:
        if error.is_closed_pipe:
            return CLOSED_PIPE_EXIT_CODE
        print_error(f"learner study: cannot write to standard output: {error}")
        return 1


def _run(options: argparse.Namespace) -> int:
    directory: Path = options.directory
    if options.status:
        if (stored := read_plan(directory)) is None:
            raise UsageError(f"{directory} holds no study: study.json is missing")
        print("\n".join(status_lines(directory, stored)))
        return 0
    plan, program = _requested_plan(options), learner_program()  # wrong usage is refused before anything is created
    set_file_modes(plan.is_group_readable)
    if options.list:
        if any("\n" in word for run in plan.runs for word in run.arguments(directory)):
            raise UsageError("--list: DIR or a flag has a line break, so that a command is not one line; leave it out")
        if not is_stored(directory, plan, program):
            plan = _store(options, plan, program)
        print("\n".join(shlex.join([*program, *run.arguments(directory)]) for run in plan.runs))
        return 0
    with contextlib.closing(_lock(directory)):
        plan = _requested_plan(options)  # another study may have written its plan meanwhile
        write_plan(directory, plan, program)
        return _train(directory, plan, program, options.jobs or 1)


def _store(options: argparse.Namespace, plan: Plan, program: Sequence[str]) -> Plan:
    """Writes the plan of the command line, which was `plan` before this process had the lock, and returns it."""
    try:
        with contextlib.closing(_lock(options.directory)):
            plan = _requested_plan(options)
            write_plan(options.directory, plan, program)
    except UsageError:
        if read_plan(options.directory) != plan:
            raise
        # Only the directory or the program in the stored commands is old: nothing that --list prints is lost.
    return plan


def _train(directory: Path, plan: Plan, program: Sequence[str], jobs: int) -> int:
    finished = [run for run in plan.runs if _is_finished(directory, run)]
    left = [run for run in plan.runs if run not in finished]
    jobs = max(1, min(jobs, len(left)))
    progress = StudyProgress(directory, plan, finished, jobs, make_console())
    runs = format_count(len(plan.runs), "run")
    progress.note(f"study {directory.absolute()}: {runs}, {len(finished)} finished, {len(left)} to do")
    if jobs > 1:
        cores = cores_of_each(jobs)
        share = (
            f"each with {cores} of the CPU cores" if cores else "all on the same CPU cores, which are too few to divide"
        )
        progress.note(f"{jobs} runs at a time, {share}")
    with StudySignals() as signals:
        progress.start()
        try:
            exit_code = Learners(directory, program, jobs, progress).run(left, signals)
        finally:
            progress.stop()
    if exit_code:
        print_error(f"learner study: {_why(exit_code)}; the same command continues the study")
    else:
        progress.note(f"finished; results: python -m evaluator aggregate {shlex.quote(str(directory))}")
    return exit_code


def _is_finished(directory: Path, run: PlannedRun) -> bool:
    """Whether a run is finished; not if its files cannot be read, which is reported when it is to be started."""
    try:
        return run_files.is_finished(RunDirectory(run.directory(directory)), run.frames)
    except OSError:
        return False


def _why(exit_code: int) -> str:
    return "runs have failed" if exit_code == 1 else "stopped by a signal"


def learner_program() -> list[str]:
    """How the learners are started: as this process was, from the repository or as an installed program."""
    started = Path(sys.argv[0])
    if started.name == "heldout-learner":
        return [str(started.absolute())]
    return [sys.executable, "-m", "learner"]


def _requested_plan(options: argparse.Namespace) -> Plan:
    """The plan of the command line; what is left out there is as it is stored.

    Raises:
        UsageError: a setting is wrong, or the directory holds another study.
    """
    stored = read_plan(options.directory)
    if stored is None and options.games is None:
        raise UsageError(f"{options.directory} holds no study yet: --games says which games to train, or all")
    if stored is None and RunDirectory(options.directory).holds_run():
        raise UsageError(f"{options.directory} already holds a run; choose another directory for the study")
    study = stored.study if stored is not None else Study((), DEFAULT_SEEDS, {}, ())
    changes = {
        name: value for name in ("games", "seeds", "vary", "flags") if (value := getattr(options, name)) is not None
    }
    plan = make_plan(replace(study, **changes))
    return plan if stored is None else grown(options.directory, stored, plan)


def _lock(directory: Path) -> FileLock:
    """Keeps other studies out of the directory, which is created if it does not exist."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return FileLock(directory / LOCK_FILE)
    except FileIsLocked as holder:
        raise UsageError(f"{directory} is in use by another study ({holder}); --status shows its progress") from holder
    except OSError as error:
        raise UsageError(f"{directory} cannot be used: {error.strerror}") from error


class _StudyParser(OneLineParser):
    def remedy(self, unknown: str) -> str:
        return "flags of the learner come after --" if unknown in learner_flags() else super().remedy(unknown)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line: what follows `--` are the learner's flags. Exits with one line and code 2 if it is wrong."""
    own = list(argv)
    flags = None
    if "--" in own:
        place = own.index("--")
        own, flags = own[:place], tuple(own[place + 1 :])
    parser = _StudyParser(
        prog="learner study",
        usage="python -m learner study DIR [--games GAME,...] [flags] [-- LEARNER FLAGS]",
        description="Trains every game with every variant and seed, each an ordinary run of python -m learner in "
        "DIR/GAME/VARIANT/seed-K. If started again, it skips what is finished and continues what is not; games, seeds "
        "and variants can be added.",
        epilog="Exit codes: 0 finished, 1 a run failed (the others are finished) or standard output could not be "
        "written (--list, --status), 2 invalid usage, 130 Ctrl-C, 143 "
        "SIGTERM, 129 SIGHUP (after a checkpoint of every run; a second Ctrl-C ends immediately).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("directory", type=directory_path, metavar="DIR", help="directory of the study")
    add(
        "--games",
        type=_games,
        metavar="GAME,...",
        help="Procgen games, separated by commas, or all; required for a new study",
    )
    text = f"seeds of each variant: 0 to N - 1 ({DEFAULT_SEEDS})"
    add("--seeds", type=at_least_one, metavar="N", help=text)
    text = "values of a learner flag, one variant each, such as gamma=.99,.999; if repeated, all combinations are run"
    add("--vary", type=_varied, action="append", metavar="FLAG=VALUE,...", help=text)
    text = "number of runs at a time; each gets an equal share of the CPU cores, and all share the GPU (1)"
    add("--jobs", type=at_least_one, metavar="N", help=text)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--list", action="store_true", help="write the plan and print one command per run; train nothing")
    only.add_argument("--status", action="store_true", help="show each run's progress, read from its files")
    options = parser.parse_args(own)
    options.flags = flags
    given = [f"--{name}" for name in ("games", "seeds", "vary", "jobs") if getattr(options, name) is not None]
    given += ["--"] if flags is not None else []
    if options.status and given:
        parser.error(f"--status: shows the stored study and takes nothing but DIR; leave out {', '.join(given)}")
    if options.list and options.jobs is not None:
        parser.error("--list: trains nothing; leave out --jobs")
    if options.vary is not None:
        names = [name for name, _ in options.vary]
        if len(set(names)) < len(names):
            parser.error(f"--vary: {max(names, key=names.count)} is varied twice; separate its values with commas")
        options.vary = dict(options.vary)
    return options


def _games(text: str) -> tuple[str, ...]:
    games = tuple(name.strip() for name in text.split(","))
    return tuple(GAMES) if games == ("all",) else games


def _varied(text: str) -> tuple[str, tuple[str, ...]]:
    """The setting's name and its values, as typed, without white space around them."""
    name, equals, values = text.partition("=")
    name, options = name.strip(), tuple(value.strip() for value in values.split(","))
    if not name or not equals or not all(options):
        raise argparse.ArgumentTypeError(f"expected FLAG=VALUE,..., got {text!r}")
    if len(set(options)) < len(options):
        raise argparse.ArgumentTypeError(f"a value is given twice in {text!r}")
    if not text.isprintable() or any(
        os.sep in value or (value.startswith(".") and not value[1:2].isdigit()) for value in options
    ):
        raise argparse.ArgumentTypeError(f"values must be usable in a directory name, got {text!r}")
    return name.lstrip("-").replace("-", "_"), options
