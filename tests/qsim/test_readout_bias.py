"""Two- against three-parameter fits behind a readout: the printed oracle, closed forms with scipy, noise and bounds."""

from dataclasses import replace
from math import cos, exp, pi, sin

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from qsim.estimators import Status
from qsim.evaluation.pages.readout_page import Outcome, crossing
from qsim.evaluation.studies.apparent import Fitted, TissueTimes, axis
from qsim.evaluation.studies.readout_bias import (
    Case,
    Errors,
    NoiseFree,
    monte_carlo,
    noise_free,
    sweep,
    trials,
    unprepared,
)
from qsim.evaluation.studies.readout_table import METRICS, noise_free_rows, noise_rows
from qsim.kspace.order import Acquisition
from qsim.signals.preparations import Inversion, SpinLockPreparation, T2Preparation
from qsim.signals.readout import Ideal
from qsim.signals.spoiled import SpoiledGradientEcho
from qsim.signals.ssfp import BalancedSSFP
from qsim.signals.turbo import TurboSpinEcho

TSL = (0.0, 0.01, 0.03, 0.05)
REFERENCE = TissueTimes(name="reference", t1=1.0, t2=0.05, t1rho=0.05, source="round numbers")
BSL = SpinLockPreparation(cluster="BSL", tsl=TSL, fsl=400.0)
LINEAR = SpoiledGradientEcho(flip_angle=10 * pi / 180, tr=0.005, acquisition=Acquisition(lines=64))
CENTRIC = replace(LINEAR, acquisition=Acquisition(lines=64, order="centric"))
BALANCED = BalancedSSFP(flip_angle=pi / 4, tr=0.004, acquisition=Acquisition(lines=64))
TURBO = TurboSpinEcho(esp=0.005, refocusing_angle=2 * pi / 3, acquisition=Acquisition(lines=64, shots=4))


def case(readout, preparation=BSL, tissue=REFERENCE, tr=None):
    return Case(preparation, readout, (preparation.kind, readout.kind), tissue, tr)


def spoiled_signal(times, t, t1, flip, tr, n):
    """sin(a) [M0* + (M - M0*) (E1 cos a)^n] of M = exp(-t / T), by hand."""
    e1 = exp(-tr / t1)
    steady = (1 - e1) / (1 - e1 * cos(flip))
    return sin(flip) * (steady + (np.exp(-np.array(times) / t) - steady) * (e1 * cos(flip)) ** n)


def two_parameters(times, images):
    model = lambda t, a, tau: a * np.exp(-t / tau)  # noqa: E731
    return curve_fit(model, np.array(times), images, p0=(images[0], 0.06), xtol=1e-12, ftol=1e-12)[0][1]


def test_linear_order_to_the_printed_digits():
    """T1 1 s, TR 5 ms, 10 degrees, 32 pulses before the centre: 68.06 ms of a true 50 ms; 50.000 with a constant."""
    found = noise_free(case(LINEAR))
    assert 1e3 * float(found.fits["2p"].time[0]) == pytest.approx(68.06, abs=0.005)
    assert 1e3 * float(found.fits["3p"].time[0]) == pytest.approx(50.000, abs=0.0005)
    # M0* .248086, (E1 cos a)^32 = .522107
    offset = 0.248086 * (1 - 0.522107)
    assert found.constant == pytest.approx(100 * offset / (offset + 0.522107), abs=1e-3)
    assert found.signal == pytest.approx(sin(10 * pi / 180) * (offset + 0.522107), abs=1e-6)


def test_sweeps_against_the_closed_form_fitted_by_scipy():
    # both fits stop where the objective is flat: 1e-5 of T, a hundredth of the printed digit
    t1 = axis(0.5, 2.0, 3)
    by_flip = sweep(case(LINEAR), "flip_angle", axis(0.1, 0.3, 3), t1)
    by_echo = sweep(case(LINEAR), "echoes", axis(0.0, 40.0, 3), t1)
    for y, relaxation in enumerate(t1.tolist()):
        for x, flip in enumerate(by_flip.values):
            expected = two_parameters(TSL, spoiled_signal(TSL, 0.05, relaxation, flip, 0.005, 32))
            assert by_flip.fits["2p"].time[y, x] == pytest.approx(expected, rel=1e-5)
        for x, echoes in enumerate(by_echo.values):
            expected = two_parameters(TSL, spoiled_signal(TSL, 0.05, relaxation, 10 * pi / 180, 0.005, int(echoes)))
            assert by_echo.fits["2p"].time[y, x] == pytest.approx(expected, rel=1e-5)
    # a constant is all that the readout adds
    for found in (by_flip, by_echo):
        np.testing.assert_allclose(found.bias("3p"), 0, atol=1e-4)


def test_b1_acts_on_preparation_and_readout():
    """At B1 .9 the flip angle is 9 degrees and a two-parameter BSL gives 50.7 ms by itself: more bias than either."""
    found = sweep(case(LINEAR), "rel_b1", axis(0.9, 1.0, 2), axis(1.0, 2.0, 2))
    readout_alone = two_parameters(TSL, spoiled_signal(TSL, 0.05, 1.0, 9 * pi / 180, 0.005, 32))
    assert found.fits["2p"].time[0, 0] > readout_alone + 0.0005
    assert found.fits["2p"].time[0, 1] == pytest.approx(0.06806, abs=5e-6)


@pytest.mark.parametrize("readout", [Ideal(), CENTRIC, TURBO], ids=lambda r: r.kind)
def test_readouts_that_add_no_constant(readout):
    found = noise_free(case(readout))
    for fitted in found.fits.values():
        assert float(fitted.time[0]) == pytest.approx(0.05, rel=1e-6)
    assert found.constant == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("readout", [LINEAR, BALANCED], ids=lambda r: r.kind)
