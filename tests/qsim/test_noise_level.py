"""Sigma from the background, from repeats and from residuals, against the sigma that was drawn."""

import math

import numpy as np
import pytest
import torch

from qsim.errors import InputError
from qsim.estimators.least_squares import LeastSquares
from qsim.estimators.noise_level import from_background, from_repeats, from_residual, noise_level
from qsim.signals import InversionRecovery, SpinLock
from tests.published import RICIAN_MEAN_SD, TABLE_1, TI_31

TSL = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
SIGMA = 0.04


def head(model, size=96, seed=0, dtype=torch.float64):
    """A disc of tissue in air: clean images, tissue, and the inner part of the tissue that a brain mask would hold."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(y, x) / size
    tissue = torch.tensor(radius < 0.42)
    rows = {"A": 0.75, "B": 1.9, "T1": 0.9, "T1RHO": 0.045}
    kappa = torch.stack([r * torch.tensor(1 + 0.1 * rng.standard_normal((size, size))) for r in _means(model, rows)])
    return (model(kappa) * tissue).to(dtype), tissue, torch.tensor(radius < 0.3)


def _means(model, rows):
    return [rows[p.name] for p in model.parameters]


def gaussian(clean, sigma, seed=1):
    g = torch.Generator().manual_seed(seed)
    return clean + sigma * torch.randn(clean.shape, generator=g, dtype=clean.dtype)


def magnitude(clean, sigma, coils=1, seed=1):
    """Root sum of squares of complex coil images, each with the same share of the signal."""
    g = torch.Generator().manual_seed(seed)
    noise = sigma * torch.randn((2, coils, *clean.shape), generator=g, dtype=clean.dtype)
    noise[0] += clean / coils**0.5
    return noise.square().sum((0, 1)).sqrt()


def no_residual():
    raise AssertionError("the residual was asked for")


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("model", [TSL, InversionRecovery(ti=TI_31)], ids=["4 images", "31 images"])
def test_background_of_a_magnitude(model, coils):
    clean, tissue, _ = head(model)
    # 5000 voxels of air: standard error of sigma at most 0.5 %
    found = from_background(magnitude(clean, SIGMA, coils), ~tissue, coils)
    assert float(found.sigma) == pytest.approx(SIGMA, rel=0.02)
    assert found.source == "background"
    assert "but" not in found.text


def test_background_of_signed_noise():
    clean, tissue, _ = head(TSL)
    found = from_background(gaussian(clean, SIGMA), ~tissue)
    assert float(found.sigma) == pytest.approx(SIGMA, rel=0.02)
    assert "signed" in found.text


@pytest.mark.parametrize(("amplitude", "within"), [(0.15, 0.05), (0.3, 0.02)])
@pytest.mark.parametrize("signed", [False, True])
def test_a_ghost_does_no_harm(signed, amplitude, within):
    """A ghost from half the field of view away, over a quarter of the air, of about 2.5 and 5 sigma.

    Where it is as weak as the noise it cannot be told from it: sigma is then a few percent too high.
    """
    clean, tissue, _ = head(TSL)
    images = clean + amplitude * clean.roll(48, 1) * (torch.arange(96)[:, None] < 36)
    noisy = gaussian(images, SIGMA) if signed else magnitude(images, SIGMA)
    found = from_background(noisy, ~tissue)
    plain = (noisy[:, ~tissue].square().mean() / (1 if signed else 2)).sqrt()
    assert float(plain) > (1 + 4 * within) * SIGMA
    assert float(found.sigma) == pytest.approx(SIGMA, rel=within)


def test_zero_filled_background_is_left_out_or_refused():
    clean, tissue, _ = head(TSL)
    images = magnitude(clean, SIGMA)
    images[:, :16] = 0
    found = from_background(images, ~tissue)
    assert float(found.sigma) == pytest.approx(SIGMA, rel=0.02)
    filled = int((~tissue)[:16].sum())
    assert f"{filled} with zeros left out" in found.text
    images[:, ~tissue] *= (torch.rand(int((~tissue).sum()), generator=torch.Generator().manual_seed(0)) < 0.2).double()
    with pytest.raises(InputError, match=r"^background: .* zeros that were filled in"):
        from_background(images, ~tissue)
    with pytest.raises(InputError, match=r"^background: 0 of 0"):
        from_background(images, torch.zeros_like(tissue))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_background_outside_a_brain_mask_with_tissue_around(dtype):
    """Air and a ring of tissue lie outside the mask: the air is taken, the ring is not."""
    for model, noisy in (
        (TSL, magnitude),
        (TSL, gaussian),
        (InversionRecovery(ti=TI_31), magnitude),
        (InversionRecovery(ti=TI_31, signed=True), gaussian),
    ):
        clean, tissue, inner = head(model, dtype=dtype)
        found = noise_level(noisy(clean, SIGMA), None, inner, no_residual)
        assert found.source == "background"
        assert float(found.sigma) == pytest.approx(SIGMA, rel=0.02)
        n_air = int((~tissue).sum())
        similar = int(found.text.split(";")[1].split("of")[0])
        # as many as there is air, to the error of a count
        assert similar == pytest.approx(n_air, rel=0.06)


@pytest.mark.parametrize("sigma", [0.005, 0.04, 0.2])
@pytest.mark.parametrize(
    ("model", "noisy"),
    [
        (TSL, magnitude),
        (TSL, gaussian),
        (InversionRecovery(ti=TI_31), magnitude),
        (InversionRecovery(ti=TI_31, signed=True), gaussian),
    ],
    ids=["decay", "decay signed", "recovery", "recovery signed"],
)
def test_tissue_outside_the_mask_is_not_background(model, noisy, sigma):
    """Nothing but tissue outside the mask, down to a signal of four sigma: the residuals are used, and the text says
    why.
    """
    clean, tissue, inner = head(model)
    images = noisy(clean, sigma)[:, tissue]
    where = inner[tissue]
    squares = LeastSquares(model)(images[:, where])
    residual = (model(squares.kappa) - images[:, where]).square().sum(0)
    found = noise_level(images, None, where, lambda: (residual, model.n_images - len(model.parameters)))
    assert found.source == "residual"
    assert "not distributed like noise" in found.text or "follow the distribution" in found.text
    if noisy is gaussian and sigma < 0.2:
        assert float(found.sigma) == pytest.approx(sigma, rel=0.02)


def test_residuals_of_few_degrees_of_freedom():
    """2 degrees: the median of chi-square is 2 log 2; 20,000 voxels, so 0.7 % on sigma."""
    rows = torch.tensor([0.65, 0.045], dtype=torch.float64)[:, None].expand(-1, 20000)
    images = gaussian(TSL(rows), 0.01)
    residual = (TSL(LeastSquares(TSL)(images).kappa) - images).square().sum(0)
    # a tenth of the voxels moved and fits nothing
    residual[::10] *= 100
    found = noise_level(images, None, torch.ones(20000, dtype=torch.bool), lambda: (residual, 2))
    assert "no voxels outside the mask" in found.text
    assert "20000 voxels" in found.text
    clean = from_residual(residual[torch.arange(20000) % 10 != 0], 2, 4)
    assert float(clean.sigma) == pytest.approx(0.01, rel=0.02)
    # 10 % of voxels beyond the median move it to the 55.6th percentile: sqrt(log(1 - .556) / log(.5)) = 1.082
    assert float(found.sigma) == pytest.approx(0.01 * 1.082, rel=0.02)


def test_few_outside_voxels_and_no_residual():
    images = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) + 1
    where = torch.arange(50) < 20
    with pytest.raises(InputError, match=r"^sigma: 2 images leave no residual"):
        noise_level(images, None, where, lambda: (torch.zeros(20), 0))
    with pytest.raises(InputError, match=r"^sigma: the residuals are zero"):
        noise_level(images, None, where, lambda: (torch.zeros(20), 1))


def test_no_voxel_to_estimate():
    images = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) + 1
    nowhere = torch.zeros(50, dtype=torch.bool)
    found = noise_level(images, None, nowhere, lambda: pytest.fail("there is nothing to fit"))
    assert math.isnan(float(found.sigma))
    assert "no voxel to estimate" in found.text
    # the background, where there is one, still says what the noise is
    noise = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1))
    seen = noise_level(noise, None, torch.zeros(5000, dtype=torch.bool), lambda: pytest.fail("not needed"))
    assert float(seen.sigma) == pytest.approx(1.0, rel=0.05)


def test_given_is_never_changed():
    images, where = torch.rand(3, 5), torch.ones(5, dtype=torch.bool)
    sigmas = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    assert torch.equal(noise_level(images, sigmas, where, no_residual).at(where), sigmas)
    assert float(noise_level(images, 0.3, where, no_residual).sigma) == 0.3
    with pytest.raises(InputError, match=r"^sigma: must be positive"):
        noise_level(images, 0.0, where, no_residual)
    with pytest.raises(InputError, match=r"^sigma: has shape"):
        noise_level(images, torch.ones(4), where, no_residual)


def test_repeats_signed_and_magnitude():
    clean, tissue, _ = head(TSL)
    stack = clean.expand(5, *clean.shape)
    everywhere = torch.ones_like(tissue)
    # 37,000 variances of 4 degrees of freedom: well under 1 % on sigma
    assert float(from_repeats(gaussian(stack, SIGMA), everywhere).sigma) == pytest.approx(SIGMA, rel=0.02)
    found = from_repeats(magnitude(stack, SIGMA), tissue)
    assert float(found.sigma) == pytest.approx(SIGMA, rel=0.02)
    # the air is left out although it is the majority of a larger mask
    assert float(from_repeats(magnitude(stack, SIGMA), everywhere).sigma) == pytest.approx(SIGMA, rel=0.02)
    air = from_repeats(magnitude(stack, SIGMA), ~tissue)
    assert "below sigma by up to 35 %" in air.text
    # median of a variance of four degrees is that of Gaussian values only nearly
    assert float(air.sigma) == pytest.approx(RICIAN_MEAN_SD[0.0][1] * SIGMA, rel=0.05)


def test_repeats_per_voxel_follow_a_map():
    shape = (40, 30)
    truth = torch.linspace(0.02, 0.06, 30, dtype=torch.float64).expand(shape)
    g = torch.Generator().manual_seed(3)
    repeats = 1 + truth * torch.randn((60, 4, *shape), generator=g, dtype=torch.float64)
    found = from_repeats(repeats, torch.ones(shape, dtype=torch.bool), per_voxel=True)
    # 236 degrees of freedom a voxel: 4.6 % each
    ratio = found.sigma / truth
    assert float(ratio.mean()) == pytest.approx(1, abs=0.01)
    assert float(ratio.std()) == pytest.approx((1 / (2 * 236)) ** 0.5, rel=0.1)


def test_repeats_that_say_nothing_are_refused():
    where = torch.ones(6, dtype=torch.bool)
    with pytest.raises(InputError, match=r"^repeats: at least 2"):
        from_repeats(torch.ones(1, 4, 6), where)
    with pytest.raises(InputError, match=r"^repeats: do not differ"):
        from_repeats(torch.ones(3, 4, 6), where)


def test_nan_voxels_and_no_coil():
    clean, tissue, _ = head(TSL)
    images = magnitude(clean, SIGMA)
    images[0, 3, 5:40] = torch.nan
    assert float(from_background(images, ~tissue).sigma) == pytest.approx(SIGMA, rel=0.02)
    with pytest.raises(InputError, match=r"^coils: must be at least 1"):
        from_background(images, ~tissue, 0)


def test_the_noise_of_the_paper():
    """Air beside grey matter at the paper's highest and lowest noise."""
    for sigma in (0.0065, 0.255):
        a, t1, _ = TABLE_1["gm"]
        model = InversionRecovery(ti=TI_31)
        clean = model(torch.tensor([a, 1.9, t1], dtype=torch.float64)[:, None].expand(-1, 3000)).clone()
        clean[:, :1500] = 0
        found = noise_level(gaussian(clean, sigma), None, torch.arange(3000) >= 1500, no_residual)
        assert float(found.sigma) == pytest.approx(sigma, rel=0.02)
