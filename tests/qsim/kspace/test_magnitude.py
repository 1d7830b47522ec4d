"""Rician and non-central chi: densities against scipy, fits against dense grids, bias, coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gamma, hyp1f1, ive

from qsim.errors import InputError
from qsim.estimators import Status, build_estimator
from qsim.estimators.magnitude import MagnitudeLikelihood
from qsim.information.rician_bound import magnitude_information
from qsim.kspace.magnitude_likelihood import (
    bessel_terms,
    magnitude_curvature,
    magnitude_log_density,
    magnitude_moments,
    magnitude_score,
    magnitude_terms,
)
from qsim.parameters import T1RHO
from qsim.signals import BiExponential, InversionRecovery, MultiEchoSpinEcho, OffsetDecay, SpinLock

TSL = (0.0, 0.01, 0.03, 0.05)
LOCK = SpinLock(tsl=TSL)
COILS = (1, 2, 4, 32)


def theta_and_z(coils):
    """Signals over sigma from 0 to 10^4, and magnitudes up to three SD about the mean of each."""
    theta = np.array([0, 1e-3, 0.3, 1, 3, 10, 100, 1e3, 1e4])[:, None]
    z = np.abs(np.sqrt(theta**2 + 2 * coils - 1) + np.linspace(-3, 3, 7)) + 0.01
    return np.broadcast_to(theta, z.shape).copy(), z


def magnitudes(signal, sigma, generator, coils=1):
    channels = sigma * torch.randn(2 * coils, *signal.shape, generator=generator, dtype=torch.float64)
    channels[0] += signal
    return channels.square().sum(0).sqrt()


@pytest.mark.parametrize("coils", COILS)
def test_density_is_that_of_scipy(coils):
    theta, z = theta_and_z(coils)
    # a density of m, from that of m^2 = z^2 sigma^2
    wanted = stats.rice.logpdf(z, theta) if coils == 1 else stats.ncx2.logpdf(z**2, 2 * coils, theta**2) + np.log(2 * z)
    for sigma in (1.0, 0.02):
        found = magnitude_log_density(torch.tensor(sigma * z), torch.tensor(sigma * theta), sigma, coils)
        # rounding of terms of the size of log z^(2L - 1); scipy's own ncx2 has lost some digits at 10^4
        np.testing.assert_allclose(found + math.log(sigma), wanted, atol=1e-7 if coils > 1 else 1e-10, rtol=1e-11)


@pytest.mark.parametrize("coils", COILS)
def test_derivatives_are_those_of_the_density(coils):
    theta, z = theta_and_z(coils)
    step = 1e-4

    def terms(at):
        return [part.numpy() for part in magnitude_terms(torch.tensor(z), torch.tensor(at), 1.0, coils)]

    value, score, curvature = terms(theta)
    above, below = terms(theta + step), terms(theta - step)
    # rounding of the difference: 1e-16 of 4.5 (three SD squared, over 2), or of z (1e4), over 2e-4
    np.testing.assert_allclose(score, (above[0] - below[0]) / (2 * step), atol=1e-7)
    np.testing.assert_allclose(curvature, (above[1] - below[1]) / (2 * step), atol=1e-6)
    # even in the signal
    mirrored = terms(-theta)
    np.testing.assert_array_equal(mirrored[0], value)
    np.testing.assert_array_equal(mirrored[1][1:], -score[1:])


@pytest.mark.parametrize("coils", COILS)
def test_bessel_ratio_is_that_of_scipy(coils):
    x = np.concatenate((np.geomspace(1e-3, 1e6, 400), [40.0 + coils**2, np.nextafter(40.0 + coils**2, 1e9)]))
    _, short, slope = (part.numpy() for part in bessel_terms(torch.tensor(x), coils))
    ratio = ive(coils, x) / ive(coils - 1, x)
    good = np.isfinite(ratio) & (ive(coils, x) > 1e-250)
    np.testing.assert_allclose(1 - short[good], ratio[good], rtol=1e-13, atol=2e-16)
    rate = 1 - ratio**2 - (2 * coils - 1) * ratio / x
    # the formula itself cancels where x is large: 1e-16 absolute
    np.testing.assert_allclose(slope[good], rate[good], atol=2e-15 * (1 + coils))


@pytest.mark.parametrize("coils", COILS)
def test_float32_images_lose_no_more_than_their_own_rounding(coils):
    theta, z = (torch.tensor(part) for part in theta_and_z(coils))
    single = magnitude_score(z.float(), theta.float(), 1.0, coils)
    double = magnitude_score(z.float().double(), theta.float().double(), 1.0, coils)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-12)
    single = magnitude_curvature(z.float(), theta.float(), 1.0, coils)
    torch.testing.assert_close(
        single.double(),
        magnitude_curvature(z.float().double(), theta.float().double(), 1.0, coils),
        rtol=1e-6,
        atol=1e-12,
    )


def test_moments_of_oracle_j():
    """Mean and SD as printed in physics.md (e), and the mean in closed form."""
    printed = {
        1: ((1.2533, 0.6551), (3.1726, 0.9668)),
        4: ((2.7416, 0.6953), (4.0295, 0.8734)),
        32: ((7.9688, 0.7057),),
    }
    for coils, rows in printed.items():
        mean, sd = magnitude_moments(torch.tensor([0.0, 3.0]), 1.0, coils)
        for i, (m, s) in enumerate(rows):
            assert abs(float(mean[i]) - m) < 5.1e-5
            assert abs(float(sd[i]) - s) < 5.1e-5
        nu = np.array([0.0, 0.5, 1, 2, 5, 12])
        found, _ = magnitude_moments(torch.tensor(3 * nu), 3.0, coils)
        front = math.sqrt(math.pi / 2) * gamma(coils + 0.5) / (gamma(1.5) * gamma(coils))
        np.testing.assert_allclose(found / 3, front * hyp1f1(-0.5, coils, -(nu**2) / 2), rtol=1e-12)


def test_information_is_the_variance_of_the_score():
    z = np.linspace(1e-9, 20, 200_001)
    for coils in (1, 4):
        for theta in (0.3, 2.0, 8.0):
            density = magnitude_log_density(torch.tensor(z), torch.full((len(z),), theta).double(), 1.0, coils).exp()
            score = magnitude_score(torch.tensor(z), torch.full((len(z),), theta).double(), 1.0, coils)
            wanted = float(torch.trapezoid(density * score.square(), torch.tensor(z)))
            found = magnitude_information(torch.tensor([2 * theta]), 2.0, coils)
            assert float(found) * 4 == pytest.approx(wanted, abs=1e-6)


def grid_maximum(model, rows, images, sigma, coils=1):
    """Largest log-likelihood of each voxel over a dense grid of all rows."""
    mesh = torch.stack([m.flatten() for m in torch.meshgrid(*rows, indexing="ij")])
    signal = model(mesh).abs()
    best = []
    for series in images.T:
        kernel = magnitude_terms(series[:, None].expand_as(signal), signal, sigma, coils)[0]
        best.append(float(kernel.sum(0).max()))
    return torch.tensor(best)


def likelihood(model, kappa, images, sigma, coils=1):
    return magnitude_terms(images, model(kappa).abs(), sigma, coils)[0].sum(0)


@pytest.mark.parametrize(("snr", "coils"), [(2, 1), (3, 1), (5, 1), (20, 1), (4, 4)])
def test_decay_is_the_global_maximum(snr, coils):
    generator = torch.Generator().manual_seed(snr)
    truth = torch.tensor([[1.0], [0.045]], dtype=torch.float64).expand(2, 60)
    images = magnitudes(LOCK(truth), 1 / snr, generator, coils)
    found = MagnitudeLikelihood(LOCK, coils=coils)(images, 1 / snr)
    rows = (torch.linspace(0, 2.2, 111).double(), torch.linspace(math.log(0.001), math.log(4), 150).double().exp())
    lowest = grid_maximum(LOCK, rows, images, 1 / snr, coils)
    assert bool((likelihood(LOCK, found.kappa, images, 1 / snr, coils) > lowest - 1e-6).all())


@pytest.mark.parametrize("snr", [6, 25])
def test_recovery_is_the_global_maximum(snr):
    """Magnitude inversion recovery: no grid point of 20 voxels beats the fit."""
    model = InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0))
    generator = torch.Generator().manual_seed(snr)
    uniform = torch.rand(2, 20, generator=generator, dtype=torch.float64)
    truth = torch.stack((0.7 + 0.3 * uniform[0], torch.full((20,), 1.9).double(), 0.5 + uniform[1]))
    images = magnitudes(model(truth), 0.8 / snr, generator)
    found = MagnitudeLikelihood(model)(images, 0.8 / snr)
    rows = (torch.linspace(0.4, 1.3, 28), torch.linspace(0.0, 3.0, 31), torch.linspace(0.1, 3, 40))
    lowest = grid_maximum(model, [row.double() for row in rows], images, 0.8 / snr)
    assert bool((likelihood(model, found.kappa, images, 0.8 / snr) > lowest - 1e-6).all())


@pytest.mark.parametrize(("snr", "allowed"), [(5, 3.0), (10, 1.0), (30, 1.0)])
def test_bias_of_t1rho(snr, allowed):
    """T1rho 45 ms, SNR = A / sigma: the median within 3 % at 5 and 1 % from 10 on; a Gaussian fit shows its floor."""
    n = 40_000  # the median's own error: 1.25 x 30 % / sqrt(n) = 0.2 % at SNR 5
    generator = torch.Generator().manual_seed(1)
    images = magnitudes(LOCK(torch.tensor([[0.65], [0.045]]).double()).expand(4, n), 0.65 / snr, generator)
    found = MagnitudeLikelihood(LOCK)(images.float(), 0.65 / snr)
    assert found.kappa.dtype == torch.float32
    bias = 100 * (float(found.kappa[1].double().median()) / 0.045 - 1)
    assert abs(bias) < allowed
    if snr < 30:
        gaussian = build_estimator("least-squares", LOCK)(images).kappa[1]
        assert 100 * (float(gaussian.median()) / 0.045 - 1) > (10 if snr == 5 else 2)


def test_coverage_from_the_observed_information():
    n, sigma = 4000, 0.03
    generator = torch.Generator().manual_seed(2)
    truth = torch.tensor([[1.0], [0.045]]).double()
    images = magnitudes(LOCK(truth).expand(4, n), sigma, generator)
    found = MagnitudeLikelihood(LOCK, covariance=True)(images, sigma)
    inside = ((found.kappa - truth).abs() < 1.96 * found.variances["noise"].sqrt()).double().mean(1)
    # 0.95 +- 3 x 0.0034, and Wald's own error at a CV of 7 %
    assert bool(((inside - 0.95).abs() < 0.02).all())
    torch.testing.assert_close(found.covariance[0, 1], found.covariance[1, 0])


def test_covariance_is_the_inverse_of_the_second_derivatives():
    """Against second differences of the log-density itself, in the rows and not in their logarithms."""
    sigma = 0.15
    images = torch.tensor([[1.02], [0.77], [0.5], [0.4]]).double()
    found = MagnitudeLikelihood(LOCK, covariance=True)(images, sigma)
    top, steps = found.kappa[:, 0], torch.tensor([1e-3, 5e-5]).double()

    def value(*away):
        at = top + steps * torch.tensor(away).double()
        return float(magnitude_log_density(images, LOCK(at[:, None]), sigma).sum())

    hessian = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            e, f = np.eye(2)[i], np.eye(2)[j]
            corners = value(*(e + f)) - value(*(e - f)) - value(*(f - e)) + value(*(-e - f))
            hessian[i, j] = -corners / (4 * float(steps[i] * steps[j]))
    np.testing.assert_allclose(found.covariance[:, :, 0], np.linalg.inv(hessian), rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "truth"),
    [
        (LOCK, (1.0, 0.045)),
        (OffsetDecay(te=(0.005, 0.01, 0.03, 0.05, 0.08, 0.15)), (1.0, 0.05, 0.1)),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_covariance_follows_the_unit_of_the_images(model, truth, scale):
    kappa = torch.tensor(truth, dtype=torch.float64)[:, None].expand(-1, 200)
    images = magnitudes(model(kappa), 0.05, torch.Generator().manual_seed(7))
    fit = MagnitudeLikelihood(model, covariance=True)
    one, other = fit(images, 0.05), fit(images * scale, 0.05 * scale)
    factor = torch.tensor([scale if p.name in ("A", "C") else 1.0 for p in model.parameters]).double()[:, None]
    # voxels whose time stays within its range; differences of rounding in where the search ends
    inside = (one.status == Status.OK) & (other.status == Status.OK)
    assert int(inside.sum()) > 150
    sd, wide = (found.variances["noise"].sqrt()[:, inside] for found in (one, other))
    torch.testing.assert_close(wide, factor * sd, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("model", "truth", "snr"),
    [
        (LOCK, (1.0, 0.045), 5),
        (OffsetDecay(te=(0.005, 0.01, 0.03, 0.05, 0.08, 0.15)), (1.0, 0.05, 0.1), 20),
        (BiExponential(te=tuple(0.01 * i for i in range(1, 17))), (1.0, 0.3, 0.02, 0.1), 50),
        (InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0), signed=True), (0.9, 1.9, 0.8), 8),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_nowhere_less_likely_than_least_squares(model, truth, snr):
    kappa = torch.tensor(truth, dtype=torch.float64)[:, None].expand(-1, 1000)
    images = magnitudes(model(kappa), 1 / snr, torch.Generator().manual_seed(snr))
    found = MagnitudeLikelihood(model)(images, 1 / snr)
    plain = replace(model, signed=False) if getattr(model, "signed", False) else model
    other = build_estimator("least-squares", plain)(images).kappa
    short = likelihood(model, other, images, 1 / snr) - likelihood(model, found.kappa, images, 1 / snr)
    assert int((found.status == Status.OK).sum()) > 500
    assert float(short.max()) < 1e-3


@pytest.mark.parametrize("covariance", [False, True])
def test_no_magnitude_and_no_sigma(covariance):
    """Every voxel has a negative image: none is left, but the mask is not empty."""
    found = MagnitudeLikelihood(LOCK, covariance=covariance)(-torch.ones(4, 3))
    assert bool((found.status == Status.NOT_COMPUTED).all())
    assert bool(torch.isnan(found.noise_level.sigma))


@pytest.mark.parametrize(
    ("model", "truth", "known"),
    [
        (LOCK, (0.9, 0.045), {}),
        (InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0)), (0.9, 1.9, 0.8), {}),
        (InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0), signed=True), (0.9, 1.9, 0.8), {"B": 1.9}),
        (BiExponential(te=tuple(0.01 * i for i in range(1, 17))), (1.0, 0.3, 0.02, 0.1), {}),
        (OffsetDecay(te=(0.0, 0.02, 0.04, 0.08, 0.16, 0.3)), (0.9, 0.06, 0.1), {}),
        (MultiEchoSpinEcho(te=tuple(0.01 * i for i in range(1, 9)), t1=1.0), (0.9, 0.06, 0.9), {"REL_B1": 0.9}),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_high_snr_recovers_the_truth(model, truth, known):
    kappa = torch.tensor(truth, dtype=torch.float64)[:, None]
    found = MagnitudeLikelihood(model)(model(kappa).abs(), 1e-5, known=known)
    # the likelihood's own bias: sigma^2 / 2 nu, at most 1e-8 in the smallest image
    torch.testing.assert_close(found.kappa, kappa, rtol=1e-6, atol=1e-6)
    assert int(found.status) == Status.OK


@pytest.mark.parametrize("coils", [1, 4])
def test_sigma_is_estimated_with_the_fit(coils):
    generator = torch.Generator().manual_seed(3)
    t = 0.03 + 0.1 * torch.rand(1500, generator=generator, dtype=torch.float64)
    model = SpinLock(tsl=(0.0, 0.01, 0.02, 0.04, 0.06, 0.1))
    images = magnitudes(model(torch.stack((torch.ones_like(t), t))), 0.1, generator, coils)
    found = MagnitudeLikelihood(model, coils=coils)(images)
    assert float(found.noise_level.sigma) == pytest.approx(0.1, rel=0.05)
    assert "together with the magnitude fit" in found.noise_level.text


def test_maps_masks_and_bad_voxels():
    generator = torch.Generator().manual_seed(4)
    images = magnitudes(LOCK(torch.full((2, 3, 4), 0.05).double()) * 20, 0.05, generator)
    sigma = torch.full((3, 4), 0.05).double()
    images[:, 0, 0] = 0
    images[1, 0, 1] = torch.nan
    images[2, 0, 2] = -0.01
    sigma[0, 3] = 0.2
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 0] = False
    found = MagnitudeLikelihood(LOCK, covariance=True)(images, sigma, mask)
    out = found.status == Status.NOT_COMPUTED
    assert int(out.sum()) == 4
    assert bool(out[0, :3].all())
    assert bool(out[1, 0])
    assert bool(torch.isnan(found.kappa[:, out]).all())
    alone = MagnitudeLikelihood(LOCK)(images[:, 0, 3:], 0.2)
    torch.testing.assert_close(found.kappa[:, 0, 3:], alone.kappa, rtol=1e-9, atol=0)
    nothing = MagnitudeLikelihood(LOCK)(images, 0.05, torch.zeros_like(mask))
    assert bool((nothing.status == Status.NOT_COMPUTED).all())


def test_refusals():
    images = torch.ones(4, 2)
    with pytest.raises(InputError, match=r"^sigma: must be positive"):
        MagnitudeLikelihood(LOCK)(images, 0.0)
    with pytest.raises(InputError, match=r"^estimators: noncentral-chi: coils|^estimators: rician: coils"):
        MagnitudeLikelihood(LOCK, coils=0)
    with pytest.raises(InputError, match=r"^known\.T2: this method cannot use"):
        MagnitudeLikelihood(LOCK)(images, 0.1, known={"T2": 0.1})
    assert MagnitudeLikelihood(LOCK).name == "rician"
    assert MagnitudeLikelihood(LOCK, coils=4).name == "noncentral-chi"
    assert build_estimator("rician", LOCK, {"coils": 2}).parameters[1] == T1RHO


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", [LOCK, InversionRecovery(ti=(0.1, 0.3, 0.6, 1.0, 2.0, 4.0))], ids=lambda m: m.kind)
def test_same_on_cuda(model):
    generator = torch.Generator().manual_seed(5)
    truth = torch.tensor({2: (1.0, 0.045), 3: (1.0, 1.9, 0.8)}[len(model.parameters)]).double()[:, None].expand(-1, 500)
    images = magnitudes(model(truth), 0.05, generator)
    fit = MagnitudeLikelihood(model, covariance=True)
    here, there = fit(images, 0.05), fit(images.cuda(), 0.05)
    assert there.kappa.is_cuda
    torch.testing.assert_close(there.kappa.cpu(), here.kappa, rtol=1e-5, atol=1e-8)
