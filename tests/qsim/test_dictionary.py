"""Dictionary matching against the models themselves, other methods, and the Cramér-Rao bound."""

from math import pi

import numpy as np
import pytest
import torch

from qsim.errors import InputError
from qsim.estimators import Status, build_estimator
from qsim.estimators.dictionary import Dictionary
from qsim.information import crb
from qsim.kspace.order import Acquisition
from qsim.signals import (
    MOLLI,
    BalancedSSFP,
    BiExponential,
    Bloch,
    InversionRecovery,
    LookLockerTrain,
    MultiEchoSpinEcho,
    OffsetDecay,
    SaturationRecovery,
    SpinLock,
    SpinLockPreparation,
    SpoiledGradientEcho,
    T2Prep,
)
from tests.published import TE_PREP, TI_31

TSL = (0.0, 0.01, 0.03, 0.05)
RANGES = {
    "A": (0.5, 1.5),
    "B": (1.5, 2.0),
    "T1": (0.3, 2.5),
    "T2": (0.03, 0.2),
    "T1RHO": (0.03, 0.12),
    "DELTA_B0": (-100.0, 100.0),
    "REL_B1": (0.8, 1.15),
}
MESE = MultiEchoSpinEcho(te=tuple(0.01 * k for k in range(1, 11)), t1=1.0, refocusing_angle=150 * pi / 180)
LOOK_LOCKER = LookLockerTrain(ti=tuple(np.linspace(0.05, 3.0, 12)), flip_angle=0.1, tr=0.01)
ONE_SHOT = Acquisition(lines=48, shots=1, order="linear")
MOLLI_533 = MOLLI(
    ti_first=(0.12, 0.2), rr=0.9, readout=BalancedSSFP(flip_angle=35 * pi / 180, tr=0.0027, acquisition=ONE_SHOT)
)
BSL = Bloch(preparation=SpinLockPreparation(cluster="BSL", tsl=TSL, fsl=400.0))


def maps(model, shape, seed=0, **ranges):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.uniform(*{**RANGES, **ranges}[p.name], shape) for p in model.parameters]))


def rows_of(model, kappa, *names):
    return {p.name: row for p, row in zip(model.parameters, kappa, strict=True) if p.name in names}


def largest_error(found, truth, row):
    return float((found.kappa[row] / truth[row] - 1).abs().max())


@pytest.mark.parametrize("angle", [180, 150, 120])
@pytest.mark.parametrize("echoes", [8, 24])
def test_t2_and_b1_of_an_echo_train(angle, echoes):
    """No grid: 64 x 33 nodes 13 % and 0.05 apart, T2 and B1 to 0.1 %."""
    model = MultiEchoSpinEcho(
        te=tuple(0.01 * k for k in range(1, echoes + 1)), t1=1.0, refocusing_angle=angle * pi / 180
    )
    # the same on both sides of 180 degrees: below it
    truth = maps(model, (20, 20), REL_B1=(0.7, 0.97 * min(180 / angle, 1.2)))
    found = Dictionary(model)(model(truth))
    assert max(largest_error(found, truth, row) for row in range(3)) < 1e-3
    assert bool((found.status == Status.OK).all())


def test_known_transmit_field_of_an_echo_train():
    truth = maps(MESE, (300,), REL_B1=(0.8, 1.4))
    found = Dictionary(MESE)(MESE(truth), known=rows_of(MESE, truth, "REL_B1"))
    assert largest_error(found, truth, 1) < 1e-5
    assert torch.equal(found.kappa[2], truth[2])


