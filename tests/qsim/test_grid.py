"""Errors over a grid: statistics, intervals, noise and bounds against closed forms."""

import re
from base64 import b64decode
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.distributions import Constant
from qsim.estimators import Estimate, Status, build_estimator
from qsim.evaluation.pages.grid_page import page, precision
from qsim.evaluation.pages.heat_figures import Curve, Plot, curve_figure
from qsim.evaluation.pages.heat_report import render
from qsim.evaluation.pages.summary import few_repeats_warning
from qsim.evaluation.studies.grid import (
    METRICS,
    Contender,
    GridStudy,
    Truth,
    bound_name,
    bound_rows,
    clean_images,
    noisy_images,
    point_name,
    relative_bound,
    rows_of,
    run,
    told,
)
from qsim.kspace.noise import GaussianNoise, RicianNoise, SignedNoise, coils_of, sigma_of
from qsim.signals import InversionRecovery, SpinLock

SIGMA = Constant(value=1.0)
GAUSSIAN, RICIAN = GaussianNoise(sigma=SIGMA), RicianNoise(sigma=SIGMA)
TWO = SpinLock(tsl=(0.0, 0.03))
POINTS = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64)


def truth(noise=GAUSSIAN, voxels=50, repeats=4, model=TWO, kappa=None, seed=5):
    if kappa is None:
        kappa = torch.stack((torch.full_like(POINTS, 0.65), POINTS))
    return Truth("test", model, kappa, noise, seed, voxels, repeats)


@dataclass(frozen=True)
class Given:
    """Returns what it is given, whatever the images."""

    estimate: np.ndarray
    sd: np.ndarray | None = None
    status: np.ndarray | None = None
    name: str = "given"
    pools: tuple[str, ...] = ()

    @property
    def parameters(self):
        return TWO.parameters

    def __call__(self, images, sigma=None, mask=None, known=None):
        t = torch.from_numpy(self.estimate).float()
        kappa = torch.stack((torch.ones_like(t), t))
        status = torch.zeros(t.shape, dtype=torch.uint8) if self.status is None else torch.from_numpy(self.status)
        if self.sd is None:
            return Estimate(kappa, status)
        variance = torch.from_numpy(self.sd).float() ** 2
        # two sources, which add up
        parts = {name: torch.stack((torch.ones_like(t), variance / 2)) for name in ("noise", "epistemic")}
        return Estimate(kappa, status, parts)


def found_for(method, one):
    return run(one, Contender("given", method), "T1RHO", "T1RHO", 30.0)


def test_statistics_are_those_of_their_definitions():
    rng = np.random.default_rng(1)
    estimate = POINTS.numpy()[:, None] * rng.lognormal(0.1, 0.2, (3, 51))
    found = found_for(Given(estimate), truth(voxels=51))
    error = estimate / POINTS.numpy()[:, None] - 1
    # the same estimates in each of four repeats: pooled over 204 of them
    four = np.tile(error, 4)
    expected = {
        "relative_bias": error.mean(1),
        "relative_bias_median": np.median(error, 1),
        "sd": four.std(1, ddof=1),
        "cv": stats.variation(1 + four, axis=1, ddof=1),
        "rmse": np.sqrt((error**2).mean(1)),
        "abs_error_median": np.median(np.abs(error), 1),
    }
    for metric, value in expected.items():
        # the estimates are float32
        np.testing.assert_allclose(found[metric][0], 100 * value, rtol=2e-6, atol=1e-5, err_msg=metric)
    assert found["n"][0].tolist() == [204, 204, 204]
    assert found["rmse"].shape == (5, 3)
    np.testing.assert_allclose(found["sd"][1], 100 * error.std(1, ddof=1), rtol=2e-6)
    assert np.isnan(found["coverage"]).all()
    assert (found["interval_rate"] == 0).all()


