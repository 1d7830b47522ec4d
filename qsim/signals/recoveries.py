"""Closed-form recoveries of an ideal scanner: after an inversion, after a saturation, and under a Look-Locker readout.

Each model is its formula (`recovery`), the names of its parameters and its timings. Derivatives are written beside the
formula because the likelihood gradient of the networks, the Fisher information and the fits all need them.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import T1, A, B, Parameter
from qsim.signals.base import check_times, may_overwrite, time_axis
from qsim.values import value

# the same row with other bounds and another start: a perfect saturation leaves B = 1, a Look-Locker readout has
# B = 1 + T1 / T1*, which its pulses raise far above 2
SATURATION_B = replace(B, start=1.0)
LOOK_LOCKER_B = replace(B, lower=1.0, upper=20.0)


def recovery(
    a: Float[Tensor, "*space"],
    b: Float[Tensor, "*space"],
    t1: Float[Tensor, "*space"],
    times: Float[Tensor, "n *ones"],
    tr: float | None = None,
) -> Float[Tensor, "n *space"]:
    """Signed longitudinal recovery after an inversion or a saturation.

        S(t) = A (1 - B exp(-t / T1))
        S(t) = A (1 - B exp(-t / T1) + (B - 1) exp(-TR / T1))      with `tr`

    Args:
        a: signal at full recovery [1].
        b: depth, 1 + efficiency of the pulse; 2 is a perfect inversion, 1 a perfect saturation [1].
        t1: longitudinal relaxation time [s].
        times: inversion or saturation times, counted from the end of the pulse [s].
        tr: from one inversion to the next [s]; None: TR >> T1.
    Assumes: mono-exponential tissue; with `tr`, every readout leaves Mz = 0 (90 degrees, spoiled).
    Not: Look-Locker recovery, whose exponent holds T1*.
    Source: Barral et al. 2010, doi:10.1002/mrm.22497; sabidussi2021 section 4.1.
    """
    e = (-times / t1).exp_()
    # A - (A B) E, in place where that can be: the images are written once
    depth = a * b
    full = a if tr is None else a + a * (b - 1) * torch.exp(-tr / t1)
    return torch.addcmul(full, depth, e, value=-1, out=e if may_overwrite(e, depth, full) else None)


def _jacobian(
    a: Float[Tensor, "*space"],
    b: Float[Tensor, "*space"],
    t1: Float[Tensor, "*space"],
    times: Float[Tensor, "n *ones"],
    tr: float | None,
    signed: bool,
) -> Float[Tensor, "3 n *space"]:
    """(dS/dA, dS/dB, dS/dT1) = (1 - B E + (B - 1) R, A (R - E), A (-B t E + (B - 1) TR R) / T1^2), R = exp(-TR / T1)
    or 0; times the sign of S for a magnitude.
    """
    e = (-times / t1).exp_()
    upright, to_b, to_t1 = 1 - b * e, -a * e, -a * b / t1**2 * times * e
    if tr is not None:
        rest = torch.exp(-tr / t1)
        upright, to_b, to_t1 = upright + (b - 1) * rest, to_b + a * rest, to_t1 + a * (b - 1) / t1**2 * tr * rest
    rows = torch.stack((upright, to_b, to_t1))
    return rows if signed else rows * _sign(a * upright)


@value
class InversionRecovery:
    """Three-parameter inversion recovery, A (1 - B exp(-TI / T1)), as magnitude unless `signed`.

    Attributes:
        ti: inversion times [s].
        signed: keep the sign (phase-sensitive or phase-corrected series).
        tr: from one inversion to the next, if the recovery between them is not full: adds A (B - 1) exp(-TR / T1)
            for readouts that leave Mz = 0 [s]. None: TR >> T1.
    """

    kind: Literal["inversion_recovery"] = "inversion_recovery"
    ti: tuple[float, ...]
    signed: bool = False
    tr: float | None = None

    def __post_init__(self) -> None:
        check_times("ti", self.ti)
        if self.tr is None:
            return
        check_times("tr", (self.tr,))
        if self.tr <= max(self.ti):
            raise ValueError(
                f"tr must be longer than the longest ti, {max(self.ti):g} s, got {self.tr:g}; it counts from one "
                "inversion to the next"
            )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, B, T1

    @property
    def n_images(self) -> int:
        return len(self.ti)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.ti

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """Signed signal [units of A]."""
        a, b, t1 = kappa
        return recovery(a, b, t1, time_axis(self.ti, t1), self.tr)

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs_()

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """Times the sign of S for a magnitude."""
        a, b, t1 = kappa
        return _jacobian(a, b, t1, time_axis(self.ti, t1), self.tr, self.signed)


@value
class InversionRecovery2P:
    """Two-parameter inversion recovery, |A (1 - 2 exp(-TI / T1))|: a perfect inversion is taken for granted.

    Attributes:
        ti: inversion times [s].
        signed: keep the sign.
    """

    kind: Literal["inversion_recovery_2p"] = "inversion_recovery_2p"
    ti: tuple[float, ...]
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("ti", self.ti)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T1

    @property
    def n_images(self) -> int:
        return len(self.ti)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.ti

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """Signed signal [units of A]."""
        a, t1 = kappa
        return recovery(a, torch.full_like(a, 2.0), t1, time_axis(self.ti, t1))

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs_()

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/dT1) = (1 - 2 E, -2 A TI E / T1^2), times the sign of S for a magnitude."""
        a, t1 = kappa
        rows = _jacobian(a, torch.full_like(a, 2.0), t1, time_axis(self.ti, t1), None, self.signed)
        return rows[::2]


