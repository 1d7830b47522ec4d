"""Nominal relaxation times of the ISMRM/NIST system phantom: what is published, and nothing between or beyond it.

| array | what changes from sphere to sphere | serials to 130-0041 | serials from 130-0042 |
| --- | --- | --- | --- |
| T1 | NiCl2 in water | T1, T2 at 1.5 and 3 T, 20 C | T1, T2 at 3 T, 20 C; T1 alone at 3 T, 16 to 26 C |
| T2 | MnCl2 in water | T1, T2 at 1.5 and 3 T, 20 C | T1, T2 at 3 T, 20 C |
| PD | share of H2O in D2O | 5 to 100 % | 5 to 100 % |

Between the listed temperatures (every 2 C) T1 is interpolated linearly. The table of the later serials at 1.5 T is, in
the software that publishes it, a copy of the one at 3 T: it is refused.

Sources: T1, T2 and PD: NIST, MRIStandards/PhantomViewer, SystemPhantom.py (calibrations K3290 of the earlier, PLL2020
of the later serials). T1 against temperature: rrsg2020/analysis, src/nist.py, which publishes it with the challenge of
the ISMRM Reproducible Research Study Group. The phantom: Stupic et al. 2021, doi:10.1002/mrm.28779. Water: the rates
.3 and .5 / s of the same NIST software.
"""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

from qsim.distributions import AnyDistribution, Constant
from qsim.values import value

if TYPE_CHECKING:
    import qsim.tissues

Array = Literal["t1", "t2", "pd"]
SPHERES = 14
WATER = "water"
LAST_OF_VERSION_1 = 41
"""The last serial number with the first solutions: 130-0041."""

_Row = tuple[float, ...]
# fmt: off
# sphere 1 to 14 [ms]; index: array and field strength [T]
_VERSION_1: dict[tuple[Array, float], tuple[_Row, _Row]] = {
    ("t1", 3.0): (
        (1989, 1454, 984.1, 706, 496.7, 351.5, 247.13, 175.3, 125.9, 89, 62.7, 44.53, 30.84, 21.719),
        (1465, 1076, 717.9, 510.1, 359.6, 255.5, 180.8, 127.3, 90.3, 64.3, 45.7, 31.86, 22.38, 15.83),
    ),
    ("t1", 1.5): (
        (2033, 1489, 1012, 730.8, 514.1, 367.9, 260.1, 184.6, 132.7, 92.7, 65.4, 46.32, 32.45, 22.859),
        (1669, 1244, 859.3, 628.5, 446.3, 321.2, 227.7, 161.9, 117.1, 81.9, 57.7, 41, 28.7, 20.2),
    ),
    ("t2", 3.0): (
        (2480, 2173, 1907, 1604, 1332, 1044, 801.7, 608.6, 458.4, 336.5, 244.2, 176.6, 126.9, 90.9),
        (581.3, 403.5, 278.1, 190.94, 133.27, 96.89, 64.07, 46.42, 31.97, 22.56, 15.813, 11.237, 7.911, 5.592),
    ),
    ("t2", 1.5): (
        (2376, 2183, 1870, 1539, 1237, 1030, 752.2, 550.2, 413.4, 292.9, 194.9, 160.2, 106.4, 83.33),
        (939.4, 594.3, 416.5, 267, 184.9, 140.6, 91.76, 64.84, 45.28, 30.62, 19.76, 15.99, 10.47, 8.15),
    ),
}
_VERSION_2: dict[tuple[Array, float], tuple[_Row, _Row]] = {
    ("t1", 3.0): (
        (1883.965, 1330.163, 987.267, 690.076, 484.97, 341.583, 240.864,
         174.95, 121.077, 85.746, 60.212, 42.888, 30.4, 21.441),
        (1489.406, 1026.78, 736.968, 521.267, 354.384, 248.03, 174.99,
         126.33, 86.908, 60.863, 42.44, 30.663, 21.762, 15.299),
    ),
    ("t2", 3.0): (
        (2478.185, 2185.538, 1901.281, 1549.984, 1197.565, 1026.433, 805.101,
         599.964, 431.217, 292.866, 226.528, 158.167, 116.697, 82.458),
        (552.733, 379.484, 267.289, 175.053, 112.664, 88.889, 63.423,
         44.241, 29.884, 19.395, 14.735, 10.521, 7.269, 5.097),
    ),
}
# T1 of the T1 array at 3 T, version 2, by temperature [degrees C]; that of 20 is the table above, rounded there [ms]
_T1_BY_TEMPERATURE: dict[float, _Row] = {
    16.0: (1766.68, 1274.07, 950.71, 675.07, 483.91, 343.0, 243.77,
           177.68, 122.99, 87.47, 61.49, 43.79, 31.05, 21.94),
    18.0: (1830.34, 1317.71, 963.56, 686.88, 482.91, 341.53, 241.84,
           175.94, 121.79, 86.41, 60.7, 43.24, 30.65, 21.62),
    20.0: _VERSION_2["t1", 3.0][0],
    22.0: (1937.34, 1355.29, 1000.81, 695.01, 486.92, 342.58, 240.75,
           174.59, 120.8, 85.03, 59.97, 42.72, 30.27, 21.28),
    24.0: (1987.5, 1367.79, 1015.7, 701.06, 490.24, 344.23, 241.31,
           174.78, 120.9, 85.01, 60.0, 42.7, 30.25, 21.26),
    26.0: (2066.95, 1395.94, 1030.78, 709.48, 494.55, 346.67, 242.45,
           175.48, 121.34, 85.28, 60.17, 42.8, 30.31, 21.31),
}
# fmt: on
# share of H2O [%]
_PD = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90, 100)
# of the water that fills the phantom [1/s]
_WATER_R1, _WATER_R2 = 0.3, 0.5
_CALIBRATION_TEMPERATURE = 20.0


