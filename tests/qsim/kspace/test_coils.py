"""Receive coils: fields against wire integrals, noise against its moments, combinations against eigenvectors."""

from math import gamma, pi, sqrt

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.special import hyp1f1

from qsim.kspace import to_image
from qsim.kspace.coils import (
    CoilArray,
    Coils,
    Loop,
    NeighbourCoilNoise,
    Receiver,
    SampleCoilNoise,
    WhiteCoilNoise,
    adaptive,
    coil_noise,
    combination,
    covariance_of,
    loop_field,
    loop_potential,
    loop_sensitivities,
    matched,
    receive,
    root_sum_of_squares,
    whiten,
)
from qsim.kspace.coils.sense import Acceleration
from tests.published import RICIAN_MEAN_SD
from tests.qsim.kspace.oracle import random_images

# a direction without symmetry
TILTED = (2 / 7, -3 / 7, 6 / 7)


def wire_of(loop, steps):
    """Points on the wire, and the step of each."""
    n = np.array(loop.normal)
    u = np.cross(n, [1.0, 0, 0])
    u /= np.linalg.norm(u)
    v = np.cross(n, u)
    angle = 2 * pi * (np.arange(steps) + 0.5) / steps
    wire = np.array(loop.centre) + loop.radius * (np.outer(np.cos(angle), u) + np.outer(np.sin(angle), v))
    step = loop.radius * 2 * pi / steps * (np.outer(-np.sin(angle), u) + np.outer(np.cos(angle), v))
    return wire, step


def steps_of(h):
    return [h * axis[:, None] for axis in np.eye(3)]


def wire_integral(points, loop, steps=4000):
    """Biot-Savart: 1 / 4 pi sum of dl x r / r^3 along the wire, over mu0 I; midpoints of a circle converge fast."""
    wire, step = wire_of(loop, steps)
    r = points.T[:, None] - wire
    return (np.cross(step, r) / (np.linalg.norm(r, axis=-1) ** 3)[..., None]).sum(1).T / (4 * pi)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def correlated(coils, seed=3):
    """A positive definite Psi without symmetry."""
    a = random_images((coils, coils), seed)
    return torch.from_numpy(a @ a.conj().T / coils + 0.3 * np.eye(coils))


def test_field_is_the_integral_along_the_wire():
    loop = Loop((0.2, -0.1, 0.3), TILTED, 0.4)
    points = np.random.default_rng(1).uniform(-1, 1, (3, 200))
    expected = wire_integral(points, loop)
    np.testing.assert_allclose(loop_field(points, loop), expected, rtol=1e-9, atol=1e-11)


