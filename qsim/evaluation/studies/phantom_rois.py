"""Regions of known relaxation time, scanned repeatedly: bias, repeatability, agreement (sabidussi2021, section 5.2).

Of one region of V voxels, nominal value k, estimates e_cv of C repeats:

    bias    100 (mean_cv(e_cv) - k) / k
    CV      100 SD_c(e_cv) / mean_c(e_cv) of each voxel, SD with C - 1; median over the voxels (mean beside it)
    RMSE    100 sqrt(mean_cv((e_cv - k)^2)) / k
    ROI SD  100 mean_c(SD_v(e_cv)) / k

Regions are compared over the covered ones alone: those whose nominal value lies in the range that was asked for.
Estimates that are not finite are left out and counted as failures.

Source: sabidussi2021 Eq. 7, 8; concordance: Lin 1989, doi:10.2307/2532051.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import stdtr

from qsim.estimators.base import Status
from qsim.evaluation.metrics import Interval, VoxelMoments, around, over_draws, slope
from qsim.evaluation.table import ALL, Row

# differences of a pair that vary by rounding alone [1, of the largest value]
_FLAT = 1e-9
# summaries that are sizes: their intervals are those of logarithms
_SIZES = ("abs_bias", "cv", "cv_mean", "cv_rms", "cv_of_mean", "rmse", "sd")


class Region(NamedTuple):
    """A sphere, tube or vial. Attributes: label: in the image of the regions; nominal: [SI]; covered: see above."""

    label: int
    name: str
    nominal: float
    covered: bool


class RoiStatistics(NamedTuple):
    """One region by one method.

    Attributes:
        mean: of all repeats and voxels [SI].
        repeat_means: of the voxels, in each repeat [SI].
        bias, bias_low, bias_high: of the mean; quartiles over voxels of their own bias [%].
        cv, cv_low, cv_high, cv_mean, cv_rms: median, quartiles, mean, and root of the mean square over voxels; NaN of
            one scan [%].
        cv_of_mean: of the region's mean over repeats; NaN of one scan [%].
        rmse, sd: of single estimates against the nominal value; over voxels [%].
        failure_rate, at_bound_rate: share of the estimates [%].
        n: voxels.
    """

    mean: float
    repeat_means: tuple[float, ...]
    bias: float
    bias_low: float
    bias_high: float
    cv: float
    cv_low: float
    cv_high: float
    cv_mean: float
    cv_rms: float
    cv_of_mean: float
    rmse: float
    sd: float
    failure_rate: float
    at_bound_rate: float
    n: int


def roi_statistics(
    estimates: Float[np.ndarray, "c v"], status: UInt8[np.ndarray, "c v"], nominal: float
) -> RoiStatistics:
    """Statistics of one region.

    Args:
        estimates: of each repeat and voxel [SI].
        status: one `Status` each.
        nominal: true value, above 0 [SI].
    """
    values = np.where(np.isfinite(estimates), estimates, nan).astype(np.float64)
    failed = ~np.isfinite(values) | (status == Status.NOT_CONVERGED) | (status == Status.NOT_COMPUTED)
    moments = VoxelMoments(np.full((1, values.shape[1]), nominal))
    for one in values:
        moments.add(one[None])
    bias, cv = moments.bias[0], moments.cv[0]
    means = np.array([_mean(one) for one in values])
    mean = _mean(values)
    spread = [float(np.std(one[np.isfinite(one)], ddof=1)) if np.isfinite(one).sum() > 1 else nan for one in values]
    finite = means[np.isfinite(means)]
    between = 100 * float(finite.std(ddof=1) / abs(finite.mean())) if finite.size > 1 else nan
    return RoiStatistics(
        mean=mean,
        repeat_means=tuple(float(each) for each in means),
        bias=100 * (mean - nominal) / nominal,
        bias_low=_quantile(bias, 0.25),
        bias_high=_quantile(bias, 0.75),
        cv=_quantile(cv, 0.5),
        cv_low=_quantile(cv, 0.25),
        cv_high=_quantile(cv, 0.75),
        cv_mean=_mean(cv),
        cv_rms=sqrt(_mean(cv**2)),
        cv_of_mean=between,
        rmse=100 * sqrt(_mean((values - nominal) ** 2)) / nominal,
        sd=100 * _mean(np.array(spread)) / nominal,
        failure_rate=100 * float(failed.mean()),
        at_bound_rate=100 * float((status == Status.AT_BOUND).mean()),
        n=values.shape[1],
    )


def concordance(estimate: Float[np.ndarray, " r"], truth: Float[np.ndarray, " r"]) -> float:
    """Lin's concordance correlation coefficient; NaN with fewer than two values.

    2 s_xy / (s_x^2 + s_y^2 + (mean x - mean y)^2),   moments with n in the denominator

    Source: Lin 1989, doi:10.2307/2532051.
    """
    known = np.isfinite(estimate) & np.isfinite(truth)
    x, y = estimate[known], truth[known]
    if x.size < 2:
        return nan
    below = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * np.mean((x - x.mean()) * (y - y.mean())) / below) if below > 0 else nan


class Paired(NamedTuple):
    """Paired t-test. Attributes: difference: mean of a - b with its 95 % interval; p: two-sided; n: pairs."""

    difference: Interval
    p: float
    n: int


def paired(a: Float[np.ndarray, " r"], b: Float[np.ndarray, " r"]) -> Paired:
    """Paired t-test of two methods over the same regions.

    p and the ends are NaN with fewer than two pairs, or if all differences are the same (to 1e-9 of the largest value):
    there is no spread to test against but rounding.

    t = mean(d) sqrt(n) / SD(d),   d = a - b,   n - 1 degrees of freedom
    """
    difference = a - b
    known = np.isfinite(difference)
    difference = difference[known]
    n = int(difference.size)
    held = over_draws(difference)
    if n < 2 or np.ptp(difference) <= _FLAT * max(np.abs(a[known]).max(), np.abs(b[known]).max()):
        return Paired(Interval(held.value, nan, nan), nan, n)
    p = 2 * float(stdtr(n - 1, -abs(held.value) * sqrt(n) / float(difference.std(ddof=1))))
    return Paired(held, p, n)


@dataclass(frozen=True, slots=True)
class Phantom:
    """All that was found.

    Attributes:
        parameter: the relaxation time.
        regions: in the order of the tables.
        methods: names, in the order of the tables.
        snrs, sigmas: of the twin; one NaN and the sigma that was found (or NaN) for scans.
        repeats, draws: scans of each draw, and draws of their noise (1 for scans).
        found: of (method, number of the SNR, draw), each region.
        bounds: of (number of the SNR, draw), by name: Cramér-Rao bound of the CV in each region [%]; empty for scans.
        bound_of: the bound that each method is held against.
    """

    parameter: str
    regions: Sequence[Region]
    methods: Sequence[str]
    snrs: Sequence[float]
    sigmas: Sequence[float]
    repeats: int
    draws: int
    found: Mapping[tuple[str, int, int], Sequence[RoiStatistics]]
    bounds: Mapping[tuple[int, int], Mapping[str, Float[np.ndarray, " r"]]]
    bound_of: Mapping[str, str]

    @property
    def covered(self) -> list[int]:
        """Numbers of the regions that summaries are of."""
        return [r for r, region in enumerate(self.regions) if region.covered]

    @property
    def nominal(self) -> Float[np.ndarray, " r"]:
        """Of every region [SI]."""
        return np.array([region.nominal for region in self.regions])

    def values(self, method: str, snr: int, statistic: str) -> Float[np.ndarray, "d r"]:
        """A statistic of every draw and region."""
        draws = (self.found[method, snr, draw] for draw in range(self.draws))
        return np.array([[float(getattr(each, statistic)) for each in regions] for regions in draws])

    def region(self, method: str, snr: int, number: int, statistic: str) -> Interval:
        """A statistic of one region: mean over draws with its t-interval."""
        return over_draws(self.values(method, snr, statistic)[:, number])

    def each(self, method: str, snr: int, statistic: str) -> Float[np.ndarray, " r"]:
        """A statistic of every region, mean over draws."""
        values = self.values(method, snr, statistic)
        known = np.isfinite(values)
        total = np.where(known, values, 0).sum(0)
        return np.divide(total, known.sum(0), out=np.full(total.shape, nan), where=known.any(0))

    def bound(self, name: str, snr: int) -> Float[np.ndarray, " r"]:
        """Of the CV in every region, mean over draws; NaN for scans [%]."""
        if not self.bounds:
            return np.full(len(self.regions), nan)
        return np.mean([self.bounds[snr, draw][name] for draw in range(self.draws)], axis=0)

    def summary(self, method: str, snr: int, metric: str) -> Interval:
        """A figure over the covered regions, with its 95 % interval over them: how much regions differ, not noise.

        The t-interval of the bias; that of the logarithm of a size (|bias|, CV, RMSE, SD), which cannot be below 0 and
        is missing where a region's size is 0.

        Args:
            metric: `abs_bias` or a statistic of `RoiStatistics`, mean over the regions; `bias_voxels`, `cv_voxels`:
                mean over all their voxels, as the paper has it; `concordance`, `slope`: of the regions' means on
                nominal values, without an interval.
        """
        here = self.covered
        if not here:
            return Interval(nan, nan, nan)
        if metric in ("concordance", "slope"):
            measured, nominal = self.each(method, snr, "mean")[here], self.nominal[here]
            value = concordance(measured, nominal) if metric == "concordance" else slope(measured, nominal)
            return Interval(value, nan, nan)
        if metric in ("bias_voxels", "cv_voxels"):
            values = self.each(method, snr, "bias" if metric == "bias_voxels" else "cv_mean")[here]
            n = self.each(method, snr, "n")[here]
            known = np.isfinite(values)
            return Interval(float(np.average(values[known], weights=n[known])) if known.any() else nan, nan, nan)
        values = self.each(method, snr, "bias" if metric == "abs_bias" else metric)[here]
        if metric in _SIZES:
            sizes = np.abs(values)
            return around(_mean(sizes), sizes, positive=True)
        return over_draws(values)

    def test(self, first: str, second: str, snr: int, metric: str) -> Paired:
        """Paired t-test of two methods over the covered regions: `abs_bias`, or the logarithm of `cv` or `rmse`."""
        a, b = (
            self.each(name, snr, "bias" if metric == "abs_bias" else metric)[self.covered] for name in (first, second)
        )
        with np.errstate(divide="ignore"):
            return paired(*(np.abs(each) if metric == "abs_bias" else np.log(each) for each in (a, b)))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two methods."""
        return list(combinations(self.methods, 2))


