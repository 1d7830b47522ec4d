"""From signed distances to shares of tissue: how the parametric anatomies (`liver`, `heart`) are drawn.

A region is a signed distance d from its edge [mm], negative inside. A voxel of width h, cut by an edge that is straight
on its scale, holds the share

    c(d) = min(1, max(0, 1/2 - d / h)),

exact for an edge along the grid and off by at most .06 for one at 45 degrees. Sections with half widths a <= b (of a
disc a = b, of a tube cut obliquely b = a / cosine, of a strip b is infinite) hold what they should on average over
places, pi a b, whatever their size:

- a >= h / sqrt(3): c(d + h^2 / (12 (a + b))). The slanted edge alone holds pi h^2 / 12 too much of what is convex.
- thinner: c(|s| - w) - c(|s| + w), s across, w the mean of a sqrt(1 - (t / b)^2) over the width h along.

Later regions cover earlier ones, painted from the top down, which touches one tissue per region:

    f_k = c_k left_k,   left_{k-1} = (1 - c_k) left_k,

that is f_k = c_k prod_{l > k} (1 - c_l), as `geometry` has it. Slices are thick: the shares are the mean over planes
through the thickness, each drawn for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from phantoms.drawn.outlines import ellipse

Distance = Float[np.ndarray, "..."]
Points = Float[np.ndarray, "y x"]
Box = tuple[slice, slice]


def grid(matrix: tuple[int, int], voxel_mm: tuple[float, float]) -> tuple[Points, Points]:
    """Positions of the middles of the voxels along both axes, from the middle of the slice [mm]."""
    y, x = ((np.arange(n) - (n - 1) / 2) * h for n, h in zip(matrix, voxel_mm, strict=True))
    return np.broadcast_to(y[:, None], matrix), np.broadcast_to(x, matrix)


def planes(middle_mm: float, thickness_mm: float, n: int) -> Float[np.ndarray, " n"]:
    """Positions of n planes that share a slice's thickness evenly [mm]."""
    return middle_mm + ((np.arange(n) + 0.5) / n - 0.5) * thickness_mm


def width_of(voxel_mm: tuple[float, float]) -> float:
    """Width of a voxel: the geometric mean of its edges [mm]."""
    return float(np.sqrt(voxel_mm[0] * voxel_mm[1]))


def covered(distance: Distance, voxel_mm: tuple[float, float]) -> Distance:
    """Share of each voxel inside an edge [1].

    Args:
        distance: from the edge to the middle of the voxel, negative inside [mm].
        voxel_mm: edges of a voxel [mm].
    """
    return np.clip(0.5 - distance / width_of(voxel_mm), 0, 1)


def strip(distance: Distance, half_mm: Distance | float, voxel_mm: tuple[float, float]) -> Distance:
    """Share of a strip about a line, whatever its width [1].

    Args:
        distance: from its middle line, signed or not [mm].
        half_mm: half its width [mm].
        voxel_mm: edges of a voxel [mm].
    """
    return covered(distance - half_mm, voxel_mm) - covered(distance + half_mm, voxel_mm)


def thin(
    across: Distance,
    along: Distance,
    short_mm: Distance | float,
    long_mm: Distance | float,
    voxel_mm: tuple[float, float],
) -> Distance:
    """Share of an ellipse that is thinner than a voxel [1].

    Args:
        across, along: from its middle, along its short and its long half axis [mm].
        short_mm, long_mm: these [mm].
        voxel_mm: edges of a voxel [mm].
    """
    h = width_of(voxel_mm)
    upper, lower = (np.clip((along + side * h / 2) / long_mm, -1, 1) for side in (1, -1))
    # the integral of the half width between both
    area = [t * np.sqrt(1 - t * t) + np.arcsin(t) for t in (upper, lower)]
    return strip(across, short_mm * long_mm / 2 * (area[0] - area[1]) / h, voxel_mm)


def thin_below(voxel_mm: tuple[float, float]) -> float:
    """Half width below which a section is for `thin` [mm]."""
    return width_of(voxel_mm) / float(np.sqrt(3))


def inwards(short_mm: Distance | float, long_mm: Distance | float, voxel_mm: tuple[float, float]) -> Distance | float:
    """How far the edge of a section that is not thin is drawn inwards of itself [mm]."""
    return width_of(voxel_mm) ** 2 / (12 * (short_mm + long_mm))


