"""From signed distances to shares of tissue: how the parametric anatomies (`liver`, `heart`) are drawn.

A region is a signed distance d from its edge [mm], negative inside. A voxel of width h, cut by an edge that is straight
on its scale, holds the share

    c = min(1, max(0, 1/2 - d / h)),

exact for an edge along the grid and off by at most .06 for one at 45 degrees. Later regions cover earlier ones,

    f_k = c_k prod_{l > k} (1 - c_l),

as `geometry` has it. Slices are thick: the shares are the mean over planes through the thickness, each drawn for
itself.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

Distance = Float[np.ndarray, "y x"]
Points = Float[np.ndarray, "y x"]


def grid(matrix: tuple[int, int], voxel_mm: tuple[float, float]) -> tuple[Points, Points]:
    """Positions of the middles of the voxels along both axes, from the middle of the slice [mm]."""
    y, x = ((np.arange(n) - (n - 1) / 2) * h for n, h in zip(matrix, voxel_mm, strict=True))
    return np.broadcast_to(y[:, None], matrix), np.broadcast_to(x, matrix)


def planes(middle_mm: float, thickness_mm: float, n: int) -> Float[np.ndarray, " n"]:
    """Positions of n planes that share a slice's thickness evenly [mm]."""
    return middle_mm + ((np.arange(n) + 0.5) / n - 0.5) * thickness_mm


def covered(distance: Distance, voxel_mm: tuple[float, float]) -> Float[np.ndarray, "y x"]:
    """Share of each voxel inside an edge [1].

    Args:
        distance: from the edge to the middle of the voxel, negative inside [mm].
        voxel_mm: edges of a voxel; where they differ the width is their geometric mean [mm].
    """
    width = float(np.sqrt(voxel_mm[0] * voxel_mm[1]))
    return np.clip(0.5 - distance / width, 0, 1)


def paint(
    tissues: Sequence[str], regions: Iterable[tuple[str | None, Float[np.ndarray, "y x"]]], matrix: tuple[int, int]
) -> Float[np.ndarray, "t y x"]:
    """Shares of the tissues in one plane [1].

    Args:
        tissues: names, in the order of the result.
        regions: what is painted, from the bottom to the top: the tissue (None: nothing, as air) and the share of each
            voxel that the region covers [1].
        matrix: voxels in the plane.
    """
    shares = np.zeros((len(tissues), *matrix))
    for tissue, share in regions:
        shares *= 1 - share
        if tissue is not None:
            shares[tissues.index(tissue)] += share
    return shares
