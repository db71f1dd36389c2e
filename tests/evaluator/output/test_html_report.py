import base64
import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import astuple
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.cli import UsageError
from common.config import Config, ConfigError
from common.resolution import resolve
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.commands import report
from evaluator.commands.parser import parse
from evaluator.output.html_report import render_report
from evaluator.output.published import compare_with_published
from evaluator.output.score_files import CSV_COLUMNS
from evaluator.scores.statistics import LevelScore

# Solid colors that the page itself does not use.
SCORES, LEVELS, VIDEO = (255, 0, 170), (0, 190, 80), (120, 30, 210)
HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


def picture(color: tuple[int, int, int], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (120, 90), color).save(buffer, format=kind)
    return buffer.getvalue()


def score(mean: float, low: float, high: float) -> dict[str, Any]:
    return {
        "mean": mean,
        "stderr": 0.5,
        "interval": [low, high],
        "normalized": mean / 10,
        "success_rate": mean / 10,
        "timeout_rate": 0.05,
        "episodes": 4,
        "levels": 2,
    }


def row(version: int, train: float, validation: float, **others: Any) -> dict[str, Any]:
    held_out = score(validation, validation - 1, validation + 1)
    return {
        "policy_version": version,
        "frames": version * 1000,
        "train": score(train, train - 0.5, train + 0.5),
        "validation": held_out,
        "held_out": held_out,
        "held_out_split": "validation",
        "generalization_gap": train - validation,
        "generalization_gap_interval": [-0.25, 3.25],
        "seconds": 12.0,
        "checkpoint": f"{version:08d}",
        "policy_sha256": "ab",
        "scoreboard": {"validation": {"solved": 1, "newly_solved": 1, "forgotten": 0, "never_solved": 0}},
        "skipped": 0,
        "updates_behind": 0,
        **others,
    }


@pytest.fixture
def run(config: Config, tmp_path: Path) -> RunDirectory:
    """Versions 0, 10 and 30 are scored, and 10 is best; 20 was skipped. The rows are out of order."""
    run = RunDirectory(tmp_path / "leaper-run")
    run.path.mkdir()
    run.write_config(config, {"torch": "2.13.0"})
    for entry in (row(0, 1.0, 1.25), row(30, 6.5, 4.0, skipped=1), row(10, 5.0, 4.75)):
        append_jsonl(run.evaluations, entry)
    for version in (0, 10, 20, 30):
        (run.checkpoints / f"{version:08d}").mkdir(parents=True)
    append_jsonl(run.metrics, {"policy_version": 30, "frames": 30000, "fps": 251.0, "time": 1795463617.0})
    solved = {0: {0}, 10: {0, 2, 1}, 30: {0, 1, 3}}
    with open(run.levels, "w") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for version, levels in solved.items():
            for split, level in (("train", 0), ("train", 1), ("validation", 2), ("validation", 3)):
                rate = float(level in levels)
                writer.writerow((version, *astuple(LevelScore(split, level, 2, 10 * rate, rate, 0.0, 50.0))))  # type: ignore[arg-type]
    sets = {"train": [0, 1], "validation": [2, 3], "test": list(range(1000, 1100))}
    removed = [
        {"split": "validation", "level": 771, "reason": "same_layout", "same_as": 1},
        {"split": "test", "level": 772, "reason": "ends_at_once", "same_as": None},
    ]
    audit = {"judged": 104, "removed": removed, "flagged": []}
    run.level_sets.write_text(json.dumps({"rule": dict.fromkeys(sets, "[0, 2)"), "audit": audit, **sets}))
    run.scores_plot.write_bytes(picture(SCORES, "png"))
    run.levels_plot.write_bytes(picture(LEVELS, "png"))
    run.videos.mkdir()
    for name in (
        "00000010-typical-level3",
        "00000030-worst-level2",
        "00000030-typical-level3",
        "00000040-worst-level2",
    ):
        (run.videos / f"{name}.gif").write_bytes(picture(VIDEO, "gif"))
    (run.videos / "00000030-forgotten-level2.gif.aside-1").write_bytes(picture(VIDEO, "gif"))
    return run


