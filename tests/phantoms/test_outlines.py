"""Outlines and painting against closed forms."""

import numpy as np
import pytest

from phantoms.drawn.outlines import Star, curve, ellipse, polygon_distance
from phantoms.drawn.painting import Canvas, Frame, Region, covered, ellipse_region, grid, paint, planes, strip


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


def counted(inside, matrix, width, n):
    """Share of each voxel by counting n x n points."""
    y, x = grid((matrix[0] * n, matrix[1] * n), (width / n, width / n))
    return inside(y, x).reshape(matrix[0], n, matrix[1], n).mean(axis=(1, 3))


@pytest.mark.parametrize("width", [1.3, 2.5, 6.0])
def test_ellipses_of_any_size_are_those_of_counted_points(width):
    rng = np.random.default_rng(3)
    matrix, n = (13, 15), 12
    y, x = grid(matrix, (width, width))
    frame = Frame(y[:, 0].copy(), x[0].copy(), (width, width))
    for short, long in ((0.5, 0.5), (0.6, 3.0), (1.2, 5.0), (2.0, 2.0), (3.0, 6.5)):
        drawn, wanted, error = [], [], []
        for _ in range(40):
            centre, angle = rng.uniform(-width, width, 2), rng.uniform(0, np.pi)
            region = ellipse_region(frame, centre, (short, long), angle)
            share = np.zeros(matrix)
            share[region.box] = region.share
            truth = counted(lambda y, x: ellipse(tuple(centre), (short, long), angle, y, x) < 0, matrix, width, n)  # noqa: B023
            drawn.append(share.sum())
            wanted.append(truth.sum())
            error.append(np.abs(share - truth).sum() / max(truth.sum(), 1))
        # the area, on average over places: within the error of 40 draws, or that
        # of the distance to first order, 3 % of what is as thick as a voxel and four times longer
        off = np.subtract(drawn, wanted)
        assert abs(off.mean()) < max(4 * off.std() / np.sqrt(40), 0.035 * np.mean(wanted)), (short, long)
        # and where it lies: voxels at the edge differ by tenths where the edge is as curved as they are wide
        assert np.mean(error) < 0.3, (short, long)


@pytest.mark.parametrize("width", [1.3, 2.5, 6.0])
@pytest.mark.parametrize("half", [0.3, 1.0, 4.0])
def test_strips_of_any_width_are_those_of_counted_points(width, half):
    y, x = grid((12, 11), (width, width))
    for angle in (0.0, 0.5):
        across = np.cos(angle) * y + np.sin(angle) * x - 0.21 * width
        truth = counted(
            lambda y, x: np.abs(np.cos(angle) * y + np.sin(angle) * x - 0.21 * width) < half,  # noqa: B023
            (12, 11), width, 40,
        )  # fmt: skip
        share = strip(across, half, (width, width))
        assert np.abs(share - truth).max() < (0.026 if angle == 0 else 0.13)
        if half > 0.5:
            np.testing.assert_allclose(share.sum(), truth.sum(), rtol=0.03)


def test_canvas_paints_from_the_top_down_and_the_mean_over_planes():
    canvas = Canvas(("a", "b"), (4, 4), 2)
    box = (slice(1, 3), slice(0, 4))
    canvas.begin()
    seen = canvas.under(Region(box, np.full((2, 4), 0.25)), ("a", 0.8), ("b", 0.2))
    np.testing.assert_allclose(seen, 0.25)
    canvas.under(Region(box, np.full((2, 4), 0.5)))
    canvas.under(Region((slice(0, 4), slice(0, 4)), np.ones((4, 4))), ("b", 1.0))
    # .25 (.8 a, .2 b), then .75 .5 of nothing, then what is left; half of it, for the second plane is empty
    np.testing.assert_allclose(2 * canvas.shares[0, 1:3], 0.2)
    np.testing.assert_allclose(2 * canvas.shares[1, 1:3], 0.05 + 0.375)
    np.testing.assert_allclose(2 * canvas.shares[1, 0], 1.0)


def test_what_is_within_two_regions_is_the_smaller_share():
    one = Region((slice(0, 3), slice(1, 4)), np.full((3, 3), 0.7))
    other = Region((slice(2, 5), slice(0, 2)), np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    both = one.within(other)
    assert both.box == (slice(2, 3), slice(1, 2))
    np.testing.assert_allclose(both.share, [[0.2]])
    assert one.within(Region((slice(7, 9), slice(0, 2)), np.ones((2, 2)))).share.size == 0
