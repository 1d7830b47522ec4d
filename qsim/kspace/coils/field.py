"""Magnetic field and vector potential of a circular loop of wire, in closed form.

In the frame of a loop of radius a (rho across its axis, z along it), with the complete elliptic integrals K and E of
parameter m, per mu0 I,

    beta^2 = (a + rho)^2 + z^2,    alpha^2 = (a - rho)^2 + z^2,    m = 4 a rho / beta^2
    B_z   = [K + (a^2 - rho^2 - z^2) / alpha^2 E] / (2 pi beta)
    B_rho = z / (2 pi rho beta) [-K + (a^2 + rho^2 + z^2) / alpha^2 E]  = 3 a^2 z rho / (4 beta^5) 2F1(3/2, 5/2; 3; m)
    A_phi = beta / (2 pi rho) [(1 - m / 2) K - E]                       = a^2 rho / (4 beta^3) 2F1(3/2, 3/2; 3; m)

Near the axis the digits of the differences cancel: there the series on the right stands in.
Source: Smythe, Static and Dynamic Electricity, section 7.10.
"""

from dataclasses import dataclass
from math import pi

import numpy as np
from jaxtyping import Float
from scipy.special import ellipe, ellipkm1

_SERIES_BELOW = 0.1
_TERMS = 18

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Loop:
    """A circular loop of wire.

    Attributes:
        centre: x, y, z from the centre of the field of view [fields of view].
        normal: unit vector along its axis; the current turns about it.
        radius: [fields of view].
    """

    centre: Vector
    normal: Vector
    radius: float


@dataclass(frozen=True, slots=True)
class _Place:
    """Points in the frame of a loop: along its axis, the vector across it, and the numbers of the module's formulas."""

    normal: Float[np.ndarray, "3 *ones"]
    z: Float[np.ndarray, "*s"]
    across: Float[np.ndarray, "3 *s"]
    rho2: Float[np.ndarray, "*s"]
    alpha2: Float[np.ndarray, "*s"]
    beta: Float[np.ndarray, "*s"]
    m: Float[np.ndarray, "*s"]
    k: Float[np.ndarray, "*s"]
    e: Float[np.ndarray, "*s"]

    @classmethod
    def of(cls, points: Float[np.ndarray, "3 *s"], loop: Loop) -> "_Place":
        normal = np.asarray(loop.normal).reshape(3, *[1] * (points.ndim - 1))
        offset = points - np.asarray(loop.centre).reshape(normal.shape)
        z = (normal * offset).sum(0)
        across = offset - normal * z
        rho2 = (across**2).sum(0)
        rho = np.sqrt(rho2)
        beta2, alpha2 = (loop.radius + rho) ** 2 + z**2, (loop.radius - rho) ** 2 + z**2
        if not np.all(alpha2 > (1e-9 * loop.radius) ** 2):
            raise ValueError("loops: a point lies on the wire of one; choose another radius or loop_radius")
        # K from 1 - m, which has all digits near the wire
        complement = alpha2 / beta2
        m = 4 * loop.radius * rho / beta2
        return cls(normal, z, across, rho2, alpha2, np.sqrt(beta2), m, ellipkm1(complement), ellipe(m))


def loop_field(points: Float[np.ndarray, "3 *s"], loop: Loop) -> Float[np.ndarray, "3 *s"]:
    """Magnetic field over mu0 I [1 / length].

    Args:
        points: x, y, z, in the unit of the loop's lengths.
    Raises: ValueError if a point lies on the wire.
    """
    p, a = _Place.of(points, loop), loop.radius
    along = (p.k + (a**2 - p.rho2 - p.z**2) / p.alpha2 * p.e) / (2 * pi * p.beta)
    m1 = p.alpha2 / p.beta**2
    difference = -p.k + (1 + m1) / (2 * m1) * p.e
    shape = _hypergeometric(p.m, 2.5, difference * 32 / (3 * pi))
    # B_rho / rho, finite on the axis
    outwards = 0.75 * a**2 * p.z / p.beta**5 * shape
    return along * p.normal + outwards * p.across


def loop_potential(points: Float[np.ndarray, "3 *s"], loop: Loop) -> Float[np.ndarray, "3 *s"]:
    """Vector potential over mu0 I; the electric field of the loop alone is -d/dt of it [1].

    Args:
        points: x, y, z, in the unit of the loop's lengths.
    Raises: ValueError if a point lies on the wire.
    """
    p = _Place.of(points, loop)
    shape = _hypergeometric(p.m, 1.5, ((1 - p.m / 2) * p.k - p.e) * 32 / pi)
    around = loop.radius**2 / (4 * p.beta**3) * shape
    return around * np.cross(np.broadcast_to(p.normal, p.across.shape), p.across, axis=0)


def _hypergeometric(m: Float[np.ndarray, "*s"], b: float, scaled: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """2F1(3/2, b; 3; m): its series for small m, else `scaled` / m^2."""
    coefficients = [1.0]
    for n in range(_TERMS):
        coefficients.append(coefficients[-1] * (1.5 + n) * (b + n) / ((3.0 + n) * (1.0 + n)))
    near = np.minimum(m, _SERIES_BELOW)
    series = np.zeros_like(m)
    for coefficient in reversed(coefficients):
        series = series * near + coefficient
    return np.where(m < _SERIES_BELOW, series, scaled / np.maximum(m, _SERIES_BELOW) ** 2)
