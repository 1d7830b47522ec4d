"""Fits of the wrong model against closed forms and scipy."""

import re
from dataclasses import dataclass, replace
from math import cos, log, radians

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from qsim.distributions import Constant
from qsim.estimators import Estimate, Status, build_estimator
from qsim.evaluation.pages.heat_report import render
from qsim.evaluation.pages.mismatch_page import MismatchStudy, page
from qsim.evaluation.studies.grid import Contender, Truth, relative_bound, run
from qsim.evaluation.studies.mismatch import (
    GRID_HEADER,
    Case,
    Fit,
    brightest_is_reference,
    case_rows,
    fitted_bound,
    grid_lines,
)
from qsim.kspace.noise import GaussianNoise, RicianNoise
from qsim.signals import InversionRecovery, InversionRecovery2P, LookLockerTrain, SpinLock

GAUSSIAN, RICIAN = GaussianNoise(sigma=Constant(value=1.0)), RicianNoise(sigma=Constant(value=1.0))
TI = (0.05, 0.15, 0.4, 0.8, 1.5, 3.0)


def fit(name, model, row):
    return Fit(Contender(name, build_estimator("least-squares", model, {"covariance": True})), model, row)


def case(model, kappa, axis, measured, fits, noise=GAUSSIAN, voxels=40, repeats=3, name="case"):
    truth = Truth(f"mismatch, {name}", model, kappa, noise, 4, voxels, repeats)
    return Case(name, "", truth, axis, False, measured, fits)


def outcome(one, which, snr):
    return run(one.truth, which.contender, which.row, one.measured, snr)


def inversion():
    b = torch.linspace(1.6, 2.0, 3, dtype=torch.float64)
    kappa = torch.stack((torch.full_like(b, 0.65), b, torch.ones_like(b)))
    fits = (fit("2", InversionRecovery2P(ti=TI), "T1"), fit("B", InversionRecovery(ti=TI), "T1"))
    return case(InversionRecovery(ti=TI), kappa, "B", "T1", fits)


def test_an_imperfect_inversion_taken_for_a_perfect_one_has_the_bias_that_scipy_finds():
    one = inversion()
    two, free = (outcome(one, which, 100.0) for which in one.fits)
    ti = np.array(TI)
    for i, b in enumerate((1.6, 1.8, 2.0)):
        seen = np.abs(0.65 * (1 - b * np.exp(-ti / 1.0)))

        def residual(x, seen=seen):
            return np.abs(x[0] * (1 - 2 * np.exp(-ti / x[1]))) - seen

        best = min(
            (least_squares(residual, (a, t)) for a in (0.4, 0.7) for t in (0.3, 0.6, 1.0, 1.5)), key=lambda r: r.cost
        )
        assert two["noise_free"][i] == pytest.approx(100 * (best.x[1] - 1), abs=2e-3)
    # images are float32
    np.testing.assert_allclose(free["noise_free"], 0, atol=0.01)
    assert two["noise_free"][0] < -5
    assert not two["noise_free_held"].any()


def test_a_look_locker_train_fitted_as_inversion_recovery_gives_t1_star():
    angle, tr, t1 = radians(3.0), 0.006, torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    model = LookLockerTrain(ti=tuple(np.linspace(0.05, 3.0, 20)), flip_angle=angle, tr=tr)
    rows = {"A": 1.0, "T2": 0.05, "DELTA_B0": 0.0, "REL_B1": 1.0}
    kappa = torch.stack([t1 if p.name == "T1" else torch.full_like(t1, rows[p.name]) for p in model.parameters])
    kappa = brightest_is_reference(model, kappa)
    assert model(kappa).abs().max().item() == pytest.approx(0.65)
    which = fit("ir", InversionRecovery(ti=model.ti), "T1")
    one = case(model, kappa, "T1", "T1", (which,))
    star = 1 / (1 / t1.numpy() - log(cos(angle)) / tr)
    found = outcome(one, which, 100.0)
    # a recovery to a steady state: exactly of the fitted form, with B = 1 + 1 / M0* under 3
    np.testing.assert_allclose(found["noise_free"], 100 * (star / t1.numpy() - 1), atol=0.02)


def test_noise_adds_the_spread_of_the_fitted_bound_to_the_bias():
    one = inversion()
    which = one.fits[0]
    found = outcome(one, which, 100.0)
    bound = fitted_bound(one, which, found["noise_free_kappa"], 100.0)
    # 120 errors: relative SD of their SD 6.5 %; a misfit changes the spread a little more
    np.testing.assert_allclose(found["sd"][0], bound, rtol=0.35)
    np.testing.assert_allclose(found["rmse"][0] ** 2, found["relative_bias"][0] ** 2 + found["sd"][0] ** 2, rtol=0.02)
    # where the model is right the bound is that of the truth
    right = one.fits[1]
    clean = outcome(one, right, 100.0)["noise_free_kappa"]
    expected = relative_bound(one.truth, "T1", 100.0)
    np.testing.assert_allclose(fitted_bound(one, right, clean, 100.0), expected, rtol=1e-3)
    missing = clean.copy()
    missing[0, 0] = np.nan
    assert np.isnan(fitted_bound(one, right, missing, 100.0)).all()


