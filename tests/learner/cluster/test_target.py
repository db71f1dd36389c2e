"""Which cluster the flags and RAY_ADDRESS name."""

import pytest

from learner.cluster.target import ClusterTarget


@pytest.mark.parametrize(
    ("flag", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        ("local", None, None),
        (None, "local", None),
        ("local", "10.0.0.1:6379", None),
        ("auto", None, "--address auto"),
        ("auto", "10.0.0.1:6379", "--address auto"),
        (None, "10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379"),
        ("", "10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379"),
    ],
)
def test_target_names_the_flag_or_the_variable_that_gave_its_address(
    flag: str | None, variable: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    target = ClusterTarget.from_flags(flag, allow_unauthenticated=True)
    assert (target and str(target)) == expected
    assert target is None or target.allow_unauthenticated
