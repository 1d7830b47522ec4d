"""A store holds what `make_samples` makes, however it was built and whatever interrupted it."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.testing import assert_array_equal

from generators.build import build
from generators.config import GeneratorConfig
from generators.sample import Samples, make_samples
from generators.store import PatchStore, StoredSamples, verify
from qsim.errors import InputError

Make = Callable[..., GeneratorConfig]


def assert_same(stored: StoredSamples, made: Samples) -> None:
    for name in Samples.__slots__:
        assert_array_equal(getattr(stored, name).numpy(), getattr(made, name).numpy(), err_msg=name)


def assert_holds(path: Path, config: GeneratorConfig) -> None:
    """The store is whole and holds the samples of the config, which are made here all at once."""
    store = PatchStore(path)
    assert len(store) == config.samples
    assert_same(store.read(0, len(store)), make_samples(config, range(config.samples)))
    assert verify(path) == []
    assert list(path.rglob("*.partial")) == []


@pytest.mark.parametrize(
    ("workers", "scheduler", "shard", "chunk"),
    [
        (1, "threads", None, None),
        (2, "threads", 4, 2),
        (4, "threads", 7, 7),
        (1, "threads", 100, 5),
        (2, "processes", 4, 4),
    ],
)
def test_arrays_do_not_depend_on_workers_scheduler_or_layout(
    generator_config: Make, tmp_path: Path, workers: int, scheduler: str, shard: int | None, chunk: int | None
) -> None:
    config = generator_config()
    built = build(config, tmp_path / "s.zarr", workers=workers, scheduler=scheduler, shard=shard, chunk=chunk)
    assert (built.samples, built.made) == (21, 21)
    assert_holds(tmp_path / "s.zarr", config)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.02}}},
        {"partial_volume": False, "model": {"kind": "t2_prep", "te_prep": [0.01, 0.08]}},
        {"phantom": {"kind": "mni"}, "patch": [5, 6, 7], "samples": 9},
    ],
)
def test_other_configs(generator_config: Make, tmp_path: Path, changes: dict[str, object]) -> None:
    config = generator_config(**changes)
    build(config, tmp_path / "s.zarr", workers=2, shard=4, chunk=2)
    assert_holds(tmp_path / "s.zarr", config)


def test_blocks_have_a_leading_z(generator_config: Make, tmp_path: Path) -> None:
    build(generator_config(phantom={"kind": "mni"}, patch=[5, 6, 7], samples=3), tmp_path / "s.zarr")
    group: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert group["images"].metadata.dimension_names == ("sample", "image", "z", "y", "x")
    assert group["images"].shape == (3, 3, 5, 6, 7)


def test_float16_rounds_the_images_once(generator_config: Make, tmp_path: Path) -> None:
    config = generator_config(dtype="float16")
    build(config, tmp_path / "s.zarr")
    group: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert group["images"].dtype == np.float16
    stored = PatchStore(tmp_path / "s.zarr").read(0, 21)
    made = make_samples(config, range(21))
    assert stored.images is not None
    assert stored.images.dtype == torch.float32
    # half a unit in the last of 11 binary digits, or half the smallest subnormal
    error = (stored.images - made.images).abs()
    assert bool((error <= made.images.abs() * 2.0**-11 + 2.0**-25).all())
    assert_array_equal(stored.kappa.numpy(), made.kappa.numpy())


def test_maps_only(generator_config: Make, tmp_path: Path) -> None:
    config = generator_config(store="maps", partial_volume=False)
    build(config, tmp_path / "s.zarr")
    store = PatchStore(tmp_path / "s.zarr")
    assert "images" not in store.arrays
    assert store[3].images is None
    assert_array_equal(store[3].kappa.numpy(), make_samples(config, [3]).kappa.numpy())


# a build that kills itself just before its n-th rename: a file written, not yet in its place
KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from generators.build import build
from generators.config import GeneratorConfig

rename, left = Path.replace, int(sys.argv[3])

def replace(self, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = replace
build(GeneratorConfig.model_validate_json(sys.argv[1]), sys.argv[2], workers=2, shard=4, chunk=2)
"""


def run_killed(config: GeneratorConfig, path: Path, renames: int) -> int:
    command = [sys.executable, "-c", KILLED, config.canonical, str(path), str(renames)]
    return subprocess.run(command, check=False, timeout=120).returncode


# 1: the group; 6: an array; 24: in the middle of shards, which two threads write
@pytest.mark.parametrize("renames", [1, 6, 24])
def test_a_killed_build_goes_on_and_ends_the_same(generator_config: Make, tmp_path: Path, renames: int) -> None:
    config, path = generator_config(), tmp_path / "s.zarr"
    assert run_killed(config, path, renames) == -signal.SIGKILL
    assert len(list(path.rglob("*.partial"))) >= 1
    with pytest.raises(InputError, match=r"s\.zarr: (unfinished|not a patch store)"):
        PatchStore(path)
    # the same layout is found in the store, not asked for again
    built = build(config, path)
    assert built.made <= 21
    assert_holds(path, config)


def test_finished_shards_are_kept(generator_config: Make, tmp_path: Path) -> None:
    config, path = generator_config(), tmp_path / "s.zarr"
    build(config, path, shard=4, chunk=2)
    kept = path / "images/c/0/0/0/0"
    before = kept.stat().st_mtime_ns
    (path / "shards/000002/zarr.json").unlink()
    assert build(config, path).made == 4
    assert kept.stat().st_mtime_ns == before
    assert build(config, path).made == 0
    assert_holds(path, config)


