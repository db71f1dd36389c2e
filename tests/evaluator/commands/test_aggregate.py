"""`python -m evaluator aggregate`: tables, JSON, page and --rescore; wrong input is one line and exit code 2."""

import base64
import errno
import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from common.output import CLOSED_PIPE_EXIT_CODE, OutputError
from common.policy_network import PolicyNetwork
from common.resolution import resolve
from common.storage.checkpoints import load_checkpoint, save_checkpoint
from common.storage.jsonl import append_jsonl, read_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.__main__ import main
from evaluator.commands import aggregate
from evaluator.commands.parser import parse
from evaluator.levels.level_file import stored_level_sets
from evaluator.levels.level_sets import draw_level_sets
from evaluator.output import text as text_module
from evaluator.output.score_files import ScoreFiles
from evaluator.scores.evaluation import evaluate

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def level_sets(config, tmp_path_factory):
    """levels.json of the fixture's config, audited once."""
    run = RunDirectory(tmp_path_factory.mktemp("audited"))
    stored_level_sets(run, config)
    return run.level_sets.read_bytes()


@pytest.fixture
def study(save, level_sets, tmp_path):
    """Two seeds of an untrained leaper policy with scores of version 0 and 10; the fixture's config has seed 7."""
    for seed in (7, 8):
        run = RunDirectory(tmp_path / "study" / f"seed-{seed}")
        run.path.mkdir(parents=True)
        requested = {"env_name": "leaper", "num_levels": 2, "seed": seed, "total_frames": 16_384}
        run.write_config(resolve("lab", requested), {}, requested)
        run.level_sets.write_bytes(level_sets)
        for version in (0, 10):
            save(run.checkpoints, version)
            score = {"mean": 4.0 + version / 10 + seed / 10, "interval": None, "levels": 2, "episodes": 2}
            append_jsonl(run.evaluations, {"policy_version": version, "frames": 1000 * version, "test": score})
        append_jsonl(run.metrics, {"policy_version": 10, "frames": 10_000, "fps": 500.0, "time": 1.0})
    return tmp_path / "study"


def files(path):
    return sorted((file, file.stat().st_mtime_ns) for file in path.rglob("*"))