@dataclass(frozen=True, slots=True)
class Nominal:
    """What is published of one sphere.

    Attributes:
        a: proton density, water is 1 [1].
        t1, t2: None where none is published [s].
    """

    a: float
    t1: float | None
    t2: float | None


def sphere_names(array: Array) -> tuple[str, ...]:
    """t1_01 to t1_14, and so on."""
    return tuple(f"{array}_{number:02d}" for number in range(1, SPHERES + 1))


def nominal(array: Array, serial: int, field_strength: float, temperature: float = 20.0) -> tuple[Nominal, ...]:
    """Spheres 1 to 14 of an array.

    Args:
        serial: number after 130- on the phantom.
        field_strength: [T].
        temperature: of the phantom [degrees C].
    Raises: ValueError, naming the argument, where nothing is published.
    """
    check_conditions(serial, field_strength, temperature)
    if array == "pd":
        return tuple(Nominal(percent / 100, None, None) for percent in _PD)
    if temperature == _CALIBRATION_TEMPERATURE:
        t1, t2 = (_VERSION_1 if serial <= LAST_OF_VERSION_1 else _VERSION_2)[array, field_strength]
        return tuple(Nominal(1.0, first / 1000, second / 1000) for first, second in zip(t1, t2, strict=True))
    if array == "t2":
        raise ValueError(
            f"temperature must be 20 degrees C for the T2 array, nothing else is listed; got {temperature:g}"
        )
    return tuple(Nominal(1.0, t1 / 1000, None) for t1 in _interpolated(temperature))


def check_conditions(serial: int, field_strength: float, temperature: float) -> None:
    """Refuse what no array has values for.

    Raises: ValueError, naming the argument.
    """
    if serial < 1:
        raise ValueError(f"serial is the number after 130- on the phantom, at least 1, got {serial}")
    if field_strength not in (1.5, 3.0):
        raise ValueError(f"field_strength must be 1.5 or 3.0 T, got {field_strength:g}")
    later = serial > LAST_OF_VERSION_1
    if later and field_strength == 1.5:
        raise ValueError(
            "field_strength must be 3.0 T for serials from 130-0042: their published list for 1.5 T is a copy of that "
            "for 3 T"
        )
    if not isfinite(temperature):
        raise ValueError(f"temperature must be finite, got {temperature}")
    low, high = min(_T1_BY_TEMPERATURE), max(_T1_BY_TEMPERATURE)
    if not later and temperature != _CALIBRATION_TEMPERATURE:
        raise ValueError(
            f"temperature must be 20 degrees C for serials to 130-0041, nothing else is listed; got {temperature:g}"
        )
    if not low <= temperature <= high:
        raise ValueError(
            f"temperature must lie between {low:g} and {high:g} degrees C, where values are listed; got {temperature:g}"
        )


