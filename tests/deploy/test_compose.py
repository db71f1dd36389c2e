"""The image and the compose files, checked as text: no container engine is needed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.resolution import Machine, resolve
from learner.cluster.connection import object_store_bytes_needed
from learner.startup.flags import parse

PROJECT = Path(__file__).parent.parent.parent
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


def with_defaults(value: Any) -> Any:
    """`value` with `${NAME:-default}` replaced by the default, as compose does in an empty environment."""
    if isinstance(value, dict):
        return {key: with_defaults(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_defaults(item) for item in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


def compose_file(name: str) -> dict[str, Any]:
    return with_defaults(yaml.safe_load((PROJECT / name).read_text()))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return compose_file("docker-compose.yml")["services"]


def stage(name: str) -> list[str]:
    """The instructions of one stage of the Dockerfile, one per line."""
    text = re.sub(r"\\\n\s*", "", (PROJECT / "Dockerfile").read_text())
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    (found,) = [s for s in stages if s.splitlines()[0].endswith(f"AS {name}")]
    return [line for line in found.splitlines()[1:] if line and not line.startswith("#")]


def megabytes(size: str) -> float:
    return int(size[:-1]) * UNITS[size[-1]] / 2**20


def test_default_commands_are_accepted_by_the_learner(services: dict[str, Any]) -> None:
    script, *flags = services["head"]["entrypoint"]
    assert script == "head.sh"
    for command in (services["head"]["command"], compose_file("docker-compose.gpu.yml")["services"]["head"]["command"]):
        parsed = parse(["--address", "auto", *flags, *shlex.split(command)])
        config = resolve(parsed.preset or "lab", parsed.overrides, Machine(has_gpu=True))
        assert config.min_actors == 1  # the run starts with the first actor that is ready
        assert str(parsed.resume) == "auto"
        assert f"runs:{parsed.run_dir.parent}" in services["head"]["volumes"]  # type: ignore[union-attr]


def test_default_object_stores_hold_the_rollouts_of_the_default_run(services: dict[str, Any]) -> None:
    parsed = parse(shlex.split(services["head"]["command"]))
    for preset in ("lab", "easy"):
        needed = object_store_bytes_needed(resolve(preset, parsed.overrides))
        assert int(services["head"]["environment"]["OBJECT_STORE_MEMORY"]) >= needed


@pytest.mark.parametrize("name", ["head", "actors"])
def test_object_stores_fit_into_shared_memory(services: dict[str, Any], name: str) -> None:
    service = services[name]
    store = int(service["environment"]["OBJECT_STORE_MEMORY"]) / 2**20
    assert store < megabytes(service["shm_size"])


def test_only_tensorboard_is_published_and_only_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"tensorboard": ["127.0.0.1:6006:6006"]}
    assert not any("network_mode" in service for name, service in services.items() if name != "token")
    assert compose_file("docker-compose.yml")["networks"]["cluster"] == {"internal": True}
    assert {name for name, service in services.items() if "cluster" in service.get("networks", [])} == {
        "head",
        "actors",
    }


@pytest.mark.parametrize("name", ["head", "actors"])
def test_ray_nodes_require_the_token_and_read_it_from_the_volume(services: dict[str, Any], name: str) -> None:
    environment = services[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == services["token"]["environment"]["RAY_AUTH_TOKEN_PATH"]
    assert "token:/token:ro" in services[name]["volumes"]
    assert services[name]["depends_on"]["token"] == {"condition": "service_completed_successfully"}


def test_token_is_in_no_environment_variable(services: dict[str, Any]) -> None:
    assert not any("RAY_AUTH_TOKEN" in service.get("environment", {}) for service in services.values())
    assert "RAY_AUTH_TOKEN=" not in (PROJECT / "Dockerfile").read_text()


def test_head_restarts_after_a_crash_and_has_time_for_a_checkpoint_when_stopped(services: dict[str, Any]) -> None:
    head = services["head"]
    assert re.fullmatch(r"on-failure:\d+", head["restart"])  # not after exit code 0, and not endlessly after 2
    assert services["actors"]["restart"] == "unless-stopped"
    assert int(head["stop_grace_period"].rstrip("s")) >= 40
    assert all(service["init"] is True for service in services.values())


def test_only_the_head_gets_the_gpu() -> None:
    (name, head), *others = compose_file("docker-compose.gpu.yml")["services"].items()
    assert name == "head" and not others
    (device,) = head["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert head["image"] != compose_file("docker-compose.yml")["services"]["actors"]["image"]


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "docker-compose.gpu.yml"]])
def test_compose_accepts_the_files(files: list[str]) -> None:
    command = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    try:
        is_installed = subprocess.run([*command, "version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        is_installed = False
    if not is_installed:
        pytest.skip("neither docker-compose nor docker compose is installed")
    named = [part for name in files for part in ("-f", name)]
    done = subprocess.run([*command, *named, "config", "-q"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "obsolete" not in done.stderr


def test_package_index_is_visible_only_to_stages_that_install() -> None:
    for name in ("base", "heldout"):
        assert not any(line.startswith("ARG PIP") for line in stage(name))
    assert all("=" not in line for name in ("dependencies", "code") for line in stage(name) if line.startswith("ARG"))
    assert "http" not in (PROJECT / "Dockerfile").read_text()


def test_dependencies_are_installed_before_any_code_is_copied() -> None:
    copied = [line for line in stage("dependencies") if line.startswith("COPY")]
    assert copied == [
        "COPY constraints.txt procgen-gym.txt /tmp/",
        "COPY --from=requirements /tmp/heldout/build.txt /tmp/heldout/run.txt /tmp/",
    ]
    final = stage("heldout")
    assert final.index("COPY --from=dependencies /opt/heldout /opt/heldout") < final.index(
        "COPY --from=code /tmp/code /opt/heldout/lib/python${PYTHON}/site-packages"
    )
    assert all(
        "-c /tmp/constraints.txt" in part for line in stage("dependencies") for part in line.split("pip install")[1:]
    )


@pytest.mark.parametrize("name", ["heldout", "tensorboard"])
def test_containers_do_not_run_as_root(name: str) -> None:
    users = [line for line in stage(name) if line.startswith("USER")]
    assert users == ["USER 1000:1000"]  # numeric, because Kubernetes cannot tell whether a user name is root


def test_image_installs_our_packages_and_the_requirements_of_pyproject(tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11, the oldest of the image")
    pyproject = PROJECT / "pyproject.toml"
    script = PROJECT / "deploy/docker/requirements.py"
    subprocess.run([sys.executable, script, pyproject], cwd=tmp_path, check=True)
    project = tomllib.loads(pyproject.read_text())
    wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["cluster"]
    assert (tmp_path / "run.txt").read_text().splitlines() == wanted
    assert (tmp_path / "build.txt").read_text().startswith("setuptools==")
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert {f"COPY {name} {name}" for name in packages} <= set(stage("code"))


def test_dockerignore_admits_exactly_what_the_dockerfile_copies() -> None:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    sources = set()
    for line in (PROJECT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            sources |= set(line.split()[1:-1])
    assert all((PROJECT / source).exists() for source in sources)
    assert {"deploy/docker" if source.startswith("deploy/docker/") else source for source in sources} == allowed


@pytest.mark.parametrize("script", ["token.sh", "head.sh", "node.sh", "healthy.py"])
def test_scripts_are_executable_and_copied_into_the_image(script: str) -> None:
    path = PROJECT / "deploy/docker" / script
    assert os.access(path, os.X_OK)
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
    assert f"deploy/docker/{script}" in (PROJECT / "Dockerfile").read_text()


def test_token_is_created_once_with_mode_0600_and_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "ray-token"
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    outputs, tokens = [], []
    for _ in range(2):
        done = subprocess.run(
            [PROJECT / "deploy/docker/token.sh"],
            env={"PATH": python, "RAY_AUTH_TOKEN_PATH": str(path)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(done.stdout + done.stderr)
        tokens.append(path.read_text())
    assert re.fullmatch("[0-9a-f]{64}", tokens[0]) and tokens[0] == tokens[1]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert not any(tokens[0] in output for output in outputs)
