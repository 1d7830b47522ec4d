"""Error bars of a volume: images whose errors are drawn from a known law; the coverage is that of fresh images."""

import json
from math import ceil, log, nan, sqrt

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy import stats
from scipy.optimize import minimize

from qsim.errors import InputError
from qsim.evaluation.segmentation import VolumeCalibration, fit_volume_error, per_target, relative_spread

SLOPE = 0.7


def images(n, seed, law="gaussian", ratio=1.1, by_artefact=0.0, shared=0.0, per=1):
    """Volumes [mm^3] whose truth is the predicted times `ratio` +- exp(-1 + 0.7 log u + by_artefact log(m + .1))."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(4e5, 8e5, n)
    spread = 10 ** rng.uniform(-2.3, -0.3, n)
    m = rng.exponential(0.3, n)
    anatomy = np.repeat(np.arange(ceil(n / per)), per)[:n]
    unit = rng.standard_normal(n) if law == "gaussian" else rng.laplace(size=n)
    together = rng.standard_normal(anatomy.max() + 1)[anatomy]
    error = sqrt(shared) * together + sqrt(1 - shared) * unit
    scale = np.exp(-1.0 + SLOPE * np.log(spread) + by_artefact * np.log(m + 0.1))
    return predicted, predicted * (ratio + scale * error), spread, m, anatomy


@pytest.mark.parametrize(("law", "information"), [("gaussian", 2.0), ("laplace", 1.0)])
def test_fit_recovers_the_power_law(law, information):
    n = 3000
    predicted, true, spread, _, _ = images(n, 0, law)
    found = fit_volume_error(predicted, true, spread, law=law)
    # per image, information of a log scale: 2 for a Gaussian, 1 for a Laplace law; the ratio is independent of both
    error = 1 / sqrt(information * n) / np.log(spread).std()
    assert found.coefficients[1] == pytest.approx(SLOPE, abs=4 * error)
    assert found.coefficients[0] == pytest.approx(-1.0, abs=4 * error * sqrt(np.mean(np.log(spread) ** 2)))
    of_ratio = 1 / sqrt(np.sum(np.exp(1 - SLOPE * np.log(spread)) ** 2))
    assert found.ratio == pytest.approx(1.1, abs=4 * of_ratio)
    # of the true law; a quantile of n draws scatters by sqrt(p (1 - p) / n) / density, p two-sided
    exact = stats.norm if law == "gaussian" else stats.laplace
    ideal = exact.ppf(0.975)
    assert found.factor == pytest.approx(ideal, abs=4 * sqrt(0.95 * 0.05 / n) / (2 * exact.pdf(ideal)) + 0.02)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_fit_is_the_maximum_of_the_likelihood_of_scipy(law):
    """All parameters at once, without derivatives."""
    predicted, true, spread, m, _ = images(80, 10, law, by_artefact=0.3)
    found = fit_volume_error(predicted, true, spread, m, law=law)
    density = {"gaussian": stats.norm, "laplace": stats.laplace}[law]

    def loss(p):
        scale = predicted * np.exp(p[1] + p[2] * np.log(spread / 0.1) + p[3] * np.log(m + 0.1))
        return -density.logpdf(true, p[0] * predicted, scale).mean()

    c = found.coefficients
    own = np.array([found.ratio, c[0] + c[1] * log(0.1), c[1], c[2]])
    start = np.array([1.0, -2.0, 0.5, 0.0])
    for _ in range(3):
        start = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}).x
    assert loss(own) <= loss(start) + 1e-9
    np.testing.assert_allclose(own, start, atol=2e-3)


def test_fit_recovers_the_power_of_the_artefact():
    n = 2000
    predicted, true, spread, m, _ = images(n, 1, by_artefact=0.5)
    found = fit_volume_error(predicted, true, spread, m)
    error = 1 / sqrt(2 * n)
    assert found.coefficients[1] == pytest.approx(SLOPE, abs=4 * error / np.log(spread).std())
    assert found.coefficients[2] == pytest.approx(0.5, abs=4 * error / np.log(m + 0.1).std())
    wide, narrow = found.half_width(1e5, 0.1, 1.0), found.half_width(1e5, 0.1, 0.0)
    assert float(wide / narrow) == pytest.approx((1.1 / 0.1) ** 0.5, rel=0.3)


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize(("law", "fitted"), [("gaussian", "gaussian"), ("laplace", "laplace"), ("laplace", "gaussian")])
def test_coverage_of_fresh_images(law, fitted, seed):
    """The factor makes the interval hold where the law is wrong as well."""
    n, fresh, calibrations = 100, 2000, 8
    held = []
    for k in range(calibrations):
        predicted, true, spread, *_ = images(n, [seed, k], law)
        found = fit_volume_error(predicted, true, spread, law=fitted)
        predicted, true, spread, *_ = images(fresh, [seed, k, 1], law)
        low, high = found.interval(predicted, spread)
        held.append(float(np.mean((low <= true) & (true <= high))))
    # coverage of one calibration on n exchangeable images follows Beta(k, n + 1 - k); fresh images add little
    k = ceil((n + 1) * 0.95)
    of_one = sqrt(stats.beta(k, n + 1 - k).var() + 0.95 * 0.05 / fresh)
    assert np.mean(held) == pytest.approx(stats.beta(k, n + 1 - k).mean(), abs=4 * of_one / sqrt(calibrations))


def test_coverage_also_where_images_are_uncertain():
    """One width for all would hold 100 % of the certain images and far too few of the others."""
    predicted, true, spread, *_ = images(400, 4)
    found = fit_volume_error(predicted, true, spread)
    predicted, true, spread, *_ = images(6000, 5)
    low, high = found.interval(predicted, spread)
    holds = (low <= true) & (true <= high)
    limits = stats.beta(381, 20).ppf([0.001, 0.999]) + np.array([-1, 1]) * 4 * sqrt(0.95 * 0.05 / 2000)
    # the fitted slope is off by up to 4 / sqrt(2 n) / SD = .1, so that a third's half width is off by up to 16 %
    limits += np.array([-0.03, 0.03])
    for third in np.array_split(np.argsort(spread), 3):
        assert limits[0] <= holds[third].mean() <= limits[1]


def test_images_of_one_anatomy_are_left_out_together():
    """Errors shared by an anatomy: with few anatomies a fit learns the ratio from their errors and is too sure."""
    with_, without = [], []
    for seed in range(12):
        predicted, true, spread, _, anatomy = images(96, [6, seed], shared=0.95, per=16)
        with_.append(fit_volume_error(predicted, true, spread, anatomy=anatomy))
        without.append(fit_volume_error(predicted, true, spread))
    assert np.mean([a.factor / b.factor for a, b in zip(with_, without, strict=True)]) > 1.05
    assert (with_[0].images, with_[0].anatomies, without[0].anatomies) == (96, 6, 96)


def test_the_factor_is_the_kth_of_the_images_left_out():
    """By hand: no bias, errors of 3 u of the volume: every fit without some of the images is the same power law."""
    spread = np.geomspace(1e-3, 0.1, 40)
    predicted = np.linspace(1e5, 3e5, 40)
    error = 3.0 * spread * predicted * np.where(np.arange(40) % 2, 1, -1)
    found = fit_volume_error(predicted, predicted + error, spread, bias=False)
    # SD = 3 u V without scatter, so every ratio is 1
    assert found.coefficients == pytest.approx((log(3.0), 1.0), abs=1e-6)
    assert found.factor == pytest.approx(1.0, abs=1e-5)
    assert found.ratio == 1
    assert float(found.sd(1000.0, 0.1)) == pytest.approx(300 / stats.norm.ppf(0.975), rel=1e-5)
    low, high = found.interval(5000.0, 0.02)
    assert (float(low), float(high)) == (pytest.approx(4700, rel=1e-5), pytest.approx(5300, rel=1e-5))
    assert found.spread_range == (pytest.approx(1e-3), pytest.approx(0.1))
    assert (found.knows(0.05), found.knows(0.2)) == (True, False)


def test_the_error_bar_of_a_whole_head_is_the_part_that_it_is_of_a_block():
    """Eight times as large, the same doubt in each voxel, and air around."""
    rng = np.random.default_rng(11)
    p, v = rng.uniform(0, 1, (8, 8, 8)), rng.exponential(0.2, (8, 8, 8))
    whole_p, whole_v = np.zeros((40, 16, 16)), np.zeros((40, 16, 16))
    whole_p[:16], whole_v[:16] = np.tile(p, (2, 2, 2)), np.tile(v, (2, 2, 2))
    found = fit_volume_error(*images(60, 7)[:4])
    ends = [found.interval(q.sum(), relative_spread(q), per_target(w, q)) for q, w in ((p, v), (whole_p, whole_v))]
    np.testing.assert_allclose(ends[1], 8 * np.array(ends[0]), rtol=1e-12)


@pytest.mark.parametrize("artefact", [False, True])
def test_json_round_trip(artefact):
    predicted, true, spread, m, anatomy = images(60, 7, per=2)
    found = fit_volume_error(predicted, true, spread, m if artefact else None, anatomy=anatomy, law="laplace")
    assert VolumeCalibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_json_is_refused():
    predicted, true, spread, *_ = images(60, 7)
    good = fit_volume_error(predicted, true, spread).to_json()
    for change, names in (
        ({"law": "cauchy"}, "law"),
        ({"extra": 1}, "fields"),
        ({"ratio": "1"}, "ratio"),
        ({"factor": nan}, "factor"),
        ({"coefficients": [1.0]}, "coefficients"),
        ({"spread_range": [1.0]}, "spread_range"),
        ({"level": 95.0}, "level"),
    ):
        with pytest.raises(InputError, match=names):
            VolumeCalibration.from_json(good | change)


def test_what_a_fit_refuses():
    predicted, true, spread, m, anatomy = images(40, 8)
    with pytest.raises(InputError, match="19 images"):
        fit_volume_error(predicted[:19], true[:19], spread[:19])
    with pytest.raises(InputError, match="at least 99 images"):
        fit_volume_error(predicted, true, spread, level=0.99)
    with pytest.raises(InputError, match="anatomy: 2"):
        fit_volume_error(predicted, true, spread, anatomy=anatomy % 2)
    with pytest.raises(InputError, match="spread: must be finite and above 0"):
        fit_volume_error(predicted, true, 0 * spread)
    with pytest.raises(InputError, match="same in all images"):
        fit_volume_error(predicted, true, np.ones(40))
    with pytest.raises(InputError, match="follows from the other"):
        fit_volume_error(predicted, true, spread + 0.1, spread)
    with pytest.raises(InputError, match="is the truth in all images"):
        fit_volume_error(predicted, predicted, spread)
    with pytest.raises(InputError, match="predicted: volumes"):
        fit_volume_error(predicted, true * nan, spread)
    # where signatures are checked, they say it first
    with pytest.raises((InputError, TypeCheckError)):
        fit_volume_error(predicted, true, spread, m[:3])
    with pytest.raises(InputError, match="variance: must be"):
        fit_volume_error(predicted, true, spread, -m)


def test_a_calibration_wants_the_numbers_it_was_fitted_to():
    predicted, true, spread, m, _ = images(40, 9)
    plain, wide = fit_volume_error(predicted, true, spread), fit_volume_error(predicted, true, spread, m)
    with pytest.raises(InputError, match="no part"):
        plain.interval(predicted, spread, m)
    with pytest.raises(InputError, match="is missing"):
        wide.interval(predicted, spread)
    with pytest.raises(InputError, match="spread"):
        plain.half_width(1e5, 0.0)
