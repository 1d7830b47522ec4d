"""Closed-form decays of an ideal scanner: with one time, on a constant, and with two times.

Each model is its formula (`decay`), the names of its parameters and its timings, with the derivatives beside it.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import FRACTION, T1RHO, T1RHO_SHORT, T2, T2_SHORT, T2STAR, A, C, Parameter
from qsim.signals.base import check_times, may_overwrite, time_axis
from qsim.values import value


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


class MonoExponential(ABC):
    """A exp(-t / T): what the decays with one time share. No modulus is taken: with A >= 0 they keep their sign."""

    __slots__ = ()

    @property
    @abstractmethod
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """A and the relaxation time."""

    @property
    def n_images(self) -> int:
        return len(self.times)

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t = kappa
        return decay(a, t, time_axis(self.times, t))

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: a decay keeps its sign [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/dT) = (E, A t E / T^2) with E = exp(-t / T)."""
        a, t = kappa
        return _decay_jacobian(a, t, time_axis(self.times, t))


@value
class T2Prep(MonoExponential):
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
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te_prep


@value
class SpinLock(MonoExponential):
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
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.tsl


@value
class SpinEcho(MonoExponential):
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
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te


@value
class GradientEcho(MonoExponential):
    """Gradient echoes, A exp(-TE / T2*).

    Attributes:
        te: echo times [s].
    """

    kind: Literal["gradient_echo"] = "gradient_echo"
    te: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("te", self.te)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T2STAR

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te


def _check_either(te: tuple[float, ...] | None, tsl: tuple[float, ...] | None) -> None:
    """Raises: ValueError unless exactly one of the two is given, and plausible."""
    if (te is None) == (tsl is None):
        given = "neither" if te is None else "both"
        raise ValueError(f"te and tsl: wanted exactly one (te for T2, tsl for T1rho), got {given}")
    if tsl is not None:
        check_times("tsl", tsl)
    elif te is not None:
        check_times("te", te)


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
        _check_either(self.te, self.tsl)

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


@value
class BiExponential:
    """Decay with two times, A (f exp(-t / T_short) + (1 - f) exp(-t / T_long)): T2 after `te`, T1rho after `tsl`.

        S(t) = A (f exp(-t / T_short) + (1 - f) exp(-t / T_long))

    The rows are A, FRACTION, T2_SHORT, T2 (with `tsl`: T1RHO_SHORT, T1RHO): T2 without a suffix is the long one.

    Attributes:
        te: preparation or echo times; then the times are T2 [s].
        tsl: spin-lock times; then they are T1rho [s]. Exactly one of the two is given.
    Assumes: no exchange between the two pools.
    Source: Whittall and MacKay 1989, doi:10.1016/0022-2364(89)90011-5.
    """

    kind: Literal["biexponential"] = "biexponential"
    te: tuple[float, ...] | None = None
    tsl: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_either(self.te, self.tsl)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (A, FRACTION, T2_SHORT, T2) if self.tsl is None else (A, FRACTION, T1RHO_SHORT, T1RHO)

    @property
    def n_images(self) -> int:
        return len(self.times)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te or self.tsl or ()

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, fraction, short, long = kappa
        times = time_axis(self.times, a)
        return decay(a * fraction, short, times) + decay(a * (1 - fraction), long, times)

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: no modulus is taken [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/df, dS/dT_short, dS/dT_long) = (f E_s + (1 - f) E_l, A (E_s - E_l), A f t E_s / T_s^2,
        A (1 - f) t E_l / T_l^2).
        """
        a, fraction, short, long = kappa
        times = time_axis(self.times, a)
        of_short, to_short = _decay_jacobian(a * fraction, short, times)
        of_long, to_long = _decay_jacobian(a * (1 - fraction), long, times)
        mixed = fraction * of_short + (1 - fraction) * of_long
        return torch.stack((mixed, a * (of_short - of_long), to_short, to_long))
