"""Shapes of lesions and structures on the voxel grid: points, lines, squares and tumours.

A shape is the share that it covers of each voxel of a small block. Points, lines and squares cover whole voxels. A
tumour is an ellipsoid of random axes and orientation (an ellipse in a slice) whose surface is uneven: with q = p in
the frame of its axes over its half lengths, the point p lies inside where

    |q| <= 1 + irregularity g(q / |q|),   g(u) = (1 / K) sum_k cos(n_k . u + phase_k),

n_k normal with SD 3 (a few bumps over the surface); |g| <= 1. Its coverage is counted on 4 points per voxel and axis.
"""

from math import ceil, isfinite
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from qsim.values import value

Coverage = Float[np.ndarray, "*block"]
Within = tuple[str, ...]
# waves of a tumour's surface, SD of their numbers, and points per voxel along an axis
_WAVES, _BUMPS, _FINE = 6, 3.0, 4


@value
class Point:
    """A single voxel.

    Attributes:
        tissue: what it is made of.
        within: tissues that it may replace; empty: all of the phantom's.
        count: how many.
    """

    shape: Literal["point"] = "point"
    tissue: str
    within: Within = ()
    count: int = 1

    def __post_init__(self) -> None:
        _check(self.tissue, self.within, self.count)

    def draw(self, rng: np.random.Generator, spacing_mm: tuple[float, ...], plane: tuple[int, ...]) -> Coverage:
        """Coverage of its block."""
        del rng, plane
        return np.ones((1,) * len(spacing_mm), dtype=np.float32)


