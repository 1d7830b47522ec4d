"""Multi-echo spin echo: a CPMG train with stimulated echoes, transmit field and slice profile."""

from collections import Counter
from math import isfinite, pi
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import REL_B1, T2, A, Parameter
from qsim.signals.base import check_times
from qsim.signals.epg import Flip, ScaledFlip, cpmg_echoes, voxel_blocks
from qsim.signals.slice_profile import SampledProfile, ShapedProfile
from qsim.values import value

# an echo time further from its multiple of the first than this share of it is no rounding
_ROUNDING = 1e-4
# longest plausible T1 [s]: above it, milliseconds were meant
_LONGEST_T1 = 20.0


@value
class MultiEchoSpinEcho:
    """Echoes of a CPMG train (extended phase graph), as magnitude unless `signed`.

        S_n = A / (positions in the slice) x sum over positions of echo_n(T1, T2, flip angles there at REL_B1)

    The excitation is nominally 90 degrees. With REL_B1 = 1, 180 degrees and a perfect slab the echoes are
    A exp(-n ESP / T2). REL_B1 and 2 - REL_B1 make nearly the same refocusing: a fit needs bounds or a measured field.

    Attributes:
        te: echo times, ESP, 2 ESP, 3 ESP, ... without a gap [s].
        t1: assumed for every tissue; a T2 estimate moves little with it [s].
        refocusing_angle: nominal angle of every refocusing pulse, or one for each echo [rad].
        slice_profile: None is a perfect slab.
        signed: keep the sign: echoes of imperfect pulses can turn negative, by less than 2 % of A.
    Source: Hennig 1988, doi:10.1016/0022-2364(88)90128-X; Lebel and Wilman 2010, doi:10.1002/mrm.22487.
    """

    kind: Literal["multi_echo_spin_echo"] = "multi_echo_spin_echo"
    te: tuple[float, ...]
    t1: float
    refocusing_angle: float | tuple[float, ...] = pi
    slice_profile: SampledProfile | ShapedProfile | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("te", self.te)
        for n, time in enumerate(self.te, 1):
            if abs(time - n * self.te[0]) > _ROUNDING * n * self.te[0] or time == 0:
                raise ValueError(
                    f"te must be ESP, 2 ESP, 3 ESP, ... without a gap, got {time:g} as echo {n} after a first echo at "
                    f"{self.te[0]:g}; give every echo of the train, or use kind spin_echo for separate spin echoes"
                )
        if not (isfinite(self.t1) and self.t1 > 0):
            raise ValueError(f"t1 must be above 0 s, got {self.t1:g}")
        if self.t1 > _LONGEST_T1:
            raise ValueError(f"t1 must be in seconds, got {self.t1:g}; divide by 1000 if it is in milliseconds")
        for angle in self._angles:
            if not 0 < angle <= 2 * pi:
                raise ValueError(f"refocusing_angle must lie in (0, 2 pi] rad, got {angle:g}; convert degrees")
            if isinstance(self.slice_profile, ShapedProfile) and angle > pi:
                raise ValueError(f"refocusing_angle must be at most pi with a shaped slice_profile, got {angle:g}")
        if len(self._angles) != len(self.te):
            raise ValueError(
                f"refocusing_angle has {len(self._angles)} angles for {len(self.te)} echoes; give one, or one for each"
            )
        if isinstance(self.slice_profile, SampledProfile) and not self.slice_profile.relative_refocusing:
            raise ValueError("slice_profile must have relative_refocusing for a train of refocused echoes")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T2, REL_B1

    @property
    def n_images(self) -> int:
        return len(self.te)

    @property
    def times(self) -> tuple[float, ...]:
        """Timings of the series [s]."""
        return self.te

    @property
    def _angles(self) -> tuple[float, ...]:
        """Nominal refocusing angle of each echo [rad]."""
        angle = self.refocusing_angle
        return angle if isinstance(angle, tuple) else (angle,) * len(self.te)

    def _trains(self) -> list[tuple[Flip, tuple[Flip, ...], float]]:
        """Excitation and refocusing pulses at each distinct position of the slice, and its weight."""
        profile, nominal = self.slice_profile, pi / 2
        if profile is None:
            return [(ScaledFlip(nominal), tuple(ScaledFlip(angle) for angle in self._angles), 1.0)]
        excitation = profile.excitation_flips(nominal)
        refocusing = {angle: profile.refocusing_flips(angle) for angle in self._angles}
        # the two sides of a symmetric slice are the same
        counts = Counter(
            (first, tuple(refocusing[angle][i] for angle in self._angles)) for i, first in enumerate(excitation)
        )
        return [(*train, count / profile.positions_in_slice) for train, count in counts.items()]

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """Signed signal along the CPMG axis [units of A]."""
        trains, esp = self._trains(), self.te[0]
        blocks = []
        for a, t2, rel_b1 in voxel_blocks(*kappa):
            total = torch.zeros_like(t2)
            for excitation, refocusing, weight in trains:
                total = total + weight * cpmg_echoes(self.t1, t2, rel_b1, esp, refocusing, excitation)
            blocks.append(a * total)
        return torch.cat(blocks, -1).reshape(len(self.te), *kappa.shape[1:])

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        signal = self.coherent(kappa)
        return signal if self.signed else signal.abs()
