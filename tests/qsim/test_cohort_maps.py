"""Figures of maps of a cohort: numbers written out by hand, scipy, simulated laws of the error."""

import numpy as np
import pytest
from scipy import stats

from qsim.evaluation.studies.cohort_maps import (
    REGIONS,
    Answer,
    Reference,
    calibrate,
    calibrated,
    curves,
    improvement,
    judge,
    population_constant,
    unit,
)


def mask(*rows):
    return np.array(rows, dtype=bool)


def of(true, **changes):
    """A reference of one slice and one row, everything in the ROI."""
    truth = np.asarray(true, dtype=np.float64).reshape(1, 1, -1)
    everywhere = np.ones(truth.shape, dtype=bool)
    given = {"truth": truth, "fit": truth, "roi": everywhere, "body": everywhere, "lesion": None}
    return Reference(**(given | {"subject": np.zeros(1, dtype=np.int64)} | changes))


def row(*values):
    return np.array(values, dtype=np.float64).reshape(1, 1, -1)


def many(error, sd):
    """A reference of 0.1 s and an answer with these errors and SD [s]."""
    truth = np.full(error.shape, 0.1)
    return of(truth), Answer(row(*(truth + error)), row(*sd))


def test_errors_of_every_region_by_hand():
    # columns 0 1 2 | 3 4, the middle one of five is right; the last one is air
    truth = np.array([[[0.040, 0.050, 0.060, 0.500, 0.0]]])
    fit = np.array([[[0.042, 0.050, 0.500, 0.500, 0.3]]])
    estimate = np.array([[[0.043, 0.046, 0.070, 0.300, 9.0]]])
    reference = Reference(
        truth,
        fit,
        roi=mask([[1, 1, 0, 0, 0]]),
        body=mask([[1, 1, 1, 1, 0]]),
        lesion=mask([[0, 0, 1, 0, 0]]),
        subject=np.array([7]),
        bounds=(0.005, 0.5),
    )
    values, n = judge(Answer(estimate, limited=mask([[0, 1, 0, 0, 1]])), reference)
    # errors of the truth: 3, -4, 10, -200 ms
    by_hand = {
        ("roi", "rmae_truth"): 3.5,
        ("roi", "median_error_truth"): 3.5,
        ("roi", "bias_truth"): -0.5,
        ("roi", "rmse_truth"): np.sqrt(12.5),
        ("roi", "p95_error_truth"): 3.95,
        ("body", "rmae_truth"): 217 / 4,
        ("body", "median_error_truth"): 7.0,
        ("body", "bias_truth"): -191 / 4,
        ("lesion", "bias_truth"): 10.0,
        ("left", "rmae_truth"): 3.5,
        ("right", "rmae_truth"): 105.0,
        ("inside", "rmae_truth"): 3.5,
        ("outside", "rmae_truth"): 105.0,
        # two fits at the bound, both outside the ROI
        ("roi", "rmae_fit"): 2.5,
        ("body", "rmae_fit"): 2.5,
        ("body", "left_out_fit"): 2.0,
        ("body", "left_out_truth"): 0.0,
        ("outside", "left_out_fit"): 2.0,
        ("roi", "limited_share"): 0.5,
        ("body", "limited_share"): 0.25,
        ("right", "limited_share"): 0.0,
    }
    for key, value in by_hand.items():
        assert values[key] == pytest.approx(value, abs=1e-9), key
    assert np.isnan(values["outside", "rmae_fit"])
    assert (n["roi", "rmae_truth"], n["body", "rmae_truth"], n["body", "rmae_fit"], n["outside", "rmae_fit"]) == (
        *(2, 4),
        *(2, 0),
    )
    assert {region for region, _ in values} == set(REGIONS)
    assert not any("spearman" in metric or "sd_" in metric for _, metric in values)


