"""The Bloch engine: magnetisation on maps, carried through a list of events.

Convention, stated here once for every sequence:

    dM/dt = M x w - Gamma M + R1 M0 z,    w = (w1 cos phi, w1 sin phi, dw),    dw = 2 pi delta_b0

so that a pulse of +90 degrees about x takes +z to +y, and M is in units of M0. While a field w1 is on, Gamma is

    Gamma = diag(R2, R2, R1) + (R1rho - R1rho_B) n n' + (R2rho - R2rho_B) (1 - n n'),    n = w / |w|

with R1rho_B = R1 cos^2 + R2 sin^2 of the angle between n and z, and R2rho_B = (2 R2 + R1 - R1rho_B) / 2: T1rho acts
along the effective field, T2rho across it, and tissue whose T1rho equals T2 follows the Bloch equation exactly.

Each event solves its equation in closed form: one real mode along the effective field, one pair that turns about it
(`Modes`). What does not depend on the image of the series (pulses, changes of frame) is merged into one affine map per
voxel before it meets the series, in float64; the series itself is carried in the dtype of the maps.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import cos, pi, prod, sin
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.values import value

# an entry of a small matrix: a map, or a number that is the same everywhere (0 and 1 cost nothing)
Entry = Tensor | float
Vector = tuple[Entry, Entry, Entry]
Matrix = tuple[Vector, Vector, Vector]
Times = float | tuple[float, ...]

# numbers of a block whose magnetisation fits the processor's second-level cache
_BLOCK = 100_000
# |cos| or |sin| below this is a right angle's rounding
_RIGHT_ANGLE = 1e-15


@dataclass(frozen=True, slots=True)
class Spins:
    """What the tissue and the fields are in each voxel; all of one shape, dtype and device.

    Attributes:
        t1, t2: relaxation times [s].
        t1rho: relaxation time along a resonant spin-lock field; None where no event locks [s].
        t2rho: across it; None: the rate of the pure Bloch equation, (2 R2 + R1 - R1rho_B) / 2 [s].
        delta_b0: off-resonance [Hz].
        rel_b1: actual over nominal transmit field [1].
    """

    t1: Float[Tensor, "*space"]
    t2: Float[Tensor, "*space"]
    t1rho: Float[Tensor, "*space"] | None
    t2rho: Float[Tensor, "*space"] | None
    delta_b0: Float[Tensor, "*space"]
    rel_b1: Float[Tensor, "*space"]

    def map(self, function: "SpinFunction") -> "Spins":
        """The spins with a function applied to every map."""
        maps = {field.name: getattr(self, field.name) for field in fields(self)}
        return Spins(**{name: None if one is None else function(one) for name, one in maps.items()})


class SpinFunction(Protocol):
    """A function of one map."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


def spins(
    *,
    t1: float | Tensor,
    t2: float | Tensor,
    t1rho: float | Tensor | None = None,
    t2rho: float | Tensor | None = None,
    delta_b0: float | Tensor = 0.0,
    rel_b1: float | Tensor = 1.0,
) -> Spins:
    """Spins from numbers and maps that broadcast: float64 if all are numbers, else the dtype of the maps.

    Args:
        t1, t2, t1rho, t2rho: relaxation times [s].
        delta_b0: off-resonance [Hz].
        rel_b1: actual over nominal transmit field [1].
    Raises: InputError, naming the argument, if a value is not physical: a time not above 0, T2 above 2 T1 (the
        transverse rate of any tissue is at least half the longitudinal one), NaN or infinity, a negative field.
    """
    given = {"t1": t1, "t2": t2, "t1rho": t1rho, "t2rho": t2rho, "delta_b0": delta_b0, "rel_b1": rel_b1}
    maps = {name: one for name, one in given.items() if one is not None}
    tensors = [one for one in maps.values() if isinstance(one, Tensor)]
    dtype = torch.float64
    if tensors:
        dtype = tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)
    if not dtype.is_floating_point:
        raise InputError(f"{next(iter(maps))}: maps must hold floating-point numbers, got {dtype}")
    device = tensors[0].device if tensors else torch.device("cpu")
    whole = dict(
        zip(
            maps,
            torch.broadcast_tensors(*(torch.as_tensor(one, dtype=dtype, device=device) for one in maps.values())),
            strict=True,
        )
    )
    for name, values in whole.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"{name}: must be finite everywhere; leave the background out or give it tissue values")
        if name in ("t1", "t2", "t1rho", "t2rho") and bool((values <= 0).any()):
            raise InputError(f"{name}: must be above 0 s everywhere, got {float(values.min()):g}")
    if bool((whole["t2"] > 2 * whole["t1"]).any()):
        raise InputError("t2: exceeds 2 t1, which no tissue can; check that both are in seconds and not swapped")
    if bool((whole["rel_b1"] < 0).any()):
        raise InputError(f"rel_b1: must not be negative, got {float(whole['rel_b1'].min()):g}")
    return Spins(
        t1=whole["t1"],
        t2=whole["t2"],
        t1rho=whole.get("t1rho"),
        t2rho=whole.get("t2rho"),
        delta_b0=whole["delta_b0"],
        rel_b1=whole["rel_b1"],
    )