def test_tables_show_what_json_holds_and_nothing_is_written(study, capsys):
    before = files(study)
    assert main(["aggregate", str(study), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    own = summary["variants"]["default"]
    assert own["games"]["leaper"]["seeds"] == {"7": 5.7, "8": 5.8} and own["parameters"] == 626_256
    assert main(["aggregate", str(study)]) == 0
    out = capsys.readouterr().out
    assert "played by each run: 2 levels x 1 episode\n" in out
    assert re.search(r"A default +2 ", out) and re.search(rf"A {own['iqm']['value']:.3f} \[", out)
    assert re.search(r"leaper +A +2 +10,000 +5\.75 +5\.\d\d to \d\.\d\d", out)
    assert "normalized by the ranges `openai`" in out
    assert files(study) == before


def test_tables_of_many_variants_fit_into_80_columns(monkeypatch, capsys):
    """The lag study: seven variants with long names, 21 pairs."""
    monkeypatch.setattr(text_module, "make_console", lambda width: Console(width=80))
    assert main(["aggregate", str(PROJECT / "docs" / "results" / "lag"), "--split", "train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(re.match(r"[A-G] - [A-G] +[+-]0\.\d{3} ", line) is not None for line in lines) == 21
    assert sum(re.match(r"[A-G] mode=", line) is not None for line in lines) == 7
    assert "…" not in "".join(lines)


def test_scores_that_the_evaluator_writes_are_read(save, config, level_sets, tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(config, {}, {})
    run.level_sets.write_bytes(level_sets)
    checkpoint = load_checkpoint(save(run.checkpoints, 10), policy_only=True)
    files = ScoreFiles(run, config)
    slots = draw_level_sets(config)[0].slots(("train", "test"))
    row = files.add(evaluate(checkpoint, slots, 1, config.seed), skipped=0, eval_seconds=0.0, updates_behind=0)
    files.close()
    assert main(["aggregate", str(run.path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    game = summary["variants"]["default"]["games"]["leaper"]
    assert (summary["split"], game["seeds"], game["frames"]) == ("test", {"7": row["test"]["mean"]}, [10_000, 10_000])


def test_page_is_one_file_that_loads_nothing(study, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["aggregate", str(study), "--output", str(page)]) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4
    assert not re.findall(r"(?:src|href)=\"(?!data:)|<script|https?://", text)
    assert "Probability" not in text and "default" in text and "5.75" in text
    assert main(["aggregate", str(study), "--output", str(page)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_name_of_a_run_that_is_not_utf_8_is_escaped_in_the_page(study, tmp_path):
    (study / "seed-8" / "levels.json").unlink()
    (study / "seed-8").rename(study / os.fsdecode(b"l\xe4uf"))
    page = tmp_path / "page.html"
    assert main(["aggregate", str(study), "--output", str(page)]) == 0
    assert "study/l\\udce4uf" in page.read_text()


@pytest.mark.parametrize("command", ["score", "compare A", "video --output w.gif", "report", "watch", "aggregate"])
@pytest.mark.parametrize(("path", "said"), [("", "got an empty text"), (os.fsdecode(b"l\xe4uf"), "a path in UTF-8")])
def test_paths_of_runs_that_are_empty_or_not_utf_8_are_refused(command, path, said, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), path])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_plots_are_the_pictures_of_the_page(study, tmp_path, capsys):
    page, plots = tmp_path / "page.html", tmp_path / "plots"
    assert main(["aggregate", str(study), "--output", str(page), "--plots", str(plots)]) == 0
    assert sorted(path.name for path in plots.iterdir()) == ["bars.png", "curves.png", "iqm.png", "profile.png"]
    for path in plots.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert base64.b64encode(path.read_bytes()).decode() in page.read_text()
    assert capsys.readouterr().out.splitlines()[-2:] == [str(page), str(plots)]


@pytest.mark.parametrize("flag", ["--output", "--plots"])
def test_tables_are_printed_and_nothing_partial_stays_if_a_file_cannot_be_written(study, tmp_path, capsys, flag):
    path = tmp_path / "new" / "result"
    path.parent.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # like a disk that becomes full
    try:
        assert main(["aggregate", str(study), flag, str(path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, err = capsys.readouterr()
    assert "5.75" in out and err == f"evaluator: cannot write {flag} {path}: File too large\n"
    assert list(path.parent.iterdir()) == []
    assert main(["aggregate", str(study), flag, str(path)]) == 0


def test_page_is_written_although_nobody_reads_the_tables(study, tmp_path, monkeypatch):
    def closed_pipe(summary):
        raise OutputError(BrokenPipeError(errno.EPIPE, "Broken pipe"))

    monkeypatch.setattr(aggregate, "print_summary", closed_pipe)
    page = tmp_path / "page.html"
    assert main(["aggregate", str(study), "--output", str(page)]) == CLOSED_PIPE_EXIT_CODE
    assert page.read_text().endswith("</html>")


def test_page_and_plots_of_the_same_name_are_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["aggregate", "missing", "--output", "x", "--plots", f"{tmp_path}/x"]) == 2
    assert capsys.readouterr().err == (
        f"evaluator: --output and --plots are both {tmp_path}/x; choose another name for one of them\n"
    )


@pytest.mark.parametrize(
    ("path", "reason"),
    [("{tmp}", "already exists and is not overwritten"), ("{tmp}/none/plots", "{tmp}/none is not a directory")],
)
def test_plots_in_a_used_or_impossible_place_are_refused(study, tmp_path, capsys, path, reason):
    assert main(["aggregate", str(study), "--plots", path.format(tmp=tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"evaluator: --plots {path.format(tmp=tmp_path)}") and reason.format(tmp=tmp_path) in line


def test_rescore_plays_the_checkpoints_and_leaves_the_scores_of_the_runs_alone(study, capsys):
    runs = [RunDirectory(study / f"seed-{seed}") for seed in (7, 8)]
    scores = [run.evaluations.read_bytes() for run in runs]
    arguments = ["aggregate", str(runs[0].path), "--rescore", "--split", "train", "--episodes-per-level", "2"]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert err.count("2 train levels x 2 episodes") == 1
    # As `score` plays the same checkpoint with the seed of its run.
    assert main(["score", str(runs[0].path), "--split", "train", "--episodes-per-level", "2", "--json"]) == 0
    played = json.loads(capsys.readouterr().out)
    assert summary["variants"]["default"]["games"]["leaper"]["seeds"]["7"] == played["train"]["mean"]
    assert summary["curves"] == {}
    assert [run.evaluations.read_bytes() for run in runs] == scores and not runs[0].test_uses.exists()


def test_rescore_logs_each_use_of_the_test_levels(study, capsys):
    assert main(["aggregate", str(study / "seed-7"), "--rescore", "--at", "5k", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["variants"]["default"]["games"]["leaper"]["frames"] == [0, 0]  # the checkpoint at or before 5,000
    (use,) = read_jsonl(study / "seed-7" / "test_uses.jsonl")
    assert use["command"] == "aggregate" and use["policy_version"] == 0


def test_rescore_plays_validation_levels_unless_all_runs_have_scores_on_test_levels(study, capsys):
    rows = study / "seed-8" / "evaluations.jsonl"
    rows.write_text(rows.read_text().replace('"test"', '"validation"'))
    assert main(["aggregate", str(study), "--rescore", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["split"] == "validation" and err.count("2 validation levels x 3 episodes") == 2
    assert not list(study.rglob("test_uses.jsonl"))


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("copy", "have the same game, variant and seed (8)"),
        ("frames", "--at: no run has trained 1,000,000 frames; the most is 10,000"),
        ("levels", "levels.json was edited"),
        ("log", "cannot log the use of the test levels in {study}/seed-8/test_uses.jsonl: it is not writable"),
    ],
)
def test_rescore_refuses_before_it_plays_or_logs(study, capsys, monkeypatch, mistake, said):
    arguments = ["--at", "1M"] if mistake == "frames" else []
    if mistake == "copy":
        shutil.copytree(study / "seed-8", study / "seed-8-copy")
    if mistake == "levels":
        path = study / "seed-8" / "levels.json"
        path.write_text(path.read_text().replace('"tolerance": 32', '"tolerance": 31'))
    if mistake == "log":  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: path != study / "seed-8")
    before = files(study)
    assert main(["aggregate", str(study), "--rescore", "--split", "test", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(study=study) in line and files(study) == before


@pytest.mark.parametrize(("group_readable", "mode"), [(False, 0o600), (True, 0o640)])
def test_rescore_creates_files_with_the_modes_of_the_run(study, group_readable, mode):
    run = RunDirectory(study / "seed-8")
    config = json.loads(run.config.read_text())
    config["settings"]["group_readable"] = group_readable
    run.config.write_text(json.dumps(config))
    run.level_sets.unlink()
    os.umask(0o022)  # the next module has its own again
    assert main(["aggregate", str(run.path), "--rescore", "--split", "test", "--json"]) == 0
    assert [path.stat().st_mode & 0o777 for path in (run.level_sets, run.test_uses)] == [mode, mode]


def test_rescore_plays_no_game_that_a_variant_lacks(study, capsys):
    maze = study / "maze"
    shutil.copytree(study / "seed-8", maze)
    config = json.loads((maze / "config.json").read_text())
    config["settings"]["env_name"] = "maze"
    (maze / "config.json").write_text(json.dumps(config))
    shutil.copytree(study / "seed-8", study / "gamma")
    config["settings"] |= {"env_name": "leaper", "gamma": 0.9}
    config["requested"]["gamma"] = 0.9
    (study / "gamma" / "config.json").write_text(json.dumps(config))
    assert main(["aggregate", str(study), "--rescore", "--split", "test"]) == 0
    assert "maze is left out" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.parent.name for path in study.rglob("test_uses.jsonl")) == ["gamma", "seed-7", "seed-8"]


def test_rescore_without_a_checkpoint_is_refused(study, capsys):
    for path in (study / "seed-8" / "checkpoints").iterdir():
        path.rename(path.with_name(f".{path.name}"))
    assert main(["aggregate", str(study), "--rescore"]) == 2
    assert "seed-8 has no complete checkpoint of at most 10,000 frames to score" in capsys.readouterr().err


def test_run_is_found_if_its_directory_of_checkpoints_is_a_link(study, tmp_path, capsys):
    run = RunDirectory(study / "seed-7")
    run.checkpoints.rename(tmp_path / "large-disk")
    run.checkpoints.symlink_to(tmp_path / "large-disk")
    run.set_best_checkpoint("00000010")
    levels = run.level_sets.stat().st_mtime_ns
    assert main(["aggregate", str(run.path), "--rescore", "--split", "test", "--json"]) == 0
    for number, checkpoint in enumerate((run.checkpoints / "00000010", run.best), start=2):
        assert main(["score", str(checkpoint), "--split", "test", "--json"]) == 0
        assert len(read_jsonl(run.test_uses)) == number
    assert run.level_sets.stat().st_mtime_ns == levels
    assert not list(tmp_path.glob("*.json*"))


@pytest.fixture
def run_with_other_levels(study):
    """Seed 9 has the training levels `first` and the next one, beside 0 and 1 of the others, and no levels.json."""

    def make(first):
        run = RunDirectory(study / "seed-9")
        run.path.mkdir()
        requested = {"env_name": "leaper", "num_levels": 2, "start_level": first, "seed": 9, "total_frames": 16_384}
        config = resolve("lab", requested)
        run.write_config(config, {}, requested)
        save_checkpoint(run.checkpoints, config, 10, 10_000, PolicyNetwork(config.network).weights(), {})
        append_jsonl(run.metrics, {"policy_version": 10, "frames": 10_000, "fps": 500.0, "time": 1.0})
        return run

    return make


def test_rescore_says_how_many_levels_are_in_common(study, run_with_other_levels, capsys):
    run = run_with_other_levels(1)
    assert main(["aggregate", str(study), "--rescore", "--split", "train", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert "leaper: 1 of 2 train levels in common; only these were played" in summary["notes"]
    assert summary["played"] == {"leaper": {"levels": 1, "episodes_per_level": 3}}
    assert run.level_sets.exists()


def test_rescore_writes_no_levels_if_there_are_none_in_common(study, run_with_other_levels, capsys):
    run = run_with_other_levels(2)
    (study / "seed-7" / "levels.json").unlink()
    assert main(["aggregate", str(study), "--rescore", "--split", "train", "--json"]) == 2
    assert "leaper: the runs have no train levels in common" in capsys.readouterr().err
    assert not run.level_sets.exists() and not (study / "seed-7" / "levels.json").exists()


def test_rescore_leaves_out_runs_that_have_trained_nothing(study, save, capsys):
    run = RunDirectory(study / "seed-9")
    run.path.mkdir()
    requested = {"env_name": "leaper", "num_levels": 2, "seed": 9, "total_frames": 16_384}
    run.write_config(resolve("lab", requested), {}, requested)
    save(run.checkpoints, 0)
    assert main(["aggregate", str(study), "--rescore", "--split", "train", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["at"] == 10_000 and list(summary["variants"]["default"]["games"]["leaper"]["seeds"]) == ["7", "8"]
    assert f"{run.path} is left out: trained 0 frames" in summary["notes"]


def test_runs_without_an_evaluator_are_scored_by_rescore(study, capsys):
    for seed in (7, 8):
        (study / f"seed-{seed}" / "evaluations.jsonl").unlink()
    assert main(["aggregate", str(study)]) == 2
    assert capsys.readouterr().err == "evaluator: no run has a score yet; --rescore plays their newest checkpoints\n"
    assert main(["aggregate", str(study), "--rescore", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"]["default"]["runs"] == 2


@pytest.mark.parametrize(
    ("text", "frames"),
    [("4.1M", 4_100_000), ("8.2M", 8_200_000), ("2.01M", 2_010_000), (".5k", 500), ("20K", 20_000), ("1e6", 1_000_000)],
)
def test_frames_may_be_written_in_thousands_and_millions(text, frames):
    assert parse(["aggregate", "runs", "--at", text]).at == frames


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "1M"], "evaluator: --at: no run has trained 1,000,000 frames; the most is 10,000"),
        (["--at", "1G"], "--at: expected a number of frames such as 500k, 1M or 1000000, got '1G'"),
        (["--at", "-1"], "--at: expected"),
        (["--at", "infM"], "--at: expected"),
        (["--at", "nanM"], "--at: expected"),
        (["--at", "1e400k"], "--at: expected"),
        (["--at", "1.0005k"], "--at: expected"),
        (["--split", "train"], "evaluator: no run has train scores, only test; choose another --split"),
        (["--episodes-per-level", "5"], "--episodes-per-level has no effect without --rescore"),
        (["--ranges", "cobbe"], "--ranges: unknown value 'cobbe'; choose from openai, paper"),
        (["nowhere"], "evaluator: nowhere does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(study, capsys, arguments, said):
    try:
        exit_code = main(["aggregate", str(study), *arguments])
    except SystemExit as end:
        exit_code = end.code
    out, err = capsys.readouterr()
    assert exit_code == 2 and out == "" and len(err.splitlines()) == 1 and said in err, (exit_code, out, err)