def test_a_fit_at_the_bound_counts_in_the_roi_and_nothing_that_is_not_finite_does():
    reference = of([0.05] * 4, fit=row(np.float64(np.float32(0.5)), np.nan, 0.05, 0.05), bounds=(0.005, 0.5))
    values, n = judge(Answer(row(0.4, 0.05, np.inf, 0.06)), reference)
    assert values["roi", "rmae_fit"] == pytest.approx((100 + 10) / 2)
    assert (n["roi", "rmae_fit"], values["roi", "left_out_fit"]) == (2, 2.0)
    assert values["roi", "rmae_truth"] == pytest.approx((350 + 0 + 10) / 3)
    assert values["roi", "left_out_truth"] == 1.0


def test_bounds_that_single_precision_rounds_inwards():
    """0.3 becomes 0.300000012, and 0.7 becomes 0.699999988."""
    fit = np.array([[[0.5, 0.3, 0.7, 0.31]]], dtype=np.float32).astype(np.float64)
    reference = of([0.5] * 4, fit=fit, roi=mask([[1, 0, 0, 0]]), bounds=(0.3, 0.7))
    assert judge(Answer(row(0.5, 0.5, 0.5, 0.5)), reference).values["outside", "left_out_fit"] == 2.0


def test_without_a_truth_there_is_the_fit_alone():
    values = judge(Answer(row(0.05, 0.06)), of([0.05, 0.05], truth=None)).values
    assert values["roi", "rmae_fit"] == pytest.approx(5)
    assert not any(metric.endswith("_truth") for _, metric in values)
    assert ("lesion", "rmae_fit") not in values


def cohort():
    """Three subjects, the first with two slices; two voxels each."""
    truth = np.array([[40, 44], [46, 50], [50, 54], [60, 64]]).reshape(4, 1, 2) / 1e3
    estimate = np.array([[44, 46], [46, 48], [50, 52], [54, 56]]).reshape(4, 1, 2) / 1e3
    everywhere = np.ones(truth.shape, dtype=bool)
    return Answer(estimate), Reference(truth, truth, everywhere, everywhere, None, np.array([3, 3, 9, 1]))


def test_slopes_and_concordance_by_hand():
    answer, reference = cohort()
    values, n = judge(answer, reference)
    # means of subjects 45, 52, 62 and 46, 51, 55 ms
    x, y = np.array([45, 52, 62]), np.array([46, 51, 55])
    assert values["roi", "slope_subjects_truth"] == pytest.approx(stats.linregress(x, y).slope, rel=1e-12)
    below = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    lin = 2 * np.mean((x - x.mean()) * (y - y.mean())) / below
    assert values["roi", "concordance_subjects_truth"] == pytest.approx(lin, rel=1e-12)
    # within every slice the truth steps by 4 ms, the estimate by 2
    assert values["roi", "slope_within_truth"] == pytest.approx(0.5, rel=1e-9)
    assert (n["roi", "slope_subjects_truth"], n["roi", "slope_within_truth"]) == (3, 8)


def test_a_method_that_paints_means_has_no_slope_within():
    answer, reference = cohort()
    painted = np.broadcast_to(reference.truth.mean(2, keepdims=True), reference.truth.shape).copy()
    values = judge(Answer(painted), reference).values
    assert values["roi", "slope_within_truth"] == pytest.approx(0, abs=1e-9)
    # and where the reference is flat, but for rounding, there is none to find
    flat = Reference(painted, painted, reference.roi, reference.body, None, reference.subject)
    assert np.isnan(judge(answer, flat).values["roi", "slope_within_truth"])