# --- small matrices of maps -------------------------------------------------------------------------------------------


def _times(a: Entry, b: Entry) -> Entry:
    """Product that keeps exact zeros and ones as numbers."""
    if (isinstance(a, float) and a == 0) or (isinstance(b, float) and b == 0):
        return 0.0
    if isinstance(a, float) and a == 1:
        return b
    if isinstance(b, float) and b == 1:
        return a
    return a * b


def _plus(a: Entry, b: Entry) -> Entry:
    if isinstance(a, float) and a == 0:
        return b
    if isinstance(b, float) and b == 0:
        return a
    return a + b


def _dot(a: Vector, b: Vector, start: Entry = 0.0) -> Entry:
    """start + a . b"""
    total = start
    for x, y in zip(a, b, strict=True):
        if isinstance(total, Tensor) and isinstance(x, Tensor) and isinstance(y, Tensor):
            total = torch.addcmul(total, x, y)
        else:
            total = _plus(total, _times(x, y))
    return total


def _cross(a: Vector, b: Vector) -> Vector:
    return (
        _plus(_times(a[1], b[2]), _times(-1.0, _times(a[2], b[1]))),
        _plus(_times(a[2], b[0]), _times(-1.0, _times(a[0], b[2]))),
        _plus(_times(a[0], b[1]), _times(-1.0, _times(a[1], b[0]))),
    )


def _scaled(a: Vector, factor: Entry) -> Vector:
    return _times(a[0], factor), _times(a[1], factor), _times(a[2], factor)


def _transposed(a: Matrix) -> Matrix:
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = a
    return (xx, yx, zx), (xy, yy, zy), (xz, yz, zz)


def _product(a: Matrix, b: Matrix) -> Matrix:
    columns = _transposed(b)
    x, y, z = (tuple(_dot(row, column) for column in columns) for row in a)
    return x, y, z  # type: ignore[return-value]


def _image(a: Matrix, v: Vector, start: Vector = (0.0, 0.0, 0.0)) -> Vector:
    return _dot(a[0], v, start[0]), _dot(a[1], v, start[1]), _dot(a[2], v, start[2])


_IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Affine:
    """M -> matrix M + offset, in each voxel.

    Attributes:
        matrix: rows [1].
        offset: [M0].
    """

    matrix: Matrix = _IDENTITY
    offset: Vector = (0.0, 0.0, 0.0)

    def after(self, first: "Affine") -> "Affine":
        """`first`, then this."""
        return Affine(_product(self.matrix, first.matrix), _image(self.matrix, first.offset, self.offset))

    def __call__(self, m: Vector) -> Vector:
        return _image(self.matrix, m, self.offset)

    def to(self, dtype: torch.dtype) -> "Affine":
        """The map with its entries in another dtype."""
        return Affine(tuple(_cast(row, dtype) for row in self.matrix), _cast(self.offset, dtype))  # type: ignore[arg-type]


def _cast(v: Vector, dtype: torch.dtype) -> Vector:
    x, y, z = (entry.to(dtype) if isinstance(entry, Tensor) else entry for entry in v)
    return x, y, z


