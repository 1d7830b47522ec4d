"""Readouts off resonance, against the sum written out, closed forms, rotations of spins and a measured field."""

from math import pi

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from qsim.kspace import Distortion, nonuniform, off_resonance, to_kspace
from qsim.kspace.artefacts import distortion
from qsim.kspace.nonuniform import moved_transform
from qsim.kspace.off_resonance import distort, dropout
from tests.qsim.kspace.oracle import random_images


def written_out(images, delta_b0, bandwidth, axis, te, polarity=1):
    """Centred k-space along the axis: each sample a sum over voxels that precess by exp(-2 pi i f t)."""
    n = images.shape[axis]
    centred = np.arange(n) - n // 2
    share = np.ones(delta_b0.shape)
    for other in range(delta_b0.ndim):
        if delta_b0.shape[other] > 1:
            share = share * np.sinc(te * np.gradient(delta_b0, axis=other))
    m = np.moveaxis(images * share, axis, -1)
    field = np.moveaxis(delta_b0, axis, -1)
    samples = []
    for k in centred:
        t = te + polarity * k / (n * bandwidth)
        samples.append(np.sum(m * np.exp(-2j * pi * field * t) * np.exp(-2j * pi * k * centred / n), -1) / np.sqrt(n))
    return np.moveaxis(np.stack(samples, -1), -1, axis)


def rough_field(shape, size=150.0, seed=3):
    return np.random.default_rng(seed).normal(size=shape) * size


