"""Checkpoints are complete or invisible; damage is noticed and named, and nothing in them is executed."""

import contextlib
import hashlib
import json
import os
import pickle
import resource
import shutil

import numpy as np
import pytest
import torch

from common.resolution import resolve
from common.storage.checkpoints import (
    CheckpointError,
    has_other_weights,
    list_checkpoints,
    load_checkpoint,
    load_newest_complete,
    manifest_sha256,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
)

FILES = ("policy.safetensors", "learner.pt", "manifest.json")


def tiny_weights(seed):
    rng = np.random.default_rng(seed)
    return {"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "b": np.float32([seed])}


def tiny_state(seed):
    return {
        "tensor": torch.randn(50, generator=torch.Generator().manual_seed(seed)),
        "generator": torch.Generator().manual_seed(seed).get_state(),
        "nested": {"counts": [1, 2.5, True, None, "text"]},
    }


def save(directory, version, seed=None):
    seed = version if seed is None else seed
    config = resolve("lab", {"num_actors": 2, "seed": 7})
    return save_checkpoint(directory, config, version, version * 1000, tiny_weights(seed), tiny_state(seed))


def newest(directory, policy_only=False):
    """(version of the newest complete checkpoint or None, the lines about damaged ones)."""
    lines = []
    checkpoint = load_newest_complete(directory, lines.append, policy_only)
    return (None if checkpoint is None else checkpoint.policy_version), lines


def everything_below(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    path = save(tmp_path / "checkpoints", 120)
    assert path == tmp_path / "checkpoints" / "00000120"
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.path, checkpoint.policy_version, checkpoint.frames) == (path, 120, 120_000)
    assert checkpoint.config == resolve("lab", {"num_actors": 2, "seed": 7})
    assert checkpoint.weights.keys() == tiny_weights(120).keys()
    for name, array in tiny_weights(120).items():
        assert checkpoint.weights[name].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights[name], array)
    state, expected = checkpoint.learner_state, tiny_state(120)
    assert torch.equal(state["tensor"], expected["tensor"]) and torch.equal(state["generator"], expected["generator"])
    assert state["nested"] == expected["nested"]
    assert checkpoint.policy_sha256 == hashlib.sha256((path / "policy.safetensors").read_bytes()).hexdigest()


def test_policy_alone_is_loaded_without_reading_the_learners_state(tmp_path):
    path = save(tmp_path, 1)
    (path / "learner.pt").unlink()
    checkpoint = load_checkpoint(path, policy_only=True)
    assert checkpoint.learner_state is None
    np.testing.assert_array_equal(checkpoint.weights["b"], [1])
    assert newest(tmp_path, policy_only=True) == (1, [])


def test_newest_checkpoint_is_loaded(tmp_path):
    for version in (2, 10, 9):
        save(tmp_path, version)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000002", "00000009", "00000010"]
    assert newest(tmp_path) == (10, [])


def test_empty_directory_has_no_checkpoint(tmp_path):
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "nowhere") == (None, [])


def test_temporary_directory_of_a_crash_is_not_a_checkpoint(tmp_path):
    os.rename(save(tmp_path, 2), tmp_path / ".00000002.4711.tmp")
    assert newest(tmp_path) == (None, [])
    save(tmp_path, 1)
    assert newest(tmp_path) == (1, [])


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named_and_the_checkpoint_skipped(tmp_path, name):
    save(tmp_path, 1)
    missing = save(tmp_path, 2) / name
    missing.unlink()
    version, (line,) = newest(tmp_path)
    assert version == 1 and str(missing) in line and "\n" not in line


@pytest.mark.parametrize("keep", [0, 0.5, -1])
@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_named_and_the_checkpoint_skipped(tmp_path, name, keep):
    save(tmp_path, 1)
    truncated = save(tmp_path, 2) / name
    data_before = truncated.read_bytes()
    data = data_before.rstrip()  # a manifest without its last newline is complete
    truncated.write_bytes(data[: int(len(data) * keep) if keep >= 0 else keep])
    version, (line,) = newest(tmp_path)
    assert version == 1 and str(truncated) in line and "\n" not in line
    if name != "manifest.json":
        assert f"{truncated.stat().st_size} bytes" in line and f"{len(data_before)}" in line


