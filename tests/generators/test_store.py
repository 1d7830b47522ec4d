"""Reading a store, and refusing what is not a whole one."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from numpy.testing import assert_array_equal

from generators import PatchStore
from generators.build import build
from generators.config import GeneratorConfig
from generators.schema import array_specs, choose_layout
from generators.store import verify
from qsim.errors import InputError

Make = Callable[..., GeneratorConfig]


@pytest.fixture(scope="module")
def built(generator_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    build(generator_config(), path, shard=8, chunk=4)
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "s.zarr"))


def test_what_a_store_knows(built: Path, generator_config: Make) -> None:
    store = PatchStore(built)
    assert store.config == generator_config()
    assert store.config.digest == store.attributes.digest
    assert store.tissues == ("csf", "gm", "wm")
    assert [(row.name, row.unit) for row in store.attributes.parameters] == [("A", "1"), ("B", "1"), ("T1", "s")]
    assert store.attributes.times_s == (0.1, 0.4, 0.9)
    assert store.attributes.targets == ("A", "B", "T1")
    assert "2 SD" in store.attributes.truncation
    # float32 images, kappa, purity; uint8 labels; float32 sigma, int32 subject and a 2-axis origin
    assert store.nbytes == 21 * (12 * 11 * (3 * 4 + 3 * 4 + 1 + 4) + 4 + 4 + 2 * 4)


def test_ranges_and_selections(built: Path) -> None:
    store = PatchStore(built)
    whole = store.read(0, 21)
    assert len(whole) == 21
    picked = [20, 3, 3, 9]
    for name in ("images", "kappa", "labels", "purity", "sigma", "subject", "origin"):
        array = getattr(whole, name).numpy()
        assert_array_equal(getattr(store.take(picked), name).numpy(), array[picked])
        assert_array_equal(getattr(store[5:13], name).numpy(), array[5:13])
        assert_array_equal(getattr(store[::7], name).numpy(), array[::7])
        assert_array_equal(getattr(store[-1], name).numpy(), array[-1:])
    outside: list[Callable[[], object]] = [
        lambda: store.read(0, 22),
        lambda: store.take([21]),
        lambda: store.take([]),
        lambda: store[21],
    ]
    for bad in outside:
        with pytest.raises(IndexError, match="holds samples 0 to 20"):
            bad()


def test_opens_in_xarray_with_named_axes(built: Path) -> None:
    with xarray.open_zarr(built, consolidated=False) as data:
        assert data["images"].dims == ("sample", "image", "y", "x")
        assert data["kappa"].dims == ("sample", "parameter", "y", "x")
        assert data["labels"].dims == data["purity"].dims == ("sample", "y", "x")
        assert data["origin"].dims == ("sample", "axis")
        assert dict(data.sizes) == {"sample": 21, "image": 3, "parameter": 3, "y": 12, "x": 11, "axis": 2}
        assert_array_equal(data["images"].values, PatchStore(built).read(0, 21).images)
        assert json.loads(json.dumps(data.attrs["config"]))["seed"] == 5


def test_is_plain_zarr_with_checksums(built: Path) -> None:
    arrays: list[tuple[str, Any]] = list(zarr.open_group(built, mode="r").arrays())
    assert len(arrays) == 7
    for _, array in arrays:
        (sharding,) = array.metadata.codecs
        assert [codec.to_dict()["name"] for codec in sharding.codecs] == ["bytes", "blosc", "crc32c"]
        assert sharding.index_codecs[-1].to_dict()["name"] == "crc32c"


def test_goes_to_another_process(built: Path) -> None:
    store = PatchStore(built)
    assert store.arrays  # opened: threads and files must not be pickled with it
    assert_array_equal(pickle.loads(pickle.dumps(store))[4].kappa.numpy(), store[4].kappa.numpy())


def edit_root(path: Path, **changes: object) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"].update(changes)
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"complete": False}, "unfinished; run qsim generate again with the same config"),
        ({"version": 2}, r"written by a later qsim \(format 2; this one reads up to 1\)"),
        ({"format": "other"}, "but not a patch store"),
        ({"samples": "many"}, "attribute samples of the store is damaged or of another version"),
        ({"config": {}}, "its config does not fit this version"),
    ],
)
def test_refuses_other_groups(copy: Path, changes: dict[str, object], message: str) -> None:
    edit_root(copy, **changes)
    with pytest.raises(InputError, match=message):
        PatchStore(copy)


def test_refuses_what_is_no_store(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(InputError, match="no such store"):
        PatchStore(tmp_path / "nothing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a patch store"):
        PatchStore(tmp_path / "empty")
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(InputError, match="but not a patch store"):
        PatchStore(tmp_path / "foreign.zarr")
    (copy / "zarr.json").write_text((copy / "zarr.json").read_text()[:100])
    with pytest.raises(InputError, match=r"no readable zarr\.json"):
        PatchStore(copy)


def test_refuses_missing_and_truncated_shards(copy: Path) -> None:
    """Zarr itself reads a missing shard as fill values, with no error."""
    file = copy / "kappa/c/1/0/0/0"
    content = file.read_bytes()
    file.write_bytes(content[:-7])
    with pytest.raises(InputError, match="shard kappa/c/1/0/0/0 is truncated"):
        PatchStore(copy)
    file.unlink()
    with pytest.raises(InputError, match="shard kappa/c/1/0/0/0 is missing"):
        PatchStore(copy)
    assert verify(copy) == ["kappa/c/1/0/0/0: missing"]
    file.write_bytes(content)
    (copy / "shards/000001/zarr.json").write_text("{")
    with pytest.raises(InputError, match="marker of shard 1 is missing or damaged"):
        PatchStore(copy)
    assert verify(copy) == ["shards/000001: marker missing or unreadable"]


def test_a_flipped_bit_is_found_by_reading_and_by_verify(copy: Path) -> None:
    file = copy / "images/c/2/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    store = PatchStore(copy)
    store.read(0, 16)
    with pytest.raises(InputError, match=r"images cannot be read .*checksum.*qsim verify"):
        store.read(16, 21)
    assert verify(copy) == ["images/c/2/0/0/0: checksum differs"]


def test_verify_checks_the_arrays(copy: Path) -> None:
    file = copy / "sigma/zarr.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps(metadata | {"shape": [13]}))
    assert verify(copy) == ["sigma: 13 samples, the store says 21"]
    file.write_text(json.dumps(metadata | {"data_type": "float64"}))
    with pytest.raises(InputError, match="array sigma is float64"):
        PatchStore(copy)


def test_layout_bounds_memory_and_gives_workers_something_to_do(generator_config: Make) -> None:
    paper = generator_config(
        samples=72000, patch=[40, 40], model={"kind": "inversion_recovery", "ti": np.linspace(0.1, 0.9, 31).tolist()}
    )
    assert choose_layout(array_specs(paper, 3), 72000, None, None).shard == 512
    assert choose_layout(array_specs(paper, 3), 72000, None, None).chunk == 8
    small = choose_layout(array_specs(paper, 3), 100, None, None)
    assert 100 / small.shard >= 6
    blocks = generator_config(samples=500, patch=[96, 96, 96])
    specs = array_specs(blocks, 3)
    large = choose_layout(specs, 500, None, None)
    assert large.shard * specs[0].sample_bytes <= 128 * 2**20
    assert large.chunk == 1
    with pytest.raises(ValueError, match="multiple of chunk"):
        choose_layout(specs, 500, 10, 4)
