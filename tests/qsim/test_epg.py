"""Extended phase graphs against isochromats, the generating function, hand-derived echoes and finite differences."""

import math

import numpy as np
import pytest
import torch

from qsim.errors import InputError
from qsim.information import crb, jacobian
from qsim.signals.base import CoherentModel, SignalModel
from qsim.signals.decays import SpinEcho
from qsim.signals.epg import ScaledFlip, cpmg_echoes, epg_cpmg
from qsim.signals.multi_echo import MultiEchoSpinEcho
from qsim.signals.slice_profile import SampledProfile, ShapedProfile

ESP = 0.012


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def random_tissue(n, seed=0):
    rng = np.random.default_rng(seed)
    t1, t2 = rng.uniform(0.3, 3, n), rng.uniform(0.02, 0.2, n)
    return torch.tensor(t1), torch.tensor(t2), torch.tensor(rng.uniform(0.6, 1.4, n))


def isochromats(t1, t2, b1, esp, angles, excitation=math.pi / 2, mz0=1.0):
    """Bloch equation of spins spread evenly over one turn per half-interval; rotation by Rodrigues' formula.

    Mean transverse magnetisation at each echo (along y, along x), and mean Mz esp / 2 after the last. With more spins
    than half-intervals of the train and its tail the mean over them picks out order 0 exactly.
    """
    n = 2 * len(angles) + 4
    m = np.zeros((3, n))
    m[2] = mz0

    def rotate(m, axis, angle):
        # dM/dt = M x w
        axis = np.array(axis, dtype=float)[:, None]
        along = (axis * m).sum(0) * axis
        return along + (m - along) * np.cos(angle) + np.cross(m, axis, axis=0) * np.sin(angle)

    def half_interval(m):
        m = m * np.array([math.exp(-esp / 2 / t2)] * 2 + [math.exp(-esp / 2 / t1)])[:, None]
        m[2] += 1 - math.exp(-esp / 2 / t1)
        return rotate(m, (0, 0, 1), 2 * math.pi * np.arange(n) / n)

    m = rotate(m, (1, 0, 0), excitation * b1)
    echoes = []
    for angle in angles:
        m = rotate(half_interval(m), (0, 1, 0), angle * b1)
        m = half_interval(m)
        echoes.append((m[1].mean(), m[0].mean()))
    m = half_interval(m)
    return np.array(echoes), m[2].mean()


@pytest.mark.parametrize(
    ("refocusing", "n"), [(math.pi, 1), (math.pi, 2), (math.pi, 17), (math.radians(120), 32), (math.radians(35), 12)]
)
@pytest.mark.parametrize("mz0", [1.0, -0.4])
def test_isochromats(refocusing, n, mz0):
    t1, t2, b1 = random_tissue(6)
    echoes, mz = epg_cpmg(t1, t2, b1, ESP, n, refocusing, 1.4, mz0)
    for v in range(6):
        m, z = isochromats(float(t1[v]), float(t2[v]), float(b1[v]), ESP, [refocusing] * n, 1.4, mz0)
        np.testing.assert_allclose(echoes[:, v], m[:, 0], atol=1e-13)
        # nothing is left across the CPMG axis: the states are real
        np.testing.assert_allclose(m[:, 1], 0, atol=1e-13)
        np.testing.assert_allclose(mz[v], z, atol=1e-13)


def test_isochromats_of_a_varied_train():
    angles = tuple(np.radians([150, 90, 60, 60, 75, 100, 130, 30]).tolist())
    t1, t2, b1 = random_tissue(3, seed=1)
    echoes, mz = epg_cpmg(t1, t2, b1, ESP, 8, angles)
    for v in range(3):
        m, z = isochromats(float(t1[v]), float(t2[v]), float(b1[v]), ESP, angles)
        np.testing.assert_allclose(echoes[:, v], m[:, 0], atol=1e-13)
        np.testing.assert_allclose(mz[v], z, atol=1e-13)


