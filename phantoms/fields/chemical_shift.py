"""Chemical shift: tissues whose protons resonate beside those of water."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Literal

import numpy as np

from phantoms.fields.base import Place, Ranges, Rows
from qsim.errors import InputError
from qsim.reach import Range
from qsim.values import value

# gamma / 2 pi of the proton (CODATA 2018) [Hz/T]
GYROMAGNETIC_RATIO = 42.577478518e6


@value
class ChemicalShift:
    """Adds the chemical shift to DELTA_B0 wherever a tissue is, in voxels that it shares with others too.

        DELTA_B0 += gamma / 2 pi field_strength ppm 10^-6

    Attributes:
        tissues: names of the tissues that are shifted.
        ppm: shift against water; default: the main (methylene) peak of fat at 1.3 ppm against water at 4.7 ppm [1e-6].
        field_strength: 3 T: -434 Hz for fat [T].
    Source: Hamilton et al. 2011, doi:10.1002/nbm.1622, Table 1 (the shift at body temperature).
    """

    kind: Literal["chemical_shift"] = "chemical_shift"
    tissues: tuple[str, ...] = ("fat", "marrow")
    ppm: float = -3.4
    field_strength: float = 3.0

    def __post_init__(self) -> None:
        if not self.tissues:
            raise ValueError("tissues is empty; name at least one")
        if len(set(self.tissues)) < len(self.tissues):
            raise ValueError(f"tissues: a name occurs twice in {', '.join(self.tissues)}")
        if not (isfinite(self.ppm) and abs(self.ppm) <= 100):
            raise ValueError(f"ppm must lie between -100 and 100, got {self.ppm}; protons shift by less than 20")
        if not 0 < self.field_strength < 100:
            raise ValueError(f"field_strength must be in tesla, got {self.field_strength}")

    @property
    def changes(self) -> tuple[str, ...]:
        return ("DELTA_B0",)

    @property
    def uses(self) -> tuple[str, ...]:
        return ()

    @property
    def replaces(self) -> bool:
        return False

    @property
    def shift(self) -> float:
        """What is added [Hz]."""
        return GYROMAGNETIC_RATIO * self.field_strength * self.ppm * 1e-6

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        low, high = ranges["DELTA_B0"]
        return {**ranges, "DELTA_B0": (low + min(self.shift, 0.0), high + max(self.shift, 0.0))}

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        del rng
        return {"shift": self.shift}

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        del places, rngs, ranges
        if not set(self.tissues) & set(rows.tissues):
            raise InputError(
                f"tissues: the phantom holds no {' or '.join(self.tissues)}; it has {', '.join(rows.tissues)}"
            )
        majority, minor = rows.is_tissue(self.tissues)
        rows.maps["DELTA_B0"].add_(majority, alpha=self.shift)
        rows.minor["DELTA_B0"].add_(minor, alpha=self.shift)
