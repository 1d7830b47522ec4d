"""Inversions: the pulse, and the recovery after it."""

from math import pi
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from qsim.signals.base import check_times
from qsim.signals.bloch import longitudinal
from qsim.signals.events import Crusher, Delay, Event, HardPulse, ShapedPulse
from qsim.signals.preparation import NO_TURN, finite
from qsim.signals.pulses import hs1
from qsim.signals.spins import Spins, spins
from qsim.values import value

# steps of 5 microseconds of the oracle's pulse: M to 1e-6 on resonance
_HS1_STEPS = 2000


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
        return [*self._pulse().events(), Delay(tuple(self.ti))]

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
        return finite(self.apply(spins(t1=t1, t2=t2, delta_b0=delta_b0, rel_b1=rel_b1), mz0), NO_TURN, mz0)
