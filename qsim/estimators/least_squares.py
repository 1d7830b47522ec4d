"""Voxel-wise least squares, batched, to the global minimum of every closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Status
from qsim.estimators.general_fit import GeneralFit
from qsim.estimators.noise_level import given, noise_level
from qsim.estimators.projection.closed_fits import search, usable
from qsim.estimators.projection.separable import Fitted
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.parameters import PARAMETERS, Parameter
from qsim.signals import ClosedForm, SpinLockT2Prep, VariableFlipAngle
from qsim.signals.base import SignalModel


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Least squares per voxel by variable projection: the maximum likelihood under Gaussian noise.

        minimise sum_n (S_n(kappa) - images_n)^2   over A >= 0, B, fractions and times within their bounds, any C

    The minimum of a closed form is the global one: a grid in the logarithms of the times with the amplitudes in closed
    form and every sign pattern of a magnitude series, then Newton steps. Images may be negative (Gaussian noise after
    the modulus).

    look_locker: A, B and T1* are fitted within their bounds, T1 = T1* (B - 1) follows and may lie beyond its own (at
    bound); B <= 1 has no T1 (not computed). A known B of 0 leaves no recovery, and so no T1 (not
    computed). biexponential: where no second decay is to be seen the fraction is 0 (at
    bound) and both times are that of the one decay. spoiled_gradient_echo: REL_B1 must be known.

    Attributes:
        model: one of the closed forms; any other `SignalModel` is fitted by Levenberg-Marquardt from several starts
            (`general_fit`), which does not prove the minimum to be the global one.
        covariance: also return the inverse Fisher information at the estimate, with `sigma`, or where that is None with
            an estimate of it (`noise_level`). Rows that the series cannot tell apart in a voxel have inf.
    Assumes: real Gaussian noise.   Not: Rician noise at low SNR, whose mean is raised.
    """

    model: SignalModel
    covariance: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, ClosedForm):
            # refuses what it cannot fit
            GeneralFit(self.model, self.covariance)
            return
        _check_length(self.model, usable(self.model))

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
            sigma: noise SD, a number or a map, used for the covariance only; it does not change the estimate
                [units of A].
            mask: voxels to fit; None: all.
            known: {"B": number or map} of a recovery: B is not fitted; {"REL_B1": number or map} of
                spoiled_gradient_echo, 1 for the nominal angles; any row of a model that is no closed form.
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model, or the series is too short.
        """
        model = self.model
        if not isinstance(model, ClosedForm):
            return GeneralFit(model, self.covariance)(images, sigma, mask, known)
        y, where = gather(images, model, mask)
        noise = None if sigma is None else given(sigma, where)
        # maps of REL_B1 often hold 0 in air: such voxels are marked, not refused
        ranged = tuple(p for p in PARAMETERS.values() if p.name != "REL_B1")
        fixed = {
            name: values
            for name in usable(model)
            if (values := known_map(known, name, where, usable(model), ranged)) is not None
        }
        if not usable(model):
            known_map(known, "", where, ())
        if isinstance(model, VariableFlipAngle) and not fixed:
            raise InputError(
                f"known.REL_B1: {model.kind} cannot tell REL_B1 from T1; give a measured map, or 1.0 for the nominal "
                "angles"
            )
        _check_length(model, tuple(fixed))
        found = search(model, y, fixed)
        kappa, objective, converged, at_bound = found.kappa, found.objective, found.converged, found.at_bound
        there = _computed(found, fixed)
        if there is not None and not bool(there.all()):
            where = where.masked_scatter(where, there)
            kappa, objective, converged = kappa[:, there], objective[there], converged[there]
            at_bound = None if at_bound is None else at_bound[there]
        status = statuses(kappa, self.parameters, converged, where, tuple(fixed))
        if at_bound is not None:
            stopped = torch.zeros_like(where).masked_scatter(where, at_bound) & (status == Status.OK)
            status[stopped] = int(Status.AT_BOUND)
        maps = scatter(kappa.to(images.dtype), where)
        if not self.covariance:
            return Estimate(maps, status, noise_level=noise)
        if noise is None and kappa.shape[1]:
            freedom = model.n_images - (len(kappa) - len(fixed))
            noise = noise_level(images, None, where, lambda: (objective, freedom))
        level = kappa.new_ones(1) if noise is None else noise.at(where)
        covariance = noise_covariance(model, kappa, level, tuple(fixed)).to(images.dtype)
        variances = scatter(torch.einsum("iiv->iv", covariance), where)
        q = len(kappa)
        full = scatter(covariance.flatten(0, 1), where).reshape(q, q, *where.shape)
        return Estimate(maps, status, {"noise": variances}, full, noise)


def _computed(found: Fitted, fixed: Mapping[str, Tensor]) -> Bool[Tensor, " v"] | None:
    """Voxels that have an estimate; None: all. A - 0 exp(-t / T1) tells nothing of T1."""
    if "B" not in fixed:
        return found.computed
    recovers = (fixed["B"] > 0).expand(found.kappa.shape[1])
    return recovers if found.computed is None else recovers & found.computed


def _check_length(model: ClosedForm, known: Sequence[str]) -> None:
    """Refuse a series that is too short for its model.

    Raises: InputError.
    """
    if isinstance(model, SpinLockT2Prep):
        # refuses by itself times that do not tell its rows
        return
    free = [p.name for p in model.parameters if p.name not in known]
    vfa = isinstance(model, VariableFlipAngle)
    different = len(set(model.flip_angles if isinstance(model, VariableFlipAngle) else model.times))
    if different >= len(free):
        return
    rows = " and ".join((", ".join(free[:-1]), free[-1])) if len(free) > 1 else free[0]
    remedy = f"; give at least {len(free)}"
    if len(usable(model)) > len(known) and not vfa:
        remedy += f", or known {', '.join(usable(model))}"
    raise InputError(
        f"estimators: least-squares cannot tell {rows} of {model.kind} apart from {different} different "
        f"{'flip angles' if vfa else 'times'}{remedy}"
    )
