"""The command line of `python -m learner`: one flag for each setting of `Config`, and where to run."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from common.cli import OneLineParser, number, parse_whole_number, whole_number
from common.config import PRESETS, Config, flag

COMPUTED_DEFAULTS = {
    "num_actors": "one a core, as far as they divide the preset's environments: lab 64, easy 64, hard 256",
    "envs_per_actor": "the preset's environments divided by --num-actors",
    "held_out_levels": "as many as training levels where they come next, 200 where they are sampled",
}


@dataclasses.dataclass(frozen=True, slots=True)
class CommandLine:
    """What the user typed. `given` holds only the settings they named."""

    preset: str | None
    given: dict[str, Any]
    run_dir: Path | None
    resume: Path | None  # the run to continue; Path("auto"): the one in run_dir, if there is one
    address: str | None
    allow_unauthenticated: bool = False  # a cluster that anyone who reaches it can use


def parse(argv: list[str] | None) -> CommandLine:
    """Reads the flags; wrong ones end the process with one line and exit code 2."""
    parsed = vars(_parser().parse_args(argv))
    if (actors := parsed.pop("num_actors", None)) is not None:
        parsed |= actors
    own = {name: parsed.pop(name, None) for name in ("preset", "run_dir", "resume", "address")}
    allow_unauthenticated = parsed.pop("allow_unauthenticated", False)
    return CommandLine(given=parsed, allow_unauthenticated=allow_unauthenticated, **own)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="learner",
        usage="python -m learner [flags]",
        description="Trains a PPO agent on a Procgen game and has it scored on levels it never trained on.",
        epilog="Exit codes: 0 finished, 1 training could not go on, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM (both after "
        "a checkpoint).",
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
        allow_abbrev=False,
    )
    where = parser.add_argument_group("where")
    where.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of a new run (runs/GAME-PRESET-TIME)")
    where.add_argument(
        "--resume",
        type=Path,
        metavar="{DIR,auto}",
        help="continue this run from its newest complete checkpoint; auto: the run in --run-dir, new if there is none",
    )
    where.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to join: auto or HOST:PORT (RAY_ADDRESS, else an embedded local Ray)",
    )
    where.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="join a cluster without authentication: anyone who reaches its ports can run code on it (no)",
    )
    settings = dataclasses.fields(Config)
    groups = {name: parser.add_argument_group(name) for name in dict.fromkeys(s.metadata["group"] for s in settings)}
    for field in settings:
        if field.name == "min_actors":  # part of --num-actors
            continue
        help_text = f"{field.metadata['help']} ({_defaults(field.name)})"
        groups[field.metadata["group"]].add_argument(flag(field.name), help=help_text, **_type(field))
    return parser


def _type(field: dataclasses.Field) -> dict[str, Any]:
    if field.name == "num_actors":
        return {"type": actor_range, "metavar": "{N,LOW:HIGH,max}"}
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if field.type is int:
        return {"type": whole_number, "metavar": "N"}
    if field.type is float:
        return {"type": number, "metavar": "X"}
    choices = field.metadata["choices"]
    return {"metavar": "{" + ",".join(choices) + "}" if choices else "NAME"}


def actor_range(text: str) -> dict[str, int]:
    """The settings that `8`, `4:64` or `max` stand for."""
    if text == "max":
        return {"min_actors": 1}
    if ":" not in text:
        return {"num_actors": parse_whole_number(text), "min_actors": 0}
    low, high = map(int, text.split(":"))
    if not 1 <= low <= high:
        raise ValueError
    return {"num_actors": high, "min_actors": low}


actor_range.__name__ = "number of actors (N, LOW:HIGH with 1 <= LOW <= HIGH, or max)"


def _defaults(name: str) -> str:
    """The preset values, as `lab 20, easy 200, hard 500`, or one value where all presets agree."""
    if name == "preset":
        return "lab"
    if name in COMPUTED_DEFAULTS:
        return COMPUTED_DEFAULTS[name]
    values = {preset: settings[name] for preset, settings in PRESETS.items()}
    if len(set(values.values())) == 1:
        return _show(next(iter(values.values())))
    return ", ".join(f"{preset} {_show(value)}" for preset, value in values.items())


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
