"""Opponents that know the truth or the table: methods that paint means. No comparison is honest without them.

They are functions, not estimators: each needs labels or the truth beside the images.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def population_constant(
    prior: Float[Tensor, "t q"], weights: Float[Tensor, " t"], labels: UInt8[Tensor, "*space"]
) -> Float[Tensor, "q *space"]:
    """One value per parameter everywhere: the mean of the tissue table.

    Args:
        prior: mean of each parameter per tissue [SI].
        weights: share of each tissue; scaled to sum 1 here [1].
        labels: 0 is background, which gets 0.
    """
    if not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise ValueError("weights must not be negative and must not all be 0")
    value = (weights / weights.sum()) @ prior
    return torch.einsum("q,...->q...", value, (labels > 0).to(prior.dtype))


def tissue_prior_mean(prior: Float[Tensor, "t q"], labels: UInt8[Tensor, "*space"]) -> Float[Tensor, "q *space"]:
    """The table's mean of the true tissue of each voxel.

    Args:
        prior: mean of each parameter per tissue; row t belongs to label t + 1 [SI].
        labels: 0 is background, which gets 0.
    Raises: ValueError if a label has no row.
    """
    return _paint(prior, labels)


def true_tissue_mean(truth: Float[Tensor, "q *space"], labels: UInt8[Tensor, "*space"]) -> Float[Tensor, "q *space"]:
    """The mean of the truth over the voxels of each tissue: no method that is constant within tissues is better.

    Args:
        truth: true maps [SI].
        labels: 0 is background, which gets 0.
    """
    flat, index = truth.flatten(1), labels.flatten().long()
    n_tissues = int(index.max()) if index.numel() else 0
    sums = flat.new_zeros(flat.shape[0], n_tissues + 1).index_add_(1, index, flat)
    counts = torch.bincount(index, minlength=n_tissues + 1).clamp_min(1)
    return _paint((sums / counts)[:, 1:].T, labels)


def _paint(values: Float[Tensor, "t q"], labels: UInt8[Tensor, "*space"]) -> Float[Tensor, "q *space"]:
    """Row `label - 1` of `values` in every voxel, 0 in the background."""
    highest = int(labels.max()) if labels.numel() else 0
    if highest > values.shape[0]:
        raise ValueError(f"labels reach {highest}, but there are {values.shape[0]} tissues")
    table = torch.cat((values.new_zeros(1, values.shape[1]), values))
    return table[labels.long()].movedim(-1, 0)
