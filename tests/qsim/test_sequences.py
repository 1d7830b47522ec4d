"""Whole sequences against the same played step by step, printed oracles and scipy fits."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import curve_fit

from qsim.information import jacobian
from qsim.kspace.order import Acquisition
from qsim.signals.base import CoherentModel, SignalModel
from qsim.signals.bloch import Spins
from qsim.signals.preparations import Inversion, InversionPulse, SpinLockPreparation, T2Preparation
from qsim.signals.readout import BalancedSSFP, SpoiledGradientEcho, TurboSpinEcho
from qsim.signals.sequences import MOLLI, Bloch, LookLockerTrain

TSL = (0.0, 0.01, 0.03, 0.05)
BSL = SpinLockPreparation(cluster="BSL", tsl=TSL, fsl=400.0)
HS1 = InversionPulse(pulse="HS1", duration=0.01024, max_b1=800.0, beta=672.0, mu=5.0, steps=60)
DEGREES = math.pi / 180


def gradient_echo(encoding="centre", lines=64, order="linear", shots=1, flip=10 * DEGREES):
    return SpoiledGradientEcho(
        flip_angle=flip, tr=0.005, acquisition=Acquisition(lines=lines, shots=shots, order=order, encoding=encoding)
    )


RANGES = {
    "A": (0.6, 1.2),
    "T1": (0.5, 3.0),
    "T2": (0.03, 0.2),
    "T1RHO": (0.03, 0.2),
    "T2RHO": (0.03, 0.2),
    "DELTA_B0": (-120.0, 120.0),
    "REL_B1": (0.7, 1.2),
}


def random_maps(model, *shape, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.uniform(*RANGES[p.name], shape) for p in model.parameters]), dtype=dtype)


def spins_of(model, kappa):
    rows = dict(zip((p.name for p in model.parameters), kappa, strict=True))
    return rows["A"], Spins(
        rows["T1"], rows["T2"], rows.get("T1RHO"), rows.get("T2RHO"), rows["DELTA_B0"], rows["REL_B1"]
    )


MODELS = (
    Bloch(preparation=BSL),
    Bloch(preparation=BSL, t2rho=True, signed=True),
    Bloch(preparation=BSL, readout=gradient_echo(), tr=2.0),
    Bloch(preparation=BSL, readout=gradient_echo("exact", lines=8)),
    Bloch(preparation=BSL, readout=gradient_echo("subspace", lines=8), tr=1.5),
    Bloch(
        preparation=T2Preparation(te=(0.0, 0.03), refocusing="MLEV4"),
        readout=BalancedSSFP(flip_angle=0.6, tr=0.004, acquisition=Acquisition(lines=8)),
    ),
    Bloch(
        preparation=Inversion(ti=(0.0, 0.4), pulse="hard"),
        readout=TurboSpinEcho(esp=0.006, acquisition=Acquisition(lines=8)),
        signed=True,
    ),
    LookLockerTrain(ti=(0.05, 0.2, 1.0), flip_angle=10 * DEGREES, tr=0.005),
    LookLockerTrain(ti=(0.05, 0.2, 1.0), flip_angle=10 * DEGREES, tr=0.005, recovery=0.5, inversion=HS1, signed=True),
    MOLLI(ti_first=(0.2, 0.28), rr=1.0, readout=gradient_echo(lines=32)),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.kind)
def test_signal_model_contract(model):
    """Shapes, dtypes, a batch equal to its samples, a config that gives the model back."""
    assert isinstance(model, SignalModel)
    assert isinstance(model, CoherentModel)
    kappa = random_maps(model, 2, 8, 6)
    images = model(kappa)
    assert images.shape == (model.n_images, 2, 8, 6)
    assert images.dtype == torch.float64
    assert len(model.times) == model.n_images
    np.testing.assert_allclose(model(kappa[:, 1]), images[:, 1], atol=1e-12)
    narrow = model(kappa.float())
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow, images, atol=2e-5)
    adapter = TypeAdapter(type(model))
    assert adapter.validate_json(adapter.dump_json(model)) == model


@pytest.mark.parametrize("model", [m for m in MODELS if not getattr(m, "mixes_voxels", False)], ids=lambda m: m.kind)
def test_derivatives_equal_finite_differences(model):
    kappa = random_maps(model, 3, seed=4)
    rows = jacobian(model, kappa)
    for q, p in enumerate(model.parameters):
        step = 1e-5 * RANGES[p.name][1]
        up, down = kappa.clone(), kappa.clone()
        up[q] += step
        down[q] -= step
        slope = (model(up) - model(down)) / (2 * step)
        np.testing.assert_allclose(rows[q], slope, atol=1e-5 * float(slope.abs().max() + 1e-3))


@pytest.mark.parametrize("model", [m for m in MODELS if getattr(m, "mixes_voxels", False)], ids=lambda m: m.kind)
def test_gradients_through_images_whose_voxels_mix(model):
    kappa = random_maps(model, 4, 2, seed=4).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k: torch.view_as_real(model.coherent(k)), kappa, eps=1e-6, atol=1e-6)


def test_ideal_readout_is_the_preparation():
    model = Bloch(preparation=BSL, signed=True)
    assert [p.name for p in model.parameters] == ["A", "T1", "T2", "T1RHO", "DELTA_B0", "REL_B1"]
    kappa = random_maps(model, 5)
    a, t1, t2, t1rho, delta_b0, rel_b1 = kappa
    expected = a * BSL(t1=t1, t2=t2, t1rho=t1rho, delta_b0=delta_b0, rel_b1=rel_b1)
    np.testing.assert_allclose(model(kappa), expected, atol=1e-14)


def test_steady_state_is_where_the_sequence_settles():
    """Every image's own preparation, played shot after shot."""
    readout = gradient_echo(lines=32, flip=0.2)
    model = Bloch(preparation=BSL, readout=readout, tr=0.6, signed=True)
    kappa = random_maps(model, 4)
    a, spin = spins_of(model, kappa)
    train = readout.train(spin)
    mz = torch.ones(len(TSL), 4, dtype=torch.float64)
    for _ in range(80):
        ready = torch.stack([BSL.apply(spin, mz[n])[n] for n in range(len(TSL))])
        left = train.mz_gain * ready + train.mz_offset
        free = torch.tensor(0.6 - 32 * 0.005 - np.array(TSL))[:, None]
        mz = 1 - (1 - left) * torch.exp(-free / spin.t1)
    expected = a * (train.offset[16] + train.gain[16] * ready)
    np.testing.assert_allclose(model(kappa), expected, atol=1e-12)


