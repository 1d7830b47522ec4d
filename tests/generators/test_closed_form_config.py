"""Closed forms in a generator config: what fits makes samples, what cannot be is refused with its path."""

import pytest
import torch

from generators.config import GeneratorConfig
from generators.sample import make_samples, make_truth

DISC = {
    "kind": "geometry",
    "size": [16, 16],
    "spacing_mm": [1.0, 1.0],
    "shapes": [{"shape": "disc", "tissue": "wm", "centre_mm": [0.0, 0.0], "radius_mm": 5.0}],
}


def uniform(low, high):
    return {"kind": "uniform", "low": low, "high": high}


VALUES = {
    "A": uniform(0.6, 0.7),
    "B": uniform(1.7, 2.0),
    "T1": uniform(0.7, 0.9),
    "T2": uniform(0.07, 0.09),
    "T2STAR": uniform(0.03, 0.05),
    "T2_SHORT": uniform(0.01, 0.02),
    "FRACTION": uniform(0.1, 0.2),
    "T1RHO": uniform(0.06, 0.08),
    "T1RHO_SHORT": uniform(0.01, 0.02),
}
MODELS = [
    {"kind": "inversion_recovery", "ti": [0.1, 0.5, 0.9], "tr": 1.5},
    {"kind": "saturation_recovery", "ts": [0.1, 0.5, 0.9]},
    {"kind": "look_locker", "ti": [0.1, 0.5, 0.9]},
    {"kind": "gradient_echo", "te": [0.005, 0.01, 0.02]},
    {"kind": "biexponential", "te": [0.005, 0.01, 0.02, 0.1]},
    {"kind": "biexponential", "tsl": [0.0, 0.01, 0.02, 0.1]},
    {"kind": "spoiled_gradient_echo", "flip_angles": [0.05, 0.2], "tr": 0.01},
    {"kind": "spin_lock_t2_prep", "tsl": [0.0, 0.05, 0.0], "te_prep": [0.0, 0.0, 0.05]},
]


def config(model, values=None, **changes):
    tissue = {"name": "wm", "source": "this test", "values": {**VALUES, **(values or {})}}
    return GeneratorConfig(
        seed=3,
        samples=2,
        patch=[12, 12],
        phantom=DISC,
        tissues={"kind": "table", "name": "plain", "field_strength": 3.0, "tissues": [tissue]},
        model=model,
        noise={"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
        **changes,
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m["kind"])
def test_samples_of_every_kind_are_its_formula(model):
    made = config(model, partial_volume=False)
    assert make_samples(made, [0, 1]).images.shape == (2, made.signal_model.n_images, 12, 12)
    truth = make_truth(made, 1)
    kappa = torch.as_tensor(truth.kappa)
    inside = kappa[0] > 0
    assert bool(inside.any())
    torch.testing.assert_close(
        torch.as_tensor(truth.signal).double()[:, inside].abs(),
        made.signal_model(kappa.double()[:, inside]).abs(),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (MODELS[4], {"T2_SHORT": uniform(0.01, 0.08)}, "wm: T2_SHORT can reach 0.08 s and T2 can fall to 0.07 s"),
        (MODELS[4], {"FRACTION": uniform(0.1, 1.2)}, "FRACTION reaches 0.1 to 1.2 and must stay within 0 and 1"),
        (MODELS[2], {"B": uniform(0.9, 2.0)}, "B can fall to 0.9, and look_locker needs B above 1"),
        (MODELS[6], {"REL_B1": uniform(0.5, 20.0)}, "flip_angles: 0.2 rad is more than pi where REL_B1 is 20"),
        ({**MODELS[0], "tr": 0.8}, {}, "tr must be longer than the longest ti, 0.9 s"),
        ({**MODELS[6], "flip_angles": [3.0, 15.0]}, {}, "3 degrees are 0.05236 rad"),
    ],
    ids=["short", "fraction", "look_locker", "angle", "tr", "degrees"],
)
def test_what_cannot_be_is_refused(model, values, message):
    with pytest.raises(ValueError, match=message):
        config(model, values)