@value
class SaturationRecovery:
    """Saturation recovery, A (1 - B exp(-TS / T1)), as magnitude unless `signed`; B is 1 for a perfect saturation.

    Attributes:
        ts: saturation times, from the end of the pulse [s].
        signed: keep the sign: beyond a perfect saturation (B > 1) the signal starts negative.
    """

    kind: Literal["saturation_recovery"] = "saturation_recovery"
    ts: tuple[float, ...]
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("ts", self.ts)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, SATURATION_B, T1

    @property
    def n_images(self) -> int:
        return len(self.ts)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.ts

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """Signed signal [units of A]."""
        a, b, t1 = kappa
        return recovery(a, b, t1, time_axis(self.ts, t1))

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs_()

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """Times the sign of S for a magnitude."""
        a, b, t1 = kappa
        return _jacobian(a, b, t1, time_axis(self.ts, t1), None, self.signed)


@value
class LookLocker:
    """Look-Locker or MOLLI recovery, A (1 - B exp(-TI / T1*)) with T1* = T1 / (B - 1), as magnitude unless `signed`.

        S(TI) = A (1 - B exp(-TI (B - 1) / T1))

    Attributes:
        ti: inversion times [s].
        signed: keep the sign.
    Assumes: B > 1; an inversion of full magnetisation without loss, and pulses of a small angle, for which the steady
        state is M0* = M0 T1* / T1 and so B = 1 + T1 / T1*.
    Source: Deichmann and Haase 1992, doi:10.1016/0022-2364(92)90347-A; Messroghli et al. 2004, doi:10.1002/mrm.20110.
    """

    kind: Literal["look_locker"] = "look_locker"
    ti: tuple[float, ...]
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("ti", self.ti)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, LOOK_LOCKER_B, T1

    @property
    def n_images(self) -> int:
        return len(self.ti)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.ti

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """Signed signal [units of A]."""
        a, b, t1 = kappa
        return recovery(a, b, t1 / (b - 1), time_axis(self.ti, t1))

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs_()

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/dB, dS/dT1) = (1 - B E, A E (B TI / T1 - 1), -A B (B - 1) TI E / T1^2), times the sign of S for a
        magnitude; E = exp(-TI (B - 1) / T1).
        """
        a, b, t1 = kappa
        ti = time_axis(self.ti, t1)
        e = torch.exp(-ti * ((b - 1) / t1))
        upright = 1 - b * e
        rows = torch.stack((upright, a * e * (b / t1 * ti - 1), -a * b * (b - 1) / t1**2 * ti * e))
        return rows if self.signed else rows * _sign(a * upright)


def _sign(signal: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Sign of the signed signal; +1 at 0, so that a voxel on the kink keeps a direction."""
    return torch.where(signal < 0, -1.0, 1.0).to(signal.dtype)
