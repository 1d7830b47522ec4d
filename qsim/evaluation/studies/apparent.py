"""Apparent relaxation times: what the fits of two and of three parameters make of the images of one tissue."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qsim.estimators import Status
from qsim.estimators.least_squares import LeastSquares
from qsim.evaluation.table import ALL, Row
from qsim.parameters import T1, T1RHO, T2, Parameter
from qsim.signals import ClosedForm, InversionRecovery, InversionRecovery2P, OffsetDecay, SpinLock, T2Prep
from qsim.signals.preparations import AnyPreparation, Inversion, SpinLockPreparation
from qsim.values import value

Fit = Literal["2p", "3p"]
FITS: tuple[Fit, ...] = ("2p", "3p")
# an apparent time within this of the truth counts as right [%]
TOLERANCE = 5.0


@value
class TissueTimes:
    """A tissue of a study of sequences: fixed relaxation times, with their source.

    Attributes:
        name: in tables.
        t1, t2: relaxation times [s].
        t1rho: on resonance; spin-lock preparations need it [s].
        source: where the numbers come from; "to be sourced" where nobody knows.
    """

    name: str
    t1: float
    t2: float
    t1rho: float | None = None
    source: str

    def __post_init__(self) -> None:
        for field in ("t1", "t2", "t1rho"):
            time = getattr(self, field)
            if time is None:
                continue
            if not (isfinite(time) and time > 0):
                raise ValueError(f"{field} must be above 0 s, got {time:g}")
            if time > 20:
                raise ValueError(f"{field} must be in seconds, got {time:g}; divide by 1000 if these are milliseconds")
        if self.t2 > 2 * self.t1:
            raise ValueError(f"t2 of {self.t2:g} s exceeds 2 t1, which no tissue can; are they swapped?")


def target(preparation: AnyPreparation) -> Parameter:
    """The relaxation time that the preparation is made to measure."""
    if isinstance(preparation, Inversion):
        return T1
    return T1RHO if isinstance(preparation, SpinLockPreparation) else T2


def truth(preparation: AnyPreparation, tissue: TissueTimes) -> float:
    """Its true value [s]; NaN if the tissue has none."""
    return {"T1": tissue.t1, "T2": tissue.t2, "T1RHO": tissue.t1rho or float("nan")}[target(preparation).name]


def label(preparation: AnyPreparation) -> str:
    """Name in tables, without the pulses."""
    if isinstance(preparation, SpinLockPreparation):
        return preparation.cluster
    if isinstance(preparation, Inversion):
        return f"{preparation.pulse} inversion"
    return (
        preparation.refocusing
        + (" composite" if preparation.composite else "")
        + (" with composite tip-up" if preparation.tip_up == "composite" else "")
    )


def pulses(preparation: AnyPreparation) -> str:
    """What its pulses are: `hard`, or the amplitude of rectangular ones."""
    if isinstance(preparation, Inversion):
        return preparation.pulse
    return "hard" if preparation.pulse_b1 is None else f"{preparation.pulse_b1:g} Hz"


def fit_models(preparation: AnyPreparation) -> dict[Fit, ClosedForm]:
    """The closed forms that are fitted: without and with a third parameter.

    A decay A exp(-t / T), and A exp(-t / T) + C. An inversion recovery |A (1 - 2 exp(-TI / T1))|, and with B free.
    """
    times = preparation.times
    if isinstance(preparation, Inversion):
        return {"2p": InversionRecovery2P(ti=times), "3p": InversionRecovery(ti=times)}
    if isinstance(preparation, SpinLockPreparation):
        return {"2p": SpinLock(tsl=times), "3p": OffsetDecay(tsl=times)}
    return {"2p": T2Prep(te_prep=times), "3p": OffsetDecay(te=times)}


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fit of many series.

    Attributes:
        time: apparent relaxation time [s].
        residual: root mean square of images minus fit, of that of the images [%].
        status: of each fit (`Status`).
        kappa: all rows of the fit, in the order of its model [SI].
    """

    time: Float[np.ndarray, "*space"]
    residual: Float[np.ndarray, "*space"]
    status: UInt8[np.ndarray, "*space"]
    kappa: Float[np.ndarray, "q *space"]

    @property
    def failed(self) -> Bool[np.ndarray, "*space"]:
        """Where no estimate can be trusted: not converged, not computed, or at the end of the searched range."""
        return self.status != int(Status.OK)

    def relative_bias(self, true: Float[np.ndarray, "*broadcast"] | float) -> Float[np.ndarray, "*space"]:
        """Apparent minus true time, of the true one [%]."""
        return 100 * (self.time - true) / true


def fit(model: ClosedForm, images: Float[Tensor, "n *space"]) -> Fitted:
    """Fit every series with the registered least squares.

    Args:
        images: magnitudes [units of A].
    """
    estimate = LeastSquares(model)(images.double())
    row = next(i for i, p in enumerate(model.parameters) if p.name in ("T1", "T2", "T1RHO"))
    residual = (model(estimate.kappa) - images).square().mean(0).sqrt() / images.square().mean(0).sqrt()
    return Fitted(
        time=estimate.kappa[row].numpy(),
        residual=100 * residual.numpy(),
        status=estimate.status.numpy(),
        kappa=estimate.kappa.numpy(),
    )


def noise_free_row(study: str, estimator: str, tissue: str, parameter: str, metric: str, number: float, n: int) -> Row:
    """A row of the long table for images without noise: the SNR is infinite, there is nothing to draw."""
    return Row(study, estimator, tissue, parameter, inf, 0.0, ALL, metric, number, float("nan"), float("nan"), n)


def axis(low: float, high: float, n: int) -> Float[Tensor, " n"]:
    """`n` equal steps, exact at the middle of a symmetric range."""
    values = np.linspace(low, high, n)
    # linspace leaves 1e-15 where 0 or 1 is meant
    return torch.tensor(np.round(values, 12))
