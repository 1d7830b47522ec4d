"""Coverage, sparsification, calibration and CRPS: integrals, hand-made cases, exact draws."""

import base64

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from qsim.evaluation.pages.uncertainty_figures import calibration_figure, coverage_figure, sparsification_figure
from qsim.evaluation.uncertainty import (
    calibration_error,
    constant_width_crps,
    coverage,
    crps_gaussian,
    crps_laplace,
    half_width,
    interval_score,
    laplace_sd,
    mean_crps,
    sparsification,
    spearman,
)

N = 40000


@pytest.fixture(scope="module")
def draws():
    """Errors of a known SD that differs tenfold between voxels."""
    rng = np.random.default_rng(0)
    sd = 10 ** rng.uniform(-1, 0, N)
    return sd * rng.standard_normal(N), sd


def integral(cdf, error):
    """CRPS by quadrature; the truth is at 0, the law about `error`."""
    left = quad(lambda x: cdf(x) ** 2, -np.inf, 0, limit=200, epsabs=1e-11)[0]
    return left + quad(lambda x: (cdf(x) - 1) ** 2, 0, np.inf, limit=200, epsabs=1e-11)[0]


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("error", [-2.5, 0.0, 0.4, 3.0])
def test_crps_against_quadrature(error, scale):
    gaussian = integral(stats.norm(error, scale).cdf, error)
    laplace = integral(stats.laplace(error, scale).cdf, error)
    assert float(crps_gaussian(np.array(error), scale)) == pytest.approx(gaussian, abs=1e-8)
    assert float(crps_laplace(np.array(error), scale)) == pytest.approx(laplace, abs=1e-8)


def test_crps_at_no_width_and_of_nothing():
    error, scale = np.array([0.5, -0.5, 1.0, np.nan, 1.0]), np.array([0.0, 0.0, np.nan, 1.0, -1.0])
    for score in (crps_gaussian(error, scale), crps_laplace(error, scale)):
        np.testing.assert_array_equal(score, [0.5, 0.5, np.nan, np.nan, np.nan])
    found = mean_crps(error, scale)
    assert (found.value, found.n, found.left_out) == (0.5, 2, 3)


def test_crps_is_proper_and_beats_a_constant_width(draws):
    error, sd = draws
    own = mean_crps(error, sd).value
    # of the truth's own law: sd / sqrt(pi)
    assert own == pytest.approx(np.mean(sd) / np.sqrt(np.pi), rel=0.02)
    assert own < min(mean_crps(error, 0.8 * sd).value, mean_crps(error, 1.25 * sd).value)
    constant, scale = constant_width_crps(error)
    assert own < 0.95 * constant.value
    assert constant.value <= min(mean_crps(error, f * scale).value for f in (0.9, 0.99, 1.01, 1.1)) + 1e-12
    alike = 0.3 * np.random.default_rng(1).standard_normal(N)
    assert constant_width_crps(alike)[1] == pytest.approx(0.3, rel=0.02)
    assert constant_width_crps(np.zeros(3))[0].value == 0


def test_laplace_conventions():
    b = 0.7
    law = stats.laplace(scale=b)
    assert float(laplace_sd(b)) == pytest.approx(law.std())
    assert float(half_width(b, 0.95, "laplace")) == pytest.approx(law.ppf(0.975))
    # statistics.md: 3.0 b; three digits
    assert float(half_width(1.0, 0.95, "laplace")) == pytest.approx(3.0, abs=0.005)
    assert float(half_width(b, 0.5)) == pytest.approx(stats.norm(scale=b).ppf(0.75))


