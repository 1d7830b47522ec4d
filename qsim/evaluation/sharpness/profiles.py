"""Profiles: straight lines across a boundary, and what a map holds along them."""

from dataclasses import dataclass
from itertools import product
from math import sqrt
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

# voxels around a profile that its cubic spline is made of: what is farther counts by 0.27^8 = 3e-5
_AROUND = 8


@dataclass(frozen=True, slots=True)
class Profile:
    """A straight line across a boundary, from the inside tissue (negative positions) to the outside one.

    Attributes:
        centre: where it crosses the boundary [voxels, whole numbers at their centres].
        direction: unit vector along the line, in lengths and not in voxels [1].
        spacing_mm: voxel size along each axis [mm].
        step_mm: between samples [mm].
        before, after: samples on the inside and on the outside of the centre.
    """

    centre: tuple[float, ...]
    direction: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    step_mm: float
    before: int
    after: int

    @property
    def positions(self) -> Float[np.ndarray, " s"]:
        """Distances from the centre, ascending [mm]."""
        return self.step_mm * np.arange(-self.before, self.after + 1)

    @property
    def voxel_mm(self) -> float:
        """Size of a voxel along the line [mm]: sqrt(sum_i (n_i h_i)^2)."""
        return sqrt(sum((n * h) ** 2 for n, h in zip(self.direction, self.spacing_mm, strict=True)))

    @property
    def coordinates(self) -> Float[np.ndarray, "axis s"]:
        """Places of the samples [voxels]."""
        along = np.array(self.direction) / np.array(self.spacing_mm)
        return np.array(self.centre)[:, None] + along[:, None] * self.positions


def sample(
    values: Float[np.ndarray, "*space"], profile: Profile, *, order: Literal[1, 3] = 3
) -> Float[np.ndarray, " s"]:
    """Values of a map along a profile, float64, by a cubic spline or linearly; NaN where a voxel needed is not finite.

    Linear interpolation (that of the paper) is, on average over the places of the boundary between the voxels, a blur
    by a triangle as wide as two voxels, which adds h^2 / 6 to the variance of an edge: an edge of SD 1 voxel looks
    8 % wider, one of 0.6 voxels 21 %. A cubic spline adds nothing in that order, so it is the default: it widens an
    edge of SD 1 voxel by 0.3 %, of 0.8 by 0.9 %, of 0.6, where the voxels hardly tell how wide it is, by 3.4 %.

    Args:
        values: the map, of the shape of the labels that placed the profile.
        order: 3 cubic spline, 1 linear.

    Raises: ValueError if the profile leaves the map.
    """
    from scipy.ndimage import distance_transform_edt, map_coordinates  # type: ignore[attr-defined]

    if values.ndim != len(profile.centre):
        raise ValueError(f"values has {values.ndim} axes, the profile {len(profile.centre)}; they must be the same")
    where = profile.coordinates
    last = np.array(values.shape)[:, None] - 1
    if (where < 0).any() or (where > last).any():
        raise ValueError(f"values of shape {values.shape} end before the profile does, which is centred at voxel "
                         f"{tuple(round(c, 1) for c in profile.centre)}")  # fmt: skip
    low = np.maximum(np.floor(where.min(axis=1)).astype(int) - _AROUND, 0)
    high = np.minimum(np.ceil(where.max(axis=1)).astype(int) + _AROUND, last[:, 0]) + 1
    part = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float64)
    where = where - low[:, None]
    unknown = ~np.isfinite(part)
    if unknown.all():
        return np.full(where.shape[1], np.nan)
    if unknown.any():
        # the spline is made of all voxels: those outside a sample's own neighbours count little, but not NaN times 0
        nearest = distance_transform_edt(
            unknown, sampling=profile.spacing_mm, return_distances=False, return_indices=True
        )
        part = part[tuple(nearest)]
    sampled = map_coordinates(part, where, order=order, mode="mirror")
    return np.where(_touched(unknown, where, order), np.nan, sampled)


def _touched(
    unknown: Bool[np.ndarray, "*space"], where: Float[np.ndarray, "axis s"], order: int
) -> Bool[np.ndarray, " s"]:
    """Whether a voxel with a weight in the interpolation at a place is not known."""
    base, last = np.floor(where).astype(int), np.array(unknown.shape)[:, None] - 1
    touched = np.zeros(where.shape[1], dtype=bool)
    for offset in product(range(-(order // 2), order // 2 + 2), repeat=len(where)):
        at = base + np.array(offset)[:, None]
        weighs = (np.abs(at - where) < (order + 1) / 2).all(axis=0)
        touched |= weighs & unknown[tuple(np.minimum(np.maximum(at, 0), last))]
    return touched
