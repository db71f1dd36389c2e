"""`python -m learner doctor`: shows what this machine and a cluster lack for training, and what to do about it."""

import argparse
import os
import sys
import textwrap
from pathlib import Path

from rich.text import Text

from common.cli import OneLineParser, cluster_address, directory_path
from common.config import PRESETS, Config
from common.output import CLOSED_PIPE_EXIT_CODE, OutputError, checked_output, make_console, print_error
from common.process import set_file_modes
from common.resolution import resolve
from common.text import format_count
from common.versions import differences, software
from learner.cluster import connection
from learner.cluster.authentication import HOW_TO_ENABLE
from learner.cluster.directory_checks import file_system_check, run_directory_check
from learner.cluster.limit_checks import cpu_check, open_files_check, processes_check, sizes_check
from learner.cluster.machine_checks import Check, machine_checks, run_checks, shared_memory_check
from learner.cluster.nodes import ProbeResult, living_nodes, machine_probe, probe
from learner.cluster.surroundings_checks import (
    home_check,
    loopback_check,
    ray_directory_check,
    streams_check,
    temporary_directory_check,
    token_check,
    variables_check,
)
from learner.cluster.target import ClusterError, ClusterTarget

NAME_COLUMN, MIN_WIDTH = 15, 60
STYLES = {"ok": "", "warning": "yellow", "fatal": "bold red"}


def main(argv: list[str]) -> int:
    """Prints the table; returns 0, 1 if a check is fatal or the table cannot be printed, 141 if its reader is gone."""
    set_file_modes()
    try:
        with checked_output():
            return run(argv)
    except OutputError as error:
        if error.is_closed_pipe:
            return CLOSED_PIPE_EXIT_CODE
        print_error(f"learner doctor: cannot write to standard output: {error}")
        return 1


def run(argv: list[str]) -> int:
    """Checks, and prints the table."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        target = ClusterTarget.from_flags(arguments.address, arguments.allow_unauthenticated)
    except ClusterError as error:
        parser.error(str(error))
    config = resolve(arguments.preset, {})
    checks = check_local(config, arguments.run_dir, embedded=target is None)
    if target is not None:
        checks += check_cluster(config, target)
    show(checks)
    return 1 if any(check.verdict == "fatal" for check in checks) else 0


def check_local(config: Config, run_dir: Path | None, embedded: bool) -> list[Check]:
    """Checks this machine; `embedded`: for a run that starts its own Ray."""
    actors, path = config.num_actors, (run_dir or Path("runs")).absolute()
    rollouts = connection.object_store_bytes_needed(config)
    surroundings = {
        "shared memory": lambda: shared_memory_check(rollouts),
        "CPUs": cpu_check,
        "open files": lambda: open_files_check(actors),
        "processes": lambda: processes_check(actors),
        "sizes": lambda: sizes_check(rollouts),
        "run directory": lambda: run_directory_check(path, is_named=run_dir is not None),
        "file system": lambda: file_system_check(path),
        "home": home_check,
        "token": token_check,
        "Ray's directory": ray_directory_check,
        "TMPDIR": temporary_directory_check,
        "loopback": loopback_check,
        "output": streams_check,
        "environment": lambda: variables_check(os.environ, embedded),
    }
    return machine_checks(actors) + run_checks(surroundings)


@connection.messages_of_ray_in_the_log()
def check_cluster(config: Config, target: ClusterTarget) -> list[Check]:
    """Checks the cluster and each of its nodes from a driver that joins it as a run would."""
    try:
        joined = connection.connect(target, config)
    except ClusterError as error:
        return [Check("cluster", "fatal", str(error), "see docs/cluster.md, which explains every step")]
    try:
        cluster = Check("cluster", "ok", joined.describe())
        if not joined.authenticated:
            cluster = Check("cluster", "warning", joined.describe(), HOW_TO_ENABLE)
        results = probe(machine_probe, living_nodes(), config.cluster_timeout)
        return [cluster, actors_check(joined.cpus), *(check for result in results for check in node_checks(result))]
    finally:
        connection.disconnect()


def actors_check(cpus: int) -> Check:
    """How many actors the cluster can hold."""
    if not cpus:
        remedy = "run ray start --address=HEAD:6379 on more machines"
        return Check("actors", "fatal", "no node has a CPU for actors", remedy)
    return Check("actors", "ok", f"room for {cpus} (--num-actors {cpus})")


def node_checks(result: ProbeResult) -> list[Check]:
    """One line for a healthy node, and one for each problem of another."""
    node = result.node
    if result.error:
        return [Check(node.name, "fatal", result.error, "read Ray's logs on the node: it is up but runs no tasks")]
    versions, checks = result.value
    problems = [check for check in checks if check.verdict != "ok"]
    if node.can_hold_actors and (differing := differences(software(), versions)):
        remedy = "install the same versions, or use the same image"
        problems.append(Check("software", "fatal", ", ".join(differing), remedy))
    lines = [Check(f"{node.name}: {check.name}", check.verdict, check.found, check.remedy) for check in problems]
    if not any(check.verdict == "fatal" for check in problems):
        resources = ", ".join(
            format_count(node.resources[kind], kind) for kind in ("CPU", "GPU") if kind in node.resources
        )
        lines.append(Check(node.name, "ok", f"{resources or 'no CPUs'}, same software, Procgen runs"))
    return lines


def show(checks: list[Check]) -> None:
    """Prints a line or paragraph for each check, as wide as the terminal; in a pipe lines are not wrapped."""
    console = make_console()
    width = max(console.width, MIN_WIDTH) if console.is_terminal else sys.maxsize
    for check in checks:
        for line in lines_of(check, width):
            console.print(Text(line, style=STYLES[check.verdict]), soft_wrap=True)
    fatal, warnings = (sum(check.verdict == verdict for check in checks) for verdict in ("fatal", "warning"))
    console.print(f"{len(checks)} checks; fatal: {fatal}, warnings: {warnings}")


def lines_of(check: Check, width: int) -> list[str]:
    """A check as text: name, verdict and what was found, then what to do, in lines of at most `width` characters."""
    head = f"{check.name:<{NAME_COLUMN}} {check.verdict:<7} "
    indent = " " * (NAME_COLUMN + 9)
    lines = []
    if len(head) > len(indent):  # a node's name
        lines.append(head.rstrip())
        head = indent
    found = " ".join(check.found.splitlines())
    lines += textwrap.wrap(found, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    if check.remedy:
        lines += textwrap.wrap(
            f"-> {check.remedy}", width, initial_indent=indent, subsequent_indent=indent + "   ", break_on_hyphens=False
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="learner doctor",
        usage="python -m learner doctor [flags]",
        description="Checks whether this machine, and a Ray cluster if --address or RAY_ADDRESS names one, can train.",
        epilog="Exit codes: 0 nothing fatal was found, 1 something fatal was found, or the table could not be "
        "written, 2 invalid usage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        type=cluster_address,
        metavar="ADDRESS",
        help="Ray cluster to check: auto or HOST:PORT (default: RAY_ADDRESS if set, else no cluster)",
    )
    parser.add_argument("--run-dir", type=directory_path, metavar="DIR", help="directory to start or resume a run in")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="lab", help="check for the sizes of this preset (default: lab)"
    )
    parser.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="check a cluster without authentication too: anyone who reaches its ports can run code on it",
    )
    return parser
