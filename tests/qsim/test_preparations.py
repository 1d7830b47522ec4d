"""Preparations against the printed oracles, matrix exponentials, closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from qsim.errors import InputError
from qsim.signals.bloch import Crusher, Exchange, FreePrecession, HardPulse, longitudinal, spins
from qsim.signals.preparations import (
    CLUSTERS,
    REFOCUSINGS,
    Inversion,
    InversionPulse,
    SpinLockPreparation,
    T2Preparation,
)
from tests import bloch_oracle as oracle
from tests.bloch_oracle import Voxel

TSL = (0.0, 0.01, 0.03, 0.05)
SIGNS = {"1x180": (1,), "4x180": (1, 1, 1, 1), "MLEV4": (1, 1, -1, -1), "MLEV8": (1, 1, -1, -1, -1, 1, 1, -1)}
HS1 = {"pulse": "HS1", "duration": 0.01024, "max_b1": 800.0, "beta": 672.0, "mu": 5.0}

# oracle A of physics.md: stored Mz at TSL 0, 10, 30, 50 ms for (b1, Hz) = (1, 0), (.9, 0), (1, 100)
ORACLE_A = {
    "SSL": (".7808 .5408 .3734", "1 .8186 .5104 .3487"),
    "RESL": (".8205 .5532 .3734", "1 .8163 .4849 .2502"),
    "CSL": (".8196 .5523 .3726", "1 .8314 .5748 .3974"),
    "BSL": (".8206 .5533 .3734", "1 .8315 .5755 .3991"),
    "PSCSL": (".7779 .5182 .3451", "1 .8315 .5776 .4064"),
    "TRSL": (".8195 .5525 .3726", "1 .8314 .5751 .3980"),
}
ORACLE_A_START = {"CSL": 0.9988, "PSCSL": 0.9523, "TRSL": 0.9988}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_oracle_a_spin_lock_clusters(cluster):
    prepare = SpinLockPreparation(cluster=cluster, tsl=TSL, fsl=400.0)
    b1 = torch.tensor([1.0, 0.9, 1.0], dtype=torch.float64)
    b0 = torch.tensor([0.0, 0.0, 100.0], dtype=torch.float64)
    mz = prepare(t1=1.0, t2=0.05, t1rho=0.05, delta_b0=b0, rel_b1=b1)
    low_b1, off = ([float(x) for x in row.split()] for row in ORACLE_A[cluster])
    printed = [[1, 0.8187, 0.5488, 0.3679], [ORACLE_A_START.get(cluster, 1.0), *low_b1], off]
    np.testing.assert_allclose(mz.T, printed, atol=5.1e-5)


def test_oracle_e_t2_preparations():
    """TE 40 ms, T2 50, T1 1000, at (b1, Hz) = (1, 0), (.9, 0), (.8, 0), (1, 60); and the contract's generic point."""
    b1 = torch.tensor([1.0, 0.9, 0.8, 1.0], dtype=torch.float64)
    b0 = torch.tensor([0.0, 0.0, 0.0, 60.0], dtype=torch.float64)
    for refocusing, composite, printed in (
        ("1x180", False, (0.4493, 0.4162, 0.3335, 0.4493)),
        ("MLEV4", False, (0.4493, 0.4598, 0.4753, 0.4493)),
        ("MLEV4", True, (0.4493, 0.4630, 0.5127, 0.4493)),
        ("4x180", False, (0.4493, 0.4487, 0.3615, 0.4493)),
    ):
        prepare = T2Preparation(te=(0.04,), refocusing=refocusing, composite=composite)
        np.testing.assert_allclose(prepare(t1=1.0, t2=0.05, delta_b0=b0, rel_b1=b1)[0], printed, atol=5.1e-5)
    prepare = T2Preparation(te=(0.04,), refocusing="1x180")
    assert float(prepare(t1=1.0, t2=0.05, delta_b0=60.0, rel_b1=0.9)) == pytest.approx(0.4603, abs=5.1e-5)
    assert float(prepare(t1=1.0, t2=0.05, delta_b0=-60.0, rel_b1=0.9)) == pytest.approx(0.3333, abs=5.1e-5)


VOXELS = (
    Voxel(t1=1.3, t2=0.08, t1rho=0.11, delta_b0=73.0, rel_b1=0.87),
    Voxel(t1=0.6, t2=0.03, t1rho=0.045, t2rho=0.07, delta_b0=-140.0, rel_b1=1.12),
)