def test_oracle_i_the_readout_biases_a_two_parameter_fit():
    """T1 1 s, TR 5 ms, 10 degrees, 32 shots before the centre: 68.06 ms for 50; with a constant 50.000."""
    model = Bloch(preparation=BSL, readout=gradient_echo())
    # T2 = T1rho = 50 ms, on resonance
    kappa = torch.tensor([1.0, 1.0, 0.05, 0.05, 0.0, 1.0], dtype=torch.float64)
    signal = model(kappa).numpy()
    t = np.array(TSL)
    (_, two), _ = curve_fit(lambda t, a, x: a * np.exp(-t / x), t, signal, (0.1, 0.05), xtol=1e-14, ftol=1e-14)
    (_, three, _), _ = curve_fit(
        lambda t, a, x, c: a * np.exp(-t / x) + c, t, signal, (0.1, 0.05, 0.01), xtol=1e-14, ftol=1e-14
    )
    assert two * 1000 == pytest.approx(68.06, abs=5e-3)
    assert three * 1000 == pytest.approx(50.000, abs=5e-4)
    train = model.readout.train(Spins(*(kappa[i] for i in (1, 2, 3)), None, kappa[4], kappa[5]))
    assert float(train.gain[32] / math.sin(10 * DEGREES)) == pytest.approx(0.522107, abs=5e-7)
    driven = train.offset[32] / math.sin(10 * DEGREES) / (1 - train.gain[32] / math.sin(10 * DEGREES))
    assert float(driven) == pytest.approx(0.248086, abs=5e-7)


