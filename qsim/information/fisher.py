"""Derivatives of the signal, the Fisher information, and its inverse."""

from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from qsim.information.rician_bound import information_factor
from qsim.signals.base import DifferentiableModel, SignalModel

# eigenvalues of the Fisher matrix scaled to a unit diagonal; rounding of float64 sums leaves about 1e-15
SINGULAR = 1e-13
# determinant of that matrix above which it is inverted by formula: its smallest eigenvalue is then above 4e-9
_REGULAR = 1e-8
# numbers of one block of derivatives: what the cache of a core holds, and what a GPU takes at once
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 25}


def jacobian(model: SignalModel, kappa: Float[Tensor, "q *space"]) -> Inexact[Tensor, "q n *space"]:
    """d S_n / d kappa_q, in closed form if the model has one, else by forward-mode differentiation.

    Args:
        kappa: maps [SI].
    Assumes: voxels do not mix in the model, so that one tangent per row serves all voxels at once.
    """
    if isinstance(model, DifferentiableModel):
        return model.jacobian(kappa)
    n_rows = kappa.shape[0]
    tangents = torch.eye(n_rows, dtype=kappa.dtype, device=kappa.device).reshape(
        n_rows, n_rows, *(1,) * (kappa.ndim - 1)
    )
    rows = [torch.func.jvp(model, (kappa,), (t.expand_as(kappa).contiguous(),))[1] for t in tangents]
    return torch.stack(rows)


