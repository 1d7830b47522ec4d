"""Partial volume against areas, volumes and quadrature known from outside."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate

from phantoms.shapes.overlap import ball_boxes, disc_rectangle_area, disc_rectangles, intervals


def edges(n, shift, spacing=1.0):
    return (np.arange(n + 1) - n / 2) * spacing + shift


@pytest.mark.parametrize("radius", [0.2, 0.5, 1.0, 7.31, 60.0])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.37, -0.21)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9)])
def test_pixels_of_a_disc_add_up_to_its_area(radius, shift, spacing):
    y, x = (edges(2 * int(radius / s) + 6, offset, s) for s, offset in zip(spacing, shift, strict=True))
    share = disc_rectangles(y, x, radius)
    assert share.min() >= 0
    assert share.max() <= 1
    assert share.sum() * spacing[0] * spacing[1] == pytest.approx(np.pi * radius**2, rel=1e-12)


def quadrature(y0, y1, x0, x1, radius):
    """Height of the disc above x, integrated between its kinks."""

    def height(x):
        h = np.sqrt(max(radius**2 - x**2, 0.0))
        return max(min(y1, h) - max(y0, -h), 0.0)

    kinks = [s * np.sqrt(radius**2 - y**2) for y in (y0, y1) if abs(y) < radius for s in (-1, 1)] + [-radius, radius]
    points = sorted({x0, x1, *(k for k in kinks if x0 < k < x1)})
    return sum(integrate.quad(height, a, b, epsabs=1e-13, epsrel=1e-13, limit=200)[0] for a, b in pairwise(points))


def test_single_pixels_against_quadrature():
    rng = np.random.default_rng(0)
    for _ in range(300):
        radius = rng.uniform(0.1, 3)
        y0, x0 = rng.uniform(-3.5, 3, 2)
        y1, x1 = y0 + rng.uniform(0.1, 3), x0 + rng.uniform(0.1, 3)
        area = disc_rectangle_area(*(np.array([v]) for v in (y0, y1, x0, x1, radius)))[0]
        assert area == pytest.approx(quadrature(y0, y1, x0, x1, radius), abs=1e-10)


@pytest.mark.parametrize(
    ("rectangle", "area"),
    [
        ((0.0, 2.0, 0.0, 2.0), np.pi / 4),
        ((-2.0, 2.0, 0.0, 2.0), np.pi / 2),
        # circular segment beyond 1/2: arccos(1/2) - (1/2) sqrt(3/4)
        ((0.5, 2.0, -2.0, 2.0), np.pi / 3 - np.sqrt(3) / 4),
        ((1.0, 2.0, -1.0, 1.0), 0.0),
        ((-0.5, 0.5, -0.5, 0.5), 1.0),
    ],
)
def test_areas_known_in_closed_form(rectangle, area):
    got = disc_rectangle_area(*(np.array([v]) for v in (*rectangle, 1.0)))[0]
    assert got == pytest.approx(area, abs=1e-14)


@pytest.mark.parametrize("radius", [0.3, 1.0, 6.7, 20.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.0, 0.8)])
def test_voxels_of_a_ball_add_up_to_its_volume(radius, spacing):
    grid = [edges(2 * int(radius / s) + 6, shift, s) for s, shift in zip(spacing, (0.1, -0.3, 0.45), strict=True)]
    share = ball_boxes(*grid, radius)
    assert share.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * radius**3, rel=1e-11)
    # z is integrated, x and y are in closed form: turning the axes round must not matter in any voxel
    turned = ball_boxes(grid[2], grid[0], grid[1], radius)
    np.testing.assert_allclose(np.moveaxis(turned, 0, 2), share, atol=1e-10)


def test_slabs_of_a_ball_are_spherical_segments():
    # one voxel wide enough for the whole ball in x and y: volume between z0 and z1 is pi (r^2 z - z^3 / 3)
    radius, z = 2.0, np.array([-2.2, -1.3, -0.4, 0.7, 1.9, 2.5])
    share = ball_boxes(z, np.array([-3.0, 3.0]), np.array([-3.0, 3.0]), radius)[:, 0, 0]
    inside = np.clip(z, -radius, radius)
    expected = np.diff(np.pi * (radius**2 * inside - inside**3 / 3))
    np.testing.assert_allclose(share * np.diff(z) * 36, expected, rtol=1e-11)


def test_corner_of_a_ball_against_quadrature():
    # the octant-like corner piece x, y, z > 0.4 of the unit ball, by nested adaptive quadrature
    low = 0.4

    def depth(y, z):
        return max(np.sqrt(max(1 - y**2 - z**2, 0.0)) - low, 0.0)

    far = np.sqrt(1 - 2 * low**2)
    volume, _ = integrate.dblquad(depth, low, far, low, lambda z: np.sqrt(1 - low**2 - z**2), epsabs=1e-11)
    edge = np.array([low, 1.0])
    assert ball_boxes(edge, edge, edge, 1.0)[0, 0, 0] * 0.6**3 == pytest.approx(volume, abs=1e-9)


def test_intervals():
    np.testing.assert_allclose(intervals(np.array([-2.0, -1, 0, 1, 2]), 2.5), [0.25, 1, 1, 0.25], atol=1e-15)
    # narrower than a cell, and at an edge
    np.testing.assert_allclose(intervals(np.array([-0.1, 0.9, 1.9]), 0.4), [0.3, 0.0], atol=1e-15)
