"""Events that sequences are made of: pulses, precession, spin-lock, delays, crushers (convention: `bloch.py`)."""

from collections.abc import Hashable
from dataclasses import dataclass
from math import pi
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qsim.errors import InputError
from qsim.signals.affine import IDENTITY, Affine, Entry, Matrix, Vector, plus, scaled, times, transposed
from qsim.signals.modes import Modes, Times, cos_sin, driven_modes, free_modes
from qsim.signals.spins import Spins
from qsim.values import value


@runtime_checkable
class FixedEvent(Protocol):
    """An event that is the same in every image of the series."""

    def affine(self, spin: Spins) -> Affine:
        """What it does to M in each voxel (float64)."""
        ...


@runtime_checkable
class TimedEvent(Protocol):
    """An event whose duration may differ from image to image."""

    @property
    def duration(self) -> Times:
        """One duration, or one for each image [s]."""
        ...

    @property
    def phase(self) -> float:
        """Of its field in the transverse plane [rad]."""
        ...

    @property
    def medium(self) -> Hashable:
        """What decides its modes: events of one medium share them."""
        ...

    def modes(self, spin: Spins) -> Modes:
        """Its solution in each voxel with the field along x (float64)."""
        ...


Event = FixedEvent | TimedEvent


@dataclass(frozen=True, slots=True)
class HardPulse:
    """A pulse without duration.

    Attributes:
        flip: nominal flip angle; the actual one is rel_b1 times as large [rad].
        phase: of its axis in the transverse plane [rad].
    """

    flip: float
    phase: float = 0.0

    def affine(self, spin: Spins) -> Affine:
        return self.turning(*self.cos_sin(spin))

    def cos_sin(self, spin: Spins) -> tuple[Tensor, Tensor]:
        """Of the actual flip angle: the same for every phase."""
        angle = self.flip * spin.rel_b1
        return angle.cos(), angle.sin()

    def turning(self, c: Tensor, s: Tensor) -> Affine:
        """Its map, from cos and sin of the flip angle."""
        x, y = cos_sin(self.phase)
        return Affine(rotation((x, y, 0.0), c, s))


def rotation(axis: Vector, c: Tensor, s: Tensor) -> Matrix:
    """M -> M cos + (M x n) sin + n (n . M) (1 - cos): the turn that dM/dt = M x w makes about a unit axis."""
    x, y, z = axis
    up = 1 - c
    n = scaled(axis, up)
    minus = times(-1.0, s)
    return (
        (_diagonal(c, n[0], x), plus(times(n[0], y), times(s, z)), plus(times(n[0], z), times(minus, y))),
        (plus(times(n[1], x), times(minus, z)), _diagonal(c, n[1], y), plus(times(n[1], z), times(s, x))),
        (plus(times(n[2], x), times(s, y)), plus(times(n[2], y), times(minus, x)), _diagonal(c, n[2], z)),
    )


def _diagonal(c: Tensor, n: Entry, x: Entry) -> Entry:
    """cos + x^2 (1 - cos): 1 on the axis itself."""
    return 1.0 if isinstance(x, float) and abs(x) == 1 else plus(c, times(n, x))


@dataclass(frozen=True, slots=True)
class RectangularPulse:
    """A pulse of constant amplitude, with off-resonance and relaxation while it lasts.

    Attributes:
        flip: nominal flip angle on resonance [rad].
        phase: [rad].
        width: duration [s].
    """

    flip: float
    phase: float
    width: float

    def affine(self, spin: Spins) -> Affine:
        return driven_modes(spin, self.flip / self.width * spin.rel_b1).turned(self.phase).after(self.width)


@dataclass(frozen=True, slots=True)
class ShapedPulse:
    """A pulse given as steps of equal length: amplitude and carrier offset of each.

    Each step is half a relaxation, a turn about the effective field, half a relaxation (second order in the step).

    Attributes:
        amplitude: nominal field of each step, gamma B1 / 2 pi [Hz].
        offset: frequency of the carrier above its nominal one in each step; it subtracts from delta_b0 [Hz].
        width: duration of the whole pulse [s].
        phase: [rad].
    """

    amplitude: tuple[float, ...]
    offset: tuple[float, ...]
    width: float
    phase: float = 0.0

    def affine(self, spin: Spins) -> Affine:
        columns = [self._carry(spin, start, 0.0) for start in IDENTITY]
        offset = self._carry(spin, (0.0, 0.0, 0.0), 1.0)
        return Affine(transposed(tuple(columns)), offset)  # type: ignore[arg-type]

    def apply(self, spin: Spins, m: Vector) -> Vector:
        """M after the pulse; a quarter of the work of `affine`."""
        return self._carry(spin, m, 1.0)

    def _carry(self, spin: Spins, m: Vector, m0: float) -> Vector:
        """M after the pulse with a recovery towards m0."""
        step = self.width / len(self.amplitude)
        half1, half2 = (-step / 2 / spin.t1).exp(), (-step / 2 / spin.t2).exp()
        gained = m0 * (1 - half1)
        # relaxations of neighbouring steps join
        whole1, whole2 = half1**2, half2**2
        both = m0 * (1 - whole1)
        c, s = cos_sin(self.phase)
        zero = torch.zeros_like(spin.t1)
        mx, my, mz = (entry + zero for entry in m)
        mx, my = c * mx + s * my, c * my - s * mx
        mx, my, mz = mx * half2, my * half2, mz * half1 + gained
        last = len(self.amplitude) - 1
        dw0 = 2 * pi * step * spin.delta_b0
        b1 = 2 * pi * step * spin.rel_b1
        for i, (amplitude, carrier) in enumerate(zip(self.amplitude, self.offset, strict=True)):
            # angles about x and z in this step
            ax, az = amplitude * b1, dw0 - 2 * pi * step * carrier
            squared = ax * ax + az * az
            # sin(a) / a and (1 - cos(a)) / a^2 = sinc(a / 2)^2 / 2, also at a = 0
            angle = squared.sqrt() / pi
            sinc, versine = torch.sinc(angle), torch.sinc(angle / 2).square() / 2
            # M + (M x a) sinc + (M x a) x a versine
            cx, cy, cz = my * az, mz * ax - mx * az, -my * ax
            dx, dy, dz = cy * az, cz * ax - cx * az, -cy * ax
            mx = mx + cx * sinc + dx * versine
            my = my + cy * sinc + dy * versine
            mz = mz + cz * sinc + dz * versine
            e1, e2, up = (half1, half2, gained) if i == last else (whole1, whole2, both)
            mx, my, mz = mx * e2, my * e2, mz * e1 + up
        return c * mx - s * my, s * mx + c * my, mz


