"""Readouts: recursions, closed forms and matrix exponentials from outside, published oracles, images of trains."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.optimize import curve_fit

from qsim.errors import InputError
from qsim.kspace.order import Acquisition, echo_of_line
from qsim.signals.readout import (
    READOUTS,
    BalancedSSFP,
    Ideal,
    SpoiledGradientEcho,
    TurboSpinEcho,
    aftermath,
    assembled,
    components,
    mixes_voxels,
    n_components,
    read,
    subspace,
)
from qsim.signals.slice_profile import SampledProfile, ShapedProfile
from qsim.signals.spins import spins
from qsim.signals.train import Readout
from tests.qsim.kspace.test_order import by_line

TEN, FORTY = math.radians(10), math.radians(40)
FOUR = Acquisition(lines=4)


def spgr(acquisition=FOUR, flip_angle=TEN, tr=0.005, **keys):
    return SpoiledGradientEcho(flip_angle=flip_angle, tr=tr, acquisition=acquisition, **keys)


def ssfp(acquisition=FOUR, flip_angle=FORTY, tr=0.004, **keys):
    return BalancedSSFP(flip_angle=flip_angle, tr=tr, acquisition=acquisition, **keys)


def tse(acquisition=FOUR, esp=0.008, **keys):
    return TurboSpinEcho(esp=esp, acquisition=acquisition, **keys)


def maps(shape, seed=0, dtype=torch.float64, off_resonance=30.0):
    rng = np.random.default_rng(seed)
    t1 = np.exp(rng.uniform(np.log(0.3), np.log(4.0), shape))
    t2 = np.minimum(np.exp(rng.uniform(np.log(0.03), np.log(0.5), shape)), t1)
    rows = (t1, t2, rng.uniform(-off_resonance, off_resonance, shape), rng.uniform(0.7, 1.3, shape))
    t1, t2, delta_b0, rel_b1 = (torch.tensor(row, dtype=dtype) for row in rows)
    return spins(t1=t1, t2=t2, delta_b0=delta_b0, rel_b1=rel_b1)


ALL = [
    Ideal(),
    spgr(dummies=3),
    ssfp(),
    ssfp(catalysation="none", te=0.001),
    ssfp(catalysation="linear_ramp", ramp=5),
    tse(refocusing_angle=math.radians(140)),
]


def identify(readout):
    return f"{readout.kind}-{getattr(readout, 'catalysation', '')}"


# --- every readout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ALL, ids=identify)
def test_a_readout_is_a_value_that_keeps_its_shapes(readout):
    assert isinstance(readout, Readout)
    assert type(readout) in READOUTS
    assert hash(readout) == hash(replace(readout))
    train = readout.train(maps((3, 5), dtype=torch.float32))
    assert train.gain.shape == train.offset.shape == (readout.n_echoes, 3, 5)
    assert train.mz_gain.shape == train.mz_offset.shape == (3, 5)
    assert train.mz_gain.dtype == train.gain.real.dtype == torch.float32


@pytest.mark.parametrize("readout", ALL, ids=identify)
def test_float32_follows_float64(readout):
    exact = maps((40,), 1)
    single = readout.train(exact.map(lambda x: x.float()))
    double = readout.train(exact)
    # a train of 4 to 9 pulses on values up to 1
    for name in ("gain", "offset", "mz_gain", "mz_offset"):
        got, want = getattr(single, name), getattr(double, name)
        torch.testing.assert_close(got.to(want.dtype), want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("readout", ALL[1:], ids=identify)
def test_gradients_through_a_train(readout):
    spin = maps((2,), 2)

    def trains(t1, t2, b0, b1):
        train = readout.train(spins(t1=t1, t2=t2, delta_b0=b0, rel_b1=b1))
        return (
            torch.view_as_real(train.gain + 0j),
            torch.view_as_real(train.offset + 0j),
            train.mz_gain,
            train.mz_offset,
        )

    leaves = [x.clone().requires_grad_() for x in (spin.t1, spin.t2, spin.delta_b0, spin.rel_b1)]
    assert torch.autograd.gradcheck(trains, leaves)


def test_the_ideal_readout_shows_mz_and_takes_it():
    spin = maps((3,))
    train = Ideal().train(spin)
    mz = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(read(Ideal(), spin, mz[None]), mz[None], atol=0, rtol=0)
    assert not train.mz_gain.any()
    assert not train.mz_offset.any()
    assert Ideal().duration == Ideal().time_of_centre == 0


# --- spoiled gradient echo ------------------------------------------------------------------------------------------


def spoiled_recursion(m, t1, flip, tr, n):
    """Signals and what is left, pulse by pulse."""
    e1, signals = np.exp(-tr / t1), []
    for _ in range(n):
        signals.append(np.sin(flip) * m)
        m = 1 + (m * np.cos(flip) - 1) * e1
    return np.array(signals), m


@pytest.mark.parametrize("mz", [-1.0, 0.0, 0.3])
@pytest.mark.parametrize("flip_angle", [math.radians(8), math.radians(35), math.radians(110)])
def test_a_spoiled_train_is_the_look_locker_recursion(mz, flip_angle):
    readout = spgr(Acquisition(lines=96, shots=2), flip_angle=flip_angle, dummies=5)
    spin = maps((50,), 3)
    signals, left = spoiled_recursion(mz, spin.t1.numpy(), flip_angle * spin.rel_b1.numpy(), 0.005, 53)
    train = readout.train(spin)
    # 53 roundings of 1e-16
    np.testing.assert_allclose((train.gain * mz + train.offset).numpy(), signals[5:], atol=1e-14, rtol=0)
    np.testing.assert_allclose((train.mz_gain * mz + train.mz_offset).numpy(), left, atol=1e-14, rtol=0)
    assert readout.duration == pytest.approx(0.265)


def test_oracle_g_apparent_t1_and_steady_state():
    # T1 1200 ms, TR 5 ms, 8 degrees: T1* 358.519 ms, M0* 0.300228
    readout = spgr(Acquisition(lines=2000), flip_angle=math.radians(8))
    train = readout.train(spins(t1=torch.tensor([1.2], dtype=torch.float64), t2=0.05))
    sine = math.sin(math.radians(8))
    assert float(train.offset[-1]) / sine == pytest.approx(0.300228, abs=5e-7)
    n = torch.arange(100, dtype=torch.float64)
    slope = np.polyfit(n.numpy() * 0.005, np.log(train.gain[:100, 0].numpy()), 1)[0]
    assert -1000 / slope == pytest.approx(358.519, abs=5e-4)
    # A and B of A (1 - B exp(-TI / T1*)) after a perfect inversion: T1* (B - 1) = 1194.2 ms
    a = float(train.offset[-1])
    b = 1 + float(train.gain[0]) / a
    assert -1000 / slope * (b - 1) == pytest.approx(1194.2, abs=0.05)


def test_oracle_i_a_readout_adds_a_constant_to_a_decay():
    # T1 1 s, TR 5 ms, 10 degrees, 32 pulses before the centre: a true T1rho of 50 ms reads 68.06 ms
    readout = spgr(Acquisition(lines=64, order="linear"))
    spin = spins(t1=torch.ones(1, dtype=torch.float64), t2=0.05)
    train = readout.train(spin)
    assert float(train.gain[32] / train.gain[0]) == pytest.approx(0.522107, abs=5e-7)
    rest = train.offset[32] / (train.gain[0] - train.gain[32])
    assert float(rest) == pytest.approx(0.248086, abs=5e-7)
    tsl = np.array([0, 0.01, 0.03, 0.05])
    images = read(readout, spin, torch.exp(-torch.tensor(tsl) / 0.05)[:, None])[:, 0].numpy()

    def fitted(model, start):
        return 1000 * curve_fit(model, tsl, images, start, xtol=1e-14, ftol=1e-14, gtol=1e-14)[0][1]

    assert fitted(lambda t, a, t1rho: a * np.exp(-t / t1rho), (0.1, 0.06)) == pytest.approx(68.06, abs=5e-3)
    assert fitted(lambda t, a, t1rho, c: a * np.exp(-t / t1rho) + c, (0.1, 0.06, 0.01)) == pytest.approx(50, abs=5e-4)


def test_a_steady_train_needs_no_difference_of_nearly_equal_numbers():
    # TR / T1 of 5e-4 at a flip angle of half a degree: float32 would lose three digits in 1 - E1 cos(a)
    readout, flip = spgr(flip_angle=math.radians(0.5), tr=0.001), math.radians(0.5)
    train = readout.train(spins(t1=torch.tensor([2.0]), t2=0.05))
    e1 = math.exp(-0.0005)
    rest = -math.expm1(-0.0005) / (1 - e1 * math.cos(flip))
    gained = (train.offset[3] / (train.gain[0] - train.gain[3])).item()
    assert train.gain.dtype == torch.float32
    # the differences of the test itself: 4 pulses change the signal by 2e-3
    assert gained == pytest.approx(rest, rel=2e-4)


# --- balanced SSFP --------------------------------------------------------------------------------------------------


def generator(t1, t2, dw):
    """dM/dt of (Mx, My, Mz, 1) between pulses: M x (0, 0, dw), relaxation."""
    return np.array([[-1 / t2, dw, 0, 0], [-dw, -1 / t2, 0, 0], [0, 0, -1 / t1, 1 / t1], [0, 0, 0, 0.0]])


def pulse(angle, phase):
    """dM/dt = M x w about the axis (cos, sin) of the phase, for the time that makes the angle."""
    x, y = math.cos(phase), math.sin(phase)
    return expm(angle * np.array([[0, 0, -y, 0], [0, 0, x, 0], [y, -x, 0, 0], [0, 0, 0, 0.0]]))


def played(t1, t2, b0, b1, flip, tr, te, before, n, mz):
    """Echoes in the frame of the carrier, demodulated with the phase of their pulse, and Mz a TR after the last."""
    free = generator(t1, t2, 2 * math.pi * b0)
    m, phase, echoes = np.array([0, 0, mz, 1.0]), math.pi * (len(before) % 2), []
    for share, interval in before:
        m = expm(free * interval) @ pulse(share * flip * b1, phase) @ m
        phase = math.pi - phase
    for _ in range(n):
        m = pulse(flip * b1, phase) @ m
        at_echo = expm(free * te) @ m
        echoes.append((at_echo[0] + 1j * at_echo[1]) * np.exp(-1j * (phase + math.pi / 2)))
        m = expm(free * tr) @ m
        phase = math.pi - phase
    return np.array(echoes), m[2]


@pytest.mark.parametrize(
    ("keys", "before"),
    [
        ({}, [(0.5, 0.002)]),
        ({"catalysation": "none", "te": 0.0013}, []),
        ({"catalysation": "none", "te": 0.004}, []),
        ({"catalysation": "linear_ramp", "ramp": 3}, [(0.25, 0.004), (0.5, 0.004), (0.75, 0.004)]),
    ],
)
@pytest.mark.parametrize("mz", [1.0, -0.7])
def test_a_balanced_train_is_the_matrix_exponential_pulse_by_pulse(keys, before, mz):
    readout = ssfp(Acquisition(lines=12), **keys)
    spin = maps((6,), 4, off_resonance=150.0)
    train = readout.train(spin)
    te = keys.get("te", 0.002)
    for i in range(6):
        tissue = [float(x[i]) for x in (spin.t1, spin.t2, spin.delta_b0, spin.rel_b1)]
        echoes, left = played(*tissue, math.radians(40), 0.004, te, before, 12, mz)
        # two dozen matrix exponentials of scipy, 1e-14 each
        np.testing.assert_allclose((train.gain[:, i] * mz + train.offset[:, i]).numpy(), echoes, atol=1e-12, rtol=0)
        assert float(train.mz_gain[i] * mz + train.mz_offset[i]) == pytest.approx(left, abs=1e-12)
    assert readout.duration == pytest.approx(12 * 0.004 + sum(interval for _, interval in before))


def test_the_steady_state_of_a_balanced_train_is_that_of_freeman_and_hill():
    # M0 sin(a) (1 - E1) / (1 - (E1 - E2) cos(a) - E1 E2), times exp(-TE / T2) at the echo
    t1, t2, tr, flip = 0.3, 0.1, 0.005, math.radians(50)
    train = ssfp(Acquisition(lines=2000), flip_angle=flip, tr=tr).train(spins(t1=t1, t2=t2))
    e1, e2 = math.exp(-tr / t1), math.exp(-tr / t2)
    steady = math.sin(flip) * (1 - e1) / (1 - (e1 - e2) * math.cos(flip) - e1 * e2) * math.exp(-tr / 2 / t2)
    assert complex(train.offset[-1]) == pytest.approx(steady, abs=1e-13)
    assert abs(complex(train.gain[-1])) < 1e-12


def test_on_resonance_the_signal_is_real_and_positive_and_half_alpha_starts_without_ringing():
    spin = spins(t1=1.0, t2=0.1)
    smooth, rough = (ssfp(Acquisition(lines=40), catalysation=c).train(spin) for c in ("half_alpha", "none"))
    signal = smooth.gain + smooth.offset
    assert signal.imag.abs().max() < 1e-14
    assert signal.real.min() > 0

    def ringing(train):
        # second difference of the envelope
        return float((train.gain + train.offset).diff(dim=0).diff(dim=0).abs().max())

    assert ringing(smooth) < 0.01 * ringing(rough)


def test_half_a_cycle_of_precession_per_tr_is_a_dark_band():
    train = ssfp(Acquisition(lines=3000), tr=0.004).train(spins(t1=0.8, t2=0.08, delta_b0=torch.tensor([0.0, 125.0])))
    bright, dark = train.offset[-1].abs()
    # the dark band of alternating phases is at 1 / (2 TR) = 125 Hz
    assert dark < 0.2 * bright


# --- turbo spin echo ------------------------------------------------------------------------------------------------


def test_perfect_refocusing_decays_with_t2():
    spin = replace_b1(maps((20,), 5), 1.0)
    readout = tse(Acquisition(lines=10))
    train = readout.train(spin)
    n = torch.arange(1, 11, dtype=torch.float64)[:, None]
    torch.testing.assert_close(train.gain, torch.exp(-n * 0.008 / spin.t2), atol=1e-14, rtol=0)
    assert not train.offset.any()
    assert readout.duration == pytest.approx(10.5 * 0.008)
    assert readout.time_of_centre == pytest.approx(6 * 0.008)


def replace_b1(spin, value):
    return spins(t1=spin.t1, t2=spin.t2, delta_b0=spin.delta_b0, rel_b1=torch.full_like(spin.t1, value))


def dephased(t1, t2, b1, esp, refocusing, n, mz, isochromats=400):
    """Echoes and Mz of a CPMG train as a mean over isochromats that the crushers turn by whole cycles, numpy.

    Excitation about x takes z to y; refocusing about y: M x w.
    """
    phi = 2 * math.pi * (np.arange(isochromats) + 0.5) / isochromats
    xy, z = np.zeros(isochromats, complex), np.full(isochromats, mz)
    xy, z = xy + 1j * z * math.sin(b1 * math.pi / 2), z * math.cos(b1 * math.pi / 2)
    e1, e2, turn = math.exp(-esp / 2 / t1), math.exp(-esp / 2 / t2), np.exp(-1j * phi)
    angle, echoes = b1 * refocusing, []

    def half(xy, z):
        return xy * e2 * turn, 1 + (z - 1) * e1

    for _ in range(n):
        xy, z = half(xy, z)
        x = xy.real * math.cos(angle) - z * math.sin(angle)
        xy, z = x + 1j * xy.imag, z * math.cos(angle) + xy.real * math.sin(angle)
        xy, z = half(xy, z)
        echoes.append(xy.mean())
    _, z = half(xy, z)
    return np.array(echoes), z.mean()


@pytest.mark.parametrize("mz", [1.0, -0.4])
def test_a_turbo_train_is_the_mean_of_many_isochromats(mz):
    readout = tse(Acquisition(lines=9), refocusing_angle=math.radians(150))
    spin = maps((5,), 6)
    train = readout.train(spin)
    for i in range(5):
        echoes, left = dephased(
            float(spin.t1[i]), float(spin.t2[i]), float(spin.rel_b1[i]), 0.008, math.radians(150), 9, mz
        )
        got = (train.gain[:, i] * mz + train.offset[:, i]).numpy()
        # 400 isochromats represent orders up to 199 without error; excitation along y makes the echoes imaginary
        np.testing.assert_allclose(got, echoes.imag, atol=1e-13, rtol=0)
        assert float(train.mz_gain[i] * mz + train.mz_offset[i]) == pytest.approx(left, abs=1e-13)


# --- slice profile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [spgr, ssfp, tse])
def test_a_slab_that_is_sampled_twice_is_the_slab(make):
    profile = SampledProfile(relative_excitation=(1.0, 1.0), relative_refocusing=(1.0, 1.0), positions_in_slice=2.0)
    spin = maps((4,), 7)
    slab, sampled = make().train(spin), make(slice_profile=profile).train(spin)
    for name in ("gain", "offset", "mz_gain", "mz_offset"):
        torch.testing.assert_close(getattr(sampled, name), getattr(slab, name), atol=1e-14, rtol=0)


def test_a_profile_sums_the_signals_of_its_positions():
    ratios = (0.0, 0.4, 0.9, 1.1, 0.9, 0.4, 0.0)
    profile = SampledProfile(relative_excitation=ratios, positions_in_slice=4.0)
    spin = maps((5,), 8)
    train = spgr(slice_profile=profile).train(spin)
    signals = [spoiled_recursion(0.6, spin.t1.numpy(), r * TEN * spin.rel_b1.numpy(), 0.005, 4)[0] for r in ratios]
    np.testing.assert_allclose((train.gain * 0.6 + train.offset).numpy(), sum(signals) / 4, atol=1e-14, rtol=0)
    # what is left lies between the most and the least excited position
    left = (train.mz_gain * 0.6 + train.mz_offset).numpy()
    ends = [spoiled_recursion(0.6, spin.t1.numpy(), r * TEN * spin.rel_b1.numpy(), 0.005, 4)[1] for r in (0.0, 1.1)]
    assert ((left < ends[0]) & (left > ends[1])).all()


@pytest.mark.parametrize("make", [spgr, ssfp, tse])
def test_without_a_field_a_profile_leaves_what_recovers(make):
    # no pulse: no signal, and Mz recovers for the time of the train
    profile = SampledProfile(relative_excitation=(0.5, 1.0), relative_refocusing=(0.5, 1.0), positions_in_slice=2.0)
    readout = make(slice_profile=profile)
    t1 = torch.tensor([0.8], dtype=torch.float64)
    b1 = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    train = readout.train(spins(t1=t1, t2=0.1, rel_b1=b1))
    e1 = math.exp(-readout.duration / 0.8)
    assert not train.gain.any()
    assert float(train.mz_gain.detach()) == pytest.approx(e1, abs=1e-14)
    assert float(train.mz_offset.detach()) == pytest.approx(1 - e1, abs=1e-14)
    (slope,) = torch.autograd.grad(train.mz_gain.sum() + train.mz_offset.sum(), b1)
    assert math.isfinite(float(slope))


def test_a_turbo_train_takes_the_profile_of_both_pulses():
    profile = SampledProfile(relative_excitation=(0.5, 1.0), relative_refocusing=(0.8, 0.9), positions_in_slice=2.0)
    spin = spins(t1=1.0, t2=0.1)
    got = tse(slice_profile=profile).train(spin).gain[0]
    # first echo: sin(excitation) sin^2(refocusing / 2) exp(-ESP / T2)
    want = sum(
        math.sin(e * math.pi / 2) * math.sin(r * math.pi / 2) ** 2 * math.exp(-0.08) / 2
        for e, r in ((0.5, 0.8), (1, 0.9))
    )
    assert float(got) == pytest.approx(want, abs=1e-14)


def test_a_profile_of_a_shaped_pulse_is_close_to_a_slab_at_a_high_time_bandwidth():
    profile = ShapedProfile(shape="sinc", time_bandwidth=40.0, refocusing_factor=1.0)
    spin = spins(t1=1.0, t2=0.1)
    slab, shaped = spgr().train(spin).gain, spgr(slice_profile=profile).train(spin).gain
    # the edges of a Hann-windowed sinc are 1 / 40 of its width wide each
    torch.testing.assert_close(shaped, slab, rtol=0.03, atol=0)


# --- images ---------------------------------------------------------------------------------------------------------


def encoded(readout, encoding, **keys):
    return replace(readout, acquisition=replace(readout.acquisition, encoding=encoding, **keys))


BLURRED = [spgr, ssfp, tse]


@pytest.mark.parametrize("order", ["linear", "centric", "segmented"])
@pytest.mark.parametrize("make", BLURRED)
def test_an_exact_image_is_the_train_line_by_line(make, order):
    readout = make(Acquisition(lines=12, shots=2, order=order, encoding="exact"))
    spin, rng = maps((2, 9, 5), 9), np.random.default_rng(9)
    mz, a = torch.tensor(rng.uniform(-1, 1, (3, 2, 9, 5))), torch.tensor(rng.uniform(0.2, 1, (2, 9, 5)))
    train = readout.train(spin)
    signal = a * (train.offset[:, None] + train.gain[:, None] * mz)
    want = by_line(signal.numpy(), echo_of_line(readout.acquisition, 9).tolist())
    np.testing.assert_allclose(read(readout, spin, mz, a).numpy(), want, atol=1e-13, rtol=0)
    parts = components(readout, spin, mz)
    assert parts.shape == (n_components(readout), 3, 2, 9, 5)
    np.testing.assert_allclose(assembled(readout, a * parts).numpy(), want, atol=1e-13, rtol=0)


@pytest.mark.parametrize("make", BLURRED)
def test_the_centre_encoding_takes_the_echo_of_dc(make):
    readout = make(Acquisition(lines=12, shots=2, order="linear"))
    spin, mz = maps((7,), 10), torch.tensor([[0.4], [-1.0]], dtype=torch.float64).expand(2, 7)
    train = readout.train(spin)
    assert not mixes_voxels(readout)
    torch.testing.assert_close(read(readout, spin, mz, 0.5), 0.5 * (train.gain[3] * mz + train.offset[3]))


@pytest.mark.parametrize("encoding", ["exact", "subspace"])
def test_blocks_and_batches_change_no_image(monkeypatch, encoding):
    readout = spgr(Acquisition(lines=32, shots=2, encoding=encoding))
    spin, rng = maps((4, 16, 11), 11, torch.float32), np.random.default_rng(11)
    mz = torch.tensor(rng.uniform(-1, 1, (2, 4, 16, 11)), dtype=torch.float32)
    whole = read(readout, spin, mz)
    for i in range(4):
        alone = read(readout, spin.map(lambda x, i=i: x[i]), mz[:, i])
        assert torch.equal(whole[:, i], alone)
    monkeypatch.setattr("qsim.signals.readout._BLOCK", 16 * 16 * 3)
    torch.testing.assert_close(read(readout, spin, mz), whole, atol=1e-6, rtol=0)


BITS = [
    spgr(Acquisition(lines=32, shots=2, order="centric"), dummies=13),
    spgr(
        Acquisition(lines=14),
        slice_profile=SampledProfile(relative_excitation=(0.3, 0.9, 1.0, 0.9, 0.3), positions_in_slice=3.0),
    ),
    ssfp(Acquisition(lines=16, shots=2)),
    tse(Acquisition(lines=24, shots=2)),
]


@pytest.mark.parametrize("shape", [(17, 19), (33, 31), (63, 63), (40, 41), (32, 32), (3, 9, 11)])
@pytest.mark.parametrize("encoding", ["centre", "exact", "subspace"])
@pytest.mark.parametrize("readout", BITS, ids=identify)
def test_a_sample_has_the_same_bits_alone_and_in_any_batch(readout, encoding, shape):
    rank = readout.n_echoes // 2 + 2
    readout = encoded(readout, encoding, rank=rank) if encoding == "subspace" else encoded(readout, encoding)
    spin, rng = maps((4, *shape), 16, torch.float32), np.random.default_rng(16)
    mz = torch.tensor(rng.uniform(-1, 1, (2, 4, *shape)), dtype=torch.float32)
    a = torch.tensor(rng.uniform(0.5, 1, (4, *shape)), dtype=torch.float32)

    def made(at):
        some = spin.map(lambda x: x[at].clone())
        parts = components(readout, some, mz[:, at])
        left = torch.stack(aftermath(readout, some))
        return read(readout, some, mz[:, at], a[at]), assembled(readout, a[at] * parts), left

    whole = made(slice(0, 4))
    for low, high in ((0, 1), (1, 2), (1, 4), (3, 4)):
        for few, all_ in zip(made(slice(low, high)), whole, strict=True):
            assert torch.equal(few, all_[:, low:high])
    alone = read(readout, spin.map(lambda x: x[3]), mz[:, 3], a[3])
    assert torch.equal(alone, whole[0][:, 3])


def test_what_a_train_leaves_comes_without_its_echoes(monkeypatch):
    monkeypatch.setattr("qsim.signals.readout._BLOCK", 9)
    readout, spin = tse(), maps((3, 5), 12)
    train = readout.train(spin)
    for got, want in zip(aftermath(readout, spin), (train.mz_gain, train.mz_offset), strict=True):
        torch.testing.assert_close(got, want, atol=1e-15, rtol=0)


@pytest.mark.parametrize("order", ["linear", "centric", "segmented"])
def test_four_coefficients_hold_a_spoiled_train(order):
    # 64 echoes of 10 degrees, TR 5 ms: T1 0.3 to 4 s and rel_b1 0.7 to 1.3 of `maps`
    readout = spgr(Acquisition(lines=256, shots=4, order=order, encoding="subspace", rank=4))
    spin, rng = maps((256, 8), 13), np.random.default_rng(13)
    mz = torch.tensor(rng.uniform(-1, 1, (3, 256, 8)))
    exact, short = read(encoded(readout, "exact"), spin, mz), read(readout, spin, mz)
    assert float((short - exact).norm() / exact.norm()) < 1e-4
    assert subspace(readout).loss < 1e-4
    # every two ranks more are worth two digits or more
    six = read(encoded(readout, "subspace", rank=6), spin, mz)
    assert float((six - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("make", [ssfp, tse])
def test_other_trains_lose_no_more_than_a_few_times_what_their_subspace_says(make):
    readout = make(Acquisition(lines=32, shots=2, encoding="subspace", rank=8))
    spin, rng = maps((32, 20), 14), np.random.default_rng(14)
    mz = torch.tensor(rng.uniform(0.5, 1, (1, 32, 20)))
    exact, short = read(encoded(readout, "exact"), spin, mz), read(readout, spin, mz)
    # long T2, which the ensemble counts more, are rarer in these maps
    assert float((short - exact).norm() / exact.norm()) < 4 * subspace(readout).loss


def test_a_subspace_that_is_no_model_of_the_train_is_refused():
    readout = ssfp(Acquisition(lines=64, encoding="subspace", rank=2), catalysation="none")
    with pytest.raises(InputError, match=r"acquisition.rank: 2 temporal coefficients leave out .* encoding: exact"):
        subspace(readout)


@pytest.mark.parametrize(
    ("readout", "tissue", "message"),
    [
        # 1 / (4 x 4 ms)
        (ssfp, {"delta_b0": 90.0}, r"delta_b0: 90 Hz is beyond the 62.5 Hz, 1 / \(4 tr\), .* use encoding: exact"),
        (ssfp, {"delta_b0": -62.6}, "delta_b0: 62.6 Hz is beyond the 62.5 Hz"),
        (spgr, {"t1": 0.05}, "t1: 0.05 is outside the 0.3 to 4 .* use encoding: exact"),
        (spgr, {"rel_b1": 3.0}, "rel_b1: 3 is outside the 0.7 to 1.3"),
        (spgr, {"rel_b1": 3.0, "t1": 4.1}, "rel_b1: 3 is outside the 0.7 to 1.3"),
        (tse, {"t2": 0.003}, "t2: 0.003 is outside the 0.02 to 2"),
        (tse, {"rel_b1": 0.4}, "rel_b1: 0.4 is outside the 0.7 to 1.3"),
        (ssfp, {"delta_b0": 62.5}, None),
        (spgr, {"delta_b0": 400.0}, None),
        (spgr, {"rel_b1": 1.35}, None),
        (spgr, {"t1": 4.5, "t2": 2.2}, None),
        (spgr, {"t2": 0.001, "rel_b1": 0.1}, None),
    ],
)
def test_voxels_that_a_subspace_does_not_hold_are_refused(readout, tissue, message):
    lines = {spgr: 64, ssfp: 32, tse: 32}[readout]
    made = readout(Acquisition(lines=lines, encoding="subspace", rank={spgr: 4, ssfp: 16, tse: 8}[readout]))
    one = torch.ones(6, 2, dtype=torch.float64)
    values = {"t1": 1.0, "t2": 0.05, "delta_b0": 0.0, "rel_b1": 1.0}
    spin = spins(**{name: one * value for name, value in values.items()})
    odd = spins(
        **{name: torch.where(one.cumsum(0) == 3, one * tissue.get(name, v), one * v) for name, v in values.items()}
    )
    read(made, spin, one[None])
    if message is None:
        exact, short = read(encoded(made, "exact"), odd, one[None]), read(made, odd, one[None])
        # ten times the 0.6 % of the balanced train, 0.1 % of the spoiled one
        assert float((short - exact).norm() / exact.norm()) < (0.06 if readout is ssfp else 1e-3)
    else:
        for act in (read, components):
            with pytest.raises(InputError, match=message):
                act(made, odd, one[None])


def test_a_balanced_subspace_holds_off_resonance_between_the_points_of_its_ensemble():
    readout = ssfp(Acquisition(lines=64, encoding="subspace", rank=32))
    b0 = torch.linspace(-62.5, 62.5, 997, dtype=torch.float64)
    train = readout.train(spins(t1=1.0, t2=0.1, delta_b0=b0))
    space = subspace(readout)
    assert float(space.left_out(train.gain).max()) < 5 * space.loss


@pytest.mark.parametrize("encoding", ["exact", "subspace"])
def test_gradients_through_an_image(encoding):
    readout = spgr(Acquisition(lines=6, encoding=encoding))
    spin = maps((6, 2), 15)
    leaves = [x.clone().requires_grad_() for x in (spin.t1, spin.rel_b1, torch.rand(2, 6, 2, dtype=torch.float64))]
    assert torch.autograd.gradcheck(
        lambda t1, b1, mz: torch.view_as_real(read(readout, spins(t1=t1, t2=0.02, rel_b1=b1), mz)), leaves
    )


def test_an_image_without_a_phase_axis_is_refused():
    readout = spgr(Acquisition(lines=6, encoding="exact"))
    with pytest.raises(InputError, match=r"acquisition.encoding: exact transforms along the last axis but one"):
        read(readout, maps((6,)), torch.ones(1, 6, dtype=torch.float64))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "keys", "message"),
    [
        (spgr, {"flip_angle": 0.0}, r"flip_angle must lie in \(0, pi\] rad, got 0"),
        (spgr, {"flip_angle": -0.1}, r"flip_angle must lie in \(0, pi\] rad, got -0.1"),
        (spgr, {"flip_angle": 10.0}, "got 10; 10 degrees are 0.1745 rad"),
        (ssfp, {"flip_angle": math.nan}, "flip_angle must lie in"),
        (spgr, {"tr": 0.0}, "tr must be above 0 s, got 0"),
        (spgr, {"tr": 5.0}, "tr must be in seconds, got 5; divide by 1000"),
        (spgr, {"dummies": -1}, "dummies must not be negative, got -1"),
        (ssfp, {"tr": -0.004}, "tr must be above 0 s, got -0.004"),
        (ssfp, {"te": 0.005}, r"te must lie in \[0, tr = 0.004 s\], got 0.005"),
        (ssfp, {"te": math.nan}, "te must lie in"),
        (ssfp, {"catalysation": "linear_ramp"}, "ramp is for catalysation linear_ramp, which needs it .* got None"),
        (ssfp, {"ramp": 5}, "ramp is for catalysation linear_ramp, .* got 5"),
        (ssfp, {"catalysation": "linear_ramp", "ramp": 0}, "ramp must be at least 1 pulse, got 0"),
        (tse, {"esp": 8.0}, "esp must be in seconds, got 8; divide by 1000"),
        (tse, {"esp": math.inf}, "esp must be above 0 s, got inf"),
        (
            tse,
            {"slice_profile": SampledProfile(relative_excitation=(1.0,), positions_in_slice=1.0)},
            "slice_profile must have relative_refocusing",
        ),
        (tse, {"refocusing_angle": 180.0}, "refocusing_angle .* 180 degrees are 3.142 rad"),
    ],
)
def test_refusals(make, keys, message):
    with pytest.raises(ValueError, match=message):
        make(**keys)