def test_field_keeps_its_digits_near_the_axis_and_near_the_wire():
    loop = Loop((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0.4)
    across = np.array([0, 1e-12, 1e-8, 1e-4, 0.005, 0.02, 0.05, 0.39])
    points = np.stack((across, 0 * across, np.full_like(across, 0.3)))
    ours, expected = loop_field(points, loop), wire_integral(points, loop)
    np.testing.assert_allclose(ours[2], expected[2], rtol=1e-12)
    # the small outward part: against its own size, from 1e-4 on where the sum has digits left
    np.testing.assert_allclose(ours[0, 3:], expected[0, 3:], rtol=1e-10)
    np.testing.assert_allclose(ours[0, 1:4] / across[1:4], 0.75 * 0.16 * 0.3 / 0.25**2.5, rtol=1e-6)


def test_field_on_the_axis_is_the_closed_form():
    """B = mu0 I a^2 / (2 (a^2 + z^2)^1.5)."""
    a, normal, centre = 0.3, np.array(TILTED), np.array((0.1, 0.2, -0.4))
    z = np.array([-2.0, -0.3, 0.0, 0.05, 0.7, 40.0])
    points = centre[:, None] + normal[:, None] * z
    expected = normal[:, None] * a**2 / (2 * (a**2 + z**2) ** 1.5)
    np.testing.assert_allclose(loop_field(points, Loop(tuple(centre), TILTED, a)), expected, rtol=1e-12, atol=1e-15)


def test_far_field_is_that_of_a_dipole():
    a, normal = 0.001, np.array(TILTED)
    r = np.array([0.7, -0.4, 0.5])
    d = np.linalg.norm(r)
    dipole = pi * a**2 * (3 * r * (normal @ r) / d**5 - normal / d**3) / (4 * pi)
    # the next term is (a / r)^2 smaller
    np.testing.assert_allclose(
        loop_field(r[:, None], Loop((0.0, 0.0, 0.0), TILTED, a))[:, 0], dipole, rtol=5 * (a / d) ** 2
    )


@pytest.mark.parametrize("space", [(8, 9), (5, 8, 6), (1, 1), (1, 7, 1)])
def test_sensitivities_are_the_transverse_field_with_unit_brightness_at_the_centre(space):
    array = CoilArray(coils=6, rows=2, first_angle=0.3)
    spacing = (2.5, 1.0, 1.5)[-len(space) :]
    ours = array.sensitivities(space, spacing, torch.complex128).numpy()
    centre = tuple(n // 2 for n in space)
    assert np.sum(np.abs(ours[(slice(None), *centre)]) ** 2) == pytest.approx(1, abs=1e-12)
    extent = max(n * s for n, s in zip(space[-2:], spacing[-2:], strict=True))
    grids = np.meshgrid(*((np.arange(n) - n // 2) * s for n, s in zip(space, spacing, strict=True)), indexing="ij")
    points = np.zeros((3, *space))
    points[: len(space)] = grids[::-1]
    field = np.stack([wire_integral(points.reshape(3, -1) / extent, loop, 1500) for loop in array.loops()])
    received = ((field[:, 0] - 1j * field[:, 1]) / 2).reshape(6, *space)
    received /= np.linalg.norm(received[(slice(None), *centre)])
    np.testing.assert_allclose(ours, received, atol=1e-9)


def test_coils_stand_around_the_ring_from_x_to_y():
    ours = CoilArray(coils=4).sensitivities((33, 33), dtype=torch.complex128)
    # a loop on the x axis points along x there: s is real; a quarter on, its phase is -i
    torch.testing.assert_close(
        ours[:, 16, 16], torch.tensor([0.5, -0.5j, -0.5, 0.5j], dtype=torch.complex128), atol=1e-12, rtol=0
    )
    size = ours.abs()
    assert size[0, 16, 30] > 3 * size[0, 16, 2]
    assert size[1, 30, 16] > 3 * size[1, 2, 16]


def test_two_axes_are_the_slice_z_0_and_rows_go_up():
    array = CoilArray(coils=8, rows=2)
    whole = array.sensitivities((7, 10, 9), dtype=torch.complex128)
    flat = array.sensitivities((10, 9), dtype=torch.complex128)
    torch.testing.assert_close(whole[:, 3], flat, atol=1e-13, rtol=0)
    size = whole.abs().sum((2, 3))
    assert bool((size[:4, 0] > size[:4, -1]).all())
    assert bool((size[4:, -1] > size[4:, 0]).all())


def test_loops_of_a_ring_touch_and_single_precision_is_rounded_double():
    array = CoilArray(coils=8)
    loops = array.loops()
    assert np.linalg.norm(np.subtract(loops[0].centre, loops[1].centre)) == pytest.approx(2 * loops[0].radius)
    assert CoilArray(coils=1).loops()[0].radius == pytest.approx(0.375)
    double = array.sensitivities((6, 6), dtype=torch.complex128)
    assert torch.equal(array.sensitivities((6, 6)), double.to(torch.complex64))


def test_jitter_is_drawn_and_the_same_draw_is_the_same_array():
    array = CoilArray(coils=400, loop_radius=0.05, jitter=0.02, tilt=0.1)
    drawn = array.draw(np.random.default_rng(3))
    assert drawn == array.draw(np.random.default_rng(3))
    assert drawn != array.draw(np.random.default_rng(4))
    moved = np.array([a.centre for a in drawn.loops]) - [b.centre for b in array.loops()]
    # SD of 1200 numbers: within 3 / sqrt(2 x 1200) of itself
    assert moved.std() == pytest.approx(0.02, rel=0.065)
    cosines = np.array([np.dot(a.normal, b.normal) for a, b in zip(drawn.loops, array.loops(), strict=True)])
    # mean of the square of the angle over both directions
    assert np.mean(np.arccos(cosines) ** 2) == pytest.approx(2 * 0.01, rel=0.2)
    np.testing.assert_allclose([np.linalg.norm(a.normal) for a in drawn.loops], 1, rtol=1e-12)
    plain = CoilArray(coils=5)
    as_designed = plain.draw(np.random.default_rng(1))
    torch.testing.assert_close(as_designed.sensitivities((6, 7)), plain.sensitivities((6, 7)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coils": 0}, "coils must be at least 1"),
        ({"coils": 8, "rows": 3}, r"rows must divide coils \(8\), got 3"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"loop_radius": -0.1}, "loop_radius must be positive"),
        ({"row_distance": float("inf")}, "row_distance must be a finite number"),
        ({"jitter": -0.1}, "jitter must be at least 0"),
        ({"tilt": float("nan")}, "tilt must be a finite number"),
    ],
)
def test_impossible_arrays_are_refused(fields, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        CoilArray(**fields)


def test_sensitivities_that_cannot_be_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"^loops: a point lies on the wire"):
        CoilArray(coils=4, radius=0.25, loop_radius=0.25).sensitivities((4, 4))
    with pytest.raises(ValueError, match=r"^loops: none of them receives anything"):
        loop_sensitivities((Loop((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), 0.3),), (4, 4))
    with pytest.raises(ValueError, match=r"^loops is empty"):
        loop_sensitivities((), (4, 4))
    for space in ((4,), (4, 0), (2, 2, 2, 2)):
        with pytest.raises(ValueError, match=r"^space must be"):
            CoilArray().sensitivities(space)
    for spacing in ((1.0,), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"^spacing_mm must be a positive length for each of the 2 axes"):
            CoilArray().sensitivities((4, 4), spacing)
    with pytest.raises(ValueError, match=r"^dtype must be"):
        CoilArray().sensitivities((4, 4), dtype=torch.float32)


def test_noise_of_neighbours_falls_with_the_steps_between_them():
    loops = CoilArray(coils=12, rows=2).loops()
    psi = NeighbourCoilNoise(rho=0.7, rows=2).covariance(loops)
    assert psi[0, 1] == psi[0, 5] == pytest.approx(0.7)
    assert psi[0, 3] == pytest.approx(0.7**3)
    assert psi[2, 8] == pytest.approx(0.7)
    assert psi[0, 9] == pytest.approx(0.7**4)
    for rho in (0.0, 0.5, 0.99):
        assert float(torch.linalg.eigvalsh(NeighbourCoilNoise(rho=rho).covariance(loops))[0]) > 0
    assert torch.equal(WhiteCoilNoise().covariance(loops), torch.eye(12, dtype=torch.complex128))


def test_potential_is_the_integral_along_the_wire():
    """A = 1 / 4 pi sum of dl / r, over mu0 I; its curl is the field."""
    loop = Loop((0.2, -0.1, 0.3), TILTED, 0.4)
    points = np.concatenate((np.random.default_rng(2).uniform(-1, 1, (3, 100)), [[0.2], [-0.1], [0.3]]), 1)
    wire, step = wire_of(loop, 4000)
    distance = np.linalg.norm(points.T[:, None] - wire, axis=-1)
    expected = (step / distance[..., None]).sum(1).T / (4 * pi)
    np.testing.assert_allclose(loop_potential(points, loop), expected, atol=1e-11)
    h = 1e-4
    slopes = [(loop_potential(points + d, loop) - loop_potential(points - d, loop)) / (2 * h) for d in steps_of(h)]
    curl = [slopes[1][2] - slopes[2][1], slopes[2][0] - slopes[0][2], slopes[0][1] - slopes[1][0]]
    far = np.min(distance, 1) > 0.1
    np.testing.assert_allclose(np.array(curl)[:, far], loop_field(points, loop)[:, far], atol=1e-4)


def test_noise_of_the_object_follows_the_overlap_of_electric_fields():
    noise, loops = SampleCoilNoise(share=0.9), CoilArray(coils=5, first_angle=0.2).loops()
    psi, points = noise.covariance(loops), noise.points()
    potentials = []
    for loop in loops:
        wire, step = wire_of(loop, 60)
        potentials.append((step / np.linalg.norm(points.T[:, None] - wire, axis=-1)[..., None]).sum(1))
    overlap = np.array([[np.sum(a * b) for b in potentials] for a in potentials])
    np.testing.assert_allclose(psi, 0.9 * overlap * 5 / np.trace(overlap) + 0.1 * np.eye(5), atol=1e-6)
    # the middles of cells inside the cylinder: volume of a cylinder, its second moment radius^2 / 4
    assert points.shape[1] / 24**3 == pytest.approx(pi / 4, rel=0.01)
    assert np.mean(points[0] ** 2) == pytest.approx(0.04, rel=0.02)
    assert np.mean(points[2] ** 2) == pytest.approx(1 / 12, rel=0.01)


def test_neighbours_that_touch_share_noise_and_coils_at_right_angles_little():
    psi = SampleCoilNoise(share=1.0).covariance(CoilArray(coils=8).loops()).real
    assert 0.1 < float(psi[0, 1]) < 0.6
    assert abs(float(psi[0, 2])) < 0.6 * float(psi[0, 1])


def test_noise_has_the_covariance_that_was_asked_for():
    psi, count, sigma = correlated(3), 200_000, 0.3
    noise = coil_noise((2, 3, count // 2), psi, sigma, generator(), torch.complex128)
    samples = noise.transpose(0, 1).flatten(1)
    estimate = covariance_of(samples) / sigma**2
    # SD of an entry: sqrt(Psi_ii Psi_jj / count); 4.5 of them for 9 entries of two parts
    bound = 4.5 * torch.outer(psi.diagonal().real, psi.diagonal().real).sqrt() / sqrt(count)
    assert bool(((estimate - psi).abs() < bound).all())
    # circular: the real and the imaginary channel are alike, n n^T vanishes
    assert float((samples @ samples.T).abs().max()) / (2 * count * sigma**2) < float(bound.max())
    assert torch.equal(noise, coil_noise((2, 3, count // 2), psi, sigma, generator(), torch.complex128))
    white = whiten(noise, psi).transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        covariance_of(white) / sigma**2, torch.eye(3, dtype=torch.complex128), atol=4.5 / sqrt(count), rtol=0
    )


def test_whitening_is_exact_for_the_covariance_itself():
    psi = correlated(5)
    lower = torch.linalg.cholesky(psi)
    images = lower.reshape(1, 5, 5)
    torch.testing.assert_close(whiten(images, psi)[0], torch.eye(5, dtype=torch.complex128), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("psi", "message"),
    [
        (torch.eye(2), "psi must be 3 x 3"),
        (torch.tensor([[1.0, 0.5, 0], [0.1, 1, 0], [0, 0, 1]]), "psi must be Hermitian"),
        (torch.diag(torch.tensor([1.0, 2.0, -1.0])), "psi must be positive definite, its smallest eigenvalue is -1"),
        (torch.ones(3, 3), "psi must be positive definite"),
        (torch.tensor([[1.0, 0, 0], [0, float("nan"), 0], [0, 0, 1]]), "psi must be finite"),
    ],
)
def test_a_covariance_that_is_none_is_refused(unchecked, psi, message):
    for refused in (
        lambda: coil_noise((1, 3, 4), psi, 1.0, generator()),
        lambda: whiten(torch.ones(1, 3, 4, 4, dtype=torch.complex64), psi),
        lambda: Receiver.of(CoilArray(coils=3).sensitivities((4, 4)), psi),
    ):
        with pytest.raises(ValueError, match=rf"^{message}"):
            refused()


def test_noise_that_cannot_be_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"^sigma must be finite and at least 0, got -1"):
        coil_noise((1, 3, 4), None, -1.0, generator())
    with pytest.raises(ValueError, match=r"^shape must be images"):
        coil_noise((3, 0), None, 1.0, generator())
    with pytest.raises(ValueError, match=r"^dtype must be"):
        coil_noise((1, 3, 4), None, 1.0, generator(), torch.float32)
    with pytest.raises(ValueError, match=r"^samples must be more than the 3 coils, got 3"):
        covariance_of(torch.ones(3, 3, dtype=torch.complex64))
    for make in (lambda: NeighbourCoilNoise(rho=1.0), lambda: NeighbourCoilNoise(rho=-0.1)):
        with pytest.raises(ValueError, match=r"^rho must lie in"):
            make()
    with pytest.raises(ValueError, match=r"^share must lie in"):
        SampleCoilNoise(share=1.1)
    with pytest.raises(ValueError, match=r"^rows must divide"):
        NeighbourCoilNoise(rho=0.1, rows=2).covariance(CoilArray(coils=3).loops())
    with pytest.raises(ValueError, match=r"^object_radius must be positive and finite"):
        SampleCoilNoise(object_radius=0.0)


def moments(nu, coils):
    """Mean and mean square of a non-central chi magnitude, sigma 1: physics.md (e)."""
    constant = sqrt(pi / 2) * gamma(coils + 0.5) / (gamma(1.5) * gamma(coils))
    return constant * hyp1f1(-0.5, coils, -(nu**2) / 2), nu**2 + 2 * coils


@pytest.mark.parametrize("coils", [1, 4, 8, 16, 32])
def test_root_of_sum_of_squares_is_non_central_chi(coils):
    count, sensitivities = 40_000, CoilArray(coils=coils).sensitivities((1, 1))
    for nu, seed in ((0.0, 1), (3.0, 2)):
        images = torch.full((count, 1, 1), nu, dtype=torch.complex64)
        received = receive(images, sensitivities, 1.0, generator(seed))
        assert received.coils == coils
        assert torch.equal(received.sigma, torch.ones(1, 1))
        m = received.images.double().numpy()
        mean, square = moments(nu, coils)
        sd = sqrt(square - mean**2)
        assert m.mean() == pytest.approx(mean, abs=3 * sd / sqrt(count))
        # variance of m^2: 4 L + 4 nu^2
        assert np.mean(m**2) == pytest.approx(square, abs=3 * sqrt(4 * coils + 4 * nu**2) / sqrt(count))
        # SD of an SD of nearly normal numbers
        assert m.std() == pytest.approx(sd, rel=3 * 1.1 / sqrt(2 * count))
        if coils == 1:
            assert (mean, sd) == pytest.approx(RICIAN_MEAN_SD[nu], abs=1e-4)
    oracle_j = {4: (2.7416, 0.6953), 32: (7.9688, 0.7057)}
    if coils in oracle_j:
        mean, square = moments(0.0, coils)
        assert (mean, sqrt(square - mean**2)) == pytest.approx(oracle_j[coils], abs=1e-4)


def test_matched_filter_is_unbiased_and_rician_with_its_own_sigma():
    psi, sensitivities = correlated(4), CoilArray(coils=4).sensitivities((3, 4), dtype=torch.complex128)
    assert torch.allclose(matched(sensitivities[None], sensitivities, psi), torch.ones(1, 3, 4, dtype=torch.complex128))
    count, sigma, m = 20_000, 0.5, 1.2 - 0.7j
    received = receive(
        torch.full((count, 3, 4), m, dtype=torch.complex128), sensitivities, sigma, generator(), psi, "matched"
    )
    s = sensitivities.numpy().reshape(4, -1)
    power = np.einsum("cv,cd,dv->v", s.conj(), np.linalg.inv(psi.numpy()), s).real
    np.testing.assert_allclose(received.sigma.numpy().ravel(), sigma / np.sqrt(power), rtol=1e-12)
    assert received.g is None
    assert received.coils == 1
    z = ((received.images - m) / received.sigma).reshape(count, -1).numpy()
    for channel in (z.real, z.imag):
        # 12 voxels and two channels: 4 standard errors
        assert np.abs(channel.mean(0)).max() < 4 / sqrt(count)
        assert np.abs(channel.std(0) - 1).max() < 4 / sqrt(2 * count)
    size = (received.images.abs() / received.sigma).reshape(count, -1).numpy()
    nu = abs(m) / received.sigma.numpy().ravel()
    mean, square = moments(nu, 1)
    assert np.all(np.abs(size.mean(0) - mean) < 4 * np.sqrt(square - mean**2) / sqrt(count))
    assert np.all(np.abs((size**2).mean(0) - square) < 4 * np.sqrt(4 + 4 * nu**2) / sqrt(count))


def test_matched_filter_leaves_out_what_the_mask_does():
    sensitivities = CoilArray(coils=3).sensitivities((4, 5), dtype=torch.complex128)
    sensitivities[:, 1, 2] = 0
    images = sensitivities[None] * torch.from_numpy(random_images((2, 1, 4, 5)))
    with pytest.raises(ValueError, match=r"^sensitivities: 1 voxels are seen by no coil; leave them out by a mask"):
        matched(images, sensitivities)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2] = False
    ours = matched(images, sensitivities, mask=mask)
    expected = torch.from_numpy(random_images((2, 1, 4, 5)))[:, 0] * mask
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("space", [(7, 6), (4, 5, 3), (1, 6)])
def test_adaptive_is_the_generalised_eigenvector_of_the_block(space):
    psi, images = correlated(3), random_images((2, 3, *space))
    ours = adaptive(torch.from_numpy(images), psi, block=3, reference=1)
    for place in np.ndindex(*space):
        near = tuple(slice(max(0, p - 1), p + 2) for p in place)
        a = images[(slice(None), slice(None), *near)].swapaxes(0, 1).reshape(3, -1)
        # R w = lambda Psi w; the weights w are L^-H v
        w = eigh(a @ a.conj().T, psi.numpy())[1][:, -1]
        s = psi.numpy() @ w
        w = w * (s[1].conj() / abs(s[1])).conj() ** -1
        s = psi.numpy() @ w
        at = (slice(None), *place)
        np.testing.assert_allclose(ours.sensitivities.numpy()[at], s, atol=1e-9)
        combined = np.einsum("c,nc->n", w.conj(), images[(slice(None), slice(None), *place)])
        np.testing.assert_allclose(ours.images.numpy()[at], combined, atol=1e-9)
    assert float(ours.sensitivities[1].imag.abs().max()) < 1e-12
    # with what it found, the matched filter is the same
    torch.testing.assert_close(
        matched(torch.from_numpy(images), ours.sensitivities, psi), ours.images, atol=1e-12, rtol=0
    )


def test_adaptive_in_blocks_of_slices_is_adaptive_at_once(monkeypatch):
    images = torch.from_numpy(random_images((2, 4, 9, 5, 3)))
    whole = adaptive(images)
    monkeypatch.setattr(combination, "_AT_ONCE", 500)
    monkeypatch.setattr(combination, "_VOXELS", 7)
    parts = adaptive(images)
    torch.testing.assert_close(parts.images, whole.images, atol=1e-12, rtol=0)


def test_adaptive_nearly_reaches_the_snr_of_known_sensitivities():
    """SNR of weights w over that of the matched filter: |w^H s| / sqrt(w^H Psi w . s^H Psi^-1 s)."""
    sensitivities = CoilArray(coils=8).sensitivities((48, 48))
    psi = NeighbourCoilNoise(rho=0.4).covariance(CoilArray(coils=8).loops())
    y, x = np.mgrid[-24:24, -24:24]
    disc = torch.from_numpy((x**2 + y**2 < 20**2).astype(np.float32))
    phase = torch.from_numpy(np.exp(1j * (0.07 * x + 0.02 * y)).astype(np.complex64))
    series = torch.tensor([1.0, 0.6, 0.3])[:, None, None] * disc * phase
    heard = series[:, None] * sensitivities + coil_noise((3, 8, 48, 48), psi, 0.05, generator())
    found = adaptive(heard, psi)
    white = whiten(torch.stack((sensitivities, found.sensitivities)), psi)
    reached = (white[1].conj() * white[0]).sum(0).abs() / torch.linalg.vector_norm(white[0], dim=0)
    assert float(reached[disc > 0].mean()) > 0.995
    assert float(reached[disc > 0].min()) > 0.97
    # noise of the combination is sigma in the object; one set of weights keeps the ratios of the series
    clean = adaptive(series[:, None] * sensitivities, psi).images
    torch.testing.assert_close(clean[1], 0.6 * clean[0], atol=1e-6, rtol=0)
    noise = (found.images.abs() - clean.abs())[:, disc > 0]
    # 1250 voxels x 3: an SD is known to 1.2 %; what the weights cost at the rim is within the rest
    assert float(noise.std()) == pytest.approx(0.05, rel=0.05)


def test_adaptive_follows_the_noise_where_there_is_nothing_else():
    """More than sigma, at most the largest eigenvalue of noise: variance (1 + sqrt(c / b))^2, Marchenko-Pastur."""
    noise = coil_noise((2, 8, 50, 50), None, 1.0, generator())
    inside = adaptive(noise).images[:, 2:-2, 2:-2]
    assert 1.15 < float(inside.real.std()) < 1 + sqrt(8 / 50)


def test_adaptive_gives_nothing_where_nothing_is():
    images = torch.zeros(1, 3, 6, 6, dtype=torch.complex64)
    images[0, :, 0, 0] = torch.tensor([1, 1j, 2])
    ours = adaptive(images, block=1)
    assert float(ours.images[0, 0, 0].abs()) == pytest.approx(sqrt(6))
    assert int((ours.images != 0).sum()) == 1
    assert int((ours.sensitivities != 0).sum()) == 3
    tiny = adaptive(1e-25 * images, block=1)
    assert float(tiny.images[0, 0, 0].abs()) == pytest.approx(1e-25 * sqrt(6), rel=1e-5)


def test_root_of_sum_of_squares_is_the_sum():
    images = random_images((2, 3, 4, 5))
    np.testing.assert_allclose(
        root_sum_of_squares(torch.from_numpy(images)), np.sqrt((np.abs(images) ** 2).sum(1)), rtol=1e-13
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-10, 1.0, 1e20, 1e30])
def test_combinations_do_not_depend_on_units(scale):
    """In single precision, whose squares end at 1e-38 and 3e38; the truth is numpy's in double precision."""
    images = (scale * random_images((2, 3, 5, 4))).astype(np.complex64)
    ours = root_sum_of_squares(torch.from_numpy(images))
    wide = images.astype(np.complex128)
    np.testing.assert_allclose(ours.numpy(), np.sqrt((np.abs(wide) ** 2).sum(1)), rtol=1e-6)

    found = adaptive(torch.from_numpy(images), block=3)
    energy = np.sum(np.abs(wide) ** 2, (0, 2, 3))
    reference = int(energy.argmax())
    for place in np.ndindex(5, 4):
        near = tuple(slice(max(0, p - 1), p + 2) for p in place)
        a = wide[(slice(None), slice(None), *near)].swapaxes(0, 1).reshape(3, -1) / scale
        v = eigh(a @ a.conj().T)[1][:, -1]
        v = v * np.conj(v[reference]) / abs(v[reference])
        combined = np.einsum("c,nc->n", v.conj(), wide[(slice(None), slice(None), *place)])
        # rounding over the gap of the eigenvalues
        np.testing.assert_allclose(found.images.numpy()[(slice(None), *place)], combined, atol=1e-4 * scale)

    sensitivities = (scale * random_images((3, 5, 4), 7)).astype(np.complex64)
    psi = correlated(3)
    weights = np.einsum("cd,dyx->cyx", np.linalg.inv(psi.numpy()), sensitivities.astype(np.complex128))
    power = np.einsum("cyx,cyx->yx", sensitivities.conj(), weights).real
    expected = np.einsum("cyx,ncyx->nyx", weights.conj(), wide) / power
    for units in (1e-60, 1.0, 1e60):
        both = matched(torch.from_numpy(images), torch.from_numpy(sensitivities), units * psi)
        np.testing.assert_allclose(both.numpy(), expected, atol=2e-5)
    plain = random_images((2, 3, 5, 4)).astype(np.complex64)
    mixed = matched(torch.from_numpy(plain), torch.from_numpy(sensitivities))
    expected = np.einsum("cyx,ncyx->nyx", sensitivities.conj().astype(np.complex128), plain)
    expected /= np.sum(np.abs(sensitivities.astype(np.complex128)) ** 2, 0)
    np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-5 / scale)


def test_a_faint_voxel_beside_a_bright_one_is_finite():
    images = torch.full((1, 3, 4, 4), 1e-21, dtype=torch.complex64)
    images[..., 0, 0] = 1
    ours = adaptive(images, block=1)
    assert float(ours.images[0, 0, 0].abs()) == pytest.approx(sqrt(3), rel=1e-6)
    assert float(ours.images[0, 1:].abs().max()) < 1e-20


def test_what_cannot_be_combined_is_refused(unchecked):
    images = torch.ones(1, 3, 4, 4, dtype=torch.complex64)
    sensitivities = CoilArray(coils=3).sensitivities((4, 4))
    for call in (
        lambda x: root_sum_of_squares(x),
        lambda x: adaptive(x),
        lambda x: matched(x, sensitivities),
        lambda x: whiten(x, torch.eye(3)),
    ):
        with pytest.raises(ValueError, match=r"^images must be complex"):
            call(images.real)
        with pytest.raises(ValueError, match=r"^images must be finite"):
            call(images * float("nan"))
    with pytest.raises(ValueError, match=r"^block must be odd"):
        adaptive(images, block=4)
    with pytest.raises(ValueError, match=r"^reference: there is no coil 3"):
        adaptive(images, reference=3)
    with pytest.raises(ValueError, match=r"^sensitivities have shape"):
        matched(images, sensitivities[:2])
    with pytest.raises(ValueError, match=r"^sensitivities must be complex"):
        matched(images, sensitivities.abs())
    with pytest.raises(ValueError, match=r"^sensitivities must be finite"):
        matched(images, sensitivities * float("inf"))


def test_the_sigma_of_a_root_of_sum_of_squares_is_given_where_there_is_one():
    sensitivities = CoilArray(coils=3).sensitivities((4, 5))
    images = torch.ones(2, 4, 5, dtype=torch.complex64)
    assert receive(images, sensitivities, 0.2, generator(), correlated(3)).sigma is None
    level = receive(images, sensitivities, 0.2, generator(), 4 * torch.eye(3)).sigma
    torch.testing.assert_close(level, torch.full((4, 5), 0.4))
    silent = receive(images, sensitivities, 0.0, generator())
    torch.testing.assert_close(silent.images[0], torch.linalg.vector_norm(sensitivities, dim=0))
    smooth = CoilArray(coils=3).sensitivities((40, 40))
    combined = receive(images[:, :1, :1].expand(2, 40, 40), smooth, 0.0, generator(), combination="adaptive")
    # the block sees the mean direction: 1 % where sensitivities bend most
    torch.testing.assert_close(combined.images.abs()[0], torch.linalg.vector_norm(smooth, dim=0), rtol=0.01, atol=0)


def test_a_config_makes_the_receiver_it_names():
    coils = Coils(array=CoilArray(coils=4, jitter=0.01), noise=NeighbourCoilNoise(rho=0.2), combination="matched")
    receiver = coils.receiver((5, 6), rng=np.random.default_rng(2))
    torch.testing.assert_close(
        receiver.sensitivities, coils.array.draw(np.random.default_rng(2)).sensitivities((5, 6)), atol=0, rtol=0
    )
    images = torch.from_numpy(random_images((2, 5, 6))).to(torch.complex64)
    torch.testing.assert_close(receiver(images, 0.0, generator()).images, images)
    with pytest.raises(ValueError, match=r"^rng: the array has jitter"):
        coils.receiver((5, 6))
    with pytest.raises(ValueError, match=r"^acceleration: sense needs one"):
        Coils(combination="sense")
    with pytest.raises(ValueError, match=r"^acceleration: adaptive cannot unfold"):
        Coils(combination="adaptive", acceleration=Acceleration(factors=(2,)))
    for rows in (1, 3):
        with pytest.raises(ValueError, match=rf"^noise: rows must be those of the array, got {rows} and an array of 2"):
            Coils(array=CoilArray(coils=6, rows=2), noise=NeighbourCoilNoise(rho=0.2, rows=rows))
    assert Coils(array=CoilArray(coils=6, rows=2), noise=NeighbourCoilNoise(rho=0.2, rows=2)).noise.kind == "neighbours"
    with pytest.raises(ValueError, match=r"^acceleration: 9 voxels fold onto each other, which 8 coils"):
        Coils(combination="sense", acceleration=Acceleration(factors=(3, 3), axes=(-2, -3)))


def test_receiving_what_does_not_fit_is_refused(unchecked):
    sensitivities = CoilArray(coils=3).sensitivities((4, 5))
    with pytest.raises(ValueError, match=r"^images must be complex"):
        receive(torch.ones(1, 4, 5), sensitivities, 0.1, generator())
    with pytest.raises(ValueError, match=r"^images of \(5, 4\) voxels do not fit"):
        receive(torch.ones(1, 5, 4, dtype=torch.complex64), sensitivities, 0.1, generator())
    with pytest.raises(ValueError, match=r"^sigma must be finite"):
        receive(torch.ones(1, 4, 5, dtype=torch.complex64), sensitivities, float("nan"), generator())
    with pytest.raises(ValueError, match=r"^combination must be one of"):
        receive(torch.ones(1, 4, 5, dtype=torch.complex64), sensitivities, 0.1, generator(), combination="sum")


def test_measured_coil_images_combine_as_their_magnitudes(data_folder):
    file = data_folder / "kspace" / "brain_8ch_poisson8x_ksp.npy"
    if not file.is_file():
        pytest.skip(f"no {file}")
    measured = torch.from_numpy(np.load(file))
    edge = torch.cat((measured[:, :25].flatten(1), measured[:, -25:].flatten(1)), 1)
    psi = covariance_of(edge[:, edge.abs().sum(0) > 0])
    torch.testing.assert_close(psi, psi.mH, atol=0, rtol=0)
    assert float(torch.linalg.eigvalsh(psi)[0]) > 0.01 * float(psi.diagonal().real.mean())
    images = to_image(measured, (-2, -1))[None]
    for covariance in (None, psi):
        combined = adaptive(images, covariance).images.abs().flatten()
        plain = root_sum_of_squares(images if covariance is None else whiten(images, covariance)).flatten()
        assert float(torch.corrcoef(torch.stack((combined, plain)))[0, 1]) > 0.99