def test_what_is_lost_is_counted_and_left_out():
    estimate = np.tile(POINTS.numpy()[:, None], 10)
    status = np.zeros((3, 10), dtype=np.uint8)
    estimate[0, :3] = np.nan
    status[1, :2] = int(Status.NOT_CONVERGED)
    status[1, 2:5] = int(Status.AT_BOUND)
    estimate[2] = np.nan
    found = found_for(Given(estimate, status=status), truth(voxels=10))
    assert found["failure_rate"][0].tolist() == [30, 20, 100]
    assert found["at_bound_rate"][0].tolist() == [0, 30, 0]
    assert found["n"][0].tolist() == [28, 40, 0]
    np.testing.assert_allclose(found["rmse"][0, :2], 0, atol=1e-5)
    for metric in set(METRICS) - {"failure_rate", "at_bound_rate", "interval_rate"}:
        assert np.isnan(found[metric][0, 2]), metric


def test_a_log_normal_estimate_that_states_its_sd_covers_95_percent():
    rng = np.random.default_rng(2)
    spread = 0.1
    estimate = POINTS.numpy()[:, None] * np.exp(spread * rng.standard_normal((3, 20_000)))
    found = found_for(Given(estimate, sd=spread * estimate), truth(voxels=20_000, repeats=2))
    # 20 000 trials: SD of the share .15 %
    np.testing.assert_allclose(found["coverage"][0], 95, atol=0.6)
    # the median interval is that of the median estimate, the truth: 2 sinh(1.96 s)
    np.testing.assert_allclose(found["interval_width"][0], 200 * np.sinh(1.96 * spread), rtol=0.01)
    half = found_for(Given(estimate, sd=spread / 2 * estimate), truth(voxels=20_000, repeats=2))
    expected = 100 * (2 * stats.norm.cdf(1.96 / 2) - 1)
    np.testing.assert_allclose(half["coverage"][0], expected, atol=1.2)
    lost = found_for(Given(estimate, sd=np.full_like(estimate, np.inf)), truth(voxels=20_000, repeats=2))
    assert (lost["interval_rate"] == 0).all()


def test_noise_has_the_sigma_of_the_snr_and_a_stream_of_its_own():
    one = truth(voxels=20_000)
    noisy = noisy_images(one, 10.0, 0)
    residual = noisy - clean_images(one)
    assert noisy.shape == (2, 3, 20_000)
    assert noisy.dtype == torch.float32
    np.testing.assert_allclose(residual.std().item(), sigma_of(10.0), rtol=0.01)
    assert torch.equal(noisy, noisy_images(one, 10.0, 0))
    for other in (
        noisy_images(one, 10.0, 1),
        noisy_images(truth(voxels=20_000, seed=6), 10.0, 0),
        noisy_images(one, 30.0, 0),
    ):
        together = torch.stack((residual.flatten(), (other - clean_images(one)).flatten()))
        assert abs(torch.corrcoef(together)[0, 1].item()) < 0.02
    magnitude = noisy_images(truth(RICIAN, voxels=20_000), 2.0, 0)[1, 0]
    # mean of a Rician magnitude, by scipy
    nu, sigma = clean_images(one)[1, 0, 0].item(), sigma_of(2.0)
    np.testing.assert_allclose(magnitude.mean().item(), stats.rice(nu / sigma, scale=sigma).mean(), rtol=0.01)


def test_coils_follow_from_the_channels():
    assert [coils_of(noise) for noise in (GAUSSIAN, SignedNoise(sigma=SIGMA), RICIAN)] == [0, 0, 1]


def test_bounds_of_two_images_are_the_closed_forms():
    # T = t / ln(S0 / S1): var(T) / T^2 = (sigma / A)^2 (T / t)^2 (1 + exp(2 t / T)); with A known the 1 goes
    one, t = truth(), POINTS.numpy()
    share, gain = sigma_of(30.0) / 0.65 * t / 0.03, np.exp(2 * 0.03 / t)
    free = relative_bound(one, "T1RHO", 30.0)
    np.testing.assert_allclose(free, 100 * share * np.sqrt(1 + gain), rtol=1e-9)
    known = relative_bound(one, "T1RHO", 30.0, known=("A",))
    np.testing.assert_allclose(known, 100 * share * np.sqrt(gain), rtol=1e-9)
    # A of all voxels: between the two, and the more voxels the closer to the known one
    few, many = (relative_bound(truth(voxels=v), "T1RHO", 30.0, shared=("A",)) for v in (1, 10_000))
    assert (known < many).all()
    assert (many < few).all()
    assert (few < free).all()
    np.testing.assert_allclose(many, known, rtol=1e-3)
    # a magnitude tells less
    assert (relative_bound(truth(RICIAN), "T1RHO", 30.0) > free).all()


