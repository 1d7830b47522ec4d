"""Outlines and painting against closed forms."""

import numpy as np
import pytest

from phantoms.outlines import Star, curve, ellipse, polygon_distance
from phantoms.painting import covered, grid, paint, planes


def test_distance_from_a_circle_is_exact():
    y, x = grid((31, 40), (1.3, 0.9))
    wanted = np.hypot(y - 2.0, x + 3.0) - 9.5
    star = Star(centre_mm=(2.0, -3.0), cosines=(9.5,))
    np.testing.assert_allclose(star.distance(y, x), wanted, atol=1e-12)
    np.testing.assert_allclose(ellipse((2.0, -3.0), (9.5, 9.5), 0.7, y, x), wanted, atol=1e-9)


def test_distance_from_an_ellipse_is_right_at_its_edge():
    theta = np.linspace(0, 2 * np.pi, 50)
    # half 8 mm along y and 20 mm along x, turned by .4 from x towards y
    p, q = 8 * np.sin(theta), 20 * np.cos(theta)
    y = 1.0 + np.cos(0.4) * p + np.sin(0.4) * q
    x = -2.0 - np.sin(0.4) * p + np.cos(0.4) * q
    np.testing.assert_allclose(ellipse((1.0, -2.0), (8.0, 20.0), 0.4, y, x), 0, atol=1e-9)
    # 1 mm further out along the short axis
    far = ellipse((1.0, -2.0), (8.0, 20.0), 0.4, np.array([1.0 + 9 * np.cos(0.4)]), np.array([-2.0 - 9 * np.sin(0.4)]))
    assert far[0] == pytest.approx(1.0, abs=1e-9)


def test_distance_from_a_polygon_is_that_of_its_sides_and_corners():
    square = np.array([[0.0, 0.0], [0.0, 10.0], [10.0, 10.0], [10.0, 0.0]])
    at = {(5.0, 5.0): -5.0, (1.0, 4.0): -1.0, (-3.0, 5.0): 3.0, (13.0, 14.0): 5.0, (5.0, 12.5): 2.5}
    y, x = (np.array(numbers) for numbers in zip(*at, strict=True))
    np.testing.assert_allclose(polygon_distance(square, y, x), list(at.values()), atol=1e-12)


def test_a_curve_through_points_of_a_circle_is_that_circle():
    theta = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    points = curve(np.stack([30 * np.sin(theta), 30 * np.cos(theta)], axis=1))
    # error of a cubic spline: (step^4 / 384) |f''''|, twice for the two coordinates
    assert np.abs(np.hypot(*points.T) - 30).max() < 2 * 30 * (2 * np.pi / 16) ** 4 / 384


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4])
def test_share_of_a_voxel_beside_a_straight_edge(angle):
    # against 200 x 200 points in one voxel of 1.5 mm
    fine = ((np.arange(200) + 0.5) / 200 - 0.5) * 1.5
    inside_of = np.cos(angle) * fine[:, None] + np.sin(angle) * fine
    for shift in (-0.9, -0.4, 0.0, 0.3, 0.7):
        counted = np.mean(inside_of + shift < 0)
        share = covered(np.array([[shift]]), (1.5, 1.5))[0, 0]
        assert share == pytest.approx(counted, abs=0.005 if angle == 0 else 0.065)


def test_later_regions_cover_earlier_ones_and_air_covers_all():
    regions = [("a", np.full((1, 3), 1.0)), ("b", np.array([[0.0, 0.25, 1.0]])), (None, np.array([[0.0, 0.5, 0.0]]))]
    painted = paint(("a", "b"), regions, (1, 3))
    np.testing.assert_allclose(painted[:, 0], [[1.0, 0.375, 0.0], [0.0, 0.125, 1.0]])


def test_planes_share_a_slice_evenly():
    np.testing.assert_allclose(planes(10.0, 6.0, 3), [8.0, 10.0, 12.0])


def test_a_radius_that_reaches_zero_is_refused():
    with pytest.raises(ValueError, match=r"^cosines: the radius reaches"):
        Star(centre_mm=(0.0, 0.0), cosines=(5.0, 6.0), sines=(0.0,))
    with pytest.raises(ValueError, match=r"^sines: got 0, wanted 1"):
        Star(centre_mm=(0.0, 0.0), cosines=(5.0, 1.0))
