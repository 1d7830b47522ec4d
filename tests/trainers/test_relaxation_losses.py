"""Losses of the relaxation constraint against arithmetic written out and scipy's Laplace distribution."""

from math import exp, log

import numpy as np
import pytest
import torch
from scipy.stats import laplace as distribution

from qsim.signals import SpinLock
from qsim.signals.constraint import RelaxationConstraint, constraint_pairs
from trainers.relaxation.losses import laplace, reconstruction

TSL = (0.0, 0.01, 0.03)
PAIRS = constraint_pairs((0, 1, 2), "decaying")


def batch(dtype=torch.float64):
    """Residuals of two samples, three pairs, 4 x 5 voxels, and what counts of them."""
    generator = torch.Generator().manual_seed(11)
    residuals = torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype)
    log_scale = -1 + 0.5 * torch.randn(2, 4, 5, generator=generator, dtype=dtype)
    voxels = torch.rand(2, 4, 5, generator=generator) < 0.7
    return residuals, log_scale, torch.tensor([[1.0, 1, 1], [0, 1, 1]], dtype=dtype), voxels


def test_equation_4_of_three_images_by_hand():
    # two voxels with I = (4, 3, 1) and (2, 1, 1) at TSL 0, 10, 30 ms; T1rho = 20 and 40 ms
    images = torch.tensor([[4.0, 2.0], [3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)[:, None, None]
    kappa = torch.tensor([0.02, 0.04], dtype=torch.float64)[None, None, None]
    residuals = RelaxationConstraint(SpinLock(tsl=TSL)).residual(images, kappa, PAIRS).movedim(0, 1)
    first = abs(3 - 4 * exp(-0.5)) + abs(1 - 4 * exp(-1.5)) + abs(1 - 3 * exp(-1.0))
    second = abs(1 - 2 * exp(-0.25)) + abs(1 - 2 * exp(-0.75)) + abs(1 - 1 * exp(-0.5))
    weights, voxels = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.bool)
    loss = reconstruction(residuals, weights, voxels)
    assert loss.tolist() == pytest.approx([(first + second) / 6], rel=1e-14)
    # only the second voxel, and of the pairs (10, 0), (30, 0), (30, 10) only the first and the last, 3 : 1
    voxels[0, 0, 0] = False
    weights = torch.tensor([[3.0, 0.0, 1.0]], dtype=torch.float64)
    wanted = (3 * abs(1 - 2 * exp(-0.25)) + abs(1 - exp(-0.5))) / 4
    assert reconstruction(residuals, weights, voxels).tolist() == pytest.approx([wanted], rel=1e-14)


def test_equation_8_is_the_likelihood_of_a_laplace_distribution():
    residuals, log_scale, weights, voxels = batch()
    loss = laplace(residuals, log_scale, weights, voxels)
    for b in range(2):
        terms = [
            -distribution.logpdf(residuals[b, p, y, x].item(), scale=exp(log_scale[b, y, x].item())) - log(2)
            for p in range(3)
            for y, x in voxels[b].nonzero().tolist()
            if weights[b, p] > 0
        ]
        assert loss[b].item() == pytest.approx(np.mean(terms), rel=1e-13)


def test_a_constant_scale_of_two_contrasts_is_equation_5():
    residuals, _, weights, voxels = batch()
    others = 3 * residuals.flip(1)
    scales = 0.4, 1.7
    total = sum(
        laplace(r, torch.full((2, 1, 1), log(s), dtype=torch.float64), weights, voxels) + log(2)
        for r, s in zip((residuals, others), scales, strict=True)
    )
    for b in range(2):
        chosen = [r[b, weights[b] > 0][:, voxels[b]].abs().mean().item() for r in (residuals, others)]
        wanted = sum(error / s + log(2 * s) for error, s in zip(chosen, scales, strict=True))
        assert total[b].item() == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_scale_is_least_at_the_mean_absolute_residual(beta):
    residuals, _, weights, _ = batch()
    voxels = torch.ones(2, 4, 5, dtype=torch.bool)
    counted = weights[..., None, None] > 0
    best = (residuals.abs() * counted).sum(1) / counted.sum(1)
    log_scale = best.log().requires_grad_()
    at_best = laplace(residuals, log_scale, weights, voxels, beta)
    at_best.sum().backward()
    assert float(log_scale.grad.abs().max()) < 1e-16
    for step in (-0.01, 0.01):
        beside = (best.log() + step).requires_grad_()
        loss = laplace(residuals, beside, weights, voxels, beta)
        loss.sum().backward()
        assert (beside.grad.sign() == np.sign(step)).all()
        if beta == 0:
            assert (loss > at_best).all()


@pytest.mark.parametrize(("beta", "power"), [(0.0, -1.0), (0.25, -0.75), (1.0, 0.0)])
def test_the_maps_learn_with_the_scale_to_the_power_of_beta_less_one(beta, power):
    """Of the absolute loss itself for beta 1; the scale's own gradient keeps (1 - error / s) s^beta."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    times = 0.02 + 0.1 * torch.rand(1, 2, 4, 5, generator=generator, dtype=torch.float64)
    _, log_scale, weights, voxels = batch()
    constraint = RelaxationConstraint(SpinLock(tsl=TSL))
    gradients = []
    log_scale.requires_grad_()
    for loss in (
        lambda r: laplace(r, log_scale, weights, voxels, beta),
        lambda r: reconstruction(r, weights, voxels),
    ):
        leaf = times.clone().requires_grad_()
        residuals = constraint.residual(images, leaf, PAIRS).movedim(0, 1)
        loss(residuals).sum().backward()
        gradients.append(leaf.grad[0])
    s = log_scale.detach().exp()
    # weights of mean 1 over the voxels that count
    mean = torch.where(voxels, s**beta, 0.0).sum((1, 2)) / voxels.sum((1, 2)).clamp(min=1)
    mean = torch.where(mean > 0, mean, 1.0)[:, None, None]
    torch.testing.assert_close(gradients[0], gradients[1] * s**power / mean, rtol=1e-12, atol=1e-18)
    error = (residuals.detach().abs() * weights[..., None, None]).sum(1) / weights.sum(1)[:, None, None]
    wanted = torch.where(voxels, (1 - error / s) * s**beta / mean, 0.0) / voxels.sum((1, 2))[:, None, None]
    torch.testing.assert_close(log_scale.grad, wanted, rtol=1e-11, atol=1e-16)


def test_nothing_that_does_not_count_reaches_loss_or_gradient():
    residuals, log_scale, weights, voxels = batch(torch.float32)
    weights[0] = 0
    voxels[1, 0] = False
    clean = reconstruction(residuals, weights, voxels), laplace(residuals, log_scale, weights, voxels, 0.5)
    for loss in clean:
        assert loss[0] == 0
        assert loss[1] != 0
    dirty, scale = residuals.clone(), log_scale.clone()
    dirty[0] = float("nan")
    dirty[1, 0] = float("inf")
    dirty[1, :, 0] = float("nan")
    scale[0], scale[1, 0] = float("nan"), float("inf")
    dirty.requires_grad_()
    again = reconstruction(dirty, weights, voxels), laplace(dirty, log_scale, weights, voxels, 0.5)
    for before, after in zip(clean, again, strict=True):
        assert torch.equal(before, after)
        (gradient,) = torch.autograd.grad(after.sum(), dirty)
        assert torch.isfinite(gradient).all()
        assert (gradient[0] == 0).all()
        assert (gradient[1, 0] == 0).all()
    assert torch.equal(laplace(dirty, scale, weights, voxels, 0.5), clean[1])
    nobody = torch.zeros_like(voxels)
    assert reconstruction(residuals, weights, nobody).tolist() == [0, 0]
    assert laplace(residuals, log_scale, weights, nobody).tolist() == [0, 0]


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan")])
def test_refuses_other_powers(beta):
    with pytest.raises(ValueError, match=r"beta: got .* from 0 .* to 1"):
        laplace(*batch(), beta)
