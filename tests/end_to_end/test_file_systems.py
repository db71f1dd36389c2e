"""A run on a file system without links, locks and directory fsync: trained, scored, resumed, with one warning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import shown_points
from tests.conftest import build_preload

PROJECT = Path(__file__).parents[2]
WARNING = "lacks features that runs use"


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    """A library that takes the features away below the directory that FEWER_FEATURES names."""
    return build_preload(Path(__file__).with_name("fewer_features.c"), tmp_path_factory.mktemp("preload"))


def test_run_without_links_and_locks_is_scored_and_resumed(preload, run_learner, tiny, tmp_path):
    environment = {"LD_PRELOAD": str(preload), "FEWER_FEATURES": str(tmp_path)}
    run = RunDirectory(tmp_path / "run")
    first = run_learner(*tiny, "--no-evaluator", "--total-frames", "128", "--run-dir", run.path, **environment)
    assert first.returncode == 0, first.stderr
    scored_too = ("--evaluator", "--backfill", "--total-frames", "256")
    again = run_learner("--resume", run.path, *scored_too, **environment)
    assert again.returncode == 0, again.stderr
    for done in (first, again):
        assert (done.stdout + done.stderr).count(WARNING) == 1
    log = run.learner_log.read_text()
    for missing in ("no symbolic links", "no hard links", "no flock", "no fsync of directories"):
        assert log.count(missing) == 2  # once a start
    rows = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    versions = [0, 2, 4]
    assert sorted(row["policy_version"] for row in rows) == versions
    assert sorted(shown_points(run.tensorboard / "evaluator")) == [64 * version for version in versions]
    assert sorted(shown_points(run.tensorboard / "learner")) == [64 * version for version in range(1, 5)]
    assert run.best_checkpoint() in {path.name for path in run.checkpoints.iterdir()} and not run.best.is_symlink()
    assert not list(run.path.glob(".learner.lock.owner"))
    scored = subprocess.run(
        [sys.executable, "-m", "evaluator", "score", run.best, "--json"],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert json.loads(scored.stdout)["checkpoint"] == run.best_checkpoint(), scored.stderr
