"""Voxel-wise least squares of the closed forms, batched, to the global minimum."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.plane_search import PlaneSearch
from qsim.estimators.ray_search import RaySearch
from qsim.estimators.recovery_search import RecoverySearch
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.parameters import Parameter
from qsim.signals import ClosedForm, InversionRecovery, InversionRecovery2P, OffsetDecay


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Least squares per voxel by variable projection: the maximum likelihood under Gaussian noise.

        minimise sum_n (S_n(kappa) - images_n)^2   over A >= 0, B in [0, 3], any C, T within its bounds

    The minimum is the global one: a grid in log T with the amplitudes in closed form and every sign pattern of a
    magnitude series, then Newton steps. Images may be negative (Gaussian noise after the modulus).

    Attributes:
        model: one of the closed forms.
        covariance: also return the inverse Fisher information at the estimate, with `sigma`, or where that is None
            with the residual's own estimate on N - Q degrees of freedom. A voxel whose information is singular has inf.
    Assumes: real Gaussian noise of one sigma per voxel.   Not: Rician noise at low SNR, whose mean is raised.
    """

    model: ClosedForm
    covariance: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, ClosedForm):
            raise InputError(
                f"estimators: least-squares needs a closed form (inversion_recovery, inversion_recovery_2p, t2_prep, "
                f"spin_lock, spin_echo, offset_decay), got {type(self.model).__name__}"
            )
        if isinstance(self.model, OffsetDecay) and len(set(self.model.times)) < 3:
            raise InputError(
                f"estimators: least-squares cannot tell A, {self.parameters[1].name} and C of offset_decay apart from "
                f"{len(set(self.model.times))} different times; give at least 3"
            )

    @property
    def name(self) -> str:
        return "least-squares"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Fit every voxel.

        Args:
            images: the series [units of A].
            sigma: noise SD, used for the covariance only; it does not change the estimate [units of A].
            mask: voxels to fit; None: all.
            known: {"B": number or map} with inversion_recovery: B is not fitted.
        Raises: InputError if the series, the mask or `known` does not fit the model.
        """
        model = self.model
        free_b = isinstance(model, InversionRecovery)
        y, where = gather(images, model, mask)
        depth = known_map(known, "B", where, ("B",) if free_b else ())
        if isinstance(model, InversionRecovery) and depth is None:
            solution = _recovery_search(model.ti, model.signed)(y)
            rows = [solution.a, solution.b, solution.t1]
            converged, objective = solution.converged, solution.objective
        elif isinstance(model, OffsetDecay):
            *rows, objective, converged = PlaneSearch(model.times, self.parameters[1])(y)
        else:
            recovering = isinstance(model, InversionRecovery | InversionRecovery2P)
            rectify = isinstance(model, InversionRecovery | InversionRecovery2P) and not model.signed
            search = RaySearch(model.times, self.parameters[-1], 1.0 if recovering else 0.0, rectify)
            beta = depth if depth is not None else y.new_tensor([2.0 if recovering else -1.0], dtype=torch.float64)
            a, t, objective, converged = search(y, beta)
            rows = [a, beta.expand_as(a), t] if free_b else [a, t]
        kappa = torch.stack(rows)
        fixed = ("B",) if depth is not None else ()
        status = statuses(kappa, self.parameters, converged, where, fixed)
        if not self.covariance:
            return Estimate(scatter(kappa.to(images.dtype), where), status)
        if sigma is None:
            freedom = model.n_images - (len(rows) - len(fixed))
            if freedom < 1:
                raise InputError(f"sigma: {model.n_images} images leave no residual to estimate it from; give sigma")
            noise = (objective / freedom).sqrt()
        else:
            noise = torch.as_tensor(sigma, dtype=torch.float64, device=images.device).expand(where.shape)[where]
        covariance = noise_covariance(model, kappa, noise, fixed).to(images.dtype)
        variances = scatter(torch.einsum("iiv->iv", covariance), where)
        q = len(rows)
        full = scatter(covariance.reshape(q * q, -1), where).reshape(q, q, *where.shape)
        return Estimate(scatter(kappa.to(images.dtype), where), status, {"noise": variances}, full)


def _recovery_search(ti: tuple[float, ...], signed: bool) -> RecoverySearch:
    return RecoverySearch(ti, signed)
