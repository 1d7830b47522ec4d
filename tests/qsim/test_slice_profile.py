"""Slice profiles against the Fourier transform at small angles and the Bloch engine at large ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from qsim.errors import InputError
from qsim.information import jacobian
from qsim.signals.bloch import ShapedPulse, spins
from qsim.signals.epg import ScaledFlip
from qsim.signals.multi_echo import MultiEchoSpinEcho
from qsim.signals.slice_profile import SampledProfile, ShapedProfile, SliceProfile, half_angles, pulse_shape

SINC = ShapedProfile(shape="sinc", time_bandwidth=4.0, refocusing_factor=1.5)
GAUSS = ShapedProfile(shape="gauss", time_bandwidth=2.5, refocusing_factor=1.2)
PROFILES = pytest.mark.parametrize("profile", [SINC, GAUSS], ids=["sinc", "gauss"])


def envelope(profile, x):
    """Amplitude over the pulse, -1/2 < x < 1/2, as the docstring of `pulse_shape` gives it."""
    b = profile.time_bandwidth
    if profile.shape == "sinc":
        return np.sinc(b * x) * (1 + np.cos(2 * np.pi * x)) / 2
    return np.exp(-((np.pi * b * x) ** 2) / (4 * math.log(2)))


def flip_angles(amplitude, b, flip, z):
    sine, cosine = half_angles(amplitude, b, flip, z)
    return 2 * np.arctan2(sine, np.abs(cosine))


def places(profile):
    n = profile.positions
    return ((np.arange(n) + 0.5) / n - 0.5) * profile.extent


@PROFILES
def test_small_angles_are_the_fourier_transform(profile):
    """flip(z) / flip = integral of the pulse x cos(2 pi TBW z x), to second order of the angle and of the step."""
    area = quad(lambda x: envelope(profile, x), -0.5, 0.5)[0]
    for factor, ratios in (
        (1.0, profile.relative_flips(1e-3)),
        (profile.refocusing_factor, profile.sampled(1e-3, 1e-3).relative_refocusing),
    ):
        k = 2 * np.pi * profile.time_bandwidth * places(profile) / factor
        expected = [quad(lambda x, k=k: envelope(profile, x) * np.cos(k * x), -0.5, 0.5)[0] / area for k in k]
        np.testing.assert_allclose(ratios, expected, atol=5e-5)


@PROFILES
def test_small_angles_sum_to_the_middle_of_the_pulse(profile):
    """The integral of a Fourier transform is its function at 0: amplitude at the middle / (mean amplitude x TBW)."""
    area = quad(lambda x: envelope(profile, x), -0.5, 0.5)[0]
    wide = replace(profile, positions=600, extent=40.0)
    total = sum(wide.relative_flips(1e-3)) / wide.positions_in_slice
    # the side lobes beyond 20 thicknesses hold less than this
    assert total == pytest.approx(1 / area / profile.time_bandwidth, abs=1e-3)


@PROFILES
@pytest.mark.parametrize("degrees", [30, 90, 150, 180])
def test_large_angles_are_the_bloch_equation(profile, degrees):
    """Mz and |Mxy| after the pulse, and what it refocuses, from the engine with the gradient as off-resonance."""
    flip, steps, width = math.radians(degrees), 256, 2e-3
    b = profile.time_bandwidth
    z = np.linspace(-1.5, 1.5, 101)
    amplitude = pulse_shape(profile.shape, b, steps)
    pulse = ShapedPulse(tuple((flip * amplitude * steps / width / 2 / math.pi).tolist()), (0.0,) * steps, width)
    # relaxation switched off
    here = spins(t1=1e9, t2=1e9, delta_b0=torch.tensor(b / width * z))
    x, y, mz = (m.numpy() for m in pulse.apply(here, (0.0, 0.0, 1.0)))
    angles = flip_angles(amplitude, b, flip, z)
    np.testing.assert_allclose(np.cos(angles), mz, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sin(angles)), np.hypot(x, y), atol=1e-9)
    # crushers keep what the pulse turns into its complex conjugate
    xx, yx, _ = (m.numpy() for m in pulse.apply(here, (1.0, 0.0, 0.0)))
    xy, yy, _ = (m.numpy() for m in pulse.apply(here, (0.0, 1.0, 0.0)))
    np.testing.assert_allclose(np.sin(angles / 2) ** 2, np.hypot(xx - yy, xy + yx) / 2, atol=1e-9)


@PROFILES
def test_centre_edge_and_symmetry(profile):
    """The middle gets the nominal angle; at small angles half of it at the edge of the slice; both sides are equal."""
    one = ShapedProfile(
        shape=profile.shape, time_bandwidth=profile.time_bandwidth, refocusing_factor=1.0, positions=1, extent=1.0
    )
    for flip in (0.1, 1.5, math.pi):
        assert one.relative_flips(flip)[0] == pytest.approx(1, abs=1e-12)
        ratios = profile.relative_flips(flip)
        assert ratios == ratios[::-1]
    edge = flip_angles(
        pulse_shape(profile.shape, profile.time_bandwidth, 512), profile.time_bandwidth, 1e-3, np.array([0.5])
    )
    # a window and a cut-off blur the edge
    assert edge[0] / 1e-3 == pytest.approx(0.5, abs=0.05)
    odd = ShapedProfile(shape="sinc", time_bandwidth=4.0, refocusing_factor=1.5, positions=7)
    assert len(odd.relative_flips(1.0)) == 7
    assert odd.relative_flips(1.0)[3] == pytest.approx(1)


def test_steps_have_converged():
    z = np.linspace(0, 1.5, 60)
    for flip in (math.pi / 2, math.pi):
        coarse, fine = (flip_angles(pulse_shape("sinc", 8.0, n), 8.0, flip, z) for n in (512, 4096))
        np.testing.assert_allclose(coarse, fine, atol=1e-4 * flip)


def test_positions_have_converged():
    """The default positions give the echoes of a finely sampled slice, to what `docs/physics/epg.md` says."""
    te = tuple(0.01 * n for n in range(1, 17))
    maps = torch.tensor([[1.0, 1.0], [0.05, 0.1], [0.8, 1.1]], dtype=torch.float64)
    for shape, b, accuracy in (("sinc", 4.0, 1e-3), ("sinc", 8.0, 3e-3), ("gauss", 2.7, 1e-3)):
        for factor in (1.0, 1.5):
            coarse, fine = (
                MultiEchoSpinEcho(
                    te=te,
                    t1=1.0,
                    slice_profile=ShapedProfile(shape=shape, time_bandwidth=b, refocusing_factor=factor, **more),
                )(maps)
                for more in ({}, {"positions": 400, "extent": 4.0})
            )
            assert float(((coarse - fine).abs() / fine[0]).max()) < accuracy


def test_thick_refocusing_leaves_the_excitation():
    """A refocusing pulse far thicker than the slice refocuses all: exp(-n ESP / T2) x the signal of the excitation."""
    te = tuple(0.01 * n for n in range(1, 9))
    thick = ShapedProfile(shape="sinc", time_bandwidth=4.0, refocusing_factor=1e4)
    signal = MultiEchoSpinEcho(te=te, t1=1.0, slice_profile=thick, signed=True)(
        torch.tensor([1.0, 0.05, 1.0], dtype=torch.float64)
    )
    excited = sum(math.sin(math.pi / 2 * r) for r in thick.relative_flips(math.pi / 2)) / thick.positions_in_slice
    np.testing.assert_allclose(signal, excited * np.exp(-np.array(te) / 0.05), rtol=1e-5)


def test_sampled_form():
    sampled = SINC.sampled(math.pi / 2)
    assert isinstance(sampled, SliceProfile)
    assert isinstance(SINC, SliceProfile)
    assert sampled.positions_in_slice == SINC.positions_in_slice == 24
    assert sampled.relative_flips(0.3) == SINC.relative_flips(math.pi / 2)
    # the same train through both at the field of the sampling
    te = (0.01, 0.02, 0.03)
    maps = torch.tensor([1.0, 0.05, 1.0], dtype=torch.float64)
    a, b = (MultiEchoSpinEcho(te=te, t1=1.0, slice_profile=p)(maps) for p in (SINC, sampled))
    np.testing.assert_allclose(a, b, atol=1e-10)


@PROFILES
def test_transmit_field_changes_the_profile(profile):
    """At each field the pulses are those of the Bloch engine at the scaled amplitude, on both sides of 180 degrees."""
    fields = torch.tensor([0.0, 0.2, 0.77, 1.0, 1.3, 2.0], dtype=torch.float64)
    steps, width, b = 512, 2e-3, profile.time_bandwidth
    z = torch.tensor(places(profile))
    for nominal, flips, thickness in (
        (math.pi / 2, profile.excitation_flips(math.pi / 2), 1.0),
        (math.pi, profile.refocusing_flips(math.pi), profile.refocusing_factor),
    ):
        amplitude = nominal * pulse_shape(profile.shape, b, steps) * steps / width / 2 / math.pi
        pulse = ShapedPulse(tuple(amplitude.tolist()), (0.0,) * steps, width)
        offsets = (b / width / thickness * z)[:, None].expand(-1, len(fields))
        here = spins(t1=1e9, t2=1e9, delta_b0=offsets, rel_b1=fields.expand_as(offsets))
        x, y, mz = pulse.apply(here, (0.0, 0.0, 1.0))
        cosine, sine = (torch.stack(parts) for parts in zip(*(flip(fields) for flip in flips), strict=True))
        np.testing.assert_allclose(cosine, mz, atol=1e-9)
        # of sin = 2 sin(half) cos(half) near 180 degrees rounding leaves the root of what it leaves of cos
        np.testing.assert_allclose(sine.abs(), torch.hypot(x, y), atol=1e-6)
        # rephased by half the area, what is excited lies along y
        y_rephased = (
            torch.sin(math.pi * b / thickness * z)[:, None] * x + torch.cos(math.pi * b / thickness * z)[:, None] * y
        )
        strong = sine.abs() > 0.3
        assert bool((torch.sign(sine) == torch.sign(y_rephased))[strong].all())


def test_middle_of_a_shaped_pulse():
    """On the axis the pulse is a plain rotation, at any field, its sign through 180 degrees included."""
    profile = replace(SINC, positions=1, extent=1.0)
    fields = torch.linspace(0, 2, 41, dtype=torch.float64)
    for angle in (0.5, math.pi / 2, math.pi):
        shaped, plain = profile.refocusing_flips(angle)[0](fields), ScaledFlip(angle)(fields)
        np.testing.assert_allclose(shaped[0], plain[0], atol=1e-10)
        np.testing.assert_allclose(shaped[1], plain[1], atol=1e-6)


def test_a_shaped_slice_under_vmap():
    """Voxel by voxel the same as together; beyond the range of the series, where nothing can be raised, NaN."""
    model = MultiEchoSpinEcho(te=(0.01, 0.02, 0.03), t1=1.0, slice_profile=SINC)
    kappa = torch.tensor([[1.0, 0.7, 1.0], [0.05, 0.1, 0.08], [0.9, 1.2, 2.5]], dtype=torch.float64)
    mapped = torch.func.vmap(model.coherent, in_dims=1, out_dims=1)(kappa)
    # the same operations on the same numbers: rounding of vector against scalar code only
    torch.testing.assert_close(mapped[:, :2], model.coherent(kappa[:, :2]), rtol=1e-13, atol=1e-14)
    assert mapped[:, 2].isnan().all()
    with pytest.raises(InputError, match=r"rel_b1: a shaped slice profile takes up to 2\.0, got 2\.5"):
        model.coherent(kappa)


def test_gradient_through_a_shaped_slice():
    """Forward mode against differences, where the middle of the slice sees exactly 180 degrees too."""
    model = MultiEchoSpinEcho(te=(0.01, 0.02, 0.03), t1=1.0, slice_profile=replace(SINC, positions=5, extent=1.5))
    maps = torch.tensor([[1.0, 1.0], [0.05, 0.08], [1.0, 0.85]], dtype=torch.float64)
    rows = jacobian(model, maps)
    step = torch.zeros_like(maps)
    step[2] = 1e-5
    np.testing.assert_allclose(rows[2], (model(maps + step) - model(maps - step)) / 2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relative_excitation": ()}, "^relative_excitation is empty"),
        ({"relative_refocusing": (1.0,)}, "^relative_refocusing has 1 positions"),
        ({"relative_excitation": (1.0, math.nan)}, "^relative_excitation must hold finite"),
        ({"positions_in_slice": 0.0}, "^positions_in_slice must be above 0"),
    ],
)
def test_sampled_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SampledProfile(**({"relative_excitation": (1.0, 1.0), "positions_in_slice": 2.0} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_bandwidth": 0.0}, "^time_bandwidth must be above 0"),
        ({"time_bandwidth": 2000.0}, "^time_bandwidth must be at most 64"),
        ({"refocusing_factor": math.inf}, "^refocusing_factor must be above 0"),
        ({"positions": 0}, "^positions must be at least 1"),
        ({"extent": -1.0}, "^extent must be above 0"),
    ],
)
def test_shaped_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ShapedProfile(**({"shape": "sinc", "time_bandwidth": 4.0, "refocusing_factor": 1.5} | fields))


def test_uses_refused():
    with pytest.raises(InputError, match=r"^flip_angle"):
        SINC.relative_flips(90.0)
    with pytest.raises(InputError, match=r"^relative_refocusing"):
        SampledProfile(relative_excitation=(1.0,), positions_in_slice=1.0).refocusing_flips(1.0)
    with pytest.raises(InputError, match=r"^rel_b1: a shaped slice profile takes up to 2"):
        MultiEchoSpinEcho(te=(0.01,), t1=1.0, slice_profile=SINC)(torch.tensor([1.0, 0.05, 2.1]))
