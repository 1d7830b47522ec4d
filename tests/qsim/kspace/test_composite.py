"""Composite k-space of a moving object, against sums written out and objects known in closed form."""

from math import pi, prod, sqrt

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from qsim.kspace.motion.affine import Splines
from qsim.kspace.motion.composite import composite, moved, shifted_lines
from qsim.kspace.motion.residual import residual_shift
from qsim.kspace.motion.rigid import is_rigid, shears_of
from tests.qsim.kspace.oracle import random_images


def pose(matrix, shift) -> np.ndarray:
    d = len(shift)
    result = np.eye(d + 1)
    result[:d, :d] = matrix
    result[:d, d] = shift
    return result


def turn(*angles: float) -> np.ndarray:
    """Rotation matrix [degrees]: one angle in 2D, the rotation vector in 3D."""
    if len(angles) == 1:
        a = np.radians(angles[0])
        return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return Rotation.from_rotvec(np.radians(angles)).as_matrix()


def transform(images: np.ndarray) -> np.ndarray:
    """Orthonormal, k = 0 first, origin at voxel 0."""
    axes = tuple(range(1, images.ndim))
    return np.fft.fftn(images, axes=axes, norm="ortho")


def k_of(n: int) -> np.ndarray:
    return np.fft.ifftshift(np.arange(n) - n // 2)


def moved_by_sums(images: np.ndarray, shifts: np.ndarray, encoded: tuple[int, ...]) -> np.ndarray:
    """Each line the sum over the object as it stood then, r + d: no ramp on a transform."""
    space = images.shape[1:]
    result = np.zeros(images.shape, dtype=complex)
    read = [axis for axis in range(len(space)) if axis not in encoded]
    for line in np.ndindex(*shifts.shape[:-1]):
        waves = []
        for axis, n in enumerate(space):
            k = k_of(n) if axis in read else np.array([line[encoded.index(axis)] - n // 2])
            waves.append(np.exp(-2j * pi * np.outer(k, np.arange(n) + shifts[line][axis]) / n))
        there = images
        for axis, wave in enumerate(waves):
            there = np.moveaxis(np.tensordot(wave, there, (1, axis + 1)), 0, axis + 1)
        where = tuple(
            slice(None) if axis in read else (line[encoded.index(axis)] - n // 2) % n for axis, n in enumerate(space)
        )
        result[(slice(None), *where)] = there.reshape(len(images), *(space[axis] for axis in read))
    return result / sqrt(prod(space))


def blobs(space, matrix=None, shift=None) -> np.ndarray:
    """Gaussian blobs off the centre with a phase, at r - c = M^-1 (r' - c - t).

    At the edge of the image and of k-space they are below 1e-10: what is compared is the turn and nothing else.
    """
    d = len(space)
    r = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in space), indexing="ij"), -1).astype(float)
    if matrix is not None:
        r = (r - shift) @ np.linalg.inv(matrix).T
    widths = np.array([2.2, 2.5, 2.3][:d])
    total = np.zeros(space, dtype=complex)
    for centre, height in (((3.1, -2.2, 1.7), 1.0), ((-2.6, 3.3, -2.4), 0.6 + 0.3j), ((0.4, 1.9, 3.2), -0.4)):
        u = (r - np.array(centre[:d])) / widths
        total += height * np.exp(-0.5 * (u**2).sum(-1)) * np.exp(0.11j * r[..., 0])
    return total


def test_constant_whole_translation_is_a_circular_shift():
    for shape, shift in [((2, 7, 10), (3, -4)), ((1, 6, 5, 8), (-1, 2, 5))]:
        images = random_images(shape)
        d = len(shift)
        got = moved(torch.from_numpy(images), pose(np.eye(d), shift)).numpy()
        np.testing.assert_allclose(got, np.roll(images, shift, tuple(range(1, d + 1))), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "encoded"),
    [
        ((2, 7, 10), (0,)),
        ((1, 8, 9), (1,)),
        ((1, 6, 7), (1, 0)),
        ((2, 5, 6, 7), (0, 1)),
        ((1, 6, 5, 8), (2, 0)),
        ((1, 4, 7, 6), (1,)),
        ((1, 3, 4, 5), (2, 0, 1)),
        ((1, 1, 6, 7), (0, 1)),
    ],
)
def test_a_translation_per_line_is_the_sum_over_the_object_where_it_then_was(shape, encoded):
    images = random_images(shape)
    space = shape[1:]
    rng = np.random.default_rng(3)
    lines = tuple(space[axis] for axis in encoded)
    shifts = rng.normal(scale=3, size=(*lines, len(space)))
    before = rng.normal(scale=3, size=(4, len(space)))
    of_line = rng.integers(4, size=lines)
    poses = np.stack([pose(np.eye(len(space)), t) for t in before])
    given = torch.from_numpy(images)
    got = composite(given, poses, of_line, encoded, shifts)
    np.testing.assert_allclose(got.numpy(), moved_by_sums(images, shifts + before[of_line], encoded), atol=1e-12)
    np.testing.assert_array_equal(given.numpy(), images)
    # single precision follows
    single = composite(given.to(torch.complex64), poses, of_line, encoded, shifts)
    assert single.dtype == torch.complex64
    np.testing.assert_allclose(single.numpy(), got.numpy(), atol=1e-5)