def generating_function(t1, t2, angle, esp, n):
    """Coefficients of sum S_n z^n, Lukzen and Savelov 2007, doi:10.1016/j.jmr.2006.11.013, by an FFT on a circle."""
    e1, e2, c = math.exp(-esp / t1), math.exp(-esp / t2), math.cos(angle)
    points, radius = 1024, 0.9
    z = radius * np.exp(2j * np.pi * np.arange(points) / points)
    above = (1 + z * e2) * (1 - z * (e1 + e2) * c + z**2 * e1 * e2)
    below = (z * e2 - 1) * (z * (e1 - e2) * c + z**2 * e1 * e2 - 1)
    ratio = above / below
    # the root that is continuous along the circle, positive at z = radius
    root = np.sqrt(np.abs(ratio)) * np.exp(0.5j * np.unwrap(np.angle(ratio)))
    series = np.fft.fft((1 + root) / 2).real / points / radius ** np.arange(points)
    return series[1 : n + 1]


@pytest.mark.parametrize("degrees", [180, 165, 120, 90, 60, 20])
@pytest.mark.parametrize(("t1", "t2"), [(1.0, 0.05), (0.3, 0.2), (4.0, 2.0), (0.8, 0.01)])
def test_generating_function(degrees, t1, t2):
    angle = math.radians(degrees)
    echoes = cpmg_echoes(t1, double(t2), double(1.0), ESP, (ScaledFlip(angle),) * 48, ScaledFlip(math.pi / 2))
    np.testing.assert_allclose(echoes[:, 0], generating_function(t1, t2, angle, ESP, 48), atol=1e-12)


def test_first_three_echoes():
    """The pathways written out: spin echoes, stimulated echoes, and order 3 refocused at the third echo."""
    t1, t2, b1 = random_tissue(50)
    e1, e2, alpha = torch.exp(-ESP / t1), torch.exp(-ESP / t2), 2.4 * b1
    s2, c2 = torch.sin(alpha / 2) ** 2, torch.cos(alpha / 2) ** 2
    stored = torch.sin(alpha) ** 2 / 2
    first = s2 * e2
    second = s2**2 * e2**2 + stored * e1 * e2
    third = s2 * e2 * second + stored * (torch.cos(alpha) * e1**2 * e2 + s2 * e1 * e2**2) + s2 * c2**2 * e2**3
    echoes, _ = epg_cpmg(t1, t2, b1, ESP, 3, 2.4)
    excited = torch.sin(math.pi / 2 * b1)
    np.testing.assert_allclose(echoes, excited * torch.stack((first, second, third)), atol=1e-15)