@pytest.mark.parametrize("encoding", ["exact", "subspace"])
def test_mixing_of_tissues_comes_before_mixing_of_voxels(encoding):
    """Shares of two tissues add up in the magnetisation; its image is that of the whole."""
    model = Bloch(preparation=BSL, readout=gradient_echo(encoding, lines=16))
    assert model.mixes_voxels
    one, two = random_maps(model, 16, 5, seed=1), random_maps(model, 16, 5, seed=2)
    share = torch.rand(16, 5, dtype=torch.float64)
    mixed = share * model.magnetisation(one) + (1 - share) * model.magnetisation(two)
    np.testing.assert_allclose(model.image(model.magnetisation(one)), model.coherent(one), atol=1e-12)
    scaled = torch.cat((one[:1] * share, one[1:])), torch.cat((two[:1] * (1 - share), two[1:]))
    np.testing.assert_allclose(model.image(mixed), sum(model.coherent(k) for k in scaled), atol=1e-12)


def test_subspace_is_close_to_exact():
    exact = Bloch(preparation=BSL, readout=gradient_echo("exact"))
    subspace = Bloch(preparation=BSL, readout=gradient_echo("subspace"))
    kappa = random_maps(exact, 64, 10)
    truth = exact.coherent(kappa)
    assert float((subspace.coherent(kappa) - truth).abs().norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize("inversion", [InversionPulse(), HS1])
def test_look_locker_train_pulse_by_pulse(inversion):
    tr, flip = 0.006, 8 * DEGREES
    numbers = (0, 3, 40, 150)
    model = LookLockerTrain(ti=tuple(n * tr for n in numbers), flip_angle=flip, tr=tr, inversion=inversion, signed=True)
    kappa = random_maps(model, 3)
    a, spin = spins_of(model, kappa)
    pulse = Inversion(
        ti=(0.0,), **{k: getattr(inversion, k) for k in ("pulse", "duration", "max_b1", "beta", "mu", "steps")}
    )
    m = pulse.apply(spin)[0]
    images = {}
    for n in range(max(numbers) + 1):
        images[n] = a * torch.sin(flip * spin.rel_b1) * m
        m = 1 - (1 - m * torch.cos(flip * spin.rel_b1)) * torch.exp(-tr / spin.t1)
    np.testing.assert_allclose(model(kappa), torch.stack([images[n] for n in numbers]), atol=1e-12)


@pytest.mark.parametrize("train", [None, 150])
def test_look_locker_train_that_repeats(train):
    """Played until it repeats: 150 pulses (by default those up to the last image), then half a second without."""
    tr, flip, recovery = 0.006, 10 * DEGREES, 0.5
    last = 50 if train else 149
    model = LookLockerTrain(
        ti=(0.0, last * tr),
        flip_angle=flip,
        tr=tr,
        recovery=recovery,
        train=None if train is None else train * tr,
        signed=True,
    )
    kappa = random_maps(model, 3)
    a, spin = spins_of(model, kappa)
    m = torch.ones_like(spin.t1)
    for _ in range(60):
        m = torch.cos(math.pi * spin.rel_b1) * m
        start = m
        for _ in range(150):
            m = 1 - (1 - m * torch.cos(flip * spin.rel_b1)) * torch.exp(-tr / spin.t1)
        m = 1 - (1 - m) * torch.exp(-recovery / spin.t1)
    np.testing.assert_allclose(model(kappa)[0], a * torch.sin(flip * spin.rel_b1) * start, atol=1e-12)


def test_oracle_g_apparent_t1_of_a_train():
    """T1 1200 ms, TR 5 ms, 8 degrees: T1* 358.519 ms, M0* .300228; T1* (B - 1) = 1194.2 ms."""
    ti = tuple(np.linspace(0, 3, 40).tolist())
    model = LookLockerTrain(ti=ti, flip_angle=8 * DEGREES, tr=0.005, signed=True)
    kappa = torch.tensor([1.0, 1.2, 0.05, 0.0, 1.0], dtype=torch.float64)
    signal = model(kappa).numpy()
    (a, b, t), _ = curve_fit(
        lambda x, a, b, t: a * (1 - b * np.exp(-x / t)), np.array(ti), signal, (0.04, 4.0, 0.4), xtol=1e-14, ftol=1e-14
    )
    assert t * 1000 == pytest.approx(358.519, abs=5e-4)
    assert a / math.sin(8 * DEGREES) == pytest.approx(0.300228, abs=5e-7)
    assert t * (b - 1) * 1000 == pytest.approx(1194.2, abs=0.05)


def test_molli_pulse_by_pulse():
    """5(3)3: inversion, five heartbeats, three of pause, inversion, three; every pulse of every image played."""
    lines, tr, flip, rr, first = 20, 0.003, 35 * DEGREES, 0.9, (0.12, 0.2)
    readout = SpoiledGradientEcho(flip_angle=flip, tr=tr, acquisition=Acquisition(lines=lines))
    model = MOLLI(ti_first=first, rr=rr, readout=readout, signed=True)
    assert model.times == pytest.approx([0.12 + 0.9 * k for k in range(5)] + [0.2 + 0.9 * k for k in range(3)])
    kappa = random_maps(model, 3)
    a, spin = spins_of(model, kappa)
    cos, sin = torch.cos(flip * spin.rel_b1), torch.sin(flip * spin.rel_b1)
    images, m, now = [], torch.ones_like(spin.t1), 0.0
    beats = [(0, k) for k in range(5)] + [(1, k) for k in range(8, 11)]
    inversions = [0.0, first[0] + 8 * rr - first[1]]

    def rest(m, time):
        return 1 - (1 - m) * torch.exp(-time / spin.t1)

    for number, beat in beats:
        centre = first[0] + beat * rr
        if inversions and now <= inversions[0] < centre:
            m = torch.cos(math.pi * spin.rel_b1) * rest(m, inversions[0] - now)
            now = inversions.pop(0)
        # the centre of k-space is line 10 of 20: ten pulses before it
        start = centre - 10 * tr
        m = rest(m, start - now)
        for pulse in range(lines):
            if pulse == 10:
                images.append(a * sin * m)
            m = 1 - (1 - m * cos) * torch.exp(-tr / spin.t1)
        now = start + lines * tr
        assert number in (0, 1)
    np.testing.assert_allclose(model(kappa), torch.stack(images), atol=1e-12)


SHORT = gradient_echo(lines=8)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Bloch, {"preparation": BSL, "readout": gradient_echo(), "tr": 0.3}, "tr of 0.3 s is shorter than preparation"),
        (Bloch, {"preparation": BSL, "tr": 2000.0}, "tr must be in seconds"),
        (Bloch, {"preparation": Inversion(ti=(0.1,)), "t2rho": True}, "t2rho: a inversion preparation has no"),
        (LookLockerTrain, {"ti": (0.1,), "flip_angle": 10.0, "tr": 0.005}, "flip_angle must lie between 0 and pi / 2"),
        (LookLockerTrain, {"ti": (-0.1,), "flip_angle": 0.1, "tr": 0.005}, "ti must not be negative"),
        (LookLockerTrain, {"ti": (0.1,), "flip_angle": 0.1, "tr": 0.0}, "tr must be above 0"),
        (LookLockerTrain, {"ti": (1.1,), "flip_angle": 0.1, "tr": 0.1, "train": 1.0}, "train of 1 s ends before"),
        (LookLockerTrain, {"ti": (1.1,), "flip_angle": 0.1, "tr": 0.1, "recovery": -1.0}, "recovery must be at least"),
        (MOLLI, {"ti_first": (0.2,), "rr": 1.0, "readout": SHORT}, "ti_first must hold 2 times"),
        (MOLLI, {"ti_first": (0.2, 0.3), "rr": 0.3, "readout": gradient_echo()}, "rr of 0.3 s is shorter"),
        (MOLLI, {"ti_first": (0.1, 0.3), "rr": 1.0, "readout": gradient_echo()}, "ti_first of 0.1 s is too early"),
        (MOLLI, {"ti_first": (0.2, 0.3), "pauses": (1, 2), "rr": 1.0, "readout": SHORT}, "pauses must hold 1"),
        (MOLLI, {"ti_first": (0.2, 1.9), "pauses": (0,), "rr": 1.0, "readout": SHORT}, "pauses: an inversion"),
        (MOLLI, {"ti_first": (0.2, 0.3), "rr": 0.0, "readout": SHORT}, "rr must be a heartbeat"),
    ],
)
def test_what_cannot_be_played_is_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(fields)