def test_what_a_method_is_told():
    one = truth(voxels=7)
    assert told(one, ()) is None
    given = told(one, ("A", "T1RHO"))
    assert given["A"].ndim == 0
    assert given["T1RHO"].shape == (3, 7)
    assert (given["T1RHO"] == POINTS[:, None]).all()
    assert [bound_name((), ()), bound_name(("B",), ()), bound_name((), ("B",))] == ["free", "shared B", "known B"]
    # a method pools what its model has, and is not told
    pooling = Given(np.ones((3, 7)), pools=("A", "B"))
    assert Contender("pools", pooling).pools == ("A",)
    assert Contender("told", pooling, ("A",)).bound == "known A"
    assert bound_name(("B",), ("REL_B1",)) == "shared B, known REL_B1"


def test_least_squares_with_b_known_is_at_its_bound_and_rows_say_so():
    kappa = torch.tensor([[0.65, 0.65], [1.9, 1.9], [0.6, 1.2]], dtype=torch.float64)
    model = InversionRecovery(ti=tuple(np.linspace(0.1, 3.0, 12)))
    one = truth(model=model, kappa=kappa, voxels=300, repeats=8)
    method = Contender("fit", build_estimator("least-squares", model, {"covariance": True}), ("B",))
    assert method.bound == "known B"
    found = run(one, method, "T1", "T1", 60.0)
    bound = relative_bound(one, "T1", 60.0, known=("B",))
    # 2400 errors: relative SD of their RMSE 1.4 %, of their mean 2 % of the bound
    np.testing.assert_allclose(found["rmse"][0], bound, rtol=0.06)
    assert (np.abs(found["relative_bias"][0]) < 0.1 * bound).all()
    np.testing.assert_allclose(found["coverage"][0], 95, atol=2)
    np.testing.assert_allclose(found["noise_free"], 0, atol=1e-3)
    names = [point_name("T1", value) for value in kappa[2].tolist()]
    rows = list(rows_of("grid", "fit", "T1", names, 60.0, found, bound))
    table = {(row.tissue, row.metric): row for row in rows}
    assert names == ["T1 0.6 s", "T1 1.2 s"]
    assert {row.metric for row in rows} == {*METRICS, "rmse_over_bound", "width_over_bound", "noise_free_bias"}
    for i, name in enumerate(names):
        rmse, ratio = table[name, "rmse"], table[name, "rmse_over_bound"]
        assert rmse.low < rmse.value < rmse.high
        assert ratio.value == pytest.approx(rmse.value / bound[i])
        assert table[name, "width_over_bound"].value == pytest.approx(1, abs=0.05)
        assert rmse.sigma == pytest.approx(0.65 / 60)
    (first, _) = bound_rows("grid", "known B", "T1", names, 60.0, bound)
    assert (first.estimator, first.metric, first.value) == ("bound: known B", "bound", bound[0])


