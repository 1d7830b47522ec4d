"""The Fourier conventions, against sums written out."""

import numpy as np
import pytest
import torch

from qsim.kspace import magnitude, to_image, to_kspace
from qsim.kspace.acquired import Acquired, line_order, space_of
from qsim.kspace.fourier import line_numbers
from tests.qsim.kspace.oracle import dft, inverse_dft, random_images


@pytest.mark.parametrize("shape", [(5, 8), (6, 7, 9), (1, 4), (3, 8, 5, 6)])
def test_transform_is_the_centred_orthonormal_sum(shape):
    images = random_images(shape)
    for axes in {(-1,), (0,), (-2, -1), (0, 1), tuple(range(len(shape)))}:
        there = to_kspace(torch.from_numpy(images), axes).numpy()
        np.testing.assert_allclose(there, dft(images, axes), atol=1e-12)
        np.testing.assert_allclose(
            to_image(torch.from_numpy(images), axes).numpy(), inverse_dft(images, axes), atol=1e-12
        )
        np.testing.assert_allclose(to_image(torch.from_numpy(there), axes).numpy(), images, atol=1e-12)
        # Parseval
        assert np.sum(np.abs(there) ** 2) == pytest.approx(np.sum(np.abs(images) ** 2), rel=1e-12)


def test_the_origin_is_voxel_n_over_2_on_even_and_odd_axes():
    point = torch.zeros(6, 7, dtype=torch.complex128)
    point[3, 3] = 1
    torch.testing.assert_close(to_kspace(point, (0, 1)), torch.full((6, 7), 42**-0.5, dtype=torch.complex128))
    flat = torch.ones(6, 7, dtype=torch.complex128)
    at = to_kspace(flat, (0, 1)).abs().numpy()
    assert at[3, 3] == pytest.approx(42**0.5)
    assert np.delete(at.ravel(), 3 * 7 + 3).max() < 1e-12
    assert line_numbers(6).tolist() == [-3, -2, -1, 0, 1, 2]
    assert line_numbers(7).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert line_order(6).tolist() == [0, 1, 2, -3, -2, -1]


def test_magnitude_is_the_modulus_and_not_the_real_part():
    assert magnitude(torch.tensor([3 + 4j, -1 + 0j])).tolist() == [5.0, 1.0]


@pytest.mark.parametrize(
    ("images", "axes", "message"),
    [
        (torch.ones(4, 4), (0,), "images must be complex, got torch.float32; call"),
        (torch.ones(4, 0, dtype=torch.complex64), (0,), "images must not have an empty axis"),
        (torch.full((4, 4), complex("nan")), (0,), "NaN or infinity in 16 of 16 voxels"),
        (torch.ones(4, 4, dtype=torch.complex64), (2,), "axis 2 does not exist in images of shape"),
        (torch.ones(4, 4, dtype=torch.complex64), (), "axes is empty"),
        (torch.ones(4, 4, dtype=torch.complex64), (0, -2), "names an axis twice"),
    ],
)
def test_what_cannot_be_transformed_is_refused(unchecked, images, axes, message):
    with pytest.raises(ValueError, match=message):
        to_kspace(images, axes)


def test_images_whose_sum_overflows_are_not_taken_for_infinite():
    huge = torch.full((64, 64), 1e38, dtype=torch.complex64)
    assert magnitude(huge).max() == pytest.approx(1e38)


def test_axes_are_transformed_once_and_come_back():
    images = torch.from_numpy(random_images((2, 3, 6, 5)))
    acquired = Acquired.of(images, 2)
    assert acquired.values.shape == (2, 3, 6, 5)
    there = acquired.brought(kspace=(0,)).brought(kspace=(0, 1))
    np.testing.assert_allclose(
        torch.fft.fftshift(there.values, (-2, -1)).abs().numpy(), np.abs(dft(images.numpy(), (-2, -1))), atol=1e-12
    )
    assert there.brought(kspace=(1,)).values is there.values
    np.testing.assert_allclose(there.brought(image=(0,)).images().numpy(), images.numpy(), atol=1e-12)


def test_space_is_all_but_the_first_axis_or_the_last_ndim():
    assert space_of((4, 8, 9), None) == (8, 9)
    assert space_of((4, 7, 8, 9), None) == (7, 8, 9)
    assert space_of((7, 8, 9), 3) == (7, 8, 9)
    assert space_of((2, 5, 7, 8, 9), 2) == (8, 9)
    for shape, ndim in [((8, 9), None), ((9,), 2), ((1, 2, 3, 4, 5), None), ((4, 0, 3), None)]:
        with pytest.raises(ValueError, match="shape: "):
            space_of(shape, ndim)
