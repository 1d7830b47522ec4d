"""Where the recurrent network starts: empirical Bayes of every voxel on one grid of u = log T, at every noise level.

    F_k = max(0, S . d_k / |d_k|) / sigma,   l_k = F_k^2 / 2        (A at its best; d_k: series of grid value u_k)
    u   = argmax l (parabola, then two scoring steps),   d^2 = 1 / (H(u) + 1/4)
    p   = histogram of u by EM, likelihoods no narrower than .6 grid steps
    tau = min(1, d^2 / h^2)
    m, v = mean and variance of u under p_k exp(tau l_k), v at least that within a grid step
    1 / s^2 = 1 / v + (1 - tau) / d^2,   x = s^2 (m / v + (1 - tau) u / d^2)

Where the likelihood is wider than h this is empirical Bayes itself (tau = 1). Where it is narrower the grid cannot
resolve it: the tempered posterior says what the histogram adds to a likelihood of width h, and the rest of the
likelihood, a normal there, is multiplied in closed form.

h is `resolved` of the family, .04 for recoveries. Under Rician noise F is that of `likelihood`. The histogram may count
further voxels of the same tissues (`scene`): a patch of a training shows fewer than an image.

Assumes: the relaxation times of the voxels lie within the grid, .08 to 6.5 s for T1, .004 to 5 s for T2 and T1rho.
"""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainers.networks.mixture.likelihood import VoxelLikelihood

# values of the grid of log T
_VALUES = 128
# information that is always there: SD 2 of log T
LEAST_INFORMATION = 0.25
# width to which a likelihood is widened before it meets the EM [grid steps]
_WIDE_EM = 0.6
# EM: voxels, sweeps, exponent by which a sweep goes further, share of an even histogram in the answer
_VOXELS, _SWEEPS, _FURTHER, _EVEN = 4096, 30, 1.6, 0.01
# the prior may take part of the data's information away (a histogram of two peaks), but never more than this leaves
_KEPT = 0.3


def grid(likelihood: VoxelLikelihood) -> Float[Tensor, " k"]:
    """Values of log T [log s]."""
    return torch.linspace(log(likelihood.shortest), log(likelihood.longest), _VALUES, device=likelihood.series.device)


@dataclass(frozen=True, slots=True)
class Start:
    """Where the network starts.

    Attributes:
        x, s: mean and SD of log T by empirical Bayes.
        u, d: likeliest log T and its SD.
        brightness: projection on the mean series of the mask, over its RMS [1].
        noise: of the brightness [1].
    """

    x: Float[Tensor, "b y x"]
    s: Float[Tensor, "b y x"]
    u: Float[Tensor, "b y x"]
    d: Float[Tensor, "b y x"]
    brightness: Float[Tensor, "b y x"]
    noise: Float[Tensor, "b ys xs"]


@torch.no_grad()
def start(likelihood: VoxelLikelihood, mask: Bool[Tensor, "b y x"], scene: VoxelLikelihood | None = None) -> Start:
    """Empirical Bayes of every voxel; the histogram of a sample is that of its voxels inside the mask.

    Args:
        scene: further voxels of each sample, which all count in the histogram.
    """
    u_k = grid(likelihood)
    u, d, evidence = _on_grid(likelihood, u_k)
    count = mask.flatten(1)
    if scene is None:
        p = _histograms(evidence, d.flatten(1), count, u_k)
    else:
        _, d_more, more = _on_grid(scene, u_k)
        every = torch.ones_like(d_more.flatten(1), dtype=torch.bool)
        p = _histograms(
            torch.cat((evidence, more), 2),
            torch.cat((d.flatten(1), d_more.flatten(1)), 1),
            torch.cat((count, every), 1),
            u_k,
        )
    variance = d.flatten(1).square()
    tau = (variance / likelihood.resolved**2).clamp_max(1)
    weight = evidence.mul_(tau[:, None]).exp_()
    # about the middle of the grid: the variance is a difference of squares
    middle = u_k.mean()
    away = u_k - middle
    moments = (torch.stack((torch.ones_like(away), away, away.square())) * p) @ weight
    m = moments[:, 1] / moments[:, 0]
    # an object of one relaxation time brings all weight onto one value, which stands for all about it
    v = (moments[:, 2] / moments[:, 0] - m * m).clamp_min(float(u_k[1] - u_k[0]) ** 2 / 12)
    rest = (1 - tau) / variance
    x = (m / v + rest * (u.flatten(1) - middle)) / (1 / v + rest) + middle
    precision = torch.maximum(1 / v + rest, _KEPT / variance)
    brightness, noise = _brightness(likelihood.series, likelihood.sigma, mask)
    return Start(x.reshape(u.shape), precision.rsqrt().reshape(u.shape), u, d, brightness, noise)