def test_recovery_of_lesions_by_hand():
    # x: two voxels of parenchyma, one of a lesion; the third slice has no lesion, the fourth no ROI
    truth = np.array([[40, 42, 61], [40, 42, 31], [40, 42, 41], [40, 42, 91]]).reshape(4, 1, 3) / 1e3
    blurred = np.array([[40, 42, 56], [40, 42, 36], [40, 42, 41], [40, 42, 41]]).reshape(4, 1, 3) / 1e3
    estimate = np.array([[41, 43, 54], [40, 42, 33], [90, 42, 41], [40, 42, 41]]).reshape(4, 1, 3) / 1e3
    roi = np.broadcast_to(mask([1, 1, 0]), truth.shape).copy()
    roi[3] = False
    lesion = np.broadcast_to(mask([0, 0, 1]), truth.shape).copy()
    lesion[2] = False
    body = np.ones(truth.shape, dtype=bool)
    reference = Reference(truth, truth, roi, body, lesion, np.arange(4), noise_free=blurred)
    values, n = judge(Answer(estimate), reference)
    # contrasts of the truth +20, -10, of the blurred +15, -5, of the estimate +12, -8 ms
    assert values["lesion", "lesion_recovery_truth"] == pytest.approx((12 + 8) / (20 + 10))
    assert values["lesion", "lesion_recovery_fit"] == pytest.approx((12 + 8) / (15 + 5))
    assert n["lesion", "lesion_recovery_truth"] == 2
    without = judge(Answer(estimate), Reference(truth, truth, roi, body, lesion, np.arange(4))).values
    assert ("lesion", "lesion_recovery_fit") not in without


def test_uncertainty_by_region_and_widths_by_hand():
    truth = row(0.05, 0.05, 0.05, 0.05)
    reference = of(truth, roi=mask([[1, 1, 0, 0]]))
    answer = Answer(truth, row(0.003, 0.003, 0.006, np.nan), row(0.004, 0.004, 0.008, 0.001))
    values, n = judge(answer, reference)
    assert values["inside", "sd_mean"] == pytest.approx(5)
    assert values["outside", "sd_mean"] == pytest.approx(10)
    assert values["body", "sd_mean"] == pytest.approx(20 / 3)
    assert values["left", "sd_mean_aleatoric"] == pytest.approx(3)
    assert values["right", "sd_mean_epistemic"] == pytest.approx(4.5)
    assert (values["right", "left_out_sd"], n["right", "sd_mean"]) == (1.0, 1)
    # 1.95996 SD either side, and log(20) = 2.99573 b with b = SD / sqrt(2)
    assert values["roi", "width_median"] == pytest.approx(2 * 1.959964 * 5, rel=1e-6)
    assert values["roi", "width_median_laplace"] == pytest.approx(2 * 2.995732 * 3 / np.sqrt(2), rel=1e-6)
    assert np.hypot(0.003, 0.004) == pytest.approx(answer.total[0, 0, 0])
    assert Answer(truth, epistemic=truth).total is truth
    assert "left_out_sd_aleatoric" not in {metric for _, metric in values}


@pytest.fixture(scope="module")
def gaussian():
    """Gaussian errors of a known SD of 1 to 10 ms [s]."""
    rng = np.random.default_rng(4)
    sd = rng.uniform(0.001, 0.01, 60000)
    return sd * rng.standard_normal(sd.size), sd


def test_honest_gaussian_uncertainty(gaussian):
    # a number that groups do not divide
    error, sd = (each[:43999] for each in gaussian)
    reference, answer = many(error, sd)
    values = judge(answer, reference).values
    assert values["roi", "coverage_95_truth"] == pytest.approx(0.95, abs=0.004)
    assert values["roi", "coverage_95_tercile_1_truth"] == 1.0
    # a Gaussian of this SD, given as a Laplace law: +-2.118 SD
    assert values["body", "coverage_95_laplace_truth"] == pytest.approx(1 - 2 * stats.norm.sf(2.1183), abs=0.004)
    rank = stats.spearmanr(np.abs(error), sd).statistic
    assert values["roi", "spearman_truth"] == pytest.approx(rank, abs=1e-9)
    # mean SD / sqrt(pi) is the CRPS of an exact Gaussian
    assert values["roi", "crps_truth"] == pytest.approx(5.5 / np.sqrt(np.pi), rel=0.02)
    constant = values["roi", "crps_constant_truth"]
    assert constant > 1.02 * values["roi", "crps_truth"]
    # a search over all voxels, to a grid of 0.01 ms
    z = 1e3 * np.abs(error[:, None]) / (grid := np.arange(5, 6.5, 0.05))
    brute = grid * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert constant == pytest.approx(brute.mean(0).min(), rel=2e-4)


