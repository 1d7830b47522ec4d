"""Batches: pure functions of (config, iteration), whatever the source, the workers and the devices."""

import json
import shutil

import numpy as np
import pytest
import torch

from generators.config import GeneratorConfig
from generators.store import PatchStore
from qsim.errors import InputError
from tests.trainers.test_fit import mapping
from trainers.config import TrainConfig
from trainers.data import Blocks, Generated, PatchDataset, Preloaded, loader, open_store, simulate
from trainers.fit import open_source

FIELDS = ("images", "kappa", "labels", "sigma", "positions")


def config(**changes) -> GeneratorConfig:
    keys = {
        "seed": 5,
        "samples": 30,
        "patch": (8, 9),
        "phantom": {"kind": "mni"},
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "inversion_recovery", "ti": (0.15, 0.4, 0.9)},
        "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.01, "high": 0.2}},
    }
    return GeneratorConfig.model_validate(keys | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PatchStore:
    from generators.build import build

    path = tmp_path_factory.mktemp("data") / "patches.zarr"
    build(config(), path)
    return PatchStore(path)


def equal(one, two, fields=FIELDS) -> None:
    for name in fields:
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_a_store_and_its_config_give_the_same_batches(store):
    """30 samples, batches of 8 over 10 iterations: nearly three epochs, batches across their borders."""
    sources = [Generated(config()), Preloaded(store), open_store(store, memory_gb=1.0)]
    runs = [list(loader(PatchDataset(source, 1, 27), 0, 10, 8)) for source in sources]
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            equal(one, two)


@pytest.mark.parametrize("kind", ["generated", "blocks"])
def test_a_batch_depends_on_its_iteration_only(store, kind):
    """Starting in the middle, or in two processes, gives the batches of an unbroken run."""
    source = Generated(config()) if kind == "generated" else Blocks(store, block=4, mixed=2)
    whole = list(loader(PatchDataset(source, 1, 27), 0, 9, 6))
    late = list(loader(PatchDataset(source, 1, 27), 5, 9, 6))
    for one, two in zip(whole[5:], late, strict=True):
        equal(one, two)


def test_workers_change_nothing(store):
    source = open_store(store, memory_gb=1.0)
    alone = list(loader(PatchDataset(source, 1, 27), 0, 3, 6))
    helped = list(loader(PatchDataset(source, 1, 27), 0, 3, 6, workers=1))
    for one, two in zip(alone, helped, strict=True):
        equal(one, two)


def test_devices_share_the_batch(store):
    source = Preloaded(store)
    whole = next(loader(PatchDataset(source, 1, 27), 2, 3, 6))
    parts = [next(loader(PatchDataset(source, 1, 27), 2, 3, 6, rank=r, ranks=2)) for r in range(2)]
    assert torch.equal(torch.cat([p.positions for p in parts]).sort().values, whole.positions)
    assert torch.equal(parts[1].images, whole.images[1::2])


@pytest.mark.parametrize("blocks", [False, True])
def test_an_epoch_holds_every_sample_once(store, blocks):
    source = Blocks(store, block=4, mixed=2) if blocks else Preloaded(store)
    dataset = PatchDataset(source, 1, 27)
    epochs = [[dataset.index(p) for p in range(e * 27, (e + 1) * 27)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(27))
    assert epochs[0] != epochs[1]
    assert epochs[0] != [PatchDataset(source, 2, 27).index(p) for p in range(27)]


def test_blocks_return_the_samples_that_were_asked_for(store):
    source = Blocks(store, block=4, mixed=1)
    wanted = [3, 29, 4, 3, 17, 8]
    taken, direct = source.take(wanted), store.take(wanted)
    assert torch.equal(taken.images, direct.images)
    assert torch.equal(taken.kappa, direct.kappa)
    assert len(source._held) <= 2


def test_blocks_are_read_one_group_after_the_other(store):
    order = Blocks(store, block=4, mixed=2).order(1, 0, 27)
    groups = [order[i : i + 8] // 4 for i in range(0, 27, 8)]
    # 7 blocks, the last of 3 samples: wherever it falls, eight samples in a row hold at most 3 blocks
    assert all(len(np.unique(group)) <= 3 for group in groups)


def test_maps_are_simulated_with_new_noise_for_every_epoch():
    """Noise around the model's signal has the SD that the batch states, and no two epochs share it."""
    maps = config(store="maps", partial_volume=False, patch=(40, 40))
    dataset = PatchDataset(Generated(maps), 1, 2)
    first, again, second = (simulate(dataset.__getitems__(p), maps, 1) for p in ([0, 1], [0, 1], [2, 3]))
    equal(first, again)
    order = [dataset.index(p) for p in (0, 1, 2, 3)]
    assert order[:2] == order[2:] or order[:2] == order[3:1:-1]
    second_kappa = second.kappa if order[:2] == order[2:] else second.kappa.flip(0)
    assert torch.equal(first.kappa, second_kappa)
    assert not torch.equal(first.sigma.sort().values, second.sigma.sort().values)
    inside = first.labels > 0
    clean = maps.signal_model(torch.where(inside[:, None], first.kappa, 1.0).movedim(1, 0)) * inside
    for b in range(2):
        residual = first.images[b] - clean[:, b]
        # SD of an SD over 4800 normals: 1 %
        assert residual.std().item() == pytest.approx(first.sigma[b].item(), rel=0.05)
        assert 0.01 <= first.sigma[b] <= 0.2


def test_an_unfinished_store_is_refused(store, tmp_path):
    path = tmp_path / "half.zarr"
    shutil.copytree(store.path, path)
    group = json.loads((path / "zarr.json").read_text())
    group["attributes"]["complete"] = False
    (path / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(InputError, match=r"half\.zarr: unfinished"):
        open_source(TrainConfig.model_validate(mapping(data={"store": str(path)})))


def test_more_samples_than_there_are(store):
    with pytest.raises(InputError, match="30"):
        PatchDataset(Preloaded(store), 1, 31)
