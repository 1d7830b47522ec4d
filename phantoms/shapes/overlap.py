"""How much of a pixel or voxel a disc, a ball or an interval covers, exactly."""

import numpy as np
from jaxtyping import Float

# Gauss-Legendre nodes per smooth piece of a ball; with 16, a voxel is right to 1e-10 of its volume
_NODES = 16


def intervals(edges: Float[np.ndarray, " m"], length: float) -> Float[np.ndarray, " n"]:
    """Share of each cell between neighbouring edges that [-length / 2, length / 2] covers [1]."""
    low, high = edges[:-1], edges[1:]
    inside = np.minimum(high, length / 2) - np.maximum(low, -length / 2)
    return np.maximum(inside, 0) / (high - low)


def disc_rectangles(y: Float[np.ndarray, " m"], x: Float[np.ndarray, " n"], radius: float) -> Float[np.ndarray, "h w"]:
    """Share of each pixel of a grid that a disc around 0 covers, in closed form [1].

    Args:
        y, x: edges of the pixels [any length].
        radius: of the disc [same].
    """
    y0, y1, x0, x1 = y[:-1, None], y[1:, None], x[None, :-1], x[None, 1:]
    nearest = _nearest(y0, y1) ** 2 + _nearest(x0, x1) ** 2
    farthest = np.maximum(-y0, y1) ** 2 + np.maximum(-x0, x1) ** 2
    coverage = (farthest <= radius**2).astype(float)
    # only the pixels on the border need the formula; the others are exactly 0 or 1
    row, column = np.nonzero((nearest < radius**2) & (farthest > radius**2))
    a, b, c, d = y[row], y[row + 1], x[column], x[column + 1]
    share = disc_rectangle_area(a, b, c, d, np.full(a.shape, radius)) / ((b - a) * (d - c))
    # rounding alone can leave [0, 1], by some 1e-16 of (radius / pixel)^2
    coverage[row, column] = np.clip(share, 0, 1)
    return coverage


def disc_rectangle_area(
    y0: Float[np.ndarray, "*n"],
    y1: Float[np.ndarray, "*n"],
    x0: Float[np.ndarray, "*n"],
    x1: Float[np.ndarray, "*n"],
    radius: Float[np.ndarray, "*n"],
) -> Float[np.ndarray, "*n"]:
    """Area of the intersection of a disc around 0 with [y0, y1] x [x0, x1].

    integral over x in [x0, x1] of  clip(y1, -h(x), h(x)) - clip(y0, -h(x), h(x)),   h(x) = sqrt(r^2 - x^2)
    """
    x0, x1 = np.clip(x0, -radius, radius), np.clip(x1, -radius, radius)
    return _below(y1, x1, radius) - _below(y1, x0, radius) - _below(y0, x1, radius) + _below(y0, x0, radius)


def _below(y: np.ndarray, x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Integral over [0, x] of clip(y, -h, h): the line y while it is inside the disc, its border beyond."""
    height = np.minimum(np.abs(y), radius)
    # the line leaves the disc at |x| = corner
    corner = np.sqrt(np.maximum(radius**2 - height**2, 0))
    inner = np.minimum(np.abs(x), corner)
    outer = np.maximum(np.abs(x), corner)
    return np.sign(x) * np.sign(y) * (height * inner + _segment(outer, radius) - _segment(corner, radius))


def _segment(x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Integral over [0, x] of sqrt(r^2 - x^2)."""
    height = np.sqrt(np.maximum(radius**2 - x**2, 0))
    return (x * height + radius**2 * np.arctan2(x, height)) / 2


def ball_boxes(
    z: Float[np.ndarray, " l"], y: Float[np.ndarray, " m"], x: Float[np.ndarray, " n"], radius: float
) -> Float[np.ndarray, "d h w"]:
    """Share of each voxel of a grid that a ball around 0 covers [1].

    The area of a slice through the ball is exact; along z it is integrated by Gauss-Legendre between the heights
    where the circle touches an edge or passes a corner of the pixel, after a substitution that makes the square
    roots at those heights smooth. Accuracy: 1e-10 of a voxel or better.

    Args:
        z, y, x: edges of the voxels [any length].
        radius: of the ball [same].
    """
    z0, z1, y0, y1, x0, x1 = (
        z[:-1, None, None], z[1:, None, None], y[None, :-1, None], y[None, 1:, None], x[:-1], x[1:]
    )  # fmt: skip
    nearest = _nearest(z0, z1) ** 2 + _nearest(y0, y1) ** 2 + _nearest(x0, x1) ** 2
    farthest = np.maximum(-z0, z1) ** 2 + np.maximum(-y0, y1) ** 2 + np.maximum(-x0, x1) ** 2
    coverage = (farthest <= radius**2).astype(float)
    border = (nearest < radius**2) & (farthest > radius**2)
    for k in np.flatnonzero(border.any(axis=(1, 2))):
        row, column = np.nonzero(border[k])
        rectangle = (y[row], y[row + 1], x[column], x[column + 1])
        volume = np.zeros(row.shape)
        # the ball is even in z: a voxel across z = 0 is the sum of its two halves
        for low, high in _halves(float(z[k]), float(z[k + 1])):
            volume += _ball_volume(low, high, rectangle, radius)
        size = (z[k + 1] - z[k]) * (rectangle[1] - rectangle[0]) * (rectangle[3] - rectangle[2])
        coverage[k, row, column] = np.clip(volume / size, 0, 1)
    return coverage


def _ball_volume(low: float, high: float, rectangle: tuple[np.ndarray, ...], radius: float) -> np.ndarray:
    """Volume of a ball in [low, high] x rectangle, 0 <= low < high."""
    y0, y1, x0, x1 = rectangle
    squares = [np.zeros_like(y0), y0**2, y1**2, x0**2, x1**2]
    squares += [a**2 + b**2 for a in (y0, y1) for b in (x0, x1)]
    kinks = np.sqrt(np.maximum(radius**2 - np.stack(squares), 0))
    ends = np.broadcast_to([[low], [high]], (2, y0.size))
    pieces = np.sort(np.clip(np.concatenate([ends, kinks]), low, high), axis=0)

    start, width = pieces[:-1], np.diff(pieces, axis=0)
    piece, voxel = np.nonzero(width > 0)
    start, width = start[piece, voxel], width[piece, voxel]
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    volume = np.zeros(y0.shape)
    for u, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        # z = start + width (3 u^2 - 2 u^3): dz/du vanishes at both ends, where the area goes like a square root
        at = start + width * (3 * u**2 - 2 * u**3)
        disc = np.sqrt(np.maximum(radius**2 - at**2, 0))
        area = disc_rectangle_area(y0[voxel], y1[voxel], x0[voxel], x1[voxel], disc)
        np.add.at(volume, voxel, weight * 6 * u * (1 - u) * width * area)
    return volume


def _halves(low: float, high: float) -> list[tuple[float, float]]:
    """|z| over [low, high], as intervals of positive numbers."""
    if low >= 0:
        return [(low, high)]
    if high <= 0:
        return [(-high, -low)]
    return [(0.0, -low), (0.0, high)]


def _nearest(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Distance from 0 to the interval [low, high]."""
    return np.maximum(np.maximum(low, -high), 0)
