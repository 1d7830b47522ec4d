"""What the tissues are: distributions between subjects, variation within a tissue, a source for every row."""

from collections.abc import Mapping
from dataclasses import field
from math import isfinite
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from qsim.distributions import AnyDistribution, Constant, HalfNormal, Normal, Truncated, require_positive
from qsim.joint import Correlation, correlation_matrix
from qsim.parameters import PARAMETERS, RELAXATION_TIMES
from qsim.values import value

# offsets and relaxation times beyond which the unit is not the one that is wanted
LARGEST_B0 = 1e5
_LONGEST = 20.0


def _check_values(values: Mapping[str, AnyDistribution], holder: str, whose: str = "") -> None:
    """Refuse unknown rows, and distributions that reach what no tissue or magnet has.

    Raises: ValueError.
    """
    for name, distribution in values.items():
        if name not in PARAMETERS:
            raise ValueError(f"{holder}.{name}: no such parameter; known are {', '.join(PARAMETERS)}")
        field = f"{holder}.{name}{whose}"
        if name in RELAXATION_TIMES or name in ("A", "REL_B1"):
            require_positive(distribution, field)
        if name in RELAXATION_TIMES and distribution.support[0] > _LONGEST:
            raise ValueError(
                f"{field} is in seconds, got at least {distribution.support[0]:g}; "
                "divide by 1000 if these are milliseconds"
            )
        if name == "DELTA_B0":
            # a quantile beyond all numbers is infinite
            with np.errstate(over="ignore"):
                low, high = (float(end) for end in distribution.ppf(np.array([1e-6, 1 - 1e-6])))
            if not max(-low, high) <= LARGEST_B0:
                raise ValueError(
                    f"{field} is in hertz, got {low:.3g} to {high:.3g}; no magnet is off by more than "
                    f"{LARGEST_B0:.0f} Hz: truncate it, or give it in hertz"
                )


@value
class Tissue:
    """One tissue.

    Attributes:
        name: as the phantoms call it: csf, gm, wm, fat, muscle, skin, skull, vessel, marrow, or an organ.
        values: distribution between subjects, by parameter name [SI unit of the parameter].
        source: where the numbers come from; "to be sourced" where nobody knows.
        correlations: which of them go together from subject to subject; the others are independent.
    """

    name: str
    values: Mapping[str, AnyDistribution]
    source: str
    correlations: tuple[Correlation, ...] = ()

    def __post_init__(self) -> None:
        _check_values(self.values, "values", f" of {self.name}")
        for correlation in self.correlations:
            for name in correlation.rows:
                if name not in self.values:
                    raise ValueError(
                        f"correlations: {self.name} has no {name}, which {' and '.join(correlation.rows)} names"
                    )
                if isinstance(self.values[name], Constant):
                    raise ValueError(f"correlations: {name} of {self.name} is constant and goes with nothing")
        correlation_matrix(tuple(self.values), self.correlations)