# --- the equation in closed form --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Modes:
    """Solution of dM/dt = A M + R1 M0 z with constant A.

        M(t) = M_rest + right D(t) left (M(0) - M_rest)
        D(t): p -> p exp(-along t);   (u, v) -> exp(-across t) (u cos(turn t) - v sin(turn t), u sin + v cos)

    Attributes:
        right: columns are the mode along the effective field and the two across it.
        left: inverse of `right`.
        rest: where M comes to rest [M0].
        along, across: decay rates of the modes [1/s].
        turn: rate at which the pair turns [rad/s].
    """

    right: Matrix
    left: Matrix
    rest: Vector
    along: Tensor
    across: Tensor
    turn: Tensor

    def turned(self, phase: float) -> "Modes":
        """The same event with its field turned about z by a phase [rad]: relaxation is the same all round z."""
        c, s = _cos_sin(phase)
        about_z: Matrix = ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))
        return Modes(
            _product(about_z, self.right),
            _product(self.left, _transposed(about_z)),
            _image(about_z, self.rest),
            self.along,
            self.across,
            self.turn,
        )

    def factors(self, times: Tensor, dtype: torch.dtype) -> "Factors":
        """exp(-along t), exp(-across t) cos(turn t), exp(-across t) sin(turn t) after the times [s]."""
        t = times.to(dtype)
        along, across, turn = self.along.to(dtype), self.across.to(dtype), self.turn.to(dtype)
        angle = t * turn
        decay = (-t * across).exp()
        return (-t * along).exp(), angle.cos() * decay, angle.sin() * decay

    @property
    def into(self) -> Affine:
        """M -> left (M - M_rest)"""
        x, y, z = self.rest
        return Affine(self.left, _image(self.left, (_times(-1.0, x), _times(-1.0, y), _times(-1.0, z))))

    @property
    def back(self) -> Affine:
        """(p, u, v) -> right (p, u, v) + M_rest"""
        return Affine(self.right, self.rest)

    def after(self, duration: float) -> Affine:
        """The whole event of one duration [s] as an affine map."""
        e, c, s = self.factors(torch.as_tensor(duration, device=self.along.device), torch.float64)
        d: Matrix = ((e, 0.0, 0.0), (0.0, c, -s), (0.0, s, c))
        return self.back.after(Affine(d)).after(self.into)


def _cos_sin(phase: float) -> tuple[float, float]:
    """cos and sin, exact at right angles."""
    c, s = cos(phase), sin(phase)
    return (0.0 if abs(c) < _RIGHT_ANGLE * 8 else c), (0.0 if abs(s) < _RIGHT_ANGLE * 8 else s)


def driven_modes(spin: Spins, w1: Tensor, r1rho: Tensor | None = None, r2rho: Tensor | None = None) -> Modes:
    """Modes while a field of constant amplitude about x is on.

    With w = (w1, 0, dw) and A = W - Gamma, the rate `along` = mu is the real root of the characteristic polynomial,

        mu^3 - tr(Gamma) mu^2 + c1 mu - c0 = 0,    c1 = (tr(Gamma)^2 - tr(Gamma^2)) / 2 + w^2,    c0 = det(Gamma) + w' Gamma w

    found by Newton's method from n' Gamma n; the pair follows from its sum and product:

        across = (tr(Gamma) - mu) / 2,    turn^2 = c0 / mu - across^2

    Args:
        spin: float64.
        w1: amplitude of the field [rad/s].
        r1rho, r2rho: rates along and across the effective field; those of the Bloch equation if not given [1/s].
    Assumes: the pair turns, w > (R2 - R1) / 2 or so: where relaxation is faster the result is NaN (`Lock.check`).
    """
    r1, r2 = 1 / spin.t1, 1 / spin.t2
    dw = 2 * pi * spin.delta_b0
    w_squared = w1**2 + dw**2
    nx2 = w1**2 / w_squared
    nz2 = 1 - nx2
    nxnz = w1 * dw / w_squared
    bloch_along = r1 * nz2 + r2 * nx2
    extra_along = 0.0 if r1rho is None else r1rho - bloch_along
    extra_across = 0.0 if r2rho is None else r2rho - (2 * r2 + r1 - bloch_along) / 2
    extra = extra_along - extra_across
    # Gamma; y does not couple
    xx = r2 + extra_across + extra * nx2
    yy = r2 + extra_across
    zz = r1 + extra_across + extra * nz2
    xz = extra * nxnz
    trace = xx + yy + zz
    c1 = xx * yy + yy * zz + xx * zz - xz**2 + w_squared
    c0 = yy * (xx * zz - xz**2) + w1**2 * xx + 2 * w1 * dw * xz + dw**2 * zz
    mu = xx * nx2 + 2 * xz * nxnz + zz * nz2
    for _ in range(5):
        mu = mu - (((mu - trace) * mu + c1) * mu - c0) / ((3 * mu - 2 * trace) * mu + c1)
    across = (trace - mu) / 2
    turn = torch.sqrt(c0 / mu - across**2)
    # eigenvector along the field: adj(A + mu) w / w^3, and its mirror image in y from the left
    a, b, d = mu - xx, mu - yy, mu - zz
    cube = w_squared.rsqrt() ** 3
    rx = (w1 * (b * d + w1**2) + dw * (w1 * dw + xz * b)) * cube
    ry = (w1 * (dw * d - w1 * xz) + dw * (xz * dw - a * w1)) * cube
    rz = (w1 * (w1 * dw + xz * b) + dw * (a * b + dw**2)) * cube
    norm = rx**2 - ry**2 + rz**2
    # across it: y without its part along, and where A takes that
    ux, uy, uz = rx * ry / norm, 1 + ry**2 / norm, rz * ry / norm
    vx = ((across - xx) * ux + dw * uy - xz * uz) / turn
    vy = (-dw * ux + (across - yy) * uy + w1 * uz) / turn
    vz = (-xz * ux - w1 * uy + (across - zz) * uz) / turn
    along_column, u, v = (rx, ry, rz), (ux, uy, uz), (vx, vy, vz)
    volume = _dot(along_column, _cross(u, v))
    assert isinstance(volume, Tensor)
    return Modes(
        right=_transposed((along_column, u, v)),
        left=(
            _scaled((rx, -ry, rz), 1 / norm),
            _scaled(_cross(v, along_column), 1 / volume),
            _scaled(_cross(along_column, u), 1 / volume),
        ),
        rest=_scaled((w1 * dw - xz * yy, xz * dw + xx * w1, xx * yy + dw**2), r1 / c0),
        along=mu,
        across=across,
        turn=turn,
    )


