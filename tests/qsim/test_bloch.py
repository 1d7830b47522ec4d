"""The engine against matrix exponentials, an ODE solver and closed forms."""

import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import InputError
from qsim.signals.bloch import (
    Crusher,
    Delay,
    Exchange,
    FreePrecession,
    HardPulse,
    Lock,
    RectangularPulse,
    ShapedPulse,
    longitudinal,
    magnetisation,
    rotating_frame_rates,
    spins,
)
from qsim.signals.pulses import hs1
from tests import bloch_oracle as oracle
from tests.bloch_oracle import Voxel

# generic voxels: off resonance, imperfect B1, T1rho other than T2, T2rho of its own
VOXELS = (
    Voxel(t1=1.0, t2=0.05, t1rho=0.05),
    Voxel(t1=1.3, t2=0.08, t1rho=0.11, delta_b0=73.0, rel_b1=0.87),
    Voxel(t1=0.6, t2=0.03, t1rho=0.045, t2rho=0.07, delta_b0=-140.0, rel_b1=1.12),
    Voxel(t1=3.5, t2=2.0, t1rho=2.1, delta_b0=311.0, rel_b1=0.7),
)


def spin_of(voxel, dtype=torch.float64):
    maps = {k: getattr(voxel, k) for k in ("t1", "t2", "t1rho", "t2rho", "delta_b0", "rel_b1")}
    return spins(**{k: None if v is None else torch.tensor([v], dtype=dtype) for k, v in maps.items()})


def after(event, voxel, m, dtype=torch.float64):
    """M after an event from any M, by three runs from M prepared with pulses: here through its affine map."""
    spin = spin_of(voxel, dtype)
    return event.affine(spin)(tuple(torch.tensor([x], dtype=dtype) for x in m))


def as_array(m):
    return np.array([float(x) if not isinstance(x, torch.Tensor) else float(x[0]) for x in m])


M = (0.3, -0.5, 0.6)


def test_a_pulse_of_90_about_x_takes_z_to_y():
    m = magnetisation([HardPulse(math.pi / 2)], spins(t1=1.0, t2=0.1))
    np.testing.assert_allclose(m.flatten(), [0, 1, 0], atol=1e-15)


def test_off_resonance_turns_clockwise():
    """dMx/dt = dw My: a quarter turn at 100 Hz takes +y to +x."""
    events = [HardPulse(math.pi / 2), FreePrecession((0.0025,))]
    m = magnetisation(events, spins(t1=1e6, t2=1e6, delta_b0=100.0))
    np.testing.assert_allclose(m.flatten(), [1, 0, 0], atol=1e-7)


@pytest.mark.parametrize("voxel", VOXELS)
@pytest.mark.parametrize("axis", ["x", "y", "-x", "-y"])
def test_pulses_against_matrix_exponentials(voxel, axis):
    phase = oracle.PHASES[axis] * oracle.DEGREE
    hard = after(HardPulse(1.9, phase), voxel, M)
    expected = oracle.carry([oracle.pulse_matrix(voxel, 1.9 / oracle.DEGREE, axis)], M)
    np.testing.assert_allclose(as_array(hard), expected, atol=1e-14)
    block = after(RectangularPulse(2.7, phase, 0.0009), voxel, M)
    expected = oracle.carry([oracle.pulse_matrix(voxel, 2.7 / oracle.DEGREE, axis, 0.0009)], M)
    # rounding of expm and of the closed form
    np.testing.assert_allclose(as_array(block), expected, atol=1e-12)


@pytest.mark.parametrize("voxel", VOXELS)
@pytest.mark.parametrize("time", [0.0, 0.0017, 0.05])
def test_timed_events_against_matrix_exponentials(voxel, time):
    start = [HardPulse(1.1, 0.4)]
    m0 = as_array(after(start[0], voxel, (0, 0, 1)))
    for event, matrix in (
        (Lock((time,), 400.0, math.pi / 2), oracle.lock_matrix(voxel, time, 400.0, "y")),
        (Lock((time,), 150.0, math.pi), oracle.lock_matrix(voxel, time, 150.0, "-x")),
        (FreePrecession((time,)), oracle.free_matrix(voxel, time)),
    ):
        m = magnetisation([*start, event], spin_of(voxel)).flatten()
        np.testing.assert_allclose(m, oracle.carry([matrix], m0), atol=1e-12)
        fixed = type(event)(duration=time, **({"fsl": event.fsl} if isinstance(event, Lock) else {}), phase=event.phase)
        np.testing.assert_allclose(magnetisation([*start, fixed], spin_of(voxel)).flatten(), m, atol=1e-13)


