"""From anatomy to parameter maps: which tissue a voxel holds, and which values that tissue has there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from qsim.tissues import Variation

# float32 normals are made from 24-bit uniform numbers: none is larger than sqrt(2 ln 2^24) = 5.8
_LARGEST_NORMAL = 6.0


@dataclass(frozen=True, slots=True)
class Minor:
    """The tissues of voxels that hold more than one, beside the majority tissue; in order of the samples.

    Attributes:
        sample: which sample.
        voxel: flat index of the voxel.
        tissue: index of the tissue.
        share: its share of the voxel [1].
    """

    sample: Int[Tensor, " p"]
    voxel: Int[Tensor, " p"]
    tissue: Int[Tensor, " p"]
    share: Float[Tensor, " p"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The tissues that share each voxel.

    Attributes:
        majority: index of the tissue with the largest share.
        purity: that share [1].
        labels: 1 + `majority`; 0 where the background holds more than any tissue.
        minor: the other tissues, only where they have a share.
    """

    majority: Int[Tensor, "b *space"]
    purity: Float[Tensor, "b *space"]
    labels: UInt8[Tensor, "b *space"]
    minor: Minor


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
        nothing = torch.zeros(0, dtype=torch.int64)
        return Mixture(
            majority, held.to(fractions.dtype), labels, Minor(nothing, nothing, nothing, fractions.new_zeros(0))
        )
    shares = fractions.flatten(2)
    others = (shares > 0) & (torch.arange(shares.shape[1])[:, None] != majority.flatten(1)[:, None])
    sample, tissue, voxel = torch.nonzero(others, as_tuple=True)
    return Mixture(majority, purity, labels, Minor(sample, voxel, tissue, shares[sample, tissue, voxel]))


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
    b, t, q = values.shape
    row = (tissues.flatten(1) + t * torch.arange(b)[:, None]).flatten()
    value = values.reshape(b * t, q).T.contiguous().index_select(1, row).reshape(q, *tissues.shape)
    return torch.stack([vary(value[i], normals[:, i], variation) for i, variation in enumerate(within)])


def minor_parameters(
    values: Float[Tensor, "b t q"],
    normals: Float[Tensor, "b q *space"],
    within: tuple[Variation, ...],
    minor: Minor,
) -> Float[Tensor, "q p"]:
    """Parameters of the tissues that are not the majority of their voxel, with the voxel's own variation [SI]."""
    value = values[minor.sample, minor.tissue]
    z = normals.flatten(2)[minor.sample, :, minor.voxel]
    return torch.stack([vary(value[:, q], z[:, q], variation) for q, variation in enumerate(within)])


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
