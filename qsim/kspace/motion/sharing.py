"""Lines whose poses hardly differ share one: each pose costs a resampling of the image.

Only the linear part is shared; translations cost nothing and stay exact. Two linear parts are near when no corner of
the field of view lies further apart than a tolerance,

    max over corners r of |(A_i - A_j) r| <= tolerance [voxels]

and no voxel is further from the centre than a corner.
"""

from itertools import product

import numpy as np
from jaxtyping import Float, Int


def shared_poses(
    linear: Float[np.ndarray, "u d d"], space: tuple[int, ...], tolerance: float
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " u"], float]:
    """A few of the linear parts that stand for all.

    Returns: numbers of the chosen ones; for each linear part which of the chosen stands for it; the largest
        displacement between a linear part and its stand-in [voxels].
    """
    u, d = linear.shape[:2]
    if np.array_equal(linear, np.broadcast_to(linear[:1], linear.shape)):
        return np.zeros(1, dtype=np.int64), np.zeros(u, dtype=np.int64), 0.0
    corners = np.array([(1, *signs) for signs in product((-1, 1), repeat=d - 1)]) * np.array(space) / 2
    places = np.einsum("uij,cj->uci", linear, corners)
    # along the direction in which they differ most, near ones are neighbours: distances along it are never more
    # than sqrt(corners) times the largest displacement
    spread = (places - places.mean(0)).reshape(u, -1)
    along = spread @ np.linalg.eigh(spread.T @ spread)[1][:, -1]
    order = np.argsort(along, kind="stable")
    along, places = along[order], places[order]
    # rounding must not separate what is equal
    reach = tolerance + 1e-12 * max(space)
    window = np.sqrt(len(corners)) * reach
    stands = np.full(u, -1)
    chosen: list[int] = []
    for first in range(u):
        if stands[first] >= 0:
            continue
        # the furthest that is still near the first one covers as much on its other side
        end = int(np.searchsorted(along, along[first] + window, side="right"))
        near = first + np.flatnonzero(_near(places[first:end], places[first], reach) & (stands[first:end] < 0))
        centre = int(near[-1])
        low = int(np.searchsorted(along, along[centre] - window))
        high = int(np.searchsorted(along, along[centre] + window, side="right"))
        taken = low + np.flatnonzero(_near(places[low:high], places[centre], reach) & (stands[low:high] < 0))
        stands[taken] = len(chosen)
        chosen.append(centre)
    error = float(np.linalg.norm(places - places[np.array(chosen)][stands], axis=-1).max())
    numbers = np.empty(u, dtype=np.int64)
    numbers[order] = stands
    return order[chosen], numbers, error


def _near(places: Float[np.ndarray, "u c d"], place: Float[np.ndarray, "c d"], reach: float) -> np.ndarray:
    return np.linalg.norm(places - place, axis=-1).max(-1) <= reach
