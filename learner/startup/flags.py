"""The command line of `python -m learner`: one flag for each setting of `Config`, and where to run."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from common.cli import (
    OneLineParser,
    cluster_address,
    directory_path,
    number,
    parse_whole_number,
    suggestion,
    whole_number,
)
from common.config import DEFAULTS, PRESETS, SETTINGS, choices_of, flag


@dataclasses.dataclass(frozen=True, slots=True)
class CommandLine:
    """What the user typed. `overrides` holds only the settings they named."""

    preset: str | None
    overrides: dict[str, Any]
    run_dir: Path | None
    resume: Path | None  # the run to continue; Path("auto"): the run in run_dir if there is one
    address: str | None
    allow_unauthenticated: bool = False  # join a cluster that anyone who reaches it can use

    @property
    def preset_of_new_run(self) -> str:
        """The preset that was named, right or wrong, or the default."""
        return DEFAULTS["preset"] if self.preset is None else self.preset


def parse(argv: list[str] | None) -> CommandLine:
    """Parses the flags; a wrong flag ends the process with one line and exit code 2."""
    parser = _parser()
    if argv and not argv[0].startswith("-"):
        hint = suggestion(argv[0], ("doctor", "study"))
        parser.error(f"unknown command {argv[0]!r} (without a command it trains); {hint}")
    parsed = vars(parser.parse_args(argv))
    parsed |= parsed.pop("num_actors", {})
    where = {name: parsed.pop(name, None) for name in ("preset", "run_dir", "resume", "address")}
    allow_unauthenticated = parsed.pop("allow_unauthenticated", False)
    return CommandLine(overrides=parsed, allow_unauthenticated=allow_unauthenticated, **where)


def learner_flags() -> list[str]:
    """Every flag of `python -m learner`, with its dashes."""
    return _parser().flags()


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="learner",
        usage="python -m learner [flags]\n       python -m learner doctor [flags]\n       "
        "python -m learner study DIR [flags]",
        description="Trains a PPO agent on a Procgen game and scores it on levels it never trained on.",
        epilog="Exit codes: 0 finished, 1 training could not continue, 2 invalid usage or configuration, 130 Ctrl-C, "
        "143 SIGTERM, 129 SIGHUP, 128 + n another signal that ends processes (all after a checkpoint).",
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
        allow_abbrev=False,
    )
    parser.add_argument_group(
        "commands",
        "doctor: check this machine, and with --address a Ray cluster, before training (python -m learner doctor "
        "--help). study: many runs over games, variants and seeds (python -m learner study --help). Without a command: "
        "train.",
    )
    where = parser.add_argument_group("run directory and cluster")
    where.add_argument(
        "--run-dir", type=directory_path, metavar="DIR", help="directory of a new run (runs/GAME-PRESET-TIME)"
    )
    where.add_argument(
        "--resume",
        type=directory_path,
        metavar="{DIR,auto}",
        help="continue this run from its newest complete checkpoint or resume point; auto: continue the run in "
        "--run-dir, or start it",
    )
    where.add_argument(
        "--address",
        type=cluster_address,
        metavar="ADDRESS",
        help="Ray cluster to join: auto or HOST:PORT (RAY_ADDRESS, else an embedded local Ray)",
    )
    where.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="join a cluster without authentication: anyone who reaches its ports can run code on it (no)",
    )
    groups: dict[str, Any] = {}
    for name, field in SETTINGS.items():
        if (title := field.metadata["group"]) not in groups:
            groups[title] = parser.add_argument_group(title)
        if field.metadata["has_flag"]:
            help_text = field.metadata["help"] + _defaults(name)
            groups[title].add_argument(flag(name), help=help_text, **_value(field))
    return parser


def _value(field: dataclasses.Field) -> dict[str, Any]:
    """How argparse reads the flag of a setting, and how its value is shown in the help."""
    if field.name == "num_actors":
        return {"type": actor_range, "metavar": "{N,LOW:HIGH,max}"}
    if choices := choices_of(field):
        words = {"yes": True, "no": False} if field.type is bool else {}
        metavar = "NAME" if len(choices) > 9 else "{" + ",".join(choices) + "}"
        return {"type": lambda text: words.get(text, text), "metavar": metavar}
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    unit = field.metadata["unit"].upper()
    return (
        {"type": whole_number, "metavar": unit or "N"}
        if field.type is int
        else {"type": number, "metavar": unit or "X"}
    )


def actor_range(text: str) -> dict[str, int]:
    """The settings that `8`, `4:64` or `max` stand for."""
    try:
        if text == "max":
            return {"min_actors": 1}
        if ":" not in text:
            return {"num_actors": parse_whole_number(text), "min_actors": 0}
        low, high = map(int, text.split(":"))
        if 1 <= low <= high:
            return {"num_actors": high, "min_actors": low}
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected N, LOW:HIGH with 1 <= LOW <= HIGH, or max, got {text!r}")


def _defaults(name: str) -> str:
    """The presets' values, as ` (lab 20, easy 200, hard 500)` or ` (20)`; "" if computed, which the help describes."""
    values = {preset: _show(overrides.get(name, DEFAULTS[name])) for preset, overrides in PRESETS.items()}
    if len(set(values.values())) > 1:
        return " (" + ", ".join(f"{preset} {value}" for preset, value in values.items()) + ")"
    return "" if DEFAULTS[name] is None else f" ({values['lab']})"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
