"""The command line: the help of every flag shows its default; a wrong flag gives one line and exit code 2."""

import dataclasses
import re
from pathlib import Path

import pytest

from common.config import DEFAULTS, PRESETS, SETTINGS, Config, choices_of, flag
from common.resolution import resolve
from learner.startup.flags import parse


@pytest.fixture
def help_text(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def section(help_text, flag_name):
    """The help of one flag, without line breaks."""
    lines = help_text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(rf"  (-\S+, )?{flag_name}(?![\w-])", line)]
    assert len(starts) == 1, flag_name
    end = next(
        (i for i in range(starts[0] + 1, len(lines)) if not lines[i].startswith("   ")),
        len(lines),
    )
    return " ".join(" ".join(lines[starts[0] : end]).split())


WITHOUT_FLAG = {"min_actors", "actor_precision"}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in WITHOUT_FLAG])
def test_help_shows_every_setting_with_its_default(help_text, name):
    words = section(help_text, flag(name))
    shown = re.search(r"\(([^()]*)\)$", words)
    assert shown, words
    if DEFAULTS[name] is None:  # computed; the help says how
        assert len(shown[1]) >= 3
        return
    for preset in PRESETS:
        value = PRESETS[preset].get(name, DEFAULTS[name])
        written = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        numbers = {str(written), f"{written:,}" if isinstance(written, int) else str(written)}
        assert any(re.search(rf"(^|[ ,]){re.escape(text)}($|[ ,])", shown[1]) for text in numbers), words


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("8", {"num_actors": 8, "min_actors": 0}),
        ("4:64", {"num_actors": 64, "min_actors": 4}),
        ("3:3", {"num_actors": 3, "min_actors": 3}),
        ("max", {"min_actors": 1}),
    ],
)
def test_number_of_actors_is_a_number_a_range_or_max(text, settings):
    assert parse(["--num-actors", text]).overrides == settings


@pytest.mark.parametrize("text", ["0:4", "5:4", "4:", ":4", "1:2:3", "most", "1.5:4", "-1:4"])
def test_malformed_number_of_actors_is_refused(text, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse([f"--num-actors={text}"])
    assert exit_.value.code == 2
    assert "N, LOW:HIGH with 1 <= LOW <= HIGH, or max" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--run-dir", "--resume", "--address", "--preset"])
def test_flags_that_are_not_settings_have_help(help_text, name):
    assert len(section(help_text, name).split()) > 4


def test_help_shows_the_doctor_command(help_text):
    assert "python -m learner doctor [flags]" in help_text
    assert "doctor: check this machine" in help_text


def test_help_shows_units(help_text):
    assert "--total-frames FRAMES" in help_text and "--actor-timeout SECONDS" in help_text


def test_help_lists_the_exit_codes(help_text):
    for code in ("0", "2", "130", "143"):
        assert re.search(rf"\b{code}\b", help_text[help_text.index("Exit codes") :])


def test_empty_command_line_overrides_nothing():
    command_line = parse([])
    assert command_line.overrides == {}
    assert (command_line.preset, command_line.run_dir, command_line.resume, command_line.address) == (None,) * 4


VALUES = {int: ("7", 7), float: ("0.25", 0.25)}


@pytest.mark.parametrize(
    "field",
    [f for f in dataclasses.fields(Config) if f.name not in WITHOUT_FLAG | {"preset", "num_actors"}],
    ids=lambda f: f.name,
)
def test_each_flag_sets_its_setting_with_the_right_type(field):
    if choices := choices_of(field):
        words = {"yes": True, "no": False} if field.type is bool else {}
        for choice in choices:
            assert parse([flag(field.name), choice]).overrides == {field.name: words.get(choice, choice)}
        return
    if field.type is bool:
        assert parse([flag(field.name)]).overrides == {field.name: True}
        assert parse(["--no-" + flag(field.name)[2:]]).overrides == {field.name: False}
        return
    text, value = VALUES[field.type]
    overrides = parse([flag(field.name), text]).overrides
    assert overrides == {field.name: value}
    assert type(overrides[field.name]) is field.type


def test_flags_that_are_not_settings_are_kept_apart():
    command_line = parse(["--preset", "easy", "--run-dir", "a/b", "--resume", "c", "--address", "auto", "--seed", "3"])
    assert command_line.preset == "easy"
    assert (command_line.run_dir, command_line.resume, command_line.address) == (Path("a/b"), Path("c"), "auto")
    assert command_line.overrides == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("200000", 200_000),
        ("200_000", 200_000),
        ("10e6", 10_000_000),
        ("1.5e3", 1500),
        ("500k", 500_000),
        ("500K", 500_000),
        ("1.5M", 1_500_000),
    ],
)
def test_whole_numbers_accept_short_notation(text, number):
    overrides = parse(["--total-frames", text]).overrides["total_frames"]
    assert overrides == number and type(overrides) is int


def test_command_line_resolves_to_a_config():
    command_line = parse(["--num-actors", "2", "--gamma", "0.9", "--no-evaluator", "--env-name", "leaper"])
    config = resolve("lab", command_line.overrides)
    assert (config.num_actors, config.gamma, config.evaluator, config.env_name) == (2, 0.9, False, "leaper")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--num-actor", "1"], "--num-actor"),  # no abbreviations: they change meaning when flags are added
        (["--num-actors", "two"], "--num-actors"),
        (["--num-actors", "2.5"], "--num-actors"),
        (["--num-actors"], "--num-actors"),
        (["--gamma", "much"], "--gamma: expected a number, got 'much'"),
        (["--total-frames", ""], "--total-frames: expected a whole number, got ''"),
        (["--address", ""], "--address: expected auto or HOST:PORT, got an empty text; leave it out for a local Ray"),
        (["--address="], "--address: expected auto or HOST:PORT, got an empty text"),
        (["--total-frames", "1G"], "--total-frames: expected a whole number, got '1G'"),
        (["--total-frames", "1.5"], "--total-frames: expected a whole number, got '1.5'"),
        (["--total-frames", "1.00005k"], "--total-frames: expected a whole number, got '1.00005k'"),
        (["--total-frames", "1e3k"], "--total-frames: expected a whole number, got '1e3k'"),
        (["--total-frames", "k"], "--total-frames: expected a whole number, got 'k'"),
        (["--total-frames", "nan"], "--total-frames: expected a whole number, got 'nan'"),
        (["--total-frames", "inf"], "--total-frames"),
        (["--total-frames", "1e999"], "--total-frames"),
        (["stray"], "stray"),
        (["--evaluator=yes"], "--evaluator"),
    ],
)
def test_wrong_usage_gives_one_line_naming_the_flag_and_exit_code_2(capsys, arguments, named):
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert named in line and line.startswith("learner: ")
