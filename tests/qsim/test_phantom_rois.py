"""Statistics of regions against numbers made by hand, closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats

from qsim.estimators.base import Status
from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.phantom_page import _figure, _held
from qsim.evaluation.studies.phantom_rois import (
    Phantom,
    Region,
    concordance,
    paired,
    roi_statistics,
    rows,
)
from qsim.evaluation.table import csv_text


def statistics(estimates, nominal=1.0, status=None):
    estimates = np.asarray(estimates, dtype=np.float32)
    given = np.zeros(estimates.shape, dtype=np.uint8) if status is None else np.asarray(status, dtype=np.uint8)
    return roi_statistics(estimates, given, nominal)


def test_a_constant_offset_is_the_bias():
    found = statistics(np.full((4, 7), 0.515), nominal=0.5)
    # float32 holds 0.515 to 6e-8
    assert found.bias == pytest.approx(3.0, abs=2e-5)
    assert found.bias_low == pytest.approx(3.0, abs=2e-5)
    assert found.rmse == pytest.approx(3.0, abs=2e-5)
    assert found.cv == 0
    assert found.sd == 0
    assert found.n == 7


def test_repeats_of_known_sd_give_the_cv():
    """Voxels at 1 and 2 with repeats +-10 % and +-20 %: SD with C - 1 of (-d, d) is d sqrt(2)."""
    found = statistics([[0.9, 1.6], [1.1, 2.4]], nominal=1.5)
    cv = 100 * np.sqrt(2) * np.array([0.1, 0.2])
    assert found.cv == pytest.approx(cv.mean(), rel=1e-6)
    assert found.cv_low == pytest.approx(cv[0] + 0.25 * (cv[1] - cv[0]), rel=1e-6)
    assert found.cv_mean == pytest.approx(cv.mean(), rel=1e-6)
    assert found.cv_rms == pytest.approx(np.sqrt((cv**2).mean()), rel=1e-6)
    assert found.bias == pytest.approx(0, abs=1e-5)
    assert found.repeat_means == pytest.approx((1.25, 1.75))
    assert found.cv_of_mean == pytest.approx(100 * 0.25 * np.sqrt(2) / 1.5, rel=1e-6)
    assert found.sd == pytest.approx(100 * (0.7 / np.sqrt(2) + 1.3 / np.sqrt(2)) / 2 / 1.5, rel=1e-6)
    assert found.rmse == pytest.approx(100 * np.sqrt((0.6**2 + 0.1**2 + 0.4**2 + 0.9**2) / 4) / 1.5, rel=1e-6)


def test_one_scan_has_no_cv():
    found = statistics([[0.9, 1.1, 1.3]])
    assert np.isnan([found.cv, found.cv_mean, found.cv_rms, found.cv_of_mean]).all()
    assert found.bias == pytest.approx(10, abs=1e-5)


def test_failures_and_bounds_are_counted():
    status = [[Status.OK, Status.AT_BOUND, Status.NOT_CONVERGED, Status.OK]] * 2
    found = statistics([[1.0, 1.0, 1.0, np.nan], [1.0, 1.0, 1.0, 1.0]], status=status)
    assert found.failure_rate == pytest.approx(100 * 3 / 8)
    assert found.at_bound_rate == pytest.approx(100 * 2 / 8)
    assert found.mean == 1.0


def test_nothing_estimated_has_no_value():
    found = statistics(np.full((3, 2), np.nan), status=np.full((3, 2), int(Status.NOT_COMPUTED)))
    assert np.isnan([found.mean, found.bias, found.cv, found.rmse]).all()
    assert found.failure_rate == 100


def test_the_concordance_of_lin():
    """Against the written-out definition, and its known ends."""
    x = np.array([0.2, 0.5, 0.9, 1.4, 2.0])
    assert concordance(x, x) == pytest.approx(1, abs=1e-15)
    # a shift by d alone: 2 s^2 / (2 s^2 + d^2)
    assert concordance(x + 0.3, x) == pytest.approx(2 * x.var() / (2 * x.var() + 0.09), abs=1e-15)
    # a factor: Pearson's coefficient is 1, concordance is not
    y = 1.5 * x
    expected = 2 * 1.5 * x.var() / (3.25 * x.var() + (0.5 * x.mean()) ** 2)
    assert concordance(y, x) == pytest.approx(expected, abs=1e-15)
    assert np.isnan(concordance(x[:1], x[:1]))


def test_the_paired_test_is_that_of_scipy():
    generator = np.random.default_rng(8)
    a, b = generator.normal(size=(2, 9))
    found = paired(a + 0.4, b)
    expected = scipy.stats.ttest_rel(a + 0.4, b)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    interval = expected.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert np.isnan(paired(a, a).p)


def test_differences_that_are_all_the_same_have_no_test():
    cv = np.random.default_rng(2).uniform(0.5, 4, 11)
    found = paired(np.log(1.1 * cv), np.log(cv))
    assert found.difference.value == pytest.approx(np.log(1.1), rel=1e-12)
    assert np.isnan([found.p, found.difference.low, found.difference.high]).all()
    assert found.n == 11
    # with a spread that is more than rounding there is one
    assert paired(np.log(1.1 * cv * (1 + 1e-6 * np.arange(11))), np.log(cv)).p < 1e-20


def study(**changes):
    """Two methods, three regions of which two are covered, two draws of two repeats."""
    regions = [Region(1, "one", 0.5, True), Region(2, "two", 1.0, True), Region(3, "three", 2.0, False)]
    off = {"exact": [0.0, 0.0, 0.0], "off": [0.02, -0.06, 1.0]}
    found = {
        (method, 0, draw): [
            statistics(
                np.array([[1 - 0.01 * (1 + draw)] * 4, [1 + 0.01 * (1 + draw)] * 4]) * r.nominal * (1 + offset),
                r.nominal,
            )
            for r, offset in zip(regions, offsets, strict=True)
        ]
        for method, offsets in off.items()
        for draw in (0, 1)
    }
    given = {
        "parameter": "T1",
        "regions": regions,
        "methods": list(off),
        "snrs": (30.0,),
        "sigmas": (0.65 / 30,),
        "repeats": 2,
        "draws": 2,
        "found": found,
        "bounds": {(0, draw): {"free": np.array([1.0, 2.0, 3.0])} for draw in (0, 1)},
        "bound_of": dict.fromkeys(off, "free"),
    }
    return Phantom(**{**given, **changes})


def test_summaries_are_of_covered_regions():
    found = study()
    assert found.summary("off", 0, "abs_bias").value == pytest.approx(4.0, abs=1e-4)
    assert found.summary("off", 0, "bias").value == pytest.approx(-2.0, abs=1e-4)
    assert found.summary("exact", 0, "abs_bias").value == pytest.approx(0.0, abs=1e-4)
    # +-1 % in one draw, +-2 % in the other: CV sqrt(2) and 2 sqrt(2) %
    assert found.summary("exact", 0, "cv").value == pytest.approx(1.5 * np.sqrt(2), rel=1e-4)
    # t(0.975, 1) = 12.7062 of the two regions' bias 2 and -6, and of the logarithms of |bias|: never below 0
    held = found.summary("off", 0, "bias")
    assert held.high - held.value == pytest.approx(12.7062 * np.std([2, -6], ddof=1) / np.sqrt(2), rel=1e-4)
    held = found.summary("off", 0, "abs_bias")
    factor = np.exp(12.7062 * np.std(np.log([2, 6]), ddof=1) / np.sqrt(2))
    assert (held.low, held.high) == pytest.approx((4 / factor, 4 * factor), rel=1e-3)
    test = found.test("off", "exact", 0, "abs_bias")
    assert test.n == 2
    assert test.difference.value == pytest.approx(4.0, abs=1e-4)


def test_the_long_table():
    table = list(rows(study()))
    by = {(row.estimator, row.tissue, row.draw, row.metric): row for row in table}
    assert by["nominal", "three", "all", "covered"].value == 0
    assert by["bound-free", "two", "all", "bound"].value == 2
    assert by["off", "three", "all", "bias"].value == pytest.approx(100, abs=1e-3)
    assert by["exact", "one", 1, "cv"].value == pytest.approx(2 * np.sqrt(2), rel=1e-4)
    assert by["off", "covered", "all", "abs_bias"].n == 2
    assert by["exact", "covered", "all", "p_abs_bias_against_off"].n == 2
    assert len(by) == len(table)
    assert csv_text(table).splitlines()[0].startswith("study,estimator,tissue,parameter,snr,sigma,draw,metric,value")


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        *((0.0, "0"), (4e-5, "4.0·10⁻⁵"), (-3.21e-12, "−3.2·10⁻¹²"), (0.00123, "0.0012"), (-0.0456, "−0.046")),
        *((0.0999, "0.10"), (0.09951, "0.10"), (0.123, "0.12"), (3.21, "3.2"), (-31.06, "−31"), (np.nan, "–")),
    ],
)
def test_two_significant_digits(value, printed):
    assert _figure(value) == printed


def test_an_interval_of_a_size_stays_above_zero_in_print():
    assert _held(Interval(4e-5, 1.1e-5, 2e-4)) == "4.0·10⁻⁵ (1.1·10⁻⁵ to 0.00020)"
    assert _held(Interval(0.0, np.nan, np.nan)) == "0"
