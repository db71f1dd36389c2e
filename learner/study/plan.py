"""The plan of a study: every run with its command, stored in DIR/study.json.

    DIR/study.json                        the plan
    DIR/<game>/<variant>/seed-<k>/        an ordinary run directory
    DIR/<game>/<variant>/seed-<k>.out     what its learner printed
    DIR/<game>/<variant>/seed-<k>.json    how its learner was started and how it ended (run_files.py)

A plan can grow by games, seeds and variants; what is in it never changes.
"""

import contextlib
import io
import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.cli import UsageError, closest, suggestion
from common.config import DEFAULTS, SETTINGS, Config, ConfigError, choices_of, flag
from common.games import GAMES
from common.limits import available_cores
from common.resolution import AUTOMATIC, Machine, resolve
from common.storage.atomic_files import write_atomically
from common.text import format_cause, format_count
from learner.startup.flags import CommandLine, parse

FORMAT = 1
PLAN_FILE = "study.json"
DEFAULT_SEEDS = 5
# The variant of a study that varies nothing.
ONLY_VARIANT = "default"
# For this many study.json has 50 MB; the commands of more would take minutes.
MAX_RUNS = 100_000
_MAX_NAME_BYTES = 255
# Flags that a study sets itself, by the name that the command line gives them, and what to use instead.
SET_BY_STUDY = {
    "run_dir": "the directory of each run follows from DIR",
    "resume": "every run is continued if it has begun",
    "seed": "use --seeds",
    "env_name": "use --games",
}
# Where runs are carried out: may differ when a study is continued.
_WHERE_FLAGS = {"--address": True, "--allow-unauthenticated": False}  # True: a value follows


@dataclass(frozen=True, slots=True)
class Study:
    """What the user asked for. `vary` has the values of each varied flag, as typed; `flags` go to every run."""

    games: tuple[str, ...]
    seeds: int
    vary: dict[str, tuple[str, ...]]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run. `flags` are the learner's, without --resume and --run-dir; `frames` is what it trains in all."""

    game: str
    variant: str
    seed: int
    flags: tuple[str, ...]
    frames: int

    @property
    def name(self) -> str:
        """The run's directory below the study's."""
        return f"{self.game}/{self.variant}/seed-{self.seed}"

    def directory(self, study: Path) -> Path:
        """The run directory."""
        return study / self.name

    def arguments(self, study: Path) -> list[str]:
        """What follows `python -m learner`."""
        return ["--resume", "auto", "--run-dir", str(self.directory(study).absolute()), *self.flags]


@dataclass(frozen=True, slots=True)
class Plan:
    """A study and its runs: games in the order given, in each game all variants, in each variant all seeds.

    Runs that are added to a stored plan follow its runs: a run keeps its line of --list.
    """

    study: Study
    runs: tuple[PlannedRun, ...]

    @property
    def is_group_readable(self) -> bool:
        """Whether the user's group may read the study's files."""
        return "--group-readable" in self.study.flags


def make_plan(study: Study) -> Plan:
    """The runs of a study.

    Raises:
        UsageError: a game, a flag or a value is wrong; found for every run before anything starts.
    """
    _require_games(study.games)
    _require_flags(study)
    _require_size(study)
    _require_chosen(study.vary)
    variants = _variants(study.vary)
    runs = []
    seen: dict[Config, str] = {}
    for game, (variant, varied) in itertools.product(study.games, variants.items()):
        source = "--vary" if varied else "flags after --"
        own = (*study.flags, *varied, "--env-name", game)
        config = _resolve(own, f"{source}, {game} {variant}" if varied else source)
        if (other := seen.setdefault(config, variant)) != variant:
            raise UsageError(f"--vary: {other} and {variant} are the same settings")
        frames = config.num_updates * config.batch_size
        runs += [PlannedRun(game, variant, seed, (*own, "--seed", str(seed)), frames) for seed in range(study.seeds)]
    return Plan(study, tuple(runs))


def read_plan(directory: Path) -> Plan | None:
    """The stored plan of a study; None if there is none.

    Raises:
        UsageError: study.json cannot be read.
    """
    path = directory / PLAN_FILE
    try:
        contents = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {format_cause(error)}") from error
    if not isinstance(contents, dict) or "format" not in contents:
        raise UsageError(f"{path} cannot be read: not a study plan")
    if contents["format"] != FORMAT:
        raise UsageError(f"{path} was written by another version of heldout (format {contents['format']!r})")
    try:
        return _plan(contents)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: not a study plan ({error!r})") from error


