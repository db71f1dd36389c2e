"""What a connection is called, and what is refused before Ray is started."""

import inspect
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import ray

from common.resolution import resolve
from learner.cluster import connection
from learner.cluster.connection import (
    JOB_VARIABLE,
    Connection,
    connect,
    messages_of_ray_in_the_log,
    our_code,
    submitted_working_directory,
)
from learner.cluster.machine_checks import Check
from learner.cluster.target import ClusterError, ClusterTarget


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        (Connection(None, 1, 8, False), "embedded local Ray, 8 CPUs"),
        (Connection("auto", 1, 1, False), "Ray cluster at auto, 1 node, 1 CPU, no authentication"),
        (Connection("h:1", 2, 16, True), "Ray cluster at h:1, 2 nodes, 16 CPUs, token authentication"),
    ],
)
def test_connection_describes_itself(connection: Connection, expected: str) -> None:
    assert connection.describe() == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("somewhere", "RAY_ADDRESS=somewhere is neither auto nor HOST:PORT"),
        ("host:0", "RAY_ADDRESS=host:0 is neither auto nor HOST:PORT"),
        ("ray://host:10001", "RAY_ADDRESS=ray://host:10001 is for Ray Client, which is too slow"),
        ("http://127.0.0.1:8265", "RAY_ADDRESS=http://127.0.0.1:8265 is an address of Ray's dashboard and job API"),
        ("host name:6379", "RAY_ADDRESS=host name:6379 is neither auto nor HOST:PORT"),
        ("host:6379/", "RAY_ADDRESS=host:6379/ is neither auto nor HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answered at RAY_ADDRESS=127.0.0.1:1 within 0 s: Connection refused"),
    ],
)
def test_unusable_address_is_refused_with_the_name_of_its_source(address: str, message: str) -> None:
    config = resolve("lab", {"cluster_timeout": 0.01})
    with pytest.raises(ClusterError) as refused:
        connect(ClusterTarget(address, "RAY_ADDRESS"), config)
    assert str(refused.value).startswith(message)


def test_cluster_that_does_not_answer_yet_is_named_once_while_it_is_waited_for(monkeypatch, caplog) -> None:
    monkeypatch.setattr(connection, "_REPORT_AFTER_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING), pytest.raises(ClusterError):
        connect(ClusterTarget("127.0.0.1:1", "--address"), resolve("lab", {"cluster_timeout": 1.2}))
    said = "no Ray cluster answers yet at --address 127.0.0.1:1, waiting up to 1 s: Connection refused"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (None, None),
        ('{"runtime_env": {"working_dir": "gcs://a.zip"}, "metadata": {}}', "gcs://a.zip"),
        ('{"runtime_env": {"env_vars": {"A": "b"}}}', None),
        ('{"runtime_env": null}', None),
    ],
)
def test_working_directory_of_a_submitted_job_replaces_our_copy(job, expected, monkeypatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    if job is not None:
        monkeypatch.setenv(JOB_VARIABLE, job)
    assert submitted_working_directory(os.environ) == expected
    with our_code() as runtime_env:
        assert ("working_dir" in runtime_env) == (expected is None)


@pytest.mark.parametrize("job", ["no JSON", "[]", '{"runtime_env": 1}'])
def test_unreadable_description_of_a_job_is_refused_by_name(job: str) -> None:
    with pytest.raises(ClusterError, match=JOB_VARIABLE):
        submitted_working_directory({JOB_VARIABLE: job})


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'foo'"), Exception("timed out\nadvice")])
def test_ray_that_does_not_start_names_the_variables_it_inherited(error, monkeypatch) -> None:
    def fail(_size: int) -> None:
        raise error

    monkeypatch.setattr(connection, "start_embedded_ray", fail)
    monkeypatch.setenv("RAY_ROTATION_MAX_BYTES", "x")
    with pytest.raises(ClusterError, match=r"unset any that you do not need: .*RAY_ROTATION_MAX_BYTES") as refused:
        connect(None, resolve("lab", {"num_actors": 1}))
    assert "\n" not in str(refused.value)


def test_ray_that_does_not_start_names_low_limits_and_its_logs(monkeypatch) -> None:
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # pytest's is too long for Ray
    logs = Path(directory, "ray", f"session_2026-01-01_00-00-00_000000_{os.getpid()}", "logs")

    def fail(_size: int) -> None:
        logs.mkdir(parents=True)
        raise RuntimeError("timed out")

    monkeypatch.setattr(connection, "start_embedded_ray", fail)
    monkeypatch.setattr(connection, "open_files_check", lambda actors: Check("open files", "warning", "limit 90"))
    monkeypatch.setenv("RAY_TMPDIR", directory)
    try:
        with pytest.raises(ClusterError) as refused:
            connect(None, resolve("lab", {"num_actors": 1}))
    finally:
        shutil.rmtree(directory)
    assert str(refused.value).endswith(f"Ray: timed out; open files: limit 90; Ray's logs are in {logs}")


def test_too_few_processes_are_refused_before_ray_starts(monkeypatch) -> None:
    monkeypatch.setattr("learner.cluster.limit_checks.processes_left", lambda: 10)
    with pytest.raises(ClusterError, match=r"^processes: .* leaves 10 processes and threads"):
        connect(None, resolve("lab", {"num_actors": 1}))


def test_messages_of_ray_are_logged_and_not_printed(caplog, capsys) -> None:
    message = {"lines": ["A worker died.\nWorker PID: 12"], "pid": "raylet", "is_err": False}
    printing = ray._private.worker.print_to_stdstream
    with caplog.at_level(logging.INFO), messages_of_ray_in_the_log():
        ray._private.worker.print_to_stdstream(message, ignore_prefix=False)  # as `listen_error_messages` calls it
    (record,) = caplog.records
    assert (record.getMessage(), record.details) == ("Ray: A worker died.", "Worker PID: 12")
    assert capsys.readouterr().out == ""
    assert ray._private.worker.print_to_stdstream is printing
    assert "print_to_stdstream(" in inspect.getsource(ray._private.worker.listen_error_messages)
