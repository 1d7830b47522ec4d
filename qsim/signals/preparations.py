"""Magnetisation preparations as lists of events: inversion, T2 preparation, spin-lock clusters.

Each is a value whose call takes numbers or maps of the tissue and the fields, and returns Mz after it. A crusher
follows every preparation, so what it stores is longitudinal.
"""

from collections.abc import Sequence
from math import pi
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.signals.base import check_times
from qsim.signals.bloch import (
    Crusher,
    Delay,
    Event,
    Exchange,
    FixedEvent,
    FreePrecession,
    HardPulse,
    Lock,
    RectangularPulse,
    ShapedPulse,
    Spins,
    longitudinal,
    spins,
)
from qsim.signals.pulses import block_pulse, composite_180, hs1
from qsim.values import value

Cluster = Literal["SSL", "RESL", "CSL", "BSL", "PSCSL", "TRSL"]
Refocusing = Literal["1x180", "4x180", "MLEV4", "MLEV8"]

CLUSTERS: tuple[Cluster, ...] = ("SSL", "RESL", "CSL", "BSL", "PSCSL", "TRSL")
REFOCUSINGS: tuple[Refocusing, ...] = ("1x180", "4x180", "MLEV4", "MLEV8")

# signs of the refocusing pulses about y
_PHASES: dict[Refocusing, tuple[int, ...]] = {
    "1x180": (1,),
    "4x180": (1, 1, 1, 1),
    "MLEV4": (1, 1, -1, -1),
    "MLEV8": (1, 1, -1, -1, -1, 1, 1, -1),
}
_X, _Y, _MINUS_X, _MINUS_Y = 0.0, pi / 2, pi, 3 * pi / 2
_AXIS = {"x": _X, "y": _Y, "-x": _MINUS_X, "-y": _MINUS_Y}