def _plan(contents: dict[str, Any]) -> Plan:
    """The plan in the contents of study.json.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: they are something else.
    """
    study = contents["study"]
    vary = {name: _texts(values) for name, values in study["vary"].items()}
    runs = tuple(
        PlannedRun(
            _of(str, run["game"]),
            _of(str, run["variant"]),
            _of(int, run["seed"]),
            _texts(run["flags"]),
            _of(int, run["frames"]),
        )
        for run in _of(list, contents["runs"])
    )
    if not runs or min(run.frames for run in runs) < 1:
        raise ValueError("no runs, or a run without frames")
    return Plan(Study(_texts(study["games"]), _of(int, study["seeds"]), vary, _texts(study["flags"])), runs)


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_of(str, value) for value in _of(list, values))


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def write_plan(directory: Path, plan: Plan, program: Sequence[str]) -> None:
    """Writes study.json; `program` is how a learner is started.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_atomically(directory / PLAN_FILE, _contents(directory, plan, program))
    except OSError as error:
        raise UsageError(f"cannot write {directory / PLAN_FILE}: {error.strerror}") from error


def is_stored(directory: Path, plan: Plan, program: Sequence[str]) -> bool:
    """Whether study.json has what `write_plan` would write. Its commands name the directory, which may have moved."""
    try:
        return (directory / PLAN_FILE).read_bytes() == _contents(directory, plan, program)
    except OSError:
        return False


def _contents(directory: Path, plan: Plan, program: Sequence[str]) -> bytes:
    runs = [
        {**asdict(run), "directory": run.name, "command": shlex.join([*program, *run.arguments(directory)])}
        for run in plan.runs
    ]
    contents = {"format": FORMAT, "study": asdict(plan.study), "runs": runs}
    return (json.dumps(contents, indent=1) + "\n").encode()


def grown(directory: Path, stored: Plan, plan: Plan) -> Plan:
    """`plan` with the runs of `stored` first, in their order.

    Raises:
        UsageError: a stored run is not in `plan` with the same flags; names what differs.
    """
    new = {run.name: run for run in plan.runs}
    missing = [
        f"{what} {', '.join(gone)} {'is' if len(gone) == 1 else 'are'} missing"
        for what, old_names, new_names in (
            ("game", _unique(run.game for run in stored.runs), {run.game for run in plan.runs}),
            ("variant", _unique(run.variant for run in stored.runs), {run.variant for run in plan.runs}),
            ("seed", _unique(str(run.seed) for run in stored.runs), {str(run.seed) for run in plan.runs}),
        )
        if (gone := [name for name in old_names if name not in new_names])
    ]
    old_flags, new_flags = stored.study.flags, plan.study.flags
    if _without_where(old_flags) != _without_where(new_flags):
        missing.append(
            f"the runs have the flags {shlex.join(old_flags) or '(none)'}, now {shlex.join(new_flags) or '(none)'}"
        )
    elif not missing:
        missing = [
            f"{run.name} has the flags {shlex.join(run.flags)}, now {shlex.join(new[run.name].flags)}"
            for run in stored.runs
            if run.name not in new or _without_where(new[run.name].flags) != _without_where(run.flags)
        ][:1]
    if missing:
        raise UsageError(
            f"{directory} holds another study: {'; '.join(missing)}; to add runs, name the old games, seeds and values "
            "of --vary too, for anything else use a new directory"
        )
    names = dict.fromkeys(run.name for run in (*stored.runs, *plan.runs))
    return Plan(plan.study, tuple(new[name] for name in names))


def _require_games(games: Sequence[str]) -> None:
    for game in games:
        if game == "all":
            raise UsageError(
                f"--games: all includes every game; give all alone or name the games, got {','.join(games)}"
            )
        if game not in GAMES:
            raise UsageError(f"--games: unknown game {game!r}; {suggestion(game, (*GAMES, 'all'))}")
    if len(set(games)) < len(games):
        raise UsageError(f"--games: a game is named twice: {','.join(games)}")


def _require_flags(study: Study) -> None:
    """Raises UsageError if a flag belongs to the study, is unknown, or is both varied and given to every run."""
    if study.flags and not study.flags[0].startswith("-"):
        raise UsageError(f"flags after --: expected a flag of python -m learner, got {study.flags[0]!r}")
    given = _parse(study.flags, "flags after --")
    named = given.overrides.keys() | {name for name in ("run_dir", "resume") if getattr(given, name) is not None}
    if given.preset is not None:
        named |= {"preset"}
    for name in SET_BY_STUDY.keys() & named:
        raise UsageError(f"flags after --: {flag(name)} is set by the study; {SET_BY_STUDY[name]}")
    for name in study.vary:
        if name in SET_BY_STUDY:
            raise UsageError(f"--vary: {flag(name)} is set by the study; {SET_BY_STUDY[name]}")
        if flag(name) in _WHERE_FLAGS:
            raise UsageError(f"--vary: {flag(name)} is no setting of a run and cannot vary; give it after --")
        if name not in SETTINGS or not SETTINGS[name].metadata["has_flag"]:
            known = [other for other, field in SETTINGS.items() if field.metadata["has_flag"]]
            near = closest(name, known)
            hint = "python -m learner --help lists the flags" if near is None else f"did you mean {flag(near)}?"
            raise UsageError(f"--vary: the learner has no flag {flag(name)}; {hint}")
        if name in named:
            raise UsageError(f"--vary: {flag(name)} is also given after --; leave it out there")


def _variants(vary: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The flags of every variant, by its name, such as `gamma=.99_mode=sync`; names do not depend on the order."""
    names = sorted(vary)
    variants = {}
    for values in itertools.product(*(vary[name] for name in names)):
        pairs = list(zip(names, values, strict=True))
        label = "_".join(f"{flag(name)[2:]}={value}" for name, value in pairs) or ONLY_VARIANT
        if (size := len(label.encode())) > _MAX_NAME_BYTES:
            raise UsageError(
                f"--vary: the variant {label} has a name of {size} bytes, but a directory's name can have "
                f"{_MAX_NAME_BYTES}; vary fewer flags"
            )
        variants[label] = tuple(word for name, value in pairs for word in _flag_words(name, value))
    return variants