@dataclass(frozen=True, slots=True)
class Frame:
    """Middles of the voxels of a plane along both axes, and their sizes [mm]."""

    y: Float[np.ndarray, " ny"]
    x: Float[np.ndarray, " nx"]
    voxel_mm: tuple[float, float]

    @property
    def matrix(self) -> tuple[int, int]:
        """Voxels along y and x."""
        return len(self.y), len(self.x)

    @property
    def width(self) -> float:
        """Of a voxel [mm]."""
        return width_of(self.voxel_mm)

    def box(self, low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"]) -> Box:
        """Voxels whose middles lie in a rectangle (y, x)."""
        rows, columns = (
            slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b, side="right")))
            for axis, a, b in zip((self.y, self.x), low, high, strict=True)
        )
        return rows, columns


def frame_of(y: Points, x: Points, voxel_mm: tuple[float, float]) -> Frame:
    """Frame of the points of a `grid`, or of a box of one."""
    return Frame(y[:, 0].copy(), x[0].copy(), voxel_mm)


@dataclass(frozen=True, slots=True)
class Region:
    """Share of each voxel of a box that is covered; outside the box none."""

    box: Box
    share: Points

    def within(self, other: "Region") -> "Region":
        """What is inside both (the smaller share: the larger distance)."""
        box = (_shared(self.box[0], other.box[0]), _shared(self.box[1], other.box[1]))
        mine, theirs = (each.share[_shift(box, each.box)] for each in (self, other))
        return Region(box, np.minimum(mine, theirs))


class Canvas:
    """Shares of the tissues of a slice, the mean over planes that are each painted from the top down."""

    def __init__(self, tissues: Sequence[str], matrix: tuple[int, int], planes: int) -> None:
        self.tissues, self.planes = tissues, planes
        self.shares: Float[np.ndarray, "t y x"] = np.zeros((len(tissues), *matrix))
        self._left: Points = np.ones(matrix)

    def begin(self) -> None:
        """Go on to the next plane."""
        self._left[:] = 1

    def under(self, region: Region, *mix: tuple[str, float]) -> Points:
        """Paint a region under all that is there, of a mixture of tissues (none: nothing, as air); what is seen of it.

        Args:
            region: what is covered.
            mix: tissues and their shares of it [1].
        """
        left = self._left[region.box]
        seen = left * region.share
        left -= seen
        for tissue, share in mix:
            self.shares[self.tissues.index(tissue)][region.box] += share / self.planes * seen
        return seen


def paint(
    tissues: Sequence[str], regions: Sequence[tuple[str | None, Points]], matrix: tuple[int, int]
) -> Float[np.ndarray, "t y x"]:
    """Shares of the tissues in one plane [1].

    Args:
        tissues: names, in the order of the result.
        regions: what is painted, from the bottom to the top: the tissue (None: nothing, as air) and the share of each
            voxel that the region covers [1].
        matrix: voxels in the plane.
    """
    canvas = Canvas(tissues, matrix, 1)
    whole = (slice(0, matrix[0]), slice(0, matrix[1]))
    for tissue, share in reversed(regions):
        canvas.under(Region(whole, share), *(() if tissue is None else ((tissue, 1.0),)))
    return canvas.shares


def ellipse_region(
    frame: Frame, centre: Float[np.ndarray, "2"], half: tuple[float, float], angle: float = 0.0, grow_mm: float = 0.0
) -> Region:
    """Region of an ellipse (y, x) of any size, as `phantoms.drawn.outlines.ellipse` has it, its edge moved outwards."""
    far = max(half) + abs(grow_mm) + frame.width
    box = frame.box(centre - far, centre + far)
    y, x = np.meshgrid(frame.y[box[0]], frame.x[box[1]], indexing="ij")
    short, long = (edge(half) + grow_mm for edge in (min, max))
    if short <= 0:
        return Region(box, np.zeros(y.shape))
    middle = float(centre[0]), float(centre[1])
    if short < thin_below(frame.voxel_mm):
        # from x towards y, the direction of the long side
        turned = angle if half[1] >= half[0] else angle + np.pi / 2
        dy, dx = y - middle[0], x - middle[1]
        across, along = np.cos(turned) * dy - np.sin(turned) * dx, np.sin(turned) * dy + np.cos(turned) * dx
        return Region(box, thin(across, along, short, long, frame.voxel_mm))
    distance = ellipse(middle, half, angle, y, x) - grow_mm
    return Region(box, covered(distance + inwards(short, long, frame.voxel_mm), frame.voxel_mm))


def _shared(one: slice, other: slice) -> slice:
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))


def _shift(box: Box, into: Box) -> Box:
    """The same voxels, counted from another box's first ones; a box that is empty may lie outside it."""
    return tuple(  # type: ignore[return-value]
        slice(0, 0) if a.start == a.stop else slice(a.start - b.start, a.stop - b.start)
        for a, b in zip(box, into, strict=True)
    )