def _interpolated(temperature: float) -> _Row:
    """Between the two listed temperatures that enclose it, linearly."""
    below = max(listed for listed in _T1_BY_TEMPERATURE if listed <= temperature)
    above = min(listed for listed in _T1_BY_TEMPERATURE if listed >= temperature)
    share = 0.0 if above == below else (temperature - below) / (above - below)
    pairs = zip(_T1_BY_TEMPERATURE[below], _T1_BY_TEMPERATURE[above], strict=True)
    return tuple((1 - share) * low + share * high for low, high in pairs)


@value
class SystemPhantomTable:
    """The spheres of the ISMRM/NIST system phantom and the water around them; every value is constant.

    A sphere lacks the rows that are not published for it: T2 of the T1 array away from 20 C, the whole T2 array there,
    T1 and T2 of the PD array unless they are given below. What needs them is refused. A is 1 in the T1 and T2 arrays:
    dilute solutions in water.

    Attributes:
        serial: number after 130- on the phantom; the solutions changed with 130-0042.
        field_strength: 1.5 or 3.0 [T].
        temperature: of the phantom; 16 to 26 for T1 of the T1 array from 130-0042 on, 20 for all else [degrees C].
        b: 1 + inversion efficiency, the same everywhere [1].
        pd_t1, pd_t2: of every sphere of the PD array, which nobody publishes; None: they have none [s].
    Source: `qsim.system_phantom`.
    """

    kind: Literal["system_phantom"] = "system_phantom"
    serial: int
    field_strength: float
    temperature: float = 20.0
    b: float = 2.0
    pd_t1: float | None = None
    pd_t2: float | None = None

    def __post_init__(self) -> None:
        check_conditions(self.serial, self.field_strength, self.temperature)
        if not 1 <= self.b <= 2:
            raise ValueError(f"b must lie between 1 (nothing inverted) and 2 (all), got {self.b}")
        for name, time in (("pd_t1", self.pd_t1), ("pd_t2", self.pd_t2)):
            if time is not None and not 0 < time <= 20:
                raise ValueError(
                    f"{name} must be in seconds, above 0 and at most 20, got {time}; divide by 1000 if these are ms"
                )

    def table(self) -> "qsim.tissues.TissueTable":
        from qsim.tissues import Tissue, TissueTable

        there: list[Array] = ["t1", "pd"]
        only = ": T1 of the T1 array alone"
        if self.temperature == _CALIBRATION_TEMPERATURE:
            there, only = ["t1", "t2", "pd"], ""
        tissues = []
        for array in there:
            spheres = nominal(array, self.serial, self.field_strength, self.temperature)
            for name, sphere in zip(sphere_names(array), spheres, strict=True):
                t1, t2 = (self.pd_t1, self.pd_t2) if array == "pd" else (sphere.t1, sphere.t2)
                tissues.append(Tissue(name=name, values=_rows(sphere.a, t1, t2), source=self._source(array)))
        water = _rows(1.0, 1 / _WATER_R1, 1 / _WATER_R2)
        tissues.append(Tissue(name=WATER, values=water, source="MRIStandards/PhantomViewer: R1 .3 / s, R2 .5 / s"))
        serials = "to" if self.serial <= LAST_OF_VERSION_1 else "from"
        edge = LAST_OF_VERSION_1 + (serials == "from")
        return TissueTable(
            name=f"ISMRM/NIST system phantom, serials {serials} 130-{edge:04d}, {self.field_strength:g} T, "
            f"{self.temperature:g} degrees C{only}",
            tissues=tuple(tissues),
            per_sample={"B": Constant(value=self.b)},
            field_strength=self.field_strength,
        )

    def _source(self, array: Array) -> str:
        if array == "pd":
            given = "T1, T2: as given" if self.pd_t1 is not None or self.pd_t2 is not None else "T1, T2: not published"
            return f"MRIStandards/PhantomViewer, PD array; {given}"
        if self.temperature != _CALIBRATION_TEMPERATURE:
            return "rrsg2020/analysis, NIST values against temperature, linear between them"
        calibration = "K3290" if self.serial <= LAST_OF_VERSION_1 else "PLL2020"
        return f"MRIStandards/PhantomViewer, calibration {calibration}; A: 1, dilute in water"


def _rows(a: float, t1: float | None, t2: float | None) -> dict[str, AnyDistribution]:
    values = {"A": a, "T1": t1, "T2": t2}
    return {name: Constant(value=float(number)) for name, number in values.items() if number is not None}
