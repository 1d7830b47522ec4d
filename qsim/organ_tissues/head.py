"""Tissues of the head at 3 T as one person differs from the next, for T1-weighted images (shaw2021)."""

from typing import Literal

from qsim.distributions import Constant, Normal, Truncated
from qsim.tissues import Tissue, TissueTable, Variation
from qsim.values import value

_CUT = 2.0
# SD of A between persons [1]
_SD_OF_A = 0.03
# tissue, T1 and its SD [ms], T2 [ms], A [1]
_HEAD = (
    ("csf", 3500, 300, 2000, 1.00),
    ("gm", 1400, 80, 110, 0.85),
    ("wm", 780, 50, 80, 0.68),
    ("fat", 420, 50, 70, 0.90),
    ("muscle", 1200, 100, 50, 0.70),
    ("skin", 1230, 200, 50, 0.70),
    # cortical bone has hardly any signal at an echo time of milliseconds
    ("skull", 400, 100, 30, 0.15),
    # flowing blood leaves the slab before it is read
    ("vessel", 1980, 200, 275, 0.60),
    ("marrow", 580, 100, 50, 0.60),
)


@value
class HeadT1w:
    """The tissues of a head at 3 T with the SDs between persons, of use where contrast must stay that of a T1w image.

    The SDs of sabidussi2021's Table 1 are those between studies: with A and T1 drawn apart, a quarter of its MPRAGE
    images has grey matter brighter than white. Here the 5th and 95th percentile of gm/wm are about .5 and .8.

    Source: means of T1 and T2: Table 1 of sabidussi2021, doi:10.1016/j.media.2021.102220; SDs, A, what is left of bone
        and blood: to be sourced.
    """

    kind: Literal["head_t1w"] = "head_t1w"

    def table(self) -> TissueTable:
        return TissueTable(
            name="head at 3 T, SDs between persons",
            tissues=tuple(
                Tissue(
                    name=name,
                    values={
                        "A": _normal(a, _SD_OF_A),
                        "T1": _normal(t1 / 1000, t1_sd / 1000),
                        "T2": Constant(value=t2 / 1000),
                    },
                    source="T1, T2: means of sabidussi2021 Table 1; SDs, A: to be sourced",
                )
                for name, t1, t1_sd, t2, a in _HEAD
            ),
            within={"A": Variation(relative=0.03), "T1": Variation(relative=0.03)},
            per_sample={},
            field_strength=3.0,
            truncation="every normal cut at mean +- 2 SD",
        )


def _normal(mean: float, sd: float) -> Truncated:
    return Truncated(of=Normal(mean=mean, sd=sd), low=mean - _CUT * sd, high=mean + _CUT * sd)
