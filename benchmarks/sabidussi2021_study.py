"""A finished study of configs/sabidussi2021 as its tables need it, and how they write numbers and lines."""

from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from pathlib import Path

from results_page import finished

from qsim.evaluation.study import PAINTERS
from qsim.evaluation.table import Row
from qsim.parameters import RELAXATION_TIMES

# rows of a table of results that are no method
NOT_METHODS = ("truth", "nominal")


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        name: of its folder.
        rows: of all draws together.
        config: as provenance.json has it.
    """

    name: str
    rows: tuple[Row, ...]
    config: dict[str, object]

    def value(self, estimator: str, tissue: str, parameter: str, snr: float, metric: str) -> float:
        """A figure, NaN if the study has none; snr: NaN where the study has no SNR."""
        return self._figures.get((estimator, tissue, parameter, f"{snr:g}", metric), nan)

    @cached_property
    def _figures(self) -> dict[tuple[str, str, str, str, str], float]:
        return {(*r[1:4], f"{r.snr:g}", r.metric): r.value for r in self.rows}

    @property
    def methods(self) -> list[str]:
        """Estimators in the order of the study, painters last."""
        names = dict.fromkeys(r.estimator for r in self.rows)
        found = [n for n in names if n not in NOT_METHODS and not n.startswith("bound-")]
        return [n for n in found if n not in PAINTERS] + [n for n in found if n in PAINTERS]

    @property
    def snrs(self) -> list[float]:
        return list(dict.fromkeys(r.snr for r in self.rows if not isnan(r.snr)))

    def sigma(self, snr: float) -> float:
        return next(r.sigma for r in self.rows if r.snr == snr)

    @property
    def parameter(self) -> str:
        """The relaxation time."""
        return next(r.parameter for r in self.rows if r.parameter in RELAXATION_TIMES)

    @property
    def tissues(self) -> list[str]:
        """Those that have voxels, without their union and the mixed ones."""
        seen = dict.fromkeys(r.tissue for r in self.rows if r.tissue)
        return [t for t in seen if t not in ("pure", "mixed", "all", "boundary")]

    @property
    def size(self) -> str:
        """One line about it."""
        said = [f"{self.config[key]} {key}" for key in ("draws", "repeats") if self.config.get(key)]
        crop = self.config.get("crop")
        if isinstance(crop, list | tuple):
            said.append(f"{' x '.join(str(n) for n in crop)} voxels")
        return f"`study_{self.name}`" + (f": {', '.join(said)}." if said else ".")


def read_study(folder: Path) -> Study | None:
    """None: there is no finished study."""
    found = finished(folder)
    return None if found is None else Study(folder.name, found[0], found[1].get("config", {}))


def figure(value: float, sign: bool = False) -> str:
    """Two digits, and none behind the point from 10 up."""
    if isnan(value):
        return "-"
    size = abs(value)
    digits = 0 if size >= 9.95 else 1 if size >= 0.995 or sign else 2
    value = round(value, digits) + 0.0  # no -0.0
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def shown(name: str) -> str:
    """A painter looks at no image: it stands apart."""
    return f"*{name}*" if name in PAINTERS else name


def at_snr(study: Study, snr: float) -> str:
    return f"{snr:g} ({study.sigma(snr):.2g})"
