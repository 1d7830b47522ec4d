"""Relative bias, CV and RMSE over repeats, their summaries over a region, and intervals over draws.

Everything is float64 numpy. An estimate that is not finite is left out of the moments of its voxel and counted, so
that every figure comes with the number of voxels behind it.
"""

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

PERCENTILES = (5, 25, 50, 75, 95)


class VoxelMoments:
    """Running moments of the estimates of every voxel, over repeats of the noise.

    Welford's update: one pass, memory of four maps whatever the number of repeats, no cancellation.

    Attributes:
        truth: true maps [SI].
        n: repeats whose estimate is finite.
        mean: mean of those estimates [SI].
    Source: Welford 1962, doi:10.1080/00401706.1962.10490022.
    """

    def __init__(self, truth: Float[np.ndarray, "q v"]) -> None:
        self.truth = truth.astype(np.float64)
        self.n: Int[np.ndarray, "q v"] = np.zeros(truth.shape, dtype=np.int64)
        self.mean: Float[np.ndarray, "q v"] = np.zeros(truth.shape)
        self._square_deviation = np.zeros(truth.shape)
        self._mean_square_error = np.zeros(truth.shape)

    def add(self, estimate: Float[np.ndarray, "q v"]) -> None:
        """Take in the estimate of one repeat [SI]."""
        estimate = estimate.astype(np.float64)
        finite = np.isfinite(estimate)
        self.n += finite
        weight = finite / np.maximum(self.n, 1)
        step = np.where(finite, estimate - self.mean, 0.0)
        self.mean += weight * step
        self._square_deviation += step * np.where(finite, estimate - self.mean, 0.0)
        square_error = np.where(finite, (estimate - self.truth) ** 2, 0.0)
        self._mean_square_error += weight * (square_error - self._mean_square_error)

    @property
    def bias(self) -> Float[np.ndarray, "q v"]:
        """Relative bias [%], NaN without a finite estimate or where the truth is 0.

            100 mean_c((est_c - truth) / truth)

        Source: sabidussi2021 Eq. 7.
        """
        return np.where(self.n > 0, 100 * _over(self.mean - self.truth, self.truth), nan)

    @property
    def cv(self) -> Float[np.ndarray, "q v"]:
        """Coefficient of variation [%], NaN with fewer than two finite estimates.

            100 SD_c(est_c) / |mean_c(est_c)|,   SD with C - 1 in the denominator

        Source: sabidussi2021 Eq. 8.
        """
        sd = np.sqrt(self._square_deviation / np.maximum(self.n - 1, 1))
        return np.where(self.n > 1, 100 * _over(sd, np.abs(self.mean)), nan)

    @property
    def rmse(self) -> Float[np.ndarray, "q v"]:
        """Relative root mean square error [%], NaN without a finite estimate or where the truth is 0.

        100 sqrt(mean_c(((est_c - truth) / truth)^2))
        """
        return np.where(self.n > 0, 100 * _over(np.sqrt(self._mean_square_error), np.abs(self.truth)), nan)


def _over(above: Float[np.ndarray, "*s"], below: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Ratio, NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full_like(above, nan), where=below != 0)


@dataclass(frozen=True, slots=True)
class Summary:
    """One voxel metric over a region, in the unit of the metric.

    Attributes:
        n: voxels with a value; the statistics are those of these voxels, NaN if there are none.
        mean, rms, p5, p25, median, p75, p95: of these voxels; rms is the root of the mean square.
    """

    n: int
    mean: float
    rms: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float