@dataclass(frozen=True, slots=True)
class FreePrecession:
    """Precession at the off-resonance with relaxation.

    Attributes:
        duration: one, or one for each image [s].
    """

    duration: Times
    phase: float = 0.0

    @property
    def medium(self) -> Hashable:
        return "free"

    def modes(self, spin: Spins) -> Modes:
        return free_modes(spin)


@dataclass(frozen=True, slots=True)
class Delay:
    """Recovery of Mz; no transverse magnetisation survives it.

    Attributes:
        duration: one, or one for each image [s].
    """

    duration: Times
    phase: float = 0.0

    @property
    def medium(self) -> Hashable:
        return "delay"

    def modes(self, spin: Spins) -> Modes:
        free = free_modes(spin)
        only_z: Matrix = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        return Modes(transposed(only_z), only_z, free.rest, free.rest_inside, free.along, free.across, free.turn)


@dataclass(frozen=True, slots=True)
class Crusher:
    """A gradient that leaves no transverse magnetisation."""

    def affine(self, spin: Spins) -> Affine:
        del spin
        return Affine(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


@value
class Exchange:
    """Two-site fast exchange, which adds to R1rho and makes it depend on f_SL.

        Rex = sin^2(theta) p_a p_b dw_ab^2 k / (w_eff^2 + k^2)

    Attributes:
        fraction: population p_b of the smaller site [1].
        shift: distance dw_ab / 2 pi of the two sites [Hz].
        rate: exchange rate k [1/s].
    Source: Trott and Palmer 2002, doi:10.1006/jmre.2001.2466 (fast-exchange limit).
    """

    fraction: float
    shift: float
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"fraction must lie in (0, 0.5], got {self.fraction}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0 per second, got {self.rate}")

    def added_rate(self, sin2: Tensor, w_squared: Tensor) -> Tensor:
        """Rex [1/s] at sin^2(theta) and the squared effective field [rad^2/s^2]."""
        strength = self.fraction * (1 - self.fraction) * (2 * pi * self.shift) ** 2 * self.rate
        return sin2 * strength / (w_squared + self.rate**2)


def rotating_frame_rates(spin: Spins, fsl: float | Tensor, exchange: Exchange | None = None) -> tuple[Tensor, Tensor]:
    """R1rho along and R2rho across the effective field of a spin-lock [1/s].

        R1rho = R1 cos^2(theta) + (1 / T1rho) sin^2(theta) [+ Rex],    tan(theta) = w_SL / dw
        R2rho = 1 / T2rho, or (2 R2 + R1 - R1rho_B) / 2 of the pure Bloch equation, R1rho_B = R1 cos^2 + R2 sin^2

    Args:
        spin: with `t1rho`.
        fsl: nominal spin-lock frequency [Hz].
        exchange: what adds to R1rho; `t1rho` is then that without exchange.
    Raises: InputError if the spins have no T1rho: a lock without one would do nothing.
    """
    if spin.t1rho is None:
        raise InputError("t1rho: missing; a spin-lock needs it [s] (tissue that follows the Bloch equation has T2)")
    w1, dw = 2 * pi * fsl * spin.rel_b1, 2 * pi * spin.delta_b0
    w_squared = w1**2 + dw**2
    sin2 = w1**2 / w_squared
    r1, r2 = 1 / spin.t1, 1 / spin.t2
    along = r1 * (1 - sin2) + sin2 / spin.t1rho
    if exchange is not None:
        along = along + exchange.added_rate(sin2, w_squared)
    bloch = r1 * (1 - sin2) + r2 * sin2
    across = (2 * r2 + r1 - bloch) / 2 if spin.t2rho is None else 1 / spin.t2rho
    return along, across


@dataclass(frozen=True, slots=True)
class Lock:
    """A segment of spin-lock.

    Attributes:
        duration: one, or one for each image [s].
        fsl: nominal spin-lock frequency, gamma B1 / 2 pi [Hz].
        phase: of the locking field [rad].
        exchange: adds to R1rho, if given.
    """

    duration: Times
    fsl: float
    phase: float
    exchange: Exchange | None = None

    @property
    def medium(self) -> Hashable:
        return self.fsl, self.exchange

    def modes(self, spin: Spins) -> Modes:
        along, across = rotating_frame_rates(spin, self.fsl, self.exchange)
        # without a T2rho of its own, what lies across relaxes as the Bloch equation has it
        own = None if spin.t2rho is None else across
        return driven_modes(spin, 2 * pi * self.fsl * spin.rel_b1, along, own)