@value
class Variation:
    """White variation of a parameter from voxel to voxel within one tissue of one subject.

    Attributes:
        relative: SD as a fraction of the tissue's value in that subject [1].
        absolute: SD added to it in the parameter's unit [SI]. Together: sqrt(relative^2 value^2 + absolute^2).
        floor: every voxel stays above this fraction of the tissue's value; the normal is cut there, not clipped [1].
    """

    relative: float = 0.0
    absolute: float = 0.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        for name, number in (("relative", self.relative), ("absolute", self.absolute)):
            if not (isfinite(number) and number >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {number}")
        if not 0 < self.floor < 1:
            raise ValueError(f"floor must lie between 0 and 1, got {self.floor}")


@value
class TissueTable:
    """Tissues, how much they vary inside, and what is one value per sample whatever the tissue.

    Attributes:
        name: short name, stored with the data.
        tissues: the rows.
        within: variation from voxel to voxel, by parameter name; a missing name does not vary.
        per_sample: distributions of what a sample has only one value of (B), by parameter name.
        field_strength: [T].
        truncation: what was cut from the source's distributions, in words; stored with the data.
    """

    name: str
    tissues: tuple[Tissue, ...]
    within: Mapping[str, Variation] = field(default_factory=dict)
    per_sample: Mapping[str, AnyDistribution] = field(default_factory=dict)
    field_strength: float
    truncation: str = "none"

    def __post_init__(self) -> None:
        names = [tissue.name for tissue in self.tissues]
        if not names:
            raise ValueError("tissues is empty")
        if len(set(names)) < len(names):
            raise ValueError(f"tissues: a name occurs twice in {', '.join(names)}")
        if "DELTA_B0" in self.within:
            raise ValueError("within: DELTA_B0 does not vary from voxel to voxel at random; use a field, kind: b0")
        _check_values(self.per_sample, "per_sample")
        for tissue in self.tissues:
            shared = [row for c in tissue.correlations for row in c.rows if row in self.per_sample]
            if shared:
                raise ValueError(
                    f"tissues: {tissue.name} correlates {shared[0]}, which per_sample draws once for all tissues; "
                    "leave one of the two out"
                )

    def __getitem__(self, name: str) -> Tissue:
        for tissue in self.tissues:
            if tissue.name == name:
                return tissue
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tissues, in table order."""
        return tuple(tissue.name for tissue in self.tissues)


@runtime_checkable
class TissueSource(Protocol):
    """A tissue table as a config names it."""

    def table(self) -> TissueTable:
        """Return the table."""
        ...


# Table 1 of sabidussi2021: tissue, T1 mean and SD [ms], T2 mean and SD [ms], mean of A [1], sources of T1 and of T2
_SABIDUSSI2021_TABLE_1 = (
    ("csf", 3500, 300, 2000, 300, 1.00, "Bojorquez 2017", "Bojorquez 2017"),
    ("gm", 1400, 300, 110, 30, 0.85, "Bojorquez 2017", "Bojorquez 2017"),
    ("wm", 780, 250, 80, 20, 0.65, "Bojorquez 2017", "Bojorquez 2017"),
    ("fat", 420, 100, 70, 20, 0.90, "Bojorquez 2017", "Bojorquez 2017"),
    ("muscle", 1200, 300, 50, 20, 0.70, "Bojorquez 2017", "Bojorquez 2017"),
    ("skin", 1230, 300, 50, 20, 0.70, "Bojorquez 2017", "Bojorquez 2017"),
    ("skull", 400, 100, 30, 10, 0.90, "Chen 2016", "Stanisz 2005"),
    ("vessel", 1980, 300, 275, 70, 1.00, "Stanisz 2005", "Stanisz 2005"),
    ("marrow", 580, 100, 50, 20, 0.80, "de Bazelaire 2004", "Bojorquez 2017"),
)
# printed once, in the row of CSF, and read as the SD of every row [1]
_SD_OF_A = 0.3
# the cut of every normal of the table, in SD: the lowest values left are T2 10 ms (muscle, skin, skull) and A .05 (WM)
_CUT = 2.0


def _cut_normal(mean: float, sd: float) -> Truncated:
    return Truncated(of=Normal(mean=mean, sd=sd), low=mean - _CUT * sd, high=mean + _CUT * sd)


@value
class Sabidussi2021:
    """The nine tissues of Table 1 at 3 T, with B = 2 - half-normal, one value per sample.

    The printed normals reach negative relaxation times (skull T2 30 +- 10 ms) and signals (WM A .65 +- .3); each is
    cut at +-2 SD. The half-normal is cut at B = 1: an inversion that leaves magnetisation upright is none.

    Attributes:
        within: `qsim` and `paper`: white, 5 % of the tissue's value, on every row but B (the paper gives no number).
            `authors`: SD .05 (A), .1 s (T1), .01 s (T2), the same for every tissue, as in their package.
        b_scale: scale of the half-normal [1]. The paper's "standard deviation 0.2" is read as the scale; .332 would
            give SD .2.
    Source: Sabidussi et al. 2021, doi:10.1016/j.media.2021.102220, Table 1 and section 4.2.
    """

    kind: Literal["sabidussi2021"] = "sabidussi2021"
    within: Literal["qsim", "paper", "authors"] = "qsim"
    b_scale: float = 0.2

    def table(self) -> TissueTable:
        tissues = tuple(
            Tissue(
                name=name,
                values={
                    "A": _cut_normal(a, _SD_OF_A),
                    "T1": _cut_normal(t1 / 1000, t1_sd / 1000),
                    "T2": _cut_normal(t2 / 1000, t2_sd / 1000),
                },
                source=f"sabidussi2021 Table 1 (T1: {t1_source}; T2: {t2_source})",
            )
            for name, t1, t1_sd, t2, t2_sd, a, t1_source, t2_source in _SABIDUSSI2021_TABLE_1
        )
        if self.within == "authors":
            within = {
                "A": Variation(absolute=0.05),
                "T1": Variation(absolute=0.1),
                "T2": Variation(absolute=0.01),
            }
        else:
            within = {name: Variation(relative=0.05) for name in ("A", "T1", "T2")}
        return TissueTable(
            name=f"sabidussi2021, within-tissue variation '{self.within}'",
            tissues=tissues,
            within=within,
            per_sample={"B": Truncated(of=HalfNormal(scale=self.b_scale, origin=2.0, below=True), low=1.0)},
            field_strength=3.0,
            truncation="every normal cut at mean +- 2 SD; B = 2 - half-normal cut at B = 1",
        )


@value
class CustomTable:
    """A table written out in the config."""

    kind: Literal["table"] = "table"
    name: str
    tissues: tuple[Tissue, ...]
    within: Mapping[str, Variation] = field(default_factory=dict)
    per_sample: Mapping[str, AnyDistribution] = field(default_factory=dict)
    field_strength: float
    truncation: str = "none"

    def __post_init__(self) -> None:
        # so that what is wrong is said where the table stands in the config
        self.table()

    def table(self) -> TissueTable:
        return TissueTable(
            name=self.name,
            tissues=self.tissues,
            within=self.within,
            per_sample=self.per_sample,
            field_strength=self.field_strength,
            truncation=self.truncation,
        )


@value
class PerFieldStrength:
    """Tables of several field strengths, of which a config names one.

    Attributes:
        field_strength: the one to use [T].
        tables: one per field strength.
    """

    kind: Literal["per_field_strength"] = "per_field_strength"
    field_strength: float
    tables: tuple[CustomTable, ...]

    def __post_init__(self) -> None:
        there = [table.field_strength for table in self.tables]
        if len(set(there)) < len(there):
            raise ValueError(f"tables: two of them are of the same field strength, got {_teslas(there)}")
        if self.field_strength not in there:
            raise ValueError(
                f"field_strength must be that of one of the tables, got {self.field_strength:g} T; "
                f"there are {_teslas(there) or 'none'}"
            )

    def table(self) -> TissueTable:
        return next(table for table in self.tables if table.field_strength == self.field_strength).table()


def _teslas(strengths: list[float]) -> str:
    return ", ".join(f"{strength:g} T" for strength in sorted(strengths))


# Table 1 of Stanisz 2005: tissue, T2 and T1 with SD at 3 T, then at 1.5 T [ms]
_STANISZ2005_TABLE_1 = (
    ("liver", (42, 3, 812, 64), (46, 6, 576, 30)),
    ("muscle", (50, 4, 1412, 13), (44, 6, 1008, 20)),
    ("myocardium", (47, 11, 1471, 31), (40, 6, 1030, 34)),
    ("kidney", (56, 4, 1194, 27), (55, 3, 690, 30)),
    ("cartilage", (27, 3, 1168, 18), (30, 4, 1024, 70)),
    ("wm", (69, 3, 1084, 45), (72, 4, 884, 50)),
    ("gm", (99, 7, 1820, 114), (95, 8, 1124, 50)),
    ("vessel", (275, 50, 1932, 85), (290, 30, 1441, 120)),
)
# T1rho at 3 T: mean and SD [ms], source; of myocardium by spin-lock frequency [Hz]
_LIVER_T1RHO = (44.9, 2.8, "T1RHO: healthy liver, PMC5639155")
_MYOCARDIUM_T1RHO = {300.0: (43.4, 2.1), 400.0: (45.4, 2.6), 500.0: (46.5, 2.4)}


@value
class Stanisz2005:
    """Eight tissues measured in vitro at 37 degrees C, at 1.5 and 3 T; B as in `Sabidussi2021`.

    Transcribed without the printed table at hand: check the values against it before they carry a result.

    The printed SDs are those of samples of one species, smaller than between patients. Liver, muscle and heart are of
    the mouse, kidney of the rat, cartilage (at 0 degrees to the field), white and grey matter of cattle, blood (here
    `vessel`) human. A has no source there: 1 in every tissue, to be sourced. T1RHO: liver and myocardium at 3 T only.

    Attributes:
        field_strength: 1.5 or 3.0 [T].
        within: white variation within a tissue, relative, on every row but B; to be sourced [1].
        spin_lock: frequency for which the T1RHO of myocardium is: 300, 400 or 500 [Hz].
        b_scale: as in `Sabidussi2021` [1].
    Source: Stanisz et al. 2005, doi:10.1002/mrm.20605, Table 1.
    """

    kind: Literal["stanisz2005"] = "stanisz2005"
    field_strength: float = 3.0
    within: float = 0.05
    spin_lock: float = 500.0
    b_scale: float = 0.2

    def __post_init__(self) -> None:
        if self.field_strength not in (1.5, 3.0):
            raise ValueError(f"field_strength must be 1.5 or 3.0 T, got {self.field_strength:g}")
        if self.spin_lock not in _MYOCARDIUM_T1RHO:
            raise ValueError(f"spin_lock must be 300, 400 or 500 Hz, got {self.spin_lock:g}")

    def table(self) -> TissueTable:
        at_3 = self.field_strength == 3.0
        within = {row: Variation(relative=self.within) for row in ("A", "T1", "T2", "T1RHO")}
        return TissueTable(
            name=f"stanisz2005 at {self.field_strength:g} T, within-tissue variation {100 * self.within:g} %",
            tissues=tuple(self._tissue(name, three if at_3 else less) for name, three, less in _STANISZ2005_TABLE_1),
            within=within if self.within > 0 else {},
            per_sample={"B": Truncated(of=HalfNormal(scale=self.b_scale, origin=2.0, below=True), low=1.0)},
            field_strength=self.field_strength,
            truncation="every normal cut at mean +- 2 SD; B = 2 - half-normal cut at B = 1",
        )

    def _tissue(self, name: str, printed: tuple[int, int, int, int]) -> Tissue:
        t2, t2_sd, t1, t1_sd = printed
        values: dict[str, AnyDistribution] = {
            "A": Constant(value=1.0),
            "T1": _cut_normal(t1 / 1000, t1_sd / 1000),
            "T2": _cut_normal(t2 / 1000, t2_sd / 1000),
        }
        source = "Stanisz 2005 Table 1 (T1, T2; to be checked against the print); A: to be sourced"
        if self.field_strength == 3.0 and name in ("liver", "myocardium"):
            mean, sd = _LIVER_T1RHO[:2] if name == "liver" else _MYOCARDIUM_T1RHO[self.spin_lock]
            values["T1RHO"] = _cut_normal(mean / 1000, sd / 1000)
            of_heart = f"T1RHO at {self.spin_lock:g} Hz: to be sourced"
            source += f"; {_LIVER_T1RHO[2] if name == 'liver' else of_heart}"
        return Tissue(name=name, values=values, source=source)
