"""Bloch models in a generator: a sample has the same bytes whatever it is made beside."""

import pytest
import torch

from generators import GeneratorConfig, make_samples
from tests.generators.test_bloch_config import SPIN_LOCK, TRAIN, config

SPOILED = TRAIN | {"dummies": 5}
PROFILE = {"kind": "sampled", "relative_excitation": [0.4, 1.0, 0.4], "positions_in_slice": 2.0}
BALANCED = {"kind": "balanced_ssfp", "flip_angle": 0.6, "tr": 0.001}
TURBO = {"kind": "turbo_spin_echo", "esp": 0.004}


def model(readout, encoding):
    # rel_b1 of the field goes below 0.7, where only all echoes hold a turbo train
    acquisition = {"lines": 16, "encoding": encoding, "order": "centric", "rank": 16 if readout is TURBO else 12}
    return {"kind": "bloch", "preparation": SPIN_LOCK, "readout": readout | {"acquisition": acquisition}, "tr": 3.0}


@pytest.mark.parametrize("patch", [(17, 19), (31, 33), (3, 11, 13)])
@pytest.mark.parametrize("encoding", ["centre", "exact", "subspace"])
@pytest.mark.parametrize(
    "readout", [SPOILED, SPOILED | {"slice_profile": PROFILE}, BALANCED, TURBO], ids=["spoiled", "slice", "ssfp", "tse"]
)
def test_a_sample_has_the_same_bytes_in_any_batch(readout, encoding, patch):
    flat = len(patch) == 2
    shapes = [
        {"shape": "disc" if flat else "ball", "tissue": "liver", "radius_mm": 13.0},
        {"shape": "disc" if flat else "ball", "tissue": "vessel", "centre_mm": [0.7, -2.3, 3.1][-len(patch) :]}
        | {"radius_mm": 4.0},
    ]
    size, spacing = [36] * len(patch), [1.0] * len(patch)
    phantom = {"kind": "geometry", "size": size, "spacing_mm": spacing, "shapes": shapes}
    made = GeneratorConfig(**config(samples=4, patch=list(patch), phantom=phantom, model=model(readout, encoding)))
    whole = make_samples(made, range(4))
    assert torch.isfinite(whole.images).all()
    for part in ([0], [3, 1, 2]):
        some = make_samples(made, part)
        assert torch.equal(some.images, whole.images[part])
        assert torch.equal(some.kappa, whole.kappa[part])
