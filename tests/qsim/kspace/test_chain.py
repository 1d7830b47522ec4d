"""A chain: drawn first, applied second, in the order of the scanner, transforms shared."""

import json
from math import sqrt

import numpy as np
import pytest
import torch

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace import (
    BiasField,
    KSpaceNoise,
    LowPass,
    RFSpike,
    Wraparound,
    apply_chain,
    as_records,
    corrupt,
    draw_chain,
)
from qsim.kspace.chain import with_spacing
from tests.qsim.kspace.oracle import random_images

SHAPE = (3, 18, 15)
SPIKE, NOISE, LOW = RFSpike(amplitude=(0.2, 1)), KSpaceNoise(snr_db=(5, 20)), LowPass(factor=(2, 3))


def series(dtype=torch.complex128):
    return torch.from_numpy(random_images(SHAPE)).to(dtype)


def test_a_chain_is_its_artefacts_one_after_the_other():
    images = series()
    result = corrupt(images, [SPIKE, NOISE, LOW], np.random.default_rng(1))
    expected = images
    for artefact, drawn in zip([SPIKE, NOISE, LOW], result.drawn, strict=True):
        expected = artefact.apply(expected, drawn)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-12)
    assert result.severity == tuple(drawn.severity for drawn in result.drawn)


def test_the_same_generator_gives_the_same_images_and_another_others():
    images = series(torch.complex64)
    chain = [SPIKE, NOISE, LOW]
    first, again = (corrupt(images, chain, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.drawn == again.drawn
    other = corrupt(images, chain, np.random.default_rng(8))
    # a low-pass keeps whole lines: two draws may keep the same
    assert first.drawn[0] != other.drawn[0]
    assert first.drawn[1] != other.drawn[1]


def test_draws_can_be_made_again_without_the_images():
    images = series()
    rng = Streams(3, 9).rng
    drawn = draw_chain([SPIKE, LOW], SHAPE, rng)
    assert drawn == draw_chain([SPIKE, LOW], SHAPE, rng)
    once, twice = (apply_chain(images, [SPIKE, LOW], drawn).images for _ in range(2))
    assert torch.equal(once, twice)


def test_one_more_artefact_leaves_the_draws_of_the_others():
    rng = Streams(3, 9).rng
    spike, low = draw_chain([SPIKE, LOW], SHAPE, rng)
    assert draw_chain([BiasField(strength=0.3), SPIKE, SPIKE, NOISE, LOW], SHAPE, rng)[1::3] == (spike, low)


def test_each_artefact_happens_with_its_probability():
    chain = [RFSpike(probability=0.3), RFSpike(probability=0.8), RFSpike(probability=0.0), RFSpike()]
    n = 600
    there = np.array([[d is not None for d in draw_chain(chain, SHAPE, Streams(1, i).rng)] for i in range(n)])
    for share, p in zip(there.mean(0), (0.3, 0.8, 0, 1), strict=True):
        assert abs(share - p) <= 4 * sqrt(p * (1 - p) / n)
    # independent of one another
    assert abs(np.corrcoef(there[:, 0], there[:, 1])[0, 1]) < 4 / sqrt(n)


def test_what_is_left_out_has_no_severity_and_changes_nothing():
    images = series()
    result = corrupt(images, [RFSpike(probability=0.0)], np.random.default_rng(1))
    assert result.drawn == (None,)
    assert result.severity == (0.0,)
    assert torch.equal(result.images, images)
    assert as_records([RFSpike(probability=0.0)], result.drawn) == [{"kind": "rf_spike", "applied": False}]
    assert torch.equal(corrupt(images, [], np.random.default_rng(1)).images, images)


def test_the_order_of_the_scanner_is_kept():
    with pytest.raises(
        InputError, match=r"artefacts\[1\]: rf_spike \(interference\) cannot follow low_pass \(sampling\)"
    ):
        corrupt(series(), [LOW, SPIKE], np.random.default_rng(1))
    with pytest.raises(InputError, match="the order is rf_spike, k_space_noise, low_pass"):
        corrupt(series(), [SPIKE, LOW, NOISE], np.random.default_rng(1))


def test_neighbours_share_their_transforms(monkeypatch):
    axes = []
    for name in ("fftn", "ifftn"):
        original = getattr(torch.fft, name)

        def counted(values, *, dim, norm, original=original):
            axes.extend(dim)
            return original(values, dim=dim, norm=norm)

        monkeypatch.setattr(torch.fft, name, counted)
    chain = [
        LowPass(factor=2, axes=(-1,)),
        Wraparound(pattern="regular", factor=3, axis=-1),
        LowPass(factor=2, axes=(-2,)),
    ]
    corrupt(series(), chain, np.random.default_rng(1))
    # x forth once and back once, y forth and back; one by one it would be x twice
    assert sorted(axes) == [2, 2, 3, 3]


def test_artefacts_of_slices_and_of_volumes_in_one_chain():
    images = torch.from_numpy(random_images((2, 6, 9, 8)))
    chain = [RFSpike(amplitude=0.5), LowPass(factor=2, axes=(-1,), ndim=2)]
    result = corrupt(images, chain, np.random.default_rng(2))
    spiked = chain[0].apply(images, result.drawn[0])
    slices = torch.stack([chain[1].apply(spiked[:, z], result.drawn[1]) for z in range(6)], 1)
    torch.testing.assert_close(result.images, slices, rtol=0, atol=1e-12)


def test_coils_share_the_draw():
    coils = torch.from_numpy(random_images((3, 4, 18, 15)))
    spike = LowPass(factor=(2, 3), ndim=2)
    result = corrupt(coils, [spike], np.random.default_rng(2))
    alone = spike.apply(coils[:, 1], result.drawn[0])
    torch.testing.assert_close(result.images[:, 1], alone, rtol=0, atol=1e-12)


def test_facts_are_json():
    result = corrupt(series(), [SPIKE, NOISE], np.random.default_rng(2))
    spike, noise = json.loads(json.dumps(result.facts))
    k = np.abs(np.fft.fftn(series().numpy(), axes=(1, 2), norm="ortho")).max()
    assert spike["kspace_maximum"] == pytest.approx(k, rel=1e-12)
    assert noise


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.ones(SHAPE), "images must be complex, got torch.float32"),
        (torch.full(SHAPE, complex("inf")), "NaN or infinity in 810 of 810 voxels"),
        (torch.ones(3, 0, 5, dtype=torch.complex64), "empty axis"),
        (torch.ones(18, 15, dtype=torch.complex64), r"shape: \(18, 15\) does not fit ndim None"),
    ],
)
def test_images_that_cannot_be_corrupted_are_refused(unchecked, images, message):
    with pytest.raises(ValueError, match=message):
        corrupt(images, [SPIKE], np.random.default_rng(1))


def test_voxel_sizes_go_to_those_who_ask_and_were_not_told():
    assert with_spacing(SPIKE, (1.0, 2.0)) is SPIKE
