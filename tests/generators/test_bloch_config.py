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

MULTI_ECHO = {"kind": "multi_echo_spin_echo", "te": [0.01, 0.02, 0.03], "t1": 1.0}
LOOK_LOCKER = {"kind": "look_locker_train", "ti": [0.1, 0.5], "flip_angle": 0.17, "tr": 0.006}
SHAPED = {"kind": "shaped", "shape": "sinc", "time_bandwidth": 4.0, "refocusing_factor": 1.5, "positions": 10}
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


def constant(number):
    return {"kind": "constant", "value": number}


def b1(mean, sd=0.0):
    return {"kind": "b1", "mean": constant(mean), "sd": constant(sd)}


def table(per_sample=None, within=None, **values):
    """The table of `config`, with rows of its first tissue replaced."""
    tissues = json.loads(json.dumps(config()["tissues"]))
    tissues["tissues"][0]["values"] |= values
    return tissues | {"per_sample": per_sample or {}, "within": within or {}}


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
        # what no magnet makes
        (
            {"tissues": table(per_sample={"REL_B1": constant(-1.0)})},
            "tissues.per_sample.REL_B1 must stay positive, but its distribution reaches -1; truncate it",
        ),
        (
            {"tissues": table(REL_B1={"kind": "normal", "mean": 1.0, "sd": 0.5})},
            "tissues.tissues[0].values.REL_B1 of liver must stay positive, but its distribution reaches -inf",
        ),
        ({"tissues": table(DELTA_B0=constant(3e5))}, "tissues.tissues[0].values.DELTA_B0 of liver is in hertz"),
        (
            {"fields": [{"kind": "b0", "sd": {"kind": "half_normal", "scale": 1e300}}]},
            "fields[0]: b0: DELTA_B0 reaches -2.33e+301 to 2.33e+301 Hz, and no magnet is off by more than 100000 Hz",
        ),
        (
            {"fields": [{"kind": "b0", "sd": {"kind": "half_normal", "scale": 1e308}}]},
            "fields[0]: b0: DELTA_B0 reaches",
        ),
        ({"fields": [b1(1.0, 200.0)]}, "fields[0].sd must be at most 2, but its distribution reaches 200"),
        (
            {"fields": [{"kind": "b0"}, {"kind": "shim_box", "b1_sd": constant(200.0)}]},
            "fields[1].b1_sd must be at most 2, but its distribution reaches 200",
        ),
        ({"fields": [b1(1e6)]}, "fields[0]: b1: REL_B1 reaches 1e+06 to 1e+06 and must stay above 0 and below 100000"),
        (
            {"fields": [b1(1e-200), b1(1e-200)]},
            "fields[1]: b1: REL_B1 reaches 0 to 0 and must stay above 0",
        ),
        # what the model cannot simulate
        (
            {"model": MULTI_ECHO, "fields": [], "tissues": table(T2=constant(2.4))},
            "model.t1: 1 s is less than half the T2 that liver can reach, 2.4 s",
        ),
        (
            # 2.0 s, and 4.7534 SD of 5 %
            {"model": MULTI_ECHO, "fields": [], "tissues": table(T2=constant(2.0), within={"T2": {"relative": 0.05}})},
            "give at least 1.24",
        ),
        (
            {"model": MULTI_ECHO | {"slice_profile": SHAPED}, "fields": [b1(2.5)]},
            "model.slice_profile: a shaped one takes REL_B1 up to 2, and the tissues and fields can reach 2.5; lower",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK, "readout": TRAIN | {"slice_profile": SHAPED}}},
            "model.readout.slice_profile: a shaped one takes REL_B1 up to 2, and the tissues and fields can reach 2.09",
        ),
        (
            {"model": LOOK_LOCKER | {"flip_angle": 1.4}, "fields": [b1(1.2)]},
            "model.flip_angle: 1.4 rad is more than pi / 2 where REL_B1 is 1.2, which the tissues and fields can reach",
        ),
        (
            {
                "model": {
                    "kind": "bloch",
                    "preparation": SPIN_LOCK,
                    "readout": TRAIN | {"acquisition": {"lines": 64, "encoding": "subspace", "rank": 1}},
                }
            },
            "model.readout.acquisition.rank: 1 temporal coefficients leave out",
        ),
        (
            {"fields": [{"kind": "shim_box", "axis": 2}]},
            "fields[0].axis must lie in the patch (axis 0, 1 of the volume)",
        ),
        # what is no mapping, or of a kind that fits elsewhere only
        (
            {"model": {"kind": "bloch", "preparation": "spin_lock"}},
            "model.preparation: got 'spin_lock', wanted a mapping with a kind: spin_lock, t2_prep or inversion",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK, "readout": None}},
            "model.readout: got None, wanted a mapping with a kind: ideal, spoiled_gradient_echo, balanced_ssfp or t",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK, "readout": TRAIN | {"acquisition": 32}}},
            "model.readout.acquisition: got 32, wanted a mapping of keys and values",
        ),
        (
            {"model": {"kind": "bloch", "preparation": SPIN_LOCK, "readout": TRAIN | {"slice_profile": "sinc"}}},
            "model.readout.slice_profile: got 'sinc', wanted a mapping with a kind: sampled or shaped",
        ),
        (
            {"model": {"kind": "molli", "ti_first": [0.12, 0.2], "rr": 0.9, "readout": {"kind": "ideal"}}},
            "model.readout.kind: got 'ideal', wanted one of 'spoiled_gradient_echo', 'balanced_ssfp'",
        ),
    ],
)
def test_bad_input_is_one_line_with_the_field_path(changes, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config(**changes)))
    with pytest.raises(InputError) as caught:
        read_config(path, GeneratorConfig)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"tissues": table(per_sample={"REL_B1": {"kind": "uniform", "low": 0.6, "high": 1.2}})},
        {"model": MULTI_ECHO, "fields": [], "tissues": table(T2=constant(2.0))},
        {"model": MULTI_ECHO | {"slice_profile": SHAPED}, "fields": [b1(0.9, 0.1)]},
        {"model": LOOK_LOCKER | {"flip_angle": 1.3}, "fields": [b1(1.2)]},
        {"model": with_readout("subspace")},
        {"fields": [{"kind": "shim_box", "axis": 1}]},
    ],
)
def test_what_lies_just_inside_is_taken_and_has_a_signal(changes):
    samples = make_samples(GeneratorConfig(**config(**changes)), [0, 1])
    assert samples.images.isfinite().all()
    assert (samples.images[:, 0, 12:20, 12:20] > 0).any()


def test_what_a_phantom_cannot_carry_names_the_field():
    """Only the phantom knows which tissues it holds, so this is said when the first sample is made."""
    fields = [{"kind": "b0"}, {"kind": "chemical_shift", "tissues": ["lard"]}]
    tissues = table()
    tissues["tissues"].append(tissues["tissues"][0] | {"name": "lard"})
    with pytest.raises(InputError, match=r"^fields\[1\]\.tissues: the phantom holds no lard; it has liver, vessel"):
        make_sample(GeneratorConfig(**config(fields=fields, tissues=tissues)), 0)


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