def test_coverage_by_hand():
    truth = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.nan])
    estimate = truth + np.array([0.0, 0.1, -0.2, 0.3, -0.4, 0.5, 0.0])
    half = np.array([0.1, 0.05, 0.3, 0.3, 0.3, np.nan, 1.0])
    rows = coverage(
        estimate, (estimate - half, estimate + half), truth, tissues={"odd": np.arange(7) % 2 == 0, "none": truth > 9}
    )
    found = {row.group: row for row in rows}
    # held: voxels 0, 2, 3 (on the end); of 0 to 4
    assert found["all"].observed == pytest.approx(3 / 5)
    assert (found["all"].n, found["all"].left_out) == (5, 2)
    assert found["all"].median_width == pytest.approx(0.6)
    assert found["odd"].observed == pytest.approx(2 / 3)
    assert (found["odd"].n, found["odd"].left_out) == (3, 1)
    assert np.isnan(found["none"].observed)
    # errors 0, .1 | .2, .3 | .4 by rank
    assert [found[f"error tercile {i}"].n for i in (1, 2, 3)] == [2, 2, 1]
    assert [found[f"error tercile {i}"].observed for i in (1, 2, 3)] == [0.5, 1.0, 0.0]


def test_coverage_of_exact_gaussian_and_laplace_draws(draws):
    error, sd = draws
    truth = np.zeros(N)
    for level in (0.5, 0.95):
        found = coverage(error, sd, truth, level=level)[0]
        # four standard errors of a share
        assert found.observed == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / N))
        assert found.median_width == pytest.approx(2 * np.median(sd) * stats.norm.ppf((1 + level) / 2))
    laplace = np.random.default_rng(2).laplace(scale=sd)
    assert coverage(laplace, sd, truth, law="laplace")[0].observed == pytest.approx(0.95, abs=0.0044)
    # all of them alike: every miss lies in the largest third
    alike = np.random.default_rng(3).standard_normal(N)
    shares = [row.observed for row in coverage(alike, np.ones(N), truth)[1:]]
    assert shares[:2] == [1, 1]
    assert shares[2] == pytest.approx(0.85, abs=0.013)


def test_sparsification_by_hand():
    """Four voxels of errors 4, 3, 2, 1 and the uncertainties in the same order, the reverse, and all alike."""
    error = np.array([-4.0, 3.0, -2.0, 1.0])
    expected = np.array([2.5, 2.0, 1.5, 1.0])
    right = sparsification(error, np.array([4.0, 3.0, 2.0, 1.0]), "mae", 4)
    np.testing.assert_allclose(right.curve, expected)
    np.testing.assert_allclose(right.oracle, expected)
    assert right.ause == pytest.approx(0)
    assert right.aurg == pytest.approx(np.mean(2.5 - expected) / 2.5)
    wrong = sparsification(error, np.array([1.0, 2.0, 3.0, 4.0]), "mae", 4)
    np.testing.assert_allclose(wrong.curve, [2.5, 3.0, 3.5, 4.0])
    assert wrong.ause == pytest.approx(np.mean([0, 1, 2, 3]) / 2.5)
    assert wrong.aurg == pytest.approx(-np.mean([0, 0.5, 1, 1.5]) / 2.5)
    flat = sparsification(error, np.ones(4), "mae", 4)
    np.testing.assert_allclose(flat.curve, flat.random)
    assert flat.aurg == pytest.approx(0)
    squares = sparsification(error, np.array([4.0, np.inf, 2.0, 1.0]), "rmse", 4)
    # the infinite one goes first: 3
    np.testing.assert_allclose(squares.curve, np.sqrt([30 / 4, 21 / 3, 5 / 2, 1.0]))
    np.testing.assert_allclose(squares.oracle, np.sqrt([30 / 4, 14 / 3, 5 / 2, 1.0]))


