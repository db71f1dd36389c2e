"""JSON lines: append-only files of one object per line. A line that a crash left incomplete is skipped."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.storage.atomic_files import write_atomically

_MOST_DIGITS = 20  # of a 64-bit integer, with its sign


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one object in a single write, on a new line even after an incomplete one."""
    line = json.dumps(_finite(dict(row))) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def read_jsonl(path: Path, fields: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every complete row; an empty list if there is no file.

    `fields` are what `has_fields` requires of a row; rows without them were not written by us and are skipped.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = [row for row in map(_parse, lines) if row is not None]
    return [row for row in rows if has_fields(row, fields or {})]


def has_fields(row: Any, fields: Mapping[str, Any]) -> bool:
    """Whether `row` is an object whose entries have the types in `fields`; a mapping stands for an object in it."""
    return isinstance(row, dict) and all(
        has_fields(row.get(name), kind) if isinstance(kind, Mapping) else isinstance(row.get(name), kind)
        for name, kind in fields.items()
    )


def set_aside_rows(path: Path, belongs: Callable[[dict[str, Any]], bool]) -> int:
    """Moves rows for which `belongs` is false to `<name>.abandoned`; returns how many.

    A resumed run starts at its newest complete checkpoint, so what was logged after it will be logged again.
    """
    rows = read_jsonl(path)
    abandoned = [row for row in rows if not belongs(row)]
    if abandoned:
        set_aside_text(path, "".join(json.dumps(row) + "\n" for row in abandoned))
        kept = "".join(json.dumps(row) + "\n" for row in rows if belongs(row))
        write_atomically(path, kept.encode())
    return len(abandoned)


def change_rows(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replaces each row by what `change` returns for it, atomically. Unchanged rows and other lines keep their bytes.

    Raises:
        OSError: the file cannot be read or written; it is as before.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    for index, line in enumerate(lines):
        row = _parse(line)
        if row is not None and (changed := change(row)) != row:
            lines[index] = json.dumps(_finite(changed)).encode() + b"\n"
    write_atomically(path, b"".join(lines))


def set_aside_text(path: Path, lines: str) -> None:
    """Appends complete lines to `<name>.abandoned`, unless it ends with them.

    So an attempt that failed before the lines were removed from `path` can be repeated.
    """
    abandoned = path.with_name(path.name + ".abandoned")
    before = abandoned.read_bytes() if abandoned.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    if not before.endswith(lines.encode()):
        write_atomically(abandoned, before + lines.encode())


def parse_json(text: str | bytes) -> Any:
    """Parses JSON. NaN, infinities and integers that do not fit into 64 bits become None: arithmetic with them fails.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(text, parse_constant=lambda name: None, parse_float=_parse_float, parse_int=_parse_int)


def _parse_float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _parse_int(text: str) -> int | None:
    if len(text) > _MOST_DIGITS:
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def _parse(line: str | bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _finite(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON does not have, with null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