@pytest.mark.parametrize("name", ["policy.safetensors", "learner.pt"])
def test_flipped_byte_in_any_file_is_noticed_and_the_file_named(tmp_path, name):
    save(tmp_path, 1)
    damaged = save(tmp_path, 2) / name
    data = bytearray(damaged.read_bytes())
    for position in (0, len(data) // 2, len(data) - 1):
        data[position] ^= 0x01
        damaged.write_bytes(data)
        data[position] ^= 0x01
        version, (line,) = newest(tmp_path)
        assert version == 1 and str(damaged) in line and "\n" not in line


@pytest.mark.parametrize(
    ("whole", "flipped"),
    [
        pytest.param(b"{", b"z", id="not JSON"),
        pytest.param(b'"policy_version"', b'"policy_versiom"', id="policy_version misspelt"),
        pytest.param(b'"frames"', b'"grames"', id="frames misspelt"),
        pytest.param(b'"settings"', b'"rettings"', id="settings misspelt"),
        pytest.param(b'"gamma"', b'"gamme"', id="a setting misspelt"),
        pytest.param(b'"files"', b'"filer"', id="files misspelt"),
        pytest.param(b'"size"', b'"sixe"', id="size misspelt"),
        pytest.param(b'"sha256"', b'"sha266"', id="sha256 misspelt"),
        pytest.param(b'"learner.pt"', b'"learnes.pt"', id="a file misspelt"),
        pytest.param(b'"frames": 2000', b'"frames": 2001', id="another number of frames"),
        pytest.param(b'"gamma": 0.999', b'"gamma": 0.899', id="another value of a setting"),
        pytest.param(b'"policy_version": 2', b'"policy_version": 3', id="another version"),
    ],
)
def test_flipped_byte_in_the_manifest_is_noticed_and_the_manifest_named(tmp_path, whole, flipped):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    manifest = path / "manifest.json"
    text = manifest.read_bytes()
    assert whole in text
    manifest.write_bytes(text.replace(whole, flipped, 1))
    version, (line,) = newest(tmp_path)
    assert version == 1 and "\n" not in line
    assert str(path) in line  # the line names a file of this checkpoint


@pytest.mark.parametrize("manifest", [b"[]", b"null", b'{"format": 99}', b'{"format": 1}', b"\xff\xfe"])
def test_invalid_manifest_is_named_and_the_checkpoint_skipped(tmp_path, manifest):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "manifest.json"
    path.write_bytes(manifest)
    version, (line,) = newest(tmp_path)
    assert version == 1 and str(path) in line


def test_damaged_checkpoints_are_all_named_newest_first(tmp_path):
    for version in (1, 2):
        (save(tmp_path, version) / "policy.safetensors").write_bytes(b"")
    version, lines = newest(tmp_path)
    assert version is None
    assert ["00000002" in lines[0], "00000001" in lines[1], len(lines)] == [True, True, 2]


def test_directory_of_the_same_version_is_renamed_and_not_overwritten(tmp_path):
    old = everything_below(save(tmp_path, 5, seed=1))
    middle = everything_below(save(tmp_path, 5, seed=2))
    save(tmp_path, 5, seed=3)
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "00000005").weights["b"], [3])
    assert everything_below(tmp_path / "00000005.aside-1") == old
    assert everything_below(tmp_path / "00000005.aside-2") == middle
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000005"]


class Malice:
    """Unpickling it creates a directory."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def plant(path, data):
    """Replaces learner.pt and makes the manifest agree with it."""
    (path / "learner.pt").write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["learner.pt"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["sha256"] = manifest_sha256(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_the_learners_state_is_not_run_and_the_checkpoint_skipped(tmp_path, kind):
    directory, target = tmp_path / "checkpoints", tmp_path / "planted code ran"
    save(directory, 1)
    path = save(directory, 2)
    if kind == "pickle":
        planted = pickle.dumps(Malice(target), protocol=2)
    else:
        torch.save({"state": Malice(target)}, tmp_path / "planted.pt")
        planted = (tmp_path / "planted.pt").read_bytes()
    plant(path, planted)
    try:
        with pytest.raises(CheckpointError, match=r"learner\.pt"):
            load_checkpoint(path)
    finally:
        assert not target.exists()
    assert newest(directory)[0] == 1
    assert not target.exists()


def test_planted_code_would_run_without_weights_only(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@contextlib.contextmanager
def files_end_at(size):
    """Limits the size of files that this process can write, like a full disk. Must be short, because the output of the
    test runner may go to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("file", FILES)
