"""What surrounds a run: output, home, temporary directories, variables. Looking at it creates nothing."""

import os
import sys
from types import SimpleNamespace

import pytest

from learner.cluster import surroundings_checks
from learner.cluster.surroundings_checks import (
    home_check,
    ray_directory_check,
    streams_check,
    temporary_directory_check,
    token_check,
    variables_check,
)


def test_output_that_is_closed_or_cannot_be_used_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "__stdout__", None)
    with open(tmp_path / "file", "w") as closed:
        monkeypatch.setattr(sys, "__stderr__", closed)
    check = streams_check()
    assert (check.verdict, check.found) == ("warning", "standard output is closed, standard error cannot be used")


def test_output_on_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    with open(tmp_path / "file", "w") as file:
        monkeypatch.setattr(sys, "__stdout__", file)
        assert streams_check().verdict == "ok"
        monkeypatch.setattr(os, "fstatvfs", lambda descriptor: SimpleNamespace(f_bavail=0))
        assert "standard output is a file on a full disk" in streams_check().found


def test_home_and_token_are_looked_at_without_creating_anything(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (home_check().verdict, token_check().verdict) == ("ok", "ok")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["", "/dev/null", "/proc/missing", "relative"])
def test_home_that_is_no_directory_is_a_warning(home, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    check, token = home_check(), token_check()
    found = f"HOME={home}" if home else "HOME is empty"
    assert (check.verdict, check.found) == ("warning", f"{found}: no such directory")
    assert token.verdict == "warning" and "RAY_AUTH_TOKEN_PATH" in token.remedy


def test_user_without_any_home_is_told_so(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without an entry in the passwd database
    assert "HOME is not set" in home_check().found and "HOME is not set" in token_check().found


def test_full_home_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for status in ({"f_bavail": 0, "f_files": 0, "f_favail": 0}, {"f_bavail": 9, "f_files": 9, "f_favail": 0}):
        monkeypatch.setattr(os, "statvfs", lambda path, status=status: SimpleNamespace(**status))
        assert home_check().found.endswith("its disk is full")


def test_directory_for_ray_is_not_created_and_its_space_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert ray_directory_check().verdict == "ok" and "RAY_TMPDIR=/tmp" in ray_directory_check().found
    monkeypatch.setattr(surroundings_checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    check = ray_directory_check()
    assert check.verdict == "warning" and "1 MiB free" in check.found and "RAY_TMPDIR" in check.remedy
    monkeypatch.setenv("RAY_TMPDIR", "/proc/missing")
    assert ray_directory_check().verdict == "fatal"


def test_tmpdir_that_is_not_used_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings_checks.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in temporary_directory_check().found
    monkeypatch.setattr(surroundings_checks.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert temporary_directory_check().verdict == "ok"


def test_variables_that_remain_and_those_that_are_replaced_are_named():
    check = variables_check({"RAY_OTHER": "1", "RAY_USE_TLS": "1", "MPLBACKEND": "Tk", "HOME": "/"}, embedded=True)
    assert check.verdict == "warning"
    assert check.found == "Ray reads RAY_OTHER; not used in a run: MPLBACKEND, RAY_USE_TLS"
    joined = variables_check({"RAY_USE_TLS": "1", "MPLBACKEND": "Tk"}, embedded=False)  # a cluster's certificates
    assert (joined.verdict, joined.found) == ("ok", "not used in a run: MPLBACKEND")