@pytest.mark.parametrize("voxel", VOXELS)
@pytest.mark.parametrize("pulse_b1", [None, 900.0])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_clusters_against_matrix_exponentials(cluster, pulse_b1, voxel):
    """At generic points: T1rho other than T2, off resonance, hard and rectangular pulses."""
    prepare = SpinLockPreparation(cluster=cluster, tsl=TSL, fsl=330.0, pulse_b1=pulse_b1)
    maps = {k: getattr(voxel, k) for k in ("t1", "t2", "t1rho", "t2rho", "delta_b0", "rel_b1")}
    expected = [oracle.cluster_mz(cluster, voxel, t, 330.0, pulse_b1) for t in TSL]
    np.testing.assert_allclose(prepare(**maps), expected, atol=1e-11)
    narrow = {k: v if v is None else torch.tensor([v]) for k, v in maps.items()}
    assert prepare(**narrow).dtype == torch.float32
    np.testing.assert_allclose(prepare(**narrow)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("voxel", VOXELS)
@pytest.mark.parametrize("composite", [False, True])
@pytest.mark.parametrize("refocusing", REFOCUSINGS)
def test_t2_preparations_against_matrix_exponentials(refocusing, composite, voxel):
    te = (0.0, 0.02, 0.08)
    prepare = T2Preparation(te=te, refocusing=refocusing, composite=composite)
    maps = {k: getattr(voxel, k) for k in ("t1", "t2", "delta_b0", "rel_b1")}
    expected = [oracle.mlev_mz(voxel, t, SIGNS[refocusing], composite) for t in te]
    np.testing.assert_allclose(prepare(**maps), expected, atol=1e-11)


@pytest.mark.parametrize("b1", [1.0, 0.9, 0.7])
def test_t2_preparation_with_errors_of_the_90s_only(b1):
    """Perfect 180s, even in number: sin^2(b1 pi/2) E2 + cos^2(b1 pi/2) E1, physics.md (b)."""
    t1, t2, te = 1.0, 0.05, 0.04
    pulses = [e for e in T2Preparation(te=(te,), refocusing="MLEV4").events() if isinstance(e, HardPulse)]
    pulses[0], pulses[-1] = HardPulse(b1 * math.pi / 2), HardPulse(b1 * math.pi / 2, math.pi)
    delays = [FreePrecession((share * te,)) for share in (1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8)]
    mz = longitudinal([e for pair in zip(pulses, [*delays, Crusher()], strict=True) for e in pair], spins(t1=t1, t2=t2))
    sin2 = math.sin(b1 * math.pi / 2) ** 2
    # exact to 2e-7 by physics.md: T1 recovers symmetrically about perfect 180s only to that order
    assert float(mz) == pytest.approx(sin2 * math.exp(-te / t2) + (1 - sin2) * math.exp(-te / t1), abs=3e-7)


def test_finite_t2_preparation_keeps_its_timing():
    """Rectangular pulses, on resonance, against an ODE through the whole preparation; the middles of the pulses are
    at 0, TE / 8, ..."""
    voxel, te, b1 = Voxel(t1=1.0, t2=0.05, rel_b1=0.93, delta_b0=31.0), 0.03, 1000.0
    prepare = T2Preparation(te=(te,), refocusing="4x180", pulse_b1=b1)
    middles = [0.0, te / 8, 3 * te / 8, 5 * te / 8, 7 * te / 8, te]
    pulses = [(90, "x"), *[(180, "y")] * 4, (90, "-x")]
    widths = [d * oracle.DEGREE / (2 * np.pi * b1) for d, _ in pulses]
    matrices, now = [], -widths[0] / 2
    for middle, width, (degrees, axis) in zip(middles, widths, pulses, strict=True):
        matrices.append(oracle.free_matrix(voxel, max(middle - width / 2 - now, 0)))
        matrices.append(oracle.pulse_matrix(voxel, degrees, axis, width))
        now = middle + width / 2
    expected = oracle.carry(matrices)[2]
    assert float(prepare(t1=1.0, t2=0.05, rel_b1=0.93, delta_b0=31.0)) == pytest.approx(expected, abs=1e-12)
    assert prepare.durations[0] == pytest.approx(te + widths[0], abs=1e-15)


def test_composite_tip_up_is_an_ideal_90_at_nominal_b1():
    """270x 360-x and 90-x do the same where B1 is nominal."""
    plain = T2Preparation(te=(0.02, 0.05), refocusing="MLEV8")(t1=1.0, t2=0.05)
    composite = T2Preparation(te=(0.02, 0.05), refocusing="MLEV8", tip_up="composite")(t1=1.0, t2=0.05)
    np.testing.assert_allclose(composite, plain, atol=1e-12)


@pytest.mark.parametrize("b1", [0.8, 0.9, 1.0])
def test_hard_inversion(b1):
    """eta = -cos(pi b1): .8090, .9511, 1; then recovery 1 - (1 + eta) exp(-TI / T1)."""
    ti = (0.0, 0.5, 2.0)
    mz = Inversion(ti=ti)(t1=1.2, t2=0.045, rel_b1=b1)
    expected = 1 - (1 - math.cos(math.pi * b1)) * np.exp(-np.array(ti) / 1.2)
    np.testing.assert_allclose(mz, expected, atol=1e-14)


def test_oracle_f_inversion_at_time_0():
    b1 = torch.tensor([1.0, 0.7, 0.5], dtype=torch.float64)
    mz = Inversion(ti=(0.0, 0.8), **HS1)(t1=1.2, t2=0.045, rel_b1=b1)
    np.testing.assert_allclose(mz[0], [-0.9066, -0.9286, -0.9422], atol=5.1e-5)
    np.testing.assert_allclose(mz[1], 1 - (1 - mz[0]) * math.exp(-0.8 / 1.2), atol=1e-12)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_sign_is_the_clusters(cluster):
    """Constant for all data: linear in Mz before, and the same cluster at any field."""
    prepare = SpinLockPreparation(cluster=cluster, tsl=(0.0, 0.04), fsl=400.0)
    maps = {"t1": 1.0, "t2": 0.05, "t1rho": 0.05, "rel_b1": 0.3, "delta_b0": 250.0}
    sign = oracle.SIGN.get(cluster, 1)
    voxel = Voxel(t1=1.0, t2=0.05, rel_b1=0.3, delta_b0=250.0)
    expected = [oracle.cluster_mz(cluster, voxel, t, 400.0) for t in (0.0, 0.04)]
    np.testing.assert_allclose(prepare(**maps), expected, atol=1e-11)
    assert sign in (-1, 1)
    inverted = prepare(**maps, mz0=-1.0) - prepare(**maps, mz0=0.0)
    np.testing.assert_allclose(inverted, prepare(**maps, mz0=0.0) - prepare(**maps), atol=1e-14)


def test_dispersion_series():
    """One frequency for each time: each image is that of its own frequency; exchange slows with f_SL."""
    exchange = Exchange(fraction=0.03, shift=150.0, rate=1500.0)
    maps = {"t1": 1.1, "t2": 0.06, "t1rho": 0.08, "delta_b0": 40.0, "rel_b1": 0.95}
    tsl, fsl = (0.02, 0.04, 0.02, 0.04), (500.0, 250.0, 250.0, 500.0)
    series = SpinLockPreparation(cluster="BSL", tsl=tsl, fsl=fsl, exchange=exchange)(**maps)
    for t, f, mz in zip(tsl, fsl, series, strict=True):
        alone = SpinLockPreparation(cluster="BSL", tsl=(t,), fsl=f, exchange=exchange)(**maps)
        assert float(mz) == pytest.approx(float(alone), abs=1e-14)
    assert series[0] > series[2]
    on = SpinLockPreparation(cluster="SSL", tsl=(0.05,), fsl=400.0, exchange=exchange)(t1=1.0, t2=0.08, t1rho=0.08)
    rex = 0.03 * 0.97 * (2 * math.pi * 150) ** 2 * 1500 / ((2 * math.pi * 400) ** 2 + 1500**2)
    assert float(on) == pytest.approx(math.exp(-0.05 * (1 / 0.08 + rex)), abs=1e-12)


PREPARATIONS = (
    *(SpinLockPreparation(cluster=c, tsl=(0.005, 0.03), fsl=400.0) for c in CLUSTERS),
    SpinLockPreparation(cluster="BSL", tsl=(0.005, 0.03), fsl=400.0, pulse_b1=700.0),
    *(T2Preparation(te=(0.01, 0.05), refocusing=r, composite=c) for r in REFOCUSINGS for c in (False, True)),
    T2Preparation(te=(0.02, 0.05), refocusing="MLEV4", tip_up="composite", pulse_b1=900.0),
    Inversion(ti=(0.0, 0.9)),
    Inversion(ti=(0.0, 0.9), **HS1, steps=60),
)


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda p: f"{p.kind}-{getattr(p, 'cluster', '')}")
def test_gradients_equal_finite_differences(prepare):
    rows = [1.1, 0.06, 45.0, 0.9, 0.8]
    if prepare.locks:
        rows += [0.07, 0.05]

    def mz(t1, t2, delta_b0, rel_b1, mz0, *rho):
        locked = dict(zip(("t1rho", "t2rho"), rho, strict=False))
        return prepare(t1=t1, t2=t2, delta_b0=delta_b0, rel_b1=rel_b1, mz0=mz0, **locked)

    inputs = tuple(torch.tensor([x, 1.1 * x], dtype=torch.float64, requires_grad=True) for x in rows)
    assert torch.autograd.gradcheck(mz, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_numbers_give_float64_and_maps_broadcast():
    prepare = SpinLockPreparation(cluster="BSL", tsl=TSL, fsl=400.0)
    assert prepare(t1=1.0, t2=0.05, t1rho=0.05).dtype == torch.float64
    maps = prepare(t1=torch.full((5, 1), 1.0), t2=0.05, t1rho=torch.full((1, 3), 0.05))
    assert maps.shape == (4, 5, 3)
    assert maps.dtype == torch.float32


def test_a_spin_lock_without_t1rho_is_an_error():
    with pytest.raises(InputError, match="t1rho: missing"):
        SpinLockPreparation(cluster="SSL", tsl=TSL, fsl=400.0)(t1=1.0, t2=0.05)


def test_relaxation_faster_than_the_turn_is_an_error():
    with pytest.raises(InputError, match="the field is weaker than relaxation"):
        SpinLockPreparation(cluster="SSL", tsl=TSL, fsl=10.0)(t1=1.0, t2=0.001, t1rho=0.001)


def test_weak_locks_are_right_or_refused():
    """Down to fields as weak as relaxation: what is not refused equals the matrix exponential."""
    rng = np.random.default_rng(0)
    right = refused = 0
    for _ in range(150):
        t1, t2 = 10 ** rng.uniform(-1.5, 0.5), 10 ** rng.uniform(-3, -1)
        voxel = Voxel(
            t1=t1,
            t2=min(t2, 2 * t1),
            t1rho=t2 * rng.uniform(0.8, 1.5),
            delta_b0=float(rng.choice([0.0, 20 * rng.normal()])),
            rel_b1=rng.uniform(0.2, 1.2),
        )
        fsl = 10 ** rng.uniform(0.7, 2)
        maps = {k: getattr(voxel, k) for k in ("t1", "t2", "t1rho", "delta_b0", "rel_b1")}
        try:
            mz = SpinLockPreparation(cluster="BSL", tsl=(0.01, 0.05), fsl=fsl)(**maps)
        except InputError:
            refused += 1
            continue
        right += 1
        np.testing.assert_allclose(mz, [oracle.cluster_mz("BSL", voxel, t, fsl) for t in (0.01, 0.05)], atol=1e-10)
    assert right > 60
    assert refused > 10


def test_mz_before_may_be_a_map():
    prepare = T2Preparation(te=(0.02, 0.05), refocusing="MLEV4")
    mz = prepare(t1=1.0, t2=0.05, mz0=torch.tensor([[0.2], [0.7]], dtype=torch.float64))
    assert mz.shape == (2, 2, 1)
    np.testing.assert_allclose(mz[:, 1, 0], prepare(t1=1.0, t2=0.05, mz0=0.7), atol=1e-14)
    with pytest.raises(InputError, match="mz0: must be finite"):
        prepare(t1=1.0, t2=0.05, mz0=math.nan)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SpinLockPreparation, {"cluster": "BSL", "tsl": (10.0,), "fsl": 400.0}, "tsl must be in seconds"),
        (SpinLockPreparation, {"cluster": "BSL", "tsl": (-0.01,), "fsl": 400.0}, "tsl must not be negative"),
        (SpinLockPreparation, {"cluster": "BSL", "tsl": TSL, "fsl": 0.0}, "fsl must be a spin-lock frequency above 0"),
        (SpinLockPreparation, {"cluster": "BSL", "tsl": TSL, "fsl": (400.0, 500.0)}, "fsl has 2 frequencies for 4"),
        (SpinLockPreparation, {"cluster": "BSL", "tsl": TSL, "fsl": 400.0, "pulse_b1": 0.0}, "pulse_b1 must be above"),
        (T2Preparation, {"te": (-0.01,), "refocusing": "1x180"}, "te must not be negative"),
        (T2Preparation, {"te": (0.001,), "refocusing": "MLEV4", "pulse_b1": 500.0}, "te of 0.001 s is too short"),
        (Inversion, {"ti": (-0.1,)}, "ti must not be negative"),
        (Inversion, {"ti": (0.1,), "pulse": "HS1"}, "duration is missing"),
        (Inversion, {"ti": (0.1,), "beta": 672.0}, "beta belongs to pulse HS1"),
        (Inversion, {"ti": (0.1,), "steps": 200}, "steps belongs to pulse HS1"),
        (Inversion, {"ti": (0.1,), **HS1, "duration": 10.24}, "duration must be in seconds"),
        (InversionPulse, {**HS1, "mu": 0.0}, "mu must be above 0"),
        (Exchange, {"fraction": 0.7, "shift": 100.0, "rate": 1000.0}, "fraction must lie in"),
    ],
)
def test_what_is_not_physical_is_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(fields)
