"""Apparent T1rho and T2 over fields: printed oracles, exact cases, figures of a map made by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from qsim.errors import InputError
from qsim.estimators import Status
from qsim.evaluation.studies.apparent import Fitted, TissueTimes, axis, label, truth
from qsim.evaluation.studies.prep_robustness import (
    GRID_HEADER,
    Central,
    Robustness,
    figures,
    grid_rows,
    nominal,
    robustness,
    rows,
)
from qsim.signals.preparations import CLUSTERS, REFOCUSINGS, SpinLockPreparation, T2Preparation

REFERENCE = TissueTimes(name="reference", t1=1.0, t2=0.05, t1rho=0.05, source="round numbers")
TSL = (0.0, 0.01, 0.03, 0.05)
# apparent T1rho [ms] of a two-parameter fit, true 50 ms, at (b1, Hz) below; matrix exponentials and an ODE, apart from
# this package, printed with these digits
FIELDS = ((1.0, 0.0), (0.9, 0.0), (0.8, 0.0), (1.0, 50.0), (1.0, 100.0))
APPARENT = {
    "SSL": (50.0, 50.1, 45.1, 51.2, 46.2),
    "RESL": (50.0, 50.7, 52.9, 50.6, 38.7),
    "CSL": (50.0, 50.7, 52.4, 51.1, 54.2),
    "BSL": (50.0, 50.7, 52.9, 51.2, 54.4),
    "PSCSL": (50.0, 49.3, 47.4, 51.2, 55.2),
    "TRSL": (50.0, 50.7, 52.4, 51.1, 54.3),
}
# Mz of a T2 preparation of 40 ms on the same tissue at (b1, Hz) = (1, 0), (.9, 0), (.8, 0), (1, 60)
T2_FIELDS = ((1.0, 0.0), (0.9, 0.0), (0.8, 0.0), (1.0, 60.0))
STORED = {
    ("1x180", False): (0.4493, 0.4162, 0.3335, 0.4493),
    ("MLEV4", False): (0.4493, 0.4598, 0.4753, 0.4493),
    ("MLEV4", True): (0.4493, 0.4630, 0.5127, 0.4493),
    ("4x180", False): (0.4493, 0.4487, 0.3615, 0.4493),
}


def spin_lock(cluster):
    return SpinLockPreparation(cluster=cluster, tsl=TSL, fsl=400.0)


def t2_prep(refocusing, te=(0.02, 0.04, 0.06, 0.08), **changes):
    return T2Preparation(te=te, refocusing=refocusing, **changes)


def points(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_apparent_t1rho_to_the_printed_digit(cluster):
    found = []
    for b1, b0 in FIELDS:
        result = robustness(spin_lock(cluster), REFERENCE, points(b0), points(b1))
        found.append(round(1e3 * float(result.fits["2p"].time[0, 0]), 1))
    assert tuple(found) == APPARENT[cluster]


@pytest.mark.parametrize(("refocusing", "composite"), STORED)
def test_apparent_t2_of_printed_magnetisation(refocusing, composite):
    """The printed Mz at 40 ms; the apparent T2 of a series that ends there is that of scipy's fit."""
    preparation = t2_prep(refocusing, te=(0.0, 0.02, 0.04), composite=composite)
    for (b1, b0), printed in zip(T2_FIELDS, STORED[refocusing, composite], strict=True):
        mz = preparation(t1=1.0, t2=0.05, delta_b0=b0, rel_b1=b1)
        assert float(mz[-1]) == pytest.approx(printed, abs=5e-5)
        result = robustness(preparation, REFERENCE, points(b0), points(b1))
        assert float(result.fits["2p"].time[0, 0]) == pytest.approx(fitted_by_scipy(preparation.te, mz.abs()), rel=1e-5)


def fitted_by_scipy(times, images):
    """Two-parameter least squares, Levenberg-Marquardt from a logarithmic fit."""
    times, images = np.array(times), images.numpy().ravel()
    rate, _ = np.polyfit(times, np.log(images), 1)
    model = lambda t, a, tau: a * np.exp(-t / tau)  # noqa: E731
    return curve_fit(model, times, images, p0=(images[0], -1 / rate), xtol=1e-12, ftol=1e-12)[0][1]


@pytest.mark.parametrize(
    "preparation",
    [
        *(spin_lock(cluster) for cluster in CLUSTERS),
        *(t2_prep(r, composite=c, tip_up=up) for r in REFOCUSINGS for c, up in ((False, "plain"), (True, "composite"))),
    ],
    ids=lambda p: f"{p.kind}-{label(p)}",
)
def test_hard_pulses_in_nominal_fields_have_no_bias(preparation):
    """Then Mz = exp(-t / T) exactly, with whatever T1; the series of a fit without noise identifies T to 1e-7."""
    tissue = TissueTimes(name="x", t1=0.7, t2=0.041, t1rho=0.063, source="made up")
    result = robustness(preparation, tissue, points(0.0), points(1.0))
    for fitted in result.fits.values():
        assert int(fitted.status[0, 0]) == Status.OK
        assert float(fitted.time[0, 0]) == pytest.approx(truth(preparation, tissue), rel=1e-6)