@pytest.mark.parametrize(
    "preparation",
    [BSL, T2Preparation(te=(0.0, 0.03, 0.06, 0.1), refocusing="MLEV4"), Inversion(ti=(0.05, 0.3, 0.8, 1.5, 3.0))],
    ids=lambda p: p.kind,
)
def test_a_third_parameter_mends_a_constant_and_two_do_not(readout, preparation):
    one = case(readout, preparation)
    fits = noise_free(one).fits
    assert float(fits["3p"].relative_bias(one.true)[0]) == pytest.approx(0, abs=1e-3)
    # decays look slower; an inversion whose images start above -A looks faster
    bias = float(fits["2p"].relative_bias(one.true)[0])
    assert bias < -10 if isinstance(preparation, Inversion) else bias > 10


def test_repetition_leaves_the_decay_a_decay_on_a_constant_for_one_preparation_only():
    """With a short TR every image starts from its own steady state: the third parameter no longer mends all."""
    short, long = (noise_free(case(LINEAR, tr=tr)).fits["3p"] for tr in (0.6, 60.0))
    assert abs(float(long.relative_bias(0.05)[0])) < 1e-6
    assert abs(float(short.relative_bias(0.05)[0])) > 0.1


def test_errors_meet_their_bound_at_high_snr():
    """No bias, SD on the bound: 2000 repeats leave 1.6 % of the SD, three draws 1 %."""
    found = monte_carlo(case(LINEAR), trials(3, 3, 2000, 0.1, 4), (3000.0,))
    three = found["3p"]
    np.testing.assert_allclose(three.sd, three.bound, rtol=0.06)
    assert np.all(np.abs(three.bias) < 4 * three.bound / np.sqrt(2000))
    # two parameters are precise and wrong
    two = found["2p"]
    assert np.all(two.sd < three.sd)
    np.testing.assert_allclose(two.bias, two.noise_free, atol=0.05)
    assert np.all(two.noise_free > 25)


def test_errors_hold_together():
    found = monte_carlo(case(BALANCED), trials(3, 2, 50, 0.1, 4), (30.0, 300.0))
    for errors in found.values():
        np.testing.assert_allclose(errors.rmse**2, errors.bias**2 + errors.sd**2, rtol=1e-10)
        assert errors.bias.shape == (2, 2)
        assert np.all(errors.typical <= errors.rmse)


def test_every_readout_has_the_snr_of_its_own_unprepared_image():
    """A readout without a constant is the ideal one on another scale: the same errors under the same noise."""
    trial = trials(5, 2, 40, 0.1, 4)
    ideal = monte_carlo(case(Ideal()), trial, (50.0,))
    scaled = monte_carlo(case(CENTRIC), trial, (50.0,))
    assert unprepared(case(CENTRIC)) == pytest.approx(sin(10 * pi / 180))
    for which in ("2p", "3p"):
        np.testing.assert_allclose(scaled[which].rmse, ideal[which].rmse, rtol=1e-5)


def test_draws_do_not_depend_on_each_other():
    one, three = trials(7, 1, 20, 0.1, 4), trials(7, 3, 20, 0.1, 4)
    np.testing.assert_array_equal(one.factors[0], three.factors[0])
    assert torch.equal(one.normals[:, 0], three.normals[:, 0])
    assert np.all(np.abs(three.factors - 1) <= 0.1)
    assert len(np.unique(three.factors)) == 9


def outcome(two, three):
    """Errors with these RMSE of two and three parameters by SNR."""
    status = np.full(1, int(Status.OK), dtype=np.uint8)
    fitted = Fitted(np.array([0.05]), np.array([0.0]), status, np.zeros((2, 1)))
    errors = {
        which: Errors(**{name: np.array([rmse], dtype=float) for name in METRICS.values()}, n=1)
        for which, rmse in (("2p", two), ("3p", three))
    }
    return Outcome(case(Ideal()), NoiseFree({"2p": fitted, "3p": fitted}, 0.0, 1.0), errors, ())


def test_where_the_third_parameter_begins_to_pay():
    snrs = (10.0, 1000.0)
    assert crossing(outcome([2.0, 2.0], [4.0, 1.0]), snrs) == pytest.approx(100.0)
    assert crossing(outcome([2.0, 2.0], [4.0, 3.0]), snrs) is None
    assert crossing(outcome([2.0, 2.0], [1.0, 1.0]), snrs) == 0.0
    # the order of the config does not matter
    assert crossing(outcome([2.0, 2.0], [1.0, 4.0]), snrs[::-1]) == pytest.approx(100.0)


def test_long_table():
    one = case(LINEAR)
    clean = list(noise_free_rows(one, noise_free(one)))
    assert {row.metric for row in clean} == {"apparent", "relative_bias", "residual", "constant"}
    apparent = next(r for r in clean if r.metric == "apparent" and r.estimator.endswith("2p"))
    assert apparent.value == pytest.approx(0.06806, abs=5e-6)
    found = monte_carlo(one, trials(1, 3, 10, 0.1, 4), (30.0, 100.0))
    table = list(noise_rows(one, found, (30.0, 100.0)))
    assert len(table) == 2 * len(METRICS) * 2 * 4
    mean = next(r for r in table if (r.metric, r.snr, r.draw) == ("rmse", 100.0, "all") and r.estimator.endswith("3p"))
    assert mean.sigma == pytest.approx(0.0065)
    assert mean.value == pytest.approx(found["3p"].rmse[:, 1].mean())
    assert mean.low < mean.value < mean.high
    assert mean.n == 30
