"""How certain an estimate is: the inverse of the second derivatives of what was minimised."""

from math import isinf

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.estimators.descent.voxel_problem import Partial, Problem, gradient
from qsim.information import invert_information, jacobian

# numbers of the Jacobian of one chunk, which stays in the processor's cache
_BLOCK = 60_000
# smallest eigenvalue of an observed information on a unit diagonal that is trusted
_DEFINITE = 1e-9


def covariance_at(
    problem: Problem, images: Float[Tensor, "n v"], sigma: Float[Tensor, " v_or_1"], kappa: Float[Tensor, "q v"]
) -> Float[Tensor, "q q v"]:
    """Inverse of the observed information, the second derivatives of F at the estimate [SI^2].

    They are central differences of the gradient in theta. Where they are not positive definite (a row on a bound, a
    signal lost in the noise) the expected information of the likelihood takes their place; rows that are not free have
    0, rows that the series cannot identify inf.
    """
    free = list(problem.free)
    q, voxels = kappa.shape
    result = kappa.new_zeros(q, q, voxels)
    size = max(64, _BLOCK // (images.shape[0] * q))
    for first in range(0, voxels, size):
        part = slice(first, first + size)
        own = sigma if sigma.numel() == 1 else sigma[part]
        inverse = _inverse_information(problem, images[:, part], own, kappa[:, part])
        for i, row in enumerate(free):
            for j, column in enumerate(free):
                result[row, column, part] = inverse[i, j]
    return result


def _inverse_information(problem: Problem, images: Tensor, sigma: Tensor, kappa: Tensor) -> Tensor:
    free = list(problem.free)
    theta = problem.coordinates.theta(kappa)
    brightest = images.abs().amax(0)
    columns = []
    for row in free:
        # of fourth-root-of-rounding size: the error of the difference is about 1e-8 of the second derivative
        step = torch.full_like(theta[row], 1e-4)
        if not problem.coordinates.log[row]:
            # rows without an end are in the unit of the images
            unit = brightest if isinf(problem.coordinates.parameters[row].upper) else torch.ones_like(brightest)
            step = step * torch.maximum(theta[row].abs(), 1e-2 * unit)
        above, below = theta.clone(), theta.clone()
        above[row] += step
        below[row] -= step
        slopes = [gradient(problem, images, sigma, at)[1] for at in (above, below)]
        columns.append((slopes[0] - slopes[1]) / (2 * step))
    if not columns:
        return theta.new_zeros(0, 0, theta.shape[1])
    observed = torch.stack(columns)
    observed = (observed + observed.transpose(0, 1)) / 2
    matrices = observed.permute(2, 0, 1)
    finite = torch.isfinite(matrices).all(-1).all(-1)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    usable = finite & (diagonal > 0).all(-1)
    scale = torch.where(usable[:, None], diagonal, 1.0).rsqrt()
    scaled = torch.where(usable[:, None, None], matrices * scale[:, :, None] * scale[:, None], 0.0)
    usable &= torch.linalg.eigvalsh(scaled)[:, 0] > _DEFINITE
    at = torch.nonzero(~usable).squeeze(1)
    if at.numel():
        own = sigma if sigma.numel() == 1 else sigma[at]
        observed[:, :, at] = _expected(problem, own, theta[:, at])
    # rows of T: variance of T = T^2 variance of log T
    slope = problem.coordinates.slopes(kappa)[free]
    return invert_information(observed) * slope[:, None] * slope[None]


def _expected(problem: Problem, sigma: Tensor, theta: Tensor) -> Tensor:
    """Fisher information in theta, with the curvature of the prior."""
    free = list(problem.free)
    kappa = problem.coordinates.kappa(theta)
    rows = jacobian(Partial(problem.model, kappa, problem.free), kappa[free])
    rows = rows * problem.coordinates.slopes(kappa)[free][:, None]
    weight = problem.likelihood.information(problem.model(kappa), sigma)
    information = torch.einsum("inv,jnv->ijv", rows * weight, rows)
    if problem.prior is not None:
        stiff = problem.prior.terms(theta)[2]
        for i, row in enumerate(free):
            information[i, i] += stiff[row]
    return information
