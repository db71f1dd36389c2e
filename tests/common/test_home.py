"""The home directory that is not the root, and not below the current directory."""

from pathlib import Path

import pytest

from common.home import describe_home, home_directory
from evaluator.levels.audit_cache import cache_directory


@pytest.mark.parametrize(
    ("home", "expected", "description"),
    [
        ("/home/ada", Path("/home/ada"), "HOME=/home/ada"),
        ("", None, "HOME is empty"),
        ("here", None, "HOME=here"),
    ],
)
def test_home_counts_only_as_an_absolute_path(home, expected, description, monkeypatch):
    monkeypatch.setenv("HOME", home)
    assert (home_directory(), describe_home()) == (expected, description)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == (expected and expected / ".cache" / "heldout")


def test_without_home_the_passwd_database_counts(monkeypatch):
    monkeypatch.delenv("HOME")
    home = home_directory()
    assert home is not None and describe_home() == f"{home}, HOME is not set"