# of each region in results.csv
REGION_METRICS = (
    *("mean", "bias", "bias_low", "bias_high", "cv", "cv_low", "cv_high", "cv_mean", "cv_rms"),
    *("cv_of_mean", "rmse", "sd", "failure_rate", "at_bound_rate"),
)
SUMMARY_METRICS = (
    *("abs_bias", "bias", "bias_voxels", "cv", "cv_voxels", "cv_of_mean", "rmse", "sd"),
    *("concordance", "slope", "failure_rate", "at_bound_rate"),
)
TESTED = ("abs_bias", "cv", "rmse")
COVERED = "covered"


def rows(found: Phantom) -> Iterator[Row]:
    """The long table: `tissue` is the region, or `covered` for all that are covered together.

    Of `all` draws, intervals of a region are over draws, those of `covered` over regions. `p_<metric>_against_<other>`
    is the paired t-test over regions; its ends are those of the mean difference (of logarithms for cv and rmse).
    """
    for i, (snr, sigma) in enumerate(zip(found.snrs, found.sigmas, strict=True)):

        def row(who: str, where: str, draw: int | str, metric: str, held: Interval | float, n: int) -> Row:
            held = held if isinstance(held, Interval) else Interval(held, nan, nan)
            return Row("phantom", who, where, found.parameter, snr, sigma, draw, metric, *_ends(held), n)  # noqa: B023

        for r, region in enumerate(found.regions):
            yield row("nominal", region.name, ALL, "mean", region.nominal, 1)
            yield row("nominal", region.name, ALL, "covered", float(region.covered), 1)
            for name in found.bounds[i, 0] if found.bounds else ():
                yield row(f"bound-{name}", region.name, ALL, "bound", float(found.bound(name, i)[r]), found.draws)
            for method in found.methods:
                each = [found.found[method, i, draw][r] for draw in range(found.draws)]
                for metric in REGION_METRICS:
                    values = found.values(method, i, metric)[:, r]
                    if not np.isfinite(values).any():
                        continue
                    if found.draws > 1:
                        for draw, value in enumerate(values):
                            yield row(method, region.name, draw, metric, float(value), each[draw].n)
                    yield row(method, region.name, ALL, metric, over_draws(values), sum(e.n for e in each))
                for c in range(found.repeats):
                    yield row(method, region.name, 0, f"mean_of_repeat_{c}", each[0].repeat_means[c], each[0].n)
        for method in found.methods:
            for metric in SUMMARY_METRICS:
                held = found.summary(method, i, metric)
                if np.isfinite(held.value):
                    yield row(method, COVERED, ALL, metric, held, len(found.covered))
        for first, second in found.pairs:
            for metric in TESTED:
                test = found.test(first, second, i, metric)
                if np.isfinite(test.p):
                    held = Interval(test.p, test.difference.low, test.difference.high)
                    yield row(first, COVERED, ALL, f"p_{metric}_against_{second}", held, test.n)


def _ends(held: Interval) -> tuple[float, float, float]:
    return held.value, held.low, held.high


def _mean(values: Float[np.ndarray, "*s"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else nan


def _quantile(values: Float[np.ndarray, " v"], at: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, at)) if known.size else nan


__all__ = [
    "COVERED",
    "REGION_METRICS",
    "SUMMARY_METRICS",
    "Paired",
    "Phantom",
    "Region",
    "RoiStatistics",
    "concordance",
    "paired",
    "roi_statistics",
    "rows",
]
