"""The documents name files, links, commands, flags and tests that exist."""

import re
from pathlib import Path

import pytest

from evaluator.__main__ import main as evaluator_main
from learner.startup.flags import parse as parse_learner_flags
from learner.study.command import main as study_main

ROOT = Path(__file__).resolve().parents[1]
LISTED_FOLDERS = ("actors", "common", "evaluator", "learner", "benchmarks", "drills")
# Flags in the documents that belong to other programs.
FOREIGN_FLAGS = {
    "ray": "block dashboard-agent-grpc-port dashboard-agent-listen-port dashboard-host "
    "dashboard-port disable-usage-stats generate head include-dashboard max-worker-port metrics-export-port "
    "min-worker-port node-ip-address node-manager-port num-cpus object-manager-port port ray-client-server-port "
    "runtime-env-agent-port temp-dir working-dir",
    "slurm": "array cpus-per-task gpus-per-node nodes signal time",
    "docker": "build network no-build no-recreate no-trunc scale",
    "prometheus and tensorboard": "config.file logdir",
    "benchmarks and drills": "data-sets peers quick rounds updates",
}

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def tree_in_architecture() -> list[str]:
    """The paths in the indented tree of docs/architecture.md; folders end with a slash."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (tree,) = [block for block in blocks if block.startswith("common/")]
    folders: list[str] = []
    paths = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        del folders[depth:]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def help_text(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """What `python -m learner --help` or `python -m evaluator COMMAND --help` prints."""
    parse = parse_learner_flags if command == "learner" else evaluator_main
    with pytest.raises(SystemExit) as exit_info:
        parse([*command.split()[1:], "--help"])
    assert exit_info.value.code == 0, f"unknown command: python -m {command}"
    return capsys.readouterr().out


def test_every_path_in_the_architecture_exists() -> None:
    missing = [path for path in tree_in_architecture() if not (ROOT / path).exists()]
    assert not missing, missing


def test_every_python_file_is_in_the_architecture() -> None:
    files = [path for folder in LISTED_FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    paths = {path.relative_to(ROOT).as_posix() for path in files}
    unlisted = sorted(paths - set(tree_in_architecture()))
    assert not unlisted, unlisted


@each_document
def test_relative_links_resolve(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = path.parent / target if target else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(link)
    assert not broken, broken


@each_document
def test_paths_to_our_files_exist(path: Path) -> None:
    folders = "|".join((*LISTED_FOLDERS, "deploy", "docs", "tests", "tools"))
    named = re.findall(rf"`((?:{folders})/[\w./-]*\w)(?:::\w+)?`", path.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, missing


@each_document
def test_cited_tests_exist(path: Path) -> None:
    cited = re.findall(r"(tests/[\w/]+\.py)::(\w+)", path.read_text())
    missing = []
    for file, name in cited:
        if not (ROOT / file).is_file() or not re.search(rf"def {name}\(", (ROOT / file).read_text()):
            missing.append(f"{file}::{name}")
    assert not missing, missing


@each_document
def test_modules_in_commands_exist(path: Path) -> None:
    modules = re.findall(r"python -m ((?:actors|benchmarks|drills|evaluator|learner)[\w.]*\w)", path.read_text())
    missing = []
    for module in modules:
        file = ROOT / module.replace(".", "/")
        if not file.with_suffix(".py").is_file() and not (file / "__main__.py").is_file():
            missing.append(module)
    assert not missing, missing


def test_flags_in_the_documents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    # The words after `python -m evaluator`, but for paths and placeholders.
    commands = {f"evaluator {word}" for word in re.findall(r"python -m evaluator ([a-z]+)(?![\w/.])", text)}
    known = {f"--{flag}" for flags in FOREIGN_FLAGS.values() for flag in flags.split()} | {"--help"}
    with pytest.raises(SystemExit):
        study_main(["--help"])
    known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for command in sorted({"learner"} | commands):
        known |= set(re.findall(r"--[a-z][\w-]*", help_text(capsys, command)))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z]", text))
    unknown = sorted(named - known)
    assert not unknown, unknown
