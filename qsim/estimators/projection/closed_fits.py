"""Which search fits which closed form."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.estimators.projection.decay_search import DecaySearch
from qsim.estimators.projection.flip_search import FlipSearch
from qsim.estimators.projection.joint_search import JointSearch
from qsim.estimators.projection.pair_search import PairSearch
from qsim.estimators.projection.plane_search import PlaneSearch
from qsim.estimators.projection.ray_search import RaySearch
from qsim.estimators.projection.recovery_search import RecoverySearch
from qsim.estimators.projection.separable import Fitted, units
from qsim.parameters import T1
from qsim.signals import (
    BiExponential,
    ClosedForm,
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    OffsetDecay,
    SaturationRecovery,
    SpinLockT2Prep,
    VariableFlipAngle,
)
from qsim.signals.decays import MonoExponential

# rows in the units of the images
_LINEAR = ("A", "C")


def usable(model: ClosedForm) -> tuple[str, ...]:
    """Rows that may be known."""
    if isinstance(model, VariableFlipAngle):
        return ("REL_B1",)
    return ("B",) if isinstance(model, InversionRecovery | SaturationRecovery | LookLocker) else ()


def search(
    model: ClosedForm | MonoExponential, y: Float[Tensor, "n v"], known: Mapping[str, Float[Tensor, " v_or_1"]]
) -> Fitted:
    """The global least-squares minimum of every voxel.

    Args:
        y: series of the voxels [units of A].
        known: rows that are not fitted, of those that are `usable` [SI].
    """
    if isinstance(model, MonoExponential):
        # takes the units out by itself, chunk by chunk
        a, t, objective, converged = DecaySearch(model.times, model.parameters[1])(y)
        return Fitted(torch.stack((a, t)), objective, converged)
    scale = units(y)
    found = _search(model, y / scale, known)
    # of every row, whether it has the units of the images
    linear = torch.tensor([p.name in _LINEAR for p in model.parameters], device=y.device)[:, None]
    kappa = torch.where(linear, found.kappa * scale, found.kappa)
    return replace(found, kappa=kappa, objective=found.objective * scale * scale)


def _search(model: ClosedForm, y: Float[Tensor, "n v"], known: Mapping[str, Float[Tensor, " v_or_1"]]) -> Fitted:
    """The same for voxels whose largest image is about 1."""
    depth = known.get("B")
    match model:
        case InversionRecovery():
            return _recovery(model, model.tr, y, depth)
        case SaturationRecovery():
            return _recovery(model, None, y, depth)
        case LookLocker():
            return _look_locker(_recovery(model, None, y, depth), model, fitted_b=depth is None)
        case InversionRecovery2P():
            return _ray(model.times, 1.0, not model.signed, None, y, y.new_tensor([2.0], dtype=torch.float64))
        case OffsetDecay():
            return PlaneSearch(model.times, model.parameters[1], y.device)(y)
        case BiExponential():
            return PairSearch(model.times, model.parameters[3], y.device)(y)
        case SpinLockT2Prep():
            return JointSearch(model.tsl, model.te_prep, y.device)(y)
        case VariableFlipAngle():
            return _flip(model, y, known["REL_B1"])
        case _:
            raise AssertionError(model)


def _recovery(
    model: InversionRecovery | SaturationRecovery | LookLocker,
    tr: float | None,
    y: Float[Tensor, "n v"],
    depth: Float[Tensor, " v_or_1"] | None,
) -> Fitted:
    """A, B and T1 (of a Look-Locker readout: T1*)."""
    if depth is None:
        deepest = model.parameters[1].upper
        best = _tables(model.times, model.signed, deepest, tr, y.device)(y)
        return Fitted(torch.stack((best.a, best.b, best.t1)), best.objective, best.converged)
    found = _ray(model.times, 1.0, not model.signed, tr, y, depth)
    a, t1 = found.kappa
    return Fitted(torch.stack((a, depth.expand_as(a), t1)), found.objective, found.converged)


@lru_cache(maxsize=8)
def _tables(
    times: tuple[float, ...], signed: bool, deepest: float, tr: float | None, device: torch.device
) -> RecoverySearch:
    """Of one protocol: patches and repeats of a study share them."""
    return RecoverySearch(times, signed, deepest, tr, device)


def _ray(
    times: tuple[float, ...],
    constant: float,
    rectify: bool,
    tr: float | None,
    y: Float[Tensor, "n v"],
    b: Float[Tensor, " v_or_1"],
) -> Fitted:
    a, t1, objective, converged = RaySearch(times, T1, constant, rectify, tr, y.device)(y, b)
    return Fitted(torch.stack((a, t1)), objective, converged)


def _look_locker(found: Fitted, model: LookLocker, fitted_b: bool) -> Fitted:
    """T1 = T1* (B - 1). Where B <= 1 there is none."""
    a, b, apparent = found.kappa
    t1 = apparent * (b - 1)
    stopped = (apparent <= T1.lower * (1 + 1e-6)) | (apparent >= T1.upper * (1 - 1e-6))
    kappa = torch.stack((a, b, t1))
    computed = (b > model.parameters[1].lower) & (a > 0) if fitted_b else b > model.parameters[1].lower
    return Fitted(kappa, found.objective, found.converged, computed, stopped)


def _flip(model: VariableFlipAngle, y: Float[Tensor, "n v"], rel_b1: Float[Tensor, " v_or_1"]) -> Fitted:
    """Angles that are not actual ones leave the voxel out."""
    scale = rel_b1.expand(y.shape[1])
    computed = (scale > 0) & (scale * max(model.flip_angles) < torch.pi)
    found = FlipSearch(model.flip_angles, model.tr, y.device)(y, torch.where(computed, scale, 1.0))
    return Fitted(found.kappa, found.objective, found.converged, computed)
