"""From anatomy to parameter maps: which tissue a voxel holds, and which values that tissue has there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from qsim.tissues import Variation

# float32 normals are made from 24-bit uniform numbers: none is larger than sqrt(2 ln 2^24) = 5.8
_LARGEST_NORMAL = 6.0
# up to this many tissues, simulating all of them is cheaper than sorting
_FEW_TISSUES = 4


@dataclass(frozen=True, slots=True)
class Mixture:
    """The tissues that share each voxel.

    Attributes:
        shares: share of the k-th tissue [1].
        tissues: its index in the phantom's `tissues`.
        labels: 1 + index of the tissue that holds most of the voxel; 0 where the background holds more than any tissue.
        majority: index of the tissue with the largest share.
        purity: that share [1].
    """

    shares: Float[Tensor, "b k *space"]
    tissues: Int[Tensor, "b k *space"]
    labels: UInt8[Tensor, "b *space"]
    majority: Int[Tensor, "b *space"]
    purity: Float[Tensor, "b *space"]


def mixture(fractions: Float[Tensor, "b t *space"], partial_volume: bool) -> Mixture:
    """Which tissues share each voxel, and which of them it counts as.

    Args:
        fractions: share of each tissue; what is missing to 1 is background [1].
        partial_volume: False gives each voxel wholly to its majority tissue (the paper's label models).
    """
    purity, majority = fractions.max(1)
    background = 1 - fractions.sum(1)
    # a voxel without any tissue has purity 0 and background 1
    held = (purity >= background) & (purity > 0)
    labels = torch.where(held, majority + 1, 0).to(torch.uint8)
    if not partial_volume:
        whole = held.to(fractions.dtype)
        return Mixture(whole[:, None], majority[:, None], labels, majority, whole)
    if fractions.shape[1] <= _FEW_TISSUES:
        order = torch.arange(fractions.shape[1]).reshape(-1, *(1,) * (fractions.ndim - 2)).expand_as(fractions)
        return Mixture(fractions, order, labels, majority, purity)
    # of many tissues few share a voxel: put those first, so that the rest need not be simulated
    shares, tissues = torch.sort(fractions, dim=1, descending=True, stable=True)
    most = int((shares > 0).sum(1).max())
    kept = slice(0, max(most, 1))
    return Mixture(shares[:, kept], tissues[:, kept], labels, majority, purity)


def parameter_maps(
    values: Float[Tensor, "b t q"],
    normals: Float[Tensor, "b q *space"],
    within: tuple[Variation, ...],
    tissues: Int[Tensor, "b *space"],
) -> Float[Tensor, "q b *space"]:
    """Maps of the parameters in the tissue that `tissues` names in each voxel.

    Args:
        values: value of each tissue in each sample [SI].
        normals: one standard normal per voxel and row; ignored where the row does not vary [1].
        within: variation of each row within a tissue.
        tissues: index of the tissue in each voxel.
    """
    b, _, q = values.shape
    index = tissues.reshape(b, -1, 1).expand(-1, -1, q)
    flat = torch.gather(values, 1, index).movedim(-1, 0).reshape(q, *tissues.shape)
    return torch.stack([vary(flat[i], normals[:, i], variation) for i, variation in enumerate(within)])


def vary(value: Float[Tensor, "*s"], normals: Float[Tensor, "*s"], variation: Variation) -> Float[Tensor, "*s"]:
    """White variation around the value of a tissue.

        x = value + sd z,   sd^2 = (relative value)^2 + absolute^2,   z normal, cut where x = floor value

    Args:
        value: value of the tissue [SI].
        normals: standard normals [1].
        variation: how much; all zero returns the value.
    """
    if variation.relative == 0 and variation.absolute == 0:
        return value
    if variation.absolute == 0 and variation.relative < (1 - variation.floor) / _LARGEST_NORMAL:
        return torch.addcmul(value, value, normals, value=variation.relative)
    value64, sd = value.double(), torch.sqrt((variation.relative * value.double()) ** 2 + variation.absolute**2)
    below = torch.special.ndtr((variation.floor - 1) * value64 / sd)
    # the inverse distribution function of the cut normal, at the probability that z stands for
    z = torch.special.ndtri(below + (1 - below) * torch.special.ndtr(normals.double()))
    return (value64 + sd * z).to(value.dtype)
