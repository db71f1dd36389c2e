"""JSON lines are readable after a crash."""

import errno
import json

import pytest

from common.storage import jsonl
from common.storage.atomic_files import write_atomically
from common.storage.jsonl import append_jsonl, change_rows, read_jsonl, set_aside_rows


@pytest.fixture
def log(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_rows_are_read_in_order(log):
    rows = [{"frames": 1, "nested": {"mean": 0.5}}, {"frames": 2, "text": "a\nb\u2028é"}]
    for row in rows:
        append_jsonl(log, row)
    assert read_jsonl(log) == rows
    assert len(log.read_text().split("\n")) == 3  # one complete line per row


def test_missing_file_has_no_rows(log):
    assert read_jsonl(log) == []


def test_nan_becomes_null(log):
    append_jsonl(log, {"a": float("nan"), "b": {"c": float("inf"), "d": 1.0}, "e": -float("inf")})
    text = log.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": {"c": None, "d": 1.0}, "e": None}


def test_nan_inside_a_list_becomes_null(log):
    append_jsonl(log, {"returns": [1.0, float("nan")]})
    assert json.loads(log.read_text(), parse_constant=pytest.fail) == {"returns": [1.0, None]}


def test_numbers_that_json_does_not_have_are_read_as_null(log):
    log.write_text('{"a": NaN, "b": {"c": -Infinity}}\n')
    assert read_jsonl(log) == [{"a": None, "b": {"c": None}}]


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-9223372036854775809", "1" * 5000, "1e999", "-1e999"])
def test_number_too_large_for_arithmetic_is_read_as_null_or_its_row_skipped(log, number):
    log.write_text(f'{{"mean": {number}}}\n{{"mean": 1}}\n')
    assert read_jsonl(log, {"mean": (int, float)}) == [{"mean": 1}]


def test_largest_integers_are_read(log):
    log.write_text('{"most": 9223372036854775807, "least": -9223372036854775808}\n')
    assert read_jsonl(log) == [{"most": 2**63 - 1, "least": -(2**63)}]


def test_rows_without_the_fields_asked_for_are_skipped(log):
    rows = [{"score": {"mean": 1.5}}, {"score": {"mean": None}}, {"score": [1.5]}, {"score": None}, {}]
    for row in rows:
        append_jsonl(log, row)
    assert read_jsonl(log, {"score": {"mean": float}}) == rows[:1]
    assert read_jsonl(log, {"score": dict}) == rows[:2]


def test_incomplete_last_line_is_skipped(log):
    append_jsonl(log, {"frames": 1})
    with open(log, "a") as file:
        file.write('{"frames": 2, "los')
    assert read_jsonl(log) == [{"frames": 1}]


def test_row_after_an_incomplete_line_is_complete(log):
    append_jsonl(log, {"frames": 1})
    with open(log, "ab") as file:
        file.write(b'{"frames": 2, "text": "\xc3')  # ends in the middle of a character
    append_jsonl(log, {"frames": 3})
    append_jsonl(log, {"frames": 4})
    assert read_jsonl(log) == [{"frames": 1}, {"frames": 3}, {"frames": 4}]


def test_lines_that_are_not_objects_are_skipped(log):
    log.write_text('12\n[1]\n\nnull\n{"frames": 1}\n')
    assert read_jsonl(log) == [{"frames": 1}]


def test_abandoned_rows_move_to_their_own_file(log):
    for version in range(5):
        append_jsonl(log, {"policy_version": version})
    assert set_aside_rows(log, lambda row: row["policy_version"] <= 2) == 2
    assert [row["policy_version"] for row in read_jsonl(log)] == [0, 1, 2]
    abandoned = log.with_name("metrics.jsonl.abandoned")
    assert [row["policy_version"] for row in read_jsonl(abandoned)] == [3, 4]

    append_jsonl(log, {"policy_version": 3, "second": True})
    assert set_aside_rows(log, lambda row: row["policy_version"] <= 2) == 1
    assert [row["policy_version"] for row in read_jsonl(abandoned)] == [3, 4, 3]


def test_repeated_attempt_on_a_full_disk_sets_the_same_rows_aside_once(log, monkeypatch):
    for version in range(4):
        append_jsonl(log, {"policy_version": version})

    def write(path, data):
        if path == log:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomically(path, data)

    with monkeypatch.context() as full:
        full.setattr(jsonl, "write_atomically", write)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                set_aside_rows(log, lambda row: row["policy_version"] <= 2)
    assert set_aside_rows(log, lambda row: row["policy_version"] <= 2) == 1
    assert read_jsonl(log.with_name("metrics.jsonl.abandoned")) == [{"policy_version": 3}]


def test_file_does_not_change_if_every_row_belongs(log):
    append_jsonl(log, {"policy_version": 1})
    with open(log, "a") as file:
        file.write('{"torn')
    before = log.read_bytes()
    assert set_aside_rows(log, lambda row: True) == 0
    assert log.read_bytes() == before
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_setting_rows_aside_creates_no_file_if_there_is_none(log):
    assert set_aside_rows(log, lambda row: False) == 0
    assert list(log.parent.iterdir()) == []


def test_only_changed_rows_are_written_anew(log):
    kept = b'{"frames":  1}\nno row\xff\n{"frames": 2, "me\n[3]\n'
    log.write_bytes(kept + b'{"frames": 4}\n{"frames": 5}')
    change_rows(log, lambda row: row | {"mean": row["frames"] * 2.0} if row["frames"] > 3 else row)
    assert log.read_bytes() == kept + b'{"frames": 4, "mean": 8.0}\n{"frames": 5, "mean": 10.0}\n'
