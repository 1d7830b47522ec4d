"""Acquisitions of sabidussi2021 (doi:10.1016/j.media.2021.102220), Table 2, in seconds and millimetres.

The row "spacing" is read as the gap between slices: taken from middle to middle, slices of 3 mm every 1.5 mm would
overlap; as a gap, the phantom's 15 slices and the volunteers' 10 both cover 45 mm. Fields of view are printed in
pixels. The preparation time of 4 ms that is printed for the T1 data sets is left out: the paper does not say of what.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Protocol:
    """One column of the table.

    Attributes:
        ti: inversion times; empty for T2 [s].
        te_prep: durations of the T2 preparation; empty for T1 [s].
        tr: repetition time of each image [s].
        flip_angle_degrees: None where none is printed.
        matrix: voxels in the plane.
        slices: how many.
        voxel_mm: in the plane [mm].
        slice_thickness_mm, gap_mm: gap of a single slice: 0 [mm].
        repeats: C, how often the scan was repeated.
        acceleration: factor.
        minutes: of one scan [min].
    """

    ti: tuple[float, ...]
    te_prep: tuple[float, ...]
    tr: tuple[float, ...]
    flip_angle_degrees: float | None
    slices: int
    slice_thickness_mm: float
    gap_mm: float
    repeats: int
    minutes: float
    matrix: tuple[int, int] = (210, 210)
    voxel_mm: tuple[float, float] = (0.82, 0.82)
    acceleration: int = 2


def _seconds(milliseconds: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(time / 1000 for time in milliseconds)


# fmt: off
_TI_23 = (172, 204, 237, 270, 303, 335, 368, 401, 434, 467, 499, 532, 565, 598, 630, 663, 696, 729, 761, 794, 827, 860,
          893)
_TI_25 = (*_TI_23, 925, 958)
_TI_31 = (139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538, 565, 591, 618, 644, 671, 697,
          724, 751, 777, 804, 838, 857, 883, 915, 937)
# fmt: on
_TE_PREP = (10, 20, 40, 80, 160, 320)
_TR_T2 = (2010, 2020, 2040, 2080, 2160, 2320)


def _t1(ti: tuple[int, ...], slices: int, thickness_mm: float, gap_mm: float, repeats: int, minutes: float) -> Protocol:
    tr = _seconds((8192,) * len(ti))
    return Protocol(_seconds(ti), (), tr, 10.0, slices, thickness_mm, gap_mm, repeats, minutes)


def _t2(slices: int, thickness_mm: float, gap_mm: float, repeats: int, minutes: float) -> Protocol:
    return Protocol((), _seconds(_TE_PREP), _seconds(_TR_T2), None, slices, thickness_mm, gap_mm, repeats, minutes)


PROTOCOLS = {
    "HP T1": _t1(_TI_23, 15, 1.5, 1.5, 4, 4.3),
    "IV T1": _t1(_TI_31, 10, 3.0, 1.5, 2, 7.5),
    "IV T1 noisy": _t1(_TI_25, 1, 1.5, 0.0, 2, 1.6),
    "HP T2": _t2(15, 1.5, 1.5, 4, 3.2),
    "IV T2": _t2(10, 3.0, 1.5, 2, 3.2),
}
"""By the paper's name; HP is the hardware phantom, IV in vivo."""