def test_a_gaussian_fit_of_magnitudes_reads_long_and_the_page_says_where():
    points = torch.tensor([0.02, 0.04], dtype=torch.float64)
    model = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
    kappa = brightest_is_reference(model, torch.stack((torch.ones_like(points), points)))
    which = fit("gauss", model, "T1RHO")
    floor = case(model, kappa, "T1RHO", "T1RHO", (which,), RICIAN, voxels=400, name="floor")
    wrong = inversion()
    cases, snrs = (floor, wrong), (5.0, 100.0)
    found = {(c.name, f.name, s): outcome(c, f, s) for c in cases for f in c.fits for s in snrs}
    assert (found["floor", "gauss", 5.0]["relative_bias_median"][0] > 5).all()
    np.testing.assert_allclose(found["floor", "gauss", 100.0]["noise_free"], 0, atol=1e-3)
    bounds = {
        (c.name, f.name, s): fitted_bound(c, f, found[c.name, f.name, 100.0]["noise_free_kappa"], s)
        for c in cases
        for f in c.fits
        for s in snrs
    }
    text = render(page(MismatchStudy(cases, snrs, 4, found, bounds)))
    assert "without noise no fit is off by 0.5 % or more" in text
    assert "most at B 1.6" in text
    # each case says what the lowest SNR adds
    assert text.split("<h2")[0].count("Noise of SNR 5 moves the median of") == 2
    # 120 voxels and repeats in one case: 1 / sqrt(2 * 119) = 6.5 %
    assert "120 voxels and repeats at each point: CV and RMSE carry a relative error of about 6 %" in text
    assert "Smallest RMSE (median over the axis)" in text or "has the smallest RMSE (median over the axis)" in text
    rows = list(case_rows(wrong, wrong.fits[0], 5.0, found["case", "2", 5.0], bounds["case", "2", 5.0]))
    assert {row.tissue for row in rows} == {"case, B 1.6", "case, B 1.8", "case, B 2"}
    assert {"bound", "rmse", "rmse_over_bound", "noise_free_bias"} <= {row.metric for row in rows}
    lines = list(grid_lines(floor, which, 5.0, found["floor", "gauss", 5.0], bounds["floor", "gauss", 5.0]))
    assert len(lines) == 2
    assert all(len(line) == len(GRID_HEADER) for line in lines)
    assert [line[GRID_HEADER.index("truth")] for line in lines] == [0.02, 0.04]


def test_a_magnitude_likelihood_is_right_without_noise_whatever_the_snr():
    points = torch.tensor([0.02, 0.08], dtype=torch.float64)
    model = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
    kappa = brightest_is_reference(model, torch.stack((torch.ones_like(points), points)))
    which = Fit(Contender("rice", build_estimator("rician", model)), model, "T1RHO")
    one = case(model, kappa, "T1RHO", "T1RHO", (which,), RICIAN, voxels=3)
    # told the sigma of SNR 5 it would correct by percents
    np.testing.assert_allclose(outcome(one, which, 5.0)["noise_free"], 0, atol=0.02)


@dataclass(frozen=True)
class Nothing:
    """Gives up on every voxel."""

    name: str = "nothing"

    @property
    def parameters(self):
        return InversionRecovery2P(ti=TI).parameters

    def __call__(self, images, sigma=None, mask=None, known=None):
        lost = torch.full(images.shape[1:], int(Status.NOT_COMPUTED), dtype=torch.uint8)
        return Estimate(torch.full((2, *images.shape[1:]), torch.nan), lost)


def test_a_fit_without_an_estimate_has_a_page_too():
    whole = inversion()
    one = replace(whole, fits=(whole.fits[1], Fit(Contender("none", Nothing()), InversionRecovery2P(ti=TI), "T1")))
    found = {("case", f.name, 30.0): outcome(one, f, 30.0) for f in one.fits}
    bounds = {
        ("case", f.name, 30.0): fitted_bound(one, f, found["case", f.name, 30.0]["noise_free_kappa"], 30.0)
        for f in one.fits
    }
    text = render(page(MismatchStudy((one,), (30.0,), 4, found, bounds)))
    assert "it gives no estimate" in text
    assert "100 % failed" in text
    assert "“B” has the smallest RMSE" in text
    alone = replace(one, fits=(one.fits[1], replace(one.fits[1], contender=Contender("void", Nothing()))))
    found |= {("case", "void", 30.0): found["case", "none", 30.0]}
    bounds |= {("case", "void", 30.0): bounds["case", "none", 30.0]}
    lost = render(page(MismatchStudy((alone,), (30.0,), 4, found, bounds)))
    # where nobody has an estimate nobody is the best, and nothing is moved
    assert "without noise no fit gives an estimate" in lost
    assert "smallest RMSE" not in lost.split("<h2")[0].split("</h1>")[1]
    assert "moves the median" not in lost
    assert not re.search(r"\bnan\b", re.sub(r"<style>.*?</style>|src=\"[^\"]*\"", "", text, flags=re.DOTALL))
