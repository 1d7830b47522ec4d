"""Test-retest statistics against published worked examples, closed forms, and Monte Carlo truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from qsim.evaluation.pages.test_retest_content import Retest
from qsim.evaluation.pages.test_retest_lead import _repeating
from qsim.evaluation.repeatability import (
    bland_altman,
    concordance,
    expected_cv,
    icc,
    voxel_cv,
    within_subject,
)
from qsim.evaluation.studies.test_retest_table import Found, Repeats, rows

# peak expiratory flow [l/min] of Bland and Altman 1986, doi:10.1016/S0140-6736(86)90837-8: two readings of two meters
WRIGHT = np.array(
    [
        [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427],
        [490, 397, 512, 401, 470, 611, 415, 431, 638, 429, 420, 633, 275, 492, 165, 372, 421],
    ],
    dtype=float,
)
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451], dtype=float)
# six targets, four judges: Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420, Table 2
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float).T


def test_bland_altman_of_the_published_example():
    found = bland_altman(MINI, WRIGHT[0])
    assert found.n == 17
    assert found.difference.value == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    assert (found.difference.low, found.difference.high) == pytest.approx((-22.0, 17.8), abs=0.06)
    # the paper takes 2 SD, here it is 1.96: half a litre; its SE sqrt(3 s^2 / n) is that of large n
    assert found.low.value == pytest.approx(-79.7, abs=1.7)
    assert found.high.value == pytest.approx(75.5, abs=1.7)
    assert found.high.high - found.high.low == pytest.approx(110.1 - 40.9, rel=0.01)


def test_within_subject_sd_of_the_published_example():
    # 15.3 l/min: Bland and Altman 1999, section 3; RC by definition
    found = within_subject(WRIGHT)
    assert found.sd.value == pytest.approx(15.3, abs=0.05)
    assert found.coefficient.value == pytest.approx(2.77 * 15.307, rel=1e-3)


def test_icc_of_the_published_example():
    found = icc(JUDGES)
    assert found.value == pytest.approx(0.29, abs=0.005)
    # the interval that R's psych and irr print of it
    assert (found.low, found.high) == pytest.approx((0.019, 0.761), abs=5e-4)


def test_trend_is_the_regression_of_scipy():
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 3, 40)
    b = 1.2 * a + 0.1 * rng.standard_normal(40)
    found, fit = bland_altman(a, b), stats.linregress((a + b) / 2, b - a)
    assert found.trend.value == pytest.approx(fit.slope, rel=1e-10)
    assert found.p_trend == pytest.approx(fit.pvalue, rel=1e-8)
    half = stats.t.ppf(0.975, 38) * fit.stderr
    assert found.trend.high - found.trend.value == pytest.approx(half, rel=1e-10)


def test_closed_forms():
    pair = np.array([[1.0, 2.0], [1.2, 2.0]])
    # SD of two values: |difference| / sqrt(2)
    assert voxel_cv(pair) == pytest.approx([100 * 0.2 / np.sqrt(2) / 1.1, 0.0], abs=1e-12)
    found = within_subject(pair)
    assert found.sd.value == pytest.approx(0.1, abs=1e-12)
    assert found.cv.value == pytest.approx(100 * 0.1 / 1.1, abs=1e-12)
    assert expected_cv(2) == pytest.approx(np.sqrt(2 / np.pi), abs=1e-12)
    assert expected_cv(2000) == pytest.approx(1, abs=2e-4)
    # an offset alone: perfectly consistent, not in agreement. Moments 1/n: 2 v / (2 v + shift^2)
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert concordance(a, a + 1).value == pytest.approx(2 * 1.25 / (2 * 1.25 + 1), abs=1e-12)
    assert concordance(a, 5 - a).value == pytest.approx(-1, abs=1e-12)
    assert icc(np.stack([a, a])).value == 1
    # one target with an SD, all others none: 1 / n of its variance
    one = np.tile(np.linspace(1, 2, 9), (2, 1))
    one[:, 3] = 1.0, 1.4
    assert within_subject(one).sd.value == pytest.approx(0.4 / np.sqrt(2) / 3, abs=1e-12)


def test_units_and_offsets():
    rng = np.random.default_rng(1)
    values = rng.uniform(0.8, 1.6, 25) + 0.05 * rng.standard_normal((3, 25))
    seconds, ms = within_subject(values), within_subject(1e3 * values)
    assert ms.sd.value == pytest.approx(1e3 * seconds.sd.value, rel=1e-10)
    assert ms.cv.value == pytest.approx(seconds.cv.value, rel=1e-10)
    assert ms.cv_log.value == pytest.approx(seconds.cv_log.value, rel=1e-9)
    assert icc(values + 1e6).value == pytest.approx(icc(values).value, rel=1e-6)


def test_values_that_are_missing_are_left_out_of_all_repeats():
    values = np.array([[1.0, np.nan, 2.0, 3.0, 4.5], [1.1, 5.0, 2.2, np.inf, 4.4]])
    found = within_subject(values)
    assert found.n == 3
    assert found.sd.value == within_subject(values[:, [0, 2, 4]]).sd.value
    assert np.isnan(voxel_cv(values)[[1, 3]]).all()
    assert bland_altman(values[0], values[1]).n == 3
    nothing = within_subject(np.full((2, 3), np.nan))
    assert nothing.n == 0
    assert np.isnan(nothing.sd.value)
    assert np.isnan(icc(np.full((2, 3), np.nan)).value)
    # a logarithm needs positive values
    assert np.isnan(within_subject(np.array([[1.0, -1.0], [1.1, -1.2]])).cv_log.value)
    # nor is there a CV of what is not positive: the target is not dropped, whatever its SD
    mixed = within_subject(np.array([[1.0, 2.0, -0.1], [1.1, 2.1, 0.1]]))
    assert mixed.n == 3
    assert np.isnan([mixed.cv.value, mixed.cv.low, mixed.cv.high]).all()
    assert mixed.sd.value == pytest.approx(np.sqrt((0.005 + 0.005 + 0.02) / 3), rel=1e-12)
    with pytest.raises(ValueError, match="at least two"):
        within_subject(values[:1])


@pytest.mark.parametrize(("repeats", "targets"), [(2, 40), (4, 25)])
def test_intervals_cover_the_truth(repeats, targets):
    rng = np.random.default_rng(repeats)
    trials, sd, between = 1000, 0.05, 0.3
    hits = dict.fromkeys(("sd", "cv", "icc", "limit", "difference", "concordance"), 0)
    mean = rng.uniform(0.9, 1.1, targets)
    true_cv = 100 * np.sqrt(np.mean((sd / mean) ** 2))
    for _ in range(trials):
        noise = sd * rng.standard_normal((repeats, targets))
        within = within_subject(mean + noise)
        hits["sd"] += within.sd.low < sd < within.sd.high
        hits["cv"] += within.cv.low < true_cv < within.cv.high
        values = 1 + between * rng.standard_normal(targets) + 4 * noise
        reliability = icc(values)
        hits["icc"] += reliability.low < between**2 / (between**2 + 16 * sd**2) < reliability.high
        pair = bland_altman(values[0], values[1])
        hits["limit"] += pair.high.low < 1.96 * np.sqrt(2) * 4 * sd < pair.high.high
        hits["difference"] += pair.difference.low < 0 < pair.difference.high
        lin = concordance(values[0], values[1])
        hits["concordance"] += lin.low < between**2 / (between**2 + 16 * sd**2) < lin.high
    for name, count in hits.items():
        # 95 %; the binomial SD of 1000 trials is 0.7 per cent. Limits and Lin's are of large n
        assert 0.93 < count / trials < 0.97, name


def test_unequal_variances_widen_the_interval():
    rng = np.random.default_rng(3)
    sd = 0.05 * np.exp(0.6 * rng.standard_normal(400))
    true = np.sqrt(np.mean(sd**2))
    hits = pooled = 0
    for _ in range(500):
        found = within_subject(1 + sd * rng.standard_normal((2, 400))).sd
        hits += found.low < true < found.high
        low, high = found.value * np.sqrt(400 / stats.chi2.ppf([0.975, 0.025], 400))
        pooled += low < true < high
    # the degrees of freedom are estimated themselves: 92 % where the variances spread over a factor of 60
    assert 0.90 < hits / 500 < 0.97
    # taking the variances as equal covers far less
    assert pooled / 500 < hits / 500 - 0.05


@pytest.mark.parametrize(("targets", "spread", "coverage"), [(10, 1.244, 0.87), (50, 1.244, 0.88), (400, 2.488, 0.83)])
def test_coverage_of_few_targets_and_wide_spread_is_as_stated(targets, spread, coverage):
    # SD of the logarithm of the variance: 1.244 is a factor of 60 from 5 to 95 %
    rng = np.random.default_rng(targets)
    hits = 0
    for _ in range(1000):
        variance = np.exp(spread * rng.standard_normal(targets))
        found = within_subject(10 + np.sqrt(variance) * rng.standard_normal((2, targets))).sd
        hits += found.low < np.sqrt(variance.mean()) < found.high
    # the binomial SD of 1000 trials is 1 per cent
    assert hits / 1000 == pytest.approx(coverage, abs=0.03)


def repeats(draw, values):
    everywhere = np.ones(values.shape[1], bool)
    return Repeats(draw, 10.0, 0.065, {"a": values}, {"all": everywhere}, everywhere[None], None, {})


def test_p_of_a_trend_over_draws_is_that_of_their_slopes():
    rng = np.random.default_rng(4)
    draws = []
    for draw in range(4):
        first = rng.uniform(1, 2, 60)
        draws.append(repeats(draw, np.stack([first, 1.02 * first + 0.05 * rng.standard_normal(60)])))
    slopes = [stats.linregress(d.maps["a"].mean(0), np.diff(d.maps["a"], axis=0)[0]).slope for d in draws]
    found = {r.metric: r for r in rows("test_retest", "T1", draws, "a") if r.draw == "all"}["difference_trend_p"]
    assert found.value == pytest.approx(stats.ttest_1samp(slopes, 0).pvalue, rel=1e-8)
    assert np.isnan([found.low, found.high]).all()
    # draws that do not differ have no spread to test against
    same = [repeats(draw, draws[0].maps["a"]) for draw in range(3)]
    found = {r.metric: r for r in rows("test_retest", "T1", same, "a") if r.draw == "all"}["difference_trend_p"]
    assert np.isnan(found.value)


def test_a_method_of_negative_times_is_named_and_not_ranked():
    values = np.array([[1.0, 2.0, -0.1], [1.1, 2.1, 0.05]])
    given = repeats(0, values)
    given = replace(given, maps={"a": values, "b": np.abs(values)})
    table = Found(list(rows("test_retest", "T1", [given], "a")))
    about = Retest("T1", "T_1", ["a", "b"], (), "a", 2, [given], table, [], ("wm", "gm"), "", {})
    said = str(_repeating(about, 10.0))
    assert "of <b>b</b>" in said
    assert "not positive: a." in said
    assert "No value" not in said
