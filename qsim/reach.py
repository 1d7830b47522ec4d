"""Where the values of a tissue lie, save one in a million: what tables of a simulation must span."""

from math import inf, sqrt

import numpy as np

from qsim.distributions import Distribution
from qsim.tissues import Tissue, TissueTable, Variation

Range = tuple[float, float]

# probability in either tail that a range leaves out, and the standard normal's quantile there
TAIL = 1e-6
TAIL_NORMAL = 4.7534


def reach(distribution: Distribution) -> Range:
    """Interval from the 1e-6 quantile of a distribution to its 1 - 1e-6 quantile."""
    # a quantile beyond all numbers is infinite, which those who ask refuse
    with np.errstate(over="ignore"):
        low, high = distribution.ppf(np.array([TAIL, 1 - TAIL]))
    return float(low), float(high)


def varied(values: Range, variation: Variation) -> Range:
    """Range of the voxels of a tissue whose value lies in `values`, as `phantoms.maps.vary` spreads them."""

    def sd(value: float) -> float:
        return sqrt((variation.relative * value) ** 2 + variation.absolute**2)

    low, high = values
    if variation.relative == 0 and variation.absolute == 0:
        return values
    # value - 4.75 sd(value) is concave: smallest at an end
    below = min(low - TAIL_NORMAL * sd(low), high - TAIL_NORMAL * sd(high))
    return max(below, variation.floor * low), high + TAIL_NORMAL * sd(high)


def tissue_range(table: TissueTable, tissue: Tissue, row: str) -> Range:
    """Range of a parameter in the voxels of one tissue [SI]."""
    distribution = table.per_sample[row] if row in table.per_sample else tissue.values[row]
    return varied(reach(distribution), table.within.get(row, Variation()))


def union(ranges: list[Range]) -> Range:
    """Smallest range that holds them all."""
    low, high = inf, -inf
    for range_ in ranges:
        low, high = min(low, range_[0]), max(high, range_[1])
    return low, high


def unphysical_t2(table: TissueTable, tissue: Tissue) -> str | None:
    """Say how T2 can exceed 2 T1 in a tissue, which no tissue can; None if it cannot."""
    lowest_t1 = tissue_range(table, tissue, "T1")[0]
    highest_t2 = tissue_range(table, tissue, "T2")[1]
    if highest_t2 <= 2 * lowest_t1:
        return None
    return (
        f"{tissue.name}: T2 can reach {highest_t2:.3g} s where T1 can fall to {lowest_t1:.3g} s, and no tissue has "
        "T2 above 2 T1 (quantiles of one in a million, variation within the tissue included); truncate its T1 or T2, "
        "or let them vary less within the tissue"
    )
