"""Losses of mapping networks, in the learned coordinates of `Coordinates`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def squared_error(
    u: Float[Tensor, "b j q *space"],
    truth: Float[Tensor, "b q *space"],
    inside: Bool[Tensor, "b *space"],
    weights: Float[Tensor, " q"],
) -> Float[Tensor, " b"]:
    """Squared error of each sample, the mean over steps, rows and the voxels inside.

        L_b = 1/J 1/Q 1/V_b sum_j sum_q w_q sum_x (u_jq(x) - truth_q(x))^2

    Args:
        u: coordinates after each step.
        truth: coordinates of the truth; anything outside, but finite.
        inside: voxels that count; a sample without any has loss 0.
        weights: w of each row.
    Source: sabidussi2021 Eq. 6 (there w = 1, kappa in seconds).
    """
    counted = inside[:, None, None]
    error = torch.where(counted, u - truth[:, None], 0.0).square()
    per_row = error.flatten(3).sum((1, 3)) / (u.shape[1] * inside.flatten(1).sum(1).clamp(min=1)[:, None])
    return (per_row * weights).mean(1)
