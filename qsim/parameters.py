"""The tissue and field parameters that rows of `kappa` can hold."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of `kappa`.

    Attributes:
        name: row name, as in configs and tables.
        symbol: as printed in figures (mathtext).
        unit: SI unit of every stored value; "1" for none.
        lower, upper: physical range that estimators search [unit].
        scale: typical size; networks learn `value / scale`, so that a relative error of any row weighs the same [unit].
        start: where iterative methods begin [unit]. Of A: replaced by the maximum over the images.
        suffix: BIDS suffix of its map, if it has one.
    """

    name: str
    symbol: str
    unit: str
    lower: float
    upper: float
    scale: float
    start: float
    suffix: str | None = None


A = Parameter("A", "A", "1", lower=0.0, upper=inf, scale=1.0, start=1.0, suffix="M0map")
B = Parameter("B", "B", "1", lower=0.0, upper=3.0, scale=1.0, start=2.0)
M0 = Parameter("M0", "M_0", "1", lower=0.0, upper=inf, scale=1.0, start=1.0, suffix="M0map")
# T1 from the shortest sphere of the NIST system phantom (about 20 ms) to above free water (about 4 s)
T1 = Parameter("T1", "T_1", "s", lower=0.01, upper=6.0, scale=1.0, start=1.0, suffix="T1map")
T2 = Parameter("T2", "T_2", "s", lower=0.001, upper=4.0, scale=0.1, start=0.1, suffix="T2map")
# of two decays side by side: the share of the short one in A, and its time; the long one is T2 or T1RHO
FRACTION = Parameter("FRACTION", "f", "1", lower=0.0, upper=1.0, scale=1.0, start=0.5)
T2_SHORT = Parameter("T2_SHORT", "T_{2,\\mathrm{short}}", "s", lower=0.001, upper=4.0, scale=0.02, start=0.02)
T2STAR = Parameter("T2STAR", "T_2^*", "s", lower=0.001, upper=4.0, scale=0.05, start=0.05, suffix="T2starmap")
T1RHO = Parameter("T1RHO", "T_{1\\rho}", "s", lower=0.001, upper=4.0, scale=0.05, start=0.05, suffix="T1rho")
T1RHO_SHORT = Parameter(
    "T1RHO_SHORT", "T_{1\\rho,\\mathrm{short}}", "s", lower=0.001, upper=4.0, scale=0.02, start=0.02
)
T2RHO = Parameter("T2RHO", "T_{2\\rho}", "s", lower=0.001, upper=4.0, scale=0.05, start=0.05)
C = Parameter("C", "C", "1", lower=-inf, upper=inf, scale=1.0, start=0.0)
DELTA_B0 = Parameter("DELTA_B0", "\\Delta B_0", "Hz", lower=-2000.0, upper=2000.0, scale=100.0, start=0.0)
REL_B1 = Parameter("REL_B1", "B_1^{rel}", "1", lower=0.2, upper=2.0, scale=1.0, start=1.0, suffix="TB1map")

PARAMETERS: dict[str, Parameter] = {
    p.name: p for p in (A, B, M0, T1, FRACTION, T2_SHORT, T2, T2STAR, T1RHO_SHORT, T1RHO, T2RHO, C, DELTA_B0, REL_B1)
}
RELAXATION_TIMES = ("T1", "T2_SHORT", "T2", "T2STAR", "T1RHO_SHORT", "T1RHO", "T2RHO")
