"""Noise: moments and densities against scipy and published values."""

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.distributions import Constant, Normal
from qsim.kspace.noise import GaussianNoise, NoncentralChiNoise, RicianNoise, SignedNoise, coils_of, sigma_of, snr_of
from tests.published import RICIAN_BIAS, RICIAN_MEAN_SD

SIGMA = Constant(value=0.1)
N = 400_000


def drawn(noise, signal, sigma, n=N, seed=0):
    normals = torch.randn(noise.channels, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.add(
        torch.full((n,), signal, dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64), list(normals)
    )


def test_snr_refers_to_white_matter():
    assert snr_of(0.065) == pytest.approx(10)
    # the list of SNR 3, 5, 10, 30, 60, 100
    for snr, sigma in ((3, 0.2167), (5, 0.130), (10, 0.065), (30, 0.02167), (60, 0.01083), (100, 0.0065)):
        assert sigma_of(float(snr)) == pytest.approx(sigma, rel=5e-4)


@pytest.mark.parametrize(("noise", "mean"), [(GaussianNoise(sigma=SIGMA), 0.3), (SignedNoise(sigma=SIGMA), -0.3)])
def test_gaussian_moments(noise, mean):
    # the modulus comes before the noise, unless the sign is kept
    images = drawn(noise, -0.3, 0.2).numpy()
    # 4 standard errors of the mean; SD of an SD: sigma / sqrt(2 n)
    assert images.mean() == pytest.approx(mean, abs=4 * 0.2 / N**0.5)
    assert images.std() == pytest.approx(0.2, abs=4 * 0.2 / (2 * N) ** 0.5)
    assert stats.kstest(images[:20000], stats.norm(mean, 0.2).cdf).pvalue > 1e-3


def test_gaussian_after_the_modulus_may_be_negative():
    images = drawn(GaussianNoise(sigma=SIGMA), 0.0, 1.0)
    assert float((images < 0).double().mean()) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("nu", list(RICIAN_MEAN_SD))
def test_rician_moments(nu):
    images = drawn(RicianNoise(sigma=SIGMA), nu, 1.0).numpy()
    mean, sd = RICIAN_MEAN_SD[nu]
    # 4 standard errors, and the four digits that are printed
    assert images.mean() == pytest.approx(mean, abs=4 * sd / N**0.5 + 5e-5)
    assert images.std() == pytest.approx(sd, abs=4 * sd / N**0.5 + 5e-5)
    assert images.min() >= 0
    reference = stats.rice(nu)
    assert images.mean() == pytest.approx(reference.mean(), abs=4 * reference.std() / N**0.5)
    assert stats.kstest(images[:20000], reference.cdf).pvalue > 1e-3


# physics.md, oracle J: mean and SD at sigma 1, by signal and coils
@pytest.mark.parametrize(
    ("nu", "coils", "mean", "sd"),
    [
        *((0.0, 1, 1.2533, 0.6551), (0.0, 4, 2.7416, 0.6953), (0.0, 32, 7.9688, 0.7057)),
        *((3.0, 1, 3.1726, 0.9668), (3.0, 4, 4.0295, 0.8734)),
    ],
)
def test_noncentral_chi_moments(nu, coils, mean, sd):
    noise = NoncentralChiNoise(sigma=SIGMA, coils=coils)
    n = 40_000
    images = drawn(noise, nu, 1.0, n).numpy()
    assert coils_of(noise) == coils
    assert images.mean() == pytest.approx(mean, abs=4 * sd / n**0.5 + 5e-5)
    assert images.std() == pytest.approx(sd, abs=4 * sd / n**0.5 + 5e-5)
    # the square is a non-central chi-square of 2 L degrees of freedom
    assert stats.kstest(images[:10000] ** 2, stats.ncx2(2 * coils, nu**2 + 1e-12).cdf).pvalue > 1e-3
    with pytest.raises(ValueError, match="coils must lie between 1 and 128, got 0"):
        NoncentralChiNoise(sigma=SIGMA, coils=0)


def test_coils_of_the_other_kinds():
    assert [coils_of(kind(sigma=SIGMA)) for kind in (GaussianNoise, SignedNoise, RicianNoise)] == [0, 0, 1]


@pytest.mark.parametrize("nu", list(RICIAN_BIAS))
def test_rician_bias(nu):
    images = drawn(RicianNoise(sigma=SIGMA), nu, 1.0).numpy()
    bias = 100 * (images.mean() / nu - 1)
    assert bias == pytest.approx(RICIAN_BIAS[nu], abs=4 * 100 / nu / N**0.5 + 0.05)


@pytest.mark.parametrize(
    ("noise", "reference"),
    [
        (GaussianNoise(sigma=SIGMA), lambda s, sigma: stats.norm(np.abs(s), sigma)),
        (SignedNoise(sigma=SIGMA), lambda s, sigma: stats.norm(s, sigma)),
        (RicianNoise(sigma=SIGMA), lambda s, sigma: stats.rice(np.abs(s) / sigma, scale=sigma)),
    ],
    ids=["gaussian", "signed", "rician"],
)
@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_log_density(noise, reference, sigma):
    signal = np.array([0.0, 0.1, -0.4, 0.9])[:, None]
    # within 8 sigma of the mean: scipy's own Rician density underflows further out
    images = np.abs(signal) + sigma * np.linspace(-4, 8, 40)
    images = np.maximum(images, 1e-4)
    found = noise.log_density(torch.tensor(images), torch.tensor(np.broadcast_to(signal, images.shape).copy()), sigma)
    np.testing.assert_allclose(found, reference(signal, sigma).logpdf(images), rtol=1e-8, atol=1e-8)


def test_rician_density_far_out_and_below_zero():
    """log I0 must not overflow: at m = s = 60 sigma the density is that of a normal, to 1 / (8 x^2)."""
    noise = RicianNoise(sigma=SIGMA)
    far = noise.log_density(torch.tensor([60.0], dtype=torch.float64), torch.tensor([60.0], dtype=torch.float64), 1.0)
    assert float(far) == pytest.approx(stats.norm(60, 1).logpdf(60), abs=1e-4)
    below = noise.log_density(torch.tensor([-0.1]), torch.tensor([0.2]), 0.1)
    assert float(below) == -np.inf


def test_sigma_must_stay_positive():
    for noise in (GaussianNoise, SignedNoise, RicianNoise):
        with pytest.raises(ValueError, match="sigma must stay positive"):
            noise(sigma=Normal(mean=0.1, sd=0.1))
