"""A cluster of `ray start --head` with a token: who is refused, what a run in it exposes, and its Prometheus endpoint.

One head and one finished run serve all tests.
"""

import importlib.util
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from learner.reporting.operator_metrics import COUNTERS, GAUGES
from tests.conftest import free_ports, wait_until
from tests.end_to_end.ray_heads import (
    HOST,
    IMPATIENCE,
    PROJECT,
    WRONG_TOKEN,
    end,
    environment,
    readable_by_others,
    run,
    start_head,
    store_token,
)

SERIES = sum(len(metric.label_values) for metric in (*GAUGES.values(), *COUNTERS.values()))
AGENT_NEEDS = ("prometheus_client", "opentelemetry", "opencensus", "aiohttp_cors")
HAS_AGENT = all(importlib.util.find_spec(name) is not None for name in AGENT_NEEDS)
needs_agent = pytest.mark.skipif(
    not HAS_AGENT, reason="Ray serves metrics only with the extra `cluster` (ray[default])"
)


@dataclass(frozen=True)
class Head:
    """A running `ray start --head` and what is needed to reach it."""

    address: str
    metrics: str  # URL of the Prometheus endpoint
    home: Path  # of its user, with the token
    token: str
    temp_dir: Path


@pytest.fixture(scope="module")
def temp_dir() -> Iterator[Path]:
    """Short, since a socket's path may have at most 107 characters; private, since Ray's own directories are not."""
    path = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def head(temp_dir: Path) -> Iterator[Head]:
    """A head that requires a token."""
    home, token = temp_dir / "home", secrets.token_hex(32)
    store_token(home, token)
    port, client, agent, metrics = free_ports(4)
    log_file = temp_dir / "head.log"
    process = start_head(
        *(log_file, temp_dir / "ray", environment(home, RAY_AUTH_MODE="token"), "--port", port),
        *("--ray-client-server-port", client, "--dashboard-agent-listen-port", agent, "--metrics-export-port", metrics),
    )
    try:
        wait_until(lambda: "Ray runtime started" in log_file.read_text(), process, output=log_file)
        url = f"http://{HOST}:{metrics}/metrics"
        if HAS_AGENT:
            wait_until(lambda: read(url) is not None, process, output=log_file)
        yield Head(f"{HOST}:{port}", url, home, token, temp_dir / "ray")
    finally:
        end(process)


@dataclass(frozen=True)
class Finished:
    """A finished run of ten updates, what it printed, its command line, and what the endpoint said at its end."""

    path: Path
    output: str
    command: str
    metrics: str | None


@pytest.fixture(scope="module")
def finished(head: Head, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        assert name not in environment(head.home)
    directory = tmp_path_factory.mktemp("cluster") / "finished"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "learner", *tiny, "--total-frames", "640", "--checkpoint-interval", "10"),
            *("--eval-episodes-per-level", "2", "--held-out-levels", "2"),
            *("--address", head.address, "--run-dir", str(directory)),
        ],
        env=environment(head.home),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until((directory / "metrics.jsonl").exists, process)
        command = " ".join(psutil.Process(process.pid).cmdline())
        output, _ = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, output
    # Ray sends once more when the learner disconnects; gauges stay for 20 s.
    return Finished(directory, output, command, read(head.metrics))


@pytest.fixture(scope="module", params=["without a token", "with a wrong token"])
def stranger(request: pytest.FixtureRequest, temp_dir: Path) -> dict[str, str]:
    """The environment of a user who must not be admitted."""
    home = temp_dir / request.param.replace(" ", "-")
    if request.param == "without a token":
        home.mkdir()
        return environment(home, RAY_AUTH_MODE="disabled", **IMPATIENCE)
    store_token(home, WRONG_TOKEN)
    return environment(home, RAY_AUTH_MODE="token", **IMPATIENCE)


def test_learner_that_is_refused_says_why_in_one_line(head: Head, stranger: dict[str, str], tmp_path: Path) -> None:
    env = {name: value for name, value in stranger.items() if name != "RAY_AUTH_MODE"}
    command = (sys.executable, "-m", "learner", "--address", head.address, "--run-dir", tmp_path / "run")
    refused = run(*command, env=env)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    missing = "requires a token, but none was found in" in refused.stderr
    assert missing or "requires a token and refused the one in" in refused.stderr
    assert missing != (Path(env["HOME"]) / ".ray").exists()
    assert WRONG_TOKEN not in refused.stderr + refused.stdout
    assert not (tmp_path / "run").exists()


