"""`python -m evaluator levels`: draws and audits level sets, without a run."""

import argparse
import json
from typing import Any

from common.config import resolve
from common.games import GAMES
from common.process import prepare_process
from evaluator.levels.level_file import audited_level_sets, describe_removal
from evaluator.output.text import print_table

_MAX_SHOWN = 40


def run(options: argparse.Namespace) -> None:
    """Prints what the audit removed for each game and mode; ConfigError if the settings contradict each other."""
    prepare_process(num_threads=1, sees_gpu=False)
    sets = {name: getattr(options, name) for name in ("start_level", "num_levels", "held_out", "held_out_levels")}
    rows = []
    for mode in options.distribution_mode:
        for game in GAMES if "all" in options.env_name else options.env_name:
            overrides = {"env_name": game, "distribution_mode": mode, **sets}
            contents = audited_level_sets(resolve("easy", overrides))[1]
            if options.json:
                print(json.dumps(contents), flush=True)
            rows.append(_summary(game, mode, contents["audit"]))
    if options.json:
        return
    print_table(("game", "mode", "checked", "same picture", "ends immediately", "removed"), rows, left=("game", "mode"))
    if len(rows) == 1:
        _print_details(contents)


def _summary(game: str, mode: str, audit: dict[str, Any]) -> tuple[str, ...]:
    removed, checked = len(audit["removed"]), audit["judged"]
    same_picture = sum(removal["reason"] == "same_picture" for removal in audit["removed"])
    return game, mode, str(checked), str(same_picture), str(removed - same_picture), f"{removed / checked:.1%}"


def _print_details(contents: dict[str, Any]) -> None:
    if removed := contents["audit"]["removed"]:
        print_table(
            ("split", "level", "reason"),
            [(removal["split"], str(removal["level"]), describe_removal(removal)) for removal in removed[:_MAX_SHOWN]],
            left=("split", "reason"),
        )
        if len(removed) > _MAX_SHOWN:
            print(f"and {len(removed) - _MAX_SHOWN} more; --json lists all")
    for split, rule in contents["rule"].items():
        print(f"{split}: {rule}")