def summarise(values: Float[np.ndarray, " v"]) -> Summary:
    """Statistics of the voxels of a region; those that are NaN are left out of `n`.

    An infinite value counts as the largest: the bound of a voxel that the series cannot identify.
    """
    known = values[~np.isnan(values)].astype(np.float64)
    if not known.size:
        return Summary(0, nan, nan, nan, nan, nan, nan, nan)
    known.sort()
    # linear between order statistics, as np.percentile, whose own overhead would be most of a study's table
    places = np.array(PERCENTILES) / 100 * (known.size - 1)
    below, above = known[np.floor(places).astype(int)], known[np.ceil(places).astype(int)]
    # inf - inf is NaN; between equal neighbours there is nothing to interpolate
    step = np.subtract(above, below, out=np.zeros_like(below), where=above != below)
    p5, p25, median, p75, p95 = (float(p) for p in below + step * np.where(step == 0, 0, places % 1))
    rms = float(np.sqrt(np.mean(known**2)))
    return Summary(int(known.size), float(known.mean()), rms, p5, p25, median, p75, p95)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval over draws; the ends are NaN with fewer than two draws."""

    value: float
    low: float
    high: float


def half_width(per_draw: Float[np.ndarray, " d"]) -> float:
    """Half of the 95 % t-interval of the mean over draws; NaN with fewer than two finite draws.

    t(0.975, D - 1) SD / sqrt(D)
    """
    finite = per_draw[np.isfinite(per_draw)]
    if finite.size < 2:
        return nan
    return float(stdtrit(finite.size - 1, 0.975) * finite.std(ddof=1) / sqrt(finite.size))


def around(value: float, per_draw: Float[np.ndarray, " d"], *, positive: bool) -> Interval:
    """A statistic of all voxels together, with an interval from how much the draws' own statistics differ.

    Args:
        value: of the voxels of all draws.
        per_draw: the same statistic of each draw.
        positive: of an error size (RMSE, CV, a ratio): the interval is that of the logarithm, value / f to value f with
            f = exp(half_width(log x)); it has no ends if a draw's statistic is 0 or infinite. Else value +- half_width.
    """
    if not positive:
        width = half_width(per_draw)
        return Interval(value, value - width, value + width)
    known = per_draw[~np.isnan(per_draw)]
    if not ((known > 0) & np.isfinite(known)).all():
        return Interval(value, nan, nan)
    factor = float(np.exp(half_width(np.log(known))))
    return Interval(value, value / factor, value * factor)


def over_draws(per_draw: Float[np.ndarray, " d"]) -> Interval:
    """Mean over draws with its t-interval; draws without a value are left out."""
    finite = per_draw[np.isfinite(per_draw)]
    value = float(finite.mean()) if finite.size else nan
    width = half_width(per_draw)
    return Interval(value, value - width, value + width)


def ratio_over_draws(per_draw: Float[np.ndarray, " d"]) -> Interval:
    """Geometric mean of ratios over draws with the t-interval of their logarithms; ratios of 0 have none."""
    finite = per_draw[np.isfinite(per_draw) & (per_draw > 0)]
    if not finite.size:
        return Interval(nan, nan, nan)
    log = over_draws(np.log(finite))
    return Interval(float(np.exp(log.value)), float(np.exp(log.low)), float(np.exp(log.high)))


def slope(estimate: Float[np.ndarray, " v"], truth: Float[np.ndarray, " v"]) -> float:
    """Ordinary least-squares slope of the estimate on the truth; NaN where the truth does not vary.

        sum (x - mean x) (y - mean y) / sum (x - mean x)^2

    The truth is exact, so there are no errors in the variable on the right and the slope is not attenuated; noise of
    the estimate adds variance and no bias. A method that paints the mean of a tissue has slope 0.
    """
    finite = np.isfinite(estimate) & np.isfinite(truth)
    x, y = truth[finite], estimate[finite]
    if x.size < 3:
        return nan
    x = x - x.mean()
    spread = float(np.sum(x**2))
    # rounding of a constant map leaves a spread of about 1e-14 of its square
    if spread <= 1e-10 * x.size * float(np.mean(truth[finite] ** 2)):
        return nan
    return float(np.sum(x * (y - y.mean())) / spread)


def slope_between_draws(estimate: Float[np.ndarray, " d"], truth: Float[np.ndarray, " d"]) -> Interval:
    """Slope of the draws' mean estimate on their mean truth, with the t-interval of a regression.

    NaN with fewer than three draws, or where the truth is the same in all of them.
    """
    value = slope(estimate, truth)
    finite = np.isfinite(estimate) & np.isfinite(truth)
    x, y = truth[finite], estimate[finite]
    if x.size < 3 or np.isnan(value):
        return Interval(value, nan, nan)
    x = x - x.mean()
    residual = y - y.mean() - value * x
    sd = sqrt(float(np.sum(residual**2)) / (x.size - 2) / float(np.sum(x**2)))
    width = float(stdtrit(x.size - 2, 0.975)) * sd
    return Interval(value, value - width, value + width)


def share(event: Int[np.ndarray, " v"] | Bool[np.ndarray, " v"], of: int) -> float:
    """Share of events in `of` trials per voxel [%]; NaN without a voxel."""
    return 100 * float(np.sum(event)) / (of * event.size) if event.size else nan
