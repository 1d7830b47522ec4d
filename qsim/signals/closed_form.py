"""Closed-form signals of an ideal scanner: recovery after an inversion, and mono-exponential decays, alone or on a
constant.

Each model is its formula (`recovery`, `decay`), the names of its parameters and its timings. Derivatives are written
beside the formula because the likelihood gradient of the networks, the Fisher information and the fits all need them.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import T1, T1RHO, T2, A, B, C, Parameter
from qsim.signals.base import check_times, may_overwrite, time_axis
from qsim.values import value


def recovery(
    a: Float[Tensor, "*space"], b: Float[Tensor, "*space"], t1: Float[Tensor, "*space"], ti: Float[Tensor, "n *ones"]
) -> Float[Tensor, "n *space"]:
    """Signed longitudinal recovery after an inversion.

        S(TI) = A (1 - B exp(-TI / T1))

    Args:
        a: signal at full recovery [1].
        b: inversion depth, 1 + efficiency; 2 is perfect [1].
        t1: longitudinal relaxation time [s].
        ti: inversion times, counted from the end of the pulse [s].
    Assumes: TR >> T1, mono-exponential tissue.   Not: Look-Locker recovery, whose exponent holds T1*.
    Source: Barral et al. 2010, doi:10.1002/mrm.22497; sabidussi2021 section 4.1.
    """
    e = (-ti / t1).exp_()
    # A - (A B) E, in place where that can be: the images are written once
    depth = a * b
    return torch.addcmul(a, depth, e, value=-1, out=e if may_overwrite(e, depth) else None)


def decay(
    a: Float[Tensor, "*space"], t: Float[Tensor, "*space"], times: Float[Tensor, "n *ones"]
) -> Float[Tensor, "n *space"]:
    """Mono-exponential decay.

        S(t) = A exp(-t / T)

    Args:
        a: signal without preparation [1].
        t: relaxation time [s].
        times: preparation, echo or spin-lock times [s].
    Source: sabidussi2021 section 4.1.
    """
    e = (-times / t).exp_()
    return e.mul_(a) if may_overwrite(e, a) else a * e


def _decay_jacobian(
    a: Float[Tensor, "*space"], t: Float[Tensor, "*space"], times: Float[Tensor, "n *ones"]
) -> Float[Tensor, "2 n *space"]:
    """(dS/dA, dS/dT) = (E, A t E / T^2) with E = exp(-t / T)."""
    e = (-times / t).exp_()
    return torch.stack((e, a / t**2 * times * e))


@value
class InversionRecovery:
    """Three-parameter inversion recovery, A (1 - B exp(-TI / T1)), as magnitude unless `signed`.

    Attributes:
        ti: inversion times [s].
        signed: keep the sign (phase-sensitive or phase-corrected series).
    """

    kind: Literal["inversion_recovery"] = "inversion_recovery"
    ti: tuple[float, ...]
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("ti", self.ti)

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
        return recovery(a, b, t1, time_axis(self.ti, t1))

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs_()

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/dB, dS/dT1) = (1 - B E, -A E, -A B TI E / T1^2), times the sign of S for a magnitude."""
        a, b, t1 = kappa
        ti = time_axis(self.ti, t1)
        e = (-ti / t1).exp_()
        upright = 1 - b * e
        rows = torch.stack((upright, -a * e, -a * b / t1**2 * ti * e))
        return rows if self.signed else rows * _sign(a * upright)


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
        ti = time_axis(self.ti, t1)
        e = (-ti / t1).exp_()
        upright = 1 - 2 * e
        rows = torch.stack((upright, -2 * a / t1**2 * ti * e))
        return rows if self.signed else rows * _sign(a * upright)


@value
class T2Prep:
    """T2-prepared images, A exp(-TE_prep / T2).

    Attributes:
        te_prep: durations of the T2 preparation [s].
    """

    kind: Literal["t2_prep"] = "t2_prep"
    te_prep: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("te_prep", self.te_prep)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T2

    @property
    def n_images(self) -> int:
        return len(self.te_prep)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te_prep

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t2 = kappa
        return decay(a, t2, time_axis(self.te_prep, t2))

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: a decay keeps its sign [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        a, t2 = kappa
        return _decay_jacobian(a, t2, time_axis(self.te_prep, t2))


@value
class SpinLock:
    """Spin-lock prepared images, A exp(-TSL / T1rho).

    Attributes:
        tsl: spin-lock times [s].
    """

    kind: Literal["spin_lock"] = "spin_lock"
    tsl: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("tsl", self.tsl)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T1RHO

    @property
    def n_images(self) -> int:
        return len(self.tsl)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.tsl

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t1rho = kappa
        return decay(a, t1rho, time_axis(self.tsl, t1rho))

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: a decay keeps its sign [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        a, t1rho = kappa
        return _decay_jacobian(a, t1rho, time_axis(self.tsl, t1rho))


@value
class SpinEcho:
    """Spin echoes of an ideal refocusing, A exp(-TE / T2).

    Attributes:
        te: echo times [s].
    """

    kind: Literal["spin_echo"] = "spin_echo"
    te: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("te", self.te)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T2

    @property
    def n_images(self) -> int:
        return len(self.te)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t2 = kappa
        return decay(a, t2, time_axis(self.te, t2))

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: a decay keeps its sign [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        a, t2 = kappa
        return _decay_jacobian(a, t2, time_axis(self.te, t2))


@value
class OffsetDecay:
    """Decay on a constant, A exp(-t / T) + C: T is T2 after `te`, T1rho after `tsl`.

    A readout adds a constant to whatever magnetisation it finds, and so does an imperfect preparation; a fit without
    it takes the constant for a slower decay.

    Attributes:
        te: preparation or echo times; then T is T2 [s].
        tsl: spin-lock times; then T is T1rho [s]. Exactly one of the two is given.
    Source: PMC4320682 (why T2-prepared images need the third parameter).
    """

    kind: Literal["offset_decay"] = "offset_decay"
    te: tuple[float, ...] | None = None
    tsl: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.te is None) == (self.tsl is None):
            given = "neither" if self.te is None else "both"
            raise ValueError(f"te and tsl: wanted exactly one (te for T2, tsl for T1rho), got {given}")
        check_times("te" if self.tsl is None else "tsl", self.times)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, (T2 if self.tsl is None else T1RHO), C

    @property
    def n_images(self) -> int:
        return len(self.times)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te or self.tsl or ()

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t, c = kappa
        return decay(a, t, time_axis(self.times, t)) + c

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: no modulus is taken [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/dT, dS/dC) = (E, A t E / T^2, 1) with E = exp(-t / T)."""
        a, t, _ = kappa
        rows = _decay_jacobian(a, t, time_axis(self.times, t))
        return torch.cat((rows, torch.ones_like(rows[:1])))


def _sign(signal: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Sign of the signed signal; +1 at 0, so that a voxel on the kink keeps a direction."""
    return torch.where(signal < 0, -1.0, 1.0).to(signal.dtype)
