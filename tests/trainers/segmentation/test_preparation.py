"""What a network is shown of an image: 0 to 1, its shape kept, in the middle of a square, and the way back."""

from math import pi

import numpy as np
import pytest
import torch

from qsim.errors import InputError
from trainers.segmentation.preparation import Frame, normalised

SHAPES = [(40, 64), (64, 40), (51, 37), (33, 100), (64, 64), (7, 96), (1, 50)]


def disc(shape, centre, radius):
    y, x = np.indices(shape)
    return torch.from_numpy((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2)


def box(filled):
    """First and last row and column of what is not zero."""
    rows, columns = (np.flatnonzero(filled.any(axis).numpy()) for axis in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


def test_brightness_goes_from_nothing_to_one_whatever_the_unit():
    image = torch.rand(9, 7, generator=torch.Generator().manual_seed(1)) * 3 - 1
    found = normalised(image)
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)
    assert found.argmax() == image.argmax()
    assert found.argmin() == image.argmin()
    # a linear map keeps ratios of differences
    slope = (found[3, 3] - found[0, 0]) / (image[3, 3] - image[0, 0])
    assert float(slope) == pytest.approx(1 / float(image.max() - image.min()), rel=1e-4)
    torch.testing.assert_close(normalised(250 * image + 40), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), None], ids=str)
def test_what_has_no_scale_is_refused(wrong):
    image = torch.full((4, 4), 2.0)
    if wrong is not None:
        image[0, 0], image[1, 1] = wrong, 3.0
    with pytest.raises(InputError, match="NaN, infinity, or one value only") as error:
        normalised(image)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [64, 33])
def test_the_longest_side_fills_the_square_and_the_middle_stays_the_middle(shape, size):
    found = Frame(shape, size).there(torch.ones(shape))
    assert found.shape == (size, size)
    # of ones: nothing but ones where the image lies, and zeros around it
    assert set(found.unique().tolist()) <= {0.0, 1.0} or torch.allclose(found[found > 0], torch.ones(1), atol=1e-5)
    top, bottom, left, right = box(found > 0)
    height, width = bottom - top + 1, right - left + 1
    assert max(height, width) == size
    # each side to the nearest voxel, at least one
    factor = size / max(shape)
    for extent, n in ((height, shape[0]), (width, shape[1])):
        assert abs(extent - n * factor) <= 0.5 or extent == 1
    # what cannot be halved lies below and to the right
    assert (size - 1 - bottom) - top in (0, 1)
    assert (size - 1 - right) - left in (0, 1)


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = torch.rand(40, 64, generator=torch.Generator().manual_seed(2))
    frame = Frame((40, 64), 64)
    assert torch.equal(frame.there(image)[12:52], image)
    assert torch.equal(frame.back(frame.there(image)), image)


@pytest.mark.parametrize(("shape", "size"), [((50, 70), 128), ((90, 61), 128), ((180, 130), 96)], ids=str)
def test_there_and_back_is_the_image(shape, size):
    y, x = (np.linspace(0, 2 * pi, n) for n in shape)
    image = torch.from_numpy(0.5 + 0.25 * np.sin(y)[:, None] + 0.25 * np.cos(x)[None]).float()
    frame = Frame(shape, size)
    again = frame.back(frame.there(image))
    assert again.shape == shape
    # linear interpolation errs by h^2 / 8 times the curvature of .25 (2 pi / n)^2 per axis, both ways; the edge by h
    inner = (again - image)[2:-2, 2:-2].abs().max()
    assert float(inner) < 4e-3
    assert float((again - image).abs().max()) < 0.03


def test_nothing_is_moved():
    """A blob stays where it is: its centre of mass, half a voxel of the image being half a voxel."""
    shape, size = (60, 45), 128
    y, x = np.indices(shape)
    blob = torch.from_numpy(np.exp(-((y - 21.3) ** 2 + (x - 30.1) ** 2) / 30)).float()
    frame = Frame(shape, size)
    there = frame.there(blob).double()
    factor = size / 60
    rows, columns = np.indices((size, size))
    left = (size - round(45 * factor)) // 2
    found = [float((there.numpy() * at).sum() / there.sum()) for at in (rows, columns)]
    assert found[0] == pytest.approx((21.3 + 0.5) * factor - 0.5, abs=0.02)
    assert found[1] == pytest.approx((30.1 + 0.5) * factor - 0.5 + left, abs=0.02)
    back = frame.back(there.float()).double().numpy()
    assert [float((back * at).sum() / back.sum()) for at in (y, x)] == pytest.approx([21.3, 30.1], abs=0.02)


@pytest.mark.parametrize("size", [48, 128, 300])
def test_the_area_of_a_disc_grows_with_the_square(size):
    shape, radius = (96, 70), 20
    frame = Frame(shape, size)
    mask = disc(shape, (50, 33), radius)
    found = frame.there_mask(mask)
    assert found.dtype == torch.bool
    factor = size / 96
    assert float(found.sum()) == pytest.approx(float(mask.sum()) * factor**2, rel=0.03)
    # and by geometry
    assert float(found.sum()) == pytest.approx(pi * (radius * factor) ** 2, rel=0.04)
    again = frame.back(found.float()) >= 0.5
    assert float((again & mask).sum()) / float((again | mask).sum()) > (0.93 if size > 96 else 0.85)
