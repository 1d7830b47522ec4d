"""A Gauss-Newton step of the likelihood under a Gaussian prior per voxel, differentiable in the prior."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from qsim.information import jacobian
from qsim.signals.base import SignalModel

# elements of a Jacobian that are made together: what the cache of a core holds
_BLOCK = 1 << 18


def quadratic(
    model: SignalModel,
    kappa: Float[Tensor, "b q y x"],
    derivative: Float[Tensor, "b q y x"],
    series: Float[Tensor, "n b y x"],
    sigma: Float[Tensor, "b ys xs"],
) -> tuple[Float[Tensor, "b q y x"], Float[Tensor, "b q q y x"]]:
    """Gradient and Gauss-Newton curvature of the negative log-likelihood in learned coordinates, at the maps `kappa`.

        g = J' r / sigma^2,   H = J' J / sigma^2,   J = dS/dkappa dkappa/du,   r = S(kappa) - images

    Args:
        kappa: maps [SI].
        derivative: dkappa/du of each row.
        series: images [units of A].
        sigma: noise SD [units of A].
    """
    n, b = series.shape[:2]
    q = kappa.shape[1]
    on_cpu = kappa.device.type == "cpu"
    block = max(1, _BLOCK // (q * n * kappa[0, 0].numel())) if on_cpu else b
    slopes, curvatures = [], []
    for part in (slice(i, i + block) for i in range(0, b, block)):
        maps = kappa[part].movedim(1, 0)
        rows = list(jacobian(model, maps))
        residual = model(maps) - series[:, part]
        slopes.append(torch.stack([(row * residual).sum(0) for row in rows], 1))
        upper = {(i, j): (rows[i] * rows[j]).sum(0) for i in range(q) for j in range(i, q)}
        curvatures.append(
            torch.stack([torch.stack([upper[min(i, j), max(i, j)] for j in range(q)], 1) for i in range(q)], 1)
        )
    weight = (1 / sigma**2)[:, None]
    slope = torch.cat(slopes) * derivative * weight
    curvature = torch.cat(curvatures) * derivative[:, :, None] * derivative[:, None] * weight[:, None]
    return slope, curvature


def damped_step(
    slope: Float[Tensor, "b q y x"],
    curvature: Float[Tensor, "b q q y x"],
    towards: Float[Tensor, "b q y x"],
    precision: Float[Tensor, "b q y x"],
) -> tuple[Float[Tensor, "b q y x"], Float[Tensor, "b q y x"]]:
    """Step to the maximum of the quadratic posterior, and its marginal variances.

        minimise  g' d + d' H d / 2 + (d - m)' P (d - m) / 2:   (H + P) d = P m - g

    by a Cholesky factorisation H + P = L L' written out for the few rows of kappa. The variances are the diagonal of
    (H + P)^-1 = (L^-1)' L^-1, and carry no gradient.

    Args:
        slope, curvature: g and H.
        towards: m, where the prior sees the voxel, from where it stands.
        precision: diagonal of P, above 0.
    """
    q = slope.shape[1]
    right = (precision * towards - slope).unbind(1)
    lower: list[list[Tensor]] = [[] for _ in range(q)]
    inverse: list[Tensor] = []
    for i in range(q):
        for j in range(i):
            rest = curvature[:, i, j]
            for k in range(j):
                rest = rest - lower[i][k] * lower[j][k]
            lower[i].append(rest * inverse[j])
        pivot = curvature[:, i, i] + precision[:, i]
        for k in range(i):
            pivot = pivot - lower[i][k] ** 2
        # a Schur complement of H + P is at least P; rounding must not take it below
        pivot = torch.maximum(pivot, precision[:, i])
        inverse.append(torch.rsqrt(pivot))
    forward: list[Tensor] = []
    for i in range(q):
        rest = right[i]
        for k in range(i):
            rest = rest - lower[i][k] * forward[k]
        forward.append(rest * inverse[i])
    step: list[Tensor] = [torch.empty(0)] * q
    for i in reversed(range(q)):
        rest = forward[i]
        for k in range(i + 1, q):
            rest = rest - lower[k][i] * step[k]
        step[i] = rest * inverse[i]
    return torch.stack(step, 1), _variances(lower, inverse)


def _variances(lower: list[list[Tensor]], inverse: list[Tensor]) -> Float[Tensor, "b q y x"]:
    """Diagonal of (L L')^-1 from the rows of L below the diagonal and the inverse of its diagonal."""
    with torch.no_grad():
        variances = []
        for i in range(len(inverse)):
            column = [inverse[i]]
            for k in range(i + 1, len(inverse)):
                rest = sum((lower[k][i + j] * entry for j, entry in enumerate(column)), torch.zeros_like(inverse[i]))
                column.append(-rest * inverse[k])
            variances.append(torch.stack(column).square().sum(0))
        return torch.stack(variances, 1)


def weighted_mean(
    u: Float[Tensor, "b q y x"], weight: Float[Tensor, "b q y x"], radius: int
) -> Float[Tensor, "b q y x"]:
    """Mean of u over a square neighbourhood, weighted: sum w u / sum w; beyond the border nothing counts.

    Source: normalised averaging, Knutsson and Westin 1993, doi:10.1109/CVPR.1993.341081.
    """
    size = 2 * radius + 1
    for kernel, padding in (((size, 1), (radius, 0)), ((1, size), (0, radius))):
        total = functional.avg_pool2d(weight, kernel, 1, padding)
        u = functional.avg_pool2d(weight * u, kernel, 1, padding) / total
        weight = total
    return u