def test_sparsification_of_known_sd_is_between_random_and_oracle(draws):
    error, sd = draws
    found = sparsification(error, sd)
    assert 0 < found.ause < sparsification(error, np.ones(N)).ause
    assert found.aurg > 0.3
    # what is left are voxels of the smallest SD: their root mean square
    assert found.curve[50] == pytest.approx(np.sqrt(np.mean(np.sort(sd)[: N // 2] ** 2)), rel=0.03)
    order = np.random.default_rng(4).permutation(N)
    np.testing.assert_allclose(sparsification(error[order], sd[order]).curve, found.curve)
    gaps = error.copy()
    gaps[:7] = np.nan
    assert (sparsification(gaps, sd).n, sparsification(gaps, sd).left_out) == (N - 7, 7)
    nothing = sparsification(np.full(3, np.nan), np.ones(3))
    assert np.isnan(nothing.ause)
    assert nothing.left_out == 3


def test_calibration_of_exact_draws(draws):
    error, sd = draws
    found = calibration_error(error, sd)
    # Kolmogorov's 99.9 % point 1.95 / sqrt(N); the mean is smaller
    assert found.quantile_error < 1.95 / np.sqrt(N)
    assert found.ence == pytest.approx(np.sqrt(10 / (np.pi * N)), rel=1)
    np.testing.assert_allclose(found.rmse, found.sd, rtol=0.05)
    assert found.sharpness == pytest.approx(np.sqrt(np.mean(sd**2)))
    # twice too sure: ENCE |s - 2 s| / s = 1; the quantile at p is observed at Phi(z_p / 2)
    sure = calibration_error(error, sd / 2)
    assert sure.ence == pytest.approx(1, abs=0.03)
    expected = stats.norm.cdf(stats.norm.ppf(sure.levels) / 2)
    np.testing.assert_allclose(sure.observed, expected, atol=0.01)
    assert sure.quantile_error == pytest.approx(np.mean(np.abs(expected - sure.levels)), abs=0.005)
    # a bias of one SD is seen: truth below the quantile less often than p means estimates too high
    biased = calibration_error(error + sd, sd)
    np.testing.assert_allclose(biased.observed, stats.norm.cdf(stats.norm.ppf(biased.levels) + 1), atol=0.01)


def test_calibration_of_laplace_draws_and_left_out():
    b = np.random.default_rng(5).uniform(0.5, 2, N)
    error = np.random.default_rng(6).laplace(scale=b)
    right = calibration_error(error, b, "laplace")
    assert right.quantile_error < 1.95 / np.sqrt(N)
    assert right.ence < 0.03
    assert calibration_error(error, laplace_sd(b)).quantile_error > 0.02
    bad = b.copy()
    bad[:4] = [np.nan, np.inf, 0, -1]
    assert calibration_error(error, bad, "laplace").left_out == 4
    assert np.isnan(calibration_error(error[:1], bad[:1]).ence)


def test_spearman_against_scipy(draws):
    error, sd = draws
    rounded = np.round(sd, 1)
    expected = stats.spearmanr(np.abs(error), rounded).statistic
    assert spearman(error, rounded).value == pytest.approx(expected)
    gaps = error.copy()
    gaps[3] = np.inf
    assert spearman(gaps, sd).left_out == 1
    assert np.isnan(spearman(error, np.ones(N)).value)
    assert np.isnan(spearman(error[:1], sd[:1]).value)


def test_interval_score_is_smallest_at_the_true_quantiles():
    truth = np.random.default_rng(7).standard_normal(N)
    scores = {z: float(np.mean(interval_score(np.full(N, -z), np.full(N, z), truth))) for z in (1.5, 1.96, 2.5)}
    assert min(scores, key=scores.get) == 1.96
    assert float(interval_score(np.array(0.0), np.array(1.0), np.array(1.5))) == pytest.approx(1 + 40 * 0.5)


def test_figures_are_drawn_and_name_what_they_show(draws):
    error, sd = draws
    curves = {"least-squares": sparsification(error, sd), "constant": sparsification(error, np.ones(N))}
    text = _text(sparsification_figure(curves, "T_1", "s"))
    assert "least-squares" in text
    assert "oracle" in text
    assert "removed" in text
    calibrations = {"least-squares": calibration_error(error, sd), "too sure": calibration_error(error, sd / 2)}
    assert "too sure" in _text(calibration_figure(calibrations, "T_1", "s"))
    rows = {"wald": coverage(error, sd, np.zeros(N), tissues={"gm": sd > 0.5})}
    assert "gm" in _text(coverage_figure(rows, "T_1", "s"))


def _text(uri):
    return base64.b64decode(uri.split(",")[1]).decode()
