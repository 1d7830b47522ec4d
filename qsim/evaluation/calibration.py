"""Intervals that hold: a factor of the SD, found on subjects who took no part in the training, by the SD stated.

One factor for all voxels is right on average only: an SD that is too large in the liver and too small in fluid would
stay so. Voxels are therefore put in groups of like SD, and each group has a factor of its own,

    factor = r_(k) / z,    k = ceil((n + 1) level),    r = |error| / SD of the group in ascending order,
                           z = 1.96 at 95 %,

log-linear in the SD between the groups' medians, constant beyond. What comes out never falls as the stated SD rises, so
that the order of the voxels is kept.

Source: split conformal prediction: Lei et al. 2018, doi:10.1080/01621459.2017.1307116, section 5.2; by groups: Vovk
2012, arXiv:1209.2673.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import TypeGuard

import numpy as np
from jaxtyping import Float

from qsim.evaluation.uncertainty import half_width

_GROUPS = 12
# voxels of a group at least
_LEAST = 100


@dataclass(frozen=True, slots=True)
class SdCalibration:
    """The factor of an SD, by the SD.

    Attributes:
        sd: medians of the groups, rising [s].
        factor: of each.
    """

    sd: tuple[float, ...]
    factor: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sd or len(self.sd) != len(self.factor):
            raise ValueError(f"sd: {len(self.sd)} for {len(self.factor)} factors; give as many, and at least one")
        if not all(isfinite(each) and each > 0 for each in (*self.sd, *self.factor)):
            raise ValueError("sd: must be finite and positive, and so must be factor; leave out groups that are not")
        if any(b <= a for a, b in zip(self.sd, self.sd[1:], strict=False)):
            raise ValueError(f"sd: must rise, got {list(self.sd)}; sort the groups, with their factors")

    def __call__(self, sd: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
        """Factors of these SDs; NaN where an SD is NaN."""
        # infinity has the factor of the largest SDs
        at = np.log(np.where(sd > 0, sd, self.sd[0]))
        found = np.exp(np.interp(at, np.log(self.sd), np.log(self.factor)))
        return np.where(np.isnan(sd), np.nan, found)


Factor = float | SdCalibration


def factor_of(given: object) -> Factor:
    """A factor as a file has it: a number, or `{"sd": [...], "factor": [...]}`.

    Raises: ValueError if it is neither, or not finite and positive.
    """
    if isinstance(given, Mapping) and {*given} == {"sd", "factor"}:
        sides = [given["sd"], given["factor"]]
        if all(isinstance(side, list | tuple) and all(_number(each) for each in side) for side in sides):
            return SdCalibration(*(tuple(float(each) for each in side) for side in sides))
    if _number(given) and isfinite(given) and given > 0:
        return float(given)
    raise ValueError(f"wanted a positive number, or sd and factor as lists of as many, got {given!r}")


def factor_json(factor: Factor) -> float | dict[str, list[float]]:
    """As `factor_of` reads it."""
    if isinstance(factor, SdCalibration):
        return {"sd": list(factor.sd), "factor": list(factor.factor)}
    return float(factor)


def _number(given: object) -> TypeGuard[float]:
    return isinstance(given, int | float) and not isinstance(given, bool)


def calibrate_sd(
    error: Float[np.ndarray, " v"], sd: Float[np.ndarray, " v"], level: float = 0.95, groups: int = _GROUPS
) -> SdCalibration:
    """Factors with which the interval of that level holds in every group of voxels of like SD.

    Args:
        error: of voxels of held-out subjects [s].
        sd: as stated; voxels without a finite one above 0 are left out [s].
        groups: at most; each has 100 voxels or more.
    Raises: ValueError if there are too few voxels for one group, or an argument is out of its range.
    """
    if error.shape != sd.shape:
        raise ValueError(f"sd: {sd.size} of {error.size} errors; give one for each")
    if not 0 < level < 1:
        raise ValueError(f"level: must lie between 0 and 1, got {level:g}; 0.95 is usual")
    if groups < 1:
        raise ValueError(f"groups: must be at least 1, got {groups}; 1 finds one factor for all voxels")
    known = np.isfinite(error) & np.isfinite(sd) & (sd > 0)
    error, sd = np.abs(error[known]), sd[known]
    if error.size < _LEAST:
        raise ValueError(f"error: {error.size} voxels with an SD; a calibration needs at least {_LEAST}")
    order = np.argsort(sd, kind="stable")
    parts = np.array_split(order, max(1, min(groups, error.size // _LEAST)))
    knots: list[float] = []
    factors: list[float] = []
    for part in parts:
        median = float(np.median(sd[part]))
        ratio = error[part] / sd[part]
        k = min(ceil((part.size + 1) * level), part.size)
        factor = float(np.partition(ratio, k - 1)[k - 1]) / float(half_width(1.0, level))
        # errors of 0 would leave no interval at all
        factor = max(factor, 1e-6)
        if knots and median <= knots[-1]:
            continue
        # what comes out must not fall
        if knots:
            factor = max(factor, factors[-1] * knots[-1] / median)
        knots.append(median)
        factors.append(factor)
    return SdCalibration(tuple(knots), tuple(factors))