# pulses (degrees, axis) and locks (share of TSL, axis) in time order; physics.md (a) lists the sources
_CLUSTERS: dict[Cluster, tuple[tuple[str, float, str], ...]] = {
    "SSL": (("pulse", 90, "x"), ("lock", 1, "y"), ("pulse", 90, "-x")),
    "RESL": (("pulse", 90, "x"), ("lock", 1 / 2, "y"), ("lock", 1 / 2, "-y"), ("pulse", 90, "-x")),
    "CSL": (("pulse", 90, "x"), ("lock", 1 / 2, "y"), ("pulse", 180, "y"), ("lock", 1 / 2, "-y"), ("pulse", 90, "x")),
    "BSL": (
        ("pulse", 90, "x"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 2, "-y"),
        ("pulse", 180, "-y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 90, "-x"),
    ),
    "PSCSL": (
        ("pulse", 90, "x"),
        ("lock", 1 / 4, "-y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 4, "-y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 90, "-x"),
    ),
    "TRSL": (
        ("pulse", 90, "x"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 4, "-y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "-y"),
        ("lock", 1 / 4, "-y"),
        ("pulse", 90, "x"),
    ),
}
# steps of 5 microseconds of the oracle's pulse: M to 1e-6 on resonance
_HS1_STEPS = 2000
# clusters that end with -Mz; the sign is the cluster's, never the data's
_INVERTING = ("CSL", "TRSL")


@runtime_checkable
class Preparation(Protocol):
    """What is played before a readout."""

    @property
    def kind(self) -> str:
        """Name in configs."""
        ...

    @property
    def times(self) -> tuple[float, ...]:
        """The times that the series varies [s]."""
        ...

    @property
    def durations(self) -> tuple[float, ...]:
        """How long each preparation lasts, pulses included [s]."""
        ...

    @property
    def locks(self) -> bool:
        """Whether T1rho acts in it."""
        ...

    def apply(self, spin: Spins, mz0: Tensor | float = 1.0) -> Float[Tensor, "n *space"]:
        """Mz after it, from spins that need no more checks [M0]."""
        ...


def _width(events: Sequence[Event]) -> float:
    """Time that the pulses of a list take [s]."""
    return sum((event.width for event in events if isinstance(event, RectangularPulse | ShapedPulse)), 0.0)


def _check_pulse_b1(pulse_b1: float | None) -> None:
    if pulse_b1 is not None and not pulse_b1 > 0:
        raise ValueError(f"pulse_b1 must be above 0 Hz, got {pulse_b1:g}; leave it out for hard pulses")


def _finite(mz: Float[Tensor, "n *space"], remedy: str, mz0: float | Tensor) -> Float[Tensor, "n *space"]:
    if not bool(torch.isfinite(torch.as_tensor(mz0)).all()):
        raise InputError("mz0: must be finite everywhere")
    if not bool(torch.isfinite(mz).all()):
        raise InputError(remedy)
    return mz


_NO_TURN = (
    "rel_b1, t2: the field is weaker than relaxation in some voxel (below about .58 (R2 - R1) / 2 pi hertz), so that "
    "nothing turns about it; mask such voxels, or raise the field"
)


@value
class SpinLockPreparation:
    """Spin-lock preparation: SSL, rotary echo, composite, balanced, paired self-compensated or triple-refocused.

    The stored Mz is positive on resonance for every cluster.

    Attributes:
        cluster: SSL, RESL, CSL, BSL, PSCSL or TRSL.
        tsl: spin-lock times, without pulses [s].
        fsl: nominal spin-lock frequency, gamma B1 / 2 pi; one, or one for each time (dispersion) [Hz].
        pulse_b1: amplitude of rectangular pulses; None: pulses without duration [Hz].
        exchange: two-site exchange that adds to R1rho and makes it depend on f_SL.
    Source: Witschey et al. 2007, PMC2877388 (rotary echo, B0 and B1); Gram et al., doi:10.1002/mrm.28585 (balanced);
        PMC10078184 (comparison).
    """

    kind: Literal["spin_lock"] = "spin_lock"
    cluster: Cluster
    tsl: tuple[float, ...]
    fsl: float | tuple[float, ...]
    pulse_b1: float | None = None
    exchange: Exchange | None = None

    def __post_init__(self) -> None:
        if self.cluster not in _CLUSTERS:
            raise ValueError(f"cluster must be one of {', '.join(_CLUSTERS)}, got {self.cluster!r}")
        check_times("tsl", self.tsl)
        if isinstance(self.fsl, tuple) and len(self.fsl) != len(self.tsl):
            raise ValueError(
                f"fsl has {len(self.fsl)} frequencies for {len(self.tsl)} times; give one, or one for each"
            )
        for frequency in self._frequencies:
            if not 0 < frequency < 1e5:
                raise ValueError(f"fsl must be a spin-lock frequency above 0 Hz, got {frequency:g}")
        _check_pulse_b1(self.pulse_b1)

    @property
    def _frequencies(self) -> tuple[float, ...]:
        return self.fsl if isinstance(self.fsl, tuple) else (float(self.fsl),) * len(self.tsl)

    @property
    def times(self) -> tuple[float, ...]:
        return self.tsl

    @property
    def durations(self) -> tuple[float, ...]:
        pulses = _width(self.events(self.tsl, self._frequencies[0]))
        return tuple(t + pulses for t in self.tsl)

    @property
    def locks(self) -> bool:
        return True

    def events(self, tsl: tuple[float, ...], fsl: float) -> list[Event]:
        """The cluster in time order, for times that share one frequency."""
        events: list[Event] = []
        for what, amount, axis in _CLUSTERS[self.cluster]:
            if what == "pulse":
                events.append(block_pulse(amount * pi / 180, _AXIS[axis], self.pulse_b1))
            else:
                events.append(Lock(tuple(amount * t for t in tsl), fsl, _AXIS[axis], self.exchange))
        return events

    def apply(self, spin: Spins, mz0: Tensor | float = 1.0) -> Float[Tensor, "n *space"]:
        sign = -1.0 if self.cluster in _INVERTING else 1.0
        frequencies = self._frequencies
        distinct = sorted(set(frequencies))
        if len(distinct) == 1:
            return sign * longitudinal(self.events(self.tsl, distinct[0]), spin, mz0)
        images: dict[int, Tensor] = {}
        for fsl in distinct:
            numbers = [i for i, frequency in enumerate(frequencies) if frequency == fsl]
            part = longitudinal(self.events(tuple(self.tsl[i] for i in numbers), fsl), spin, mz0)
            images |= dict(zip(numbers, part, strict=True))
        return sign * torch.stack([images[i] for i in range(len(frequencies))])

    def __call__(
        self,
        *,
        t1: float | Tensor,
        t2: float | Tensor,
        t1rho: float | Tensor | None = None,
        t2rho: float | Tensor | None = None,
        delta_b0: float | Tensor = 0.0,
        rel_b1: float | Tensor = 1.0,
        mz0: float | Tensor = 1.0,
    ) -> Float[Tensor, "n *space"]:
        """Stored Mz for each spin-lock time [M0].

        Args:
            t1, t2: relaxation times outside the lock [s].
            t1rho: along a resonant locking field; off resonance R1rho = R1 cos^2 + sin^2 / T1rho [s].
            t2rho: across it; None: that of the Bloch equation with t1, t2 [s].
            delta_b0: off-resonance [Hz].
            rel_b1: actual over nominal transmit field, of pulses and lock [1].
            mz0: longitudinal magnetisation before [M0].
        Raises: InputError, naming the argument, if T1rho is missing or a value is not physical.
        """
        if t1rho is None:
            raise InputError(
                "t1rho: missing; a spin-lock needs it [s] (give it T2 for tissue that follows the Bloch equation)"
            )
        spin = spins(t1=t1, t2=t2, t1rho=t1rho, t2rho=t2rho, delta_b0=delta_b0, rel_b1=rel_b1)
        return _finite(self.apply(spin, mz0), _NO_TURN, mz0)


@value
class T2Preparation:
    """T2 preparation: tip-down, refocusing pulses at TE (2k - 1) / 2n about +-y, tip-up.

    Attributes:
        te: durations from the middle of the tip-down to the middle of the tip-up [s].
        refocusing: 1x180; 4x180 (all +y); MLEV4 (+ + - -); MLEV8 (+ + - - - + + -).
        composite: each refocusing pulse as 90x 180y 90x.
        tip_up: `plain` 90-x; `composite` 270x 360-x, which turns as far at any B1 as an ideal one at nominal B1.
        pulse_b1: amplitude of rectangular pulses; None: pulses without duration [Hz].
    Source: Brittain et al. 1995, doi:10.1002/mrm.1910330513; Levitt and Freeman 1981.
    """

    kind: Literal["t2_prep"] = "t2_prep"
    te: tuple[float, ...]
    refocusing: Refocusing
    composite: bool = False
    tip_up: Literal["plain", "composite"] = "plain"
    pulse_b1: float | None = None

    def __post_init__(self) -> None:
        if self.refocusing not in _PHASES:
            raise ValueError(f"refocusing must be one of {', '.join(_PHASES)}, got {self.refocusing!r}")
        check_times("te", self.te)
        _check_pulse_b1(self.pulse_b1)
        shortest = self._shortest()
        if min(self.te) < shortest:
            raise ValueError(
                f"te of {min(self.te):g} s is too short for its pulses of {shortest:.4g} s; raise it or pulse_b1"
            )

    @property
    def times(self) -> tuple[float, ...]:
        return self.te

    @property
    def durations(self) -> tuple[float, ...]:
        # half of the tip-down and of the tip-up lie outside TE
        outside = (_width(self._tip_down()) + _width(self._tip_up())) / 2
        return tuple(t + outside for t in self.te)

    @property
    def locks(self) -> bool:
        return False

    def _tip_down(self) -> list[FixedEvent]:
        return [block_pulse(pi / 2, _X, self.pulse_b1)]

    def _tip_up(self) -> list[FixedEvent]:
        if self.tip_up == "plain":
            return [block_pulse(pi / 2, _MINUS_X, self.pulse_b1)]
        return [block_pulse(3 * pi / 2, _X, self.pulse_b1), block_pulse(2 * pi, _MINUS_X, self.pulse_b1)]

    def _refocusing(self) -> list[list[FixedEvent]]:
        phases = [_Y if sign > 0 else _MINUS_Y for sign in _PHASES[self.refocusing]]
        if self.composite:
            return [composite_180(phase, self.pulse_b1) for phase in phases]
        return [[block_pulse(pi, phase, self.pulse_b1)] for phase in phases]

    def _shortest(self) -> float:
        """Shortest TE that holds the pulses [s]."""
        pulses = self._refocusing()
        n, first = len(pulses), _width(pulses[0])
        edges = n * (_width(self._tip_down()) + first), n * (_width(self._tip_up()) + first)
        return max(*edges, n * first if n > 1 else 0.0)

    def events(self) -> list[Event]:
        """The preparation in time order."""
        down, up, pulses = self._tip_down(), self._tip_up(), self._refocusing()
        n = len(pulses)
        groups: list[list[FixedEvent]] = [down, *pulses, up]
        shares = [1 / (2 * n), *[1 / n] * (n - 1), 1 / (2 * n)]
        events: list[Event] = list(down)
        for before, share, after in zip(groups, shares, groups[1:], strict=False):
            taken = (_width(before) + _width(after)) / 2
            events += [FreePrecession(tuple(max(share * t - taken, 0.0) for t in self.te)), *after]
        return events

    def apply(self, spin: Spins, mz0: Tensor | float = 1.0) -> Float[Tensor, "n *space"]:
        return longitudinal(self.events(), spin, mz0)

    def __call__(
        self,
        *,
        t1: float | Tensor,
        t2: float | Tensor,
        delta_b0: float | Tensor = 0.0,
        rel_b1: float | Tensor = 1.0,
        mz0: float | Tensor = 1.0,
    ) -> Float[Tensor, "n *space"]:
        """Stored Mz for each TE [M0].

        Args:
            t1, t2: relaxation times [s].
            delta_b0: off-resonance [Hz].
            rel_b1: actual over nominal transmit field [1].
            mz0: longitudinal magnetisation before [M0].
        Raises: InputError, naming the argument, if a value is not physical.
        """
        return _finite(self.apply(spins(t1=t1, t2=t2, delta_b0=delta_b0, rel_b1=rel_b1), mz0), _NO_TURN, mz0)


@value
class InversionPulse:
    """An inversion pulse, hard or adiabatic (HS1).

    Attributes:
        pulse: `hard`, or the hyperbolic secant `HS1`, which needs the next four.
        duration: of the pulse [s].
        max_b1: its peak amplitude, gamma B1 / 2 pi [Hz].
        beta: its modulation rate [1/s].
        mu: half the ratio of sweep to beta [1].
        steps: of constant field that make it up; 2000 if not given.
    Source: Silver, Joseph and Hoult 1985, doi:10.1103/PhysRevA.31.2753 (HS1).
    """

    pulse: Literal["hard", "HS1"] = "hard"
    duration: float | None = None
    max_b1: float | None = None
    beta: float | None = None
    mu: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.pulse not in ("hard", "HS1"):
            raise ValueError(f"pulse must be hard or HS1, got {self.pulse!r}")
        shape = {"duration": self.duration, "max_b1": self.max_b1, "beta": self.beta, "mu": self.mu}
        if self.pulse == "hard":
            given = [name for name, number in (shape | {"steps": self.steps}).items() if number is not None]
            if given:
                raise ValueError(f"{given[0]} belongs to pulse HS1; a hard pulse has none")
        else:
            missing = [name for name, number in shape.items() if number is None]
            if missing:
                raise ValueError(f"{missing[0]} is missing; pulse HS1 needs duration, max_b1, beta and mu")
            self._shaped()

    def _shaped(self) -> ShapedPulse:
        assert self.duration is not None
        assert self.max_b1 is not None
        assert self.beta is not None
        assert self.mu is not None
        return hs1(
            duration=self.duration,
            max_b1=self.max_b1,
            beta=self.beta,
            mu=self.mu,
            steps=_HS1_STEPS if self.steps is None else self.steps,
        )

    @property
    def width(self) -> float:
        """How long it lasts [s]."""
        return self.duration or 0.0

    def events(self) -> list[Event]:
        """The pulse and a crusher."""
        return [HardPulse(pi) if self.pulse == "hard" else self._shaped(), Crusher()]


@value
class Inversion:
    """Inversion and recovery: the raw, signed Mz at each inversion time.

    Attributes:
        ti: inversion times, from the end of the pulse; 0 is allowed [s].
        pulse, duration, max_b1, beta, mu, steps: as in `InversionPulse`.
    """

    kind: Literal["inversion"] = "inversion"
    ti: tuple[float, ...]
    pulse: Literal["hard", "HS1"] = "hard"
    duration: float | None = None
    max_b1: float | None = None
    beta: float | None = None
    mu: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        check_times("ti", self.ti)
        self._pulse()

    def _pulse(self) -> InversionPulse:
        return InversionPulse(
            pulse=self.pulse,
            duration=self.duration,
            max_b1=self.max_b1,
            beta=self.beta,
            mu=self.mu,
            steps=self.steps,
        )

    @property
    def times(self) -> tuple[float, ...]:
        return self.ti

    @property
    def durations(self) -> tuple[float, ...]:
        return tuple(t + self._pulse().width for t in self.ti)

    @property
    def locks(self) -> bool:
        return False

    def events(self) -> list[Event]:
        """The pulse, a crusher, the recovery."""
        return [*self._pulse().events(), Delay(self.ti)]

    def apply(self, spin: Spins, mz0: Tensor | float = 1.0) -> Float[Tensor, "n *space"]:
        return longitudinal(self.events(), spin, mz0)

    def __call__(
        self,
        *,
        t1: float | Tensor,
        t2: float | Tensor,
        delta_b0: float | Tensor = 0.0,
        rel_b1: float | Tensor = 1.0,
        mz0: float | Tensor = 1.0,
    ) -> Float[Tensor, "n *space"]:
        """Mz at each inversion time, with its sign [M0].

        Args:
            t1, t2: relaxation times; T2 acts during an HS1 pulse [s].
            delta_b0: off-resonance; a hard pulse does not see it [Hz].
            rel_b1: actual over nominal transmit field [1].
            mz0: longitudinal magnetisation before [M0].
        Raises: InputError, naming the argument, if a value is not physical.
        """
        return _finite(self.apply(spins(t1=t1, t2=t2, delta_b0=delta_b0, rel_b1=rel_b1), mz0), _NO_TURN, mz0)


PREPARATIONS = (SpinLockPreparation, T2Preparation, Inversion)
AnyPreparation = SpinLockPreparation | T2Preparation | Inversion
