"""`python -m learner doctor`: shows what this machine and a cluster lack for training, and what to do about it."""

import argparse
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.cli import OneLineParser
from common.config import PRESETS, Config, ConfigError, resolve
from common.process import replaced_variables, unexpected_ray_variables
from common.storage.checkpoints import list_checkpoints
from common.storage.file_system import existing_parent
from common.storage.file_system import probe as probe_file_system
from common.storage.run_directory import RunDirectory
from common.versions import differences, software
from learner.cluster import connection
from learner.cluster.authentication import HOW_TO_ENABLE, find_token
from learner.cluster.embedded import directory_for_ray, token_can_be_used
from learner.cluster.machine_checks import (
    GIB,
    Check,
    machine_checks,
    open_files_check,
    processes_check,
    shared_memory_check,
    streams_check,
)
from learner.cluster.nodes import ProbeResult, living_nodes, machine_probe, probe
from learner.cluster.target import ClusterError, ClusterTarget
from learner.startup.preparation import lock_for_learner

# About what a run of the preset `hard` with all its checkpoints takes.
DISK_FOR_A_RUN = 4 * GIB
STYLES = {"ok": "", "warning": "yellow", "fatal": "bold red"}


def main(argv: list[str]) -> int:
    """Prints the table; returns 1 if a check is fatal, else 0."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        target = ClusterTarget.from_flags(arguments.address, arguments.allow_unauthenticated)
    except ClusterError as error:
        parser.error(str(error))
    config = resolve(arguments.preset, {})
    checks = check_local(config, arguments.run_dir)
    if target is not None:
        checks += check_cluster(config, target)
    show(checks)
    return 1 if any(check.verdict == "fatal" for check in checks) else 0


def check_local(config: Config, run_dir: Path | None) -> list[Check]:
    """Checks this machine."""
    return [
        *machine_checks(config.num_actors),
        shared_memory_check(connection.object_store_bytes_needed(config)),
        run_directory_check(run_dir),
        token_check(),
        file_system_check(run_dir),
        streams_check(),
        open_files_check(config.num_actors),
        processes_check(config.num_actors),
        ray_directory_check(),
        temporary_directory_check(),
        environment_check(os.environ),
    ]


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
        return Check("actors", "fatal", "no node has a CPU for them", "ray start --address=HEAD:6379 on more machines")
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
        resources = ", ".join(f"{node.resources[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in node.resources)
        lines.append(Check(node.name, "ok", f"{resources or 'no CPUs'}, same software, Procgen runs"))
    return lines


def run_directory_check(run_dir: Path | None) -> Check:
    """Whether a run could be written to `run_dir` (None: runs/), or continued in it; leaves nothing behind."""
    name = "run directory"
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
        return Check(name, "fatal", str(error), "choose another with --run-dir, or fix the problem")
    free = shutil.disk_usage(existing_parent(path)).free
    checkpoints = len(list_checkpoints(run.checkpoints)) if holds_run else 0
    state = f"holds a run with {checkpoints} checkpoints" if holds_run else "free for a new run"
    found = f"{path}: {state}, {free / GIB:.0f} GiB of disk free"
    if free < DISK_FOR_A_RUN:
        return Check(name, "warning", found, "free some, or keep fewer checkpoints with --keep-checkpoints N")
    return Check(name, "ok", found)


def file_system_check(run_dir: Path | None) -> Check:
    """What the file system of `run_dir` (None: runs/) lacks; leaves nothing behind."""
    name = "file system"
    path = Path("runs").absolute() if run_dir is None else run_dir.absolute()
    directory = existing_parent(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        return Check(name, "fatal", f"{directory} is not writable", "choose another with --run-dir, or fix the problem")
    features = probe_file_system(directory)
    if features.unusable is not None:
        return Check(name, "fatal", f"{directory}: {features.unusable}", "use --run-dir on another file system")
    if features.missing:
        remedy = "training works; for full safety use --run-dir on a local disk, and see docs/run-directory.md"
        return Check(name, "warning", f"{directory}: {features.describe()}", remedy)
    return Check(name, "ok", f"{directory}: links, locks, fsync, rename and modes work")


def token_check() -> Check:
    """Where the token for clusters is, and whether only its owner can read it."""
    token = find_token()
    if not token.exists:
        if token_can_be_used():
            return Check("token", "ok", f"none in {token.location}")
        found = f"none in {token.location}, where none can be created: an embedded Ray uses one of its own"
        return Check("token", "warning", found, "for a cluster, set HOME or RAY_AUTH_TOKEN_PATH")
    if token.path is not None and (mode := stat.S_IMODE(token.path.stat().st_mode)) & 0o077:
        return Check("token", "warning", f"{token.path} has mode {mode:04o}", f"chmod 600 {token.path}")
    return Check("token", "ok", f"in {token.location}")


def ray_directory_check() -> Check:
    """Whether an embedded Ray can create its sockets."""
    name = "Ray's directory"
    try:
        directory = directory_for_ray()
    except ClusterError as error:
        return Check(name, "fatal", str(error), "a short path on a local disk, in RAY_TMPDIR")
    return Check(name, "ok", f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}" if directory is None else str(directory))


def temporary_directory_check() -> Check:
    """Whether TMPDIR can be used, where Python puts our code on its way to a cluster."""
    name, named = "TMPDIR", os.environ.get("TMPDIR")
    try:
        found = tempfile.gettempdir()
    except OSError as error:
        return Check(name, "fatal", str(error), "set TMPDIR to a writable directory")
    if named and Path(named).absolute() != Path(found).absolute():
        return Check(
            name, "warning", f"{named} is not a writable directory, {found} is used", "create it or unset TMPDIR"
        )
    return Check(name, "ok", found)


def environment_check(environment: Mapping[str, str]) -> Check:
    """Inherited variables that change how Ray works, or whose values are not used."""
    name = "environment"
    if unexpected := unexpected_ray_variables(environment, embedded=True):
        return Check(name, "warning", f"Ray reads {', '.join(unexpected)}", "unset what another project left there")
    replaced = [name for name in replaced_variables(environment, embedded=True) if name != "RAY_ADDRESS"]
    return Check(name, "ok", f"not used in a run: {', '.join(replaced)}" if replaced else "nothing that disturbs a run")


def show(checks: list[Check]) -> None:
    """Prints the table, 200 columns wide in a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, check.verdict, check.found, check.remedy, style=STYLES[check.verdict])
    console.print(table)
    fatal, warnings = (sum(check.verdict == verdict for check in checks) for verdict in ("fatal", "warning"))
    console.print(f"{len(checks)} checks; fatal: {fatal}, warnings: {warnings}")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="learner doctor",
        usage="python -m learner doctor [flags]",
        description="Checks whether this machine, and a Ray cluster if --address or RAY_ADDRESS names one, can train.",
        epilog="Exit codes: 0 no check is fatal, 1 a check is fatal, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to check: auto or HOST:PORT (default: RAY_ADDRESS if set, else no cluster)",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="directory to start or resume a run in")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="lab", help="check for the sizes of this preset (default: lab)"
    )
    parser.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="check a cluster without authentication too: anyone who reaches its ports can run code on it",
    )
    return parser