@pytest.mark.parametrize("model", [LOOK_LOCKER, MOLLI_533], ids=lambda m: m.kind)
@pytest.mark.parametrize("signed", [False, True])
def test_t1_with_known_fields(model, signed):
    """Maps: slices leave no error. One number each: the third order of half a step is left."""
    if signed:
        if model is MOLLI_533:
            pytest.skip("complex images have no sign")
        model = LookLockerTrain(ti=model.ti, flip_angle=model.flip_angle, tr=model.tr, signed=True)
    nuisance = ("T2", "DELTA_B0", "REL_B1")
    truth = maps(model, (120,), seed=1)
    found = Dictionary(model)(model(truth), known=rows_of(model, truth, *nuisance))
    assert largest_error(found, truth, 1) < 1e-5
    truth[2:] = torch.tensor([0.07, 20.0, 0.95], dtype=torch.float64)[:, None]
    numbers = {name: float(row[0]) for name, row in rows_of(model, truth, *nuisance).items()}
    found = Dictionary(model)(model(truth), known=numbers)
    assert largest_error(found, truth, 1) < 1e-3


def test_spin_lock_in_known_fields_where_a_decay_is_biased():
    truth = maps(BSL, (400,), seed=2, T1=(0.8, 1.4))
    images = BSL(truth)
    found = Dictionary(BSL)(images, known=rows_of(BSL, truth, "T1", "T2", "DELTA_B0", "REL_B1"))
    assert largest_error(found, truth, 3) < 1e-5
    plain = build_estimator("least-squares", SpinLock(tsl=TSL))(images)
    off_resonance = truth[4].abs() > 60
    biased = (plain.kappa[1] / truth[3] - 1).abs()[off_resonance]
    assert float(biased.median()) > 0.05


@pytest.mark.parametrize("name", ["look_locker_train", "multi_echo_spin_echo", "bloch"])
def test_at_the_bound(name):
    """RMSE over the bound of each voxel, 4,000 voxels: known to 1 %."""
    model = {"look_locker_train": LOOK_LOCKER, "multi_echo_spin_echo": MESE, "bloch": BSL}[name]
    searched = {"look_locker_train": "T1", "multi_echo_spin_echo": "T2", "bloch": "T1RHO"}[name]
    truth = maps(model, (4000,), seed=3, T2=(0.04, 0.12), T1RHO=(0.03, 0.08))
    nuisance = [p.name for p in model.parameters[1:] if p.name not in Dictionary(model).searched]
    generator = torch.Generator().manual_seed(4)
    clean = model(truth)
    sigma = 0.01 * float(clean.max())
    images = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    found = Dictionary(model)(images.float(), known=rows_of(model, truth, *nuisance))
    bound = crb(model, truth, sigma, known=nuisance)
    row = [p.name for p in model.parameters].index(searched)
    # far from zero crossings, which a magnitude loses to noise, and where the bound means something
    tight = bound.cv[row] < 12
    assert float(tight.double().mean()) > 0.5
    error = ((found.kappa[row].double() - truth[row]) / bound.sd[row])[tight]
    assert 0.95 < float(error.square().mean().sqrt()) < 1.1
    assert float(((found.status == Status.NOT_CONVERGED).double()).mean()) < 0.01


def test_closed_forms_end_where_least_squares_does():
    model = T2Prep(te_prep=TE_PREP)
    truth = maps(model, (500,), seed=5)
    images = model(truth) + 0.02 * torch.randn(6, 500, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found, reference = Dictionary(model)(images), build_estimator("least-squares", model)(images)
    # 128 nodes 6.5 % apart: third order of half of that, 6e-6 of the signal, moves T up to a hundred times as much
    torch.testing.assert_close(found.kappa, reference.kappa, rtol=6e-4, atol=0)
    recovery = InversionRecovery(ti=TI_31)
    truth = maps(recovery, (200,), seed=7, B=(1.6, 2.0))
    known = {"B": truth[1]}
    images = recovery(truth)
    assert largest_error(Dictionary(recovery)(images, known=known), truth, 2) < 1e-5


RECOVERY = InversionRecovery(ti=(0.1, 0.4, 0.8, 1.2, 2.0, 3.0, 4.5))


def noisy(model, n, seed, sigma=0.05, **ranges):
    clean = model(maps(model, (n,), seed, **ranges))
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=clean.dtype)


