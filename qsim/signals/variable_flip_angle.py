"""Spoiled gradient echoes in their steady state, at several flip angles.

Derivation: docs/physics/spoiled_gradient_echo.md.
"""

from math import isfinite, pi
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import REL_B1, T1, A, Parameter
from qsim.signals.base import time_axis
from qsim.signals.train import check_interval
from qsim.values import value


def ernst(
    a: Float[Tensor, "*space"],
    t1: Float[Tensor, "*space"],
    rel_b1: Float[Tensor, "*space"],
    flip_angles: Float[Tensor, "n *ones"],
    tr: float,
) -> Float[Tensor, "n *space"]:
    """Steady state of a spoiled gradient echo.

        S(alpha) = A sin(b1 alpha) (1 - E1) / (1 - E1 cos(b1 alpha)),    E1 = exp(-TR / T1)

    Args:
        a: signal at full recovery behind a 90 degree pulse; the decay before the echo is part of it [1].
        t1: longitudinal relaxation time [s].
        rel_b1: actual over nominal flip angle [1].
        flip_angles: nominal [rad].
        tr: between pulses [s].
    Assumes: perfect spoiling.
    Source: Ernst and Anderson 1966, doi:10.1063/1.1719961; Fram et al. 1987, doi:10.1016/0730-725X(87)90021-X.
    """
    angle = flip_angles * rel_b1
    return a * torch.sin(angle) * _saturation(t1, angle, tr)


def _saturation(t1: Float[Tensor, "*space"], angle: Float[Tensor, "n *space"], tr: float) -> Float[Tensor, "n *space"]:
    """(1 - E1) / (1 - E1 cos(angle)), without differences of numbers near 1."""
    lost = -torch.expm1(-tr / t1)
    return lost / (lost + (1 - lost) * 2 * torch.sin(angle / 2) ** 2)


@value
class VariableFlipAngle:
    """Spoiled gradient echoes at several flip angles (VFA, DESPOT1): steady state, REL_B1 scales the angles.

    REL_B1 cannot be told from T1: a fit needs it, as a measured map or as 1.

    Attributes:
        flip_angles: nominal [rad].
        tr: time between pulses [s].
    """

    kind: Literal["spoiled_gradient_echo"] = "spoiled_gradient_echo"
    flip_angles: tuple[float, ...]
    tr: float

    def __post_init__(self) -> None:
        if not self.flip_angles:
            raise ValueError("flip_angles is empty; give at least one angle in rad")
        for angle in self.flip_angles:
            if not isfinite(angle) or angle <= 0:
                raise ValueError(f"flip_angles must be above 0 rad, got {angle:g}")
            if angle > pi / 2:
                raise ValueError(
                    f"flip_angles must lie in (0, pi / 2] rad, got {angle:g}; {angle:g} degrees are "
                    f"{angle * pi / 180:.4g} rad"
                )
        check_interval("tr", self.tr)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T1, REL_B1

    @property
    def n_images(self) -> int:
        return len(self.flip_angles)

    @property
    def times(self) -> tuple[float, ...]:
        """TR of each image [s]."""
        return (self.tr,) * len(self.flip_angles)

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t1, rel_b1 = kappa
        return ernst(a, t1, rel_b1, time_axis(self.flip_angles, a), self.tr)

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: the signal is positive up to an actual angle of pi [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """With x = b1 alpha, E = E1, D = 1 - E cos x:

        dS/dA = sin x (1 - E) / D
        dS/dT1 = -A sin x (1 - cos x) TR E / (T1 D)^2
        dS/db1 = A alpha (1 - E) (cos x - E) / D^2
        """
        a, t1, rel_b1 = kappa
        nominal = time_axis(self.flip_angles, a)
        angle = nominal * rel_b1
        lost = -torch.expm1(-self.tr / t1)
        e, turned = 1 - lost, 2 * torch.sin(angle / 2) ** 2
        below = lost + e * turned
        sine = torch.sin(angle)
        to_t1 = -a * sine * turned * self.tr * e / (t1 * below) ** 2
        # cos x - E = (1 - E) - (1 - cos x)
        to_b1 = a * nominal * lost * (lost - turned) / below**2
        return torch.stack((sine * lost / below, to_t1, to_b1))