def free_modes(spin: Spins) -> Modes:
    """Modes without a field: Mz recovers, the transverse part turns clockwise by dw and decays (float64)."""
    return Modes(
        right=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
        left=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
        rest=(0.0, 0.0, 1.0),
        along=1 / spin.t1,
        across=1 / spin.t2,
        turn=2 * pi * spin.delta_b0,
    )


Factors = tuple[Tensor, Tensor, Tensor]

# --- events -----------------------------------------------------------------------------------------------------------


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
        c, s = _cos_sin(self.phase)
        angle = self.flip * spin.rel_b1
        return Affine(rotation((c, s, 0.0), angle.cos(), angle.sin()))


def rotation(axis: Vector, c: Tensor, s: Tensor) -> Matrix:
    """M -> M cos + (M x n) sin + n (n . M) (1 - cos): the turn that dM/dt = M x w makes about a unit axis."""
    x, y, z = axis
    up = 1 - c
    n = _scaled(axis, up)
    minus = _times(-1.0, s)
    return (
        (_plus(c, _times(n[0], x)), _plus(_times(n[0], y), _times(s, z)), _plus(_times(n[0], z), _times(minus, y))),
        (_plus(_times(n[1], x), _times(minus, z)), _plus(c, _times(n[1], y)), _plus(_times(n[1], z), _times(s, x))),
        (_plus(_times(n[2], x), _times(s, y)), _plus(_times(n[2], y), _times(minus, x)), _plus(c, _times(n[2], z))),
    )


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
        columns = [self._carry(spin, start, 0.0) for start in _IDENTITY]
        offset = self._carry(spin, (0.0, 0.0, 0.0), 1.0)
        return Affine(_transposed(tuple(columns)), offset)  # type: ignore[arg-type]

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
        c, s = _cos_sin(self.phase)
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
        return Modes(_transposed(only_z), only_z, free.rest, free.along, free.across, free.turn)


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
        return driven_modes(spin, 2 * pi * self.fsl * spin.rel_b1, along, across)


# --- carrying magnetisation through events ----------------------------------------------------------------------------


def magnetisation(
    events: Sequence[Event], spin: Spins, mz0: Float[Tensor, "*space"] | float = 1.0
) -> Float[Tensor, "3 n *space"]:
    """(Mx, My, Mz) after the events [M0]; n is 1 if no event has a duration per image.

    Args:
        events: in time order.
        spin: tissue and fields.
        mz0: longitudinal magnetisation before them; no transverse one [M0].
    """
    return _in_blocks(events, spin, mz0, (0, 1, 2))


def longitudinal(
    events: Sequence[Event], spin: Spins, mz0: Float[Tensor, "*space"] | float = 1.0
) -> Float[Tensor, "n *space"]:
    """Mz after the events, as `magnetisation` [M0]."""
    return _in_blocks(events, spin, mz0, (2,))[0]


