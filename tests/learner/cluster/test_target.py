"""Which cluster the flags and RAY_ADDRESS name."""

import pytest

from learner.cluster.target import ClusterError, ClusterTarget


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
    ],
)
def test_target_names_the_flag_or_the_variable_that_gave_its_address(
    flag: str | None, variable: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    target = ClusterTarget.from_flags(flag, allow_unauthenticated=expected is not None)
    assert (target and str(target)) == expected
    assert target is None or target.allow_unauthenticated


@pytest.mark.parametrize("address", [None, "local"])
def test_allowing_an_open_cluster_without_a_cluster_is_refused(address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match="--allow-unauthenticated: has no effect"):
        ClusterTarget.from_flags(address, allow_unauthenticated=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("auto", None),
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("head-1.example:6379", ("head-1.example", 6379)),
        ("[fe80::1]:6379", ("fe80::1", 6379)),
    ],
)
def test_address_names_host_and_port_of_the_head(address: str, expected: tuple[str, int] | None) -> None:
    assert ClusterTarget(address).host_and_port() == expected


@pytest.mark.parametrize(
    "address", ["http://h:8265", "https://h", "ray://h:10001", "h", "h:0", "h:70000", " h:1", "h:1\n"]
)
def test_address_of_another_kind_is_refused_with_its_source_and_what_is_expected(address: str) -> None:
    with pytest.raises(ClusterError, match=r"expected auto or HOST:PORT of the head .*; unset RAY_ADDRESS or override"):
        ClusterTarget(address, "RAY_ADDRESS").host_and_port()
    with pytest.raises(ClusterError, match=r"expected auto or HOST:PORT of the head .*; change --address"):
        ClusterTarget(address).host_and_port()


def test_port_of_another_ray_service_is_explained() -> None:
    assert ClusterTarget("h:8265").hint() == "; port 8265 is usually Ray's dashboard and job API, the head's is 6379"
    assert ClusterTarget("h:6379").hint() == ClusterTarget("auto").hint() == ""