def _on_grid(
    likelihood: VoxelLikelihood, u_k: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "b y x"], Float[Tensor, "b y x"], Float[Tensor, "b k v"]]:
    """Likeliest u, its SD d, and the log-likelihood of every value of the grid less its highest."""
    step = float(u_k[1] - u_k[0])
    fit = likelihood.fit(u_k)
    top, peak = fit.max(1)
    u = _peak(fit, peak, u_k, step).reshape(likelihood.series[:, 0].shape)
    for _ in range(2):
        here = likelihood.local(u)
        u = u + (here.score / (here.information + LEAST_INFORMATION)).clamp(-step, step)
    u = u.clamp(u_k[0], u_k[-1])
    d = (here.information + LEAST_INFORMATION).rsqrt()
    return u, d, fit.clamp_min_(0).square_().mul_(0.5).sub_(0.5 * top.clamp_min(0).square()[:, None])


def _peak(fit: Float[Tensor, "b k v"], best: Tensor, u_k: Float[Tensor, " k"], step: float) -> Float[Tensor, "b v"]:
    """Top of the parabola through the best value of the grid and its neighbours."""
    inner = best.clamp(1, len(u_k) - 2)[:, None]
    below, at, above = (fit.gather(1, inner + offset)[:, 0] for offset in (-1, 0, 1))
    bend = below - 2 * at + above
    offset = torch.where(bend < 0, 0.5 * (below - above) / bend.clamp_max(-1e-9), 0.0)
    return u_k[0] + step * (inner[:, 0] + offset.clamp(-1, 1))


def _histograms(
    evidence: Float[Tensor, "b k v"], d: Float[Tensor, "b v"], mask: Bool[Tensor, "b v"], u_k: Float[Tensor, " k"]
) -> Float[Tensor, "b 1 k"]:
    """Histogram of log T of every sample by EM over some of its voxels; adds up to 1.

    p_k <- p_k (mean_v L_vk / sum_j p_j L_vj)^1.6, normalised
    """
    step = float(u_k[1] - u_k[0])
    found = []
    for one, spread, inside in zip(evidence, d, mask, strict=True):
        chosen = inside.nonzero()[:, 0]
        if len(chosen) > _VOXELS:
            places = torch.linspace(0, len(chosen) - 1, _VOXELS, dtype=torch.float64, device=chosen.device)
            chosen = chosen[places.long()]
        temper = (spread[chosen] / (_WIDE_EM * step)).square().clamp_max(1)
        weight = (one[:, chosen] * temper).exp()
        p = torch.full((_VALUES,), 1 / _VALUES, device=evidence.device)
        for _ in range(_SWEEPS if len(chosen) else 0):
            share = weight @ (1 / (p @ weight).clamp_min(1e-30)) / len(chosen)
            p = (p * share.clamp_min(1e-12).pow(_FURTHER)).clamp_min(1e-9)
            p = p / p.sum()
        found.append((1 - _EVEN) * p + _EVEN / _VALUES)
    return torch.stack(found)[:, None]


def _brightness(
    series: Float[Tensor, "b n y x"], sigma: Float[Tensor, "b ys xs"], mask: Bool[Tensor, "b y x"]
) -> tuple[Float[Tensor, "b y x"], Float[Tensor, "b ys xs"]]:
    """Projection on the mean series of the mask over its RMS there, and its noise."""
    mean = (series * mask[:, None]).sum((2, 3))
    mean = mean / mean.norm(dim=1, keepdim=True).clamp_min(1e-30)
    projection = (series * mean[:, :, None, None]).sum(1)
    voxels = mask.sum((1, 2)).clamp_min(1)
    size = ((projection.square() * mask).sum((1, 2)) / voxels).sqrt().clamp_min(1e-30)[:, None, None]
    return projection / size, sigma / size
