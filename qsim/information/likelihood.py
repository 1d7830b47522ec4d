"""The likelihood of a series given the maps, and its gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.information.fisher import jacobian
from qsim.signals import InversionRecovery, InversionRecovery2P
from qsim.signals.base import SignalModel

# elements of one block of images that the likelihood gradient keeps in the cache of a core
_BLOCK = 1 << 16


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
    if (
        not recorded
        and isinstance(model, InversionRecovery | InversionRecovery2P)
        and getattr(model, "tr", None) is None  # its sums know no finite TR
    ):
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