def test_perfect_pulses():
    """Echoes exp(-n ESP / T2); Mz recovers from 0 and is inverted by each pulse."""
    t1, t2, _ = random_tissue(20)
    echoes, mz = epg_cpmg(t1, t2, torch.ones_like(t1), ESP, 12)
    n = torch.arange(1, 13, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(echoes, torch.exp(-n * ESP / t2), rtol=1e-13)
    z, h = torch.zeros_like(t1), torch.exp(-ESP / 2 / t1)
    for _ in range(12):
        z = 1 - (1 + (1 - (1 - z) * h)) * h
    np.testing.assert_allclose(mz, 1 - (1 - z) * h, atol=1e-14)


def test_pseudo_steady_state():
    """Without relaxation a constant train settles at sin(alpha / 2): the pole z = 1 of the generating function."""
    for degrees in (60, 90, 120, 150):
        alpha = math.radians(degrees)
        echoes = cpmg_echoes(1e9, double(1e9), double(1.0), ESP, (ScaledFlip(alpha),) * 2000, ScaledFlip(math.pi / 2))
        # what is left swings as n^-3/2
        assert abs(float(echoes[-1]) - math.sin(alpha / 2)) < 1e-4


def test_magnetisation_is_bounded_and_affine():
    """|M| never exceeds the larger of M0 and the start; echoes are proportional to mz0, Mz affine in it."""
    t1, t2, b1 = random_tissue(200)
    parts = [epg_cpmg(t1, t2, b1, ESP, 10, 2.0, math.pi / 2, mz0) for mz0 in (0.0, 1.0, -0.7)]
    for echoes, mz in parts:
        assert float((echoes**2).max()) <= 1
        assert float(mz.abs().max()) <= 1
    (none, rest), (full, one), (some, other) = parts
    assert float(none.abs().max()) == 0
    np.testing.assert_allclose(some, -0.7 * full, atol=1e-15)
    np.testing.assert_allclose(other, rest - 0.7 * (one - rest), atol=1e-15)
    maps = epg_cpmg(t1, t2, b1, ESP, 10, 2.0, math.pi / 2, torch.full_like(t1, -0.7))
    assert torch.equal(maps[0], some)
    assert torch.equal(maps[1], other)


def test_float32():
    t1, t2, b1 = random_tissue(300)
    exact = epg_cpmg(t1, t2, b1, ESP, 32, 2.5)
    single = epg_cpmg(t1.float(), t2.float(), b1.float(), ESP, 32, 2.5)
    for a, b in zip(single, exact, strict=True):
        assert a.dtype == torch.float32
        assert float((a.double() - b).abs().max()) < 1e-5


def test_voxels_do_not_depend_on_their_block():
    maps = random_tissue(20_000)
    echoes, mz = epg_cpmg(*maps, ESP, 8, 2.5)
    part = slice(8_003, 8_403)
    some, one = epg_cpmg(*(x[part] for x in maps), ESP, 8, 2.5)
    assert torch.equal(echoes[:, part], some)
    assert torch.equal(mz[part], one)
    square, _ = epg_cpmg(*(x.reshape(100, 200) for x in maps), ESP, 8, 2.5)
    assert torch.equal(square, echoes.reshape(8, 100, 200))


def test_gradients():
    maps = [x.requires_grad_() for x in random_tissue(3)]

    def train(t1, t2, b1):
        return epg_cpmg(t1, t2, b1, ESP, 6, (2.5, 2.0, 1.5, 1.5, 2.0, 3.0), 1.5, 0.8)

    # both directions against finite differences; second derivatives for networks that learn from the gradient
    assert torch.autograd.gradcheck(train, maps, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(train, maps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    maps = random_tissue(20_000)
    for a, b in zip(epg_cpmg(*(x.cuda() for x in maps), ESP, 16, 2.5), epg_cpmg(*maps, ESP, 16, 2.5), strict=True):
        assert a.is_cuda
        np.testing.assert_allclose(a.cpu(), b, atol=1e-13)


@pytest.mark.parametrize(
    ("esp", "n", "angle", "field"),
    [
        (0.0, 4, math.pi, "esp"),
        (math.nan, 4, math.pi, "esp"),
        (ESP, 0, math.pi, "n_echoes"),
        (ESP, 3, (1.0, 2.0), "refo"),
    ],
)
def test_trains_refused(esp, n, angle, field):
    with pytest.raises(InputError, match=f"^{field}"):
        epg_cpmg(double(1.0), double(0.05), double(1.0), esp, n, angle)


# --- the signal model -------------------------------------------------------------------------------------------------

TE = tuple(ESP * n for n in range(1, 17))
HALF_SLICE = SampledProfile(
    relative_excitation=(0.5, 1.0, 1.0, 0.5), relative_refocusing=(0.4, 0.9, 0.9, 0.4), positions_in_slice=3.0
)


def kappa(n=30, seed=3):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.uniform(0.5, 1.5, n), rng.uniform(0.02, 0.2, n), rng.uniform(0.7, 1.2, n)]))


def test_model_is_spin_echo_when_perfect():
    model = MultiEchoSpinEcho(te=TE, t1=1.0)
    maps = kappa()
    maps[2] = 1
    np.testing.assert_allclose(model(maps), SpinEcho(te=TE)(maps[:2]), rtol=1e-12)
    assert isinstance(model, SignalModel)
    assert isinstance(model, CoherentModel)
    assert [p.name for p in model.parameters] == ["A", "T2", "REL_B1"]
    assert model.n_images == 16


def test_model_sums_positions():
    """By hand: two kinds of position, each twice, over three positions of slice."""
    maps = kappa()
    a, t2, b1 = maps
    t1 = torch.full_like(t2, 0.9)
    by_hand = 0
    for excitation, refocusing in zip(HALF_SLICE.relative_excitation, HALF_SLICE.relative_refocusing, strict=True):
        by_hand = by_hand + epg_cpmg(t1, t2, b1, ESP, 16, 3.0 * refocusing, math.pi / 2 * excitation)[0] / 3
    model = MultiEchoSpinEcho(te=TE, t1=0.9, refocusing_angle=3.0, slice_profile=HALF_SLICE)
    np.testing.assert_allclose(model(maps), a * by_hand, atol=1e-14)


def test_a_flat_profile_is_a_perfect_slab():
    flat = SampledProfile(relative_excitation=(1.0,) * 7, relative_refocusing=(1.0,) * 7, positions_in_slice=7.0)
    maps = kappa()
    slab = MultiEchoSpinEcho(te=TE, t1=1.0, refocusing_angle=2.0)(maps)
    np.testing.assert_allclose(
        MultiEchoSpinEcho(te=TE, t1=1.0, refocusing_angle=2.0, slice_profile=flat)(maps), slab, rtol=1e-13
    )