@pytest.mark.parametrize("composite", [False, True])
@pytest.mark.parametrize("refocusing", REFOCUSINGS)
def test_hard_pulses_at_nominal_b1_refocus_every_off_resonance(refocusing, composite):
    """A whole row of the map without bias: phases are refocused, and the magnetisation stays transverse."""
    result = robustness(t2_prep(refocusing, composite=composite), REFERENCE, axis(-200.0, 200.0, 41), points(1.0))
    np.testing.assert_allclose(result.bias("2p"), 0, atol=1e-4)
    assert not result.negative.any()


def test_a_point_does_not_depend_on_its_grid():
    b0, b1 = axis(-100.0, 100.0, 5), axis(0.8, 1.2, 3)
    together = robustness(spin_lock("TRSL"), REFERENCE, b0, b1)
    for y in range(3):
        for x in range(5):
            alone = robustness(spin_lock("TRSL"), REFERENCE, b0[x : x + 1], b1[y : y + 1])
            np.testing.assert_allclose(together.bias("3p")[y, x], alone.bias("3p")[0, 0], rtol=1e-7, atol=1e-7)


def by_hand():
    """Five by three points: biases 0 to 14 %, the last fit at a bound, the first not converged."""
    bias = np.arange(15.0).reshape(3, 5)
    bias[0, 1] = -30.0
    status = np.zeros((3, 5), dtype=np.uint8)
    status[2, 4], status[0, 0] = int(Status.AT_BOUND), int(Status.NOT_CONVERGED)
    bias[0, 0] = np.nan
    fitted = Fitted(0.05 * (1 + bias / 100), np.zeros_like(bias), status, np.zeros((2, 3, 5)))
    return Robustness(
        *("BSL", "hard", "spin_lock", "T1RHO", "reference", 0.05),
        delta_b0=np.array([-200.0, -100.0, 0.0, 100.0, 200.0]),
        rel_b1=np.array([0.8, 1.0, 1.2]),
        fits={"2p": fitted, "3p": fitted},
        negative=bias > 12.5,
    )


def test_figures_of_a_map_made_by_hand():
    found = figures(by_hand(), "2p")
    # 14 values: -30, 2, 3, ..., 14
    assert found.n == 14
    assert found.median == pytest.approx(7.5)
    assert found.max_abs == pytest.approx(30.0)
    assert found.worst == (-100.0, 0.8)
    # 2, 3, 4, 5 of 15 points
    assert found.share_within == pytest.approx(100 * 4 / 15)
    assert (found.failed, found.at_bound) == (pytest.approx(100 / 15), pytest.approx(100 / 15))
    assert found.negative == pytest.approx(200 / 15)
    # of the sizes 2, ..., 14, 30 by linear interpolation at rank 12.35
    assert found.abs_p95 == pytest.approx(14 + 0.35 * 16)
    assert nominal(by_hand(), "2p") == pytest.approx(7.0)


def test_central_region_holds_its_edge():
    inside = Central(delta_b0=100.0, rel_b1=0.2).inside(by_hand().delta_b0, by_hand().rel_b1)
    assert inside.tolist() == [[False, True, True, True, False]] * 3
    assert figures(by_hand(), "2p", inside).n == 9


def test_long_table_and_grid():
    result = by_hand()
    table = list(rows([result], Central()))
    assert {(row.study, row.snr, row.sigma, row.draw) for row in table} == {("prep_robustness", np.inf, 0.0, "all")}
    assert {row.estimator for row in table} == {"BSL, hard, 2p", "BSL, hard, 3p"}
    one = next(r for r in table if r.metric == "central_relative_bias_median")
    # 6, 7, 8 on nominal B1
    assert (one.value, one.n) == (pytest.approx(7.0), 3)
    lines = list(grid_rows([result]))
    assert len(lines) == 15
    line = dict(zip(GRID_HEADER, lines[1], strict=True))
    assert (line["delta_b0"], line["rel_b1"], line["true"]) == (-100.0, 0.8, 0.05)
    assert line["apparent_2p"] == pytest.approx(0.035)
    assert (line["status_2p"], lines[0][GRID_HEADER.index("status_3p")]) == ("ok", "not_converged")


def test_refuses_a_lock_without_t1rho_and_times_that_are_not_seconds():
    with pytest.raises(InputError, match=r"^t1rho: missing"):
        robustness(spin_lock("SSL"), TissueTimes(name="x", t1=1.0, t2=0.05, source=""), points(0.0), points(1.0))
    with pytest.raises(ValueError, match=r"^t1 must be in seconds, got 1000; divide by 1000"):
        TissueTimes(name="x", t1=1000.0, t2=50.0, source="")
    with pytest.raises(ValueError, match=r"^t2 of 3 s exceeds 2 t1"):
        TissueTimes(name="x", t1=1.0, t2=3.0, source="")
