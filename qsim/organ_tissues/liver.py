"""Tissues of the upper abdomen at 3 T as huang2022 and huang2023 image it.

Two things of their protocol act on A. Blood is suppressed by a double inversion and fat by a spectral inversion:
what is left of the suppressed share s of a tissue is a residual r, one for each tissue of a subject,

    A' = A (1 - s + s r),   r uniform

with s = 1 in blood and fat and .4 in marrow (its fat). And the repetition time of 2 s leaves less of what recovers
slowly,

    A'' = A' (1 - exp(-TR / mean T1)),

which a Bloch model computes itself, from every voxel's T1; only for closed forms the table can fold it in.
"""

from math import exp, isfinite
from typing import Literal

from qsim.distributions import AnyDistribution, Uniform, mean
from qsim.organ_tissues.rows import (
    BAZELAIRE,
    BLOOD_T1RHO,
    FAT_T1RHO,
    KIDNEY_CORTEX,
    MARROW_OF_L4,
    MARROW_T1RHO,
    MUSCLE_T1RHO,
    SD_OF_A,
    SPLEEN,
    STANISZ,
    SUBCUTANEOUS_FAT,
    TRUNCATION,
    Row,
    cut_normal,
    stanisz,
)
from qsim.tissues import Sabidussi2021, TissueTable, Variation
from qsim.values import value

# share of a tissue's signal that is suppressed [1]; the fat in marrow: to be sourced
SUPPRESSED = {"liver_vessel": 1.0, "aorta": 1.0, "fat": 1.0, "liver_fat": 1.0, "marrow": 0.4}
# correlation of T2 and T1RHO in solid organs: iron, fibrosis and water move both; to be sourced [1]
_TOGETHER = 0.8
_UNKNOWN = "T1, T2, T1RHO: to be sourced"


def _rows() -> dict[str, Row]:
    of = stanisz(3.0)
    liver, blood, muscle = of["liver"], of["vessel"], of["muscle"]
    csf = Sabidussi2021().table()["csf"].values
    vessel = Row(0.85, blood["T1"], blood["T2"], BLOOD_T1RHO, f"T1, T2: {STANISZ}; T1RHO: to be sourced")
    fat = Row(1.0, *SUBCUTANEOUS_FAT, FAT_T1RHO, f"T1, T2: {BAZELAIRE}, subcutaneous fat; T1RHO: to be sourced")
    return {
        "liver": Row(
            0.80, liver["T1"], liver["T2"], liver["T1RHO"],
            f"T1, T2: {STANISZ}; T1RHO: healthy, 44.9 +- 2.8 ms, PMC5639155", _TOGETHER,
        ),
        "fibrotic_liver": Row(
            0.80, (900.0, 80.0), (47.0, 4.0), (52.6, 6.8),
            "T1RHO: fibrosis, 52.6 +- 6.8 ms, PMC5639155; T1, T2: to be sourced", _TOGETHER,
        ),
        "lesion": Row(0.85, (1200.0, 150.0), (85.0, 15.0), (95.0, 15.0), _UNKNOWN, _TOGETHER),
        "liver_fat": fat,
        "liver_vessel": vessel,
        "bile": Row(1.0, (2200.0, 350.0), (500.0, 100.0), (600.0, 120.0), _UNKNOWN),
        "stomach": Row(0.80, (1150.0, 100.0), (60.0, 8.0), (68.0, 8.0), _UNKNOWN, _TOGETHER),
        "stomach_fluid": Row(1.0, (3000.0, 400.0), (1000.0, 300.0), (1100.0, 300.0), _UNKNOWN),
        "spleen": Row(0.85, *SPLEEN, (78.0, 9.0), f"T1, T2: {BAZELAIRE}; T1RHO: to be sourced", _TOGETHER),
        "kidney": Row(
            0.85, *KIDNEY_CORTEX, (92.0, 9.0), f"T1, T2: {BAZELAIRE}, cortex; T1RHO: to be sourced", _TOGETHER
        ),
        "muscle": Row(0.80, muscle["T1"], muscle["T2"], MUSCLE_T1RHO, f"T1, T2: {STANISZ}; T1RHO: to be sourced"),
        "fat": fat,
        "marrow": Row(0.90, *MARROW_OF_L4, MARROW_T1RHO, f"T1, T2: {BAZELAIRE}, L4; T1RHO: to be sourced"),
        "csf": Row(
            1.0, csf["T1"], csf["T2"], (2000.0, 300.0),
            "T1, T2: sabidussi2021 Table 1 (Bojorquez 2017); T1RHO: to be sourced",
        ),
        "aorta": vessel,
    }  # fmt: skip


