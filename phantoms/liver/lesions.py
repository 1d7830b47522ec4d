"""Focal lesions: ellipsoids in the liver, placed where they have room."""

from dataclasses import dataclass

import numpy as np

from phantoms.drawn.outlines import polygon_distance
from phantoms.liver.plane import Plane
from phantoms.liver.subject import Subject

# free parenchyma around a lesion [mm], and how many places are tried
_AROUND_MM, _TRIES = 4.0, 400


@dataclass(frozen=True, slots=True)
class Lesion:
    """An ellipsoid in the liver: middle (y, x, z) and half axes along them [mm]."""

    middle_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]


def draw_lesion(
    cast: Subject, rng: np.random.Generator, within_mm: float, radii_mm: tuple[float, float]
) -> Lesion | None:
    """Draw one lesion in the image; None where even the least finds no room.

    Args:
        cast: whose.
        rng: the subject's.
        within_mm: how far from the middle slice it may lie.
        radii_mm: least and largest mean radius: it is smaller than drawn where only that has room.
    """
    z = cast.numbers["place.z"] + float(rng.uniform(-1, 1)) * within_mm
    radius = float(rng.uniform(*radii_mm))
    stretch = np.exp(rng.uniform(-0.15, 0.15, 3))
    stretch /= np.prod(stretch) ** (1 / 3)
    plane = Plane(cast, z)
    outline, cavity = plane.liver(), plane.cavity()
    y, x = (rng.uniform(a, b, _TRIES) for a, b in zip(outline.min(axis=0), outline.max(axis=0), strict=True))
    depth = -np.maximum(polygon_distance(outline, y, x), polygon_distance(cavity, y, x))
    # the largest mean radius that each place has room for
    room = (depth - _AROUND_MM) / stretch.max()
    if room.max() < radii_mm[0]:
        return None
    # uniform among the places that hold all of it; the deepest place where none does
    fits = np.flatnonzero(room >= radius)
    i = int(fits[0] if len(fits) else room.argmax())
    half = min(radius, float(room[i])) * stretch
    return Lesion((float(y[i]), float(x[i]), z), (float(half[0]), float(half[1]), float(half[2])))