@pytest.mark.parametrize(
    ("model", "depth"),
    [(RECOVERY, (1.5, 2.0)), (SaturationRecovery(ts=RECOVERY.times), (0.8, 1.0))],
    ids=lambda m: getattr(m, "kind", ""),
)
def test_rarely_above_the_global_minimum(model, depth):
    """SNR 20, kinks of the modulus in the way: least-squares is the global minimum (its own tests: a dense grid)."""
    images = noisy(model, 2000, 13, B=depth)

    def left(method):
        return (model(build_estimator(method, model)(images).kappa) - images).square().sum(0)

    ours, lowest = left("dictionary"), left("least-squares")
    assert float((ours > 1.01 * lowest).double().mean()) < 0.01
    # nothing lies below it, to what the third order of half a step makes of the place
    assert bool((ours > lowest * (1 - 1e-6)).all())


def test_a_voxel_does_not_depend_on_units_or_on_others():
    images = noisy(RECOVERY, 400, 14, B=(1.5, 2.0))
    fit = Dictionary(RECOVERY)
    found = fit(images)
    # powers of two: the same bits
    units = torch.tensor([2.0**-40, 2.0**-20, 1.0, 2.0**20], dtype=torch.float64).repeat(100)
    mixed = fit(images * units)
    assert torch.equal(mixed.kappa[1:], found.kappa[1:])
    assert torch.equal(mixed.kappa[0], found.kappa[0] * units)
    assert torch.equal(mixed.status, found.status)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(15))
    apart = [fit(images[:, some]).kappa for some in order.split(57)]
    for other in (fit(images[:, order]).kappa, torch.cat(apart, 1)):
        # products of other shapes round otherwise, which may turn a choice between alike valleys, and ends a descent
        # elsewhere: a last step is worth 3e-4 standard errors
        moved = (other / found.kappa[:, order] - 1).abs().amax(0) > 1e-4
        assert int(moved.sum()) <= 2


def test_dark_voxels_have_no_amplitude():
    """Noise about zero after an offset was taken off: nothing but negative images, or all sorts of them."""
    for model in (RECOVERY, SaturationRecovery(ts=RECOVERY.times), T2Prep(te_prep=TE_PREP)):
        images = noisy(model, 6, 16)
        images[:, 0] = -0.01
        images[:, 1] = -1e-30
        images[1:, 2] = 0.0
        images[0, 2] = -5.0
        found = Dictionary(model, covariance=True)(images, sigma=0.05)
        assert found.status[:3].tolist() == [Status.AT_BOUND] * 3
        assert found.kappa[0, :3].tolist() == [0.0] * 3
        assert bool(torch.isfinite(found.kappa).all())
        background = 0.05 * torch.randn(len(images), 3000, generator=torch.Generator().manual_seed(17))
        assert bool(torch.isfinite(Dictionary(model)(background).kappa).all())


def test_three_searched_rows_of_a_closed_form_are_refused():
    model = BiExponential(te=tuple(0.005 * 1.5**k for k in range(10)))
    ends = {"FRACTION": (0.3, 0.7), "T2_SHORT": (0.01, 0.03), "T2": (0.1, 0.3)}
    truth = maps(model, (60,), seed=8, **ends)
    with pytest.raises(InputError, match=r"3 searched rows .FRACTION, T2_SHORT, T2.; use least-squares"):
        Dictionary(model)(model(truth))
    found = Dictionary(model)(model(truth), known=rows_of(model, truth, "T2"))
    torch.testing.assert_close(model(found.kappa), model(truth), rtol=0, atol=1e-3)


def test_readouts_that_mix_voxels_are_taken_at_the_centre():
    readout = SpoiledGradientEcho(
        flip_angle=0.2, tr=0.005, acquisition=Acquisition(lines=16, shots=1, encoding="exact")
    )
    model = Bloch(preparation=SpinLockPreparation(cluster="SSL", tsl=TSL, fsl=400.0), readout=readout)
    truth = maps(model, (16, 6), seed=9, DELTA_B0=(0.0, 0.0))
    known = rows_of(model, truth, "T1", "T2", "DELTA_B0", "REL_B1")
    found = Dictionary(model, covariance=True)(model.pointwise(truth), sigma=0.01, known=known)
    assert largest_error(found, truth, 3) < 1e-5
    assert bool(torch.isfinite(found.variances["noise"]).all())


