"""Moves of examples against scipy's interpolation, exact shifts, and how often each is drawn."""

from math import cos, radians, sin

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from trainers.relaxation.moving import Augmentation, ImageMotion, draws, moved, rigid


def smooth(height=20, width=26, n=2):
    values = np.random.default_rng(1).random((1, n, height, width))
    return gaussian_filter(values, (0, 0, 1.5, 1.5)).astype(np.float32)


def by_scipy(image, matrix, offset):
    """Bilinear, 0 outside; about the centre of the image."""
    centre = (np.array(image.shape) - 1) / 2
    shift = centre + offset - matrix @ centre
    return affine_transform(image.astype(float), matrix, shift, order=1, mode="grid-constant")


@pytest.mark.parametrize(("angle", "y", "x"), [(7.5, 0.0, 0.0), (-30.0, 0.0, 0.0), (0.0, 1.5, -2.25), (12.0, 3.0, 1.0)])
def test_rotations_and_shifts_of_an_image_that_is_no_square(angle, y, x):
    images = smooth()
    found = moved(torch.from_numpy(images), [rigid(angle, y, x, flip=False)])[0].numpy()
    c, s = cos(radians(angle)), sin(radians(angle))
    for n in range(2):
        wanted = by_scipy(images[0, n], np.array([[c, -s], [s, c]]), -np.array([y, x], dtype=float))
        np.testing.assert_allclose(found[n], wanted, atol=2e-5)


def test_a_shift_by_whole_voxels_changes_no_value():
    images = torch.from_numpy(smooth())
    found = moved(images, [rigid(0.0, 3.0, -4.0, flip=False)])
    torch.testing.assert_close(found[..., 3:, :-4], images[..., :-3, 4:], rtol=0, atol=1e-6)
    # where nothing was: rounding of the places leaves 1e-6 of a neighbour
    assert float(found[..., :3, :].abs().max()) < 1e-6
    assert float(found[..., -4:].abs().max()) < 1e-6
    flipped = moved(images, [rigid(0.0, 0.0, 0.0, flip=True)])
    torch.testing.assert_close(flipped, images.flip(-1), rtol=0, atol=1e-6)


def test_each_example_moves_by_its_own_map_and_all_of_its_images_alike():
    images = torch.from_numpy(np.concatenate((smooth(), smooth())))
    found = moved(images, [rigid(0.0, 2.0, 0.0, flip=False), rigid(5.0, 0.0, 0.0, flip=False)])
    for i, each in enumerate((rigid(0.0, 2.0, 0.0, flip=False), rigid(5.0, 0.0, 0.0, flip=False))):
        for n in range(2):
            alone = moved(images[i : i + 1, n : n + 1], [each])
            torch.testing.assert_close(found[i, n], alone[0, 0], rtol=0, atol=1e-6)


def test_every_move_is_as_likely_and_a_function_of_seed_and_position():
    spec = Augmentation(rotations_deg=(2.5, 5.0), shifts=(3,))
    drawn = [spec.draw(4, k) for k in range(1300)]
    kinds = {}
    for each in drawn:
        kinds[each.round(6).tobytes()] = kinds.get(each.round(6).tobytes(), 0) + 1
    # stillness, two angles either way, four directions either way
    assert len(kinds) == 1 + 4 + 8
    # 5 SD of a binomial count
    spread = 5 * (1300 / 13 * 12 / 13) ** 0.5
    assert all(abs(count - 1300 / 13) < spread for count in kinds.values())
    assert all(np.array_equal(a, b) for a, b in zip(drawn, draws(spec, 4, torch.arange(1300)), strict=True))
    assert any(not np.array_equal(a, spec.draw(5, k)) for k, a in enumerate(drawn[:50]))
    assert all(np.array_equal(each, np.eye(2, 3)) for each in draws(None, 4, torch.arange(5)))
    flipped = [np.linalg.det(Augmentation(flips=True).draw(1, k)[:, :2]) < 0 for k in range(400)]
    assert 150 < sum(flipped) < 250


def test_motion_has_its_spread_and_moves_each_image_by_itself():
    drawn = np.concatenate([ImageMotion(rotation_deg=5.0, shift=3.0).draw(0, k, 3) for k in range(400)])
    angles = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    # SD of an SD of 1200: 2 %
    assert angles.std() == pytest.approx(5.0, rel=0.08)
    assert drawn[:, :, 2].std() == pytest.approx(3.0, rel=0.06)
    assert len({each.tobytes() for each in drawn}) == 1200
