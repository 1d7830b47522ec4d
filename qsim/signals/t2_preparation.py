"""T2 preparations: a tip-down, refocusing pulses, a tip-up."""

from math import pi
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from qsim.signals.base import check_times
from qsim.signals.bloch import longitudinal
from qsim.signals.events import Event, FixedEvent, FreePrecession
from qsim.signals.preparation import AXES, NO_TURN, check_pulse_b1, finite, width_of
from qsim.signals.pulses import block_pulse, composite_180
from qsim.signals.spins import Spins, spins
from qsim.values import value

Refocusing = Literal["1x180", "4x180", "MLEV4", "MLEV8"]
REFOCUSINGS: tuple[Refocusing, ...] = ("1x180", "4x180", "MLEV4", "MLEV8")

# signs of the refocusing pulses about y
_PHASES: dict[Refocusing, tuple[int, ...]] = {
    "1x180": (1,),
    "4x180": (1, 1, 1, 1),
    "MLEV4": (1, 1, -1, -1),
    "MLEV8": (1, 1, -1, -1, -1, 1, 1, -1),
}


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
        check_pulse_b1(self.pulse_b1)
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
        outside = (width_of(self._tip_down()) + width_of(self._tip_up())) / 2
        return tuple(t + outside for t in self.te)

    @property
    def locks(self) -> bool:
        return False

    def _tip_down(self) -> list[FixedEvent]:
        return [block_pulse(pi / 2, AXES["x"], self.pulse_b1)]

    def _tip_up(self) -> list[FixedEvent]:
        if self.tip_up == "plain":
            return [block_pulse(pi / 2, AXES["-x"], self.pulse_b1)]
        return [block_pulse(3 * pi / 2, AXES["x"], self.pulse_b1), block_pulse(2 * pi, AXES["-x"], self.pulse_b1)]

    def _refocusing(self) -> list[list[FixedEvent]]:
        phases = [AXES["y"] if sign > 0 else AXES["-y"] for sign in _PHASES[self.refocusing]]
        if self.composite:
            return [composite_180(phase, self.pulse_b1) for phase in phases]
        return [[block_pulse(pi, phase, self.pulse_b1)] for phase in phases]

    def _shortest(self) -> float:
        """Shortest TE that holds the pulses [s]."""
        pulses = self._refocusing()
        n, first = len(pulses), width_of(pulses[0])
        edges = n * (width_of(self._tip_down()) + first), n * (width_of(self._tip_up()) + first)
        return max(*edges, n * first if n > 1 else 0.0)

    def events(self) -> list[Event]:
        """The preparation in time order."""
        down, up, pulses = self._tip_down(), self._tip_up(), self._refocusing()
        n = len(pulses)
        groups: list[list[FixedEvent]] = [down, *pulses, up]
        shares = [1 / (2 * n), *[1 / n] * (n - 1), 1 / (2 * n)]
        events: list[Event] = list(down)
        for before, share, after in zip(groups, shares, groups[1:], strict=False):
            taken = (width_of(before) + width_of(after)) / 2
            # no shorter than the pulses (checked above): only rounding can fall below 0
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
        return finite(self.apply(spins(t1=t1, t2=t2, delta_b0=delta_b0, rel_b1=rel_b1), mz0), NO_TURN, mz0)