def fisher_information(
    model: SignalModel, kappa: Float[Tensor, "q *space"], sigma: float | Tensor, coils: int = 0
) -> Float[Tensor, "q q *voxels"]:
    """Fisher information of each voxel in float64 [1 / SI^2].

        1/sigma^2 sum_n J_n dS_n/dkappa_i dS_n/dkappa_j (real part),    J_n = 1, or J(|S_n| / sigma, L) of a magnitude

    Args:
        kappa: maps [SI].
        sigma: noise SD per real channel, a number or broadcastable against the voxels [units of A].
        coils: 0: Gaussian noise; 1: Rician; more: non-central chi of so many coils.
    Assumes: voxels do not mix; they are taken in blocks, which may change the last bits.
    """
    kappa = kappa.double()
    noise = torch.as_tensor(sigma, dtype=torch.float64, device=kappa.device)
    q, space = kappa.shape[0], np.broadcast_shapes(kappa.shape[1:], noise.shape)
    n_voxels = prod(space)
    missing = len(space) - (kappa.ndim - 1)
    voxels = kappa.reshape(q, *(1,) * missing, *kappa.shape[1:]).expand(q, *space).reshape(q, n_voxels)
    noise = noise.reshape(1).expand(n_voxels) if noise.numel() == 1 else noise.expand(space).reshape(n_voxels)
    information = torch.empty(q, q, n_voxels, dtype=torch.float64, device=kappa.device)
    size = max(1, _BLOCK.get(kappa.device.type, 1 << 25) // (q * model.n_images))
    for start in range(0, n_voxels, size):
        part = slice(start, start + size)
        _fill(information[..., part], model, voxels[:, part], noise[part], coils)
    return information.reshape(q, q, *space)


def _fill(
    out: Float[Tensor, "q q v"], model: SignalModel, kappa: Float[Tensor, "q v"], sigma: Float[Tensor, " v"], coils: int
) -> None:
    """Write the information of one block of voxels."""
    rows = jacobian(model, kappa)
    weighted = rows
    if coils:
        signal = model(kappa)
        if rows.is_complex():
            # slope of the modulus
            rows = (rows * torch.sgn(signal).conj()).real
        weighted = rows * information_factor(signal.abs() / sigma, coils)
    q, n, v = rows.shape
    ones = torch.ones(1, n, dtype=torch.float64, device=rows.device)
    weight = 1 / sigma**2
    for i in range(q):
        for j in range(i + 1):
            product = (rows[i].conj() * weighted[j]).real if rows.is_complex() else rows[i] * weighted[j]
            # a product with ones adds along images faster than a sum does
            out[i, j] = out[j, i] = (ones @ product).reshape(v) * weight


def invert_information(information: Float[Tensor, "q q *space"]) -> Float[Tensor, "q q *space"]:
    """Covariance bound of each voxel; rows and columns of parameters that are not identifiable are inf.

    The matrix is scaled to a unit diagonal first, so that units do not decide what counts as singular. A parameter
    is unidentifiable if it takes part in a direction without information; the others keep their bound.
    Up to three parameters that are far from singular go by formula, all else by eigenvalues.
    """
    q = information.shape[0]
    flat = information.reshape(q, q, prod(information.shape[2:]))
    if not 1 <= q <= 3:
        return _by_eigenvalues(flat).reshape(information.shape)
    covariance, regular = _by_formula(flat)
    if not bool(regular.all()):
        rest = torch.nonzero(~regular).flatten()
        covariance[..., rest] = _by_eigenvalues(flat[..., rest])
    return covariance.reshape(information.shape)


def _by_formula(flat: Float[Tensor, "q q v"]) -> tuple[Float[Tensor, "q q v"], Bool[Tensor, " v"]]:
    """Inverse by cofactors of the scaled matrix, and where it is to be trusted.

    Its determinant is at most 2.25 times its smallest eigenvalue, since the three add up to 3. The determinant is the
    product of the pivots of a Cholesky decomposition, which lose no more digits than the matrix has lost already.
    """
    q = flat.shape[0]
    scale = torch.stack([flat[i, i] for i in range(q)]).sqrt()
    one = torch.ones_like(scale[0])
    if q == 1:
        cofactors = {(0, 0): one}
        determinant = one
    elif q == 2:
        r = flat[0, 1] / (scale[0] * scale[1])
        cofactors = {(0, 0): one, (1, 1): one, (0, 1): -r}
        determinant = (1 - r) * (1 + r)
    else:
        a, b, c = (flat[i, j] / (scale[i] * scale[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        first, cross = (1 - a) * (1 + a), c - a * b
        cofactors = {
            (0, 0): (1 - c) * (1 + c),
            (1, 1): (1 - b) * (1 + b),
            (2, 2): first,
            (0, 1): b * c - a,
            (0, 2): a * c - b,
            (1, 2): -cross,
        }
        determinant = first * ((1 - b) * (1 + b) - cross * cross / first)
    # false where anything is not a number
    regular = (determinant > _REGULAR) & torch.isfinite(scale).all(0) & (scale > 0).all(0)
    covariance = torch.empty_like(flat)
    for (i, j), cofactor in cofactors.items():
        covariance[i, j] = covariance[j, i] = cofactor / determinant / (scale[i] * scale[j])
    return covariance, regular


def _by_eigenvalues(matrices: Float[Tensor, "q q v"]) -> Float[Tensor, "q q v"]:
    """Inverse on the directions that hold information."""
    flat = matrices.permute(2, 0, 1)
    scale = flat.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    # NaN or inf in: nothing is known about the voxel
    broken = ~torch.isfinite(flat).all(-1).all(-1)
    safe = torch.where((scale > 0) & torch.isfinite(scale), scale, 1.0)
    scaled = torch.nan_to_num(flat / safe[:, :, None] / safe[:, None, :], posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(scaled)
    null = values < SINGULAR
    inverse = torch.where(null, 0.0, 1 / torch.where(null, 1.0, values))
    covariance = (vectors * inverse[:, None, :]) @ vectors.mT / safe[:, :, None] / safe[:, None, :]
    # a component of 1e-6 in a null direction already adds more variance than the rest of the series can remove
    lost = ((vectors.abs() > 1e-6) & null[:, None, :]).any(-1) | broken[:, None]
    covariance = torch.where(lost[:, :, None] | lost[:, None, :], torch.inf, covariance)
    return covariance.permute(1, 2, 0)