def test_covariance_is_the_bound_at_the_estimate():
    truth = maps(LOOK_LOCKER, (30,), seed=10)
    nuisance = ("T2", "DELTA_B0", "REL_B1")
    known = rows_of(LOOK_LOCKER, truth, *nuisance)
    found = Dictionary(LOOK_LOCKER, covariance=True)(LOOK_LOCKER(truth), sigma=0.001, known=known)
    expected = crb(LOOK_LOCKER, truth, 0.001, known=nuisance).sd
    torch.testing.assert_close(found.variances["noise"].sqrt(), expected, rtol=1e-4, atol=1e-12)
    assert found.noise_level.source == "given"
    noise = torch.randn(12, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = Dictionary(LOOK_LOCKER, covariance=True)(LOOK_LOCKER(truth) + 0.001 * noise, known=known)
    # 300 degrees of freedom, median: 8 %
    assert own.noise_level.source == "residual"
    assert abs(float(own.noise_level.sigma) / 0.001 - 1) < 0.2


def test_status_mask_units_and_dtype():
    images = MESE(maps(MESE, (2, 4), seed=11)).float()
    images[:, 0, 0] = float("nan")
    images[:, 0, 1] = 0.0
    # hardly any decay over 100 ms, and none over the first echo
    images[:, 1, 0] = 1.0
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 3] = False
    found = Dictionary(MESE)(images, mask=mask)
    none, ok = Status.NOT_COMPUTED, Status.OK
    assert found.status[0].tolist() == [none, none, ok, ok]
    assert found.status[1].tolist() == [Status.AT_BOUND, ok, ok, none]
    assert found.kappa.dtype == torch.float32
    scaled = Dictionary(MESE)(images * 2.0**40, mask=mask)
    there = found.status != none
    assert torch.equal(scaled.kappa[1:, there], found.kappa[1:, there])
    assert torch.equal(scaled.kappa[0, there], found.kappa[0, there] * 2.0**40)
    empty = Dictionary(MESE)(images, mask=~mask & False)
    assert bool((empty.status == none).all())


def test_refusals():
    images = torch.ones(4, 5)
    with pytest.raises(InputError, match=r"known\.T1: dictionary needs it"):
        Dictionary(BSL)(images)
    partly = {"T1": 1.0, "T2": 0.08}
    with pytest.raises(InputError, match=r"known\.DELTA_B0: .*0 if there is no off-resonance"):
        Dictionary(BSL)(images, known=partly)
    with pytest.raises(InputError, match=r"known\.REL_B1: must lie from 0.2 to 2"):
        Dictionary(BSL)(images, known={**partly, "DELTA_B0": 0.0, "REL_B1": 100.0})
    with pytest.raises(InputError, match=r"known\.B: this method cannot use"):
        Dictionary(BSL)(images, known={**partly, "B": 1.0})
    with pytest.raises(InputError, match="every row but A"):
        Dictionary(SpinLock(tsl=TSL))(images, known={"T1RHO": 0.05})
    with pytest.raises(InputError, match="2 images cannot determine 3 rows"):
        Dictionary(MultiEchoSpinEcho(te=(0.01, 0.02), t1=1.0))(images[:2])
    with pytest.raises(InputError, match="cannot search C"):
        Dictionary(OffsetDecay(te=TE_PREP))
    with pytest.raises(InputError, match="size: got 3"):
        Dictionary(MESE, size=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    for model in (MESE, LOOK_LOCKER):
        truth = maps(model, (1000,), seed=12)
        nuisance = [p.name for p in model.parameters[1:] if p.name not in Dictionary(model).searched]
        known = rows_of(model, truth, *nuisance)
        images = model(truth)
        here = Dictionary(model)(images, known=known)
        there = Dictionary(model)(images.cuda(), known={name: row.cuda() for name, row in known.items()})
        assert there.kappa.is_cuda
        torch.testing.assert_close(there.kappa.cpu(), here.kappa, rtol=1e-3, atol=0)
