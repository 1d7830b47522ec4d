"""Derivatives of the signal, the Fisher information, and its inverse."""

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.signals.base import DifferentiableModel, SignalModel

# eigenvalues of the Fisher matrix scaled to a unit diagonal; rounding of float64 sums leaves about 1e-15
SINGULAR = 1e-13


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
    model: SignalModel, kappa: Float[Tensor, "q *space"], sigma: float | Tensor
) -> Float[Tensor, "q q *space"]:
    """Fisher information of each voxel in float64, 1/sigma^2 sum_n dS_n/dkappa_i dS_n/dkappa_j (real part) [1 / SI^2].

    Args:
        kappa: maps [SI].
        sigma: noise SD, a number or broadcastable against the voxels [units of A].
    """
    rows = jacobian(model, kappa.double())
    information = (
        torch.einsum("in...,jn...->ij...", rows.conj(), rows).real
        if rows.is_complex()
        else torch.einsum("in...,jn...->ij...", rows, rows)
    )
    return information / torch.as_tensor(sigma, dtype=torch.float64, device=kappa.device) ** 2


def invert_information(information: Float[Tensor, "q q *space"]) -> Float[Tensor, "q q *space"]:
    """Covariance bound of each voxel; rows and columns of parameters that are not identifiable are inf.

    The matrix is scaled to a unit diagonal first, so that units do not decide what counts as singular. A parameter
    is unidentifiable if it takes part in a direction without information; the others keep their bound.
    """
    q = information.shape[0]
    flat = information.reshape(q, q, -1).permute(2, 0, 1)
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
    return covariance.permute(1, 2, 0).reshape(information.shape)