@pytest.mark.parametrize("space", [(48, 48), (47, 51), (46, 49)])
@pytest.mark.parametrize("angle", [3.7, -19.0, 41.3, 117.0, 179.0])
def test_a_turn_in_the_plane_is_about_the_centre_voxel(space, angle):
    shift = np.array([1.37, -0.81])
    got = moved(torch.from_numpy(blobs(space))[None], pose(turn(angle), shift))[0].numpy()
    np.testing.assert_allclose(got, blobs(space, turn(angle), shift), atol=1e-9)


@pytest.mark.parametrize("space", [(42, 44, 42), (43, 41, 45), (40, 43, 44)])
@pytest.mark.parametrize(
    "vector", [(4.1, -2.3, 6.7), (-17.0, 9.0, 21.0), (0.0, 0.0, 14.0), (0.02, 11.0, -0.3), (70.0, -60.0, 80.0)]
)
def test_a_turn_in_space_is_about_the_centre_voxel(space, vector):
    shift = np.array([0.37, -0.81, 1.3])
    got = moved(torch.from_numpy(blobs(space))[None], pose(turn(*vector), shift))[0].numpy()
    np.testing.assert_allclose(got, blobs(space, turn(*vector), shift), atol=1e-9)


def test_a_turn_of_voxels_that_are_no_cubes_is_a_turn_in_space():
    edges = np.diag([1.3, 0.9, 1.0])
    matrix = np.linalg.inv(edges) @ turn(5, -7, 8) @ edges
    assert is_rigid(matrix)
    shift = np.array([0.37, -0.81, 1.3])
    space = (40, 43, 44)
    got = moved(torch.from_numpy(blobs(space))[None], pose(matrix, shift))[0].numpy()
    np.testing.assert_allclose(got, blobs(space, matrix, shift), atol=1e-8)


