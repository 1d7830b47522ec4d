"""Pulses as lists of events: adiabatic inversion, composite refocusing, hard or rectangular blocks."""

from functools import lru_cache
from math import cosh, pi, tanh

from qsim.signals.bloch import FixedEvent, HardPulse, RectangularPulse, ShapedPulse


@lru_cache(maxsize=32)
def hs1(*, duration: float, max_b1: float, beta: float, mu: float, steps: int = 2000) -> ShapedPulse:
    """Hyperbolic secant inversion pulse, truncated to its duration.

        w1(t) = 2 pi max_b1 sech(beta t),    dw(t) = -mu beta tanh(beta t),    -duration / 2 < t < duration / 2

    Args:
        duration: [s].
        max_b1: peak amplitude, gamma B1 / 2 pi [Hz].
        beta: modulation rate [1/s]; the truncation level is sech(beta duration / 2).
        mu: half the ratio of sweep to beta [1]: the frequency sweeps over mu beta / pi [Hz].
        steps: of equal length, each with the field of its middle.
    Source: Silver, Joseph and Hoult 1985, doi:10.1103/PhysRevA.31.2753.
    """
    for name, number in (("duration", duration), ("max_b1", max_b1), ("beta", beta), ("mu", mu)):
        if not number > 0:
            raise ValueError(f"{name} must be above 0, got {number}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if duration > 0.1:
        raise ValueError(f"duration must be in seconds, got {duration:g}; divide by 1000 if this is milliseconds")
    times = [duration * ((i + 0.5) / steps - 0.5) for i in range(steps)]
    return ShapedPulse(
        amplitude=tuple(max_b1 / cosh(beta * t) for t in times),
        # the spins see dw: the carrier moves the other way
        offset=tuple(mu * beta * tanh(beta * t) / (2 * pi) for t in times),
        width=duration,
    )


def block_pulse(flip: float, phase: float, block_b1: float | None) -> FixedEvent:
    """A pulse without duration, or a rectangular one of the amplitude `block_b1` [Hz].

    A turn of more than 180 degrees keeps its sense: 270 degrees about x is not -90.
    """
    if block_b1 is None:
        return HardPulse(flip, phase)
    return RectangularPulse(abs(flip), phase if flip > 0 else phase + pi, abs(flip) / (2 * pi * block_b1))


def composite_180(phase: float, block_b1: float | None) -> list[FixedEvent]:
    """90x 180y 90x, turned so that its middle pulse lies at `phase`: refocuses about it despite errors of B1.

    Source: Levitt and Freeman 1981, doi:10.1016/0022-2364(81)90082-2.
    """
    return [
        block_pulse(pi / 2, phase - pi / 2, block_b1),
        block_pulse(pi, phase, block_b1),
        block_pulse(pi / 2, phase - pi / 2, block_b1),
    ]
