"""What a readout does to the magnetisation that it finds: a train of echoes, affine in Mz."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite, isqrt, pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.errors import InputError
from qsim.kspace.order import Acquisition
from qsim.signals.epg import Flip
from qsim.signals.spins import Spins

# the pulses of a readout at one position through the slice
Flips = tuple[Flip, ...]

# longest plausible time between the pulses of one train [s]: above it, milliseconds were meant
_LONGEST = 1.0


@dataclass(frozen=True, slots=True)
class Train:
    """A train of echoes as an affine map of the longitudinal magnetisation before it.

        signal of echo e = gain_e Mz + offset_e,    Mz after the train = mz_gain Mz + mz_offset      [M0]

    Attributes:
        gain, offset: real, or complex where the echoes have a phase.
        mz_gain, mz_offset: no transverse magnetisation outlives the train.
    """

    gain: Inexact[Tensor, "e *space"]
    offset: Inexact[Tensor, "e *space"]
    mz_gain: Float[Tensor, "*space"]
    mz_offset: Float[Tensor, "*space"]


@runtime_checkable
class Readout(Protocol):
    """A way to read Mz."""

    @property
    def kind(self) -> str:
        """Its name in configs."""
        ...

    @property
    def duration(self) -> float:
        """From Mz before the train to Mz after it [s]."""
        ...

    @property
    def time_of_centre(self) -> float:
        """From Mz before the train to the echo that measures the centre of k-space [s]."""
        ...

    @property
    def n_echoes(self) -> int:
        """Echoes of a train."""
        ...

    @property
    def acquisition(self) -> Acquisition:
        """Which of them measures which line of k-space."""
        ...

    def train(self, spins: Spins) -> Train:
        """Its echoes, and what it leaves."""
        ...

    def __hash__(self) -> int:
        """It is a value."""
        ...


def check_flip(name: str, angle: float) -> None:
    """Raises: ValueError, starting with the name, unless 0 < angle <= pi."""
    if not 0 < angle <= pi:
        remedy = f"; {angle:g} degrees are {angle * pi / 180:.4g} rad" if angle > pi and isfinite(angle) else ""
        raise ValueError(f"{name} must lie in (0, pi] rad, got {angle:g}{remedy}")


def check_interval(name: str, time: float) -> None:
    """Refuse what is no time between the pulses of a train.

    Raises: ValueError, starting with the name, if it is not above 0 s, or above 1 s, which must be milliseconds.
    """
    if not (isfinite(time) and time > 0):
        raise ValueError(f"{name} must be above 0 s, got {time:g}")
    if time > _LONGEST:
        raise ValueError(f"{name} must be in seconds, got {time:g}; divide by 1000 if these are milliseconds")


def slice_train(positions: Iterable[Flips], positions_in_slice: float, at: Callable[[Flips], Train]) -> Train:
    """The train of a slice from the pulses at positions through it.

    Signals add up; their unit is that of a perfect slab of the nominal thickness. Mz is averaged with the weight that
    each position has in the signal, which is how the next train sees it; where no position has any (rel_b1 = 0), with
    equal weights.

    Args:
        positions: the pulses at each of equally spaced positions.
        positions_in_slice: how many of them the nominal thickness covers.
        at: the train that pulses make.
    Assumes: Mz before the train is the same through the slice (exact after full recovery; else a mean of the slice).
    """
    total: tuple[Tensor, ...] | None = None
    n = 0
    # the two sides of a symmetric slice are the same
    for flips, count in Counter(positions).items():
        train = at(flips)
        weight, mz = _added(train.gain.abs()), (train.mz_gain, train.mz_offset)
        one = (train.gain, train.offset, weight, *(weight * x for x in mz), *mz)
        parts = tuple(count * part for part in one)
        total = parts if total is None else tuple(x + y for x, y in zip(total, parts, strict=True))
        n += count
    if total is None:
        raise InputError("slice_profile: has no position; give at least one")
    gain, offset, weight, mz_gain, mz_offset, plain_gain, plain_offset = total
    seen = weight > 0
    # a divisor of 1 keeps the derivatives of what is not taken finite
    divisor = torch.where(seen, weight, 1.0)
    return Train(
        gain / positions_in_slice,
        offset / positions_in_slice,
        torch.where(seen, mz_gain / divisor, plain_gain / n),
        torch.where(seen, mz_offset / divisor, plain_offset / n),
    )


def _added(maps: Float[Tensor, "e *space"]) -> Float[Tensor, "*space"]:
    """Their sum, one after the other: `torch.sum` adds in an order that depends on where a voxel lies."""
    total = maps[0].clone()
    for one in maps[1:]:
        total += one
    return total


def power(x: Float[Tensor, "*space"], n: int) -> Float[Tensor, "*space"]:
    """x^n by squaring, n >= 0: `torch.pow` rounds by where a voxel lies in memory."""
    result = torch.ones_like(x)
    while n:
        if n % 2:
            result = result * x
        x, n = x * x, n // 2
    return result


def powers(
    x: Float[Tensor, "*space"], n: int, first: Float[Tensor, "*space"] | float = 1.0
) -> Float[Tensor, "n *space"]:
    """first x^0, first x^1, ..., first x^(n - 1), for any sign of x: two short lists, and one pass over n maps."""
    width = isqrt(n - 1) + 1
    fine = _products(torch.ones_like(x), x, width)
    coarse = _products(first * torch.ones_like(x), fine[-1] * x, -(-n // width))
    return (coarse[:, None] * fine).flatten(0, 1)[:n]


def _products(first: Tensor, factor: Tensor, n: int) -> Float[Tensor, "n *space"]:
    known = [first]
    for _ in range(n - 1):
        known.append(known[-1] * factor)
    return torch.stack(known)
