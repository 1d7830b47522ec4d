"""Slice profiles of 2D readouts: the flip angle that each position through the slice really gets.

A readout is simulated at every position and summed:

    S = sum over positions of S(flip angles there) / positions_in_slice

so that a perfect slab of the nominal thickness gives S of one position. Derivation: docs/physics/epg.md.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, log, pi
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from qsim.errors import InputError
from qsim.parameters import REL_B1
from qsim.signals.epg import Flip, ScaledFlip
from qsim.values import value

# piecewise-constant steps of a pulse: within 5e-5 of the continuous pulse at time-bandwidth 8
_STEPS = 512
# terms of the series of a pulse in rel_b1^2: exact to 1e-12 up to twice 180 degrees
_TERMS = 16

Shape = Literal["sinc", "gauss"]


@runtime_checkable
class SliceProfile(Protocol):
    """What a readout needs to know of its slice."""

    @property
    def positions_in_slice(self) -> float:
        """How many positions the nominal thickness covers."""
        ...

    def relative_flips(self, flip_angle: float) -> tuple[float, ...]:
        """Actual over nominal flip angle of an excitation of this nominal angle [rad] at each position."""
        ...

    def relative_refocusing_flips(self, flip_angle: float) -> tuple[float, ...]:
        """The same of a refocusing pulse [rad]."""
        ...

    def excitation_flips(self, flip_angle: float) -> tuple[Flip, ...]:
        """The excitation of this nominal angle [rad] at each position, at any transmit field."""
        ...

    def refocusing_flips(self, flip_angle: float) -> tuple[Flip, ...]:
        """The same of a refocusing pulse [rad]."""
        ...


@value
class SampledProfile:
    """Flip angles at equally spaced positions through the slice, the same ratio at any nominal angle.

    Attributes:
        relative_excitation: actual over nominal flip angle of the excitation; it may be negative in a side lobe [1].
        relative_refocusing: of the refocusing pulses; () for a readout without any [1].
        positions_in_slice: number of positions that the nominal thickness covers.
    """

    kind: Literal["sampled"] = "sampled"
    relative_excitation: tuple[float, ...]
    relative_refocusing: tuple[float, ...] = ()
    positions_in_slice: float

    def __post_init__(self) -> None:
        n, m = len(self.relative_excitation), len(self.relative_refocusing)
        if not n:
            raise ValueError("relative_excitation is empty; give the flip angle of at least one position")
        if m not in (0, n):
            raise ValueError(f"relative_refocusing has {m} positions, relative_excitation {n}; give both at the same")
        for name in ("relative_excitation", "relative_refocusing"):
            for ratio in getattr(self, name):
                if not isfinite(ratio):
                    raise ValueError(f"{name} must hold finite ratios, got {ratio}")
        if not (isfinite(self.positions_in_slice) and self.positions_in_slice > 0):
            raise ValueError(f"positions_in_slice must be above 0, got {self.positions_in_slice:g}")

    def relative_flips(self, flip_angle: float) -> tuple[float, ...]:
        """`relative_excitation`, at any nominal angle [rad]."""
        del flip_angle
        return self.relative_excitation

    def relative_refocusing_flips(self, flip_angle: float) -> tuple[float, ...]:
        """`relative_refocusing`, at any nominal angle [rad].

        Raises: InputError if the profile has none.
        """
        del flip_angle
        if not self.relative_refocusing:
            raise InputError("relative_refocusing: missing; a train of refocused echoes needs it")
        return self.relative_refocusing

    def excitation_flips(self, flip_angle: float) -> tuple[Flip, ...]:
        """`relative_excitation` x flip angle [rad]; the transmit field scales it."""
        return tuple(ScaledFlip(flip_angle * ratio) for ratio in self.relative_excitation)

    def refocusing_flips(self, flip_angle: float) -> tuple[Flip, ...]:
        """`relative_refocusing` x flip angle [rad]; the transmit field scales it.

        Raises: InputError if the profile has none.
        """
        return tuple(ScaledFlip(flip_angle * ratio) for ratio in self.relative_refocusing_flips(flip_angle))


@value
class ShapedProfile:
    """The profile that a shaped pulse makes, from the Bloch equation at each nominal flip angle.

    Attributes:
        shape: Hann-windowed sinc, or Gaussian cut off at the ends of the pulse.
        time_bandwidth: duration x bandwidth; the bandwidth (of a Gaussian: its full width at half maximum at small
            angles) is what the gradient spreads over the thickness [1].
        refocusing_factor: thickness that the refocusing pulses select over that of the excitation [1].
        positions: how many positions are simulated.
        extent: what they cover, in nominal thicknesses; what lies beyond is left out [1].
    Assumes: no relaxation during the pulses; a symmetric pulse, whose residual phase across the slice is left out.
    """

    kind: Literal["shaped"] = "shaped"
    shape: Shape
    time_bandwidth: float
    refocusing_factor: float
    positions: int = 60
    extent: float = 2.5

    def __post_init__(self) -> None:
        for name in ("time_bandwidth", "refocusing_factor", "extent"):
            given = getattr(self, name)
            if not (isfinite(given) and given > 0):
                raise ValueError(f"{name} must be above 0, got {given:g}")
        if self.time_bandwidth > 64:
            raise ValueError(f"time_bandwidth must be at most 64, got {self.time_bandwidth:g}; it is a product, not Hz")
        if self.positions < 1:
            raise ValueError(f"positions must be at least 1, got {self.positions}")

    @property
    def positions_in_slice(self) -> float:
        """How many positions the nominal thickness covers."""
        return self.positions / self.extent

    def relative_flips(self, flip_angle: float) -> tuple[float, ...]:
        """Actual over nominal flip angle of an excitation [rad] at each position."""
        return _relative_flips(self.shape, self.time_bandwidth, flip_angle, self.positions, self.extent)

    def relative_refocusing_flips(self, flip_angle: float) -> tuple[float, ...]:
        """The same of a refocusing pulse [rad], over a slice `refocusing_factor` times as thick."""
        extent = self.extent / self.refocusing_factor
        return _relative_flips(self.shape, self.time_bandwidth, flip_angle, self.positions, extent)

    def excitation_flips(self, flip_angle: float) -> tuple[Flip, ...]:
        """The excitation of this nominal angle [rad] at each position, by the Bloch equation at any transmit field."""
        return _shaped_flips(self.shape, self.time_bandwidth, flip_angle, self.positions, self.extent)

    def refocusing_flips(self, flip_angle: float) -> tuple[Flip, ...]:
        """The same of a refocusing pulse [rad]."""
        extent = self.extent / self.refocusing_factor
        return _shaped_flips(self.shape, self.time_bandwidth, flip_angle, self.positions, extent)

    def sampled(self, flip_angle: float, refocusing_angle: float = pi) -> SampledProfile:
        """Flip angles at these nominal angles [rad], for users that scale them.

        The profile of a 180-degree pulse has a cusp that no other angle has: where REL_B1 varies, keep this class.
        """
        return SampledProfile(
            relative_excitation=self.relative_flips(flip_angle),
            relative_refocusing=self.relative_refocusing_flips(refocusing_angle),
            positions_in_slice=self.positions_in_slice,
        )


@dataclass(frozen=True, slots=True)
class ShapedFlip:
    """A shaped pulse at one position as a function of the transmit field b = rel_b1.

        sin(flip / 2) = b x series in b^2,    cos(flip / 2) = its complement, with the sign of the other series

    Attributes:
        sine, cosine: coefficients in b^2 / 2 - 1, highest first.
    """

    sine: tuple[float, ...]
    cosine: tuple[float, ...]

    def __call__(self, rel_b1: Float[Tensor, "*space"]) -> tuple[Float[Tensor, "*space"], Float[Tensor, "*space"]]:
        """Cosine and sine of the flip angle.

        Raises: InputError if the field is beyond the range of the series; under `torch.func.vmap`, which cannot raise
            for one of its elements, NaN there instead.
        """
        beyond = rel_b1.abs() > REL_B1.upper
        try:
            refused = bool(beyond.any())
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            refused, rel_b1 = False, torch.where(beyond, torch.nan, rel_b1)
        if refused:
            raise InputError(f"rel_b1: a shaped slice profile takes up to {REL_B1.upper}, got {rel_b1.abs().max():g}")
        x = rel_b1.square() / 2 - 1
        sine = rel_b1 * _series(self.sine, x)
        # a square root of 0 has no derivative; the sine below is 0 there to rounding
        cosine = (1 - sine.square()).clamp_min(1e-30).sqrt()
        cosine = torch.where(_series(self.cosine, x) < 0, -cosine, cosine)
        return 1 - 2 * sine.square(), 2 * sine * cosine


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def pulse_shape(shape: Shape, time_bandwidth: float, steps: int) -> NDArray[np.float64]:
    """Amplitude at the middle of each step of the pulse, of sum 1.

    sinc(b x) (1 + cos(2 pi x)) / 2   or   exp(-(pi b x)^2 / (4 ln 2)),   -1/2 < x < 1/2,   b the time-bandwidth product

    Source: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), sections 2.2 and 4.1.
    """
    x = (np.arange(steps) + 0.5) / steps - 0.5
    if shape == "sinc":
        amplitude = np.sinc(time_bandwidth * x) * (1 + np.cos(2 * pi * x)) / 2
    else:
        amplitude = np.exp(-((pi * time_bandwidth * x) ** 2) / (4 * log(2)))
    return amplitude / amplitude.sum()


def half_angles(
    amplitude: NDArray[np.float64],
    time_bandwidth: float,
    flip_angle: NDArray[np.float64] | float,
    position: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Sine and (complex) cosine of half the flip angle of a symmetric pulse under its slice gradient.

    Each step turns the spinor (a, b) about its effective field, of angle p = (ax, 0, az):

        (a, b) -> (u a - w* b, w a + u* b),    u = cos(|p| / 2) - i az r,    w = -i ax r,    r = sin(|p| / 2) / |p|

    The whole turn of a pulse that is its own mirror image has no axis component along y, so b = -i sin(flip / 2);
    |a| = cos(flip / 2), and its phase beyond that of the gradient is what a rephasing lobe leaves.

    Args:
        amplitude: share of the flip angle in each step.
        time_bandwidth: product.
        flip_angle: nominal, broadcastable against the positions [rad].
        position: distance from the centre in nominal thicknesses.
    """
    az = 2 * pi * time_bandwidth / len(amplitude) * position
    a: NDArray[np.complex128] = np.ones(np.broadcast(flip_angle, position).shape, dtype=np.complex128)
    b = np.zeros_like(a)
    for share in amplitude:
        ax = flip_angle * share
        half = np.hypot(ax, az) / 2
        # sin(|p| / 2) / |p|, also at rest
        ratio = np.sinc(half / pi) / 2
        u, w = np.cos(half) - 1j * az * ratio, -1j * ax * ratio
        a, b = u * a - w.conj() * b, w * a + u.conj() * b
    return -b.imag, a * np.exp(1j * pi * time_bandwidth * position)


