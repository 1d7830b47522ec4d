"""Outlines and tubes of one plane, each computed where it lies.

A polygon's distance is exact within `reach` of its edge and +-reach beyond it: each short piece of the edge gives the
distance of the few voxels around it, the even-odd rule along the rows the sign.

A tube is the set within r of a segment in space; the plane cuts it in a section of half widths r and r / u, u the
cosine between tube and slice axis, drawn as `phantoms.drawn.painting` has it. Of the distance R from the middle line, s
lies across the section and sqrt(R^2 - s^2) / u along it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from phantoms.drawn.painting import Box, Frame, Region, covered, inwards, thin, thin_below

# of cosines [1]
_LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Near:
    """Signed distance from an edge, cut at +-reach [mm], in a box that holds all voxels nearer than that."""

    frame: Frame
    box: Box
    distance: Float[np.ndarray, "y x"]

    def region(self, grow_mm: float = 0.0) -> Region:
        """Share of each voxel inside the edge moved outwards by less than reach - width."""
        return Region(self.box, covered(self.distance - grow_mm, self.frame.voxel_mm))


@dataclass(frozen=True, slots=True)
class Tubes:
    """Tubes with round ends: starts and ends (y, x, z), and the radii at both [mm]."""

    starts: Float[np.ndarray, "n 3"]
    ends: Float[np.ndarray, "n 3"]
    radii: Float[np.ndarray, "n 2"]

    def part(self, which: slice) -> "Tubes":
        """Some of them."""
        return Tubes(self.starts[which], self.ends[which], self.radii[which])


def near_polygon(frame: Frame, vertices: Float[np.ndarray, "n 2"], reach_mm: float = 0.0) -> Near:
    """Distance from a closed polygon (y, x), near its edge; reach at least a voxel's width."""
    reach = max(reach_mm, frame.width)
    box = frame.box(vertices.min(axis=0) - reach, vertices.max(axis=0) + reach)
    y, x = frame.y[box[0]], frame.x[box[1]]
    if not (y.size and x.size):
        return Near(frame, box, np.zeros((y.size, x.size)))
    starts, steps = vertices, np.roll(vertices, -1, axis=0) - vertices
    squared = _nearest_squared(*_pieces(starts, steps, frame.width), y, x, frame.voxel_mm, reach)
    distance = np.sqrt(squared)
    return Near(frame, box, np.where(_inside(starts, steps, y, x), -distance, distance))


def tubes_region(frame: Frame, tubes: Tubes, z: float) -> Region:
    """Region of tubes in the plane z."""
    starts, ends, radii = tubes.starts, tubes.ends, tubes.radii
    thick = radii.max(axis=1)
    cut = (np.minimum(starts[:, 2], ends[:, 2]) - thick < z) & (np.maximum(starts[:, 2], ends[:, 2]) + thick > z)
    if not cut.any():
        return Region((slice(0, 0), slice(0, 0)), np.zeros((0, 0)))
    starts, ends, radii, thick = starts[cut], ends[cut], radii[cut], thick[cut]
    far = thick[:, None] + 1.5 * frame.width
    # what a plane sees of a tube lies around the part of its middle line that is near the plane
    rise = ends[:, 2] - starts[:, 2]
    rise = np.where(np.abs(rise) < 1e-6, 1e-6, rise)
    passed = np.stack([(z - far[:, 0] - starts[:, 2]) / rise, (z + far[:, 0] - starts[:, 2]) / rise])
    first, last = np.clip(passed.min(axis=0), 0, 1)[:, None], np.clip(passed.max(axis=0), 0, 1)[:, None]
    run = (ends - starts)[:, :2]
    corners = np.stack([starts[:, :2] + first * run, starts[:, :2] + last * run])
    low, high = corners.min(axis=0) - far, corners.max(axis=0) + far
    # tubes of like extent together, each in a window as large as the largest of them
    first_rows, last_rows, first_columns, last_columns = (
        np.searchsorted(axis, edge[:, a]) for a, axis in enumerate((frame.y, frame.x)) for edge in (low, high)
    )
    tall, wide = last_rows - first_rows, last_columns - first_columns
    seen = np.flatnonzero((tall > 0) & (wide > 0))
    if not len(seen):
        return Region((slice(0, 0), slice(0, 0)), np.zeros((0, 0)))
    box = (
        slice(int(first_rows[seen].min()), int(last_rows[seen].max())),
        slice(int(first_columns[seen].min()), int(last_columns[seen].max())),
    )
    rows, columns = box[0].stop - box[0].start, box[1].stop - box[1].start
    share = np.zeros(rows * columns)
    order = seen[np.argsort((np.maximum(tall, wide))[seen], kind="stable")]
    for group in np.array_split(order, min(4, len(order))):
        row = first_rows[group][:, None] + np.arange(tall[group].max())
        column = first_columns[group][:, None] + np.arange(wide[group].max())
        # windows that reach beyond the box are held back: their outer voxels are drawn twice, the same
        row, column = np.minimum(row, box[0].stop - 1), np.minimum(column, box[1].stop - 1)
        found = _tubes(frame, row, column, starts[group], ends[group], radii[group], z)
        flat = ((row - box[0].start) * columns)[:, :, None] + (column - box[1].start)[:, None, :]
        some = found > 0
        np.maximum.at(share, flat[some], found[some])
    return Region(box, share.reshape(rows, columns))


