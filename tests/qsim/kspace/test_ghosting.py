"""Ghosts, against copies of the image with the weights of the closed forms."""

from math import cos, pi, sin

import numpy as np
import pytest
import torch
from scipy.special import jv

from qsim.kspace import Ghosting
from qsim.kspace.artefacts.ghosting import GhostingDrawn
from tests.qsim.kspace.oracle import dft, inverse_dft, random_images

# identities in complex128, values of order 1 to 10
EXACT = 1e-12


def applied(artefact, images, seed=1):
    """Images after a draw, and the draw."""
    drawn = artefact.draw(images.shape, np.random.default_rng(seed))
    return artefact.apply(torch.from_numpy(images), drawn).numpy(), drawn


@pytest.mark.parametrize(("shape", "axis"), [((2, 16, 9), -2), ((2, 7, 10), -1), ((1, 12, 5, 6), -3)])
def test_an_n_over_2_ghost_has_the_cosine_and_the_sine_of_the_phase(shape, axis):
    images, phi = random_images(shape), 0.3
    there, drawn = applied(Ghosting(phase=phi, axis=axis), images)
    expected = cos(phi) * images + 1j * sin(phi) * np.roll(images, shape[axis] // 2, axis)
    np.testing.assert_allclose(there, expected, atol=EXACT)
    assert drawn.severity == pytest.approx(2 * sin(phi / 2), rel=EXACT)


def test_weights_of_a_ghost_of_a_point():
    images = np.zeros((1, 3, 32), dtype=complex)
    images[0, 1, 5] = 1
    there, _ = applied(Ghosting(phase=0.3, axis=-1), images)
    assert abs(there[0, 1, 5]) == pytest.approx(0.9553, abs=5e-5)
    assert abs(there[0, 1, 21]) == pytest.approx(0.2955, abs=5e-5)
    # both lie 90 degrees apart, so that energy is kept
    assert np.sum(np.abs(there) ** 2) == pytest.approx(1, rel=EXACT)


def test_on_an_odd_axis_the_ghost_stands_between_voxels():
    images, n = random_images((1, 4, 15)), 15
    there, _ = applied(Ghosting(phase=0.4, axis=-1), images)
    k = np.arange(n) - n // 2
    moved = inverse_dft(dft(images, (-1,)) * np.exp(-2j * pi * k * (n / 2) / n), (-1,))
    np.testing.assert_allclose(there, cos(0.4) * images + 1j * sin(0.4) * moved, atol=EXACT)


@pytest.mark.parametrize(("n", "period"), [(24, 4), (24, 3), (15, 5), (32, 8)])
def test_an_amplitude_modulation_leaves_two_copies_of_half_its_depth(n, period):
    images, a = random_images((2, n, 7)), 0.35
    artefact = Ghosting(pattern="periodic", phase=0, amplitude=a, period=period, axis=-2)
    there, drawn = applied(artefact, images)
    turned = np.exp(1j * drawn.start)
    before, after = np.roll(images, -n // period, 1), np.roll(images, n // period, 1)
    np.testing.assert_allclose(there, images + a / 2 * (turned * before + turned.conj() * after), atol=EXACT)
    # mean of cos^2 is 1/2
    assert drawn.severity == pytest.approx(a / 2**0.5, rel=EXACT)


@pytest.mark.parametrize(("n", "period", "phi"), [(24, 4, 0.8), (24, 6, 1.7), (15, 5, 0.2), (32, 8, 2.9)])
def test_a_phase_modulation_leaves_copies_of_bessel_weights(n, period, phi):
    images = random_images((1, 3, n))
    there, drawn = applied(Ghosting(pattern="periodic", phase=phi, period=period, axis=-1), images)
    expected = np.zeros_like(images)
    # J_40(3) is below 1e-40
    for order in range(-40, 41):
        weight = 1j**order * jv(order, phi) * np.exp(1j * order * drawn.start)
        expected += weight * np.roll(images, -order * n // period, -1)
    np.testing.assert_allclose(there, expected, atol=EXACT)


def test_amplitude_and_phase_are_the_one_after_the_other():
    images = random_images((2, 13, 10))
    artefact = Ghosting(pattern="periodic", phase=0.6, amplitude=0.4, period=(2.5, 6), axis=-2, intact=0.2)
    both, drawn = applied(artefact, images)
    assert 2.5 <= drawn.period <= 6
    there = torch.from_numpy(images)
    for phase, amplitude in [(0.6, 0.0), (0.0, 0.4)]:
        part = GhostingDrawn((13, 10), 0, phase, amplitude, drawn.period, drawn.start, drawn.intact, 1.0)
        there = artefact.apply(there, part)
    np.testing.assert_allclose(both, there.numpy(), atol=EXACT)


def test_lines_around_the_middle_stay_as_they_are():
    images = random_images((1, 20, 5))
    there, drawn = applied(Ghosting(phase=0.5, axis=-2, intact=0.3), images)
    before, after = dft(images, (1,)), dft(there, (1,))
    # 6 of 20 lines: k = -3 to 2
    np.testing.assert_allclose(after[:, 7:13], before[:, 7:13], atol=EXACT)
    for k in (-10, -4, 3, 9):
        turned = np.exp(1j * (0.5 if k % 2 == 0 else -0.5))
        np.testing.assert_allclose(after[:, k + 10], turned * before[:, k + 10], atol=EXACT)
    assert drawn.severity == pytest.approx(2 * sin(0.25) * 0.7**0.5, rel=EXACT)
    nothing, none = applied(Ghosting(phase=0.5, intact=1), images)
    assert none.severity == 0
    assert np.array_equal(nothing, images)


@pytest.mark.parametrize(
    "artefact",
    [
        Ghosting(phase=1.1, amplitude=0.3, axis=-1),
        Ghosting(pattern="periodic", phase=0.7, amplitude=0.5, period=3.7, intact=0.1, axis=-1),
        Ghosting(phase=pi, axis=-1),
    ],
)
def test_severity_is_the_change_of_a_point(artefact):
    images = np.zeros((1, 4, 17), dtype=complex)
    images[0, 2, 3] = 1 + 2j
    there, drawn = applied(artefact, images)
    assert drawn.severity == pytest.approx(np.linalg.norm(there - images) / np.linalg.norm(images), rel=1e-12)


def test_axis_period_and_start_are_drawn():
    rng = np.random.default_rng(4)
    draws = [Ghosting(pattern="periodic").draw((2, 8, 1, 9), rng) for _ in range(300)]
    assert {d.axis for d in draws} == {0, 2}
    periods, starts = np.array([d.period for d in draws]), np.array([d.start for d in draws])
    assert 2.5 <= periods.min() < 3 < 11 < periods.max() <= 12
    assert 0 <= starts.min() < 0.2 < 6 < starts.max() < 2 * pi
    assert {(d.period, d.start) for d in (Ghosting().draw((1, 8, 8), rng) for _ in range(5))} == {(2.0, 0.0)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ghosting(pattern="n/2"), "pattern must be n_over_2 or periodic"),
        (lambda: Ghosting(phase=-0.1), "phase must be at least 0"),
        (lambda: Ghosting(amplitude=1.5), "amplitude must lie"),
        (lambda: Ghosting(pattern="periodic", period=1.5), "period must be at least 2"),
        (lambda: Ghosting(period=4), "period of an N/2 ghost is 2 lines"),
        (lambda: Ghosting(intact=1.1), "intact must lie"),
        (lambda: Ghosting(ndim=4), "ndim must be 2 or 3"),
        (lambda: Ghosting(axis=-4).draw((1, 8, 8), np.random.default_rng(1)), "axis: axis -4 does not exist"),
    ],
)
def test_what_cannot_be_is_refused(unchecked, make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