def _check_angle(flip_angle: float) -> None:
    if not 0 < flip_angle <= pi:
        raise InputError(f"flip_angle: a shaped pulse takes angles in (0, pi] rad, got {flip_angle:g}")


def _far_half(positions: int, extent: float) -> NDArray[np.float64]:
    """Positions from one end to the middle; the other half is its mirror image to the last bit."""
    return np.arange(positions - 1, -1, -2, dtype=np.float64) * (extent / (2 * positions))


@lru_cache(maxsize=256)
def _relative_flips(
    shape: Shape, time_bandwidth: float, flip_angle: float, positions: int, extent: float
) -> tuple[float, ...]:
    _check_angle(flip_angle)
    amplitude = pulse_shape(shape, time_bandwidth, _STEPS)
    sine, cosine = half_angles(amplitude, time_bandwidth, flip_angle, _far_half(positions, extent))
    half = [float(angle) / flip_angle for angle in 2 * np.arctan2(sine, np.abs(cosine))]
    return (*half, *half[: positions // 2][::-1])


@lru_cache(maxsize=256)
def _shaped_flips(
    shape: Shape, time_bandwidth: float, flip_angle: float, positions: int, extent: float
) -> tuple[ShapedFlip, ...]:
    _check_angle(flip_angle)
    amplitude = pulse_shape(shape, time_bandwidth, _STEPS)
    # Chebyshev nodes of b^2 / 2 - 1, which runs from -1 to 1 for b up to 2
    nodes = np.polynomial.chebyshev.chebpts1(_TERMS)
    b = np.sqrt(2 * (nodes + 1))[:, None]
    sine, cosine = half_angles(amplitude, time_bandwidth, flip_angle * b, _far_half(positions, extent))
    fits = (np.polynomial.chebyshev.chebfit(nodes, y, _TERMS - 1).T for y in (sine / b, cosine.real))
    half = [
        ShapedFlip(*(tuple(np.polynomial.chebyshev.cheb2poly(one)[::-1].tolist()) for one in both))
        for both in zip(*fits, strict=True)
    ]
    return (*half, *half[: positions // 2][::-1])