def test_turning_the_image_turns_its_spectrum_about_k_zero():
    # of a sum of Gaussians the transform is known: sum_r exp(-(r-a)^T A (r-a) / 2) exp(-2 pi i k r / N)
    space = (45, 48)
    matrix = turn(12.3)
    widths = np.array([2.4, 3.1])
    centre = np.array([2.7, -3.4])
    r = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in space), indexing="ij"), -1)
    image = np.exp(-0.5 * (((r - centre) / widths) ** 2).sum(-1)).astype(complex)
    got = composite(torch.from_numpy(image)[None], pose(matrix, (0, 0))[None], np.zeros(45, dtype=int), (0,))[0]
    # [radians per voxel], in the frame that was turned
    w = np.stack(np.meshgrid(*(2 * pi * k_of(n) / n for n in space), indexing="ij"), -1)
    there = w @ matrix
    expected = 2 * pi * widths.prod() * np.exp(-0.5 * ((there * widths) ** 2).sum(-1) - 1j * there @ centre)
    expected = expected * np.exp(-1j * w @ np.array([n // 2 for n in space])) / sqrt(prod(space))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("vector", [(7.0, -4.0, 5.0), (0.0, 23.0, 0.0)])
def test_there_and_back(vector):
    space = (46, 47, 44)
    image = torch.from_numpy(blobs(space))[None]
    there = moved(image, pose(turn(*vector), (0, 0, 0)))
    back = moved(there, pose(turn(*vector).T, (0, 0, 0)))
    assert (there - image).abs().max() > 0.05
    np.testing.assert_allclose(back.numpy(), image.numpy(), atol=1e-9)
    # in the plane the same shears come back in the reverse order: exact for any image
    noise = torch.from_numpy(random_images((2, 14, 15)))
    there = moved(noise, pose(turn(29.0), (0, 0)))
    np.testing.assert_allclose(moved(there, pose(turn(-29.0), (0, 0))).numpy(), noise.numpy(), atol=1e-12)


@pytest.mark.parametrize(("shape", "angles"), [((1, 14, 15), (17.0,)), ((2, 8, 9, 10), (12.0, -7.0, 15.0))])
def test_a_turn_keeps_energy_and_leaves_real_images_real(shape, angles):
    d = len(shape) - 1
    noise = random_images(shape)
    turned = moved(torch.from_numpy(noise), pose(turn(*angles), np.full(d, 0.3))).numpy()
    assert np.sum(np.abs(turned) ** 2) == pytest.approx(np.sum(np.abs(noise) ** 2), rel=1e-12)
    real = moved(torch.from_numpy(noise.real.astype(complex)), pose(turn(*angles), np.zeros(d))).numpy()
    assert np.abs(real.imag).max() < 1e-12


def orders(kind: str, lines: tuple[int, ...]) -> np.ndarray:
    """Index of five poses per line."""
    number = np.arange(prod(lines)).reshape(lines)
    if kind == "blocks":
        return np.arange(lines[0]).reshape([-1] + [1] * (len(lines) - 1)) * 5 // lines[0] + 0 * number
    if kind == "within":
        return number * 5 // prod(lines)
    if kind == "interleaved":
        return number % 5
    return np.random.default_rng(8).integers(5, size=lines)


@pytest.mark.parametrize("kind", ["blocks", "within", "interleaved", "random"])
@pytest.mark.parametrize(
    ("shape", "encoded"),
    [
        ((2, 41, 10), (0,)),
        ((1, 9, 44), (1,)),
        ((1, 12, 11), (1, 0)),
        ((2, 13, 12, 11), (0,)),
        ((1, 9, 12, 14), (2,)),
        ((1, 12, 11, 9), (0, 1)),
        ((1, 11, 9, 12), (2, 0)),
        ((1, 6, 5, 7), (2, 0, 1)),
    ],
)
def test_each_line_is_that_of_the_image_in_its_pose(shape, encoded, kind):
    images = torch.from_numpy(random_images(shape))
    space = shape[1:]
    d = len(space)
    rng = np.random.default_rng(5)
    angles = [(8.0,), (-13.0,), (0.0,)] if d == 2 else [(4.0, -8.0, 6.0), (0.0, 9.0, 0.0), (0.0, 0.0, 0.0)]
    matrices = [turn(*angle) for angle in angles] + [np.eye(d) + 0.05 * np.triu(np.ones((d, d)))]
    matrices.append(matrices[0])
    poses = np.stack([pose(matrix, rng.normal(size=d)) for matrix in matrices])
    lines = tuple(space[axis] for axis in encoded)
    of_line = orders(kind, lines)
    shifts = rng.normal(size=(*lines, d))
    got = composite(images, poses, of_line, encoded, shifts).numpy()
    np.testing.assert_array_equal(np.unique(of_line), range(5))
    for number in range(5):
        whole = moved(images, poses[number]).numpy()
        expected = moved_by_sums(whole, shifts, encoded)
        mine = np.zeros(space, dtype=bool)
        at = np.fft.ifftshift(of_line == number).transpose(np.argsort(encoded))
        mine[...] = at.reshape([n if axis in encoded else 1 for axis, n in enumerate(space)])
        np.testing.assert_allclose(got[:, mine], expected[:, mine], atol=1e-12)


@pytest.mark.parametrize("kind", ["blocks", "within", "interleaved"])
@pytest.mark.parametrize("encoded", [(0, 1), (2, 0), (1,), (2, 1, 0)])
def test_images_larger_than_the_cache_are_done_in_parts(monkeypatch, encoded, kind):
    images = torch.from_numpy(random_images((2, 22, 13, 20)))
    rng = np.random.default_rng(6)
    angles = [(4.0, -8.0, 6.0), (0.0, 9.0, 0.0), (5.0, 0.0, 0.0), (0.0, 0.0, 0.0), (-3.0, 2.0, 1.0)]
    poses = np.stack([pose(turn(*angle), rng.normal(size=3)) for angle in angles])
    of_line = orders(kind, tuple(images.shape[1 + axis] for axis in encoded))
    whole = composite(images, poses, of_line, encoded)
    shifts = rng.normal(size=(*of_line.shape, 3))
    shifted = shifted_lines(images, shifts, encoded)
    # parts of one place along an axis; of a few, and a last one that is smaller
    for samples in (300, 1700):
        monkeypatch.setattr("qsim.kspace.motion.lines._SLAB", samples)
        np.testing.assert_allclose(composite(images, poses, of_line, encoded).numpy(), whole.numpy(), atol=1e-12)
        np.testing.assert_allclose(shifted_lines(images, shifts, encoded).numpy(), shifted.numpy(), atol=1e-12)


@pytest.mark.parametrize("vector", [(3.0, -2.0, 4.0), (40.0, 1e-5, -2.0), (0.0, 1e-9, 30.0), (45.0, 45.0, 45.0)])
def test_shears_make_up_the_turn(vector):
    matrix = turn(*vector)
    shears = shears_of(matrix, (30, 31, 32))
    product = np.eye(3)
    for shear in shears:
        assert shear.slopes[shear.axis] == 0
        step = np.eye(3)
        step[shear.axis] += shear.slopes
        product = step @ product
    np.testing.assert_allclose(product, matrix, atol=1e-9)
    assert max(abs(slope) for shear in shears for slope in shear.slopes) < 1.5
    assert len(shears) == 4
    # about an axis of the image three will do
    assert len(shears_of(turn(0.0, 11.0, 0.0), (30, 31, 32))) == 3


def test_a_turn_in_the_plane_of_a_single_slice():
    images = torch.from_numpy(random_images((1, 12, 13)))
    flat = moved(images, pose(turn(7.0), (0.4, 0.6)))
    thick = moved(images[:, None], pose(turn(7.0, 0.0, 0.0), (0.0, 0.4, 0.6)))
    np.testing.assert_allclose(thick[:, 0].numpy(), flat.numpy(), atol=1e-12)


@pytest.mark.parametrize("space", [(45, 46), (40, 43, 44)])
def test_a_deformation_moves_content_and_keeps_its_intensity(space):
    d = len(space)
    matrix = turn(*((9.0,) if d == 2 else (5.0, -6.0, 9.0))) @ np.diag([1.06, 0.95, 1.02][:d])
    assert not is_rigid(matrix)
    shift = np.array([0.6, -1.2, 0.3][:d])
    image = torch.from_numpy(blobs(space))[None]
    expected = blobs(space, matrix, shift)
    got = moved(image, pose(matrix, shift))[0].numpy()
    # the error of a cubic spline of blobs 2.2 voxels wide; that of order 5 is smaller
    assert np.abs(got - expected).max() < 1e-3
    fine = Splines(image, order=5).moved(matrix)[0].numpy()
    assert np.abs(fine - blobs(space, matrix, np.zeros(d))).max() < 5e-5
    assert got.dtype == np.complex128
    assert moved(image.to(torch.complex64), pose(matrix, shift)).dtype == torch.complex64


def head(space) -> np.ndarray:
    """Ellipsoids with sharp edges and a texture, blurred as by a point spread, with a phase."""
    r = np.stack(np.meshgrid(*((np.arange(n) - n // 2) / n for n in space), indexing="ij"), -1)
    inside = np.sqrt(((r / np.array([0.36, 0.33, 0.3][: len(space)])) ** 2).sum(-1))
    tissue = 0.6 * (inside < 1) + 0.3 * (inside < 0.9) - 0.5 * (inside < 0.3)
    tissue = gaussian_filter(tissue + 0.2 * (inside < 1) * np.sin(23 * r[..., 0] + 11 * r[..., -1]), 0.7)
    return tissue * np.exp(2j * r[..., -1])


@pytest.mark.parametrize("space", [(61, 56), (40, 45, 38), (1, 50, 47)])
@pytest.mark.parametrize("size", [0.3, 2.5, 11.0])
def test_residual_shift_is_found_to_a_hundredth_of_a_voxel(space, size):
    rng = np.random.default_rng(7)
    shift = rng.normal(scale=size, size=len(space)) * (np.array(space) > 1)
    image = torch.from_numpy(head(space))[None]
    after = moved(image, pose(np.eye(len(space)), shift))
    np.testing.assert_allclose(residual_shift(image, after), shift, atol=0.01)
    noise = torch.from_numpy(random_images((1, *space), seed=4)) * 0.02
    np.testing.assert_allclose(residual_shift(image + noise, after), shift, atol=0.03)


def test_residual_shift_of_nothing_is_nothing(unchecked):
    image = torch.from_numpy(head((30, 31)))[None]
    assert residual_shift(image, image) == pytest.approx((0, 0), abs=1e-9)
    empty = torch.zeros(1, 8, 9, dtype=torch.complex64)
    assert residual_shift(empty, empty) == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"after: \(1, 30, 30\) must have the shape"):
        residual_shift(image, image[..., 1:])


SQUARE = torch.ones(1, 6, 8, dtype=torch.complex64)
ONE = np.eye(3)[None]
LINES = np.zeros(6, dtype=int)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": SQUARE.real}, "images must be complex"),
        ({"values": SQUARE * complex("nan")}, "images must be finite"),
        ({"values": SQUARE[0]}, r"values must be \(c, y, x\)"),
        ({"poses": np.eye(4)[None]}, r"poses must be \(p, 3, 3\) for 2 axes"),
        ({"poses": ONE * np.nan}, "poses must be finite"),
        ({"poses": ONE * 2}, "poses must end in the row"),
        ({"poses": np.diag([1.0, -1.0, 1.0])[None]}, "poses: .* mirrors or flattens"),
        ({"encoded": (2,)}, "encoded must name axes 0 to 1"),
        ({"encoded": ()}, "encoded must name axes"),
        ({"encoded": (1,)}, r"pose_of_line must be \(8,\), the lines of axes \(1,\), got \(6,\)"),
        ({"pose_of_line": LINES + 1}, "pose_of_line must lie in 0 to 0"),
        ({"shifts": np.zeros((6, 3))}, r"shifts must be \(6, 2\), got \(6, 3\)"),
        ({"shifts": np.full((6, 2), np.inf)}, "shifts must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked, changed, message):
    given = {"values": SQUARE, "poses": ONE, "pose_of_line": LINES, "encoded": (0,), "shifts": None} | changed
    with pytest.raises(ValueError, match=message):
        composite(**given)


def test_a_turn_of_an_axis_of_one_voxel_is_refused():
    with pytest.raises(ValueError, match="turns axis 0, which is one voxel wide"):
        moved(torch.ones(1, 1, 8, 9, dtype=torch.complex64), pose(turn(0.0, 3.0, 0.0), (0, 0, 0)))
