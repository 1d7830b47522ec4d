"""Joint draws: parameters of one tissue that go together from subject to subject.

A Gaussian copula: the uniform numbers of the draws are turned into normal scores, the scores are correlated, and the
scores turned back, so that every marginal distribution stays exactly what the table says, truncated ones included.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from qsim.values import value

# smallest eigenvalue of a matrix of correlations that can be drawn from
_DEFINITE = 1e-9


@value
class Correlation:
    """Two parameters of a tissue that go together.

    Attributes:
        rows: names of the two parameters.
        rho: correlation of their normal scores [1]. For two normals, not truncated, it is that of the values:
            covariance = rho sd_1 sd_2.
    """

    rows: tuple[str, str]
    rho: float

    def __post_init__(self) -> None:
        if self.rows[0] == self.rows[1]:
            raise ValueError(f"rows must be two different parameters, got {self.rows[0]} twice")
        if not (isfinite(self.rho) and -1 < self.rho < 1):
            raise ValueError(f"rho must lie between -1 and 1, got {self.rho}")


def correlation_matrix(rows: Sequence[str], correlations: Sequence[Correlation]) -> Float[np.ndarray, "q q"]:
    """Correlations of the normal scores of the rows; a pair that is not given, or is not among the rows, has none.

    Raises: ValueError if a pair is given twice, or no such joint distribution exists.
    """
    matrix = np.eye(len(rows))
    seen = set()
    for correlation in correlations:
        pair = frozenset(correlation.rows)
        if pair in seen:
            raise ValueError(f"correlations: {', '.join(sorted(pair))} is given twice")
        seen.add(pair)
        if pair <= set(rows):
            i, j = (rows.index(row) for row in correlation.rows)
            matrix[i, j] = matrix[j, i] = correlation.rho
    if len(rows) and np.linalg.eigvalsh(matrix)[0] < _DEFINITE:
        raise ValueError(
            "correlations: no joint distribution has these values together (their matrix is not positive definite); "
            "bring them closer to 0"
        )
    return matrix


def correlate(
    u: Float[np.ndarray, "b q"], rows: Sequence[str], correlations: Sequence[Correlation]
) -> Float[np.ndarray, "b q"]:
    """Correlate independent uniform numbers.

        z = ndtri(u),   z'_i = sum_{j <= i} L_ij z_j,   u' = ndtr(z'),   L L' = matrix of the correlations

    A row depends on the rows before it only, and a row without correlation to any of those keeps its number to the
    bit: rows that are appended change nothing.

    Args:
        u: uniform numbers of each row [1].
        rows: their names, in order.
        correlations: of any of the rows.
    Source: Nelsen 2006, An Introduction to Copulas, section 2.3, doi:10.1007/0-387-28678-0.
    """
    matrix = correlation_matrix(rows, correlations)
    lower = np.linalg.cholesky(matrix)
    joint = np.nonzero(np.tril(matrix, -1).any(axis=1))[0]
    if len(joint) == 0:
        return u
    scores = ndtri(np.maximum(u, np.finfo(float).tiny))
    together = u.copy()
    for i in joint:
        # sums of single products, not a matrix product: the bytes must not depend on how many samples there are
        together[:, i] = ndtr(sum(lower[i, j] * scores[:, j] for j in range(i + 1) if lower[i, j] != 0.0))
    return together
