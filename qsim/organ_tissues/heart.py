"""Tissues of a short-axis slice through the chest, at 1.5 and 3 T, as the two domains of jacobs2025 need them.

T1 of myocardium is the one of the Bloch equation; a MOLLI reads less, by its readout and by magnetisation transfer.
At 1.5 T MOLLIs read 1034 +- 53 ms (Nacif et al. 2011, doi:10.1002/jmri.22753) and 1017 +- 24 ms (aus dem Siepen et al.
2018, Open Heart 5, e000717), so 1030 ms of the table is rather low for human hearts. The simulated MOLLI adds the bias
of the readout, not that of magnetisation transfer.
"""

from typing import Literal

from qsim.organ_tissues.rows import (
    BAZELAIRE,
    BLOOD_T1RHO,
    FAT_T1RHO,
    MARROW_OF_L4,
    MARROW_T1RHO,
    MUSCLE_T1RHO,
    SD_OF_A,
    STANISZ,
    SUBCUTANEOUS_FAT,
    TRUNCATION,
    Row,
    cut_normal,
    stanisz,
)
from qsim.tissues import Stanisz2005, TissueTable, Variation
from qsim.values import value

_FREQUENCIES = (300.0, 400.0, 500.0)
_UNKNOWN = "T1, T2: to be sourced"
_PUBLISHED = f"T1, T2: {STANISZ}"


def _rows(at_3: bool, spin_lock: float) -> dict[str, Row]:
    of = stanisz(3.0 if at_3 else 1.5, spin_lock)
    heart, blood, liver, muscle = of["myocardium"], of["vessel"], of["liver"], of["muscle"]
    myocardium = Row(
        0.80, heart["T1"], heart["T2"], heart.get("T1RHO"),
        f"{_PUBLISHED}; T1RHO at {spin_lock:g} Hz: as in stanisz2005, to be sourced", 0.5,
    )  # fmt: skip
    arterial = Row(0.90, blood["T1"], blood["T2"], BLOOD_T1RHO, f"{_PUBLISHED}; T1RHO: to be sourced")
    # less oxygen shortens T2 of venous blood, the more the stronger the field
    venous_t2, venous = ((120.0, 25.0), (135.0, 28.0)) if at_3 else ((180.0, 30.0), (200.0, 35.0))
    fat_source = f"T1, T2: {BAZELAIRE}; T1RHO: to be sourced" if at_3 else _UNKNOWN
    t1_fat, t2_fat = SUBCUTANEOUS_FAT if at_3 else ((340.0, 30.0), (60.0, 5.0))
    t1_marrow, t2_marrow = MARROW_OF_L4 if at_3 else ((550.0, 50.0), (50.0, 5.0))
    return {
        "myocardium": myocardium,
        # oedema and collagen lengthen all three
        "scar": Row(
            0.85, (1750.0, 90.0) if at_3 else (1250.0, 70.0), (66.0, 8.0) if at_3 else (58.0, 7.0), (78.0, 9.0),
            "T1, T2, T1RHO: to be sourced", 0.5,
        ),
        "lv_blood": arterial,
        "rv_myocardium": myocardium,
        "rv_blood": Row(
            0.90, blood["T1"], venous_t2, venous, f"T1: {STANISZ}; T2 of venous blood, T1RHO: to be sourced"
        ),
        # little water, and the air between it
        "lung": Row(
            0.20, (1300.0, 100.0) if at_3 else (1150.0, 100.0), (25.0, 5.0) if at_3 else (35.0, 5.0), (32.0, 5.0),
            "T1, T2, T1RHO: to be sourced",
        ),
        "liver": Row(
            0.80, liver["T1"], liver["T2"], liver.get("T1RHO"), f"{_PUBLISHED}; T1RHO: healthy, PMC5639155", 0.8
        ),
        "fat": Row(1.0, t1_fat, t2_fat, FAT_T1RHO, fat_source),
        "muscle": Row(0.80, muscle["T1"], muscle["T2"], MUSCLE_T1RHO, f"{_PUBLISHED}; T1RHO: to be sourced"),
        "marrow": Row(0.90, t1_marrow, t2_marrow, MARROW_T1RHO, fat_source),
        "aorta": arterial,
    }  # fmt: skip


@value
class Jacobs2025:
    """A short-axis slice and what lies around it: T1 and T2 of 11 tissues at 1.5 or 3 T, T1RHO at 3 T.

    T1, T2 of muscle, heart, liver and blood are those of `Stanisz2005`, T1RHO of myocardium and liver too. At 1.5 T
    nothing is known of T1RHO and the table has none: a spin-lock model there is refused. A is about 1 for water, SD
    5 % between subjects (to be sourced). B, for inversion recovery in closed form, as in `Sabidussi2021`.

    Attributes:
        field_strength: 1.5 (clinical T1) or 3.0 [T].
        spin_lock: frequency for which the T1RHO of myocardium is: 300, 400 or 500 [Hz].
        within: white variation within a tissue, relative, on every row but B; to be sourced [1].
        b_scale: as in `Sabidussi2021` [1].
    Source: Stanisz et al. 2005, doi:10.1002/mrm.20605, Table 1; de Bazelaire et al. 2004,
        doi:10.1148/radiol.2303021331 (fat and marrow at 3 T). jacobs2025 prints no relaxation time.
    """

    kind: Literal["jacobs2025"] = "jacobs2025"
    field_strength: float = 1.5
    spin_lock: float = 400.0
    within: float = 0.04
    b_scale: float = 0.2

    def __post_init__(self) -> None:
        if self.field_strength not in (1.5, 3.0):
            raise ValueError(f"field_strength must be 1.5 or 3.0 T, got {self.field_strength:g}")
        if self.spin_lock not in _FREQUENCIES:
            raise ValueError(f"spin_lock must be 300, 400 or 500 Hz, got {self.spin_lock:g}")
        if not 0 <= self.within < 0.2:
            raise ValueError(f"within must lie between 0 and 0.2, got {self.within:g}; .04 is 4 %")
        Stanisz2005(b_scale=self.b_scale).table()

    def table(self) -> TissueTable:
        at_3 = self.field_strength == 3.0
        tissues = []
        for name, row in _rows(at_3, self.spin_lock).items():
            values = {"A": cut_normal(row.a, SD_OF_A * row.a), **row.times()}
            if not at_3:
                values.pop("T1RHO", None)
            tissues.append(row.tissue(name, values))
        names = ("A", "T1", "T2", "T1RHO") if at_3 else ("A", "T1", "T2")
        within = {each: Variation(relative=self.within) for each in names}
        return TissueTable(
            name=f"jacobs2025 at {self.field_strength:g} T, within-tissue variation {100 * self.within:g} %",
            tissues=tuple(tissues),
            within=within if self.within > 0 else {},
            per_sample=Stanisz2005(b_scale=self.b_scale).table().per_sample,
            field_strength=self.field_strength,
            truncation=f"{TRUNCATION}; B = 2 - half-normal cut at B = 1",
        )
