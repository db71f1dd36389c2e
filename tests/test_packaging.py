"""What is built and installed is what is in the repository, and every dependency is pinned."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from common.versions import PROCGEN_BUILDS
from learner.cluster.machine_checks import SUPPORTED_PYTHONS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"actors", "common", "evaluator", "learner"}
PINNED_BY_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton")  # torch names the versions of its CUDA packages


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, run without the paths that this test process adds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of our directories with the pinned setuptools of this environment."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    tree.mkdir()
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tree)
    for name in [*PACKAGES, "tests", "benchmarks"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    run(*pip_wheel, "--no-build-isolation", "--wheel-dir", tree.parent, tree, cwd=tree.parent)
    (built,) = tree.parent.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel in it.

    Its dependencies come from this environment, by a .pth file. Python does not follow the .pth files of a
    folder that it was led to like this, so the editable install of the repository stays out of reach.
    """
    environment = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    pip_install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip_install, "--no-deps", "--no-index", wheel, cwd=environment.parent)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    paths = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site_packages / "dependencies.pth").write_text("\n".join(paths) + "\n")
    return python


def test_wheel_holds_our_four_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    data = {"output/report.html.j2", "output/published.json", "studies/page.html.j2"}
    assert files == {*(f"evaluator/{name}" for name in data), *(path.relative_to(ROOT).as_posix() for path in sources)}
    assert wheel.name == "heldout-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_installed_package_comes_from_the_wheel(package: str, clean_python: Path) -> None:
    code = f"import {package}; print({package}.__file__)"
    imported = Path(run(clean_python, "-c", code, cwd=Path("/")).strip())
    assert imported.is_relative_to(clean_python.parents[1])


@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("learner", ["--preset", "--run-dir", "--resume", "--total-frames", "--num-actors", "--address"]),
        ("evaluator", ["score", "compare", "video", "levels", "report", "watch"]),
    ],
)
def test_installed_program_shows_its_help_from_another_directory(
    package: str, flags: list[str], clean_python: Path
) -> None:
    shown = run(clean_python, "-m", package, "--help", cwd=Path("/"))
    assert [flag for flag in flags if flag not in shown] == []


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A user's directory with folders of the names of our packages."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the folder of the user')")
    return tmp_path


@pytest.mark.parametrize(("script", "word"), [("heldout-learner", "--run-dir"), ("heldout-evaluator", "compare")])
def test_console_script_finds_our_packages_whatever_the_directory_holds(
    script: str, word: str, clean_python: Path, crowded: Path
) -> None:
    assert word in run(clean_python.with_name(script), "--help", cwd=crowded)


def test_authentication_probe_finds_our_packages_whatever_the_directory_holds(
    clean_python: Path, crowded: Path
) -> None:
    site_packages = run(clean_python, "-c", "import common; print(common.__path__[0])", cwd=Path("/")).strip()
    code = f"""
import sys
sys.path[0] = {str(Path(site_packages).parent)!r}
from learner.cluster import authentication_probe
authentication_probe.RETRY_PERIOD = 0
print(authentication_probe.probe("127.0.0.1:9", with_token=False).reason)
"""
    reason = run(clean_python, "-c", code, cwd=crowded)
    assert reason.strip() and "ended with exit code" not in reason  # the probe ran, and nobody answered


def pins() -> dict[str, str]:
    """Exact version by canonical name: pyproject.toml's (as installed) and constraints.txt's."""
    lines = (ROOT / "constraints.txt").read_text().splitlines() + (distribution("heldout").requires or [])
    pinned = {}
    for line in lines:
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "dev"}):
            continue
        (specifier,) = requirement.specifier  # one, and exact: a dependency without a pin fails here
        assert specifier.operator == "==", line
        name = canonicalize_name(requirement.name)
        # ray[default] beside ray is one pin with more of it
        assert name not in pinned or requirement.extras, f"{requirement.name} is pinned twice"
        assert pinned.get(name, specifier.version) == specifier.version, f"{requirement.name} is pinned to two versions"
        pinned[name] = specifier.version
    return pinned


