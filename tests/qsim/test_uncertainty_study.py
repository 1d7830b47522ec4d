"""An `uncertainty` study of errors whose law is known exactly, and of estimators whose answer is known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from qsim.distributions import Constant
from qsim.estimators.base import Estimate
from qsim.estimators.least_squares import LeastSquares
from qsim.estimators.two_point import TwoPoint
from qsim.evaluation.studies.uncertainty_study import (
    GROUPS,
    Said,
    ask,
    judge,
    metric_names,
    pure_bound,
    pure_labels,
    pure_truth,
    refusal,
    silence,
)
from qsim.evaluation.studies.uncertainty_table import Uncertainty, rows, wilson
from qsim.evaluation.study import Case, Design
from qsim.information import crb
from qsim.kspace.noise import GaussianNoise
from qsim.parameters import T1RHO
from qsim.signals import InversionRecovery, SpinLock

MODEL = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
RECOVERY = InversionRecovery(ti=(0.1, 0.3, 0.7, 1.5, 3.0))
Z = stats.norm.ppf(0.975)
REPEATS, VOXELS = 200, 300


def make_case(size=12):
    """Liver on the left, muscle on the right, one mixed column, a column of background."""
    labels = torch.ones(size, size, dtype=torch.uint8)
    labels[:, size // 2 :] = 2
    labels[:, -1] = 0
    purity = torch.ones(size, size)
    purity[:, 0] = 0.7
    t = torch.where(labels == 1, 0.045, 0.055)
    kappa = torch.stack([torch.full((size, size), 0.65), t]) * (labels > 0)
    signal = MODEL.coherent(torch.where(labels > 0, kappa, torch.tensor(1.0))) * (labels > 0)
    return Case(0, signal, kappa, labels, purity, ("liver", "muscle"))


def design(repeats=3, model=MODEL):
    return Design(model, GaussianNoise(sigma=Constant(value=0.1)), seed=3, repeats=repeats)


@dataclass
class States:
    """The same T1rho and SD everywhere, whatever the images; `variances` as given."""

    variances: tuple
    t: float = 0.05
    name: str = "states"
    parameters: tuple = (T1RHO,)

    def __call__(self, images, sigma=None, mask=None, known=None):
        shape = images.shape[1:]
        images.zero_()  # a rude method that works in place
        kappa, status = torch.full((1, *shape), self.t), torch.zeros(shape, dtype=torch.uint8)
        status[0] = 1
        return Estimate(kappa, status, {f"{i}": torch.full((1, *shape), v) for i, v in enumerate(self.variances)})


@pytest.fixture(scope="module")
def said():
    """Gaussian errors whose SD is stated exactly: 4 % of the voxels' truth in tissue 1, 2 or 6 % in tissue 2."""
    rng = np.random.default_rng(1)
    truth = np.where(np.arange(VOXELS) < VOXELS // 2, 0.05, 0.1)
    labels = np.where(truth < 0.07, 1, 2).astype(np.uint8)
    share = np.where(labels == 1, 0.04, np.where(np.arange(VOXELS) % 2, 0.02, 0.06))
    sd = np.broadcast_to(share * truth, (REPEATS, VOXELS))
    estimate = truth + sd * rng.standard_normal(sd.shape)
    ends = {"wald": (estimate - Z * sd, estimate + Z * sd)}
    none = np.zeros(sd.shape, dtype=bool)
    return Said(estimate, sd, none, ends, {"wald": none}, np.zeros((2, 1, 1))), truth, sd[0].copy(), labels


def figures(judged, region, metric, group=0, kinds=("wald",)):
    return judged.figures[region, group, metric_names(kinds).index(metric)]


def test_exact_gaussian_errors(said):
    what, truth, sd, labels = said
    judged = judge(what, truth, 0.5 * sd, labels, ("a", "b"), ("wald",), 0.95)
    n = REPEATS * VOXELS // 2
    assert judged.n[:, 0].tolist() == [n, n, 2 * n]
    # binomial SD of a coverage: sqrt(.95 x .05 / 30000) = .13 %; four of them
    for region in range(3):
        assert figures(judged, region, "coverage_wald") == pytest.approx(95, abs=0.5)
        # the smallest two thirds of |error| are below .97 SD, all held; of the rest (.95 - 2/3) / (1/3)
        terciles = [figures(judged, region, "coverage_wald", group) for group in (1, 2, 3)]
        assert terciles == pytest.approx([100, 100 if region == 0 else terciles[1], terciles[2]])
        assert sum(terciles) / 3 == pytest.approx(95, abs=0.5)
        assert figures(judged, region, "width_over_bound_wald") == pytest.approx(2)
        assert figures(judged, region, "sd_over_bound") == pytest.approx(2)
        assert figures(judged, region, "undefined_rate") == figures(judged, region, "at_bound_rate") == 0
        assert figures(judged, region, "calibration_error") < 0.5
        # scatter of an RMSE: sqrt(bins / (pi n)) is under 1.1 %
        assert figures(judged, region, "ence") < 2.5
    assert figures(judged, 0, "coverage_wald", 3) == pytest.approx(85, abs=1.5)
    assert figures(judged, 0, "width_wald") == pytest.approx(2 * Z * 4)
    # CRPS of a calibrated Gaussian is SD / sqrt(pi); its own best constant width in tissue 1
    assert figures(judged, 0, "crps") == pytest.approx(4 / np.sqrt(np.pi), rel=0.02)
    assert figures(judged, 1, "crps") == pytest.approx(4 / np.sqrt(np.pi), rel=0.02)
    assert figures(judged, 0, "crps_over_constant") == pytest.approx(1, abs=1e-3)
    assert figures(judged, 1, "crps_over_constant") < 0.97
    # one SD has no order: the random curve
    assert np.isnan(figures(judged, 0, "spearman"))
    assert figures(judged, 0, "aurg") == pytest.approx(0, abs=1e-9)
    # two SDs: half removed leaves those of 2 %, of sqrt((2^2 + 6^2) / 2)
    assert judged.sparsification[1, 0, 25] == pytest.approx(2 / np.sqrt(20), rel=0.03)
    assert (judged.sparsification[:, 0] >= judged.sparsification[:, 1] - 1e-12).all()
    np.testing.assert_allclose(judged.bins[1, 0], [2] * 5 + [6] * 5, rtol=1e-6)
    np.testing.assert_allclose(judged.observed[2], np.arange(1, 20) / 20, atol=0.01)


def test_what_has_no_sd_is_counted_and_an_infinite_one_goes_first(said):
    what, truth, sd, labels = said
    stated, estimate = what.sd.copy(), what.estimate.copy()
    stated[:, 0], stated[:, 1], stated[:, 2], estimate[:, 3] = np.nan, np.inf, 0.0, np.nan
    # the voxel of infinite SD errs by more than its tissue knows
    estimate[:, 1] = truth[1] * 3
    lower, upper = (end.copy() for end in what.ends["wald"])
    lower[:, 0], upper[:, 3] = np.nan, np.nan
    lower[:, 1], upper[:, 1] = 1e-3, 10.0
    bound = sd.copy()
    bound[4], bound[5] = np.inf, 0.0
    broken = replace(what, estimate=estimate, sd=stated, ends={"wald": (lower, upper)})
    judged = judge(broken, truth, bound, labels, ("a", "b"), ("wald",), 0.95)
    own = VOXELS // 2
    assert figures(judged, 0, "undefined_rate") == pytest.approx(100 * 4 / own)
    assert figures(judged, 0, "undefined_rate_wald") == pytest.approx(100 * 2 / own)
    assert figures(judged, 1, "undefined_rate") == 0
    # voxels without an estimate have no |error|: they are in none of the terciles
    assert judged.n[0, 1:].sum() == REPEATS * (own - 1)
    # 1 of 149 voxels with an estimate errs by 200 %, the others by 4 %. With the two others that have no finite SD it
    # goes first: at 4 % removed the error is that of the rest
    whole = np.sqrt((200**2 + 148 * 4**2) / 149)
    assert judged.sparsification[0, 0, 2] == pytest.approx(4 / whole, rel=0.02)
    # CRPS leaves it out, and so does its opponent
    assert figures(judged, 0, "crps") == pytest.approx(4 / np.sqrt(np.pi), rel=0.02)
    assert figures(judged, 0, "crps_over_constant") == pytest.approx(1, abs=1e-3)
    assert figures(judged, 0, "width_over_bound_wald") == pytest.approx(1)


def test_a_tissue_without_voxels_has_no_figures(said):
    what, truth, sd, labels = said
    judged = judge(what, truth, sd, labels, ("a", "b", "c"), ("wald", "choose"), 0.95)
    assert judged.n[2].tolist() == [0] * len(GROUPS)
    assert np.isnan(judged.figures[2]).all()
    assert judged.n[3, 0] == REPEATS * VOXELS
    assert np.isnan(figures(judged, 0, "coverage_choose", kinds=("wald", "choose")))


def test_intervals_are_those_of_all_variances_together():
    case = make_case()
    method = States((9e-6, 16e-6))
    found = ask(case, method, ("wald", "log-wald"), design(), 10.0, "T1RHO", 0.95)
    # 12 rows of 12 columns less the mixed and the empty one
    assert found.estimate.shape == (3, 120)
    np.testing.assert_allclose(found.sd, 0.005, rtol=1e-5)
    np.testing.assert_allclose(found.ends["wald"][0], 0.05 - Z * 0.005, rtol=1e-5)
    np.testing.assert_allclose(found.ends["wald"][1], 0.05 + Z * 0.005, rtol=1e-5)
    np.testing.assert_allclose(found.ends["log-wald"][1], 0.05 * np.exp(Z * 0.1), rtol=1e-5)
    assert found.at_bound.sum() == 3 * 10
    assert np.isnan(found.first[:, :, 0]).all()
    np.testing.assert_allclose(found.first[0, :, 1], 0.005, rtol=1e-5)
    np.testing.assert_allclose(found.first[0, :, 6], -0.005, rtol=1e-5)
    # an interval as wide as the range: both ends are those of the range
    wide = ask(case, States((1e4,)), ("wald",), design(), 10.0, "T1RHO", 0.95)
    assert wide.one_sided["wald"].all()
    np.testing.assert_allclose(wide.ends["wald"][1], T1RHO.upper, rtol=1e-6)
    judged = judge(
        wide,
        pure_truth(case, MODEL, "T1RHO"),
        np.full(120, 0.01),
        pure_labels(case),
        case.tissues,
        ("wald",),
        0.95,
    )
    assert figures(judged, 0, "coverage_wald") == figures(judged, 0, "one_sided_rate_wald") == 100


def test_the_bound_is_that_of_the_pure_voxels():
    found = pure_bound(make_case(), "free", design(), 10.0, "T1RHO")
    expected = [float(crb(MODEL, torch.tensor([[0.65], [t]]).double(), 0.065).cv[1, 0]) for t in (0.045, 0.055)]
    assert sorted(set(np.round(found, 6))) == pytest.approx(sorted(expected), rel=1e-5)
    assert found.shape == (120,)


@pytest.mark.parametrize("kinds", [("wald", "log-wald", "profile", "choose")])
def test_least_squares_at_high_snr_is_honest(kinds):
    case, about = make_case(), design(repeats=30)
    method = LeastSquares(MODEL, covariance=True)
    found = ask(case, method, kinds, about, 100.0, "T1RHO", 0.95)
    truth = pure_truth(case, MODEL, "T1RHO")
    limit = pure_bound(case, "free", about, 100.0, "T1RHO") / 100 * truth
    judged = judge(found, truth, limit, pure_labels(case), case.tissues, kinds, 0.95)
    for kind in kinds:
        # 3600 independent intervals: binomial SD .36 %, three of them
        assert figures(judged, 2, f"coverage_{kind}", kinds=kinds) == pytest.approx(95, abs=1.1)
        # the likelihood is a parabola: all of them are the bound's, but for the SD at the estimate
        assert figures(judged, 2, f"width_over_bound_{kind}", kinds=kinds) == pytest.approx(1, abs=0.02)
    assert figures(judged, 2, "calibration_error", kinds=kinds) < 1.5


def test_who_can_have_a_profile_interval():
    fit = LeastSquares(RECOVERY, covariance=True)
    for kind in ("wald", "log-wald"):
        assert refusal(kind, TwoPoint(MODEL), ("A",), MODEL, "T1RHO") == ""
    for kind in ("profile", "choose"):
        assert refusal(kind, fit, (), RECOVERY, "T1") == refusal(kind, fit, ("B",), RECOVERY, "T1") == ""
        assert refusal(kind, LeastSquares(MODEL), (), MODEL, "T1RHO") == ""
        assert "not the maximum of the Gaussian likelihood" in refusal(kind, TwoPoint(MODEL), (), MODEL, "T1RHO")
        assert refusal(kind, fit, ("A", "B"), RECOVERY, "T1") == "A is told, and the profile knows B alone"
        assert refusal(kind, fit, (), RECOVERY, "A") == "the profile is that of T1"


def test_who_states_nothing():
    case = make_case()
    assert silence(case, States((1e-6,)), design(), 30.0, "T1RHO") == ""
    assert silence(case, States(()), design(), 30.0, "T1RHO") == "it states no variances"
    assert silence(case, States((np.nan,)), design(), 30.0, "T1RHO").startswith("it states no finite variance")
    assert silence(case, States((1e-6,)), design(), 30.0, "T2") == "it does not estimate T2"


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (95, 100), (9480, 10000)])
def test_wilson_is_that_of_scipy(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    found = wilson(100 * hits / n, n)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert np.isnan(wilson(np.nan, 0).low)


def test_rows_of_a_single_draw_carry_the_binomial_interval(said):
    what, truth, sd, labels = said
    kinds = ("wald", "choose")
    judged = judge(what, truth, sd, labels, ("a", "b"), kinds, 0.95)
    found = Uncertainty(
        parameter="T1",
        level=0.95,
        kinds=kinds,
        methods=["m"],
        silent={},
        refusals={("m", "choose"): "because"},
        tissues=("a", "b"),
        snrs=(10.0,),
        repeats=REPEATS,
        judged={10.0: [{"m": judged}]},
        bounds={10.0: [{"m": np.array([4.0, 4.0, 4.0])}]},
        bound_of={"m": "free"},
    )
    table = {(row.tissue, row.metric, row.draw): row for row in rows(found)}
    whole = table["a", "coverage_wald", "all"]
    ci = stats.binomtest(round(whole.value / 100 * whole.n), whole.n).proportion_ci(method="wilson")
    assert (whole.low, whole.high) == pytest.approx((100 * ci.low, 100 * ci.high))
    assert whole.n == REPEATS * VOXELS // 2
    assert table["b, tercile 2", "coverage_wald", 0].n == pytest.approx(whole.n / 3, abs=1)
    assert table["all tissues", "crps", "all"].value > 0
    assert table["a", "bound_median", "all"].n == VOXELS // 2
    assert not any("choose" in metric for _, metric, _ in table)
    assert ("a, tercile 1", "spearman", "all") not in table
