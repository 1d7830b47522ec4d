"""How the channels of a network become relaxation times: bounded and positive, whatever they are.

`bounded` lets the network say the time itself,

    T = T_short (T_long / T_short)^sigmoid(u).

`averaging` lets it say which voxels are alike. The images are averaged, in every voxel with weights of its own, over
the voxels of a small square and the means of larger ones, and the two-point time of the averages is the answer:

    d_k = sum_i (m_i,k - m_i)^2                                      how unlike place k looks, over the images i
    w = softmax(10 u - p d)
    T = t / log(sum_k w_k I_first,k / sum_k w_k I_later,k)

m is the image averaged over 3 x 3 voxels (at a larger square: over that square), u and p > 0 are the network's. With
u = 0 and p the same everywhere it is a bilateral filter (Tomasi and Manduchi 1998, doi:10.1109/ICCV.1998.710815) of
all images together; that is what a training starts from.

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
# of the logits of an average over many voxels: steps of Adam alone would hardly turn them
_GAIN = 10.0
# side of the square over which places are compared [voxels]; single voxels would follow the noise
_COMPARED = 3
# p before the training: where one image differs by 0.05 of the joint scale the weight is half [1]
_PRECISION = 300.0
# log p changes by at most so much
_MOST = 4.0
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


def unlikeness(images: Float[Tensor, "b k y x"], side: int, sizes: Sequence[int]) -> Float[Tensor, "b s y x"]:
    """d of every voxel of a square of odd side, then of every larger square: squared distance over the images.

    d_k = sum_i (m_i,k - m_i)^2

    Args:
        images: over their joint scale [1].
        side: of the square; odd [voxels].
        sizes: sides of the larger squares; odd [voxels].
    """
    own = averages(images, (_COMPARED,))
    places = torch.cat((neighbours(own[:, 0], side), averages(images, sizes)), 1)
    return (places - own).square().sum(2)


def weights(said: Float[Tensor, "b c #y #x"], unlike: Float[Tensor, "b s y x"]) -> Float[Tensor, "b s y x"]:
    """Weights of an average from the network's channels: u of each place, and last what p is.

    w = softmax(10 u - p d),        p = 300 exp(4 tanh(v / 4))

    Args:
        said: u of every place, then v [1].
        unlike: d of every place [1].
    """
    precision = _PRECISION * torch.exp(_MOST * torch.tanh(said[:, -1:] / _MOST))
    return torch.softmax(_GAIN * said[:, :-1] - precision * unlike, 1)


def two_point(
    first: Float[Tensor, "b s y x"], later: Float[Tensor, "b s y x"], interval: Float[Tensor, " b"], within: Range
) -> Float[Tensor, "b s y x"]:
    """log T of two images [log s]; at a bound where their quotient leaves the range.

    T = t / log(I_first / I_later)
    """
    rate = torch.log(first.clamp(min=_FLOOR) / later.clamp(min=_FLOOR)) / interval[:, None, None, None]
    return -torch.log(rate.clamp(1 / within.high, 1 / within.low))
