"""Bias field: the smooth sensitivity of a receive coil, and its phase if one is asked for.

    m(r) *= exp(f_x(x) + f_y(y) + f_z(z) + i (g_x(x) + g_y(y) + g_z(z)))
    f(u) = sum_{l = 1 ... order} c_l P_l(u) - mean,    g likewise

P_l are Legendre polynomials over the field of view, whose edges are u = -1 and 1. Each axis has mean 0 over its
voxels, so the geometric mean of the field is 1. Coefficients have both signs. The field is a product of one vector per
axis. Only what takes a phase into account, such as a partial Fourier reconstruction, sees g.
Source: a polynomial in the logarithm, as in Van Leemput et al. 1999, doi:10.1109/42.811268.
"""

from dataclasses import dataclass
from functools import reduce
from math import hypot
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, reach
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.values import value


@dataclass(frozen=True, slots=True)
class BiasFieldDrawn:
    """What was drawn.

    Attributes:
        space: extent [voxels].
        strength: see `BiasField` [1].
        phase: see `BiasField` [rad].
        coefficients: c_1, ... of each axis, of the logarithm of the size [1].
        phase_coefficients: the same of the phase [rad].
    """

    space: tuple[int, ...]
    strength: float
    phase: float
    coefficients: tuple[tuple[float, ...], ...]
    phase_coefficients: tuple[tuple[float, ...], ...]

    @property
    def severity(self) -> float:
        """Half the ranges of the real and the imaginary part of the logarithm of the field, root of their squares."""
        return hypot(self.strength, self.phase)


@value
class BiasField:
    """Bias field: slow shading, the same in every image of the series and in every coil.

    Attributes:
        strength: half the range of the logarithm of the field, ln(largest / smallest) / 2 over all voxels: 0.2 means
            that the brightest place is seen exp(0.4) = 1.49 times as bright as the darkest [1].
        phase: half the range of its phase over all voxels [rad].
        order: largest degree of the polynomials.
        probability, ndim: see `Artefact`.
    Severity: root of strength^2 + phase^2.
    Assumes: a receive field; the transmit field changes the signal itself (REL_B1 of the signal models).
    """

    stage: ClassVar[Stage] = Stage.FIELD
    kind: Literal["bias_field"] = "bias_field"
    strength: Amount
    phase: Amount = 0.0
    order: int = 3
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        # beyond this nothing is shading any more, and single precision overflows before long
        check_amount("strength", self.strength, low=0, high=5)
        check_amount("phase", self.phase, low=0)
        if not 1 <= self.order <= 10:
            raise ValueError(f"order must lie between 1 and 10, got {self.order}")
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> BiasFieldDrawn:
        """Coefficients uniform on [-1, 1], then all scaled to the strength.

        Raises: ValueError if there is but one voxel, over which nothing varies.
        """
        _, space = drawn_for(shape, self.ndim)
        strength, coefficients = _draw_field(space, self.strength, self.order, rng)
        phase, phase_coefficients = _draw_field(space, self.phase, self.order, rng)
        return BiasFieldDrawn(space, strength, phase, coefficients, phase_coefficients)

    def act(self, acquired: Acquired, drawn: BiasFieldDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        images = acquired.brought(image=range(len(drawn.space)))
        *others, x = (images.along(torch.from_numpy(each), axis) for axis, each in enumerate(_factors(drawn)))
        # all axes but x first: two large products, the second in place
        return images.with_values((images.values * reduce(torch.mul, others)).mul_(x))

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: BiasFieldDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)


def field_of(drawn: BiasFieldDrawn) -> Inexact[np.ndarray, "*space"]:
    """The field itself, of geometric mean 1; complex where it has a phase [1]."""
    return reduce(np.multiply.outer, _factors(drawn))


def _draw_field(
    space: tuple[int, ...], amount: Amount, order: int, rng: np.random.Generator
) -> tuple[float, tuple[tuple[float, ...], ...]]:
    """Half the range over all voxels, and coefficients that have it."""
    half_range = draw_amount(amount, rng)
    shares = rng.uniform(-1, 1, (len(space), order))
    # the axes are independent: the range of the sum is the sum of the ranges
    found = sum(float(np.ptp(_polynomial(n, row))) for n, row in zip(space, shares, strict=True)) / 2
    # also where this draw happens to be 0: every draw refuses, or none
    if found == 0 and reach(amount)[1] > 0:
        raise ValueError(f"shape: {space} is a single voxel, over which a field cannot vary")
    coefficients = shares * (half_range / found if half_range > 0 else 0.0)
    return half_range, tuple(tuple(map(float, row)) for row in coefficients)


def _factors(drawn: BiasFieldDrawn) -> list[Inexact[np.ndarray, " n"]]:
    """exp(f + i g) of each axis."""
    sizes = [np.exp(_polynomial(n, np.array(c))) for n, c in zip(drawn.space, drawn.coefficients, strict=True)]
    if drawn.phase == 0:
        return sizes
    phases = [_polynomial(n, np.array(c)) for n, c in zip(drawn.space, drawn.phase_coefficients, strict=True)]
    return [size * np.exp(1j * phase) for size, phase in zip(sizes, phases, strict=True)]


def _polynomial(n: int, coefficients: Float[np.ndarray, " order"]) -> Float[np.ndarray, " n"]:
    """f or g at the centres of the voxels of one axis."""
    u = (2 * np.arange(n) + 1) / n - 1
    f = np.polynomial.legendre.legval(u, np.concatenate([[0.0], coefficients]))
    return f - f.mean()
