"""Test-retest statistics: what C repeats of one measurement, made of the same V targets, differ by.

Targets are voxels or regions; `values` holds repeats along its first axis. With the variance s_v^2 of target v over its
repeats (C - 1 in the denominator) and its mean m_v:

    wSD^2 = mean_v s_v^2            within-subject SD
    RC    = 1.96 sqrt(2) wSD        repeatability coefficient: 95 % of pairs of repeats differ by less
    wCV   = sqrt(mean_v (s_v / m_v)^2)                    root-mean-square form
    wCV   = sqrt(exp(mean_v var_c(ln value)) - 1)         logarithmic form, of a log-normal

Intervals take the targets as independent. Neighbouring voxels are not where an estimator, a network or a readout mixes
them, and then the intervals are too narrow: studies with several draws give those over draws beside them. A target with
a value that is not finite in any repeat is left out, and n counts those that stay.
Source: Bland and Altman 1996, doi:10.1136/bmj.312.7047.1654; 1999, doi:10.1177/096228029900800204.
"""

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from jaxtyping import Float
from scipy.special import chdtri, fdtri, stdtr, stdtrit

from qsim.evaluation.metrics import Interval

_HIGH = 0.975
# half the width of a 95 % range of a normal, as its source rounds it
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Within:
    """Spread of the repeats of one target.

    Attributes:
        n: targets with a value in every repeat.
        sd: within-subject SD [unit of the values].
        coefficient: repeatability coefficient [unit of the values].
        cv: within-subject CV, root-mean-square form; NaN if the mean of a target is not positive [%].
        cv_log: the logarithmic form; NaN if a value is not positive [%].
    """

    n: int
    sd: Interval
    coefficient: Interval
    cv: Interval
    cv_log: Interval


@dataclass(frozen=True, slots=True)
class Agreement:
    """Bland and Altman's figures of the differences b - a of pairs.

    Attributes:
        n: pairs.
        difference: their mean [unit of the values].
        sd: their SD [unit of the values].
        low, high: limits of agreement, difference -+ 1.96 sd [unit of the values].
        trend: slope of the difference on the mean of the pair; 0 if the differences do not depend on size [1].
        p_trend: two-sided p of that slope.
    """

    n: int
    difference: Interval
    sd: float
    low: Interval
    high: Interval
    trend: Interval
    p_trend: float


def complete(values: Float[np.ndarray, "c v"]) -> Float[np.ndarray, "c k"]:
    """The targets that have a finite value in every repeat, in double precision."""
    values = values.astype(np.float64)
    return values[:, np.isfinite(values).all(0)]


def voxel_cv(values: Float[np.ndarray, "c v"]) -> Float[np.ndarray, " v"]:
    """Coefficient of variation of every target [%], NaN where a repeat has no value or the mean is 0.

        100 SD_c(value) / |mean_c(value)|,   SD with C - 1 in the denominator

    Source: sabidussi2021 Eq. 8.
    """
    _two_repeats(values)
    values = np.where(np.isfinite(values).all(0), values.astype(np.float64), nan)
    mean = values.mean(0)
    sd = values.std(0, ddof=1)
    return 100 * np.divide(sd, np.abs(mean), out=np.full(mean.shape, nan), where=mean != 0)


def expected_cv(repeats: int) -> float:
    """Mean of the SD of C Gaussian repeats over their true SD: what a mean CV over voxels reads low by.

        sqrt(2 / (C - 1)) Gamma(C / 2) / Gamma((C - 1) / 2)

    0.80 for two repeats. The within-subject CV has no such factor: squares are averaged.
    """
    from math import exp, lgamma

    return sqrt(2 / (repeats - 1)) * exp(lgamma(repeats / 2) - lgamma((repeats - 1) / 2))


