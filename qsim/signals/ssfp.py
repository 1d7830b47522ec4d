"""Readout by a balanced steady-state free precession train. Derivation: docs/physics/readout.md."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from qsim.kspace.order import Acquisition, echo_of_centre
from qsim.signals.affine import Affine, Entry, Matrix, Vector, image
from qsim.signals.epg import Flip, ScaledFlip
from qsim.signals.events import rotation
from qsim.signals.modes import free_modes
from qsim.signals.slice_profile import SampledProfile, ShapedProfile
from qsim.signals.spins import Spins
from qsim.signals.train import Flips, Train, check_flip, check_interval, slice_train
from qsim.values import value

# half a turn about z: into the frame of the next pulse, whose phase is the opposite one
_HALF_TURN: Matrix = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


@value
class BalancedSSFP:
    """A balanced train of pulses with alternating phases, from its first pulse on (transient included).

    The signal is demodulated with the phase of each pulse, so that on resonance it is real and positive:
    it is complex, and affine in Mz, whatever the off-resonance; a magnitude image is its modulus.

    Attributes:
        flip_angle: nominal [rad].
        tr: time between pulses [s].
        te: from a pulse to its echo; None: tr / 2 [s].
        catalysation: what precedes the first echo. `half_alpha`: half the flip angle, tr / 2 ahead; `linear_ramp`:
            `ramp` pulses of k / (ramp + 1) of the flip angle, k = 1, 2, ..., tr apart; `none`.
        ramp: pulses of the linear ramp, which needs it.
        acquisition: which echo measures which line.
        slice_profile: None is a perfect slab.
    """

    kind: Literal["balanced_ssfp"] = "balanced_ssfp"
    flip_angle: float
    tr: float
    te: float | None = None
    catalysation: Literal["half_alpha", "linear_ramp", "none"] = "half_alpha"
    ramp: int | None = None
    acquisition: Acquisition
    slice_profile: SampledProfile | ShapedProfile | None = None

    def __post_init__(self) -> None:
        check_flip("flip_angle", self.flip_angle)
        check_interval("tr", self.tr)
        if self.te is not None and not (isfinite(self.te) and 0 <= self.te <= self.tr):
            raise ValueError(f"te must lie in [0, tr = {self.tr:g} s], got {self.te:g}; null is tr / 2")
        if self.catalysation not in ("half_alpha", "linear_ramp", "none"):
            raise ValueError(f"catalysation must be half_alpha, linear_ramp or none, got {self.catalysation!r}")
        if (self.ramp is not None) != (self.catalysation == "linear_ramp"):
            raise ValueError(f"ramp is for catalysation linear_ramp, which needs it (5 or 10 pulses); got {self.ramp}")
        if self.ramp is not None and self.ramp < 1:
            raise ValueError(f"ramp must be at least 1 pulse, got {self.ramp}")

    @property
    def n_echoes(self) -> int:
        return self.acquisition.n_echoes

    @property
    def duration(self) -> float:
        return self._lead + self.n_echoes * self.tr

    @property
    def time_of_centre(self) -> float:
        """From Mz before the train to the echo that measures the centre of k-space [s]."""
        return self._lead + echo_of_centre(self.acquisition) * self.tr + self._te

    def train(self, spins: Spins) -> Train:
        """Its echoes, and what it leaves a TR after its last pulse, once the transverse part is spoiled."""
        profile, shares = self.slice_profile, [*(share for share, _ in self._catalysation()), 1.0]
        if profile is None:
            return self._at(tuple(ScaledFlip(share * self.flip_angle) for share in shares), spins)
        positions = zip(*(profile.excitation_flips(share * self.flip_angle) for share in shares), strict=True)
        return slice_train(positions, profile.positions_in_slice, lambda flips: self._at(flips, spins))

    @property
    def _te(self) -> float:
        return self.tr / 2 if self.te is None else self.te

    @property
    def _lead(self) -> float:
        """From the first pulse to that of the first echo [s]."""
        return sum((interval for _, interval in self._catalysation()), 0.0)

    def _catalysation(self) -> list[tuple[float, float]]:
        """Share of the flip angle, and time to the next pulse [s]."""
        if self.catalysation == "half_alpha":
            return [(0.5, self.tr / 2)]
        if self.ramp is None:
            return []
        return [(k / (self.ramp + 1), self.tr) for k in range(1, self.ramp + 1)]

    def _at(self, flips: Flips, spins: Spins) -> Train:
        """Of the pulses that lead and that of every echo, all about x in the frame that turns by pi with each."""
        exact = spins.map(lambda x: x.double())
        free = free_modes(exact)

        def pulse(flip: Flip) -> Affine:
            return Affine(rotation((1.0, 0.0, 0.0), *flip(exact.rel_b1)))

        def to_next(interval: float) -> Affine:
            return Affine(_HALF_TURN).after(free.after(interval))

        before = Affine()
        for flip, (_, interval) in zip(flips[:-1], self._catalysation(), strict=True):
            before = to_next(interval).after(pulse(flip)).after(before)
        to_echo, to_end = free.after(self._te).after(pulse(flips[-1])), to_next(self.tr - self._te)
        step, last = to_echo.after(to_end).to(spins.t1.dtype), to_end.to(spins.t1.dtype)
        state = _State.first(to_echo.after(before).to(spins.t1.dtype))
        states = [state]
        for _ in range(self.n_echoes - 1):
            state = state.carried(step)
            states.append(state)
        end = state.carried(last)
        return Train(
            torch.stack([_demodulated(state.linear, spins.t1) for state in states]),
            torch.stack([_demodulated(state.constant, spins.t1) for state in states]),
            _filled(end.linear[2], spins.t1),
            _filled(end.constant[2], spins.t1),
        )


@dataclass(frozen=True, slots=True)
class _State:
    """Magnetisation as an affine function of Mz before the train: linear Mz + constant [M0]."""

    linear: Vector
    constant: Vector

    @classmethod
    def first(cls, affine: Affine) -> "_State":
        (_, _, x), (_, _, y), (_, _, z) = affine.matrix
        return cls((x, y, z), affine.offset)

    def carried(self, affine: Affine) -> "_State":
        return _State(image(affine.matrix, self.linear), affine(self.constant))


def _demodulated(m: Vector, like: Tensor) -> Tensor:
    """-i (Mx + i My): pulses about x take +z to +y, which is real and positive."""
    x, y, _ = m
    return torch.complex(_filled(y, like), -_filled(x, like))


def _filled(entry: Entry, like: Tensor) -> Tensor:
    return entry if isinstance(entry, Tensor) else torch.full_like(like, entry)
