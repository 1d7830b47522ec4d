"""One B from the means of homogeneous blocks: what averaging takes from the noise before any voxel brings unknowns.

    S_w = sum_v S_v / s_v^2 / W_w,   W_w = sum_v 1 / s_v^2   over the voxels v of a 3 x 3 block w of a slice
    q_w = sum_v |P (S_v - S_w)|^2 / s_v^2,   P the projection on the four main axes of all the S_w
    B = argmax of the profile likelihood (`profile`) of the half of the blocks with the smallest q, of SD W_w^-1/2

Every voxel brings an A and a T1 of its own, and at high noise the kinks of the modulus make their errors alike
(`pooled_b`). A block brings as many unknowns as one voxel and a ninth of its variance: the profile is then back where
it nearly reaches its bound. The histogram likelihood is not for block means: its atoms lie too far apart for them.

Selection. Of Gaussian noise the scatter within a block is independent of its mean: taking the blocks of the least
scatter moves no mean, and with it not B. Only the order of q counts: a sigma that is wrong by a factor does no harm.
Tissues differ along few axes of the space of series, the noise along all: on four of them q tells mixed blocks from
noise about 2.8 times better than on 31 (12 brains at SNR 3: 3 % of the chosen blocks mixed instead of 6).

Variance. Blocks overlap, each with 24 others, and share their noise. With the slopes g_w of the profile of each block
and their sum G(B), of variance V,

    V = sum_ww' g_w g_w'   over all pairs w, w' that share a voxel,      s_0 = V^1/2 / |G'|
    var B = 1.4 max(s_0, s_-, s_+)^2,   s_+- = 2 s_0 V^1/2 / |G(B +- 2 s_0)| (at most 3 s_0),

s_0 the standard error of a root of a sum of dependent terms. Where the profile falls off slowly on one side, as towards
a second hollow between the kinks, the truth may lie much farther there than s_0; s_- and s_+ are the distances over
which G itself changes by its own SD, which on a straight slope are s_0. No sigma is needed. What is left of the pull of
the kinks is not in it; the 1.4 is for that, and was chosen on 76 images of the training anatomy at SNR 3 and 5, 40
of them with random times.

Source: White 1982, doi:10.2307/1912526 (variance from the slopes); Conley 1999, doi:10.1016/S0304-4076(98)00084-0
(of terms that depend on their neighbours in space).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from qsim.estimators.pooling.pieces import peaks, pieces
from qsim.estimators.pooling.profile import Profile
from qsim.parameters import B

# voxels along an edge of a block, and share of the blocks that is kept
SIZE, SHARE = 3, 0.5
# axes of the space of series along which the scatter is looked at
_AXES = 4
# whole blocks inside the mask below which there are too few to say how well they know B, and per voxel of the mask
LEAST, _OF_VOXELS = 500, 0.1
# what is left of the pull of the kinks is not in the slopes
_UNSAID = 1.4
# standard errors of B over which the derivative of the slope is measured, on either side; and the most that one side
# counts over what both say together
_REACH, _ONE_SIDED = 2.0, 3.0


@dataclass(frozen=True, slots=True)
class Blocks:
    """The most homogeneous blocks of all that lie wholly inside the mask.

    Attributes:
        y: their means, each over its own noise [1].
        chosen: where they begin, per slice.
        scatter: scatter of the voxels of the chosen blocks over that of the noise, mean over them, in all images: 1 if
            each holds one tissue, and the noise is as given [1].
    """

    y: Float[Tensor, "n m"]
    chosen: Bool[Tensor, "z h w"]
    scatter: float


def whole_blocks(where: Bool[Tensor, "*space"], size: int = SIZE) -> Bool[Tensor, "z h w"] | None:
    """Where blocks begin that lie wholly inside the mask; None where there is no plane to hold one.

    Args:
        where: voxels that can be used; a slice is its last two axes.
    """
    if where.ndim < 2 or min(where.shape[-2:]) < size:
        return None
    inside = where.reshape(-1, *where.shape[-2:]).float()
    return functional.avg_pool2d(inside, size, 1) > 1 - 0.5 / size**2


def enough_blocks(where: Bool[Tensor, "*space"]) -> bool:
    """Whether 500 blocks lie wholly inside the mask, and one or more for ten voxels of it."""
    whole = whole_blocks(where)
    return whole is not None and int(whole.sum()) >= max(LEAST, _OF_VOXELS * int(where.sum()))


def homogeneous_blocks(
    images: Float[Tensor, "n *space"],
    where: Bool[Tensor, "*space"],
    sigma: Float[Tensor, " v_or_1"],
    size: int = SIZE,
    share: float = SHARE,
) -> Blocks:
    """Means of the blocks that vary least.

    Args:
        images: the series [units of A].
        where: voxels that share B.
        sigma: noise SD of these voxels, or of all [units of A].
    """
    whole = whole_blocks(where, size)
    assert whole is not None
    assert bool(whole.any())
    planes = where.reshape(-1, *where.shape[-2:])
    slices = images.reshape(len(images), *planes.shape)
    weight = torch.zeros(planes.shape, dtype=torch.float64, device=images.device)
    weight[planes] = sigma.pow(-2).to(images.device)
    # one slice at a time: the sums of squares need float64
    there = [z for z in range(len(planes)) if bool(whole[z].any())]
    totals = torch.cat([_sums(weight[z][None], size)[0][whole[z]] for z in there])
    series = [torch.where(planes[z], slices[:, z], 0.0).double() for z in there]
    means = torch.cat(
        [_sums(y * weight[z], size)[:, whole[z]] for y, z in zip(series, there, strict=True)], dim=1
    ).div_(totals.sqrt())
    # eigenvectors come in ascending order
    axes = torch.linalg.eigh(means @ means.T).eigenvectors[:, -_AXES:]
    scatter = torch.cat(
        [_scatter(torch.tensordot(axes.T, y, 1), weight[z], size)[whole[z]] for y, z in zip(series, there, strict=True)]
    )
    kept = scatter <= scatter.kthvalue(max(1, round(share * len(scatter)))).values
    chosen = whole.clone()
    chosen[whole] = kept
    squares = torch.cat(
        [_sums((y.square().sum(0) * weight[z])[None], size)[0][whole[z]] for y, z in zip(series, there, strict=True)]
    )
    means = means[:, kept]
    every = float((squares[kept] - means.square().sum(0)).mean()) / (len(images) * (size**2 - 1))
    return Blocks(means.float(), chosen, every)


def _scatter(y: Float[Tensor, "k h w"], weight: Float[Tensor, "h w"], size: int) -> Float[Tensor, "h2 w2"]:
    """Sum of squares about the mean of each block; NaN or inf where it holds no voxel."""
    squares = _sums((y.square().sum(0) * weight)[None], size)[0]
    return squares - _sums(y * weight, size).square().sum(0) / _sums(weight[None], size)[0]


def _sums(y: Float[Tensor, "n h w"], size: int) -> Float[Tensor, "n h2 w2"]:
    return functional.avg_pool2d(y[:, None], size, 1)[:, 0] * size**2


def pool_blocks(times: tuple[float, ...], signed: bool, blocks: Blocks, size: int = SIZE) -> tuple[float, float, bool]:
    """B, its variance, and whether the climb converged.

    Args:
        times: inversion times [s].
        signed: the series keeps its sign.
    """
    profile = Profile(times, signed, blocks.y)
    point, converged = profile.maximise()

    def slopes(b: float) -> Float[Tensor, " m"]:
        return peaks(pieces(times, signed, b, blocks.y.device), profile.y).slope.double()

    if not point.curvature < 0:
        return point.b, torch.inf, converged
    reach = _REACH * (2 / -point.curvature) ** 0.5
    low, high = max(point.b - reach, 0.0), min(point.b + reach, B.upper)
    bend = float((slopes(high).sum() - slopes(low).sum()) / (high - low))
    bend = bend if bend < 0 else point.curvature
    spread = _variance_of_sum(slopes(point.b), blocks.chosen, size) ** 0.5
    sd = spread / -bend
    low, high = max(point.b - _REACH * sd, 0.0), min(point.b + _REACH * sd, B.upper)
    # at an end of the range of B there is no other side
    sides = [float(slopes(end).sum()) / (end - point.b) for end in (low, high) if end != point.b]
    # where the profile rises again on a side, that side is as slow as may be
    slowest = max((bend / min(side, bend / _ONE_SIDED) for side in sides), default=1.0)
    return point.b, _UNSAID * (max(slowest, 1.0) * sd) ** 2, converged


def _variance_of_sum(slopes: Float[Tensor, " m"], chosen: Bool[Tensor, "z h w"], size: int) -> float:
    """Variance of the sum of the slopes of overlapping blocks."""
    scores = torch.zeros(chosen.shape, dtype=torch.float64, device=slopes.device)
    scores[chosen] = slopes
    # blocks share voxels if they begin fewer than `size` steps apart
    width = 2 * size - 1
    around = functional.avg_pool2d(scores[:, None], width, 1, padding=size - 1)[:, 0] * width**2
    # of few blocks the sum over pairs may come out too small, even negative: no less than if they were independent
    return max(float((scores * around).sum()), float(scores.square().sum()))
