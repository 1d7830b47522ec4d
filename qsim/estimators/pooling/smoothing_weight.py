"""How smooth a map is, chosen from the data: the weight of largest evidence.

Near the current map the log-likelihood of B is a parabola per voxel, D (B - z)^2 / 2 with z = B + g / D, and the
penalty w |L B|^2 is the logarithm of a normal prior. Both are taken to blocks of voxels, since what is estimated is
smooth. In the basis that makes D the identity and the penalty diagonal (mu_j) the data t_j are independent,

    t_j ~ N(0, phi + phi / (2 w mu_j)),

and w maximises their likelihood (REML: the null space, one constant per piece, has no say). phi is the mean of g^2 / D,
1 where the likelihood is regular; at high noise it takes up what D says too little or too much of.

Where B is constant the evidence is still highest at some finite weight in a third of all draws, by a little. So a
constant B is kept unless the evidence for another is better by 4, a likelihood ratio of 50. Where B varies by some per
cent the gain is tens to thousands.

Assumes: a field that is smooth over a block.
Source: Wood 2011, doi:10.1111/j.1467-9868.2010.00749.x.
"""

import numpy as np
from jaxtyping import Float

from qsim.estimators.pooling.laplacian import Blocks

# ends of the search: all modes but the constants shrunk to this part, or none
_SHRUNK = 1e-4
_PER_DECADE = 12
# gain of evidence [log] that a map needs over a constant
_GAIN = 4.0
# penalties below this part of the largest are those of constants
_NULL = 1e-11


def evident_weight(
    blocks: Blocks, b: Float[np.ndarray, " v"], g: Float[np.ndarray, " v"], d: Float[np.ndarray, " v"], n_pieces: int
) -> float:
    """The weight of largest evidence; infinite where B has only its constants, or nothing speaks for another map.

    Args:
        blocks: nodes.
        b: current map.
        g: slope of the log-likelihood there.
        d: its curvature, positive.
        n_pieces: connected pieces.
    """
    inside, data = blocks.total(d), blocks.total(d * b + g)
    if len(inside) <= n_pieces:
        return np.inf
    root = np.sqrt(inside)
    mu, basis = np.linalg.eigh(blocks.penalty() / root / root[:, None])
    t = basis.T @ (data / root)
    kept = mu > _NULL * mu[-1]
    mu, t2 = mu[kept], t[kept] ** 2
    phi = float(g @ g) / float(d.sum())
    if phi == 0.0:
        # without noise in the slopes nothing has to be smoothed away
        return float(_SHRUNK / (2 * mu[-1]))
    low, high = np.log10(_SHRUNK / (2 * mu[-1])), np.log10(1 / (_SHRUNK * 2 * mu[0]))
    log_weight = np.linspace(low, high, max(3, int((high - low) * _PER_DECADE)))
    variance = phi * (1 + 1 / (2 * 10 ** log_weight[:, None] * mu))
    evidence = -0.5 * (np.log(variance) + t2 / variance).sum(1)
    best = int(evidence.argmax())
    constant = -0.5 * float((np.log(phi) + t2 / phi).sum())
    if best == len(log_weight) - 1 or evidence[best] < constant + _GAIN:
        return np.inf
    vertex = log_weight[best]
    if best > 0:
        left, middle, right = evidence[best - 1 : best + 2]
        vertex += 0.5 * (right - left) / (2 * middle - left - right) * (log_weight[1] - log_weight[0])
    return float(10**vertex)
