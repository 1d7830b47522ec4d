"""Readout by a spoiled gradient echo train. Derivation: docs/physics/readout.md."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.kspace.order import Acquisition, echo_of_centre
from qsim.signals.epg import ScaledFlip
from qsim.signals.slice_profile import SampledProfile, ShapedProfile
from qsim.signals.spins import Spins
from qsim.signals.train import Flips, Train, check_flip, check_interval, power, powers, slice_train
from qsim.values import value


def spoiled_train(
    t1: Float[Tensor, "*space"],
    cosine: Float[Tensor, "*space"],
    sine: Float[Tensor, "*space"],
    tr: float,
    dummies: int,
    n_echoes: int,
) -> Train:
    """Pulses of one angle a, tr apart, that leave no transverse magnetisation to the next.

        M_{n+1} = M0 + (M_n cos a - M0) E1,    signal of pulse n = sin(a) M_n
        M_n = M0* + (M_0 - M0*) q^n,    q = E1 cos a,    M0* = M0 (1 - E1) / (1 - q)

    Args:
        t1: [s].
        cosine, sine: of the actual flip angle.
        tr: time between pulses [s].
        dummies: pulses before the first echo.
        n_echoes: pulses that are measured.
    Assumes: perfect spoiling; decay before the echo is part of A.
    Source: Look and Locker 1970, doi:10.1063/1.1684482; Deichmann and Haase 1992, doi:10.1016/0022-2364(92)90347-A.
    """
    e1, lost = torch.exp(-tr / t1), -torch.expm1(-tr / t1)
    q = e1 * cosine
    # 1 - q and 1 - cos(a) without the difference of two numbers near 1
    turned = torch.where(cosine > 0, sine**2 / (1 + cosine.clamp(min=0)), 1 - cosine)
    rest = lost / (lost + e1 * turned)
    before = power(q, dummies)
    gain = powers(q, n_echoes, sine * before)
    left = before * power(q, n_echoes)
    # sin(a) M0* (1 - q^n)
    offset = torch.addcmul(sine * rest, rest, gain, value=-1)
    return Train(gain, offset, left, rest * (1 - left))


@value
class SpoiledGradientEcho:
    """A train of spoiled gradient echoes.

    Attributes:
        flip_angle: nominal [rad].
        tr: time between its pulses [s].
        dummies: pulses before the first echo.
        acquisition: which echo measures which line.
        slice_profile: None is a perfect slab.
    """

    kind: Literal["spoiled_gradient_echo"] = "spoiled_gradient_echo"
    flip_angle: float
    tr: float
    dummies: int = 0
    acquisition: Acquisition
    slice_profile: SampledProfile | ShapedProfile | None = None

    def __post_init__(self) -> None:
        check_flip("flip_angle", self.flip_angle)
        check_interval("tr", self.tr)
        if self.dummies < 0:
            raise ValueError(f"dummies must not be negative, got {self.dummies}")

    @property
    def n_echoes(self) -> int:
        return self.acquisition.n_echoes

    @property
    def duration(self) -> float:
        return (self.dummies + self.n_echoes) * self.tr

    @property
    def time_of_centre(self) -> float:
        """From Mz before the train to the echo that measures the centre of k-space [s]."""
        return (self.dummies + echo_of_centre(self.acquisition)) * self.tr

    def train(self, spins: Spins) -> Train:
        """Its echoes, and what it leaves."""
        profile = self.slice_profile

        def at(flips: Flips) -> Train:
            return spoiled_train(spins.t1, *flips[0](spins.rel_b1), self.tr, self.dummies, self.n_echoes)

        if profile is None:
            return at((ScaledFlip(self.flip_angle),))
        positions = ((flip,) for flip in profile.excitation_flips(self.flip_angle))
        return slice_train(positions, profile.positions_in_slice, at)