def test_run_exposes_neither_its_token_nor_its_files(head: Head, finished: Finished) -> None:
    """The head runs under another umask; the evaluator's files are private nevertheless."""
    assert "token authentication" in finished.output

    assert "learner" in finished.command and head.token not in finished.command
    assert head.token not in finished.output
    written = [path for place in (finished.path, head.temp_dir) for path in place.rglob("*") if path.is_file()]
    assert any("gcs_server" in path.name for path in written) and any(path.suffix == ".gif" for path in written)
    assert [path for path in written if head.token.encode() in path.read_bytes()] == []
    assert head.token not in (head.temp_dir.parent / "head.log").read_text()
    assert readable_by_others(finished.path) == []


def read(url: str) -> str | None:
    """The endpoint's text, or None while it does not answer."""
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return None


def samples_of(run_name: str, text: str | None) -> tuple[list[tuple[str, dict[str, str], float]], dict[str, str]]:
    """[(name, labels, value)] of one run in the endpoint's text, and the types by name."""
    from prometheus_client.parser import text_string_to_metric_families

    samples, types = [], {}
    for family in text_string_to_metric_families(text or ""):
        for sample in family.samples:
            if sample.name.startswith("ray_heldout_") and sample.labels["run"] == run_name:
                samples.append((sample.name, sample.labels, sample.value))
                types[sample.name] = family.type
    return samples, types


@needs_agent
def test_endpoint_serves_the_numbers_of_the_run_directory(finished: Finished, rows) -> None:
    path = finished.path
    samples, types = samples_of(path.name, finished.metrics)
    values = {(name, labels.get("split") or labels.get("reason")): value for name, labels, value in samples}
    updates, (*_, score) = rows(path / "metrics.jsonl"), rows(path / "evaluations.jsonl")
    newest = updates[-1]
    absent = {name for name, metric in GAUGES.items() if metric.field is not None and newest[metric.field] is None}
    assert absent <= {"heldout_episode_return", "heldout_episode_length"}  # where no episode has ended yet
    assert len(samples) == len(values) == SERIES - len(absent)
    counters = {f"ray_{name}_total": "counter" for name in COUNTERS}
    assert types == {f"ray_{name}": "gauge" for name in GAUGES if name not in absent} | counters
    assert newest["frames"] == 640 and score["policy_version"] == 10
    for name, metric in {**GAUGES, **{f"{name}_total": metric for name, metric in COUNTERS.items()}}.items():
        if metric.field is not None and name not in absent:
            assert values[f"ray_{name}", None] == newest[metric.field], name
    for name in ("waiting", "training", "publishing", "collecting", "transfer", "staging"):
        total = sum(row[f"seconds_{name}"] for row in updates)
        assert values[f"ray_heldout_{name}_seconds_total", None] == pytest.approx(total)
    assert values["ray_heldout_episodes_total", None] == sum(row["episodes"] for row in updates)
    assert values["ray_heldout_checkpoint_policy_version", None] == 10
    assert values["ray_heldout_disk_problem", None] == values["ray_heldout_evaluator_problem", None] == 0
    assert values["ray_heldout_scored_policy_version", None] == 10
    assert values["ray_heldout_generalization_gap", None] == score["generalization_gap"]
    for split in ("train", "held_out"):
        assert values["ray_heldout_score", split] == score[split]["mean"]
        assert values["ray_heldout_score_interval_low", split] == score[split]["interval"][0]
        assert values["ray_heldout_score_interval_high", split] == score[split]["interval"][1]


@needs_agent
def test_resumed_run_continues_without_a_jump_and_labels_are_few(head: Head, finished: Finished, rows) -> None:
    more = ("--resume", finished.path, "--address", head.address, "--total-frames", 1024, "--no-evaluator")
    result = run(sys.executable, "-m", "learner", *more, env=environment(head.home))
    assert result.returncode == 0, result.stdout + result.stderr
    before, _ = samples_of(finished.path.name, finished.metrics)
    samples, _ = samples_of(finished.path.name, read(head.metrics))
    frames = sorted(value for name, _, value in samples if name == "ray_heldout_frames_total")
    assert frames == [384, 640]
    assert sum(frames) == rows(finished.path / "metrics.jsonl")[-1]["frames"]
    # Set by Ray, with one value per process or cluster.
    by_ray = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    ours = {
        name
        for _, labels, _ in (*before, *samples)
        for name in labels
        if name not in by_ray and not name.startswith("otel_scope_")
    }
    assert ours == {"run", "reason", "split"}
    assert len({labels["WorkerId"] for _, labels, _ in samples}) == 2
