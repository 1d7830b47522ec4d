"""The Bloch equation with constant field and relaxation, solved in closed form (convention: `bloch.py`)."""

from dataclasses import dataclass
from math import cos, pi, sin

import torch
from torch import Tensor

from qsim.signals.affine import Affine, Matrix, Vector, cross, dot, image, product, scaled, transposed
from qsim.signals.spins import Spins

Times = float | tuple[float, ...]
Factors = tuple[Tensor, Tensor, Tensor]

# |cos| or |sin| below this is a right angle's rounding
_RIGHT_ANGLE = 1e-14


@dataclass(frozen=True, slots=True)
class Modes:
    """Solution of dM/dt = A M + R1 M0 z with constant A.

        M(t) = M_rest + right D(t) left (M(0) - M_rest)
        D(t): p -> p exp(-along t);   (u, v) -> exp(-across t) (u cos(turn t) - v sin(turn t), u sin + v cos)

    Attributes:
        right: columns are the mode along the effective field and the two across it.
        left: inverse of `right`.
        rest: where M comes to rest [M0].
        rest_inside: left M_rest, which no turn about z changes [M0].
        along, across: decay rates of the modes [1/s].
        turn: rate at which the pair turns [rad/s].
    """

    right: Matrix
    left: Matrix
    rest: Vector
    rest_inside: Vector
    along: Tensor
    across: Tensor
    turn: Tensor

    def turned(self, phase: float) -> "Modes":
        """The same event with its field turned about z by a phase [rad]: relaxation is the same all round z."""
        c, s = cos_sin(phase)
        about_z: Matrix = ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))
        return Modes(
            product(about_z, self.right),
            product(self.left, transposed(about_z)),
            image(about_z, self.rest),
            self.rest_inside,
            self.along,
            self.across,
            self.turn,
        )

    @property
    def into(self) -> Affine:
        """M -> left (M - M_rest)"""
        return Affine(self.left, scaled(self.rest_inside, -1.0))

    @property
    def back(self) -> Affine:
        """(p, u, v) -> right (p, u, v) + M_rest"""
        return Affine(self.right, self.rest)

    def after(self, duration: float) -> Affine:
        """The whole event of one duration [s] as an affine map."""
        decay = (-duration * self.across).exp()
        e, c, s = (
            (-duration * self.along).exp(),
            decay * (duration * self.turn).cos(),
            decay * (duration * self.turn).sin(),
        )
        d: Matrix = ((e, 0.0, 0.0), (0.0, c, -s), (0.0, s, c))
        return self.back.after(Affine(d)).after(self.into)


def cos_sin(phase: float) -> tuple[float, float]:
    """cos and sin, exact at right angles."""
    c, s = cos(phase), sin(phase)
    return (0.0 if abs(c) < _RIGHT_ANGLE else c), (0.0 if abs(s) < _RIGHT_ANGLE else s)


def _real_root(trace: Tensor, c1: Tensor, c0: Tensor) -> Tensor:
    """The only real root of mu^3 - trace mu^2 + c1 mu - c0; NaN unless c1 > trace^2 / 3, where there may be three.

        mu = t + trace / 3,    t^3 + p t + q = 0,    t = -2 sqrt(p / 3) sinh(asinh(3 q / 2p sqrt(3 / p)) / 3)

    by the hyperbolic form of Cardano's formula, then two steps of Newton's method take off its rounding.
    """
    p = c1 - trace * trace / 3
    q = trace * (c1 / 3 - trace * trace * (2 / 27)) - c0
    root = (p / 3).sqrt()
    mu = trace / 3 - 2 * root * torch.sinh(torch.asinh(q / (2 * root * root * root)) / 3)
    for _ in range(2):
        mu = mu - (((mu - trace) * mu + c1) * mu - c0) / ((3 * mu - 2 * trace) * mu + c1)
    return mu


def driven_modes(spin: Spins, w1: Tensor, r1rho: Tensor | None = None, r2rho: Tensor | None = None) -> Modes:
    """Modes while a field of constant amplitude about x is on.

    With w = (w1, 0, dw) and A = W - Gamma, the rate `along` = mu is the real root of the characteristic polynomial,

        mu^3 - tr(Gamma) mu^2 + c1 mu - c0 = 0
        c1 = (tr(Gamma)^2 - tr(Gamma^2)) / 2 + w^2,    c0 = det(Gamma) + w' Gamma w

    the pair follows from its sum and product:

        across = (tr(Gamma) - mu) / 2,    turn^2 = c0 / mu - across^2

    Args:
        spin: float64.
        w1: amplitude of the field [rad/s].
        r1rho, r2rho: rates along and across the effective field; those of the Bloch equation if not given [1/s].
    Assumes: the field is stronger than relaxation, c1 > tr(Gamma)^2 / 3 (about w > .58 (R2 - R1)), so that the pair
        turns; elsewhere, and without any field, the result is NaN.
    """
    r1, r2 = 1 / spin.t1, 1 / spin.t2
    dw = 2 * pi * spin.delta_b0
    w_squared = w1**2 + dw**2
    nx2 = w1**2 / w_squared
    nz2 = 1 - nx2
    nxnz = w1 * dw / w_squared
    bloch_along = r1 * nz2 + r2 * nx2
    # Gamma; y does not couple
    xx, yy, zz, xz = r2, r2, r1, torch.zeros_like(r1)
    if r1rho is not None:
        along_n = r1rho - bloch_along
        xx, zz, xz = xx + along_n * nx2, zz + along_n * nz2, along_n * nxnz
    if r2rho is not None:
        across_n = r2rho - (2 * r2 + r1 - bloch_along) / 2
        xx, yy, zz, xz = xx + across_n * nz2, yy + across_n, zz + across_n * nx2, xz - across_n * nxnz
    trace = xx + yy + zz
    c1 = xx * yy + yy * zz + xx * zz - xz**2 + w_squared
    c0 = yy * (xx * zz - xz**2) + w1**2 * xx + 2 * w1 * dw * xz + dw**2 * zz
    mu = _real_root(trace, c1, c0)
    across = (trace - mu) / 2
    turn = torch.sqrt(c0 / mu - across**2)
    # eigenvector along the field: adj(A + mu) w / w^3, and its mirror image in y from the left
    a, b, d = mu - xx, mu - yy, mu - zz
    cube = w_squared.rsqrt() / w_squared
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
    volume = dot(along_column, cross(u, v))
    assert isinstance(volume, Tensor)
    left: Matrix = (
        scaled((rx, -ry, rz), 1 / norm),
        scaled(cross(v, along_column), 1 / volume),
        scaled(cross(along_column, u), 1 / volume),
    )
    rest = scaled((w1 * dw - xz * yy, xz * dw + xx * w1, xx * yy + dw**2), r1 / c0)
    return Modes(
        right=transposed((along_column, u, v)),
        left=left,
        rest=rest,
        rest_inside=image(left, rest),
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
        rest_inside=(1.0, 0.0, 0.0),
        along=1 / spin.t1,
        across=1 / spin.t2,
        turn=2 * pi * spin.delta_b0,
    )
