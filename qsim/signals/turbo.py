"""Readout by a turbo spin echo train. Derivation: docs/physics/readout.md, docs/physics/epg.md."""

from math import pi
from typing import Literal

import torch

from qsim.kspace.order import Acquisition, echo_of_centre
from qsim.signals.epg import ScaledFlip, echoes_of, mz_after, train_turns, voxel_blocks
from qsim.signals.slice_profile import SampledProfile, ShapedProfile
from qsim.signals.spins import Spins
from qsim.signals.train import Flips, Train, check_flip, check_interval, slice_train
from qsim.values import value


@value
class TurboSpinEcho:
    """A CPMG train of spin echoes after an excitation of 90 degrees, by extended phase graphs.

    Attributes:
        esp: echo spacing [s].
        refocusing_angle: nominal [rad].
        acquisition: which echo measures which line.
        slice_profile: of excitation and refocusing; None is a perfect slab.
    """

    kind: Literal["turbo_spin_echo"] = "turbo_spin_echo"
    esp: float
    refocusing_angle: float = pi
    acquisition: Acquisition
    slice_profile: SampledProfile | ShapedProfile | None = None

    def __post_init__(self) -> None:
        check_interval("esp", self.esp)
        check_flip("refocusing_angle", self.refocusing_angle)
        if isinstance(self.slice_profile, SampledProfile) and not self.slice_profile.relative_refocusing:
            raise ValueError("slice_profile must have relative_refocusing for a train of refocused echoes")

    @property
    def n_echoes(self) -> int:
        return self.acquisition.n_echoes

    @property
    def duration(self) -> float:
        """Half an echo spacing beyond the last echo [s]."""
        return (self.n_echoes + 0.5) * self.esp

    @property
    def time_of_centre(self) -> float:
        """From Mz before the train to the echo that measures the centre of k-space [s]."""
        return (echo_of_centre(self.acquisition) + 1) * self.esp

    def train(self, spins: Spins) -> Train:
        """Its echoes, and what it leaves half an echo spacing after the last one."""
        profile = self.slice_profile
        if profile is None:
            return self._at((ScaledFlip(pi / 2), ScaledFlip(self.refocusing_angle)), spins)
        pulses = profile.excitation_flips(pi / 2), profile.refocusing_flips(self.refocusing_angle)
        positions = zip(*pulses, strict=True)
        return slice_train(positions, profile.positions_in_slice, lambda flips: self._at(flips, spins))

    def _at(self, flips: Flips, spins: Spins) -> Train:
        """Of an excitation and a refocusing pulse. What recovers along z meets no echo: the offset is 0."""
        excitation, refocusing = flips
        blocks = []
        for t1, t2, rel_b1 in voxel_blocks(spins.t1, spins.t2, spins.rel_b1):
            turns, half = train_turns(t1, t2, rel_b1, self.esp, (refocusing,) * self.n_echoes)
            cosine, sine = excitation(rel_b1)
            recovered = mz_after(turns, half, torch.zeros_like(t1))
            left = mz_after(turns, half, cosine)
            blocks.append((echoes_of(turns, sine), left - recovered, recovered))
        shape = spins.t1.shape
        gain, mz_gain, mz_offset = (torch.cat(parts, -1) for parts in zip(*blocks, strict=True))
        gain = gain.reshape(-1, *shape)
        return Train(gain, torch.zeros_like(gain), mz_gain.reshape(shape), mz_offset.reshape(shape))