@value
class Line:
    """A straight line along an axis of the volume.

    Attributes:
        tissue, within, count: as of a point.
        length, width: voxels along it, and across it in the slice; it is one voxel deep.
        axis: along which it lies; one of the slice's at random if not given.
    Source: sabidussi2021, section 5.1.2: 6 x 1 voxels.
    """

    shape: Literal["line"] = "line"
    tissue: str
    within: Within = ()
    count: int = 1
    length: int = 6
    width: int = 1
    axis: Literal[0, 1, 2] | None = None

    def __post_init__(self) -> None:
        _check(self.tissue, self.within, self.count)
        for name, number in (("length", self.length), ("width", self.width)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1 voxel, got {number}")

    def draw(self, rng: np.random.Generator, spacing_mm: tuple[float, ...], plane: tuple[int, ...]) -> Coverage:
        """Coverage of its block."""
        along = int(rng.choice(plane)) if self.axis is None else self.axis
        across = next(axis for axis in plane if axis != along)
        extent = [1] * len(spacing_mm)
        extent[along], extent[across] = self.length, self.width
        return np.ones(extent, dtype=np.float32)


@value
class Square:
    """A square or box of whole voxels.

    Attributes:
        tissue, within, count: as of a point.
        extent: voxels along the two axes of the slice, one voxel deep; or along the three axes of the volume.
    """

    shape: Literal["square"] = "square"
    tissue: str
    within: Within = ()
    count: int = 1
    extent: tuple[int, int] | tuple[int, int, int] = (20, 20)

    def __post_init__(self) -> None:
        _check(self.tissue, self.within, self.count)
        if min(self.extent) < 1:
            raise ValueError(f"extent must be at least 1 voxel along every axis, got {list(self.extent)}")

    def draw(self, rng: np.random.Generator, spacing_mm: tuple[float, ...], plane: tuple[int, ...]) -> Coverage:
        """Coverage of its block."""
        del rng
        axes = plane if len(self.extent) == 2 else range(len(spacing_mm))
        extent = [1] * len(spacing_mm)
        for axis, voxels in zip(axes, self.extent, strict=True):
            extent[axis] = voxels
        return np.ones(extent, dtype=np.float32)


@value
class Tumour:
    """An irregular ellipsoid with partial volume at its border; an ellipse where structures are put slice by slice.

    Attributes:
        tissue, within, count: as of a point.
        diameter_mm: smallest and largest, uniform between them; of the ball, or disc, of the same size as the ellipsoid
            before its surface is made uneven [mm].
        elongation: the axes differ from the diameter by up to this factor, at random [1].
        irregularity: how far the surface departs from the ellipsoid, at most, as a share of the radius [1].
    """

    shape: Literal["tumour"] = "tumour"
    tissue: str
    within: Within = ()
    count: int = 1
    diameter_mm: tuple[float, float] = (8.0, 20.0)
    elongation: float = 1.4
    irregularity: float = 0.25

    def __post_init__(self) -> None:
        _check(self.tissue, self.within, self.count)
        low, high = self.diameter_mm
        if not (0 < low <= high and isfinite(high)):
            raise ValueError(f"diameter_mm must be above 0, the smallest first, got {list(self.diameter_mm)}")
        if not (1 <= self.elongation <= 10):
            raise ValueError(f"elongation must lie between 1 and 10, got {self.elongation}")
        if not 0 <= self.irregularity < 1:
            raise ValueError(f"irregularity must be at least 0 and below 1, got {self.irregularity}")

    def draw(self, rng: np.random.Generator, spacing_mm: tuple[float, ...], plane: tuple[int, ...]) -> Coverage:
        """Coverage of its block."""
        n = len(plane)
        radius = rng.uniform(*self.diameter_mm) / 2
        ratios = self.elongation ** rng.uniform(-1, 1, n)
        half_mm = radius * ratios / np.prod(ratios) ** (1 / n)
        turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
        waves, phases = rng.normal(scale=_BUMPS, size=(_WAVES, n)), rng.uniform(0, 2 * np.pi, _WAVES)
        # the centre lies anywhere in its voxel
        shift = rng.uniform(-0.5, 0.5, n)

        # of the largest ellipsoid that it can fill, along each axis
        reach = np.linalg.norm(turn * half_mm, axis=1) * (1 + self.irregularity)
        sides, voxels = [], []
        for i, axis in enumerate(plane):
            n_side = ceil(reach[i] / spacing_mm[axis] + 0.5)
            voxels.append(2 * n_side + 1)
            fine = (np.arange(voxels[i] * _FINE) + 0.5) / _FINE - n_side - 0.5
            sides.append((fine - shift[i]) * spacing_mm[axis])
        coverage = np.empty(voxels)
        for at in range(voxels[0]):
            # layer by layer: the points of a large tumour are many
            layer = [sides[0][at * _FINE : (at + 1) * _FINE], *sides[1:]]
            points = np.stack(np.meshgrid(*layer, indexing="ij"), axis=-1)
            inside = self._inside(points @ turn / half_mm, waves, phases)
            split = [size for side in voxels[1:] for size in (side, _FINE)]
            coverage[at] = inside.reshape([_FINE, *split]).mean(axis=(0, *range(2, 2 * n, 2)))
        whole = [1] * len(spacing_mm)
        for axis, side in zip(plane, coverage.shape, strict=True):
            whole[axis] = side
        return _trimmed(coverage.reshape(whole)).astype(np.float32)

    def _inside(
        self, q: Float[np.ndarray, "*points n"], waves: Float[np.ndarray, "k n"], phases: Float[np.ndarray, " k"]
    ) -> Bool[np.ndarray, "*points"]:
        """Whether points in the frame of the axes lie inside; the waves count near the surface only."""
        distance = np.linalg.norm(q, axis=-1)
        inside = distance <= 1 - self.irregularity
        near = ~inside & (distance <= 1 + self.irregularity)
        # a centre with |q| = 0 is inside already
        direction = q[near] / distance[near][:, None]
        uneven = np.cos(direction @ waves.T + phases).mean(axis=-1)
        inside[near] = distance[near] <= 1 + self.irregularity * uneven
        return np.asarray(inside)


STRUCTURES = (Square, Tumour, Point, Line)
AnyStructure = Square | Tumour | Point | Line


def _trimmed(coverage: Float[np.ndarray, "*block"]) -> Float[np.ndarray, "*trimmed"]:
    """Without the empty borders; at least one voxel."""
    where = np.argwhere(coverage > 0)
    if not len(where):
        # thinner than the points of a voxel are apart: the voxel of its centre
        return np.full((1,) * coverage.ndim, 1 / _FINE**coverage.ndim)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    return coverage[tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))]


def _check(tissue: str, within: Within, count: int) -> None:
    if not tissue:
        raise ValueError("tissue is empty; name one of the tissue table")
    if tissue in within:
        raise ValueError(f"within: {tissue} is what the structure is made of, so nothing would change there")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
