"""Where the spheres are, and how much of each voxel they fill.

Frame of the phantom: u to its left, v to its top, w through the plates from the T1 to the PD array; 0 is the middle of
the body. Each of the three arrays has fourteen spheres in one plane,

    spheres 1 to 10    (u, v) = 50 mm (sin a, cos a),   a = 36 degrees (number - 1)
    spheres 11 to 14   (u, v) = (-20, 20), (20, 20), (20, -20), (-20, -20) mm
    plane              w = -56.5 (T1), -16.5 (T2), 23.5 (PD) mm

and the body is a ball of water of radius 100 mm. A sphere is a ball of solution in a plastic wall, which is dark.

Source: the positions, the radius of the body and the outer diameter of 20 mm are the nominal numbers of the software of
NIST (MRIStandards/PhantomViewer, SystemPhantom.py), which lays its regions by them; body: Stupic et al. 2021,
doi:10.1002/mrm.28779. Approximate: the inner diameter of 15 mm, for which no drawing was at hand.
Not there: plates and posts, the 57 fiducial spheres, resolution and slice-profile insets, thermometer, filling port.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from jaxtyping import Bool, Float

from phantoms.shapes.overlap import ball_boxes
from qsim.system_phantom import Array, sphere_names

ARRAYS: tuple[Array, ...] = ("t1", "t2", "pd")
BODY_RADIUS_MM = 100.0
PLANE_MM: dict[Array, float] = {"t1": -56.5, "t2": -16.5, "pd": 23.5}
_RING_MM = 50.0
_RING = 10
_SQUARE_MM = 20.0

Edges = tuple[Float[np.ndarray, "_"], ...]
"""Borders of the voxels along u, v and w [mm]. Along w: lower and upper border of each slice in turn."""


@dataclass(frozen=True, slots=True)
class Sphere:
    """One sphere. Attributes: centre_mm: u, v, w [mm]."""

    name: str
    centre_mm: tuple[float, float, float]


def spheres(arrays: Iterable[Array]) -> tuple[Sphere, ...]:
    """The spheres of some arrays, in the order of their numbers."""
    angles = [2 * pi * number / _RING for number in range(_RING)]
    places = [(_RING_MM * sin(angle), _RING_MM * cos(angle)) for angle in angles]
    d = _SQUARE_MM
    places += [(-d, d), (d, d), (d, -d), (-d, -d)]
    return tuple(
        Sphere(name, (u, v, PLANE_MM[array]))
        for array in arrays
        for name, (u, v) in zip(sphere_names(array), places, strict=True)
    )


def ball_share(edges: Edges, centre_mm: tuple[float, float, float], radius_mm: float) -> Float[np.ndarray, "u v w"]:
    """Share of each voxel that a ball covers, to 1e-10; what lies between slices counts nowhere [1]."""
    u, v, w = (e - c for e, c in zip(edges, centre_mm, strict=True))
    share = np.zeros((u.size - 1, v.size - 1, w.size // 2))
    rows, columns = _reached(u[:-1], u[1:], radius_mm), _reached(v[:-1], v[1:], radius_mm)
    if not (rows.any() and columns.any()):
        return share
    # only the voxels around it are computed
    first, last = (np.flatnonzero(reached)[[0, -1]] for reached in (rows, columns))
    near = (slice(first[0], first[1] + 1), slice(last[0], last[1] + 1))
    around = u[first[0] : first[1] + 2], v[last[0] : last[1] + 2]
    for k in np.flatnonzero(_reached(w[::2], w[1::2], radius_mm)):
        # w first: `ball_boxes` takes its first axis step by step, the others at once
        share[(*near, k)] = ball_boxes(w[2 * k : 2 * k + 2], *around, radius_mm)[0]
    return share


def wholly_inside(edges: Edges, centre_mm: tuple[float, float, float], radius_mm: float) -> Bool[np.ndarray, "u v w"]:
    """Voxels no part of which lies outside a ball."""
    u, v, w = (e - c for e, c in zip(edges, centre_mm, strict=True))
    far = [np.maximum(-low, high) ** 2 for low, high in ((u[:-1], u[1:]), (v[:-1], v[1:]), (w[::2], w[1::2]))]
    return np.asarray(far[0][:, None, None] + far[1][:, None] + far[2] <= radius_mm**2)


def _reached(low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"], radius_mm: float) -> Bool[np.ndarray, " n"]:
    return (low < radius_mm) & (high > -radius_mm)
