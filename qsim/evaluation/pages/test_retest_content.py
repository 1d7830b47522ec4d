"""What the page of a `test_retest` study is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from jaxtyping import Bool

from qsim.evaluation.pages.content import title
from qsim.evaluation.studies.boundary_sharpness import Sharp
from qsim.evaluation.studies.test_retest_table import EVERYWHERE, Found, Repeats
from qsim.evaluation.table import ALL


@dataclass(frozen=True, slots=True)
class Retest:
    """All that the page is made from.

    Attributes:
        parameter, symbol: the relaxation time, and how it is printed (mathtext).
        methods: in the order of the tables.
        networks: those that are networks.
        reference: method that agreement is drawn against.
        repeats: scans of each object.
        settings: maps, by draw and SNR.
        found: the figures.
        sharp: of the boundary, by SNR; empty if it was not measured.
        boundary: tissues on either side of it.
        no_sharpness: why it was not measured.
        bound_of: bound that each method is held against; empty without truth.
    """

    parameter: str
    symbol: str
    methods: Sequence[str]
    networks: Sequence[str]
    reference: str
    repeats: int
    settings: Sequence[Repeats]
    found: Found
    sharp: Sequence[Sharp]
    boundary: tuple[str, str]
    no_sharpness: str
    bound_of: Mapping[str, str]

    @property
    def firsts(self) -> list[Repeats]:
        """The first draw at each SNR."""
        firsts: dict[str, Repeats] = {}
        for setting in self.settings:
            firsts.setdefault(f"{setting.snr:g}", setting)
        return list(firsts.values())

    @property
    def twin(self) -> bool:
        """Whether the truth is known."""
        return self.settings[0].truth is not None

    @property
    def regions(self) -> list[str]:
        """Those with voxels, all of them together first."""
        return [name for name in self.settings[0].regions if any(s.regions[name].any() for s in self.settings)]

    def bound(self, method: str, region: str, snr: float) -> float:
        """Within-subject CV that the bound allows a method, NaN without truth [%]."""
        return self.found.value(f"bound-{self.bound_of.get(method)}", region, snr, "bound_within_cv")

    def of_draws(self, estimator: str, region: str, snr: float, metric: str) -> dict[int | str, float]:
        """A figure of every single draw that has it."""
        key = (estimator, region, f"{snr:g}", metric)
        return {
            r.draw: r.value
            for r in self.found.rows
            if r.draw != ALL and (r.estimator, r.tissue, f"{r.snr:g}", r.metric) == key and isfinite(r.value)
        }

    @property
    def sides(self) -> str:
        """The boundary, in words."""
        return f"{title(self.boundary[0])}/{title(self.boundary[1]).lower()}"


def labelled(setting: Repeats) -> Bool[np.ndarray, " v"] | None:
    """Voxels of any tissue of scans, whose mask holds air and skull as well; None: of a twin, or without labels."""
    tissues = [voxels for name, voxels in setting.regions.items() if name != EVERYWHERE]
    if setting.truth is not None or not any(voxels.any() for voxels in tissues):
        return None
    inside: Bool[np.ndarray, " v"] = np.any(tissues, axis=0)
    return inside


def in_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Pairs of methods in a sentence."""
    return ", ".join(f"{first} / {second}" for first, second in pairs)


def p_value(p: float) -> str:
    """With its sign of comparison."""
    return "–" if not isfinite(p) else "< 0.001" if p < 0.001 else f"= {p:.2g}"
