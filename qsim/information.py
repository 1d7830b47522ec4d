"""Gaussian likelihood and its analytic gradient, Fisher information, and the Cramér-Rao bound: free, shared, known.

The bound is that of real Gaussian noise of one sigma (after the modulus, or on the signed signal). It always runs in
float64: the Fisher matrix of a short inversion recovery is nearly singular.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.parameters import Parameter
from qsim.signals import InversionRecovery, InversionRecovery2P
from qsim.signals.base import DifferentiableModel, SignalModel

# eigenvalues of the Fisher matrix scaled to a unit diagonal; rounding of float64 sums leaves about 1e-15
_SINGULAR = 1e-13
# elements of one block of images that the likelihood gradient keeps in the cache of a core
_BLOCK = 1 << 16


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


def negative_log_likelihood(
    model: SignalModel,
    kappa: Float[Tensor, "q *space"],
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor | None = None,
    *,
    per_sigma2: bool = True,
    per_n: bool = True,
) -> Float[Tensor, "*space"]:
    """Gaussian negative log-likelihood of each voxel, without the term that does not depend on kappa.

        L = 1/N 1/sigma^2 sum_n (f_n(kappa) - S_n)^2 / 2

    Args:
        kappa: maps [SI].
        images: measured series S [units of A].
        sigma: noise SD, a number or broadcastable against the voxels [units of A]; needed if `per_sigma2`.
        per_sigma2: divide by sigma^2; without it the plain sum of squares of the authors' package.
        per_n: divide by the number of images, so that the size does not grow with the length of the series.
    Source: sabidussi2021 sections 2.1 and 2.2.1 (L of Eq. 2 under the Gaussian noise of Eq. 1); there without the 1/N.
    """
    total = (model(kappa) - images).square().sum(0) / 2
    return total * _weight(images.shape[0], sigma, per_sigma2, per_n)


def likelihood_gradient(
    model: SignalModel,
    kappa: Float[Tensor, "q *space"],
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor | None = None,
    *,
    per_sigma2: bool = True,
    per_n: bool = True,
) -> Float[Tensor, "q *space"]:
    """Gradient of `negative_log_likelihood` of each voxel: the input of the recurrent inference machine.

        dL/dkappa = 1/N 1/sigma^2 sum_n (f_n - S_n) df_n/dkappa

    Any axes may follow the first: a batch is an axis of voxels. Where autograd must pass through the result (kappa
    requires a gradient and recording is on) the Jacobian is formed; else the sums run image by image in the cache.

    Args:
        kappa: maps [SI].
        images: measured series S [units of A].
        sigma: noise SD, a number or broadcastable against the voxels [units of A]; needed if `per_sigma2`.
        per_sigma2: divide by sigma^2.
        per_n: divide by the number of images.
    Source: sabidussi2021 section 3 (the gradient in Eq. 4).
    """
    weight = _weight(images.shape[0], sigma, per_sigma2, per_n)
    recorded = torch.is_grad_enabled() and (kappa.requires_grad or images.requires_grad)
    if not recorded and isinstance(model, InversionRecovery | InversionRecovery2P):
        return _recovery_gradient(model, kappa, images).mul_(weight)
    residual = model(kappa) - images
    return (residual * jacobian(model, kappa)).sum(1) * weight


def _weight(n_images: int, sigma: float | Tensor | None, per_sigma2: bool, per_n: bool) -> float | Tensor:
    """The two normalisations."""
    weight: float | Tensor = 1 / n_images if per_n else 1.0
    if not per_sigma2:
        return weight
    if sigma is None:
        raise ValueError("sigma is needed to weigh the likelihood by 1 / sigma^2; give it, or set per_sigma2=False")
    return weight / sigma**2


def _recovery_gradient(
    model: InversionRecovery | InversionRecovery2P, kappa: Float[Tensor, "q *space"], images: Float[Tensor, "n *space"]
) -> Float[Tensor, "q *space"]:
    """Gradient of sum_n (|f_n| - S_n)^2 / 2 with three running sums over the images instead of a Jacobian.

    With w_n = f_n - sign(f_n) S_n (magnitude) or f_n - S_n (signed) and E_n = exp(-TI_n / T1):

        dA = sum w (1 - B E),   dB = -A sum w E,   dT1 = -A B / T1^2 sum w TI E
    """
    free = isinstance(model, InversionRecovery)
    a, t1 = kappa[0], kappa[-1]
    b = kappa[1] if free else torch.full_like(a, 2.0)
    rate, depth = -1 / t1, -a * b
    sum_w, sum_we, sum_wte = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a)
    block = max(1, _BLOCK // max(1, a.numel())) if a.device.type == "cpu" else images.shape[0]
    for start in range(0, images.shape[0], block):
        measured = images[start : start + block]
        ti = a.new_tensor(model.ti[start : start + block]).reshape(-1, *(1,) * a.ndim)
        e = torch.exp(ti * rate)
        w = torch.addcmul(a, depth, e)
        # sign(f) S by its sign bit: +S where f is +0, as the Jacobian has it
        w = w.sub_(measured) if model.signed else w.sub_(torch.copysign(torch.ones_like(w), w).mul_(measured))
        sum_w += w.sum(0)
        sum_we += w.mul_(e).sum(0)
        sum_wte += w.mul_(ti).sum(0)
    rows = [sum_w - b * sum_we]
    if free:
        rows.append(-a * sum_we)
    rows.append(depth / t1**2 * sum_wte)
    return torch.stack(rows)


@dataclass(frozen=True, slots=True)
class Bound:
    """Cramér-Rao bound of the standard deviation of any unbiased estimator.

    Attributes:
        parameters: names of the rows.
        kappa: where it was evaluated [SI].
        sd: smallest standard deviation; inf where the series cannot identify the parameter, 0 where it is known [SI].
    """

    parameters: tuple[Parameter, ...]
    kappa: Float[Tensor, "q *space"]
    sd: Float[Tensor, "q *space"]

    @property
    def cv(self) -> Float[Tensor, "q *space"]:
        """`sd` in percent of |kappa|."""
        return 100 * self.sd / self.kappa.abs()

    @property
    def identifiable(self) -> Tensor:
        """Where the bound is finite, per row and voxel."""
        return torch.isfinite(self.sd)


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
    null = values < _SINGULAR
    inverse = torch.where(null, 0.0, 1 / torch.where(null, 1.0, values))
    covariance = (vectors * inverse[:, None, :]) @ vectors.mT / safe[:, :, None] / safe[:, None, :]
    # a component of 1e-6 in a null direction already adds more variance than the rest of the series can remove
    lost = ((vectors.abs() > 1e-6) & null[:, None, :]).any(-1) | broken[:, None]
    covariance = torch.where(lost[:, :, None] | lost[:, None, :], torch.inf, covariance)
    return covariance.permute(1, 2, 0).reshape(information.shape)


def crb(
    model: SignalModel,
    kappa: Float[Tensor, "q *space"],
    sigma: float | Tensor,
    *,
    shared: Sequence[str] = (),
    n_voxels: int = 1,
    known: Sequence[str] = (),
) -> Bound:
    """Cramér-Rao bound of every parameter of every voxel.

    Args:
        kappa: true values [SI]. With `shared`, its voxels are the set over which the parameter is one number; they may
            differ in every other row.
        sigma: noise SD, a number or broadcastable against the voxels [units of A].
        shared: names of the parameters that are one number for all voxels; () leaves every parameter free per voxel.
        n_voxels: how many times the voxels of `kappa` occur in the shared set: `crb(model, one_voxel, sigma,
            shared=("B",), n_voxels=200)` is B shared over 200 equal voxels. Without `shared` it changes nothing.
        known: names of the parameters that are known; their bound is 0.
    Raises: ValueError if a name is not a row of the model, or is both shared and known.
    """
    names = [p.name for p in model.parameters]
    for field, given in (("shared", shared), ("known", known)):
        for name in given:
            if name not in names:
                raise ValueError(f"{field}: the model has no parameter {name!r}; it has {', '.join(names)}")
    if set(shared) & set(known):
        raise ValueError(f"known: {', '.join(sorted(set(shared) & set(known)))} cannot be shared and known")
    if n_voxels < 1:
        raise ValueError(f"n_voxels must be at least 1, got {n_voxels}")
    kappa = kappa.double()
    space = kappa.shape[1:]
    information = fisher_information(model, kappa, sigma)
    # sigma may carry voxel axes that kappa broadcasts against
    information = information.reshape(len(names), len(names), prod(space))
    local = [i for i, name in enumerate(names) if name not in shared and name not in known]
    common = [i for i, name in enumerate(names) if name in shared]

    variances = torch.zeros(len(names), prod(space), dtype=torch.float64, device=kappa.device)
    local_bound = invert_information(information[local][:, local])
    if common:
        cross = information[local][:, common]
        # a voxel whose own parameters cannot be identified tells nothing certain about the shared one
        usable = torch.isfinite(local_bound).all(0).all(0) if local else torch.ones_like(variances[0], dtype=torch.bool)
        finite = torch.where(usable, local_bound, 0.0)
        gain = torch.einsum("ijv,jkv->ikv", finite, cross)
        own = information[common][:, common]
        left = torch.where(usable, own - torch.einsum("jkv,jlv->klv", cross, gain), 0.0)
        # Schur complement: what the set of voxels says about the shared parameters once their own are eliminated
        total = left.sum(-1)
        # as many images as own parameters: nothing is left for the shared one but the rounding of the difference
        told = total.diagonal() > _SINGULAR * own.sum(-1).diagonal()
        common_bound = invert_information(n_voxels * torch.where(told[:, None] & told, total, 0.0))
        # inf x 0 would be NaN where an unidentifiable shared parameter does not touch a voxel
        spread = gain[:, :, None] * gain[:, None]
        extra = torch.where(spread == 0, 0.0, spread * common_bound[:, :, None]).sum((1, 2))
        diagonal = torch.einsum("iiv->iv", local_bound)
        variances[local] = torch.where(torch.isnan(diagonal + extra), torch.inf, diagonal + extra)
        variances[common] = torch.einsum("kk->k", common_bound)[:, None].expand(-1, prod(space))
    else:
        variances[local] = torch.einsum("iiv->iv", local_bound)
    return Bound(model.parameters, kappa, variances.sqrt().reshape(kappa.shape))
