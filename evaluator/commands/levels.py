"""`python -m evaluator levels`: draws and audits level sets, without a run."""

import argparse
import json
from typing import Any

from common.games import GAMES
from common.process import prepare_process
from common.resolution import resolve
from evaluator.levels.level_file import audited_level_sets, describe_finding
from evaluator.output.text import print_table

_MAX_SHOWN = 40


def run(options: argparse.Namespace) -> None:
    """Prints what the audit found for each game and mode; ConfigError if the settings contradict each other."""
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
    columns = ("game", "mode", "checked", "same level", "same layout", "ends immediately", "removed", "flagged")
    print_table(columns, rows, left=("game", "mode"))
    if len(rows) == 1:
        _print_details(contents)


def _summary(game: str, mode: str, audit: dict[str, Any]) -> tuple[str, ...]:
    checked, findings = audit["judged"], [*audit["removed"], *audit["flagged"]]
    reasons = ("same_level", "same_layout", "ends_at_once")
    counts = [str(sum(finding["reason"] == reason for finding in findings)) for reason in reasons]
    shares = [f"{len(audit[name]) / checked:.1%}" for name in ("removed", "flagged")]
    return game, mode, str(checked), *counts, *shares


def _print_details(contents: dict[str, Any]) -> None:
    for outcome in ("removed", "flagged"):
        findings = contents["audit"][outcome]
        if findings:
            print_table(
                (outcome, "level", "reason"),
                [(each["split"], str(each["level"]), describe_finding(each)) for each in findings[:_MAX_SHOWN]],
                left=(outcome, "reason"),
            )
        if len(findings) > _MAX_SHOWN:
            print(f"and {len(findings) - _MAX_SHOWN} more; --json lists all")
    for split, rule in contents["rule"].items():
        print(f"{split}: {rule}")
