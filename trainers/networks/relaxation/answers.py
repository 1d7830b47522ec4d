"""How the channels of a network become relaxation times: bounded and positive, whatever they are.

`bounded` lets the network say the time itself,

    T = T_short (T_long / T_short)^sigmoid(u).

`averaging` lets it say which voxels are alike. The images are averaged, in every voxel with weights of its own, over
the voxels of a small square and the means of larger ones, and the two-point time of the averages is the answer:

    w = softmax(u),        T = t / log(sum_k w_k I_first,k / sum_k w_k I_later,k)

A mean of signals keeps a subject's mean and a lesion's contrast where the weights are right, whatever the time between
the images; and the two-point time of a mean has less noise and less bias than the mean of noisy two-point times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from qsim.parameters import RELAXATION_TIMES, Parameter

# below this, normalised signal is nothing but noise and its logarithm of no use [1]
_FLOOR = 1e-3
# of the constant of an offset decay, in units of A [1]
_OFFSET = (-0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a learned row.

    Attributes:
        low, high: of the answer [SI].
        start: of every voxel before the training.
        logarithmic: whether a step is a relative one.
    """

    low: float
    high: float
    start: float
    logarithmic: bool

    def share(self) -> float:
        """u of the start value."""
        low, high, start = (torch.tensor(each, dtype=torch.float64) for each in (self.low, self.high, self.start))
        part = torch.log(start / low) / torch.log(high / low) if self.logarithmic else (start - low) / (high - low)
        return float(torch.logit(part))

    def value(self, u: Float[Tensor, "*space"]) -> Float[Tensor, "*space"]:
        """The row of the network's channel [SI]."""
        part = torch.sigmoid(u)
        return (
            self.low * (self.high / self.low) ** part if self.logarithmic else self.low + part * (self.high - self.low)
        )


def range_of(row: Parameter, shortest: float, longest: float) -> Range:
    """Bounds of a row: of relaxation times those of the network's config, of others what the parameter can be."""
    if row.name in RELAXATION_TIMES:
        return Range(shortest, longest, min(max(row.start, 2 * shortest), longest / 2), True)
    low, high = _OFFSET if row.name == "C" else (row.lower, row.upper)
    # half-way is where a constant is 0 and a fraction undecided
    return Range(low, high, (low + high) / 2, False)


def averages(images: Float[Tensor, "b k y x"], sizes: Sequence[int]) -> Float[Tensor, "b s k y x"]:
    """The images, averaged over squares of odd size; at the border over what lies inside."""
    if not sizes:
        return images[:, None][:, :0]
    found = []
    for size in sizes:
        if size == 1:
            found.append(images)
            continue
        half = size // 2
        along = functional.avg_pool2d(images, (size, 1), 1, (half, 0), count_include_pad=False)
        found.append(functional.avg_pool2d(along, (1, size), 1, (0, half), count_include_pad=False))
    return torch.stack(found, 1)


def neighbours(images: Float[Tensor, "b k y x"], side: int) -> Float[Tensor, "b s k y x"]:
    """The images shifted to each voxel of a square of odd side; beyond the border the edge is continued."""
    half = side // 2
    wide = functional.pad(images, (half, half, half, half), mode="replicate")
    height, width = images.shape[-2:]
    return torch.stack([wide[..., y : y + height, x : x + width] for y in range(side) for x in range(side)], 1)


def two_point(
    first: Float[Tensor, "b s y x"], later: Float[Tensor, "b s y x"], interval: Float[Tensor, " b"], within: Range
) -> Float[Tensor, "b s y x"]:
    """log T of two images [log s]; at a bound where their quotient leaves the range.

    T = t / log(I_first / I_later)
    """
    rate = torch.log(first.clamp(min=_FLOOR) / later.clamp(min=_FLOOR)) / interval[:, None, None, None]
    return -torch.log(rate.clamp(1 / within.high, 1 / within.low))