def test_a_damaged_shard_is_made_again(generator_config: Make, tmp_path: Path) -> None:
    config, path = generator_config(), tmp_path / "s.zarr"
    build(config, path, shard=4, chunk=2)
    # the last shard is not full: Zarr would read it before writing
    file = path / "kappa/c/5/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert build(config, path).made == 1
    assert_holds(path, config)


@pytest.mark.parametrize("first", [3, 8, 20])
def test_growing(generator_config: Make, tmp_path: Path, first: int) -> None:
    path = tmp_path / "s.zarr"
    build(generator_config(samples=first), path, shard=8, chunk=4)
    built = build(generator_config(samples=21), path, workers=2)
    # whole shards stay, the last one that was not full is made again
    assert built.made == 21 - first // 8 * 8
    assert_holds(path, generator_config(samples=21))
    assert PatchStore(path).config.samples == 21


def test_a_store_of_another_config_is_refused(generator_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    build(generator_config(), path)
    with pytest.raises(InputError, match=r"another config \(differs in seed, patch\)"):
        build(generator_config(seed=6, patch=[8, 8]), path)
    with pytest.raises(InputError, match="can grow but not shrink"):
        build(generator_config(samples=20), path)
    with pytest.raises(InputError, match="leave shard and chunk out"):
        build(generator_config(), path, shard=16, chunk=8)
    assert_holds(path, generator_config())
    build(generator_config(seed=6), path, overwrite=True)
    assert_holds(path, generator_config(seed=6))


def test_a_store_of_another_format_can_be_replaced(generator_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    build(generator_config(), path, shard=8, chunk=4)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["version"] = 99
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match=r"later qsim .* left as it is"):
        build(generator_config(), path)
    build(generator_config(patch=[9, 8]), path, overwrite=True)
    assert_holds(path, generator_config(patch=[9, 8]))


def test_a_store_of_other_versions_is_refused(
    generator_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(generator_config(), tmp_path / "s.zarr")
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(InputError, match=r"begun with torch .* instead of 1\.0"):
        build(generator_config(samples=30), tmp_path / "s.zarr")


def test_a_store_of_other_code_is_refused(
    generator_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the code had changed since, or the phantom's file."""
    config, path = generator_config(), tmp_path / "s.zarr"
    build(config, path)
    other = generator_config(seed=6)
    monkeypatch.setattr("generators.build.make_samples", lambda _, indices: make_samples(other, indices))
    with pytest.raises(InputError, match="its sample 0 is another than this process makes"):
        build(generator_config(samples=30), path)
    # the same in a worker
    with pytest.raises(InputError, match="worker: makes another sample 0"):
        build(config, tmp_path / "t.zarr")
    monkeypatch.undo()
    assert_holds(path, config)


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_folders_are_never_touched(generator_config: Make, tmp_path: Path, overwrite: bool) -> None:
    folder, foreign, file = tmp_path / "papers", tmp_path / "foreign.zarr", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.partial").write_text("all my work")
    (folder / "thesis.tex").write_text("all my work")
    zarr.create_group(foreign).create_array("x", shape=(3,), dtype="f4")
    file.write_text("x")
    for path, reason in (
        (folder, "not a patch store"),
        (foreign, "but not a patch store"),
        (file, "a file, not a folder"),
    ):
        with pytest.raises(InputError, match=reason):
            build(generator_config(), path, overwrite=overwrite)
    assert sorted(p.name for p in folder.iterdir()) == ["thesis.partial", "thesis.tex"]
    group: Any = zarr.open_group(foreign, mode="r")
    assert group["x"].shape == (3,)


def test_two_builds_of_one_store_are_refused(generator_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    path.mkdir()
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another qsim generate is writing"):
            build(generator_config(), path)
    finally:
        os.close(handle)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_full_disk(generator_config: Make, tmp_path: Path, scheduler: str) -> None:
    """The system refuses files above a limit, as it does on a full disk."""
    config, path = generator_config(), tmp_path / "s.zarr"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (7_000, hard))
        with pytest.raises(InputError, match="no space left on the device"):
            build(config, path, scheduler=scheduler, shard=8, chunk=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(InputError, match="unfinished"):
        PatchStore(path)
    build(config, path)
    assert_holds(path, config)


def test_no_space_when_it_is_flushed(generator_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = generator_config(), tmp_path / "s.zarr"
    calls = 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="no space left on the device"):
            build(config, path, shard=4, chunk=2)
    with pytest.raises(InputError, match="unfinished"):
        PatchStore(path)
    build(config, path)
    assert_holds(path, config)


def test_an_unwritable_path(generator_config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/proc/nowhere/s\.zarr: cannot be written"):
        build(generator_config(), "/proc/nowhere/s.zarr")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        build(generator_config(), tmp_path / "file" / "s.zarr")


def test_bad_arguments_write_nothing(generator_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with pytest.raises(InputError, match="workers: must be at least 1"):
        build(generator_config(), path, workers=0)
    with pytest.raises(InputError, match="scheduler: wanted threads"):
        build(generator_config(), path, scheduler="cluster")
    with pytest.raises(InputError, match="patch"):
        build(generator_config(patch=[400, 400]), path)
    assert not path.exists()


def test_progress_counts_samples(generator_config: Make, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    build(generator_config(), tmp_path / "s.zarr", shard=8, chunk=4, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {21}
    assert (done[0], done[-1]) == (0, 21)
    # the order of the shards is Dask's
    assert sorted(np.diff(done)) == [5, 8, 8]


def test_torch_threads_are_restored(generator_config: Make, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        build(generator_config(), tmp_path / "s.zarr", workers=2, shard=4, chunk=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
