"""Metrics against plain numpy and scipy."""

import numpy as np
import pytest
from scipy import stats

from qsim.evaluation.metrics import (
    VoxelMoments,
    around,
    half_width,
    over_draws,
    ratio_over_draws,
    share,
    slope,
    slope_between_draws,
    summarise,
)


@pytest.fixture
def estimates():
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.5, 3.0, (2, 7))
    return truth, truth * (1 + 0.1 * rng.standard_normal((11, 2, 7)) + 0.02)


def test_moments_equal_the_definitions(estimates):
    truth, repeats = estimates
    moments = VoxelMoments(truth)
    for estimate in repeats:
        moments.add(estimate)
    relative = (repeats - truth) / truth
    np.testing.assert_allclose(moments.bias, 100 * relative.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.cv, 100 * stats.variation(repeats, axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(moments.rmse, 100 * np.sqrt(np.mean(relative**2, axis=0)), rtol=1e-12)


def test_rmse_is_bias_and_spread_together(estimates):
    truth, repeats = estimates
    moments = VoxelMoments(truth)
    for estimate in repeats:
        moments.add(estimate)
    spread = moments.cv / 100 * np.abs(moments.mean) / truth * 100
    c = len(repeats)
    np.testing.assert_allclose(moments.rmse**2, moments.bias**2 + spread**2 * (c - 1) / c, rtol=1e-10)


def test_an_estimate_that_is_not_finite_is_left_out_and_counted(estimates):
    truth, repeats = estimates
    repeats = repeats.copy()
    repeats[3, 0, 2] = np.nan
    repeats[5, 0, 2] = np.inf
    repeats[:, 1, 4] = np.nan
    repeats[1:, 1, 5] = np.nan
    moments = VoxelMoments(truth)
    for estimate in repeats:
        moments.add(estimate)
    kept = np.delete(repeats[:, 0, 2], [3, 5])
    assert moments.n[0, 2] == 9
    assert moments.bias[0, 2] == pytest.approx(100 * np.mean(kept / truth[0, 2] - 1))
    assert moments.cv[0, 2] == pytest.approx(100 * stats.variation(kept, ddof=1))
    assert moments.rmse[0, 2] == pytest.approx(100 * np.sqrt(np.mean((kept / truth[0, 2] - 1) ** 2)))
    assert moments.n[1, 4] == 0
    assert np.isnan([moments.bias[1, 4], moments.cv[1, 4], moments.rmse[1, 4]]).all()
    # one repeat has an error and no spread
    assert moments.n[1, 5] == 1
    assert np.isnan(moments.cv[1, 5])
    assert np.isfinite(moments.rmse[1, 5])


def test_one_pass_does_not_cancel():
    offset, spread = 1e6, 1e-3
    repeats = offset + spread * np.random.default_rng(0).standard_normal((500, 1, 3))
    moments = VoxelMoments(np.full((1, 3), offset))
    for estimate in repeats:
        moments.add(estimate)
    np.testing.assert_allclose(moments.cv, 100 * stats.variation(repeats, axis=0, ddof=1), rtol=1e-6)


def test_a_truth_of_zero_has_no_relative_error():
    moments = VoxelMoments(np.array([[0.0, 2.0]]))
    moments.add(np.array([[1.0, 3.0]]))
    np.testing.assert_array_equal(moments.bias, [[np.nan, 50.0]])
    np.testing.assert_array_equal(moments.rmse, [[np.nan, 50.0]])


def test_summary_counts_and_quantiles():
    values = np.r_[np.random.default_rng(1).gamma(2.0, size=101), np.nan]
    summary = summarise(values)
    assert summary.n == 101
    assert summary.median == pytest.approx(np.median(values[:101]))
    assert (summary.p5, summary.p25, summary.p75, summary.p95) == pytest.approx(
        tuple(stats.scoreatpercentile(values[:101], p) for p in (5, 25, 75, 95))
    )
    assert summarise(np.array([np.nan])).n == 0
    assert np.isnan(summarise(np.array([])).median)


def test_infinite_values_count_as_the_largest():
    summary = summarise(np.array([2.0, np.inf, 1.0, np.nan, np.inf]))
    assert (summary.n, summary.median, summary.p95, summary.mean) == (4, np.inf, np.inf, np.inf)
    assert summarise(np.array([1.0, 2.0, 3.0, np.inf])).median == 2.5
    assert summarise(np.full(3, np.inf)).p5 == np.inf
    ends = around(2.0, np.array([1.0, 2.0, np.inf]), positive=True)
    assert np.isnan([ends.low, ends.high]).all()


def test_interval_over_draws_is_the_t_interval():
    draws = np.array([3.1, 2.7, 3.9, 3.3, 2.2, 3.6])
    low, high = stats.t.interval(0.95, 5, loc=draws.mean(), scale=stats.sem(draws))
    interval = over_draws(draws)
    assert (interval.value, interval.low, interval.high) == pytest.approx((draws.mean(), low, high))
    assert half_width(draws) == pytest.approx((high - low) / 2)
    assert over_draws(np.r_[draws, np.nan]) == interval
    assert np.isnan(half_width(np.array([1.0])))


def test_interval_of_an_error_size_is_multiplicative():
    draws = np.array([3.1, 2.7, 3.9, 3.3, 2.2, 3.6])
    low, high = stats.t.interval(0.95, 5, loc=np.log(draws).mean(), scale=stats.sem(np.log(draws)))
    interval = around(3.0, draws, positive=True)
    assert interval.value == 3.0
    assert interval.high / interval.low == pytest.approx(np.exp(high - low))
    assert interval.high / 3.0 == pytest.approx(3.0 / interval.low)
    plain = around(3.0, draws, positive=False)
    assert plain.high - plain.low == pytest.approx(2 * half_width(draws))
    # a spread of 0 in one draw has no logarithm
    assert np.isnan(around(0.0, np.array([0.0, 1.0, 2.0]), positive=True).low)


def test_interval_over_draws_covers():
    rng = np.random.default_rng(5)
    hits = [abs(over_draws(d).value) <= half_width(d) for d in rng.standard_normal((4000, 6))]
    # 95 % of 4000: SD .34 %
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_ratio_is_the_geometric_mean():
    ratios = np.array([0.5, 0.8, 1.3, 0.9, 0.7, 1.1])
    interval = ratio_over_draws(ratios)
    inverse = ratio_over_draws(1 / ratios)
    assert interval.value == pytest.approx(stats.gmean(ratios))
    # swapping the methods swaps the ends: a t-interval of the ratios themselves would not
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((interval.low, interval.high))


def test_slope_is_that_of_linear_regression():
    rng = np.random.default_rng(7)
    truth = rng.normal(1.4, 0.07, 300)
    estimate = 0.3 + 0.6 * truth + rng.normal(0, 0.2, 300)
    assert slope(estimate, truth) == pytest.approx(stats.linregress(truth, estimate).slope, rel=1e-10)
    assert slope(np.r_[estimate, np.nan], np.r_[truth, 1.0]) == pytest.approx(slope(estimate, truth))
    assert slope(np.full(300, 1.4), truth) == pytest.approx(0, abs=1e-15)
    assert np.isnan(slope(estimate, np.full(300, np.float32(1.84)).astype(float)))
    assert np.isnan(slope(estimate[:2], truth[:2]))


def test_noise_of_the_estimate_does_not_attenuate_the_slope():
    rng = np.random.default_rng(8)
    truth = rng.normal(1.4, 0.07, 2000)
    slopes = [slope(truth + rng.normal(0, 0.3, 2000), truth) for _ in range(200)]
    # SD of one slope .3 / (.07 sqrt(2000)) = .096
    assert np.mean(slopes) == pytest.approx(1.0, abs=4 * 0.096 / np.sqrt(200))


def test_slope_between_draws_has_the_interval_of_a_regression():
    truth = np.array([1.1, 1.5, 0.9, 1.9, 1.3, 1.6])
    estimate = 0.2 + 0.85 * truth + np.array([0.02, -0.03, 0.01, 0.02, -0.01, 0.0])
    fit = stats.linregress(truth, estimate)
    width = stats.t.ppf(0.975, 4) * fit.stderr
    interval = slope_between_draws(estimate, truth)
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (fit.slope, fit.slope - width, fit.slope + width)
    )
    assert np.isnan(slope_between_draws(estimate[:2], truth[:2]).value)


def test_share_counts_voxels_and_repeats():
    assert share(np.array([0, 2, 4]), of=4) == 50.0
    assert np.isnan(share(np.array([], dtype=int), of=4))
