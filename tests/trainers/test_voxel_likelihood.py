"""The likelihood of log T of a voxel under Rician noise and of decays, against Rice's density."""

import math

import pytest
import torch
from scipy import optimize, special

from qsim.errors import InputError
from qsim.signals import InversionRecovery, SaturationRecovery, T2Prep
from trainers.networks.mixture.families import Decay, Recovery, likelihood_of, times_of
from trainers.networks.mixture.likelihood import rician_amplitude
from trainers.networks.mixture.start import grid, start

TE = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)


def magnitudes(sigma, shape=(1, 6, 5), seed=0, t2=(0.06, 0.1, 1.8)):
    g = torch.Generator().manual_seed(seed)
    t = torch.tensor(t2)[torch.arange(shape[-1]) % len(t2)].expand(shape)
    signal = T2Prep(te_prep=TE)(torch.stack((torch.full(shape, 0.8), t))).movedim(0, 1)
    noise = sigma * torch.randn(2, *signal.shape, generator=g)
    return t, torch.hypot(signal + noise[0], noise[1])


def posed(images, sigma, rician=True):
    mask = torch.ones(len(images), *images.shape[2:], dtype=torch.bool)
    return likelihood_of(T2Prep(te_prep=TE), images, torch.full((1, 1, 1), sigma), mask, rician=rician), mask


def log_density(z, nu):
    """Rice's density at sigma 1: log z - (z - nu)^2 / 2 + log(exp(-z nu) I_0(z nu))."""
    return math.log(z) - (z - nu) ** 2 / 2 + math.log(special.ive(0, z * nu))


def profile(y, u, sigma):
    """Highest Rician log-likelihood of one voxel over A, and that A, by scipy."""
    d = [math.exp(-te * math.exp(-u)) for te in TE]

    def cost(a):
        return -sum(log_density(m / sigma, a * e / sigma) - math.log(sigma) for m, e in zip(y, d, strict=True))

    found = min(
        (optimize.minimize_scalar(cost, bounds=(low, low + 0.8), method="bounded", options={"xatol": 1e-10})
         for low in (0.0, 0.4, 0.8, 1.2)),
        key=lambda each: each.fun,
    )  # fmt: skip
    return -found.fun, found.x


@pytest.mark.parametrize("sigma", [0.03, 0.2])
def test_the_rician_amplitude_is_the_most_likely_one(sigma):
    t, images = magnitudes(sigma)
    likelihood, _ = posed(images.double(), sigma)
    u = (t * 1.1).log()
    d, _, _ = likelihood.shapes(u)
    z = images / sigma
    found = sigma * rician_amplitude(z, d, 1, 12)
    for v in [(0, 0, 0), (0, 2, 1), (0, 3, 2), (0, 5, 4)]:
        y = images[(0, slice(None), *v[1:])].double().tolist()
        _, a = profile(y, float(u[v]), sigma)
        assert float(found[v]) == pytest.approx(a, abs=2e-3 * max(a, 10 * sigma)), v


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_the_fit_on_the_grid_is_the_rician_likelihood(sigma):
    """F^2 / 2 less that of A = 0 at values of the grid that have their own, and between."""
    _, images = magnitudes(sigma)
    likelihood, _ = posed(images, sigma)
    u = grid(likelihood)
    half = likelihood.fit(u)[0].square() / 2
    z = images[0].reshape(len(TE), -1).double() / sigma
    # Rayleigh's density
    dark = (z.log() - z.square() / 2 - math.log(sigma)).sum(0)
    for k in (40, 63, 64, 86):
        for v in (0, 11, 27):
            y = images[0].reshape(len(TE), -1)[:, v].double().tolist()
            expected = profile(y, float(u[k]), sigma)[0] - float(dark[v])
            # .05 of log-likelihood: a tenth of what moves a voxel by a third of its SD
            assert float(half[k, v]) == pytest.approx(max(expected, 0.0), abs=0.05 + 1e-4 * abs(expected)), (k, v)


def test_score_and_information_under_rician_noise():
    """The score is the slope of the profile likelihood; its variance over noise, at the truth, is the information."""
    sigma = 0.1
    t, images = magnitudes(sigma)
    likelihood, _ = posed(images, sigma)
    u = (t * 0.9).log()
    here = likelihood.local(u)
    for v in [(0, 1, 0), (0, 4, 2)]:
        y = images[(0, slice(None), *v[1:])].double().tolist()
        step = 1e-3
        slope = (profile(y, float(u[v]) + step, sigma)[0] - profile(y, float(u[v]) - step, sigma)[0]) / (2 * step)
        assert float(here.score[v]) == pytest.approx(slope, rel=0.02, abs=0.05)
    t, images = magnitudes(0.04, shape=(1, 100, 100), t2=(0.1,))
    likelihood, _ = posed(images, 0.04)
    here = likelihood.local(t.log())
    # 10 000 voxels: the variance has an SD of 1.4 %, and the score at the best A is that of the bound to first order
    assert float(here.score.var() / here.information.mean()) == pytest.approx(1, abs=0.08)


def test_rician_is_gaussian_where_the_signal_is_high():
    t, images = magnitudes(0.0005)
    rician, _ = posed(images, 0.0005)
    gaussian, _ = posed(images, 0.0005, rician=False)
    one, two = rician.local(t.log()), gaussian.local(t.log())
    torch.testing.assert_close(one.amplitude, two.amplitude, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(one.information, two.information, rtol=0.02, atol=0.0)


def test_the_start_under_rician_noise_is_not_drawn_to_the_floor():
    """T2 of 60 ms at SNR 8: the Gaussian likelihood takes the floor of late echoes for signal, the Rician does not."""
    t, images = magnitudes(0.08, shape=(1, 40, 40), t2=(0.06,))
    bias = {}
    for rician in (True, False):
        likelihood, mask = posed(images, 0.08, rician)
        bias[rician] = float((start(likelihood, mask).u - t.log()).median())
    assert bias[False] > 0.15
    assert abs(bias[True]) < 0.04


def test_models_without_a_family_are_refused():
    with pytest.raises(InputError, match=r"network\.kind: a mixture network maps an inversion recovery"):
        times_of(InversionRecovery(ti=(0.1, 0.4, 0.9), tr=2.0))
    with pytest.raises(InputError, match="SaturationRecovery"):
        times_of(SaturationRecovery(ts=(0.1, 0.4, 0.9, 1.2)))
    images, mask = torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    signed = InversionRecovery(ti=(0.1, 0.4, 0.9), signed=True)
    with pytest.raises(InputError, match="noise: Rician noise is that of magnitudes"):
        likelihood_of(signed, images, torch.ones(1, 1, 1), mask, b=torch.ones(1), rician=True)
    assert isinstance(likelihood_of(signed, images, torch.ones(1, 1, 1), mask, b=torch.ones(1)), Recovery)
    assert isinstance(likelihood_of(T2Prep(te_prep=TE[:3]), images, torch.ones(1, 1, 1), mask), Decay)
