"""Variance of a smooth map of B: the diagonal of the inverse of H = diag(D) + 2 w L L.

It is that of the posterior: noise and, under the prior that the penalty stands for, what the penalty smooths away.

Where B is smooth over blocks of voxels, H is taken to the blocks and inverted there. Where it is not, it is estimated
by drawing: x = H^-1 (sqrt(D) n1 + sqrt(2 w) L n2) with white n1, n2 has the covariance H^-1; the squares of the draws
(fixed seed) are averaged over each block. Within a block voxels differ by what they know themselves: if m is the
variance of a voxel of mean curvature D_m, one of curvature D has 1 / (1 / m + D - D_m) (a change of one entry of H).
"""

import numpy as np
from jaxtyping import Float

from qsim.estimators.pooling.smooth_climb import Climb

_DRAWS = 24


def depth_variance(climb: Climb, weight: float, d: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    """Variance of B of every voxel.

    Args:
        climb: mask and blocks.
        weight: w; infinite: one B per piece.
        d: curvature of each voxel's log-likelihood, positive.
    """
    domain, blocks = climb.domain, climb.blocks
    if np.isinf(weight):
        return (1 / np.bincount(domain.piece, d))[domain.piece]
    inside = blocks.total(d)
    mean = inside / blocks.voxels
    # distance over which B is smooth, to the fourth
    reach = 2 * weight / float(d.mean())
    if reach >= blocks.width**4 or blocks.width == 1:
        matrix = np.diag(inside) + 2 * weight * blocks.penalty()
        typical = np.linalg.inv(matrix).diagonal()
    else:
        solver = climb.solver(weight, d)
        rng = np.random.default_rng(0)
        squares = np.zeros(domain.size)
        for _ in range(_DRAWS):
            first, second = rng.standard_normal((2, domain.size))
            drawn = np.sqrt(d) * first + (2 * weight) ** 0.5 * (domain.laplacian @ second)
            squares += solver.solve(d, drawn, None, 0.02, 100)[0] ** 2 / _DRAWS
        typical = blocks.total(squares) / blocks.voxels
    own = 1 / typical[blocks.node] + d - mean[blocks.node]
    # a voxel alone knows at least what it says itself
    return 1 / np.maximum(own, d)
