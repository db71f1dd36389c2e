"""The fields of the Kubernetes manifest fit together, and fit our command line and KubeRay."""

import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import Config
from common.resolution import Machine, resolve
from learner.cluster.connection import object_store_bytes_needed
from learner.startup.flags import CommandLine, parse

PROJECT = Path(__file__).parent.parent.parent
DIRECTORY = PROJECT / "deploy/kuberay"
UNITS = {"Mi": 2**20, "Gi": 2**30}


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all((DIRECTORY / "rayjob.yaml").read_text())}


@pytest.fixture(scope="module")
def job(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["RayJob"]["spec"]


@pytest.fixture(scope="module")
def head(job: dict[str, Any]) -> dict[str, Any]:
    return job["rayClusterSpec"]["headGroupSpec"]


@pytest.fixture(scope="module")
def workers(job: dict[str, Any]) -> dict[str, Any]:
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    return group


@pytest.fixture(scope="module")
def command(job: dict[str, Any]) -> CommandLine:
    program = ["python", "-m", "learner"]
    words = shlex.split(job["entrypoint"])
    assert words[:3] == program
    return parse(words[3:])


@pytest.fixture(scope="module")
def config(command: CommandLine) -> Config:
    return resolve(command.preset or "lab", command.overrides, Machine(has_gpu=True))


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of the submitter, the head and the workers."""
    cluster = job["rayClusterSpec"]
    templates = [job["submitterPodTemplate"], cluster["headGroupSpec"]["template"]]
    return [template["spec"] for template in [*templates, *(g["template"] for g in cluster["workerGroupSpecs"])]]


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in pods(job) for container in pod["containers"]]


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def shared_memory(group: dict[str, Any]) -> int:
    """Bytes of memory mounted at /dev/shm."""
    spec = group["template"]["spec"]
    (name,) = [m["name"] for c in spec["containers"] for m in c["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == name]
    assert volume["emptyDir"]["medium"] == "Memory"
    return size(volume["emptyDir"]["sizeLimit"])


def test_versions_are_those_of_the_operator_and_of_ray(
    documents: dict[str, dict[str, Any]], job: dict[str, Any]
) -> None:
    assert {kind: document["apiVersion"] for kind, document in documents.items()} == {
        "PersistentVolumeClaim": "v1",
        "RayJob": "ray.io/v1",
    }
    assert job["rayClusterSpec"]["rayVersion"] == importlib.metadata.version("ray")
    assert len(documents["RayJob"]["metadata"]["name"]) <= 47  # KubeRay's limit


def test_failed_job_is_retried_and_resumes(job: dict[str, Any], command: CommandLine) -> None:
    assert isinstance(job["backoffLimit"], int) and job["backoffLimit"] > 0
    assert str(command.resume) == "auto" and command.run_dir is not None
    assert job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_finished_job_releases_the_gpu(job: dict[str, Any]) -> None:
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] >= 0


def test_entrypoint_runs_on_the_node_with_gpu_and_run_directory(
    job: dict[str, Any], head: dict[str, Any], command: CommandLine
) -> None:
    # A job that requests resources may start on any node; one without requests runs on the head.
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & set(job)
    assert command.address == "auto" and command.overrides["device"] == "cuda"
    (container,) = head["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert command.run_dir is not None
    (mount,) = [m for m in container["volumeMounts"] if command.run_dir.is_relative_to(m["mountPath"])]
    (volume,) = [v for v in head["template"]["spec"]["volumes"] if v["name"] == mount["name"]]
    assert set(volume) == {"name", "persistentVolumeClaim"}


def test_run_directory_is_on_the_claim(documents: dict[str, dict[str, Any]], head: dict[str, Any]) -> None:
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in head["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == [documents["PersistentVolumeClaim"]["metadata"]["name"]]


def test_actor_range_matches_the_smallest_and_largest_cluster(
    job: dict[str, Any], workers: dict[str, Any], config: Config
) -> None:
    assert job["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert config.min_actors == workers["minReplicas"] * cpus
    assert config.num_actors == workers["maxReplicas"] * cpus


def test_learner_waits_long_enough_for_a_machine_to_start(config: Config) -> None:
    assert config.cluster_timeout >= 600


def test_nodes_require_the_token(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "token" not in " ".join(variable["name"].lower() for c in containers(job) for variable in c.get("env", []))


def test_resource_requests_equal_limits(job: dict[str, Any]) -> None:
    autoscaler = job["rayClusterSpec"]["autoscalerOptions"]
    for container in [*containers(job), autoscaler]:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= set(resources["limits"])


def test_nothing_runs_as_root(job: dict[str, Any]) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", (PROJECT / "Dockerfile").read_text(), flags=re.MULTILINE)
    (ours,) = {(int(user), int(group)) for user, group in users}
    for pod in pods(job):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"]) == ours
        assert security["fsGroup"] == ours[1]  # makes the volume writable
    for container in [*containers(job), job["rayClusterSpec"]["autoscalerOptions"]]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_containers_have_the_same_image(job: dict[str, Any]) -> None:
    (image,) = {container["image"] for container in containers(job)}
    assert re.fullmatch(r"[\w./:-]+:[\w.-]+", image)


def test_object_stores_fit_into_shared_memory_and_hold_the_rollouts(
    head: dict[str, Any], workers: dict[str, Any], config: Config
) -> None:
    for group in (head, workers):
        store = int(group["rayStartParams"]["object-store-memory"])
        (container,) = group["template"]["spec"]["containers"]
        assert store < shared_memory(group) < size(container["resources"]["limits"]["memory"])
    # Every rollout passes through the head's object store.
    assert int(head["rayStartParams"]["object-store-memory"]) >= object_store_bytes_needed(config)


def test_stopped_job_has_time_for_a_checkpoint(head: dict[str, Any]) -> None:
    (container,) = head["template"]["spec"]["containers"]
    (wait,) = [v["value"] for v in container["env"] if v["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    assert 30 <= int(wait) <= head["template"]["spec"]["terminationGracePeriodSeconds"]


def test_ray_start_parameters_are_strings(head: dict[str, Any], workers: dict[str, Any]) -> None:
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