def test_the_page_says_who_is_at_the_bound_and_who_is_not():
    rng = np.random.default_rng(3)
    one = truth(voxels=500)
    bound = relative_bound(one, "T1RHO", 60.0)
    normal = rng.standard_normal((3, 500))
    spread = bound[:, None] / 100 * normal / np.sqrt((normal**2).mean(1, keepdims=True))
    good = found_for(Given(POINTS.numpy()[:, None] * (1 + spread)), one)
    poor = found_for(Given(POINTS.numpy()[:, None] * (1.2 + 3 * spread)), one)
    methods = [Contender(name, Given(np.ones((3, 500)))) for name in ("good", "poor")]
    found = {("good", 60.0): good, ("poor", 60.0): poor}
    study = GridStudy(one, "T1RHO", methods, (60.0,), {("free", 60.0): bound}, found)
    text = render(page(study))
    assert "<b>good</b>" in text.split("In one table")[0]
    assert "<b>poor</b>" not in text.split("In one table")[0]
    assert "100 % of 3 points and SNRs within 0.95 to 1.1" in text
    assert "0 % of 3 points and SNRs within 0.95 to 1.1" in text
    assert "95 % intervals</h2>" not in text


def test_methods_that_pool_are_as_precise_as_their_repeats():
    plenty = truth(voxels=400, repeats=25)
    single = Contender("alone", Given(np.ones((3, 400))))
    pooling = Contender("pooled", Given(np.ones((3, 400)), pools=("A",)))
    assert precision(plenty, [single]) == []
    # 1 / sqrt(2 * 24) and 1 / sqrt(25), with 10 000 voxels and repeats
    (said,) = precision(plenty, [single, pooling])
    assert said.startswith("pooled: ")
    assert "only the 25 repeats are independent" in said
    assert "about 14 %, biases one of 20 %" in said
    assert precision(truth(voxels=1000, repeats=100), [pooling]) == []
    assert len(precision(truth(voxels=10, repeats=4), [pooling])) == 2


def test_few_repeats_are_said():
    # SD of an SD of 9 Gaussian numbers: 1 / sqrt(16)
    (said,) = few_repeats_warning(9, "More.")
    assert said.startswith("9 noise realisations")
    assert said.endswith("about 25 %. More.")
    assert few_repeats_warning(50) == []
    assert "needs at least two" in few_repeats_warning(1)[0]


def test_points_beyond_an_axis_are_marked():
    x = np.array([1.0, 2.0, 3.0])
    figures = [
        curve_figure([Plot("t", "x", "y", [Curve("c", x, np.array(y), 0)], limits=(-10.0, 10.0), zero=True)], 1)
        for y in ([1.0, 10.0, np.nan], [1.0, 20.0, -30.0])
    ]
    assert ["beyond the axis" in b64decode(uri.split(",")[1]).decode() for uri in figures] == [False, True]


def test_a_method_without_an_estimate_has_a_page_too():
    one = truth(voxels=5)
    bound = relative_bound(one, "T1RHO", 60.0)
    none = Given(np.full((3, 5), np.nan))
    study = GridStudy(
        one,
        "T1RHO",
        [Contender("none", none)],
        (60.0,),
        {("free", 60.0): bound},
        {("none", 60.0): found_for(none, one)},
    )
    text = render(page(study))
    assert "it gives no estimate where the bound is under 12 %" in text
    assert "It fails most often at" in text
    assert not re.search(r"\bnan\b", re.sub(r"<style>.*?</style>|src=\"[^\"]*\"", "", text, flags=re.DOTALL))


@dataclass(frozen=True)
class Turning:
    """A decay whose transverse signal has turned by 120 degrees: real part -1/2, modulus 1."""

    signed: bool

    parameters, n_images = TWO.parameters, TWO.n_images

    def coherent(self, kappa):
        return TWO(kappa) * np.exp(2j * np.pi / 3)

    def __call__(self, kappa):
        return TWO(kappa) * (-0.5 if self.signed else 1.0)


@pytest.mark.parametrize(("signed", "factor"), [(True, -0.5), (False, 1.0)])
def test_a_complex_signal_keeps_its_sign_where_the_model_does(signed, factor):
    one = truth(SignedNoise(sigma=SIGMA) if signed else GAUSSIAN, voxels=2, model=Turning(signed))
    expected = factor * 0.65 * np.exp(-np.array(TWO.tsl)[:, None] / POINTS.numpy())
    np.testing.assert_allclose(clean_images(one)[..., 0], expected, rtol=1e-6)
