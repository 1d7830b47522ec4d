"""What artefacts share that are a factor on lines of k-space.

Losing samples loses energy (Parseval): what is left in the image is what was in the samples that are kept.
The severity of every artefact of the stage SAMPLING is the share of k-space that it takes away [1]: 0 if nothing.
In 3D a line of the axis is the whole plane of samples with that k.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import floor

import numpy as np
import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.base import check_axis

# of a product of two drawn numbers, so that 10 x 0.7 counts as 7
ROUNDING = 1e-12


def half_width(n: int, fraction: float) -> int:
    """The largest |k| of the band |k| <= fraction n / 2: symmetric, so that conjugate pairs stay together."""
    return floor(fraction * n / 2 * (1 + ROUNDING))


def band(n: int, half: int) -> range:
    """k of the lines with |k| <= half, on an axis of n: all of them from half = n // 2 on."""
    return range(max(-half, -(n // 2)), min(half, (n - 1) // 2) + 1)


def centre(n: int, fraction: float) -> range:
    """k of that fraction of the n lines, rounded down, nearest to k = 0; of an even number one more is negative."""
    count = floor(fraction * n * (1 + ROUNDING))
    return range(-(count // 2), (count + 1) // 2)


def drawn_axis(axis: int | None, space: tuple[int, ...], rng: np.random.Generator, shortest: int = 2) -> int:
    """The axis counted from 0; where None, one of those with at least `shortest` lines, each as likely.

    Raises: ValueError if there is no such axis.
    """
    if axis is not None:
        return check_axis("axis", axis, space)
    able = [a for a, n in enumerate(space) if n >= shortest]
    if not able:
        raise ValueError(f"axis: none of {space} voxels has {shortest} lines to choose from")
    return able[int(rng.integers(len(able)))]


def lines_with(n: int, lines: Iterable[int], value: float | int, rest: float | int) -> Float[Tensor, " n"]:
    """A weight for each line, as the FFT orders them: `value` at some k, `rest` at all others."""
    weights = torch.full((n,), rest, dtype=torch.float64)
    weights[[k % n for k in lines]] = value
    return weights


def along_axes(acquired: Acquired, weights: Mapping[int, Tensor]) -> list[Tensor]:
    """Weights along axes, each to be broadcast over the values."""
    return [acquired.along(w, axis) for axis, w in sorted(weights.items())]


def weighted(acquired: Acquired, axes: Collection[int], factors: Sequence[Inexact[Tensor, "..."]]) -> Acquired:
    """Samples times factors, in the k-space of some axes.

    One factor after the other: their product over all axes would be as large as the image, and slow where the
    transforms have left the axes in another order in memory.
    """
    there = acquired.brought(kspace=axes)
    first, *others = factors
    # a transform is a tensor of its own, to be changed in place
    own = there.values is not acquired.values
    values = there.values.mul_(first) if own else there.values * first
    for factor in others:
        values = values.mul_(factor)
    return there.with_values(values)
