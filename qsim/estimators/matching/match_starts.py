"""Where the descent from a dictionary starts: the best atom of a voxel and the next local maxima over the grid."""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.projection.decay_search import highest

# atoms whose inner products are compared by their lowest eight bits
BLOCK = 256
# local maxima of the match that are followed, and how near in height to the best one, as a part of it
_STARTS = 3
_NEAR = 0.95


def starts(
    atoms: Float[Tensor, "g r"], y: Float[Tensor, "r v"], shape: tuple[int, ...]
) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"]]:
    """The best atom of every voxel, then the next local maxima over the grid that come near it: the numbers of the
    voxels and of the atoms. An atom is a maximum if no neighbour along an axis is better: on an oblique ridge there are
    several, which is welcome, since the modulus has kinks there.
    """
    fit = (atoms @ y).clamp_min_(0)
    best, top = _best(fit)
    every = torch.arange(y.shape[1], device=y.device)
    cube = fit[: prod(shape)].reshape(*shape, -1)
    around = cube.clone()
    for number, length in enumerate(shape):
        for here, beside in ((0, 1), (1, 0)):
            into = around.narrow(number, here, length - 1)
            torch.maximum(into, cube.narrow(number, beside, length - 1), out=into)
    # where nothing explains anything there is one start
    near = (_NEAR * top).clamp_min(torch.finfo(fit.dtype).tiny)
    peaks = ((cube >= around) & (cube >= near)).flatten(0, -2)
    peaks[best, every] = False
    node, owner = torch.nonzero(peaks).T
    # by voxel, and in each by height
    order = fit[node, owner].argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    node, owner = node[order], owner[order]
    counts = torch.bincount(owner, minlength=y.shape[1])
    rank = torch.arange(len(owner), device=y.device) - (counts.cumsum(0) - counts)[owner]
    kept = rank < _STARTS - 1
    return torch.cat((every, owner[kept])), torch.cat((best, node[kept]))


def _best(fit: Float[Tensor, "g v"]) -> tuple[Int[Tensor, " v"], Float[Tensor, " v"]]:
    """Number and height of the best atom: in each block by `highest`, whose numbers take few bits there, then of the
    blocks.
    """
    block = min(BLOCK, len(fit))
    inside, top = zip(*(highest(part) for part in fit.split(block)), strict=True)
    height, first = torch.stack(top).max(0)
    return first * block + torch.stack(inside).gather(0, first[None])[0], height