def pinned_for(python: str) -> list[Requirement]:
    """What `.[dev]` and constraints.txt pin on this version of Python, read from the files."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"], *constraints]
    requirements = [Requirement(line) for line in lines]
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": python})]


@pytest.mark.parametrize(
    ("python", "build", "numpy"),
    [
        ("3.10", "procgen", "1"),
        ("3.11", "procgen-mirror", "1"),
        ("3.12", "procgen-mirror", "1"),
        ("3.13", "procgen-gym", "2"),
    ],
)
def test_each_python_gets_one_version_of_everything_and_one_procgen(python: str, build: str, numpy: str) -> None:
    pinned: dict[str, str] = {}
    for requirement in pinned_for(python):
        (specifier,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert name not in pinned or requirement.extras, f"{name} is pinned twice"
        pinned[name] = specifier.version
    assert [name for name in PROCGEN_BUILDS if name in pinned] == [build]
    assert pinned["numpy"].startswith(f"{numpy}.")
    assert ("gym3" in pinned) == ("gym" in pinned) == ("glfw" in pinned) == (numpy == "1")


def test_supported_pythons_are_the_same_everywhere() -> None:
    lowest, highest = SUPPORTED_PYTHONS[0], SUPPORTED_PYTHONS[-1]
    above = f"3.{int(highest.partition('.')[2]) + 1}"
    (requires,) = re.findall('requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert SpecifierSet(requires) == SpecifierSet(f">={lowest},<{above}")
    setup = (ROOT / "tools/setup.sh").read_text()
    assert f"case $1 in {' | '.join(SUPPORTED_PYTHONS)})" in setup
    for name in ("tools/setup.sh", "Makefile", "README.md", "CONTRIBUTING.md", "docs/settings.md"):
        assert f"{lowest} to {highest}" in (ROOT / name).read_text(), name


def test_procgen_of_python_3_13_is_pinned_by_hash_and_installed_first() -> None:
    (pin,) = [line for line in (ROOT / "procgen-gym.txt").read_text().splitlines() if not line.startswith("#")]
    requirement, _, digest = pin.partition(" --hash=sha256:")
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert Requirement(requirement) in pinned_for("3.13")
    for name, later in (("tools/setup.sh", "--editable"), ("Dockerfile", "-r /tmp/run.txt")):
        text = (ROOT / name).read_text()
        assert 0 < text.index("--no-deps --require-hashes") < text.index(later)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="procgen-gym is installed on Python 3.13")
def test_installed_procgen_gym_is_the_wheel_that_was_compared() -> None:
    (library,) = [file for file in distribution("procgen-gym").files or [] if file.name == "libenv.so"]
    assert library.hash is not None and library.hash.value == "La-YClA-5eGXprxPXkjFx85FsrFK8-_pF3HFZH371uo"


def installed_dependencies() -> dict[str, str]:
    """Version by canonical name of everything that heldout[dev] needs here, directly or not."""
    found: dict[str, str] = {}
    followed: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, set[str]]] = [("heldout", {"dev"})]
    while waiting:
        name, extras = waiting.pop()
        for line in distribution(name).requires or []:
            requirement = Requirement(line)
            marker, key = requirement.marker, canonicalize_name(requirement.name)
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                continue
            if (key, frozenset(requirement.extras)) in followed or PINNED_BY_TORCH.fullmatch(key):
                continue
            followed.add((key, frozenset(requirement.extras)))
            found[key] = distribution(requirement.name).version.split("+")[0]  # without torch's +cpu
            waiting.append((requirement.name, requirement.extras))
    return found


def test_installed_dependencies_are_pinned_and_at_their_pins() -> None:
    installed = installed_dependencies()
    assert {"torch", "ray", "numpy", "pytest"} <= set(installed)
    pinned = pins()
    assert {name: pinned.get(name) for name in installed} == installed


def test_pins_are_only_of_what_the_project_needs() -> None:
    assert sorted(set(pins()) - set(installed_dependencies())) == []
