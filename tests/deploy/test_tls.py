"""The script that creates certificates for Ray's TLS, with the openssl of this machine."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "tls" / "certificates.sh"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def create(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = None if path is None else {"PATH": str(path)}
    sh = shutil.which("sh") or "sh"
    return subprocess.run([sh, SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)


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
        verified = subprocess.run(["openssl", "verify", "-CAfile", node / "ca.crt", node / "node.crt"], check=False)
        assert verified.returncode == 0
        text = subprocess.run(
            ["openssl", "x509", "-in", node / "node.crt", "-noout", "-text"], capture_output=True, text=True, check=True
        ).stdout
        assert f"{kind}:{name}" in text


@needs_openssl
def test_error_of_openssl_is_shown(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    (directory / "ca.crt").mkdir(parents=True)
    done = create(directory, "node")
    assert done.returncode == 1 and "ca.crt" in done.stderr


def test_missing_openssl_is_named(tmp_path: Path) -> None:
    for name in ("sed", "mkdir"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = create(tmp_path / "tls", "node", path=tmp_path)
    assert (done.returncode, done.stderr) == (1, "openssl is not installed\n")
