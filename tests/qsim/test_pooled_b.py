"""B under a fitted histogram of T1: against EM in float64, against the profile, with what is known before."""

import numpy as np
import pytest
import torch

from qsim.estimators import build_estimator
from qsim.estimators.pooling.pooled_b import mean_square, pool_b
from tests.published import TI_31
from tests.qsim.brain_like import IR, brain_like, noisy_images


def likelihood(images, b, sweeps=300, length=0.0):
    """Plain EM in float64 on 300 atoms: max over p of sum_v log sum_k p_k exp(F^2 / 2) |d_k|^-length."""
    t1 = torch.logspace(-1, np.log10(6), 300, dtype=torch.float64)
    atoms = (1 - b * torch.exp(-torch.tensor(TI_31, dtype=torch.float64) / t1[:, None])).abs()
    norm = atoms.norm(dim=1, keepdim=True)
    height = ((atoms / norm) @ images.double()).clamp_min(0).square() / 2 - length * norm.log()
    top = height.amax(0)
    weight = torch.exp(height - top)
    p = torch.full((300,), 1 / 300, dtype=torch.float64)
    for _ in range(sweeps):
        p = p * (weight @ (1 / (p @ weight))) / images.shape[1]
    return float((top + (p @ weight).log()).sum())


@pytest.mark.parametrize("sigma", [0.149, 0.072])
def test_b_is_the_maximum_of_the_likelihood(sigma):
    kappa, _ = brain_like(2, 1500)
    images = noisy_images(kappa, sigma, 102) / sigma
    found = pool_b(TI_31, False, images)
    assert found.converged
    here = likelihood(images, found.b)
    highest = max(likelihood(images, b) for b in np.linspace(found.b - 0.4, found.b + 0.4, 33))
    # a log-likelihood 1 below the best is 1.4 standard errors away; EM ends after 16 steps here, after 300 there
    assert here > highest - 1.0
    assert float(found.histogram.sum()) == pytest.approx(1, abs=1e-5)


def test_flat_prior_of_the_amplitude_fails():
    """Why F^2 is used as it is: with 1 / |d| as well, B runs to where the signals are small."""
    kappa, _ = brain_like(2, 800, b=1.85)
    images = noisy_images(kappa, 0.149, 102) / 0.149
    grid = np.arange(1.0, 2.3, 0.1)
    plain, flat = (
        grid[int(np.argmax([likelihood(images, b, sweeps=40, length=length) for b in grid]))] for length in (0.0, 1.0)
    )
    assert abs(plain - 1.85) < 0.25
    assert flat < 1.5


def test_better_than_the_profile_at_high_noise():
    """RMS error of B over eight draws at sigma .149; with 16 000 voxels .041 against .060 in twelve draws."""
    profile, pooled = [], []
    for draw in range(8):
        kappa, _ = brain_like(draw, 4000)
        images = noisy_images(kappa, 0.149, 100 + draw)
        b = float(kappa[1, 0])
        one = build_estimator("shared-b", IR, {"pooling": "profile"})(images, sigma=0.149)
        profile.append(float(one.kappa[1, 0]) - b)
        pooled.append(pool_b(TI_31, False, images / 0.149).b - b)
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (profile, pooled)]
    assert rms[1] < 0.85 * rms[0]
    # eight draws: the RMS itself is known to a quarter
    assert rms[1] < 0.08


def test_prior_of_b_counts_as_it_should():
    """A normal prior that knows as much as the images puts B in the middle of both."""
    kappa, _ = brain_like(5, 1500, b=1.8)
    images = noisy_images(kappa, 0.149, 3) / 0.149
    plain = pool_b(TI_31, False, images)
    sd = plain.variance**0.5
    mean = plain.b - 2 * sd
    found = pool_b(TI_31, False, images, lambda b: -((b - mean) ** 2) / (2 * sd**2))
    # the likelihood is a parabola only nearly
    assert found.b == pytest.approx(plain.b - sd, abs=0.5 * sd)
    assert found.variance == pytest.approx(plain.variance / 2, rel=0.4)


def test_same_voxels_in_any_batch_and_signed_series():
    kappa, _ = brain_like(5, 1500, b=1.8)
    images = noisy_images(kappa, 0.149, 3) / 0.149
    assert pool_b(TI_31, False, images).b == pool_b(TI_31, False, images.clone()).b
    model = type(IR)(ti=TI_31, signed=True)
    signed = noisy_images(kappa, 0.149, 3, model) / 0.149
    # without the modulus the signs say where the zero crossing is: the standard error is about .01
    assert pool_b(TI_31, True, signed).b == pytest.approx(1.8, abs=0.05)


def test_a_flat_likelihood_has_the_variance_of_its_range():
    """Times of 6 s and more, T1 1.1 s: any B in [0, 3] will do, whatever little bump is the highest."""
    model = type(IR)(ti=(6.0, 7.0, 8.0, 9.0))
    kappa = torch.tensor([1.0, 1.9, 1.1], dtype=torch.float64)[:, None].repeat(1, 300)
    for seed in range(2):
        found = pool_b(model.ti, False, noisy_images(kappa, 0.02, seed, model) / 0.02)
        assert found.variance**0.5 > 0.75
    # a peak keeps its curvature
    peaked, _ = brain_like(5, 1500, b=1.8)
    images = noisy_images(peaked, 0.149, 3) / 0.149
    assert pool_b(TI_31, False, images).variance ** 0.5 < 0.1
    assert mean_square(TI_31, False, images, 1.8) ** 0.5 < 0.2
    assert mean_square(TI_31, False, images, 0.8) ** 0.5 == pytest.approx(1.0, abs=0.2)
