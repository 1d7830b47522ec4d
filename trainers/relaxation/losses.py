"""Losses of networks that learn relaxation times from what the images of a series say of each other.

Residuals r_p = I_m - I_n g_m / g_n of pairs p = (m, n) come from `qsim.signals.constraint`. With weights w_p, which
say what pairs count, and W = sum_p w_p, the error of a voxel is

    e(x) = sum_p w_p |r_p(x)| / W

`reconstruction` is its mean over the voxels that count, and `laplace` the negative log-likelihood of residuals that
follow a Laplace distribution of scale s(x), without the log 2 of its density 1 / 2s exp(-|r| / s).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reconstruction(
    residuals: Float[Tensor, "b p y x"], weights: Float[Tensor, "b p"], voxels: Bool[Tensor, "b y x"]
) -> Float[Tensor, " b"]:
    """Mean absolute residual of each sample.

        L_b = 1 / V_b sum_x e(x)

    Args:
        residuals: of every pair [units of the images]; anything where nothing counts, infinity and NaN as well.
        weights: w of every pair, at least 0 [1]; 0: does not count.
        voxels: that count. A sample without any, or without a pair, has loss 0.
    Source: huang2022 Eq. 4 (there w = 1, every voxel).
    """
    return _mean(_error(residuals, weights, voxels), weights, voxels)


def laplace(
    residuals: Float[Tensor, "b p y x"],
    log_scale: Float[Tensor, "b #y #x"],
    weights: Float[Tensor, "b p"],
    voxels: Bool[Tensor, "b y x"],
    beta: float = 0.0,
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of residuals that follow a Laplace distribution, less log 2.

        L_b = sum_x s(x)^beta (e(x) / s(x) + log s(x)) / sum_x s(x)^beta,    s^beta without gradient

    With beta = 0 it is the likelihood: least where s is the mean absolute residual. The gradient that reaches the
    maps is then 1 / s times that of the absolute loss, so voxels of a large scale hardly learn; with beta = 1 it is
    that of the absolute loss itself, and s has the same minimum as before.

    The sum of this loss over contrasts, and log 2 for each contrast, is huang2023 Eq. 5: HETEU where the scale is a
    map, HOMOU where it is a constant (b, 1, 1) of the contrast.

    Args:
        residuals, weights, voxels: as `reconstruction`.
        log_scale: log s [log of units of the images].
        beta: from 0 to 1.
    Raises: ValueError if beta is outside.
    Source: huang2022 Eq. 8; beta: Seitzer et al. 2022, arXiv:2203.09168 (there for the variance of a Gaussian).
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: got {beta:g}; give a number from 0 (the likelihood) to 1 (maps as by reconstruction)")
    term = _error(residuals, weights, voxels) * torch.exp(-log_scale) + log_scale
    if beta:
        # weights of mean 1, so that beta does not change the size of a step against the decay of the weights
        share = torch.exp(beta * log_scale.detach()).expand(term.shape)
        count = voxels.flatten(1).sum(1).clamp(min=1)
        mean = torch.where(voxels, share, 0.0).flatten(1).sum(1) / count
        term = term * share / torch.where(mean > 0, mean, 1.0)[:, None, None]
    return _mean(term, weights, voxels)


def _error(
    residuals: Float[Tensor, "b p y x"], weights: Float[Tensor, "b p"], voxels: Bool[Tensor, "b y x"]
) -> Float[Tensor, "b y x"]:
    """e(x); 0 where nothing counts."""
    total = weights.sum(1, keepdim=True)
    share = (weights / torch.where(total > 0, total, 1.0))[..., None, None]
    # chosen before the arithmetic: 0 times infinity is NaN, in the gradient too
    counted = voxels[:, None] & (share > 0)
    return (torch.where(counted, residuals, 0.0).abs() * share).sum(1)


def _mean(
    term: Float[Tensor, "b y x"], weights: Float[Tensor, "b p"], voxels: Bool[Tensor, "b y x"]
) -> Float[Tensor, " b"]:
    """Mean over the voxels that count of samples that have a pair, else 0."""
    counted = voxels & (weights > 0).any(1)[:, None, None]
    return torch.where(counted, term, 0.0).sum((1, 2)) / voxels.sum((1, 2)).clamp(min=1)