def within_subject(values: Float[np.ndarray, "c v"]) -> Within:
    """Within-subject SD and CV and the repeatability coefficient, with chi-square intervals.

    The degrees of freedom of a mean of variances that need not be equal are Satterthwaite's, at most V (C - 1):

        nu = (C + 1) (sum s_v^2)^2 / sum s_v^4

    as sum s_v^4 is (C + 1) / (C - 1) times the sum of the true sigma_v^4 on average. Coverage: 95 % where the variances
    are equal. Where they spread over a factor of 60 (5 to 95 % of a log-normal; C = 2) it falls with fewer targets:
    92 % of 400 (66 % if taken as equal), 88 % of 50, 87 % of 10; of 400 whose logarithms spread twice as far 83 %.
    One set of variances may do better or worse by some 5 points.

    A CV is of values that are positive, as relaxation times are: a target whose mean is not has none, one whose mean is
    near 0 would be all of the wCV. So the wCV is NaN if any mean is not positive; no target is dropped from it alone.
    Source: Satterthwaite 1946, doi:10.2307/3002019.
    """
    _two_repeats(values)
    known = complete(values)
    n = known.shape[1]
    mean, variance = known.mean(0), known.var(0, ddof=1)
    sd = _root_mean(variance, len(known))
    coefficient = Interval(*(_Z * sqrt(2) * each for each in (sd.value, sd.low, sd.high)))
    cv = _root_mean(variance / mean**2, len(known)) if (mean > 0).all() else Interval(nan, nan, nan)
    cv_log = Interval(nan, nan, nan)
    if n and (known > 0).all():
        log = _root_mean(np.log(known).var(0, ddof=1), len(known))
        cv_log = Interval(*(100 * float(np.sqrt(np.expm1(each**2))) for each in (log.value, log.low, log.high)))
    return Within(n, sd, coefficient, Interval(100 * cv.value, 100 * cv.low, 100 * cv.high), cv_log)


def bland_altman(a: Float[np.ndarray, " v"], b: Float[np.ndarray, " v"]) -> Agreement:
    """Differences b - a of pairs: their mean, limits of agreement, and whether they grow with size.

        limits = d -+ 1.96 s,   their SE^2 = s^2 (1 / n + 1.96^2 / (2 (n - 1)))

    Intervals are those of t with n - 1 degrees of freedom. The trend is the least-squares slope of b - a on
    (a + b) / 2; noise alone gives it a slope where a and b have different variances, never where b repeats a.
    Source: Bland and Altman 1986, doi:10.1016/S0140-6736(86)90837-8; 1999, doi:10.1177/096228029900800204, section 2.2.
    """
    a, b = complete(np.stack([a, b]))
    n = a.size
    none = Interval(nan, nan, nan)
    if n < 3:
        value = float(np.mean(b - a)) if n else nan
        return Agreement(n, Interval(value, nan, nan), nan, none, none, none, nan)
    difference, size = b - a, (a + b) / 2
    mean, sd = float(difference.mean()), float(difference.std(ddof=1))
    t = float(stdtrit(n - 1, _HIGH))
    limit = sd * sqrt(1 / n + _Z**2 / (2 * (n - 1)))
    low, high = (Interval(end, end - t * limit, end + t * limit) for end in (mean - _Z * sd, mean + _Z * sd))
    about = Interval(mean, mean - t * sd / sqrt(n), mean + t * sd / sqrt(n))
    return Agreement(n, about, sd, low, high, *_trend(size, difference))


def icc(values: Float[np.ndarray, "c v"]) -> Interval:
    """Intraclass correlation ICC(A,1): two-way random effects, absolute agreement, a single repeat [1].

        (MSR - MSE) / (MSR + (k - 1) MSE + k / n (MSC - MSE))

    with the mean squares of targets (R), repeats (C) and residual (E) of n targets and k repeats. It says how much of
    the variance is that of the targets: within a tissue whose true values hardly differ it is small whatever the
    repeatability. NaN with fewer than two targets.
    Source: McGraw and Wong 1996, doi:10.1037/1082-989X.1.1.30, Tables 4 and 7; ICC(2,1) of Shrout and Fleiss 1979,
    doi:10.1037/0033-2909.86.2.420.
    """
    _two_repeats(values)
    known = complete(values)
    k, n = known.shape
    if n < 2:
        return Interval(nan, nan, nan)
    # a common offset changes no mean square, and costs digits
    known = known - known.mean()
    by_target, by_repeat = known.mean(0), known.mean(1)
    msr = k * float(np.sum(by_target**2)) / (n - 1)
    msc = n * float(np.sum(by_repeat**2)) / (k - 1)
    mse = float(np.sum((known - by_target - by_repeat[:, None]) ** 2)) / ((n - 1) * (k - 1))
    below = msr + (k - 1) * mse + k / n * (msc - mse)
    if below <= 0 or msr <= 0:
        return Interval(nan, nan, nan)
    rho = (msr - mse) / below
    if mse == 0 and msc == 0:
        return Interval(rho, rho, rho)
    rest = k * msc + (k * n - k - n) * mse
    # a / b of Table 7 without its 1 - rho, which both have
    a, b = k * rho / n, (1 - rho) + k * rho * (n - 1) / n
    if (a * msc) ** 2 + (b * mse) ** 2 == 0:
        return Interval(rho, nan, nan)
    df = (a * msc + b * mse) ** 2 / ((a * msc) ** 2 / (k - 1) + (b * mse) ** 2 / ((n - 1) * (k - 1)))
    under, over = float(fdtri(n - 1, df, _HIGH)), float(fdtri(df, n - 1, _HIGH))
    low = n * (msr - under * mse) / (under * rest + n * msr)
    high = n * (over * msr - mse) / (rest + n * over * msr)
    return Interval(rho, low, high)


