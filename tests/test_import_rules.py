"""The rules of which packages may import which (docs/architecture.md), read from the source by `ast`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "common": {"common"},
    "actors": {"actors", "common"},
    "evaluator": {"evaluator", "common"},
    "learner": {"learner", "common"},
}
NAMES_OTHER_PROCESSES = {"learner/rollouts/fleet.py", "learner/evaluator_handle.py", "learner/main.py"}
RAY_PATHS = {
    *("actors/remote.py", "evaluator/remote.py", "learner/main.py", "learner/evaluator_handle.py"),
    "learner/reporting/operator_metrics.py",
}
RAY_FOLDERS = ("learner/rollouts/", "learner/cluster/")
ENVIRONMENT_FILE = "common/process.py"
NAMELESS = {"utils.py", "helpers.py"}

SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported_modules(tree: ast.AST) -> set[str]:
    """The full names of the modules that a file imports anywhere in its code; `.` for a relative import."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else node.module or "")
    return names


def changes_environment(tree: ast.AST) -> bool:
    """Whether a file assigns to os.environ, deletes from it, or calls what changes it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = ast.unparse(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"putenv", "unsetenv"}:
                return True
            mutates = node.func.attr in {"setdefault", "update", "pop", "popitem", "clear"}
            target = ast.unparse(node.func.value) if mutates else ""
        else:
            continue
        if target in {"os.environ", "environ"}:
            return True
    return False


def violations(path: str, source: str) -> list[str]:
    """What the file at `path` (relative to the repository, with slashes) does against the rules."""
    package, name = path.split("/")[0], path.split("/")[-1]
    may_use_ray = path in RAY_PATHS or path.startswith(RAY_FOLDERS)
    tree = ast.parse(source)
    modules = imported_modules(tree)
    roots = {module.split(".")[0] for module in modules}
    found = []
    if "." in modules:
        found.append("relative import")
    allowed = set(MAY_IMPORT) if path in NAMES_OTHER_PROCESSES else MAY_IMPORT[package]
    found += [f"imports {other}" for other in sorted(roots & set(MAY_IMPORT) - allowed)]
    if "ray" in roots and not may_use_ray:
        found.append("imports ray")
    if changes_environment(tree) and path != ENVIRONMENT_FILE:
        found.append("changes the environment")
    if name == "__init__.py" and source:
        found.append("__init__.py is not empty")
    if name in NAMELESS:
        found.append("has no meaningful name")
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_package_exists(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_keeps_the_rules(path: Path) -> None:
    assert violations(path.relative_to(ROOT).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("common/config.py", "import actors.remote", "imports actors"),
        ("common/remote.py", "import ray", "imports ray"),
        ("actors/remote.py", "from learner import ppo", "imports learner"),
        ("evaluator/__main__.py", "def main():\n    import learner.ppo.learner", "imports learner"),
        ("learner/rollouts/stream.py", "from actors.remote import RemoteRolloutActor", "imports actors"),
        ("learner/training.py", "from evaluator.remote import RemoteEvaluatorActor", "imports evaluator"),
        ("learner/ppo/learner.py", "import ray.exceptions", "imports ray"),
        ("actors/cluster.py", "from ray import remote", "imports ray"),
        ("learner/ppo/learner.py", "from . import gae", "relative import"),
        ("learner/__init__.py", "from learner.ppo.learner import update", "__init__.py is not empty"),
        ("common/utils.py", "", "has no meaningful name"),
        ("learner/rollouts/fleet.py", "import os\nos.environ['A'] = 'b'", "changes the environment"),
        ("learner/rollouts/fleet.py", "import os\nos.environ.setdefault('A', 'b')", "changes the environment"),
        ("learner/rollouts/fleet.py", "import os\nos.putenv('A', 'b')", "changes the environment"),
        ("learner/rollouts/fleet.py", "from os import environ\ndel environ['A']", "changes the environment"),
    ],
)
def test_broken_rule_is_found(path: str, source: str, expected: str) -> None:
    assert violations(path, source) == [expected]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("learner/main.py", "import ray\nfrom evaluator.levels.level_sets import draw_level_sets"),
        ("learner/rollouts/fleet.py", "import ray\nfrom actors.remote import RemoteRolloutActor"),
        ("learner/cluster/connection.py", "import ray"),
        ("learner/ppo/learner.py", "from common.config import Config\nfrom learner.ppo.gae import gae\nimport torch"),
        ("common/process.py", "import os\nos.environ['A'] = 'b'"),
        ("learner/rollouts/fleet.py", "import os\nhome = os.environ['HOME']\nsettings = {}\nsettings.update(a=1)"),
    ],
)
def test_allowed_code_is_not_reported(path: str, source: str) -> None:
    assert violations(path, source) == []