@value
class Huang2022:
    """The upper abdomen at 3 T: T1, T2 and T1RHO of 15 tissues, blood and fat suppressed or not.

    The T1RHO of liver and of fibrosis are printed means and SDs; most others are to be sourced and say so. A is about
    1 for water, with an SD of 5 % between subjects (to be sourced); in suppressed tissues the residual is its spread.

    Attributes:
        suppressed: A of blood, fat and marrow is what suppression leaves; False: all of it.
        residual: what suppression leaves, uniform from the first to the second; to be sourced [1].
        tr: fold 1 - exp(-tr / mean T1) into A, for closed forms; the table then has no T1, so that no Bloch model
            saturates it once more. None: nothing is folded in [s].
        within: white variation within a tissue, relative, on every row; to be sourced [1].
        fsl: spin-lock frequency of the protocol; told with the data, changes no number [Hz].
    Source: Huang et al. 2022, "Uncertainty-aware self-supervised neural network for liver T1rho mapping with
        relaxation constraint", sections 3.1 and 3.2, for suppression and TR; the T1RHO of liver: PMC5639155;
        de Bazelaire et al. 2004, doi:10.1148/radiol.2303021331; Stanisz et al. 2005, doi:10.1002/mrm.20605.
    """

    kind: Literal["huang2022"] = "huang2022"
    suppressed: bool = True
    residual: tuple[float, float] = (0.05, 0.2)
    tr: float | None = None
    within: float = 0.04
    fsl: float = 400.0

    def __post_init__(self) -> None:
        low, high = self.residual
        if not 0 < low < high <= 1:
            raise ValueError(
                f"residual must rise from above 0 to at most 1, got {low:g} to {high:g}; "
                "suppressed: false leaves everything"
            )
        if self.tr is not None and not (isfinite(self.tr) and self.tr > 0):
            raise ValueError(f"tr must be above 0 s, got {self.tr:g}; null folds nothing in")
        if self.tr is not None and self.tr > 100:
            raise ValueError(f"tr is in seconds, got {self.tr:g}; divide by 1000 if these are milliseconds")
        if not 0 <= self.within < 0.2:
            raise ValueError(f"within must lie between 0 and 0.2, got {self.within:g}; .04 is 4 %")
        if not 0 < self.fsl < 1e5:
            raise ValueError(f"fsl must be a spin-lock frequency above 0 Hz, got {self.fsl:g}")

    def table(self) -> TissueTable:
        tissues = []
        for name, row in _rows().items():
            times = row.times()
            values = {"A": self._a(name, row.a, times["T1"]), **times}
            if self.tr is not None:
                del values["T1"]
            tissues.append(row.tissue(name, values))
        names = ("A", "T1", "T2", "T1RHO") if self.tr is None else ("A", "T2", "T1RHO")
        within = {each: Variation(relative=self.within) for each in names}
        return TissueTable(
            name=f"huang2022 at 3 T, {self._said()}, within-tissue variation {100 * self.within:g} %",
            tissues=tuple(tissues),
            within=within if self.within > 0 else {},
            field_strength=3.0,
            truncation=TRUNCATION,
        )

    def _a(self, name: str, a: float, t1: AnyDistribution) -> AnyDistribution:
        """Distribution of A of a tissue between subjects [1]."""
        if self.tr is not None:
            a *= 1 - exp(-self.tr / mean(t1))
        share = SUPPRESSED.get(name, 0.0)
        if not self.suppressed or share == 0:
            return cut_normal(a, SD_OF_A * a)
        low, high = (a * (1 - share + share * left) for left in self.residual)
        return Uniform(low=low, high=high)

    def _said(self) -> str:
        low, high = (f"{100 * left:g}" for left in self.residual)
        said = f"blood and fat suppressed to {low} to {high} %" if self.suppressed else "nothing suppressed"
        if self.tr is not None:
            said += f", recovery over TR {self.tr:g} s in A"
        return f"spin-lock at {self.fsl:g} Hz, {said}"