def test_magnitude_and_sign():
    """A T2 of half the echo spacing, 120 degrees: the third echo is negative; the magnitude folds it up."""
    maps = double(1.0, 0.0055, 1.0847)[:, None]
    te = (0.01, 0.02, 0.03)
    model = MultiEchoSpinEcho(te=te, t1=1.0, refocusing_angle=math.radians(120), signed=True)
    by_hand = generating_function(1.0, 0.0055, math.radians(120) * 1.0847, 0.01, 3) * math.sin(math.pi / 2 * 1.0847)
    assert by_hand[2] < -0.01
    np.testing.assert_allclose(model(maps)[:, 0], by_hand, atol=1e-13)
    folded = MultiEchoSpinEcho(te=te, t1=1.0, refocusing_angle=math.radians(120))(maps)
    np.testing.assert_allclose(folded[:, 0], np.abs(by_hand), atol=1e-13)


def test_background_is_zero():
    assert float(MultiEchoSpinEcho(te=TE, t1=1.0)(torch.zeros(3, 5)).abs().max()) == 0


@pytest.mark.parametrize("profile", [None, HALF_SLICE])
def test_jacobian_by_forward_mode(profile):
    model = MultiEchoSpinEcho(te=TE, t1=1.0, refocusing_angle=2.8, slice_profile=profile)
    maps = kappa(5)
    rows = jacobian(model, maps)
    assert rows.shape == (3, 16, 5)
    for q in range(3):
        step = torch.zeros_like(maps)
        step[q] = 1e-6
        # central differences of 1e-6: rounding 1e-10, curvature 1e-9 against slopes of up to 10
        np.testing.assert_allclose(rows[q], (model(maps + step) - model(maps - step)) / 2e-6, atol=1e-7)


def test_bound_with_a_measured_field():
    """A measured REL_B1 costs T2 little against a perfect refocusing; an unknown one costs more."""
    maps = double(1.0, 0.08, 0.85)[:, None]
    model = MultiEchoSpinEcho(te=TE, t1=1.0)
    known = crb(model, maps, 0.01, known=("REL_B1",)).sd[1]
    free = crb(model, maps, 0.01).sd[1]
    assert torch.isfinite(free).all()
    assert float(known) < float(free)


def test_monoexponential_reading_is_too_long():
    """Stimulated echoes keep magnetisation along z: the apparent T2 exceeds the true one (Hennig 1988)."""
    signal = MultiEchoSpinEcho(te=TE, t1=1.0)(double(1.0, 0.05, 0.8)[:, None])[:, 0]
    slope = np.polyfit(TE[1:], np.log(signal[1:].numpy()), 1)[0]
    assert -1 / slope > 1.05 * 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"te": (0.01, 0.02, 0.04)}, "^te must be ESP.*without a gap, got 0.04 as echo 3"),
        ({"te": (0.02, 0.03)}, "^te must be ESP"),
        ({"te": (0.0, 0.0)}, "^te must be ESP"),
        ({"te": (10.0, 20.0)}, "^te must be in seconds"),
        ({"t1": 1000.0}, "^t1 must be in seconds"),
        ({"t1": 0.0}, "^t1 must be above 0"),
        ({"refocusing_angle": 180.0}, "^refocusing_angle must lie"),
        ({"refocusing_angle": (3.0, 2.0)}, "^refocusing_angle has 2 angles for 3"),
        (
            {"slice_profile": SampledProfile(relative_excitation=(1.0,), positions_in_slice=1.0)},
            "^slice_profile must have relative_refocusing",
        ),
        (
            {
                "refocusing_angle": 3.5,
                "slice_profile": ShapedProfile(shape="sinc", time_bandwidth=4.0, refocusing_factor=1.5),
            },
            "^refocusing_angle must be at most pi",
        ),
    ],
)
def test_models_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MultiEchoSpinEcho(**({"te": (0.01, 0.02, 0.03), "t1": 1.0} | fields))


def test_rounded_echo_times_are_taken():
    """ESP 9.96 ms written with microseconds."""
    MultiEchoSpinEcho(te=(0.00996, 0.01992, 0.029881), t1=1.0)
