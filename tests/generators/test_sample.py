"""Samples against numbers worked out by hand from what was drawn, and their independence of batching."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.config import GeneratorConfig
from generators.sample import Samples, draws, make_sample, make_samples, make_truth
from qsim.errors import InputError

TI = [0.15, 0.4, 0.7, 0.937]
# two discs of tissue on an empty background, cut by the borders of voxels
DISCS = {
    "kind": "geometry",
    "size": [40, 40],
    "spacing_mm": [1.0, 1.0],
    "shapes": [
        {"shape": "disc", "tissue": "wm", "centre_mm": [-0.2, 0.6], "radius_mm": 15.2},
        {"shape": "disc", "tissue": "gm", "centre_mm": [-2.7, 2.9], "radius_mm": 6.7},
    ],
}


def plain_table(**values):
    """Two tissues that do not vary inside, so that a voxel is its tissue's formula."""

    def tissue(name, a, t1):
        return {
            "name": name,
            "source": "this test",
            "values": {"A": {"kind": "constant", "value": a}, "T1": {"kind": "uniform", "low": t1, "high": t1 + 0.2}},
        }

    return {
        "kind": "table",
        "name": "plain",
        "field_strength": 3.0,
        "tissues": [tissue("wm", 0.65, 0.7), tissue("gm", 0.85, 1.3)],
        "per_sample": {"B": {"kind": "uniform", "low": 1.7, "high": 2.0}},
        **values,
    }


def config(**changes):
    mapping = {
        "seed": 11,
        "samples": 50,
        "patch": [24, 20],
        "phantom": DISCS,
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "inversion_recovery", "ti": TI},
        "noise": {"kind": "gaussian", "sigma": {"kind": "log_uniform", "low": 0.0065, "high": 0.255}},
    }
    return GeneratorConfig(**{**mapping, **changes})


@settings(max_examples=15, deadline=None)
@given(indices=st.lists(st.integers(0, 10_000), min_size=1, max_size=12), crisp=st.booleans())
def test_a_sample_does_not_depend_on_its_batch(indices, crisp):
    c = config(partial_volume=not crisp)
    together = make_samples(c, indices)
    for row, index in enumerate(indices):
        alone = make_sample(c, index)
        for name in Samples.__slots__:
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name


def test_a_sample_does_not_depend_on_the_number_of_threads():
    """Vector and scalar code of a function may round differently; where the threads split a tensor must not show."""
    c = config(tissues={"kind": "sabidussi2021", "within": "authors"})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = make_samples(c, range(8))
        torch.set_num_threads(3)
        three = make_samples(c, range(8))
    finally:
        torch.set_num_threads(before)
    for name in Samples.__slots__:
        assert torch.equal(getattr(one, name), getattr(three, name)), name


@pytest.mark.parametrize("crisp", [False, True])
def test_signals_mix_by_share_and_maps_are_those_of_the_majority(crisp):
    """In numpy, from the shares of the phantom and the drawn values: sum_t f_t A (1 - B exp(-TI / T1)), signed."""
    c = config(tissues=plain_table(), partial_volume=not crisp)
    truth = make_truth(c, 4)
    drawn = draws(c, 4)["tissues"]
    spec = c.phantom_spec.load("train", 2)
    from qsim.distributions import Streams

    share = spec.crop((24, 20), Streams(11, 4).rng("anatomy")).fractions
    background = 1 - share.sum(0)
    majority = np.where(share.max(0) >= background, share.argmax(0), -1)
    if crisp:
        share = np.stack([majority == t for t in range(len(share))]).astype(float)
    expected = np.zeros((len(TI), 24, 20))
    for t, tissue in enumerate(spec.tissues):
        a, b, t1 = (drawn[tissue][row] for row in ("A", "B", "T1"))
        expected += share[t] * (a * (1 - b * np.exp(-np.array(TI) / t1)))[:, None, None]
    np.testing.assert_allclose(truth.signal, expected, atol=2e-6)  # float32 of order 1
    assert ((share > 0) & (share < 1)).any() != crisp
    for t, tissue in enumerate(spec.tissues):
        inside = majority == t
        assert inside.any()
        assert (truth.labels.numpy()[inside] == t + 1).all()
        np.testing.assert_allclose(truth.kappa[2].numpy()[inside], drawn[tissue]["T1"], rtol=1e-6)
    assert (truth.kappa.numpy()[:, majority < 0] == 0).all()
    # one inversion depth in the whole sample
    assert drawn["wm"]["B"] == drawn["gm"]["B"]


def test_noise_has_the_sd_that_was_drawn_and_leaves_the_rest_alone():
    c = config()
    for index in range(5):
        sample, truth = make_sample(c, index), make_truth(c, index)
        residual = (sample.images[0] - truth.signal.abs()).numpy()
        sigma = float(sample.sigma)
        # SD of an SD of 1920 normals: 1.6 %
        assert residual.std() == pytest.approx(sigma, rel=0.07)
        assert abs(residual.mean()) < 4 * sigma / np.sqrt(residual.size)
        assert torch.equal(sample.kappa[0], truth.kappa)


def test_stages_are_paired():
    """Another noise leaves anatomy, tissue and sigma as they were; another seed changes them all."""
    gaussian = make_samples(config(), [1, 2])
    rician = make_samples(config(noise={"kind": "rician", "sigma": config().noise_model.sigma}), [1, 2])
    for name in ("kappa", "labels", "sigma", "subject", "origin"):
        assert torch.equal(getattr(gaussian, name), getattr(rician, name))
    assert (rician.images >= 0).all()
    assert (gaussian.images < 0).any()
    other = make_samples(config(seed=12), [1, 2])
    assert not torch.equal(gaussian.kappa, other.kappa)
    assert not torch.equal(gaussian.sigma, other.sigma)


def test_variation_within_a_tissue_is_five_percent_and_b_does_not_vary():
    c = config()
    spread = []
    for index in range(8):
        truth, drawn = make_truth(c, index), draws(c, index)["tissues"]
        wm = truth.labels == 1
        spread.append((truth.kappa[2][wm] / drawn["wm"]["T1"] - 1).numpy())
        assert torch.unique(truth.kappa[1][wm]).numel() == 1
    assert np.concatenate(spread).std() == pytest.approx(0.05, rel=0.08)


def test_sigma_is_log_uniform():
    from scipy import stats

    c = config(patch=[2, 2])
    sigma = make_samples(c, range(400)).sigma.numpy()
    assert stats.kstest(np.log(sigma), stats.uniform(np.log(0.0065), np.log(0.255 / 0.0065)).cdf).pvalue > 1e-3


def test_a_tissue_that_the_table_lacks_is_refused():
    shapes = [{**DISCS["shapes"][0], "tissue": "marrow"}]
    c = config(tissues=plain_table(), phantom={**DISCS, "shapes": shapes})
    with pytest.raises(InputError, match="tissues: the phantom holds marrow, which the table 'plain' does not"):
        make_sample(c, 0)


def test_a_patch_larger_than_the_anatomy_is_refused():
    with pytest.raises(InputError, match="patch"):
        make_sample(config(patch=[64, 64]), 0)
