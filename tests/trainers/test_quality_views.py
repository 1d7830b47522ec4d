"""Views of blocks: what is corrupted and what is not, and that a position decides everything."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trainers.quality.blocks import Blocks, classes_of, mask_of
from trainers.quality.config import DecoupledConfig
from trainers.quality.scaling import intensity_scale
from trainers.quality.views import Views, always_one, collated, each_by_itself, loader, none_of, only, turned

SOURCES = [
    {"name": "noise", "artefacts": [{"kind": "k_space_noise", "snr_db": [0, 20]}]},
    {"name": "spike", "artefacts": [{"kind": "rf_spike", "amplitude": [1, 5]}]},
    {"name": "blur", "artefacts": [{"kind": "low_pass", "factor": [2, 4]}]},
]
GENERATE = {
    "seed": 1, "samples": 4, "patch": [20, 20, 20], "slice_axis": 1, "phantom": {"kind": "mni", "test_share": 0.4},
    "tissues": {"kind": "head_t1w"},
    "model": {
        "kind": "bloch", "tr": 2.3, "preparation": {"kind": "inversion", "ti": [0.6]},
        "readout": {
            "kind": "spoiled_gradient_echo", "flip_angle": 0.1396, "tr": 0.0065,
            "acquisition": {"lines": 128, "order": "linear", "encoding": "centre"},
        },
    },
    "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.0005}},
}  # fmt: skip


def mapping(**changes):
    given = {
        "kind": "decoupled", "seed": 1, "recipe": "qsim", "patch": [16, 16, 16], "sources": SOURCES,
        "data": {"train": [{"generate": GENERATE}], "validation": [{"generate": {**GENERATE, "split": "test"}}]},
        "stages": {name: {"iterations": 2} for name in ("task", "student", "heads")},
    }  # fmt: skip
    return {**given, **changes}


def config(**changes):
    return DecoupledConfig(**mapping(**changes))


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.integers(0, 4, (5, 20, 20, 20)).astype(np.uint8))
    # one number for each tissue, so that a voxel tells its label
    images = torch.tensor([0.02, 0.2, 0.6, 1.0])[labels.long()]
    return Blocks(images, labels, ("csf", "gm", "skull"), np.arange(5), (1.0, 1.0, 1.0), "x", tuple("abcde"))


def still(**changes):
    return config(augment={"rotation_deg": 0.0, "scale": 0.0, "flip": False, "brightness": 0.0}, **changes)


def test_clean_view_is_a_window_of_the_block_with_its_labels(blocks):
    views = Views(blocks, still(data={**mapping()["data"], "brain_only": 0.0}), 1, none_of(3))
    for position in range(5):
        pair = views.pair(position)
        assert torch.equal(pair.clean, pair.corrupted)
        assert not pair.present.any()
        # grey matter is the second tissue: brightness .6 of the brightest, and nothing else has it
        assert torch.equal(pair.target[0] == 1, (pair.clean[0, 0] - 0.6).abs() < 1e-4)
        found = blocks.images[int(pair.anatomy)].unfold(0, 16, 1).unfold(1, 16, 1).unfold(2, 16, 1).reshape(-1, 16**3)
        assert ((found - pair.clean.reshape(1, -1)).abs().amax(1) < 1e-4).sum() == 1


def test_stripped_views_hold_the_brain_only(blocks):
    views = Views(blocks, still(data={**mapping()["data"], "brain_only": 1.0}), 1, none_of(3))
    pair = views.pair(0)
    # csf .2 and gm .6 over the brightest of the brain; the skull is gone
    values = torch.unique((pair.clean * 1e4).round())
    assert values.tolist() == pytest.approx([0.0, 3333.0, 10000.0], abs=1)


def test_each_epoch_shows_each_block_once_and_another_order(blocks):
    views = Views(blocks, config(), 1, none_of(3))
    orders = [[int(views.pair(5 * epoch + k).anatomy) for k in range(5)] for epoch in range(3)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_decides_everything(blocks, workers):
    views = Views(blocks, config(augment={"bias_field": {"kind": "bias_field", "strength": [0, 0.3], "phase": [0, 1]}, "gamma": [0.7, 1.4]}), 7, each_by_itself(3, 0.9))  # fmt: skip  # noqa: E501
    at_once = collated([views.pair(position) for position in range(3, 7)])
    batches = list(loader(views, range(3, 7), 2, workers))
    again = collated(batches)
    for name in ("clean", "corrupted", "target", "present", "severity", "anatomy"):
        assert torch.equal(getattr(at_once, name), getattr(again, name)), name


def test_shares_of_the_sources():
    n, share = 5, 0.5
    drawn = np.array([each_by_itself(n, share)(np.random.default_rng(k)) for k in range(4000)])
    assert drawn.any(1).mean() == pytest.approx(share, abs=0.03)
    assert drawn.mean(0) == pytest.approx(np.full(n, 1 - 0.5**0.2), abs=0.025)
    one = np.array([only(2, n, share)(np.random.default_rng(k)) for k in range(2000)])
    assert one[:, 2].mean() == pytest.approx(share, abs=0.04)
    assert one.sum() == one[:, 2].sum()
    two = np.array([always_one(n, 0.25)(np.random.default_rng(k)) for k in range(4000)])
    assert set(two.sum(1)) == {1, 2}
    assert (two.sum(1) == 2).mean() == pytest.approx(0.25, abs=0.03)
    assert two.mean(0) == pytest.approx(np.full(n, 1.25 / n), abs=0.03)


@pytest.mark.parametrize("source", range(3))
def test_a_source_changes_the_corrupted_view_only(blocks, source):
    clean = Views(blocks, config(), 1, none_of(3)).pair(4)
    pair = Views(blocks, config(), 1, only(source, 3, 1.0)).pair(4)
    assert torch.equal(pair.clean, clean.clean)
    assert torch.equal(pair.target, clean.target)
    assert pair.present.tolist() == [[number == source for number in range(3)]]
    assert (pair.severity > 0).tolist() == pair.present.tolist()
    assert (pair.corrupted - pair.clean).abs().max() > 0.01


def test_turned_by_nothing_is_nothing_and_mirrored_twice_too(blocks):
    image, labels = blocks.images[0], blocks.labels[0]
    quiet = still().augment
    same, same_labels = turned(image, labels, quiet, np.random.default_rng(1))
    assert torch.equal(same, image)
    assert torch.equal(same_labels, labels)
    flip = config(augment={"rotation_deg": 0.0, "scale": 0.0, "flip": True}).augment
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rng.uniform(-1, 1, 6)
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        found, found_labels = turned(image, labels, flip, np.random.default_rng(seed))
        assert torch.equal(found, image.flip(axes))
        assert torch.equal(found_labels, labels.flip(axes))


def test_image_and_labels_turn_together():
    grid = np.indices((24, 24, 24)) - 11.5
    inside = torch.from_numpy(grid[0] ** 2 / 81 + grid[1] ** 2 / 36 + grid[2] ** 2 / 16 < 1)
    augment = config(augment={"rotation_deg": 30.0, "scale": 0.1, "flip": True}).augment
    for seed in range(3):
        image, labels = turned(inside.float(), inside.to(torch.uint8), augment, np.random.default_rng(seed))
        # linear and nearest interpolation of one ellipsoid part on its border only
        both = ((image > 0.5) & (labels > 0)).sum() / (labels > 0).sum()
        assert both > 0.93
        # its volume changes by the three scales alone: at most 1.1^3
        assert 1 / 1.1**3 * 0.95 < float(labels.sum() / inside.sum()) < 1.1**3 * 1.05
        assert not torch.equal(labels > 0, inside)


def test_brightness_of_what_a_network_sees(blocks):
    pair = Views(blocks, still(data={**mapping()["data"], "brain_only": 0.0}), 1, only(0, 3, 1.0)).pair(2)
    for seen in (pair.clean, pair.corrupted):
        assert intensity_scale(seen) == pytest.approx(1.0, abs=0.1)


def test_classes_and_masks():
    labels = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    tissues = ("csf", "gm", "wm")
    assert classes_of(labels, tissues, ("wm", "gm")).tolist() == [[[0, 0], [2, 1]]]
    assert mask_of(labels, tissues, ("csf", "wm")).tolist() == [[[False, True], [False, True]]]


def test_draws_of_one_source_do_not_depend_on_others(blocks):
    alone = Views(blocks, config(), 1, only(1, 3, 1.0)).pair(0)
    assert float(alone.severity[0, 1]) > 0
    with_noise = Views(blocks, config(), 1, lambda rng: (True, True, False)).pair(0)
    assert with_noise.severity[0, 1] == alone.severity[0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": [*SOURCES, SOURCES[0]]}, "sources: a name occurs twice"),
        ({"sources": [{**SOURCES[0], "name": "task"}]}, "name: task is the uncertainty of the segmentation"),
        ({"sources": [{"name": "noise", "artefacts": [{"kind": "k_space_noise", "snr_db": 5.0, "probability": 0.5}]}]}, "artefacts[0].probability"),  # noqa: E501
        ({"patch": [24, 16, 16]}, "does not fit into the blocks of data.train[0]"),
        ({"recipe": "paper"}, "stages.teacher: missing"),
        ({"stages": {name: {"iterations": 2} for name in ("task", "student", "heads", "teacher")}}, "stages.teacher"),
        ({"data": {"train": [{}], "validation": [{}]}}, "give one of store"),
        ({"data": {"train": [{"generate": {**GENERATE, "patch": [20, 20]}}], "validation": []}}, "three numbers"),
        ({"augment": {"gamma": [1.4, 0.7]}}, "gamma"),
        ({"corrupted": 1.5}, "corrupted"),
    ],
)  # fmt: skip
def test_bad_configs_are_named(changes, said):
    with pytest.raises(ValidationError) as caught:
        config(**changes)
    assert said in str(caught.value)