def test_honest_laplace_uncertainty():
    rng = np.random.default_rng(5)
    b = rng.uniform(0.001, 0.01, 60000)
    reference, answer = many(rng.laplace(0, b), np.sqrt(2) * b)
    values = judge(answer, reference).values
    assert values["roi", "coverage_95_laplace_truth"] == pytest.approx(0.95, abs=0.004)
    assert values["roi", "coverage_95_truth"] == pytest.approx(1 - np.exp(-1.96 * np.sqrt(2)), abs=0.004)


def test_sparsification_in_steps_of_five_percent(gaussian):
    error, sd = gaussian
    reference, answer = many(error, sd)
    found = curves(answer, reference, "roi")
    np.testing.assert_allclose(found.fractions, np.arange(0, 1, 0.05))
    by_sd, by_error = np.abs(error)[np.argsort(sd)], np.sort(np.abs(error))
    kept = [60000 - 3000 * i for i in range(20)]
    np.testing.assert_allclose(found.method, [1e3 * by_sd[:k].mean() for k in kept], rtol=1e-9)
    np.testing.assert_allclose(found.oracle, [1e3 * by_error[:k].mean() for k in kept], rtol=1e-9)
    np.testing.assert_allclose(found.random, 1e3 * by_error.mean(), rtol=1e-9)
    ratio = np.sum(found.method - found.oracle) / np.sum(found.random - found.oracle)
    assert judge(answer, reference).values["roi", "ause_ratio_truth"] == pytest.approx(ratio, rel=1e-9)
    # the error itself is the best order, a constant says nothing
    for order, ideal in ((np.abs(error), 0.0), (np.full(error.shape, 0.004), 1.0)):
        assert judge(Answer(answer.estimate, row(*order)), reference).values["roi", "ause_ratio_truth"] == (
            pytest.approx(ideal, abs=1e-9)
        )


def test_no_uncertainty_in_the_worst_voxel_is_no_gain():
    error, sd = np.array([0.001, 0.002, 0.003, 0.1]), np.array([0.001, 0.002, 0.003, np.nan])
    reference, answer = many(error, sd)
    values, n = judge(answer, reference)
    assert values["roi", "spearman_truth"] == pytest.approx(1)
    assert (n["roi", "spearman_truth"], n["roi", "coverage_95_truth"], values["roi", "left_out_sd"]) == (4, 3, 1.0)


@pytest.mark.parametrize("law", ["normal", "laplace", "standard_cauchy"])
def test_calibration_covers_fresh_data_of_any_law(law):
    """Errors of a scale that is stated three times too small, and of a law that is not Gaussian."""
    rng = np.random.default_rng(6)

    def draw(n):
        scale = rng.uniform(0.001, 0.005, n)
        shape = rng.standard_cauchy(n) if law == "standard_cauchy" else getattr(rng, law)(0, 1, n)
        return many(scale * shape, scale / 3)

    references, answers = zip(*(draw(n) for n in (20000, 12000, 8000)), strict=True)
    factor = calibrate(answers, references)
    reference, fresh = draw(40000)
    covered = judge(calibrated(fresh, factor), reference).values["body", "coverage_95_truth"]
    assert covered == pytest.approx(0.95, abs=0.005)
    if law == "normal":
        assert factor == pytest.approx(3, rel=0.02)


def test_calibration_is_right_for_few_voxels_too():
    """Of 19 exchangeable voxels the largest ratio is taken, and covers a new one with probability 19 / 20."""
    ratios = np.arange(1, 20) / 1000
    reference, answer = many(ratios, np.full(19, 0.001))
    assert calibrate([answer], [reference]) == pytest.approx(19 / stats.norm.ppf(0.975), rel=1e-9)
    # ceil(20 x 0.8) = 16
    assert calibrate([answer], [reference], 0.8) == pytest.approx(16 / stats.norm.ppf(0.9), rel=1e-9)
    rng = np.random.default_rng(7)
    found = []
    for _ in range(400):
        reference, answer = many(*(rng.standard_normal(39) * 0.01, np.full(39, 0.01)))
        # probability that a new voxel is covered
        found.append(2 * stats.norm.cdf(calibrate([answer], [reference]) * 1.959964) - 1)
    assert np.mean(found) == pytest.approx(0.95, abs=0.006)