def _require_size(study: Study) -> None:
    """Raises UsageError if the study has too many runs, before they are made."""
    variants = math.prod(len(values) for values in study.vary.values())
    runs = len(study.games) * variants * study.seeds
    if runs > MAX_RUNS:
        raise UsageError(
            f"--seeds: {format_count(study.seeds, 'seed')} of {format_count(len(study.games), 'game')} and "
            f"{format_count(variants, 'variant')} are {runs:,} runs; a study can have at most {MAX_RUNS:,}"
        )


def _require_chosen(vary: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError if a value that each machine chooses is beside others, one of which it may choose."""
    for name, values in vary.items():
        for value in values:
            given = _parse(_flag_words(name, value), f"--vary, {flag(name)[2:]}={value}").overrides
            is_automatic = (
                given.get(name) == DEFAULTS[name] if name in AUTOMATIC else name == "num_actors" and name not in given
            )
            if is_automatic and len(values) > 1:
                raise UsageError(
                    f"--vary: {flag(name)[2:]}={value} is chosen for each machine and may be one of the other values; "
                    "name the values"
                )


def _flag_words(name: str, value: str) -> tuple[str, ...]:
    """The flag of a setting with a value; `--NAME` or `--no-NAME` for flags without a value."""
    field = SETTINGS[name]
    if field.type is bool and not choices_of(field):
        if value not in ("yes", "no"):
            raise UsageError(f"--vary: {flag(name)}: expected yes or no, got {value!r}")
        return (flag(name) if value == "yes" else f"--no-{flag(name)[2:]}",)
    return flag(name), value


def _parse(flags: Sequence[str], source: str) -> CommandLine:
    """The learner's reading of `flags`; UsageError with the learner's line if one is wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(list(flags))
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UsageError(f"{source}: {said.getvalue().strip().removeprefix('learner: ')}") from end


def _resolve(flags: Sequence[str], source: str) -> Config:
    """The settings of a run with these flags, on a machine with or without a GPU: it need not be this one."""
    command_line = _parse(flags, source)
    preset, overrides = command_line.preset_of_new_run, command_line.overrides
    errors = []
    for has_gpu in (False, True):
        try:
            return resolve(preset, overrides, Machine(available_cores(), has_gpu))
        except ConfigError as error:
            errors.append(error)
    # Where the flags ask for a GPU, the error without one only says that it is missing.
    asks_for_gpu = overrides.get("device") == "cuda" or overrides.get("compile") or overrides.get("cuda_graphs")
    cause = errors[1 if asks_for_gpu else 0]
    raise UsageError(f"{source}: {cause}") from cause


def _without_where(flags: Sequence[str]) -> list[str]:
    """The flags that decide what a run computes: without the cluster's address."""
    kept: list[str] = []
    words = iter(flags)
    for word in words:
        name, has_value, _ = word.partition("=")
        if name not in _WHERE_FLAGS:
            kept.append(word)
        elif _WHERE_FLAGS[name] and not has_value:
            next(words, None)
    return kept


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
