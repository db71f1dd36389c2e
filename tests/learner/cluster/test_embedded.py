"""What only this user can reach of an embedded Ray."""

import os
from pathlib import Path

import pytest
from ray._private import ray_constants

from learner.cluster.embedded import only_loopback, private_directory
from learner.cluster.target import ClusterError


def test_private_directory_is_created_for_its_user_alone_and_reused(tmp_path: Path) -> None:
    path = private_directory(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_uid == os.getuid()
    assert private_directory(tmp_path) == path


@pytest.mark.parametrize("trap", ["others may enter", "a link", "a file"])
def test_private_directory_prepared_by_somebody_else_is_refused(trap: str, tmp_path: Path) -> None:
    path = tmp_path / f"heldout-{os.getuid()}"
    if trap == "others may enter":
        path.mkdir()
        path.chmod(0o711)
    elif trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("")
    with pytest.raises(ClusterError, match=str(path)):
        private_directory(tmp_path)


def test_ray_listens_on_loopback_only_inside_the_context() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with only_loopback():
        assert not ray_constants.ENABLE_RAY_CLUSTER
    assert before == ray_constants.ENABLE_RAY_CLUSTER