def test_calibration_is_of_one_region_and_one_reference():
    truth = row(*[0.05] * 80)
    roi = np.arange(80).reshape(1, 1, -1) < 40
    reference = of(truth, roi=roi, fit=truth + 0.001)
    answer = Answer(truth + np.where(roi, 0.002, 0.004), np.full(truth.shape, 0.001))
    z = 1.959964
    assert calibrate([answer], [reference]) == pytest.approx(4 / z, rel=1e-6)
    assert calibrate([answer], [reference], region="roi") == pytest.approx(2 / z, rel=1e-6)
    assert calibrate([answer], [reference], region="roi", against="fit") == pytest.approx(1 / z, rel=1e-6)


def test_opponents():
    roi = mask([[1, 1, 1, 0]])
    reference = of([0.04, 0.05, 0.09, 9.0], fit=row(0.041, np.nan, 0.051, 9.0), roi=roi)
    assert population_constant(reference) == pytest.approx(0.046)
    assert population_constant(reference, "truth") == pytest.approx(0.05)
    assert improvement(3.5, 5.0) == pytest.approx(0.3)
    assert np.isnan(improvement(1.0, 0.0))
    assert [unit(name) for name in ("rmae_truth", "width_median", "sd_mean", "coverage_95_fit", "left_out_fit")] == [
        *("ms", "ms", "ms"),
        *("1", "voxels"),
    ]


def test_single_precision_gives_the_same():
    rng = np.random.default_rng(8)
    error, sd = rng.standard_normal(500) * 0.01, rng.uniform(0.005, 0.02, 500)
    reference, answer = many(error, sd)
    single = Answer(answer.estimate.astype(np.float32), answer.aleatoric.astype(np.float32))
    double = judge(answer, reference).values
    for key, value in judge(single, reference).values.items():
        assert value == pytest.approx(double[key], rel=1e-4, abs=1e-4, nan_ok=True), key


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    reference, answer = many(np.full(4, 0.01), np.full(4, 0.01))
    with pytest.raises(ValueError, match=r"^truth: shape .*; give the same slices$"):
        of([0.1, 0.2], fit=row(0.1))
    with pytest.raises(ValueError, match=r"^lesion: shape"):
        of([0.1, 0.2], lesion=mask([[1]]))
    with pytest.raises(ValueError, match=r"^subject: \(3,\) for 1 slices; give one number for each$"):
        of([0.1, 0.2], subject=np.arange(3))
    with pytest.raises(ValueError, match=r"^roi: empty; draw one"):
        of([0.1, 0.2], roi=mask([[0, 0]]))
    with pytest.raises(ValueError, match=r"^epistemic: shape"):
        Answer(row(0.1, 0.2), epistemic=row(0.1))
    with pytest.raises(ValueError, match=r"^aleatoric: holds negative values; give standard deviations$"):
        Answer(row(0.1), row(-0.1))
    with pytest.raises(ValueError, match=r"^estimate: shape"):
        judge(Answer(row(0.1)), reference)
    with pytest.raises(ValueError, match=r"^answer: it states no uncertainty"):
        curves(Answer(row(*[0.1] * 4)), reference, "roi")
    with pytest.raises(ValueError, match=r"^region: there is no lesion; use one of roi, body, left"):
        curves(answer, reference, "lesion")
    with pytest.raises(ValueError, match=r"^against: nobody knows the truth"):
        curves(answer, of([0.1] * 4, truth=None), "roi")
    with pytest.raises(ValueError, match=r"^level: got 95; give a probability"):
        calibrate([answer], [reference], 95)
    with pytest.raises(ValueError, match=r"^answers: 1 for 2 references"):
        calibrate([answer], [reference] * 2)
    with pytest.raises(ValueError, match=r"^answers: no factor covers 0.95 of 4 voxels .* give more voxels"):
        calibrate([answer], [reference])
    with pytest.raises(ValueError, match=r"^fit: not finite in the whole ROI"):
        population_constant(of([0.1], fit=row(np.nan)))
