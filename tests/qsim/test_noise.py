"""Noise: moments and densities against scipy and published values."""

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.distributions import Constant, Normal
from qsim.kspace.noise import GaussianNoise, RicianNoise, SignedNoise, sigma_of, snr_of
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
