"""The depth of an inversion through its pulse, jointly with the tissue and the fields of each voxel."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import pi
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from phantoms.fields.base import Place, Ranges, Rows
from phantoms.fields.pulse_table import Box, PulseTable, pulse_table
from qsim.reach import Range
from qsim.signals.bloch import ShapedPulse
from qsim.signals.preparations import InversionPulse
from qsim.values import value


@value
class PulseInversion:
    """B through the inversion pulse: replaces whatever B was before.

        B = 1 + eta,   eta = -Mz(0+) / M0

    Mz(0+) is what the Bloch equation leaves at the end of the pulse, from T1, T2, REL_B1 and DELTA_B0 of each tissue in
    each voxel; fields that stand before this one in the list act on it. A hard pulse depends on REL_B1 only:
    eta = -cos(pi REL_B1). HS1 is tabulated once per process (`pulse_table`, error below 1e-4).

    Attributes:
        pulse: the pulse, as in `qsim.signals.Inversion`: hard, or HS1 with its duration, max_b1, beta and mu.
    Source: Bloch 1946, doi:10.1103/PhysRev.70.460; Silver, Joseph and Hoult 1985, doi:10.1103/PhysRevA.31.2753 (HS1).
    """

    kind: Literal["pulse_inversion"] = "pulse_inversion"
    pulse: InversionPulse

    @property
    def changes(self) -> tuple[str, ...]:
        return ("B",)

    @property
    def uses(self) -> tuple[str, ...]:
        return ("REL_B1",) if self.pulse.pulse == "hard" else ("T1", "T2", "DELTA_B0", "REL_B1")

    @property
    def replaces(self) -> bool:
        return True

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        # an inversion that tips by less than 90 degrees gives B below 1
        return {**ranges, "B": (0.0, 2.0)}

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        del rng
        return {}

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        del places, rngs
        for of in (rows.maps, rows.minor):
            of["B"].copy_(1 - self.mz(of, ranges))

    def mz(self, of: Mapping[str, Float[Tensor, "*space"]], ranges: Ranges) -> Float[Tensor, "*space"]:
        """Mz / M0 right after the pulse."""
        if self.pulse.pulse == "hard":
            return torch.cos(pi * of["REL_B1"].double()).to(of["REL_B1"].dtype)
        box = Box(
            r1=_rates(ranges["T1"]), r2=_rates(ranges["T2"]), rel_b1=ranges["REL_B1"], delta_b0=ranges["DELTA_B0"]
        )
        return _table(self.pulse, box).mz(of["T1"], of["T2"], of["REL_B1"], of["DELTA_B0"])


@lru_cache(maxsize=4)
def _table(pulse: InversionPulse, box: Box) -> PulseTable:
    # a pulse of some numbers is found sooner than its steps
    shaped = pulse.events()[0]
    assert isinstance(shaped, ShapedPulse)
    return pulse_table(shaped, box)


def _rates(times: Range) -> Range:
    return 1 / times[1], 1 / times[0]
