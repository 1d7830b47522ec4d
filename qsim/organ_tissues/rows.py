"""What the tables of the organ cohorts share: how a row is written down, and tissues that both bodies have.

A row takes a published distribution as it is, or mean +- SD in milliseconds, cut at +-2 SD as all normals of this
project's tables. Where nobody is named the number is a sensible one that waits for its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from qsim.distributions import AnyDistribution, Normal, Truncated
from qsim.joint import Correlation
from qsim.tissues import Stanisz2005, Tissue

# the cut of every normal, in SD
_CUT = 2.0
# SD of A between subjects as a share of its mean; to be sourced [1]
SD_OF_A = 0.05
TRUNCATION = "every normal cut at mean +- 2 SD"
BAZELAIRE = "de Bazelaire 2004 (3 T, in vivo)"
STANISZ = "Stanisz 2005 Table 1 (in vitro, to be checked against the print)"

# T1rho of what nobody is quoted for here, at 3 T and about 400 Hz: mean and SD; all to be sourced [ms]
BLOOD_T1RHO = (290.0, 45.0)
MUSCLE_T1RHO = (55.0, 5.0)
FAT_T1RHO = (73.0, 5.0)
MARROW_T1RHO = (60.0, 6.0)
# de Bazelaire et al. 2004, doi:10.1148/radiol.2303021331, abstract, at 3 T: T1 and T2, mean and SD [ms]
SPLEEN = ((1328.0, 31.0), (61.0, 9.0))
KIDNEY_CORTEX = ((1142.0, 154.0), (76.0, 7.0))
MARROW_OF_L4 = ((586.0, 73.0), (49.0, 4.0))
SUBCUTANEOUS_FAT = ((382.0, 13.0), (68.0, 4.0))

Printed = tuple[float, float]


def cut_normal(mean: float, sd: float) -> Truncated:
    """A normal cut at mean +- 2 SD [unit of the mean]."""
    return Truncated(of=Normal(mean=mean, sd=sd), low=mean - _CUT * sd, high=mean + _CUT * sd)


@dataclass(frozen=True, slots=True)
class Row:
    """One tissue as it is written down.

    Attributes:
        a: mean of A, water is about 1 [1].
        t1, t2, t1rho: mean and SD [ms], or a distribution that is in another table [s]; None: no such row.
        source: of each.
        together: correlation of T2 and T1RHO from subject to subject; None: independent [1].
    """

    a: float
    t1: Printed | AnyDistribution
    t2: Printed | AnyDistribution
    t1rho: Printed | AnyDistribution | None
    source: str
    together: float | None = None

    def times(self) -> dict[str, AnyDistribution]:
        """Distributions of the relaxation times [s]."""
        written = {"T1": self.t1, "T2": self.t2, "T1RHO": self.t1rho}
        return {name: _in_seconds(given) for name, given in written.items() if given is not None}

    def tissue(self, name: str, values: Mapping[str, AnyDistribution]) -> Tissue:
        """The tissue with these values."""
        pair = ("T2", "T1RHO")
        both = self.together is not None and set(pair) <= set(values)
        source = f"{self.source}; A: to be sourced"
        if both:
            source += f"; correlation of T2 and T1RHO {self.together:g}: to be sourced"
        return Tissue(
            name=name,
            values=values,
            source=source,
            correlations=(Correlation(rows=pair, rho=self.together),) if both and self.together is not None else (),
        )


def _in_seconds(given: Printed | AnyDistribution) -> AnyDistribution:
    return cut_normal(given[0] / 1000, given[1] / 1000) if isinstance(given, tuple) else given


def stanisz(field_strength: float, spin_lock: float = 500.0) -> Mapping[str, Mapping[str, AnyDistribution]]:
    """Distributions of `Stanisz2005`, by tissue and row [s]."""
    table = Stanisz2005(field_strength=field_strength, spin_lock=spin_lock).table()
    return {tissue.name: tissue.values for tissue in table.tissues}
