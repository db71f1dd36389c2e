"""`python -m evaluator levels`: draws and audits level sets, without a run."""

import argparse
import json
from typing import Any

from common.games import DISTRIBUTION_MODES, GAMES
from evaluator.commands.arguments import UsageError, count, level_or_seed
from evaluator.output.text import print_table

_SHOWN = 40


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "levels",
        help="draw and audit training, validation and test levels",
        description="Draws the level sets that a run with these settings would have, and says what the audit removed.",
    )
    parser.add_argument("--env-name", nargs="+", choices=(*GAMES, "all"), default=["coinrun"], metavar="GAME")
    parser.add_argument("--distribution-mode", nargs="+", choices=DISTRIBUTION_MODES, default=["easy"], metavar="MODE")
    parser.add_argument("--start-level", type=level_or_seed, default=0, metavar="N", help="first training level (0)")
    parser.add_argument("--num-levels", type=level_or_seed, default=200, metavar="N", help="training levels (200)")
    parser.add_argument(
        "--held-out", choices=("next", "sample"), default="sample", help="as of python -m learner (sample)"
    )
    parser.add_argument(
        "--held-out-levels", type=count, default=200, metavar="N", help="levels of each held-out split (200)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a game instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Raises UsageError where the settings contradict each other."""
    from common.config import ConfigError, resolve
    from common.process import prepare_process
    from evaluator.levels.level_file import audited_level_sets

    prepare_process(num_threads=1, sees_gpu=False)
    names = tuple(GAMES) if "all" in options.env_name else tuple(options.env_name)
    rows = []
    for mode in options.distribution_mode:
        for name in names:
            given = {
                "env_name": name,
                "distribution_mode": mode,
                **{key: getattr(options, key) for key in ("start_level", "num_levels", "held_out", "held_out_levels")},
            }
            try:
                contents = audited_level_sets(resolve("easy", given))[1]
            except ConfigError as error:
                raise UsageError(str(error)) from error
            if options.json:
                print(json.dumps(contents), flush=True)
            else:
                rows.append(_summary(name, mode, contents["audit"]))
    if options.json:
        return
    print_table(("game", "mode", "judged", "same picture", "ends at once", "removed"), rows, left=("game", "mode"))
    if len(rows) == 1:
        _print_details(contents)


def _summary(name: str, mode: str, audit: dict[str, Any]) -> tuple[str, ...]:
    reasons = [removal["reason"] for removal in audit["removed"]]
    return (
        name,
        mode,
        str(audit["judged"]),
        str(reasons.count("same_picture")),
        str(reasons.count("ends_at_once")),
        f"{len(reasons) / audit['judged']:.1%}",
    )


def _print_details(contents: dict[str, Any]) -> None:
    removed = contents["audit"]["removed"]
    if removed:
        print_table(
            ("split", "level", "why"),
            [(removal["split"], str(removal["level"]), _why(removal)) for removal in removed[:_SHOWN]],
            left=("split", "why"),
        )
        if len(removed) > _SHOWN:
            print(f"and {len(removed) - _SHOWN} more; --json lists all")
    for split, rule in contents["rule"].items():
        print(f"{split}: {rule}")


def _why(removal: dict[str, Any]) -> str:
    if removal["reason"] == "same_picture":
        return f"looks like training level {removal['same_as']}"
    return "ends at once under every action"