def test_full_disk_leaves_older_checkpoints_and_nothing_incomplete(tmp_path, file, exists):
    save(tmp_path, 1)
    if exists:
        save(tmp_path, 2, seed=9)
    before = everything_below(tmp_path)
    sizes = {name: (tmp_path / "00000001" / name).stat().st_size for name in FILES}
    state = {} if file == "manifest.json" else tiny_state(2)  # the files written before must fit
    with files_end_at(sizes[file] - 1), pytest.raises(OSError, match="too large"):
        save_checkpoint(tmp_path, resolve("lab", {"num_actors": 2, "seed": 7}), 2, 2000, tiny_weights(2), state)
    assert everything_below(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    assert newest(tmp_path) == (2 if exists else 1, [])


def test_directory_that_cannot_be_created_raises_os_error_and_changes_nothing(tmp_path):
    occupied = tmp_path / "checkpoints"
    occupied.write_bytes(b"a file is in the way")
    with pytest.raises(OSError, match="exists"):
        save(occupied, 1)
    assert occupied.read_bytes() == b"a file is in the way"


def test_saving_works_again_after_the_disk_was_full(tmp_path):
    with files_end_at(10), pytest.raises(OSError, match="too large"):
        save(tmp_path, 1)
    save(tmp_path, 1)
    assert newest(tmp_path) == (1, [])


def test_copied_checkpoint_is_loaded_from_its_new_place(tmp_path):
    save(tmp_path / "one", 3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert load_checkpoint(tmp_path / "two" / "00000003").path == tmp_path / "two" / "00000003"


@pytest.mark.parametrize(
    ("keep", "every", "protected", "left"),
    [(2, 0, (), [5, 6]), (2, 3, (), [0, 3, 5, 6]), (1, 0, (2, 4), [2, 4, 6]), (9, 0, (), [0, 1, 2, 3, 4, 5, 6])],
)
def test_pruning_keeps_newest_every_nth_and_protected_checkpoints(tmp_path, keep, every, protected, left):
    for version in range(7):
        save(tmp_path, version)
    removed = prune_checkpoints(tmp_path, keep, every, lambda version: version in protected)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == left
    assert sorted([*removed, *left]) == list(range(7))
    assert not list(tmp_path.glob(".*"))
    assert newest(tmp_path) == (6, [])


def test_only_leftovers_of_a_killed_process_are_removed(tmp_path):
    whole = save(tmp_path, 1)
    os.rename(save(tmp_path, 2), tmp_path / ".00000002.4711.tmp")
    (tmp_path / "best").symlink_to("00000001")
    (tmp_path / ".best.4711.tmp").symlink_to("00000001")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".best.4711.tmp", "00000001", "best"]
    assert load_checkpoint(whole).policy_version == 1


def test_additional_files_are_stored_and_listed_in_the_manifest(tmp_path):
    config = resolve("lab", {"num_actors": 2, "seed": 7})
    path = save_checkpoint(tmp_path, config, 1, 1000, tiny_weights(1), tiny_state(1), {"batch.bin": b"bytes"})
    assert (path / "batch.bin").read_bytes() == b"bytes"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["batch.bin"] == {"size": 5, "sha256": hashlib.sha256(b"bytes").hexdigest()}


def test_renamed_checkpoint_is_refused_and_a_copy_elsewhere_loaded(tmp_path):
    save(tmp_path, 2).rename(tmp_path / "00000004")
    with pytest.raises(CheckpointError, match="00000004 was renamed: it holds policy_version 2"):
        load_checkpoint(tmp_path / "00000004")
    (tmp_path / "00000004").rename(tmp_path / "copy")
    assert load_checkpoint(tmp_path / "copy").policy_version == 2


def test_row_about_other_weights_is_found(tmp_path):
    ours = {"policy_version": 2, "policy_sha256": load_checkpoint(save(tmp_path, 2)).policy_sha256}
    assert not has_other_weights(ours, tmp_path)
    assert has_other_weights(ours | {"policy_sha256": "ab"}, tmp_path)
    for row in ({"policy_version": 3, "policy_sha256": "ab"}, {"policy_version": "x"}, {}):  # nothing to compare with
        assert not has_other_weights(row, tmp_path)