def _n_images(events: Sequence[Event]) -> int:
    lengths = {len(e.duration) for e in events if isinstance(e, TimedEvent) and isinstance(e.duration, tuple)}
    if len(lengths) > 1:
        raise ValueError(f"events have durations for {', '.join(map(str, sorted(lengths)))} images; give one length")
    return lengths.pop() if lengths else 1


def _in_blocks(
    events: Sequence[Event], spin: Spins, mz0: Tensor | float, rows: tuple[int, ...]
) -> Float[Tensor, "r n *space"]:
    """Voxels are carried in blocks that fit the cache; they do not mix."""
    shape, n = spin.t1.shape, _n_images(events)
    start = torch.as_tensor(mz0, dtype=spin.t1.dtype, device=spin.t1.device).expand(shape)
    voxels = prod(shape)
    if spin.t1.device.type != "cpu" or n * voxels <= 2 * _BLOCK:
        return torch.stack(_carry(events, spin, start, n, rows))
    flat, start = spin.map(lambda x: x.reshape(-1)), start.reshape(-1)
    size = max(1, _BLOCK // n)
    parts = [
        torch.stack(_carry(events, flat.map(lambda x, part=part: x[part]), start[part], n, rows))  # type: ignore[misc]
        for part in _slices(voxels, size)
    ]
    return torch.cat(parts, -1).reshape(len(rows), n, *shape)


def _slices(total: int, size: int) -> Iterator[slice]:
    for low in range(0, total, size):
        yield slice(low, min(low + size, total))


def _carry(
    events: Sequence[Event], spin: Spins, mz0: Tensor, n: int, rows: tuple[int, ...]
) -> list[Float[Tensor, "n *space"]]:
    """One block: what is fixed is merged into `pending`, which meets the series only before the next timed event."""
    dtype, ndim = spin.t1.dtype, spin.t1.ndim
    exact = spin.map(lambda x: x.double())
    solved: dict[Hashable, Modes] = {}
    memory: dict[tuple[Hashable, Times], Factors] = {}
    m: Vector = (0.0, 0.0, mz0.double())
    # before the first event that differs between images, m itself is carried, in float64
    in_series = False
    pending = Affine()
    for event in events:
        if isinstance(event, FixedEvent):
            if isinstance(event, ShapedPulse) and not in_series:
                m = event.apply(exact, m)
            elif in_series:
                pending = event.affine(exact).after(pending)
            else:
                m = event.affine(exact)(m)
            continue
        if event.medium not in solved:
            solved[event.medium] = event.modes(exact)
        modes = solved[event.medium].turned(event.phase)
        if isinstance(event.duration, float):
            whole = modes.after(event.duration)
            m, pending = (m, whole.after(pending)) if in_series else (whole(m), pending)
            continue
        e, c, s = _factors(modes, event, ndim, dtype, memory)
        p, u, v = modes.into.after(pending).to(dtype)(m) if in_series else _cast(modes.into(m), dtype)
        m = (
            _times(p, e),
            _plus(_times(u, c), _times(-1.0, _times(v, s))),
            _plus(_times(u, s), _times(v, c)),
        )
        in_series, pending = True, modes.back
    final = pending.to(dtype)
    shape = (n, *spin.t1.shape)
    results = []
    for row in rows:
        entry = _dot(final.matrix[row], m, final.offset[row])
        filled = entry if isinstance(entry, Tensor) else torch.full_like(spin.t1, entry)
        results.append(filled.to(dtype).expand(shape))
    return results


def _factors(
    modes: Modes, event: TimedEvent, ndim: int, dtype: torch.dtype, memory: dict[tuple[Hashable, Times], Factors]
) -> Factors:
    """`Modes.factors` of the event; twice a duration that was met before is its square, without an exponential."""
    assert isinstance(event.duration, tuple)
    key = (event.medium, event.duration)
    if key in memory:
        return memory[key]
    half = memory.get((event.medium, tuple(t / 2 for t in event.duration)))
    if half is not None:
        e, c, s = half
        memory[key] = e * e, torch.addcmul(c * c, s, s, value=-1), 2 * c * s
    else:
        column = torch.tensor(event.duration, dtype=dtype, device=modes.along.device).reshape(-1, *(1,) * ndim)
        memory[key] = modes.factors(column, dtype)
    return memory[key]
