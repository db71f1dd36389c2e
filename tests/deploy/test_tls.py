"""The script that creates certificates for Ray's TLS, with the openssl of this machine."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.deploy.conftest import assert_shellcheck_finds_nothing

SCRIPT = Path(__file__).parents[2] / "deploy" / "tls" / "certificates.sh"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def create(*arguments: str | Path, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(variables or {})}
    sh = shutil.which("sh") or "sh"
    return subprocess.run([sh, SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and all(word in done.stderr for word in words), done.stderr


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)


def lasts(certificate: Path, days: int) -> bool:
    return openssl("x509", "-in", certificate, "-noout", "-checkend", str(days * 86400)).returncode == 0


@needs_openssl
def test_each_node_gets_a_certificate_of_the_same_authority(tmp_path: Path) -> None:
    first = create(tmp_path / "tls", "10.0.0.1", "node-2")
    second = create(tmp_path / "tls", "node-3")
    assert [(done.returncode, done.stderr) for done in (first, second)] == [(0, "")] * 2
    assert first.stdout.split() == [str(tmp_path / "tls" / name) for name in ("10.0.0.1", "node-2")]
    for name, kind in [("10.0.0.1", "IP Address"), ("node-2", "DNS"), ("node-3", "DNS")]:
        node = tmp_path / "tls" / name
        assert sorted(path.name for path in node.iterdir()) == ["ca.crt", "node.crt", "node.key"]
        assert (node / "node.key").stat().st_mode & 0o077 == 0
        assert openssl("verify", "-CAfile", node / "ca.crt", node / "node.crt").returncode == 0
        assert f"{kind}:{name}" in openssl("x509", "-in", node / "node.crt", "-noout", "-text").stdout
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == [
        "10.0.0.1",
        "ca.crt",
        "ca.key",
        "node-2",
        "node-3",
    ]


@needs_openssl
def test_error_of_openssl_is_shown(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    directory.mkdir()
    for name in ("ca.key", "ca.crt"):
        (directory / name).write_text("damaged")
    assert_refused(create(directory, "node"), "openssl x509", "ca.crt")


@needs_openssl
def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    assert create(directory, "a").returncode == 0
    assert lasts(directory / "ca.crt", 3649) and lasts(directory / "a/node.crt", 364)
    assert not lasts(directory / "a/node.crt", 366)
    end = openssl("x509", "-in", directory / "ca.crt", "-noout", "-enddate").stdout.strip().removeprefix("notAfter=")
    assert_refused(create(directory, "b", variables={"DAYS": "3651"}), end, "DAYS", "ca.crt")
    assert not (directory / "b").exists()
    assert create(directory, "b", variables={"DAYS": "3649"}).returncode == 0


@needs_openssl
@pytest.mark.parametrize("days", ["0", "x", "-1", "100000"])
def test_number_of_days_that_is_none_is_refused(tmp_path: Path, days: str) -> None:
    assert_refused(create(tmp_path / "tls", "node", variables={"DAYS": days}), f"DAYS={days}")


@needs_openssl
def test_certificate_is_renewed_by_the_same_command(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    assert create(directory, "node", variables={"DAYS": "1"}).returncode == 0
    assert create(directory, "node").returncode == 0
    assert lasts(directory / "node/node.crt", 364)
    public = [
        openssl(*command, "-in", directory / "node" / name, "-noout" if "x509" in command else "-pubout").stdout
        for command, name in [(("pkey",), "node.key"), (("x509", "-pubkey"), "node.crt")]
    ]
    assert public[0] == public[1] != ""


@needs_openssl
@pytest.mark.parametrize("address", ["10.0.0.300", "1:2", "a/b", "-x", "a,b", "a..b", "x" * 64, "node."])
def test_refused_address_leaves_no_files_behind(tmp_path: Path, address: str) -> None:
    directory = tmp_path / "tls"
    assert_refused(create(directory, "node", address), address)
    assert list(directory.iterdir()) == []


@needs_openssl
@pytest.mark.parametrize("missing", ["ca.key", "ca.crt"])
def test_half_of_an_authority_is_refused_and_kept(tmp_path: Path, missing: str) -> None:
    directory = tmp_path / "tls"
    assert create(directory, "a").returncode == 0
    (directory / missing).unlink()
    before = sorted(path.name for path in directory.iterdir())
    assert_refused(create(directory, "b"), str(directory / missing))
    assert sorted(path.name for path in directory.iterdir()) == before


@needs_openssl
def test_interrupted_script_leaves_nothing_that_the_next_one_stumbles_over(tmp_path: Path) -> None:
    directory, programs = tmp_path / "tls", tmp_path / "bin"
    programs.mkdir()
    # Interrupted after the authority's key, before its certificate.
    fake = f'#!/bin/sh\ncase "$*" in *"-x509"*) kill -INT $PPID; exit 1 ;; esac\nexec {shutil.which("openssl")} "$@"\n'
    (programs / "openssl").write_text(fake)
    (programs / "openssl").chmod(0o755)
    interrupted = create(directory, "node", variables={"PATH": f"{programs}:{os.environ['PATH']}"})
    assert interrupted.returncode != 0 and list(directory.iterdir()) == []
    assert create(directory, "node").returncode == 0


@needs_openssl
def test_names_may_be_longer_than_a_common_name(tmp_path: Path) -> None:
    name = f"{'a' * 63}.{'b' * 63}.example"
    assert create(tmp_path / "tls", name).returncode == 0
    checked = openssl("x509", "-in", tmp_path / "tls" / name / "node.crt", "-noout", "-checkhost", name)
    assert "does match" in checked.stdout


def test_shellcheck_finds_nothing_in_the_script() -> None:
    assert_shellcheck_finds_nothing(SCRIPT)


def test_missing_openssl_is_named(tmp_path: Path) -> None:
    for name in ("sed", "mkdir"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = create(tmp_path / "tls", "node", variables={"PATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (1, "certificates.sh: openssl is not installed\n")
