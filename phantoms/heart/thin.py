"""Shares of what is thinner than a voxel: `covered` by itself would make it too thick."""

import numpy as np
from jaxtyping import Float

from phantoms.painting import covered

Plane = Float[np.ndarray, "y x"]


def strip(distance: Plane, half_mm: float, voxel_mm: tuple[float, float]) -> Plane:
    """Share of a strip about a line, as far as its one edge covers more than the other, whatever its width [1].

    Args:
        distance: signed, from its middle line [mm].
        half_mm: half its width [mm].
        voxel_mm: edges of a voxel [mm].
    """
    share: Plane = covered(distance - half_mm, voxel_mm) - covered(distance + half_mm, voxel_mm)
    return share


def add_spot(
    share: Plane, y: Plane, x: Plane, middle_mm: tuple[float, float], radius_mm: float, voxel_mm: tuple[float, float]
) -> None:
    """Lay a disc of any size on shares, in place, where it is the larger [1].

    The slanted edge of `covered`, of width h, holds the area pi (r^2 + h^2 / 12) for r >= h / 2 and
    pi (r + h / 2)^3 / (3 h) below; the share is scaled so that the disc keeps its own, pi r^2.
    """
    h = float(np.sqrt(voxel_mm[0] * voxel_mm[1]))
    edge = radius_mm + h / 2
    held = radius_mm**2 + h**2 / 12 if radius_mm >= h / 2 else edge**3 / (3 * h)
    (top, bottom), (left, right) = (
        np.searchsorted(along, [at - edge, at + edge]) for along, at in zip((y[:, 0], x[0]), middle_mm, strict=True)
    )
    box = (slice(top, bottom), slice(left, right))
    distance = np.hypot(y[box] - middle_mm[0], x[box] - middle_mm[1]) - radius_mm
    np.maximum(share[box], covered(distance, voxel_mm) * (radius_mm**2 / held), out=share[box])
