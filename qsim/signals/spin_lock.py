"""Spin-lock preparations: clusters of pulses and locks."""

from math import pi
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.signals.base import check_times
from qsim.signals.bloch import longitudinal
from qsim.signals.events import Event, Exchange, Lock
from qsim.signals.preparation import AXES, NO_TURN, check_pulse_b1, finite, width_of
from qsim.signals.pulses import block_pulse
from qsim.signals.spins import Spins, spins
from qsim.values import value

Cluster = Literal["SSL", "RESL", "CSL", "BSL", "PSCSL", "TRSL"]
CLUSTERS: tuple[Cluster, ...] = ("SSL", "RESL", "CSL", "BSL", "PSCSL", "TRSL")

# pulses (degrees, axis) and locks (share of TSL, axis) in time order; physics.md (a) lists the sources
_CLUSTERS: dict[Cluster, tuple[tuple[str, float, str], ...]] = {
    "SSL": (("pulse", 90, "x"), ("lock", 1, "y"), ("pulse", 90, "-x")),
    "RESL": (("pulse", 90, "x"), ("lock", 1 / 2, "y"), ("lock", 1 / 2, "-y"), ("pulse", 90, "-x")),
    "CSL": (("pulse", 90, "x"), ("lock", 1 / 2, "y"), ("pulse", 180, "y"), ("lock", 1 / 2, "-y"), ("pulse", 90, "x")),
    "BSL": (
        ("pulse", 90, "x"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 2, "-y"),
        ("pulse", 180, "-y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 90, "-x"),
    ),
    "PSCSL": (
        ("pulse", 90, "x"),
        ("lock", 1 / 4, "-y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 4, "-y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 90, "-x"),
    ),
    "TRSL": (
        ("pulse", 90, "x"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 4, "-y"),
        ("pulse", 180, "y"),
        ("lock", 1 / 4, "y"),
        ("pulse", 180, "-y"),
        ("lock", 1 / 4, "-y"),
        ("pulse", 90, "x"),
    ),
}
# clusters that end with -Mz; the sign is the cluster's, never the data's
_INVERTING = ("CSL", "TRSL")


@value
class SpinLockPreparation:
    """Spin-lock preparation: SSL, rotary echo, composite, balanced, paired self-compensated or triple-refocused.

    The stored Mz is positive on resonance for every cluster.

    Attributes:
        cluster: SSL, RESL, CSL, BSL, PSCSL or TRSL.
        tsl: spin-lock times, without pulses [s].
        fsl: nominal spin-lock frequency, gamma B1 / 2 pi; one, or one for each time (dispersion) [Hz].
        pulse_b1: amplitude of rectangular pulses; None: pulses without duration [Hz].
        exchange: two-site exchange that adds to R1rho and makes it depend on f_SL.
    Source: Witschey et al. 2007, PMC2877388 (rotary echo, B0 and B1); Gram et al., doi:10.1002/mrm.28585 (balanced);
        PMC10078184 (comparison).
    """

    kind: Literal["spin_lock"] = "spin_lock"
    cluster: Cluster
    tsl: tuple[float, ...]
    fsl: float | tuple[float, ...]
    pulse_b1: float | None = None
    exchange: Exchange | None = None

    def __post_init__(self) -> None:
        if self.cluster not in _CLUSTERS:
            raise ValueError(f"cluster must be one of {', '.join(_CLUSTERS)}, got {self.cluster!r}")
        check_times("tsl", self.tsl)
        if isinstance(self.fsl, tuple) and len(self.fsl) != len(self.tsl):
            raise ValueError(
                f"fsl has {len(self.fsl)} frequencies for {len(self.tsl)} times; give one, or one for each"
            )
        for frequency in self._frequencies:
            if not 0 < frequency < 1e5:
                raise ValueError(f"fsl must be a spin-lock frequency above 0 Hz, got {frequency:g}")
        check_pulse_b1(self.pulse_b1)

    @property
    def _frequencies(self) -> tuple[float, ...]:
        return self.fsl if isinstance(self.fsl, tuple) else (float(self.fsl),) * len(self.tsl)

    @property
    def times(self) -> tuple[float, ...]:
        return self.tsl

    @property
    def durations(self) -> tuple[float, ...]:
        pulses = width_of(self.events(self.tsl, self._frequencies[0]))
        return tuple(t + pulses for t in self.tsl)

    @property
    def locks(self) -> bool:
        return True

    def events(self, tsl: tuple[float, ...], fsl: float) -> list[Event]:
        """The cluster in time order, for times that share one frequency."""
        events: list[Event] = []
        for what, amount, axis in _CLUSTERS[self.cluster]:
            if what == "pulse":
                events.append(block_pulse(amount * pi / 180, AXES[axis], self.pulse_b1))
            else:
                events.append(Lock(tuple(amount * t for t in tsl), fsl, AXES[axis], self.exchange))
        return events

    def apply(self, spin: Spins, mz0: Tensor | float = 1.0) -> Float[Tensor, "n *space"]:
        sign = -1.0 if self.cluster in _INVERTING else 1.0
        frequencies = self._frequencies
        distinct = sorted(set(frequencies))
        if len(distinct) == 1:
            return sign * longitudinal(self.events(self.tsl, distinct[0]), spin, mz0)
        images: dict[int, Tensor] = {}
        for fsl in distinct:
            numbers = [i for i, frequency in enumerate(frequencies) if frequency == fsl]
            part = longitudinal(self.events(tuple(self.tsl[i] for i in numbers), fsl), spin, mz0)
            images |= dict(zip(numbers, part, strict=True))
        return sign * torch.stack([images[i] for i in range(len(frequencies))])

    def __call__(
        self,
        *,
        t1: float | Tensor,
        t2: float | Tensor,
        t1rho: float | Tensor | None = None,
        t2rho: float | Tensor | None = None,
        delta_b0: float | Tensor = 0.0,
        rel_b1: float | Tensor = 1.0,
        mz0: float | Tensor = 1.0,
    ) -> Float[Tensor, "n *space"]:
        """Stored Mz for each spin-lock time [M0].

        Args:
            t1, t2: relaxation times outside the lock [s].
            t1rho: along a resonant locking field; off resonance R1rho = R1 cos^2 + sin^2 / T1rho [s].
            t2rho: across it; None: that of the Bloch equation with t1, t2 [s].
            delta_b0: off-resonance [Hz].
            rel_b1: actual over nominal transmit field, of pulses and lock [1].
            mz0: longitudinal magnetisation before [M0].
        Raises: InputError, naming the argument, if T1rho is missing or a value is not physical.
        """
        if t1rho is None:
            raise InputError(
                "t1rho: missing; a spin-lock needs it [s] (give it T2 for tissue that follows the Bloch equation)"
            )
        spin = spins(t1=t1, t2=t2, t1rho=t1rho, t2rho=t2rho, delta_b0=delta_b0, rel_b1=rel_b1)
        return finite(self.apply(spin, mz0), NO_TURN, mz0)