def as_torch(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


# sizes of 1 and 2, sizes below and above the width of the kernel, odd and even, displacements beyond the image
@pytest.mark.parametrize(
    ("shape", "axis", "polarity"),
    [((7, 6), -1, 1), ((7, 6), -2, -1), ((5, 8, 1), 1, 1), ((1, 9, 34), -1, -1), ((2, 1, 3), 0, 1), ((33, 4), 0, 1)],
)
def test_readout_is_the_sum_written_out(shape, axis, polarity):
    images, field = random_images((2, *shape)), rough_field(shape)
    bandwidth, te = 37.0, 0.0023
    at = axis % len(field.shape) - len(field.shape)
    there = distort(*as_torch(images, field), bandwidth, at, te, polarity)
    truth = written_out(images, field, bandwidth, at, te, polarity)
    scale = np.abs(truth).max()
    # the kernel in double precision is good to 1e-12, in single to 2e-6
    np.testing.assert_allclose(to_kspace(there, (at,)).numpy(), truth, atol=1e-11 * scale)
    single = distort(torch.from_numpy(images).to(torch.complex64), torch.from_numpy(field), bandwidth, at, te, polarity)
    assert single.dtype == torch.complex64
    np.testing.assert_allclose(to_kspace(single, (at,)).numpy(), truth, atol=1e-5 * scale)


def test_large_images_are_cut_into_pieces_without_a_trace():
    # more lines than are transformed at a time, along each axis, against a few lines written out
    images, field = random_images((1, 40, 48, 44)), rough_field((40, 48, 44), 60.0)
    share = dropout(torch.from_numpy(field), 0.002).numpy()
    np.testing.assert_allclose(
        share, np.prod([np.sinc(0.002 * np.gradient(field, axis=axis)) for axis in range(3)], 0), atol=1e-12
    )
    for axis in range(3):
        moved = field / 20
        there = moved_transform(*as_torch(images, moved), axis).numpy()
        n = images.shape[axis + 1]
        k = np.fft.ifftshift(np.arange(n) - n // 2)
        for line in [(0, 0), (17, 23), (-1, -1)]:
            m, places = (
                np.moveaxis(array, axis, -1)[line]
                for array in (images[0], np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) + moved)
            )
            truth = np.exp(-2j * pi * np.outer(k, places) / n) @ m / np.sqrt(n)
            np.testing.assert_allclose(np.moveaxis(there[0], axis, -1)[line], truth, atol=1e-11 * np.abs(truth).max())


def test_working_in_pieces_changes_nothing(monkeypatch):
    images, field, times = random_images((2, 7, 6, 5)), rough_field((7, 6, 5)), (0.001, 0.003)
    artefact = Distortion(delta_b0=50, bandwidth=20, te=0.01)
    drawn = artefact.draw((2, 7, 6, 5), np.random.default_rng(3))
    whole = artefact.field(drawn)
    for module in (nonuniform, off_resonance, distortion):
        monkeypatch.setattr(module, "_CHUNK", 64)
    assert torch.equal(artefact.field(drawn), whole)
    for axis in (-1, -2, -3):
        there = to_kspace(distort(*as_torch(images, field), 37.0, axis, times), (axis,)).numpy()
        truth = [written_out(images[i], field, 37.0, axis, te) for i, te in enumerate(times)]
        np.testing.assert_allclose(there, truth, atol=1e-11 * np.abs(truth).max())


def test_a_positive_offset_moves_a_spin_to_where_the_gradient_has_a_higher_field():
    """Spins turned one by one by dM/dt = M x w, read with a positive gradient, give the same samples."""
    n, bandwidth, te, offset = 9, 40.0, 0.004, 63.0
    m, x = random_images((n,)), np.arange(n) - n // 2
    signal = []
    for k in x:
        total = 0
        for place, magnetisation in zip(x, m, strict=True):
            # the gradient has acted since its echo at TE, the offset since the excitation
            turn = 2 * pi * (bandwidth * place * k / (n * bandwidth) + offset * (te + k / (n * bandwidth)))
            cross = np.array([[0, turn, 0], [-turn, 0, 0], [0, 0, 0]])
            turned = expm(cross) @ [magnetisation.real, magnetisation.imag, 0]
            total += turned[0] + 1j * turned[1]
        signal.append(total / np.sqrt(n))
    there = distort(torch.from_numpy(m)[None, None], torch.full((1, n), offset, dtype=torch.float64), bandwidth, -1, te)
    np.testing.assert_allclose(to_kspace(there, (-1,))[0, 0].numpy(), signal, atol=1e-11)


@pytest.mark.parametrize(("polarity", "shift"), [(1, 3), (-1, -3)])
def test_an_offset_of_whole_voxels_is_a_circular_shift_with_the_phase_of_the_echo_time(polarity, shift):
    images, bandwidth, te = random_images((2, 6, 11)), 21.0, 0.0137
    field = torch.full((6, 11), 3 * bandwidth, dtype=torch.float64)
    there = distort(torch.from_numpy(images), field, bandwidth, -1, te, polarity)
    truth = np.roll(images, shift, -1) * np.exp(-2j * pi * 3 * bandwidth * te)
    np.testing.assert_allclose(there.numpy(), truth, atol=1e-11)
    without = distort(torch.from_numpy(images), field, bandwidth, -1, te, polarity, phase=False)
    np.testing.assert_allclose(without.numpy(), np.roll(images, shift, -1), atol=1e-11)


@pytest.mark.parametrize("stretch", [0.25, -0.2])
def test_a_linear_field_stretches_and_keeps_the_mass(stretch):
    n, bandwidth, width = 64, 50.0, 3.0
    x = np.arange(n) - n // 2

    def profile(at):
        return np.exp(-(((at - 2.3) / width) ** 2) / 2)

    images = torch.from_numpy(profile(x)[None, None].astype(complex))
    there = distort(images, torch.from_numpy(stretch * bandwidth * x)[None], bandwidth)[0, 0].numpy()
    # the Gaussian and its spectrum are below 1e-9 at the borders, so that voxels are as good as the continuum
    np.testing.assert_allclose(there, profile(x / (1 + stretch)) / (1 + stretch), atol=1e-8)


def test_the_sum_along_the_axis_is_kept():
    images, field = random_images((2, 3, 8, 13)), rough_field((3, 8, 13), 80.0)
    for axis in (-1, -2, -3):
        spin_echo = distort(*as_torch(images, field), 15.0, axis)
        np.testing.assert_allclose(spin_echo.numpy().sum(axis), images.sum(axis), atol=1e-10)
        te = 0.003
        echo = distort(*as_torch(images, field), 15.0, axis, te)
        kept = images * dropout(torch.from_numpy(field), te).numpy() * np.exp(-2j * pi * field * te)
        np.testing.assert_allclose(echo.numpy().sum(axis), kept.sum(axis), atol=1e-10)


def test_dropout_is_the_mean_over_the_spins_of_a_voxel():
    te, slopes = 0.012, (31.0, -17.0, 120.0)
    z, y, x = np.meshgrid(*(np.arange(n) for n in (3, 4, 5)), indexing="ij")
    field = torch.from_numpy(slopes[0] * z + slopes[1] * y + slopes[2] * x - 40.0)
    # a closed form is what is tested; the mean over 4001 places per axis is good to (pi g TE)^2 / (24 4001^2) < 1e-7
    u = (np.arange(4001) + 0.5) / 4001 - 0.5
    truth = np.prod([np.mean(np.exp(2j * pi * slope * te * u)) for slope in slopes])
    assert abs(truth.imag) < 1e-12
    assert truth.real < 0, "beyond a whole turn it is negative"
    np.testing.assert_allclose(dropout(field, te).numpy(), truth.real, atol=1e-7)
    np.testing.assert_array_equal(dropout(field, 0.0).numpy(), 1)
    np.testing.assert_array_equal(dropout(torch.full((1, 4), 30.0), 0.1).numpy(), 1)


def test_each_image_of_a_series_has_its_own_echo_time():
    images, field, times = random_images((3, 7, 8)), rough_field((7, 8), 40.0), (0.002, 0.0, 0.009)
    series = distort(*as_torch(images, field), 25.0, -2, times)
    for number, te in enumerate(times):
        one = distort(*as_torch(images[number], field), 25.0, -2, te)
        np.testing.assert_allclose(series[number].numpy(), one.numpy(), atol=1e-12)
    artefact = Distortion(delta_b0=40, bandwidth=25, te=times)
    drawn = artefact.draw((3, 7, 8), np.random.default_rng(2))
    there = artefact.apply(torch.from_numpy(images), drawn)
    truth = distort(torch.from_numpy(images), artefact.field(drawn), 25.0, -1, times)
    np.testing.assert_allclose(there.numpy(), truth.numpy(), atol=1e-12)


def test_coils_lie_in_the_same_field():
    images, field = random_images((2, 3, 7, 8)), rough_field((7, 8), 40.0)
    there = distort(*as_torch(images, field), 25.0, -1, (0.001, 0.004))
    assert there.shape == (2, 3, 7, 8)
    one = distort(*as_torch(images[:, 1], field), 25.0, -1, (0.001, 0.004))
    np.testing.assert_allclose(there[:, 1].numpy(), one.numpy(), atol=1e-12)


def test_a_drawn_field_has_its_peak_and_a_constant_one_is_constant():
    rng = np.random.default_rng(4)
    for shape in [(1, 17, 20), (2, 6, 9, 8), (1, 1, 5, 4)]:
        artefact = Distortion(delta_b0=(30, 90), bandwidth=(20, 40), te=0.01, sources=(1, 4))
        drawn = artefact.draw(shape, rng)
        field = artefact.field(drawn)
        assert field.shape == shape[1:]
        assert float(field.abs().max()) == pytest.approx(drawn.delta_b0, rel=1e-12)
        assert drawn.severity == pytest.approx(float(field.abs().max()) / drawn.bandwidth)
        assert 30 / 40 <= drawn.severity <= 90 / 20
        assert torch.equal(field, artefact.field(drawn))
    constant = Distortion(delta_b0=50, bandwidth=20, te=0.01, order=(0, 0), sources=0)
    field = constant.field(constant.draw((1, 5, 4), rng))
    np.testing.assert_allclose(np.abs(field.numpy()), 50, rtol=1e-12)
    assert float(field.std()) == 0


def test_the_polynomial_has_the_degrees_that_were_asked_for():
    artefact = Distortion(delta_b0=50, bandwidth=20, te=0.01, order=(1, 2), sources=0)
    field = artefact.field(artefact.draw((1, 9, 8, 7), np.random.default_rng(4))).numpy()
    for axis in range(3):
        assert np.abs(np.diff(field, 2, axis=axis)).max() > 1e-3
        np.testing.assert_allclose(np.diff(field, 3, axis=axis), 0, atol=1e-10)
    # no constant: the polynomial is 0 in the middle, voxel 4 of 9
    odd = artefact.field(artefact.draw((1, 9, 7), np.random.default_rng(4)))
    assert abs(float(odd[4, 3])) < 1e-12


def test_a_sphere_is_a_dipole_along_b0():
    """Harmonic outside, 0 within, and twice as strong and opposite on the axis as on the equator at one distance."""
    spacing = (2.0, 1.0, 1.0)
    for b0_axis in (-3, -2, -1):
        artefact = Distortion(
            delta_b0=50, bandwidth=20, te=0.01, order=None, sources=1, radius=0.15, b0_axis=b0_axis, spacing_mm=spacing
        )
        shape = (1, 48, 96, 96)
        drawn = artefact.draw(shape, np.random.default_rng(5))
        (source,) = drawn.sources
        field = artefact.field(drawn).numpy()
        places = np.meshgrid(
            *((np.arange(n) + 0.5) * s for n, s in zip(shape[1:], spacing, strict=True)), indexing="ij"
        )
        centre = np.array(source.centre) * 96
        apart = np.stack(places) - centre[:, None, None, None]
        r, radius = np.sqrt((apart**2).sum(0)), 0.15 * 96
        assert np.all(field[r < radius] == 0)
        far = (r > radius + 4)[1:-1, 1:-1, 1:-1]
        curvature = [
            np.diff(field, 2, axis=a)[tuple(slice(None) if a == b else slice(1, -1) for b in range(3))]
            / spacing[a] ** 2
            for a in range(3)
        ]
        # differences instead of derivatives: (h / r)^2 of each curvature is what is left
        assert np.abs(sum(curvature))[far].max() < 0.05 * np.abs(curvature).max(0)[far].max()
        # strength falls with the third power along any direction, and follows 3 cos^2 - 1
        cosine = apart[b0_axis] / r
        ratio = field * r**3 / (3 * cosine**2 - 1)
        sure = (r > radius) & (np.abs(3 * cosine**2 - 1) > 0.1)
        np.testing.assert_allclose(ratio[sure] / ratio[sure][0], 1, rtol=1e-9)
    across = Distortion(delta_b0=50, bandwidth=20, te=0.01, order=None, sources=1, b0_axis=None)
    drawn = across.draw((1, 20, 24), np.random.default_rng(5))
    field = across.field(drawn).numpy()
    y, x = (np.arange(n) + 0.5 - n * c for n, c in zip((20, 24), drawn.sources[0].centre, strict=True))
    strength = (field * np.hypot(y[:, None], x) ** 3)[field != 0]
    np.testing.assert_allclose(strength / strength[0], 1, rtol=1e-9)


def test_b0_points_along_z_unless_it_is_named():
    """Through the plane of a slice, a field of 1 / r^3 about each sphere; along the first axis of a volume."""
    plane = Distortion(delta_b0=50, bandwidth=20, te=0.01, order=None, sources=1)
    drawn = plane.draw((1, 20, 24), np.random.default_rng(5))
    y, x = (np.arange(n) + 0.5 - n * c for n, c in zip((20, 24), drawn.sources[0].centre, strict=True))
    field = plane.field(drawn).numpy()
    strength = (field * np.hypot(y[:, None], x) ** 3)[field != 0]
    np.testing.assert_allclose(strength / strength[0], 1, rtol=1e-9)
    shape = (1, 9, 20, 24)
    named = Distortion(delta_b0=50, bandwidth=20, te=0.01, order=None, sources=1, b0_axis=-3)
    assert plane.draw(shape, np.random.default_rng(5)) == named.draw(shape, np.random.default_rng(5))


def test_a_measured_field_predicts_the_phase_of_a_later_echo_and_moves_only_where_it_is(data_folder):
    nibabel = pytest.importorskip("nibabel")
    folder = data_folder / "gre3_mag_phase_romeo"
    magnitude, phase = (nibabel.load(folder / f"{name}.nii.gz").get_fdata().T for name in ("Mag", "Phase"))
    echoes = magnitude * np.exp(1j * phase)
    bright = magnitude[0] > np.median(magnitude[0])
    field = torch.from_numpy(-np.angle(echoes[1] * echoes[0].conj()) / (2 * pi * 0.004))
    # a bandwidth so large that nothing moves: the phase from the first echo to the third, which the field has not seen
    third = distort(torch.from_numpy(echoes[0])[None], field, 1e9, -1, 0.008)[0].numpy()
    error = np.abs(np.angle(echoes[2] * third.conj() * np.sign(dropout(field, 0.008).numpy())))
    assert np.median(error[bright]) < 0.1  # 1.6 rad with the other sign, 0.07 measured
    # half of the block without a field stays as it was; what moves elsewhere keeps the sum along its line
    field[20:] = 0
    there = distort(torch.from_numpy(echoes)[:1], field, 30.0, -1)[0].numpy()
    np.testing.assert_allclose(there[20:], echoes[0, 20:], atol=1e-11)
    np.testing.assert_allclose(there.sum(-1), echoes[0].sum(-1), atol=1e-10)
    assert np.median(np.abs(np.abs(there) - magnitude[0])[:20][bright[:20]] / magnitude[0, :20][bright[:20]]) > 0.01
    # and a few of its lines are the sum written out
    truth = written_out(echoes[0, 7:9], field.numpy()[7:9], 30.0, -1, 0.0)
    np.testing.assert_allclose(to_kspace(torch.from_numpy(there[7:9]), (-1,)).numpy(), truth, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta_b0": -5}, "delta_b0 must be at least 0"),
        ({"bandwidth": 0}, "bandwidth must be positive"),
        ({"te": 12}, "te must be in seconds, got 12; divide by 1000"),
        ({"te": -0.01}, "te must be at least 0"),
        ({"te": ()}, "te is empty"),
        ({"polarity": 2}, "polarity must be 1 or -1"),
        ({"order": (2, 1)}, "order must go from a degree"),
        ({"order": None, "sources": 0}, "sources must be at least 1"),
        ({"sources": -1}, "sources must be at least 0"),
        ({"radius": 0.3}, "radius must be at most 0.25"),
        ({"radius": 0}, "radius must be positive"),
        ({"sources": 0, "radius": 0.1}, "radius is that of the spheres; leave it out where sources is 0"),
        ({"sources": 0, "b0_axis": 1}, "b0_axis is that of the spheres; leave it out where sources is 0"),
        ({"te": 0, "phase": False}, "phase is that of the echo time; leave it out where te is 0"),
        ({"order": (1, 2, 3)}, "order must go from a degree"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing_mm must be positive"),
        ({"probability": 1.5}, "probability must lie in"),
    ],
)
def test_what_cannot_be_is_refused(unchecked, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Distortion(**({"delta_b0": 50, "bandwidth": 20, "te": 0.01} | changes))


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"axis": -3}, (1, 5, 6), "axis: axis -3 does not exist"),
        ({"axis": -3}, (1, 1, 5, 6), "axis: axis -3 of .* has one voxel"),
        ({"te": (0.01, 0.02)}, (3, 5, 6), "te must be one, or one for each of the 3 images, got 2"),
        ({"b0_axis": -3}, (1, 5, 6), "b0_axis: axis -3 does not exist"),
        ({"spacing_mm": (1.0, 1.0)}, (1, 4, 5, 6), "spacing_mm must hold 3 sizes"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(changes, shape, message):
    artefact = Distortion(**({"delta_b0": 50, "bandwidth": 20, "te": 0.01} | changes))
    with pytest.raises(ValueError, match=f"^{message}"):
        artefact.draw(shape, np.random.default_rng(1))


def test_fields_that_do_not_fit_are_refused(unchecked):
    images = torch.ones(1, 5, 6, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"^delta_b0 of .* voxels does not fit images of"):
        distort(images, torch.ones(5, 7), 20.0)
    with pytest.raises(ValueError, match=r"^delta_b0 must have 2 or 3 axes"):
        distort(images, torch.ones(6), 20.0)
    with pytest.raises(ValueError, match=r"^delta_b0 must be finite"):
        distort(images, torch.full((5, 6), float("nan")), 20.0)
    with pytest.raises(ValueError, match=r"^delta_b0 must be real"):
        distort(images, torch.ones(5, 6, dtype=torch.complex64), 20.0)
    with pytest.raises(ValueError, match=r"^delta_b0 must not require grad"):
        distort(images, torch.ones(5, 6, requires_grad=True), 20.0)
    with pytest.raises(ValueError, match=r"^te must be one"):
        distort(images, torch.ones(5, 6), 20.0, te=(0.1, 0.2))
    assert torch.equal(distort(images, torch.zeros(5, 6), 20.0, te=0.1), images)