@pytest.mark.parametrize("voxel", VOXELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_lock_against_an_ode(voxel, dtype, tolerance):
    """A long lock off resonance, with T1rho along and T2rho across the effective field."""
    fsl, time, phase = 400.0, 0.03, 0.9
    w1 = 2 * np.pi * fsl * voxel.rel_b1
    w = np.array([w1 * np.cos(phase), w1 * np.sin(phase), 2 * np.pi * voxel.delta_b0])
    events = [HardPulse(1.1, 0.4), Lock((time,), fsl, phase)]
    m = magnetisation(events, spin_of(voxel, dtype)).flatten()
    m0 = as_array(after(HardPulse(1.1, 0.4), voxel, (0, 0, 1)))
    np.testing.assert_allclose(m, oracle.ode(voxel, lambda t: w, time, m0, locked=True), atol=tolerance)


@pytest.mark.parametrize("voxel", VOXELS[:3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_hs1_against_an_ode(voxel, dtype, tolerance):
    """The pulse with its continuous modulation, relaxation and off-resonance, from a tilted M."""
    duration, beta, mu, peak = 0.01024, 672.0, 5.0, 800.0
    pulse = hs1(duration=duration, max_b1=peak, beta=beta, mu=mu, steps=8000)

    def field(t):
        s = t - duration / 2
        return (
            2 * np.pi * peak * voxel.rel_b1 / np.cosh(beta * s),
            0.0,
            2 * np.pi * voxel.delta_b0 - mu * beta * np.tanh(beta * s),
        )

    tip = HardPulse(1.1, 0.4)
    m0 = as_array(after(tip, voxel, (0, 0, 1)))
    expected = oracle.ode(voxel, field, duration, m0)
    # a series follows, so that the second pulse runs as an affine map
    before = magnetisation([tip, pulse], spin_of(voxel, dtype)).flatten()
    np.testing.assert_allclose(before, expected, atol=tolerance)
    later = magnetisation([tip, FreePrecession((0.0,)), pulse], spin_of(voxel, dtype)).flatten()
    np.testing.assert_allclose(later, expected, atol=tolerance)


def test_oracle_f_hs1_inversion():
    """Mz / M0 after HS1, truncated, 2000 steps: physics.md (c), at the digits printed there."""
    pulse = hs1(duration=0.01024, max_b1=800.0, beta=672.0, mu=5.0)
    b1 = torch.tensor([1.0, 0.7, 0.5], dtype=torch.float64)
    for (t1, t2), printed in {
        (1e9, 1e9): (-0.9928, -1.0000, -0.9987),
        (1.2, 0.045): (-0.9066, -0.9286, -0.9422),
        (1.4, 0.05): (-0.9151, -0.9358, -0.9480),
    }.items():
        mz = longitudinal([pulse], spins(t1=t1, t2=t2, rel_b1=b1))[0]
        np.testing.assert_allclose(mz, printed, atol=5.1e-5)


def test_rates_in_the_rotating_frame():
    """physics.md (a): T1 1 s, T2 50 ms, f_SL 400 Hz at 0, 100, 400, 800 Hz; T2rho from T1 and T2, not from T1rho."""
    offset = torch.tensor([0.0, 100.0, 400.0, 800.0], dtype=torch.float64)
    along, across = rotating_frame_rates(spins(t1=1.0, t2=0.05, t1rho=0.05, delta_b0=offset), 400.0)
    np.testing.assert_allclose(along, [20.000, 18.882, 10.500, 4.800], atol=5e-4)
    np.testing.assert_allclose(across, [10.500, 11.059, 15.250, 18.100], atol=5e-4)
    _, across = rotating_frame_rates(spins(t1=1.0, t2=0.04, t1rho=0.05), 400.0)
    assert float(across) == pytest.approx(13.0, abs=1e-12)


def test_lock_on_resonance_decays_with_t1rho():
    """M along the field: exp(-TSL / T1rho), whatever T2 is; the Bloch equation drives nothing along it."""
    tsl = (0.0, 0.02, 0.08)
    events = [HardPulse(math.pi / 2), Lock(tsl, 500.0, math.pi / 2)]
    my = magnetisation(events, spins(t1=1.0, t2=0.04, t1rho=0.06))[1]
    np.testing.assert_allclose(my.flatten(), np.exp(-np.array(tsl) / 0.06), atol=1e-12)


def test_exchange_makes_dispersion():
    """Rex of two sites on resonance, written out with numbers: p .02 * .98, 130 Hz, k 1200 / s."""
    exchange = Exchange(fraction=0.02, shift=130.0, rate=1200.0)
    for fsl in (200.0, 400.0, 1000.0):
        along, _ = rotating_frame_rates(spins(t1=1.0, t2=0.05, t1rho=0.05), fsl, exchange)
        rex = 0.0196 * (2 * math.pi * 130) ** 2 * 1200 / ((2 * math.pi * fsl) ** 2 + 1200**2)
        assert float(along) == pytest.approx(20 + rex, rel=1e-12)


def test_crusher_and_delay():
    """A crusher leaves Mz; a delay recovers it, M0 (1 - E) + Mz E, and leaves nothing across."""
    spin = spins(t1=0.8, t2=0.05, delta_b0=20.0)
    m = magnetisation([HardPulse(1.0), Crusher()], spin).flatten()
    np.testing.assert_allclose(m, [0, 0, math.cos(1.0)], atol=1e-15)
    m = magnetisation([HardPulse(1.0), Delay((0.0, 0.3))], spin)
    e = np.exp(-np.array([0.0, 0.3]) / 0.8)
    np.testing.assert_allclose(m[2].flatten(), 1 - e + math.cos(1.0) * e, atol=1e-14)
    assert float(m[:2].abs().max()) == 0


def test_rest_of_a_long_lock():
    """dM/dt = 0: the resting state solves the linear system of the oracle."""
    voxel = VOXELS[1]
    m = magnetisation([Lock((60.0,), 300.0, 0.3)], spin_of(voxel)).flatten()
    g = oracle.generator(voxel, 2 * np.pi * 300 * voxel.rel_b1, 0.3, locked=True)
    np.testing.assert_allclose(m, np.linalg.solve(-g[:3, :3], g[:3, 3]), atol=1e-13)


def test_mz_before_counts_linearly():
    events = [HardPulse(1.2), Lock((0.01, 0.02), 350.0, math.pi / 2), HardPulse(0.7, math.pi)]
    spin = spin_of(VOXELS[2])
    half = longitudinal(events, spin, 0.5)
    np.testing.assert_allclose(
        half, (longitudinal(events, spin, 0.0) + longitudinal(events, spin, 1.0)) / 2, atol=1e-14
    )


def events_of_every_kind():
    return [
        HardPulse(1.4, 0.3),
        Lock((0.004, 0.02), 400.0, 1.2),
        RectangularPulse(3.0, 2.0, 0.0006),
        FreePrecession((0.001, 0.003)),
        ShapedPulse((300.0, 500.0, 200.0), (10.0, -40.0, 0.0), 0.0009, 0.5),
        Lock((0.008, 0.04), 400.0, 4.0),
        FreePrecession(0.002),
        Delay((0.01, 0.02)),
        HardPulse(0.8, 1.0),
    ]


def test_gradients_equal_finite_differences():
    """Through every kind of event and every map of the tissue and the fields."""
    maps = torch.tensor(
        [[1.1, 0.06, 0.07, 0.05, 40.0, 0.9], [0.7, 0.04, 0.05, 0.06, -90.0, 1.1]], dtype=torch.float64
    ).T

    def mz(t1, t2, t1rho, t2rho, delta_b0, rel_b1):
        spin = spins(t1=t1, t2=t2, t1rho=t1rho, t2rho=t2rho, delta_b0=delta_b0, rel_b1=rel_b1)
        return magnetisation(events_of_every_kind(), spin)

    rows = tuple(row.clone().requires_grad_(True) for row in maps)
    assert torch.autograd.gradcheck(mz, rows, eps=1e-6, atol=1e-6, rtol=1e-5)


@given(shape=st.sampled_from([(), (1,), (3, 5), (2, 3, 4)]), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_maps_are_carried_voxel_by_voxel(shape, seed):
    g = torch.Generator().manual_seed(seed)
    draw = lambda low, high: low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)  # noqa: E731
    maps = {
        "t1": draw(0.5, 3.0),
        "t2": draw(0.02, 0.2),
        "t1rho": draw(0.02, 0.2),
        "delta_b0": draw(-200, 200),
        "rel_b1": draw(0.6, 1.3),
    }
    whole = magnetisation(events_of_every_kind(), spins(**maps))
    assert whole.shape == (3, 2, *shape)
    for index in np.ndindex(*shape):
        one = magnetisation(events_of_every_kind(), spins(**{k: v[index] for k, v in maps.items()}))
        np.testing.assert_allclose(whole[(slice(None), slice(None), *index)], one, atol=1e-14)


def test_blocks_do_not_change_a_bit(monkeypatch):
    """The cache-sized blocks of a large map give what the whole gives at once."""
    g = torch.Generator().manual_seed(3)
    b0, b1 = (torch.rand(41, 37, generator=g) for _ in range(2))
    spin = spins(t1=1.0, t2=0.05, t1rho=0.06, delta_b0=200 * b0 - 100, rel_b1=0.7 + 0.6 * b1)
    events = [HardPulse(1.5), Lock((0.0, 0.01, 0.05), 400.0, math.pi / 2), HardPulse(1.5, math.pi)]
    whole = longitudinal(events, spin)
    monkeypatch.setattr("qsim.signals.bloch._BLOCK", 300)
    parts = longitudinal(events, spin)
    assert torch.equal(parts, whole)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"t1": 0.0, "t2": 0.05}, "t1: must be above 0 s"),
        ({"t1": 1.0, "t2": -0.05}, "t2: must be above 0 s"),
        ({"t1": 1.0, "t2": 2.1}, "t2: exceeds 2 t1"),
        ({"t1": 1.0, "t2": 0.05, "t1rho": 0.0}, "t1rho: must be above 0 s"),
        ({"t1": 1.0, "t2": math.nan}, "t2: must be finite"),
        ({"t1": 1.0, "t2": 0.05, "rel_b1": -0.1}, "rel_b1: must not be negative"),
        ({"t1": torch.tensor([1]), "t2": torch.tensor([1])}, "floating-point"),
    ],
)
def test_what_is_not_physical_is_refused(maps, message):
    with pytest.raises(InputError, match=message):
        spins(**maps)


def test_series_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        longitudinal([FreePrecession((0.1,)), FreePrecession((0.1, 0.2))], spins(t1=1.0, t2=0.1))


COMPILED = """
import math, torch
from qsim.signals.bloch import HardPulse, Lock, compile_longitudinal, longitudinal, spins
g = torch.Generator().manual_seed(1)
spin = spins(t1=1.0, t2=0.05, t1rho=0.06, delta_b0=100 * torch.rand(33, 21, generator=g), rel_b1=1.1)
events = [HardPulse(1.5), Lock((0.0, 0.01, 0.05), 400.0, math.pi / 2), HardPulse(1.5, math.pi)]
fused = compile_longitudinal(events)(spin, torch.ones(33, 21))
print(float((fused - longitudinal(events, spin)).abs().max()))
"""


@pytest.mark.slow
def test_compiled_courses_agree():
    """Half a minute of compiling, in a process whose functions are not wrapped to check shapes."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and this machine has none")
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True, timeout=280)
    assert float(done.stdout) < 3e-6
