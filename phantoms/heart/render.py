"""One heart, slice by slice: surroundings once per subject, the heart plane by plane on the part of the image it takes.

What paints no background leaves 1 - sum_k f_k of what lies below, so that the heart is painted by itself and laid over
its surroundings g afterwards: f + (1 - sum_k f_k) g, and its planes are averaged first.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from phantoms.drawn.painting import grid, paint, planes
from phantoms.heart.maps import HeartMaps
from phantoms.heart.painter import paint_heart
from phantoms.heart.subject import TISSUES, Subject
from phantoms.heart.surroundings import Surroundings, surround
from phantoms.heart.ventricles import Edges, Plane, drawn_edges

# from the middle of the left cavity to where the last of the heart's fat ends, beyond both ventricles [mm]
_BEYOND_MM = 30.0


def render(
    subject: Subject,
    number: int,
    *,
    scarred: bool,
    surroundings: Surroundings,
    matrix: tuple[int, int],
    voxel_mm: tuple[float, float],
    slices: int,
    step_mm: float,
    thickness_mm: float,
    n_planes: int,
    maps: HeartMaps | None,
) -> Float[np.ndarray, "t y x z"]:
    """Fractions of one subject [1].

    Args:
        number: of the subject.
        scarred: whether it has a scar.
        surroundings: how the organs are arranged.
        matrix: voxels along y and x.
        voxel_mm: [mm].
        slices: how many.
        step_mm: from slice to slice [mm].
        thickness_mm: of a slice [mm].
        n_planes: drawn through its thickness.
        maps: label maps for the outlines; None: drawn.
    Raises: InputError naming a label map at fault.
    """
    y, x = grid(matrix, voxel_mm)
    edges, outer, several = _edges(subject, number, slices, step_mm, thickness_mm, n_planes, maps)
    around = paint(TISSUES, surround(subject, surroundings, outer, y, x, voxel_mm), matrix)
    reach = outer + subject["rv_size_mm"] + subject["rv_wall_mm"] + _BEYOND_MM
    if maps is not None:
        # the maps have a size of their own
        reach = 4 * outer + _BEYOND_MM
    rows = np.flatnonzero(np.abs(y[:, 0] - subject["centre_y_mm"]) <= reach)
    columns = np.flatnonzero(np.abs(x[0] - subject["centre_x_mm"]) <= reach)
    volume = np.repeat(around[..., None], slices, axis=3)
    if not (rows.size and columns.size):
        return volume
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    by, bx = np.ascontiguousarray(y[box]), np.ascontiguousarray(x[box])
    for k in range(slices):
        heart = np.mean(
            [paint_heart(subject, edges(k, p, by, bx), scarred, by, bx, voxel_mm) for p in range(several)], axis=0
        )
        here = volume[(slice(None), *box, k)]
        # rounding alone lifts a sum of shares above 1
        here *= np.maximum(1 - heart.sum(axis=0), 0)
        here += heart
    return volume


def _edges(
    subject: Subject,
    number: int,
    slices: int,
    step_mm: float,
    thickness_mm: float,
    n_planes: int,
    maps: HeartMaps | None,
) -> tuple[Callable[[int, int, Plane, Plane], Edges], float, int]:
    """Edges in a plane of a slice; radius of the left epicardium at the middle; planes per slice."""
    if maps is not None:
        # a map's slices are as thick as they are: one plane each
        mapped, outer = maps.edges(subject, number, slices, step_mm)
        return mapped, outer, 1
    drawn = drawn_edges(subject)
    middles = subject["level_mm"] + (np.arange(slices) - (slices - 1) / 2) * step_mm
    depths = np.stack([planes(float(middle), thickness_mm, n_planes) for middle in middles])
    outer = subject["lv_radius_mm"] + subject["wall_mm"]
    return (lambda k, p, y, x: drawn(float(depths[k, p]), y, x)), outer, n_planes