def _tubes(
    frame: Frame,
    row: Int[np.ndarray, "n h"],
    column: Int[np.ndarray, "n w"],
    starts: Float[np.ndarray, "n 3"],
    ends: Float[np.ndarray, "n 3"],
    radii: Float[np.ndarray, "n 2"],
    z: float,
) -> Float[np.ndarray, "n h w"]:
    """Share of the voxels of each tube's window."""
    # axes: tube, rows, columns
    ay, ax, az = (ends - starts).T[:, :, None, None]
    length = ay * ay + ax * ax + az * az
    py = (frame.y[row] - starts[:, 0, None])[:, :, None]
    px = (frame.x[column] - starts[:, 1, None])[:, None, :]
    pz = (z - starts[:, 2])[:, None, None]
    t = np.minimum(np.maximum((py * ay + (pz * az + px * ax)) / np.maximum(length, 1e-12), 0), 1)
    dz = pz - t * az
    flat = (py - t * ay) ** 2 + (px - t * ax) ** 2
    away = np.sqrt(flat + dz * dz)
    radius = radii[:, 0, None, None] + t * (radii[:, 1] - radii[:, 0])[:, None, None]
    # between tube and slice axis; a tube that lies has sections as long as itself
    cosine = np.maximum(np.abs(az) / np.maximum(np.sqrt(length), 1e-6), _LEAST)
    share = np.zeros(away.shape)
    near = away < radius + frame.width
    away, flat, radius = away[near], flat[near], radius[near]
    across = np.abs(py * ax - px * ay) / np.maximum(np.hypot(ay, ax), 1e-9)
    # an upright one has no direction: any will do
    across = np.where(np.hypot(ay, ax) < 1e-9, np.abs(py), across)[near]
    cosine = np.broadcast_to(cosine, share.shape)[near]
    # how fast the distance grows along the plane; on the middle line itself as beside it
    slope = np.maximum(np.sqrt(flat) / np.maximum(away, 1e-9), 0.3)
    slope[away < 0.5 * radius] = 1
    edge = (away - radius) / slope + inwards(radius, radius / cosine, frame.voxel_mm)
    found = covered(edge, frame.voxel_mm)
    few = radius < thin_below(frame.voxel_mm)
    along = np.sqrt(np.maximum(away[few] ** 2 - across[few] ** 2, 0)) / cosine[few]
    found[few] = thin(across[few], along, radius[few], radius[few] / cosine[few], frame.voxel_mm)
    share[near] = found
    return share


def _pieces(
    starts: Float[np.ndarray, "n 2"], steps: Float[np.ndarray, "n 2"], width: float
) -> tuple[Float[np.ndarray, "k 2"], Float[np.ndarray, "k 2"]]:
    """Cut the edges into pieces no longer than four voxels, so that few voxels lie around each."""
    n = np.maximum(np.ceil(np.linalg.norm(steps, axis=1) / (4 * width)), 1).astype(int)
    which = np.repeat(np.arange(len(n)), n)
    number = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
    short = steps[which] / n[which, None]
    return starts[which] + number[:, None] * short, short


def _nearest_squared(
    starts: Float[np.ndarray, "k 2"],
    steps: Float[np.ndarray, "k 2"],
    y: Float[np.ndarray, " ny"],
    x: Float[np.ndarray, " nx"],
    voxel_mm: tuple[float, float],
    reach: float,
) -> Float[np.ndarray, "ny nx"]:
    """Squared distance to the nearest piece, at most reach^2 [mm2]."""
    squared = np.full(y.size * x.size, reach**2)
    half = np.abs(steps).max(axis=0) / 2 + reach
    middle = starts + steps / 2
    grids = []
    for axis, (first, h, n) in enumerate(((y[0], voxel_mm[0], y.size), (x[0], voxel_mm[1], x.size))):
        lowest = np.floor((middle[:, axis] - half[axis] - first) / h).astype(int)
        index = lowest[:, None] + np.arange(int(np.ceil(2 * half[axis] / h)) + 2)
        grids.append((index, (index >= 0) & (index < n), first + index * h - starts[:, axis, None]))
    (rows, rows_ok, py), (columns, columns_ok, px) = grids
    ey, ex = steps[:, 0, None, None], steps[:, 1, None, None]
    dy, dx = py[:, :, None], px[:, None, :]
    t = np.clip((dy * ey + dx * ex) / np.maximum(ey * ey + ex * ex, 1e-12), 0, 1)
    found = (dy - t * ey) ** 2 + (dx - t * ex) ** 2
    keep = (found < reach**2) & rows_ok[:, :, None] & columns_ok[:, None, :]
    flat = (rows[:, :, None] * x.size + columns[:, None, :])[keep]
    np.minimum.at(squared, flat, found[keep])
    return squared.reshape(y.size, x.size)


def _inside(
    starts: Float[np.ndarray, "n 2"],
    steps: Float[np.ndarray, "n 2"],
    y: Float[np.ndarray, " ny"],
    x: Float[np.ndarray, " nx"],
) -> Bool[np.ndarray, "ny nx"]:
    """Even-odd rule: an odd number of edges is crossed on the way along the row."""
    y0, x0 = starts[:, 0, None], starts[:, 1, None]
    ends = np.roll(starts, -1, axis=0)[:, 0, None]
    rows = np.nonzero((y0 > y) != (ends > y))
    edge, row = rows
    at = x0[edge, 0] + (y[row] - y0[edge, 0]) * steps[edge, 1] / steps[edge, 0]
    column = np.searchsorted(x, at)
    crossed = np.bincount(row * (x.size + 1) + column, minlength=y.size * (x.size + 1)).reshape(y.size, x.size + 1)
    odd: Bool[np.ndarray, "ny nx"] = np.cumsum(crossed, axis=1)[:, :-1] % 2 == 1
    return odd