class Page(HTMLParser):
    """The page as a browser parses it: balanced elements, their attributes, the text."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def run_command(*arguments: object) -> None:
    report.run(parse(["report", *map(str, arguments)]))


def decoded(uri: str | None) -> tuple[str, bytes]:
    assert uri is not None and uri.startswith("data:")
    kind, data = uri.removeprefix("data:").split(";base64,")
    return kind, base64.b64decode(data, validate=True)


def test_images_are_embedded_unchanged_and_described(run: RunDirectory) -> None:
    images = Page(render_report(run)).images
    assert [decoded(image["src"]) for image in images] == [
        ("image/png", run.scores_plot.read_bytes()),
        ("image/png", run.levels_plot.read_bytes()),
        ("image/gif", (run.videos / "00000030-worst-level2.gif").read_bytes()),
        ("image/gif", (run.videos / "00000030-typical-level3.gif").read_bytes()),
    ]
    assert "3 evaluations. At 30,000 frames: train 6.50, validation 4.00." in (images[0]["alt"] or "")
    assert all(len(image["alt"] or "") > 40 for image in images)


def test_page_loads_nothing_and_runs_nothing(run: RunDirectory) -> None:
    html = render_report(run)
    page = Page(html)
    addresses = [value for _, attributes in page.elements for name, value in attributes.items() if name in ADDRESSES]
    assert addresses and all((value or "").startswith("data:image/") for value in addresses)
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}


ADDRESSES = {"src", "href", "srcset", "data", "action", "poster"}


def test_page_says_why_a_score_has_no_interval(run: RunDirectory) -> None:
    newest = row(40, 6.5, 4.0, generalization_gap_interval=None)
    newest["train"] |= {"interval": None, "no_interval": "one episode per level"}
    append_jsonl(run.evaluations, newest)
    text = Page(render_report(run)).text
    assert "No interval for the last checkpoint's train score: one episode per level." in text
    assert "training minus validation: 2.50, no interval." in text


def test_page_shows_scores_levels_videos_and_settings(run: RunDirectory) -> None:
    use = {"time": 1795463617.0, "command": "score", "policy_version": 30, "episodes_per_level": 2}
    append_jsonl(run.test_uses, use)
    text = Page(render_report(run)).text
    for words in (
        "After 30,000 frames the agent scores 6.50 [6.00, 7.00] on its training levels and 4.00 [3.00, 5.00]",
        "validation last, version 30 4.00 3.00 to 5.00 0.40 40% 5% 4 2",
        "validation best, version 10 4.75 3.75 to 5.75",
        "Generalization gap of the last checkpoint, training minus validation: 2.50, 95 % interval -0.25 to 3.25.",
        "Training levels 2, from 0 to 1",
        "Seed 7",
        "torch 2.13.0",
        "learning_rate 0.0005",
        "Levels solved by version 30",
        "validation solved 1 of 2 3 newly solved 1 3 forgotten 1 2 never solved 0",
        "Version 30, validation level 2, worst: the lowest mean return. Return 0.00, success 0% of 2 episodes.",
        "The audit removed 2 of 104 candidates before anything was scored: 1 because they are the same as a training",
        "771 validation has the layout of training level 1, drawn differently",
        "772 test ends immediately under every action",
        "Played by command once.",
        "1 2026-11-23 19:53 UTC score 30 2",
        "1 checkpoint was skipped because the evaluator was behind. 1 on disk has no score;",
        "30 30,000 6.50 [6.00, 7.00] 4.00 [3.00, 5.00] 2.50 1 1 0 12 0 1 10 (best) 10,000",
    ):
        assert words in text


def test_page_names_settings_of_an_older_preset_and_compares_with_published_runs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    older = resolve("easy", {"vf_coef": 0.5})
    run.write_config(older, {})
    scored = row(61, 6.5, 4.0) | {"frames": 1_000_000}
    append_jsonl(run.evaluations, scored | {"published": compare_with_published(older, scored, 6.25)})
    text = Page(render_report(run)).text
    assert "Preset easy, with vf_coef 0.5 instead of 0.25" in text
    assert "last, version 61 7.67 (7.96, 7.83, 7.22) 6.25 6.50 7.32 (7.71, 7.26, 6.99) 4.00" in text


def test_run_without_comparable_published_runs_shows_none(run: RunDirectory) -> None:
    assert "published PPO" not in Page(render_report(run)).text


def test_skipped_checkpoints_that_have_scores_by_now_are_not_said_to_lack_them(run: RunDirectory) -> None:
    append_jsonl(run.evaluations, row(20, 5.0, 4.0))
    text = Page(render_report(run)).text
    assert (
        "1 checkpoint was skipped because the evaluator was behind; every checkpoint on disk has a score now." in text
    )
    rows = [json.loads(line) | {"skipped": 0} for line in run.evaluations.read_text().splitlines()]
    run.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "No checkpoint was skipped because the evaluator was behind." in Page(render_report(run)).text


def test_long_list_of_levels_is_folded(run: RunDirectory) -> None:
    html = render_report(run)
    folded = html.split("<summary>100 levels</summary>")[1].split("</details>")[0]
    assert ", ".join(map(str, range(1000, 1100))) in folded


def test_missing_files_are_named(run: RunDirectory) -> None:
    for path in (run.scores_plot, run.levels_plot, run.levels, run.level_sets, run.metrics):
        path.unlink()
    shutil.rmtree(run.videos)
    shutil.rmtree(run.checkpoints)
    page = Page(render_report(run))
    assert page.images == []
    for words in (
        "The run directory has no scores.png",
        "The run directory has no levels.png",
        "levels.csv has no levels of this version",
        "videos/ has no videos of a scored version",
        "levels.json is missing or damaged",
        "No evaluation of this run played test levels, and no use by a command is logged.",
    ):
        assert words in page.text


def test_live_use_of_test_levels_is_reported(run: RunDirectory) -> None:
    append_jsonl(run.evaluations, row(40, 5.0, 5.0, test=score(4.5, 4.0, 5.0)))
    assert "1 of 4 evaluations during training played test levels" in Page(render_report(run)).text


def test_flagged_levels_are_named_as_scored(run: RunDirectory) -> None:
    sets = json.loads(run.level_sets.read_text())
    sets["audit"] |= {"removed": [], "flagged": [{"split": "test", "level": 25, "reason": "same_level", "same_as": 3}]}
    run.level_sets.write_text(json.dumps(sets))
    text = Page(render_report(run)).text
    assert "The audit flagged 1 of 104 candidates" in text and "They are scored nevertheless" in text
    assert "25 test is the same as training level 3" in text


def test_level_sets_of_the_first_audit_are_shown(run: RunDirectory) -> None:
    sets = json.loads(run.level_sets.read_text())
    removed = [{"split": "test", "level": 25, "reason": "same_picture", "same_as": 3}]
    sets["audit"] = {"judged": 104, "removed": removed}
    run.level_sets.write_text(json.dumps(sets))
    assert "25 test looks like training level 3" in Page(render_report(run)).text


def test_html_in_names_and_files_is_escaped(run: RunDirectory, tmp_path: Path) -> None:
    stored = json.loads(run.config.read_text())
    stored["versions"] = {"torch": HOSTILE, "numpy": '"><img src=https://example.org/x.png>'}
    run.config.write_text(json.dumps(stored))
    sets = json.loads(run.level_sets.read_text())
    sets["audit"]["removed"][0] |= {"split": HOSTILE}
    sets["rule"]["test"] = HOSTILE
    run.level_sets.write_text(json.dumps(sets))
    hostile = RunDirectory(run.path.rename(tmp_path / "<script>alert(2)<b>"))
    page = Page(render_report(hostile))
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags and "b" not in tags
    assert all(decoded(image["src"]) for image in page.images) and len(page.images) == 4
    assert page.text.count(HOSTILE) >= 4
    assert "Run <script>alert(2)<b>" in page.text


def test_command_overwrites_only_the_default_report(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.html"
    for _ in range(2):
        run_command(run.path)
        assert capsys.readouterr().out == f"{run.path}/report.html\n"
    run_command(run.path, "--output", other)
    assert other.read_bytes() == (run.path / "report.html").read_bytes()
    with pytest.raises(UsageError, match="already exists and is not overwritten"):
        run_command(run.path, "--output", other)


def test_unscored_run_and_damaged_settings_are_one_line_errors(run: RunDirectory) -> None:
    run.evaluations.unlink()
    with pytest.raises(UsageError, match="has no evaluations yet"):
        render_report(run)
    with pytest.raises(UsageError, match=r"leaper-run has no evaluations yet$"):
        run_command(run.path)
    run.config.write_text("{")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        run_command(run.path)
    assert not (run.path / "report.html").exists()


def screenshot(browser: str, page: Path) -> Image.Image:
    """The page as headless Chromium draws it, from a folder without other files."""
    png = page.with_suffix(".png")
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--force-color-profile=srgb", f"--user-data-dir={page.parent}/profile", "--window-size=1000,4000"),
            *(f"--screenshot={png}", page.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=180,
    )
    with Image.open(png) as image:
        return image.convert("RGB")


def count_pixels(image: Image.Image, color: Sequence[int]) -> int:
    """Pixels of about this color; a browser may round, and gifs have a palette."""
    pixels = image.getcolors(maxcolors=1 << 24) or []
    return sum(
        count
        for count, seen in pixels
        if isinstance(seen, tuple) and all(abs(a - b) <= 6 for a, b in zip(seen, color, strict=True))
    )


def test_browser_shows_the_images(run: RunDirectory, tmp_path: Path) -> None:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browser = next((path for path in found if path), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    folder = tmp_path / "mailed"
    folder.mkdir()
    with_pictures, without = folder / "with.html", folder / "without.html"
    run_command(run.path, "--output", with_pictures)
    run.scores_plot.unlink()
    shutil.rmtree(run.videos)
    run_command(run.path, "--output", without)
    shutil.rmtree(run.path)
    shown = screenshot(browser, with_pictures)
    assert all(count_pixels(shown, color) > 5000 for color in (SCORES, LEVELS, VIDEO))
    shown = screenshot(browser, without)
    assert [count_pixels(shown, color) > 0 for color in (SCORES, LEVELS, VIDEO)] == [False, True, False]


def test_entries_of_wrong_types_are_left_out(run: RunDirectory) -> None:
    page = render_report(run)
    append_jsonl(run.evaluations, row(40, 9.0, 9.0, scoreboard={}))
    append_jsonl(run.evaluations, row(40, 9.0, 9.0) | {"train": {}})
    append_jsonl(run.test_uses, {"time": "today", "command": "score", "policy_version": 40, "episodes_per_level": 1})
    assert render_report(run) == page
    append_jsonl(run.evaluations, row(40, 9.0, 9.0, published={"train": 3}))
    assert "Beside OpenAI" not in render_report(run)
    contents = json.loads(run.level_sets.read_text())
    run.level_sets.write_text(json.dumps(contents | {"train": 3}))
    render_report(run)


def test_split_with_levels_but_without_a_score_is_left_out(run: RunDirectory) -> None:
    page = render_report(run)
    with open(run.levels, "a") as file:
        file.write("30,test,1000,2,10.0,1.0,0.0,50.0\n")
    assert render_report(run) == page


def test_config_without_versions_is_refused_and_named(run: RunDirectory) -> None:
    contents = json.loads(run.config.read_text())
    del contents["versions"]
    run.config.write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match=f"{run.config} cannot be read: it has no versions"):
        render_report(run)


def test_name_of_a_run_that_is_not_utf_8_is_escaped(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.rename(run.path.with_name(os.fsdecode(b"l\xe4uf"))))
    report.run(parse(["report", "."]))
    assert "l\\udce4uf" in Path("report.html").read_text()
