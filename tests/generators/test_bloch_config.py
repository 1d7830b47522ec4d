"""Bloch models in a generator config: what is refused, and that samples are what the model says."""

import json

import numpy as np
import pytest
import torch

from generators import GeneratorConfig, make_sample, make_samples
from generators.reading import read_config
from generators.sample import make_truth
from generators.scene import scene
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals import Bloch

SPIN_LOCK = {"kind": "spin_lock", "cluster": "BSL", "tsl": [0.0, 0.01, 0.03, 0.05], "fsl": 400.0}
TRAIN = {"kind": "spoiled_gradient_echo", "flip_angle": 0.17, "tr": 0.005, "acquisition": {"lines": 32}}


def config(**changes):
    values = {
        "A": {"kind": "uniform", "low": 0.8, "high": 1.0},
        "T1": {"kind": "uniform", "low": 0.7, "high": 0.9},
        "T2": {"kind": "uniform", "low": 0.03, "high": 0.05},
        "T1RHO": {"kind": "uniform", "low": 0.04, "high": 0.06},
    }
    shapes = [
        {"shape": "disc", "tissue": "liver", "radius_mm": 13.0},
        {"shape": "disc", "tissue": "vessel", "centre_mm": [-2.3, 3.1], "radius_mm": 4.0},
    ]
    return {
        "seed": 4,
        "samples": 3,
        "patch": [32, 32],
        "phantom": {"kind": "geometry", "size": [32, 32], "spacing_mm": [1.0, 1.0], "shapes": shapes},
        "tissues": {
            "kind": "table",
            "name": "two tissues",
            "field_strength": 3.0,
            "tissues": [{"name": name, "source": "made up", "values": values} for name in ("liver", "vessel")],
        },
        "model": {"kind": "bloch", "preparation": SPIN_LOCK},
        "fields": [{"kind": "b0"}, {"kind": "b1"}],
        "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.01}},
        **changes,
    }


def with_readout(encoding, **more):
    readout = TRAIN | {"acquisition": {"lines": 32, "encoding": encoding}}
    return {"kind": "bloch", "preparation": SPIN_LOCK, "readout": readout, **more}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK | {"fsl": 0.0}}},
            "model.preparation.fsl must be a spin-lock",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK | {"tsl": [-0.1]}}},
            "model.preparation.tsl must not be neg",
        ),
        (
            {"model": {"kind": "bloch", "preparation": {"kind": "inversion", "ti": [-0.1]}}},
            "model.preparation.ti must not be negative",
        ),
        ({"model": with_readout("centre", tr=0.1)}, "model.tr of 0.1 s is shorter than preparation and readout"),
        (
            {"model": {"kind": "bloch", "preparation": {"kind": "spinlock"}}},
            "model.preparation.kind: got 'spinlock', wanted one of 'spin_lock', 't2_prep', 'inversion'",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK | {"clster": "BSL"}}},
            "model.preparation.clster: unknown key; did you mean cluster",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK, "readout": TRAIN | {"flip_angle": 10.0}}},
            "model.readout.flip_angle must lie in",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK, "readout": TRAIN | {"acquisition": {"lines": 0}}}},
            "model.readout.acquisition.lines must be at least 1",
        ),
        ({"tissues": {"kind": "sabidussi2021"}}, "tissues: csf has no T1RHO, which the model needs"),
        ({"noise": {"kind": "signed", "sigma": {"kind": "constant", "value": 0.01}}}, "set model.signed: true"),
    ],
)
def test_bad_input_is_one_line_with_the_field_path(changes, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config(**changes)))
    with pytest.raises(InputError) as caught:
        read_config(path, GeneratorConfig)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["centre", "exact", "subspace"])
@pytest.mark.parametrize("partial_volume", [False, True])
def test_a_sample_is_the_same_in_any_batch(encoding, partial_volume):
    one = GeneratorConfig(**config(model=with_readout(encoding), partial_volume=partial_volume))
    together = make_samples(one, [0, 1, 2])
    for index in range(3):
        alone = make_sample(one, index)
        assert torch.equal(alone.images[0], together.images[index])
        assert torch.equal(alone.kappa[0], together.kappa[index])


@pytest.mark.parametrize("encoding", ["centre", "exact"])
def test_the_signal_is_that_of_the_maps(encoding):
    """Without partial volume: the model, called on the stored maps, whatever the batch and the blocks."""
    one = GeneratorConfig(**config(model=with_readout(encoding), partial_volume=False))
    truth = make_truth(one, 1)
    held = truth.labels > 0
    model = one.signal_model
    assert isinstance(model, Bloch)
    # background has no signal: A 0, and any tissue
    filled = torch.where(held, truth.kappa, truth.kappa[:, 16, 16][:, None, None])
    filled[0] = torch.where(held, truth.kappa[0], 0.0)
    # a signed signal stays; of an ordered readout's complex image the modulus
    signal = model.coherent(filled)
    np.testing.assert_allclose(truth.signal, signal.abs() if signal.is_complex() else signal, atol=2e-6)
    rows = [p.name for p in model.parameters]
    assert float(truth.kappa[rows.index("DELTA_B0")][held].std()) > 0.1
    assert 0.5 < float(truth.kappa[rows.index("REL_B1")][held].mean()) < 1.5


@pytest.mark.parametrize("encoding", ["centre", "exact"])
def test_shares_of_tissues_mix_before_the_lines_of_k_space(encoding):
    """The image is the sum of those that each tissue's share alone would give, A times the share."""
    constant = {
        "liver": {"A": 0.8, "T1": 0.81, "T2": 0.042, "T1RHO": 0.045},
        "vessel": {"A": 1.0, "T1": 1.93, "T2": 0.275, "T1RHO": 0.28},
    }
    tissues = config()["tissues"] | {
        "tissues": [
            {
                "name": name,
                "source": "made up",
                "values": {k: {"kind": "constant", "value": v} for k, v in values.items()},
            }
            for name, values in constant.items()
        ]
    }
    one = GeneratorConfig(**config(model=with_readout(encoding), fields=[], tissues=tissues))
    truth = make_truth(one, 0)
    world = scene(one)
    fractions = world.phantom.crop((32, 32), Streams(one.seed, 0).rng("anatomy")).fractions
    assert float(truth.purity[truth.labels > 0].min()) < 0.9
    expected = 0
    for name, share in zip(world.phantom.tissues, torch.from_numpy(fractions), strict=True):
        values = constant[name] | {"DELTA_B0": 0.0, "REL_B1": 1.0}
        kappa = torch.stack([torch.full((32, 32), values[p.name]) for p in one.signal_model.parameters])
        kappa[0] *= share
        expected = expected + one.signal_model.coherent(kappa)
    np.testing.assert_allclose(truth.signal, expected.abs() if expected.is_complex() else expected, atol=2e-6)