def concordance(a: Float[np.ndarray, " v"], b: Float[np.ndarray, " v"]) -> Interval:
    """Lin's concordance: correlation with the identity line, 1 only if b equals a [1].

        2 s_ab / (s_a^2 + s_b^2 + (mean a - mean b)^2),   moments with n in the denominator

    Interval by Fisher's z, with the erratum's variance; NaN with fewer than four pairs or without spread.
    Source: Lin 1989, doi:10.2307/2532051.
    """
    a, b = complete(np.stack([a, b]))
    n = a.size
    if n < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(nan, nan, nan)
    sa, sb = float(a.var()), float(b.var())
    covariance = float(np.mean((a - a.mean()) * (b - b.mean())))
    shift = float(a.mean() - b.mean()) ** 2
    value = 2 * covariance / (sa + sb + shift)
    r = covariance / sqrt(sa * sb)
    if n < 4 or r == 0 or abs(value) >= 1:
        return Interval(value, nan, nan)
    u = shift / sqrt(sa * sb)
    # of z = artanh(value)
    variance = (
        (1 - r**2) * value**2 / ((1 - value**2) * r**2)
        + 2 * value**3 * (1 - value) * u / (r * (1 - value**2) ** 2)
        - value**4 * u**2 / (2 * r**2 * (1 - value**2) ** 2)
    ) / (n - 2)
    half = _Z * sqrt(max(variance, 0.0))
    z = float(np.arctanh(value))
    return Interval(value, float(np.tanh(z - half)), float(np.tanh(z + half)))


def _two_repeats(values: Float[np.ndarray, "c v"]) -> None:
    if len(values) < 2:
        raise ValueError(f"values: {len(values)} repeat; repeatability needs at least two")


def _root_mean(variance: Float[np.ndarray, " v"], repeats: int) -> Interval:
    """Root of the mean of variances of C - 1 degrees of freedom each, with its chi-square interval."""
    n = variance.size
    if n == 0:
        return Interval(nan, nan, nan)
    mean = float(variance.mean())
    if mean == 0:
        return Interval(0.0, 0.0, 0.0)
    scaled = variance / mean
    df = min(n * (repeats - 1), (repeats + 1) * n**2 / float(np.sum(scaled**2)))
    # chdtri is the quantile of the upper tail
    low, high = sqrt(df / float(chdtri(df, 1 - _HIGH))), sqrt(df / float(chdtri(df, _HIGH)))
    return Interval(sqrt(mean), sqrt(mean) * low, sqrt(mean) * high)


def _trend(x: Float[np.ndarray, " v"], y: Float[np.ndarray, " v"]) -> tuple[Interval, float]:
    """Least-squares slope of y on x with its t-interval and two-sided p; NaN where x does not vary."""
    x = x - x.mean()
    spread = float(np.sum(x**2))
    if spread == 0:
        return Interval(nan, nan, nan), nan
    value = float(np.sum(x * (y - y.mean()))) / spread
    residual = y - y.mean() - value * x
    df = x.size - 2
    se = sqrt(float(np.sum(residual**2)) / df / spread)
    width = float(stdtrit(df, _HIGH)) * se
    p = 2 * float(stdtr(df, -abs(value) / se)) if se > 0 else (1.0 if value == 0 else 0.0)
    return Interval(value, value - width, value + width), p
