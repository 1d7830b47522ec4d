"""Edges of organs in a plane, and the signed distance from them.

| outline | given by | distance |
| --- | --- | --- |
| star-shaped | radius rho(theta) = sum_k a_k cos(k theta) + b_k sin(k theta) about a centre | to first order |
| curve | control points joined by a periodic cubic spline | exact, to the polygon through its points |

To first order, with r the distance from the centre,

    d = (r - rho) / sqrt(1 + (rho' / rho)^2).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "*points"]


@dataclass(frozen=True, slots=True)
class Star:
    """An outline that every ray from its centre meets once.

    Attributes:
        centre_mm: (y, x) [mm].
        cosines: a_0 (the mean radius), a_1, ... [mm].
        sines: b_1, b_2, ...; as many as there are cosines after the first [mm].
    Raises: ValueError if the numbers of cosines and sines do not fit, or the radius reaches 0.
    """

    centre_mm: tuple[float, float]
    cosines: tuple[float, ...]
    sines: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sines) != len(self.cosines) - 1:
            raise ValueError(f"sines: got {len(self.sines)}, wanted {len(self.cosines) - 1}, one per cosine after a_0")
        radius, _ = self.radius(np.linspace(0, 2 * np.pi, 360))
        if not radius.min() > 0:
            raise ValueError(f"cosines: the radius reaches {radius.min():.3g} mm; it must stay above 0")

    def radius(self, theta: Plane) -> tuple[Plane, Plane]:
        """Return rho and its derivative at an angle from the x axis towards the y axis [mm]."""
        radius = np.full(theta.shape, float(self.cosines[0]))
        slope = np.zeros(theta.shape)
        for k, (a, b) in enumerate(zip(self.cosines[1:], self.sines, strict=True), start=1):
            radius += a * np.cos(k * theta) + b * np.sin(k * theta)
            slope += k * (b * np.cos(k * theta) - a * np.sin(k * theta))
        return radius, slope

    def distance(self, y: Plane, x: Plane) -> Plane:
        """Signed distance to first order, negative inside [mm]."""
        dy, dx = y - self.centre_mm[0], x - self.centre_mm[1]
        radius, slope = self.radius(np.arctan2(dy, dx))
        return (np.hypot(dy, dx) - radius) / np.sqrt(1 + (slope / radius) ** 2)


def ellipse(centre_mm: tuple[float, float], half_mm: tuple[float, float], angle: float, y: Plane, x: Plane) -> Plane:
    """Signed distance from an ellipse to first order: F / |grad F|, F = |q| - 1 on scaled axes [mm].

    Args:
        centre_mm: (y, x) [mm].
        half_mm: half lengths along its own axes: the first along y, the second along x before it is turned [mm].
        angle: by which it is turned, from x towards y [rad].
        y, x: positions [mm].
    """
    dy, dx = y - centre_mm[0], x - centre_mm[1]
    across = np.cos(angle) * dy - np.sin(angle) * dx
    along = np.sin(angle) * dy + np.cos(angle) * dx
    p, q = across / half_mm[0], along / half_mm[1]
    length = np.maximum(np.hypot(p, q), 1e-9)
    slope = np.maximum(np.hypot(p / half_mm[0], q / half_mm[1]) / length, 1e-9)
    return (length - 1) / slope


def curve(points_mm: Float[np.ndarray, "k 2"], per_span: int = 12) -> Float[np.ndarray, "n 2"]:
    """Points of the closed periodic cubic spline through control points (y, x), in their order [mm]."""
    from scipy.interpolate import CubicSpline

    closed = np.concatenate([points_mm, points_mm[:1]])
    # chord lengths as the parameter: evenly spaced parameters overshoot where points crowd
    at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    spline = CubicSpline(at, closed, bc_type="periodic")  # type: ignore[no-untyped-call]
    steps = np.concatenate([np.linspace(a, b, per_span, endpoint=False) for a, b in pairwise(at)])
    points: Float[np.ndarray, "n 2"] = spline(steps)
    return points


def polygon_distance(vertices_mm: Float[np.ndarray, "n 2"], y: Plane, x: Plane) -> Plane:
    """Signed distance from a closed polygon (y, x), negative inside by the even-odd rule; exact [mm]."""
    nearest = np.full(np.broadcast_shapes(y.shape, x.shape), np.inf)
    inside = np.zeros(nearest.shape, dtype=bool)
    for (y0, x0), (y1, x1) in zip(vertices_mm, np.roll(vertices_mm, -1, axis=0), strict=True):
        ey, ex = y1 - y0, x1 - x0
        length = ey * ey + ex * ex
        if length == 0:
            continue
        py, px = y - y0, x - x0
        t = np.clip((py * ey + px * ex) / length, 0, 1)
        nearest = np.minimum(nearest, (py - t * ey) ** 2 + (px - t * ex) ** 2)
        if ey != 0:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + ex * py / ey)
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)
