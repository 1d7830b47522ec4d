"""What a preparation is, and the checks that every preparation makes."""

from collections.abc import Sequence
from math import pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.signals.events import Event, RectangularPulse, ShapedPulse
from qsim.signals.spins import Spins

# phases of the four axes [rad]
AXES = {"x": 0.0, "y": pi / 2, "-x": pi, "-y": 3 * pi / 2}


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


def width_of(events: Sequence[Event]) -> float:
    """Time that the pulses of a list take [s]."""
    return sum((event.width for event in events if isinstance(event, RectangularPulse | ShapedPulse)), 0.0)


def check_pulse_b1(pulse_b1: float | None) -> None:
    """Refuse an amplitude of rectangular pulses that is not above 0 [Hz]. Raises: ValueError."""
    if pulse_b1 is not None and not pulse_b1 > 0:
        raise ValueError(f"pulse_b1 must be above 0 Hz, got {pulse_b1:g}; leave it out for hard pulses")


def finite(mz: Float[Tensor, "n *space"], remedy: str, mz0: float | Tensor) -> Float[Tensor, "n *space"]:
    """Mz [M0], if it and what it started from are numbers everywhere. Raises: InputError with the remedy."""
    if not bool(torch.isfinite(torch.as_tensor(mz0)).all()):
        raise InputError("mz0: must be finite everywhere")
    if not bool(torch.isfinite(mz).all()):
        raise InputError(remedy)
    return mz


NO_TURN = (
    "rel_b1, t2: the field is weaker than relaxation in some voxel (below about .58 (R2 - R1) / 2 pi hertz), so that "
    "nothing turns about it; mask such voxels, or raise the field"
)
