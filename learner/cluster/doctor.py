"""`python -m learner doctor`: what this machine and a cluster lack for training, and what to do about it."""

import argparse
import shutil
import stat
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.cli import OneLineParser
from common.config import PRESETS, Config, ConfigError, resolve
from common.storage.checkpoints import list_checkpoints
from common.storage.run_directory import RunDirectory
from learner.cluster import connection, nodes
from learner.cluster.authentication import HOW_TO_TURN_IT_ON, token_description
from learner.cluster.connection import ClusterError
from learner.cluster.machine_checks import (
    GIB,
    Check,
    libraries_check,
    memory_check,
    procgen_check,
    python_check,
    shared_memory_check,
    torch_check,
)
from learner.startup.preparation import lock_for_learner

# A run of preset `hard` with all its checkpoints has about as much.
ROOM_FOR_A_RUN = 4 * GIB
STYLES = {"warning": "yellow", "fatal": "bold red"}


def main(argv: list[str]) -> int:
    """Prints the table; 1 if something in it is fatal."""
    arguments = _parser().parse_args(argv)
    config = resolve(arguments.preset, {})
    checks = here(config, arguments.run_dir)
    address = connection.address_to_join(arguments.address)
    if address is not None:
        checks += there(config, address, arguments.allow_unauthenticated)
    show(checks)
    worst = [check for check in checks if check.verdict == "fatal"]
    return 1 if worst else 0


def here(config: Config, run_dir: Path | None) -> list[Check]:
    """This machine."""
    return [
        python_check(),
        libraries_check(),
        torch_check(),
        procgen_check(),
        memory_check(config.num_actors),
        shared_memory_check(connection.object_store_bytes_needed(config)),
        run_directory_check(run_dir),
        token_check(),
    ]


def there(config: Config, address: str, allow_unauthenticated: bool) -> list[Check]:
    """The cluster and each of its nodes, from a driver that joins it as a run would."""
    try:
        where = connection.connect(config, address, allow_unauthenticated)
    except ClusterError as error:
        return [Check("cluster", "fatal", str(error), "docs/cluster.md goes through it step by step")]
    try:
        joined = Check("cluster", "ok", where)
        if where.endswith("no authentication"):
            joined = Check("cluster", "warning", where, HOW_TO_TURN_IT_ON)
        return [joined, actors_check(), *_node_checks(config.cluster_timeout)]
    finally:
        connection.disconnect()


def actors_check() -> Check:
    """How many actors there is room for."""
    room = int(sum(node.resources.get("CPU", 0) for node in nodes.nodes()))
    if not room:
        return Check("actors", "fatal", "no node has a CPU for them", "ray start --address=HEAD:6379 on more machines")
    return Check("actors", "ok", f"room for {room} (--num-actors {room})")


def _node_checks(timeout: float) -> list[Check]:
    """One line a node, and one more for each thing that is wrong with it."""
    checks = []
    other_software = {node.node_id: found for node, found in nodes.nodes_with_other_software(timeout)}
    for node, answer in nodes.ask(nodes.checks_there, nodes.nodes(), timeout):
        holds = ", ".join(f"{node.resources[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in node.resources)
        if isinstance(answer, str):
            checks.append(Check(node.name, "fatal", answer, "see Ray's logs there: the raylet runs, tasks do not"))
            continue
        wrong = [check for check in answer if check.verdict != "ok"]
        if (found := other_software.get(node.node_id)) is not None:
            wrong.append(Check("software", "fatal", found, "install the same versions, or use the same image"))
        checks += [Check(f"{node.name}: {check.what}", check.verdict, check.found, check.remedy) for check in wrong]
        if not any(check.verdict == "fatal" for check in wrong):
            checks.append(Check(node.name, "ok", f"{holds or 'no CPUs'}; software as here, Procgen steps"))
    return checks


def run_directory_check(run_dir: Path | None) -> Check:
    """Whether a run could be written, or continued, there; nothing is left behind."""
    what = "run directory"
    path = Path("runs").absolute() if run_dir is None else run_dir.absolute()
    run = RunDirectory(path)
    holds_run = run_dir is not None and run.config.exists()
    try:
        if holds_run:
            run.require_writable()
            lock_for_learner(run).close()
            run.read_config()
        else:
            run.require_unused()
    except ConfigError as error:
        return Check(what, "fatal", str(error), "name another with --run-dir, or put right what it says")
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    checkpoints = len(list_checkpoints(run.checkpoints)) if holds_run else 0
    state = f"holds a run with {checkpoints} checkpoints" if holds_run else "free for a new run"
    found = f"{path}: {state}, {free / GIB:.0f} GiB of disk free"
    if free < ROOM_FOR_A_RUN:
        return Check(what, "warning", found, "free some, or give --keep-checkpoints N")
    return Check(what, "ok", found)


def token_check() -> Check:
    """The secret that opens a cluster: where it is, and whether only its owner can read it."""
    token = token_description()
    if token.path is not None and token.path.exists():
        mode = stat.S_IMODE(token.path.stat().st_mode)
        if mode & 0o077:
            return Check("token", "warning", f"{token.path} has mode {mode:04o}", f"chmod 600 {token.path}")
    return Check("token", "ok", token.text)


def show(checks: list[Check]) -> None:
    """The table, as wide as it needs to be in a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        style = "" if check.verdict == "ok" else STYLES[check.verdict]
        table.add_row(check.what, check.verdict, check.found, check.remedy, style=style)
    console.print(table)
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("fatal", "warning")}
    console.print(f"{len(checks)} checks; fatal: {counts['fatal']}, warnings: {counts['warning']}")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="learner doctor",
        usage="python -m learner doctor [flags]",
        description="Checks this machine, and with --address a Ray cluster, for all that training needs.",
        epilog="Exit codes: 0 nothing is fatal, 1 something is, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--address", metavar="ADDRESS", help="Ray cluster to check: auto or HOST:PORT (RAY_ADDRESS)")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="directory that a run would use or continue")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="lab", help="whose sizes must fit (lab)")
    parser.add_argument(
        "--allow-unauthenticated", action="store_true", help="accept a cluster that anyone who reaches it can use"
    )
    return parser
