"""Run directories with scores that were never played (config.json, metrics.jsonl, evaluations.jsonl, levels.json), and
their summaries."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.config import flag
from common.resolution import Machine, resolve
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.levels.level_sets import Split
from evaluator.studies.ranges import Ranges
from evaluator.studies.runs import find_runs
from evaluator.studies.selection import add_published, select
from evaluator.studies.summary import summarize

LEVELS = 4
CPU_MACHINE = Machine(cores=1)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Writes a run of preset easy (16,384 frames an update) below `tmp_path/study` and returns it.

    `returns` are the mean returns of its evaluations, one an update from version 0 on.
    """

    def make(
        game: str,
        seed: int,
        returns: Sequence[float],
        split: str = "test",
        updates: int | None = None,
        levels: Sequence[int] | None = None,
        episodes: int = 1,
        machine: Machine = CPU_MACHINE,
        **settings: Any,
    ) -> RunDirectory:
        updates = len(returns) - 1 if updates is None else updates
        requested = {"preset": "easy", "env_name": game, "seed": seed, "total_frames": 16_384 * updates, **settings}
        preset = requested.pop("preset")
        config = resolve(preset, requested, machine)
        variant = "_".join(f"{flag(name)[2:]}={value}" for name, value in settings.items()) or "default"
        run = RunDirectory(tmp_path / "study" / game / variant / f"seed-{seed}")
        run.path.mkdir(parents=True)
        run.write_config(config, {}, {"preset": preset, **requested})
        levels = list(range(1000, 1000 + LEVELS)) if levels is None else levels
        run.level_sets.write_text(json.dumps({"train": [0, 1], "validation": [5, 6], "test": list(levels)}))
        for version, value in enumerate(returns):
            frames = 16_384 * version
            score = {"mean": value, "interval": None, "levels": len(levels), "episodes": len(levels) * episodes}
            append_jsonl(run.evaluations, {"policy_version": version, "frames": frames, split: score})
            if version:
                row = {"policy_version": version, "frames": frames, "fps": 1000.0 + seed, "time": float(version)}
                append_jsonl(run.metrics, row)
        return run

    return make


@pytest.fixture
def study(make_run: Callable[..., RunDirectory], tmp_path: Path) -> Path:
    """coinrun and maze, gamma .9 and .99, three seeds; version v of seed s scores 5 + v + s/10 (+ 1 for gamma .99)."""
    for game in ("coinrun", "maze"):
        for gamma in (0.9, 0.99):
            for seed in range(3):
                returns = [5 + version + seed / 10 + (gamma > 0.9) for version in range(4)]
                make_run(game, seed, returns, gamma=gamma)
    return tmp_path / "study"


def summary_of(
    path: Path, split: Split | None = None, at: int | None = None, ranges: Ranges = "openai", published: bool = False
) -> dict[str, Any]:
    """The summary of the runs below `path`, as `aggregate` makes it."""
    runs, left_out = find_runs([path])
    selection = select(runs, split, at, require_equal_evaluations=True)
    selection.notes[:0] = left_out
    if published:
        add_published(selection)
    return summarize(selection, ranges)
