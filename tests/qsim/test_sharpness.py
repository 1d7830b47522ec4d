"""Sharpness of boundaries: edges of known place, direction and width; scipy's t-test on the raw arrays; real labels."""

import base64
from dataclasses import replace
from math import log, sqrt
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import ndtr

from qsim.evaluation.pages.sharpness_figures import examples_figure, profiles_figure, widths_figure
from qsim.evaluation.pages.test_retest_content import Retest
from qsim.evaluation.pages.test_retest_page import _sharpness as page_of_sharpness
from qsim.evaluation.sharpness.fits import EdgeFit, compare, fit_edge, holm, measure_sharpness
from qsim.evaluation.sharpness.places import place_in_slices, place_profiles
from qsim.evaluation.sharpness.profiles import Profile, sample
from qsim.evaluation.studies.boundary_sharpness import Labelled, place, sharpness
from qsim.evaluation.studies.test_retest_table import Found, Repeats

SIZE = 97
GENERIC = (17.0, 33.0, 61.0, 152.0, 283.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def straight(angle, sd=1.3, offset=0.37, spacing=(1.0, 1.0)):
    """Labels and map of an edge through the middle, blurred by a Gaussian (its erf, exactly), and its normal."""
    y, x = (h * (np.arange(SIZE) - SIZE // 2) for h in spacing)
    normal = np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])
    distance = normal[0] * y[:, None] + normal[1] * x - offset
    return np.where(distance < 0, 1, 2).astype(np.uint8), 0.8 + 0.6 * ndtr(distance / sd), normal


def degrees_between(profile, normal):
    return np.rad2deg(np.arccos(min(1.0, float(np.dot(profile.direction, normal)))))


def sigmoid_width(sd, half):
    """10-90 % width of the sigmoid nearest to the erf of an edge, over -half..half, by quadrature; both are odd."""

    def cost(p):
        return quad(lambda s: (p[1] * np.tanh(0.5 * s / np.exp(p[0])) - (ndtr(s / sd) - 0.5)) ** 2, 0, half)[0]

    best = minimize(cost, [np.log(0.6 * sd), 0.5], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-16})
    return 2 * np.log(9) * np.exp(best.x[0])


def widths(found, method="a"):
    assert all(fit.ok for fit in found.fits[method])
    return np.array([fit.width_mm for fit in found.fits[method]])


# places


@pytest.mark.parametrize("angle", GENERIC)
def test_straight_edge_is_crossed_at_right_angles(angle):
    labels, _, normal = straight(angle)
    found = place_profiles(labels, 1, 2, 12, 8.0, (1.0, 1.0), rng(), apart_mm=2.0)
    assert len(found) == 12
    assert max(degrees_between(p, normal) for p in found) < 2
    # the boundary of the labels is known to half a voxel; on average, to less
    off = [np.dot(np.array(p.centre) - SIZE // 2, normal) - 0.37 for p in found]
    assert max(np.abs(off)) < 0.35
    assert abs(np.mean(off)) < 0.1
    assert all(np.array_equal(p.positions, 0.25 * np.arange(-16, 17)) for p in found)


def test_directions_over_all_angles():
    errors = []
    for angle in np.arange(1.3, 360, 17.7):
        labels, _, normal = straight(angle)
        found = place_profiles(labels, 1, 2, 30, 8.0, (1.0, 1.0), rng(), apart_mm=1.0)
        errors += [degrees_between(p, normal) for p in found]
    assert np.median(errors) < 0.7
    assert np.percentile(errors, 95) < 2.2
    # nearly along the voxels an edge has one step in many; a width grows by 1 / cos, under half a percent
    assert max(errors) < 5.7


def test_direction_is_in_lengths_and_not_in_voxels():
    labels, values, normal = straight(33.0, sd=2.2, spacing=(1.0, 1.7))
    found = place_profiles(labels, 1, 2, 8, 14.0, (1.0, 1.7), rng())
    assert max(degrees_between(p, normal) for p in found) < 2.5
    assert widths(measure_sharpness({"a": values}, found)) == pytest.approx(sigmoid_width(2.2, 7.0), rel=0.03)


def test_plane_in_a_volume():
    z, y, x = np.mgrid[:33, :35, :36] - 17.0
    normal = np.array([0.41, -0.62, 0.67])
    normal /= np.linalg.norm(normal)
    distance = 1.0 * (normal[0] * z * 1.25 + normal[1] * y + normal[2] * x)
    labels = np.where(distance < 0, 1, 2).astype(np.uint8)
    found = place_profiles(labels, 1, 2, 10, 10.0, (1.25, 1.0, 1.0), rng(), apart_mm=4.0)
    assert max(degrees_between(p, normal) for p in found) < 2.5
    values = ndtr(distance / 1.3).astype(np.float32)
    assert widths(measure_sharpness({"a": values}, found)) == pytest.approx(sigmoid_width(1.3, 5.0), rel=0.03)


def test_profiles_in_the_slices_of_a_volume():
    images = [straight(angle)[:2] for angle in (33.0, 61.0, 152.0)]
    labels = np.stack([np.zeros((SIZE, SIZE), np.uint8)] + [image for image, _ in images])
    values = np.stack([np.zeros((SIZE, SIZE))] + [image for _, image in images])
    found = place_in_slices(labels, 1, 2, 30, 10.0, (4.0, 1.0, 1.0), rng(2), apart_mm=5.0)
    assert len(found) == 30
    assert {p.centre[0] for p in found} == {1.0, 2.0, 3.0}
    assert {p.direction[0] for p in found} == {0.0}
    centres = np.array([p.centre for p in found]) * [4, 1, 1]
    gaps = np.sqrt(((centres[:, None] - centres) ** 2).sum(-1))
    assert gaps[~np.eye(30, dtype=bool)].min() >= 5.0
    assert widths(measure_sharpness({"a": values}, found)) == pytest.approx(sigmoid_width(1.3, 5.0), rel=0.03)
    assert found == place_in_slices(labels, 1, 2, 30, 10.0, (4.0, 1.0, 1.0), rng(2), apart_mm=5.0)
    with pytest.raises(ValueError, match="labels: no slice has a fit place"):
        place_in_slices(labels, 1, 2, 30, 200.0, (4.0, 1.0, 1.0), rng(2))
    with pytest.raises(ValueError, match="n must be"):
        place_in_slices(labels, 1, 2, 0, 10.0, (4.0, 1.0, 1.0), rng(2))


def test_circle_has_radial_profiles_and_its_radius_of_curvature():
    y, x = np.mgrid[:61, :63]
    middle = np.array([30.2, 31.4])
    labels = np.where(np.hypot(y - middle[0], x - middle[1]) < 14.0, 7, 3).astype(np.uint8)
    found = place_profiles(labels, 7, 3, 200, 8.0, (1.0, 1.0), rng(), apart_mm=1.0, least_radius_mm=10.0)
    assert len(found) >= 30
    out = [np.array(p.centre) - middle for p in found]
    assert max(degrees_between(p, v / np.linalg.norm(v)) for p, v in zip(found, out, strict=True)) < 3.5
    assert [np.linalg.norm(v) for v in out] == pytest.approx([14.0] * len(found), abs=0.5)
    with pytest.raises(ValueError, match=r"^labels: none of the .* places .* too curved"):
        place_profiles(labels, 7, 3, 20, 8.0, (1.0, 1.0), rng(), least_radius_mm=40.0)
    # the same voxels, twice as large, are half as curved
    assert len(place_profiles(labels, 7, 3, 20, 16.0, (2.0, 2.0), rng(), least_radius_mm=20.0)) == len(
        place_profiles(labels, 7, 3, 20, 8.0, (1.0, 1.0), rng(), least_radius_mm=10.0)
    )


def test_profiles_end_where_a_third_tissue_is_near():
    labels, _, normal = straight(33.0)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    depth = normal[0] * y + normal[1] * x - 0.37
    labels[depth > 5.0] = 9
    found = place_profiles(labels, 1, 2, 5, 10.0, (1.0, 1.0), rng(), clear=1.5)
    for p in found:
        assert p.before == 20
        # nearest third voxel centres lie at 5 to 5.7 mm
        assert 2.9 < p.positions[-1] < 4.3
        assert distance_to_others(labels, p, (1, 2)) >= 1.5 - 0.05
    # the same band of the tissue itself ends half a voxel before the label does
    labels[depth > 5.0] = 1
    banded = place_profiles(labels, 1, 2, 60, 10.0, (1.0, 1.0), rng(), apart_mm=1.0)
    starts = np.array([np.dot(np.array(p.centre) - SIZE // 2, normal) - 0.37 for p in banded])
    ends = np.array([p.positions[-1] for p in banded])
    first = np.abs(starts) < 1
    assert first.sum() > 10
    # a depth of 5, less half a voxel, less up to a step
    assert (starts + ends)[first].mean() == pytest.approx(5 - 0.5 - 0.125, abs=0.15)
    with pytest.raises(ValueError, match="too thin"):
        place_profiles(labels, 1, 2, 5, 20.0, (1.0, 1.0), rng())


def distance_to_others(labels, profile, pair):
    """Of the samples, to the nearest voxel centre of another label [mm]."""
    others = np.argwhere(~np.isin(labels, pair)) * np.array(profile.spacing_mm)
    if not len(others):
        return np.inf
    points = profile.coordinates.T * np.array(profile.spacing_mm)
    return np.sqrt(((points[:, None] - others) ** 2).sum(-1)).min()


def blob(shift=(0, 0)):
    """Two nested tissues without symmetry, far from the border."""
    y, x = np.mgrid[:90, :94]
    y, x = y - 44.3 - shift[0], x - 45.8 - shift[1]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    wave = 1.5 * np.sin(3 * angle + 0.4) + 0.8 * np.cos(2 * angle)
    labels = np.zeros(y.shape, np.uint8)
    labels[radius < 27 + wave] = 2
    labels[radius < 17 + wave] = 1
    return labels


def table(found):
    return np.array(sorted((*p.centre, *p.direction, p.before, p.after) for p in found))


def test_places_move_with_the_image():
    at_rest = place_profiles(blob(), 1, 2, 8, 8.0, (1.0, 1.0), rng(4))
    moved = place_profiles(np.roll(blob(), (5, -7), (0, 1)), 1, 2, 8, 8.0, (1.0, 1.0), rng(4))
    assert len(at_rest) == 8
    expected = table(at_rest) + np.array([5, -7, 0, 0, 0, 0])
    assert table(moved) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_places_are_mirrored_with_the_image(axis):
    every = {"n": 10_000, "length_mm": 8.0, "spacing_mm": (1.0, 1.0), "rng": rng(), "apart_mm": 0.0}
    at_rest = table(place_profiles(blob(), 1, 2, **every))
    mirrored = table(place_profiles(np.flip(blob(), axis).copy(), 1, 2, **every))
    mirrored[:, axis] = blob().shape[axis] - 1 - mirrored[:, axis]
    mirrored[:, 2 + axis] *= -1
    mirrored = np.array(sorted(map(tuple, mirrored)))
    assert len(at_rest) == len(mirrored) > 50
    assert mirrored == pytest.approx(at_rest, abs=1e-6)


def test_swapped_labels_turn_the_profiles_around():
    labels = np.where(blob() == 1, 1, 2).astype(np.uint8)
    every = {"n": 10_000, "length_mm": 8.0, "spacing_mm": (1.0, 1.0), "apart_mm": 0.0}
    one = table(place_profiles(labels, 1, 2, rng=rng(), **every))
    other = table(place_profiles(labels, 2, 1, rng=rng(), **every))
    other[:, 2:4] *= -1
    assert other[:, :4] == pytest.approx(one[:, :4], abs=1e-6)
    assert np.array_equal(other[:, [5, 4]], one[:, [4, 5]])


def test_places_follow_the_labels_and_the_generator_alone():
    labels = blob()
    one = place_profiles(labels, 1, 2, 7, 8.0, (1.0, 1.0), rng(3))
    assert one == place_profiles(labels.copy(), 1, 2, 7, 8.0, (1.0, 1.0), rng(3))
    assert one != place_profiles(labels, 1, 2, 7, 8.0, (1.0, 1.0), rng(5))
    maps = [{"a": ndimage.gaussian_filter(labels.astype(float), sd)} for sd in (0.7, 2.0)]
    assert measure_sharpness(maps[0], one).profiles == measure_sharpness(maps[1], one).profiles == one


def test_fewer_fit_places_than_wanted():
    found = place_profiles(blob(), 1, 2, 500, 8.0, (1.0, 1.0), rng(), apart_mm=9.0)
    assert 5 <= len(found) < 20
    centres = np.array([p.centre for p in found])
    gaps = np.sqrt(((centres[:, None] - centres) ** 2).sum(-1))
    assert gaps[~np.eye(len(found), dtype=bool)].min() >= 9.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.ones((9, 9), np.uint8)}, "outside: labels holds no voxel of label 2"),
        ({"labels": np.array([[1, 0, 2]] * 9, np.uint8)}, "labels: no voxel of label 1 lies beside one of label 2"),
        ({"labels": np.ones(9, np.uint8)}, r"labels must be \(y, x\) or \(z, y, x\), got 1"),
        ({"outside": 1}, "outside must be another label"),
        ({"n": 0}, "n must be at least 1"),
        ({"length_mm": 3.0}, "length_mm must be at least 4 voxels"),
        ({"spacing_mm": (1.0,)}, "spacing_mm must hold 2 positive lengths"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing_mm must hold 2 positive lengths"),
        ({"thick": 0.0}, "thick must lie above 0"),
        ({"apart_mm": -1.0}, "apart_mm must be finite"),
        ({"clear": float("nan")}, "clear must be finite"),
        ({"least_radius_mm": float("inf")}, "least_radius_mm must be finite"),
        ({"agree_deg": 0.0}, "agree_deg must lie above 0"),
        ({"smooth": 0.0}, "smooth must be finite"),
        ({"length_mm": 200.0}, "near the border of the image"),
    ],
)
def test_refusals_of_places(changes, message):
    given = {"labels": straight(33.0)[0], "inside": 1, "outside": 2, "n": 5, "length_mm": 8.0, "spacing_mm": (1.0, 1.0)}
    with pytest.raises(ValueError, match=message):
        place_profiles(**{**given, **changes}, rng=rng())


def test_refusal_of_labels_that_are_no_uint8(unchecked):
    with pytest.raises(ValueError, match="labels must be uint8, got int64"):
        place_profiles(straight(33.0)[0].astype(np.int64), 1, 2, 5, 8.0, (1.0, 1.0), rng())


# samples


def test_samples_are_exact_for_what_the_interpolation_reproduces():
    y, x = np.mgrid[:40, :40].astype(float)
    profile = Profile((19.3, 20.1), (0.6, 0.8), (1.0, 2.0), 0.25, 12, 9)
    at_y, at_x = 19.3 + 0.6 * profile.positions, 20.1 + 0.4 * profile.positions
    plane = sample(2 + 0.3 * y - 0.7 * x, profile, order=1)
    assert plane == pytest.approx(2 + 0.3 * at_y - 0.7 * at_x, abs=1e-12)
    # a cubic spline reproduces cubics, but for its ends 8 voxels away, where it is mirrored
    cubic = sample(((y - 20) ** 3 - 2 * (x - 20) ** 2) / 100, profile)
    assert cubic == pytest.approx(((at_y - 20) ** 3 - 2 * (at_x - 20) ** 2) / 100, abs=2e-3)


@pytest.mark.parametrize("order", [1, 3])
def test_missing_voxels(order):
    _, values, _ = straight(33.0)
    profile = Profile((48.3, 48.1), (0.6, 0.8), (1.0, 1.0), 0.25, 12, 12)
    whole = sample(values, profile, order=order)
    beside = values.copy()
    # not within the two voxels on either side that a spline weighs
    beside[53:, 45] = np.nan
    near = sample(beside, profile, order=order)
    # linear: not at all; cubic: by what the voxels beyond its neighbours weigh
    assert near == pytest.approx(whole, abs=1e-12 if order == 1 else 5e-3)
    beside[48, 48] = np.inf
    hit = sample(beside, profile, order=order)
    weighs = (np.abs(profile.coordinates - 48) < (order + 1) / 2).all(axis=0)
    assert np.array_equal(np.isnan(hit), weighs)
    assert 0 < weighs.sum() < len(hit)
    assert np.isnan(sample(np.full_like(values, np.nan), profile, order=order)).all()


def test_refusals_of_samples():
    with pytest.raises(ValueError, match="end before the profile does"):
        sample(np.zeros((20, 20)), Profile((18.0, 9.0), (1.0, 0.0), (1.0, 1.0), 0.25, 8, 8))
    with pytest.raises(ValueError, match="values has 3 axes, the profile 2"):
        sample(np.zeros((20, 20, 20)), Profile((9.0, 9.0), (1.0, 0.0), (1.0, 1.0), 0.25, 8, 8))


# fits


@pytest.mark.parametrize(("inside", "outside"), [(0.8, 1.4), (1.4, 0.8), (-3.0, 2.0)])
@pytest.mark.parametrize(("centre", "w"), [(0.3, 0.4), (-1.1, 0.7), (0.0, 0.15)])
def test_a_sigmoid_is_found_again(inside, outside, centre, w):
    s = np.arange(-4, 4.1, 0.25)
    fit = fit_edge(s, inside + (outside - inside) / (1 + np.exp(-(s - centre) / w)), 1.0, rising=outside > inside)
    assert fit.ok
    found = (fit.inside, fit.outside, fit.centre_mm, fit.w_mm)
    assert found == pytest.approx((inside, outside, centre, w), rel=1e-6, abs=1e-6)
    assert fit.slope == pytest.approx(1 / w, rel=1e-6)
    assert fit.steepness == pytest.approx(abs(outside - inside) / (4 * w), rel=1e-6)
    # where the curve passes 10 and 90 % of the step
    tenths = fit.at(np.array([centre - fit.width_mm / 2, centre + fit.width_mm / 2]))
    assert (tenths - inside) / (outside - inside) == pytest.approx([0.1, 0.9], abs=1e-6)


@pytest.mark.parametrize("sd", [0.8, 1.0, 1.3])
def test_width_of_a_gaussian_edge(sd):
    truth = sigmoid_width(sd, 6.0)
    # the sigmoid's own width is near that of the erf, 2.563 SD
    assert truth == pytest.approx(2 * stats.norm.ppf(0.9) * sd, rel=0.04)
    found = []
    for angle in GENERIC:
        labels, values, _ = straight(angle, sd=sd)
        places = place_profiles(labels, 1, 2, 6, 12.0, (1.0, 1.0), rng(), apart_mm=3.0)
        found += list(widths(measure_sharpness({"a": values}, places, rising=True)))
    assert found == pytest.approx([truth] * len(found), rel=0.03)
    assert np.mean(found) == pytest.approx(truth, rel=0.011)


def test_linear_interpolation_blurs_as_stated():
    labels, values, _ = straight(33.0, sd=1.0)
    places = place_profiles(labels, 1, 2, 20, 12.0, (1.0, 1.0), rng(), apart_mm=2.0)
    found = widths(measure_sharpness({"a": values}, places, order=1))
    assert found.mean() == pytest.approx(sigmoid_width(sqrt(1 + 1 / 6), 6.0), rel=0.01)


def test_variances_of_blurs_add():
    labels, values, _ = straight(61.0, sd=1.1)
    places = place_profiles(labels, 1, 2, 10, 16.0, (1.0, 1.0), rng(), apart_mm=4.0)
    maps = {"sharp": values, "blurred": ndimage.gaussian_filter(values, 1.4)}
    found = measure_sharpness(maps, places)
    assert widths(found, "blurred") == pytest.approx(sigmoid_width(sqrt(1.1**2 + 1.4**2), 8.0), rel=0.03)
    expected = sigmoid_width(sqrt(1.1**2 + 1.4**2), 8.0) / sigmoid_width(1.1, 8.0)
    (test,) = found.compare()
    assert np.exp(-test.difference) == pytest.approx(expected, rel=0.01)
    assert test.n == 10


def test_noise_leaves_the_width_unbiased_and_its_standard_error_is_right():
    # one profile: neighbours would share voxels; contrast 60 times the noise
    labels, values, _ = straight(33.0)
    places = place_profiles(labels, 1, 2, 1, 10.0, (1.0, 1.0), rng())
    truth = measure_sharpness({"a": values}, places).fits["a"][0]
    noise = rng(8)
    fits = [
        measure_sharpness({"a": values + 0.01 * noise.standard_normal(values.shape)}, places).fits["a"][0]
        for _ in range(120)
    ]
    assert all(fit.ok for fit in fits)
    errors = np.array([log(fit.w_mm / truth.w_mm) for fit in fits])
    assert abs(errors.mean()) < 2.5 * errors.std(ddof=1) / sqrt(120)
    # interpolated noise is neither white nor of one variance: the standard error is right to a quarter
    assert np.sqrt(np.mean([fit.log_width_se**2 for fit in fits])) == pytest.approx(errors.std(ddof=1), rel=0.25)


def test_unit_and_level_of_the_map_change_nothing():
    labels, values, _ = straight(33.0)
    noisy = values + 0.03 * rng().standard_normal(values.shape)
    places = place_profiles(labels, 1, 2, 6, 10.0, (1.0, 1.0), rng())
    found = measure_sharpness({"s": noisy, "ms": 1e3 * noisy, "turned": 5 - noisy}, places)
    for s, ms, turned in zip(*found.fits.values(), strict=True):
        assert ms.w_mm == pytest.approx(s.w_mm, rel=1e-5)
        assert turned.w_mm == pytest.approx(s.w_mm, rel=1e-5)
        assert ms.steepness == pytest.approx(1e3 * s.steepness, rel=1e-4)
        assert (turned.inside, turned.outside) == pytest.approx((5 - s.inside, 5 - s.outside), rel=1e-4)


def test_fits_that_are_not_sensible():
    s = np.arange(-4, 4.1, 0.25)

    def step(centre, w):
        return 1 / (1 + np.exp(-(s - centre) / w))

    assert fit_edge(s, step(0.2, 0.5), 1.0, rising=True).status == "ok"
    assert fit_edge(s, step(0.2, 0.5), 1.0, rising=False).status == "wrong contrast"
    assert fit_edge(s, np.full(s.shape, 1.2), 1.0).status == "flat"
    assert fit_edge(s, step(3.8, 0.3), 1.0).status == "centre outside"
    assert fit_edge(s, step(0.1, 2.5), 1.0).status == "width not seen"
    assert fit_edge(s, step(0.1, 0.01), 1.0).status == "width not seen"
    # noise alone: the width may be anything, and its standard error says so, nearly always
    noise = rng(2)
    alone = []
    for _ in range(40):
        voxels = noise.standard_normal(9)
        alone.append(fit_edge(s, np.interp(s, np.arange(-4, 5), voxels), 1.0).ok)
    assert np.mean(alone) < 0.35


def test_refusals_of_fits():
    s = np.arange(-4, 4.1, 0.25)
    with pytest.raises(ValueError, match="values must be finite"):
        fit_edge(s, np.where(s > 3, np.nan, s), 1.0)
    with pytest.raises(ValueError, match="positions: a profile needs at least 6 samples, got 4"):
        fit_edge(s[:4], s[:4], 1.0)
    with pytest.raises(ValueError, match="voxel_mm must be"):
        fit_edge(s, s, 0.0)
    labels, values, _ = straight(33.0)
    places = place_profiles(labels, 1, 2, 3, 8.0, (1.0, 1.0), rng())
    with pytest.raises(ValueError, match="maps is empty"):
        measure_sharpness({}, places)
    with pytest.raises(ValueError, match="profiles is empty"):
        measure_sharpness({"a": values}, ())
    with pytest.raises(ValueError, match="maps must have one shape"):
        measure_sharpness({"a": values, "b": values[1:]}, places)
    with pytest.raises(ValueError, match="maps: along each of the 3 profiles"):
        measure_sharpness({"a": values, "b": np.full_like(values, np.nan)}, places)


# comparison


def edge_fit(w, step=0.6, status="ok"):
    return EdgeFit(0.8, 0.8 + step, 0.0, float(w), 0.05, 0.01, status)


@pytest.mark.parametrize("quantity", ["log width", "slope", "steepness"])
def test_paired_tests_are_those_of_scipy(quantity):
    r = rng(11)
    w = {"a": r.uniform(0.4, 0.9, 20), "b": r.uniform(0.5, 1.0, 20), "c": r.uniform(0.4, 0.9, 20)}
    raw = {
        "log width": {k: np.log(4.394449154672439 * v) for k, v in w.items()},
        "slope": {k: 1 / v for k, v in w.items()},
        "steepness": {k: 0.6 / (4 * v) for k, v in w.items()},
    }[quantity]
    tests = compare({k: [edge_fit(x) for x in v] for k, v in w.items()}, quantity)
    assert [(t.first, t.second) for t in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    for test in tests:
        known = stats.ttest_rel(raw[test.first], raw[test.second])
        d = raw[test.first] - raw[test.second]
        half = stats.t.ppf(0.975, 19) * d.std(ddof=1) / sqrt(20)
        assert (test.t, test.p) == pytest.approx((known.statistic, known.pvalue), rel=1e-9)
        ends = (d.mean(), d.mean() - half, d.mean() + half)
        assert (test.difference, test.low, test.high) == pytest.approx(ends, rel=1e-9)
        assert test.n == 20
    assert [t.p_holm for t in tests] == pytest.approx(holm([t.p for t in tests]))


def test_holm_by_hand():
    # sorted .01 .02 .03 .04, times 4 3 2 1, made monotone
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.7, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([float("nan"), 0.02, 0.01])
    assert np.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.02, 0.02])


def test_bad_fits_are_left_out_of_the_pair():
    a = [edge_fit(w) for w in (0.5, 0.6, 0.7, 0.8)]
    b = [edge_fit(0.9), edge_fit(0.7, status="centre outside"), edge_fit(0.9), edge_fit(1.2)]
    (test,) = compare({"a": a, "b": b})
    x, y = np.log([0.5, 0.7, 0.8]), np.log([0.9, 0.9, 1.2])
    assert test.n == 3
    assert test.t == pytest.approx(stats.ttest_rel(x, y).statistic, rel=1e-9)
    (same,) = compare({"a": a, "b": a})
    assert (same.n, same.difference) == (4, 0.0)
    assert np.isnan(same.p)
    (none,) = compare({"a": a[:1], "b": b[:1]})
    assert none.n == 1
    assert np.isnan(none.p_holm)
    with pytest.raises(ValueError, match="fits must be of the same profiles"):
        compare({"a": a, "b": b[:2]})


def test_a_profile_without_a_value_is_dropped_for_all_methods():
    labels, values, _ = straight(33.0)
    places = place_profiles(labels, 1, 2, 6, 8.0, (1.0, 1.0), rng())
    holed = values.copy()
    holed[tuple(np.rint(places[2].centre).astype(int))] = np.nan
    found = measure_sharpness({"a": values, "b": holed, "up": 2 - values}, places, rising=True)
    assert found.profiles == places[:2] + places[3:]
    assert found.dropped == 1
    assert {len(v) for v in found.fits.values()} == {len(v) for v in found.values.values()} == {5}
    assert found.left_out("a") == {}
    assert found.left_out("up") == {"wrong contrast": 5}
    assert found.describe() == (
        "5 profiles in every map, 1 more dropped for all methods because a map has no value there; "
        "up: left out 5 wrong contrast"
    )


# real anatomy


def anatomy_meets_its_conditions(labels, inside, outside, length):
    found = place_profiles(labels, inside, outside, 20, length, (1.0, 1.0), rng(1))
    assert len(found) == 20
    centres = np.array([p.centre for p in found])
    gaps = np.sqrt(((centres[:, None] - centres) ** 2).sum(-1))
    assert gaps[~np.eye(20, dtype=bool)].min() >= length
    for p in found:
        on_line = labels[tuple(np.rint(p.coordinates).astype(int))]
        assert (on_line[p.positions <= -0.75 * p.voxel_mm] == inside).all()
        assert (on_line[p.positions >= 0.75 * p.voxel_mm] == outside).all()
        assert min(p.before, p.after) * p.step_mm >= 0.6 * length / 2
        # the distance is interpolated between voxels
        assert distance_to_others(labels, p, (inside, outside)) >= 1.5 - 0.1
        assert np.linalg.norm(p.direction) == pytest.approx(1, abs=1e-12)
    return found


def test_twenty_profiles_in_a_slice_of_brainweb(data_folder):
    import nibabel

    file = data_folder / "brainweb_labels" / "brainweb_normal_discrete_1mm.nii.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name} in the test data")
    labels = np.ascontiguousarray(np.asarray(nibabel.load(file).dataobj).astype(np.uint8).squeeze()[:, :, 100])
    found = anatomy_meets_its_conditions(labels, 3, 2, 6.0)
    # a map whose edges are those of its voxels, blurred: the widths follow the blur
    t1 = np.full(256, 1.0)
    t1[[1, 2, 3, 8]] = 3.5, 1.4, 0.85, 1.4
    maps = {str(sd): ndimage.gaussian_filter(t1[labels], sd) for sd in (0.8, 1.2)}
    measured = measure_sharpness(maps, found, rising=True)
    for sd in (0.8, 1.2):
        sound = [fit.width_mm for fit in measured.fits[str(sd)] if fit.ok]
        assert len(sound) >= 16
        # labels are voxels: a box of variance 1 / 12
        assert np.median(sound) == pytest.approx(2.6 * sqrt(sd**2 + 1 / 12), rel=0.15)
    (test,) = measured.compare()
    assert test.difference < 0
    assert test.p < 1e-4


def test_twenty_profiles_in_a_slice_of_mni():
    from phantoms.brains.mni import MNI

    assert MNI().load("test", 2).tissues == ("csf", "gm", "wm")
    volume = MNI().load("test", 2)
    csf, gm, wm = volume.volumes[0][:, :, :, 85].astype(float)
    labels = np.where(csf + gm + wm > 0, 1 + np.argmax([csf, gm, wm], axis=0), 0).astype(np.uint8)
    anatomy_meets_its_conditions(labels, 3, 2, 6.0)


# figures


def svg_of(uri):
    text = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()
    ElementTree.fromstring(text)
    return text


def test_figures_say_what_they_show():
    labels, values, _ = straight(33.0)
    places = place_profiles(labels, 1, 2, 7, 8.0, (1.0, 1.0), rng())
    maps = {"least-squares": values, "rim": ndimage.gaussian_filter(values, 1.0), "bad": 2 - values}
    found = measure_sharpness(maps, places, rising=True)
    on_map = svg_of(profiles_figure(np.where(labels > 0, values, np.nan), places, "T1", "s", 0.7, 1.5, (1.0, 1.0)))
    assert "T1 [ms]" in on_map
    assert all(f">{i}</text>" in on_map for i in range(1, 8))
    examples = svg_of(examples_figure(found, "T_1", "s"))
    assert examples.count("profile ") == 6
    assert "distance from the boundary [mm]" in examples
    assert "fit left out" in examples
    one = svg_of(examples_figure(found, "T_1", "s", [4]))
    assert "profile 5" in one
    for quantity, unit in (("log width", "[mm]"), ("slope", "[1/mm]"), ("steepness", "[ms/mm]")):
        drawn = svg_of(widths_figure(found, quantity))
        assert unit in drawn
        assert "n = 7" in drawn
        assert "no fit" in drawn
    assert profiles_figure(values, places, "T2", "s", 0.7, 1.5, (1.0, 1.0)) == profiles_figure(
        values, places, "T2", "s", 0.7, 1.5, (1.0, 1.0)
    )
    with pytest.raises(ValueError, match="values holds no finite value"):
        profiles_figure(np.full((9, 9), np.nan), places, "T1", "s", 0.7, 1.5, (1.0, 1.0))
    with pytest.raises(ValueError, match="which is empty"):
        examples_figure(found, "T_1", "s", [])


# studies


def scanned(maps, truth=None):
    """Profiles and repeats of a round boundary of w = 0.8 voxels; `maps` of the whole slice, or a noise."""
    y, x = np.meshgrid(*[np.arange(90) - 44.5] * 2, indexing="ij")
    distance = np.hypot(y, x) - 28.3
    labels, step = np.where(distance < 0, 1, 2).astype(np.uint8), 1 + 1 / (1 + np.exp(-distance / 0.8))
    noise = rng(6)
    made = {name: step + sd * noise.standard_normal((2, *step.shape)) for name, sd in maps.items()}
    mask = np.ones(step.shape, bool)
    flat = {name: values.reshape(2, -1) for name, values in made.items()}
    repeats = Repeats(0, 10.0, 0.065, flat, {"all": mask.ravel()}, mask, step.ravel() if truth else None, {})
    places = place([Labelled(labels, {"wm": 1, "gm": 2}, (1.0, 1.0))], ("wm", "gm"), 20, 8.0, 3)
    return places, repeats


def test_noise_along_profiles_is_that_of_the_voxels_and_warned_of_where_it_differs():
    places, repeats = scanned({"quiet": 0.03, "noisy": 0.14, "same": 0.14, "calm": 0.05})
    pairs = [("quiet", "noisy"), ("noisy", "same"), ("quiet", "calm")]
    (found,) = sharpness(places, [repeats], pairs, "quiet")
    # twenty profiles tell a noise to about a tenth; the share that samples hold depends on the length
    assert found.noise("quiet") == pytest.approx(0.03, rel=0.25)
    assert found.noise("noisy") == pytest.approx(0.14, rel=0.25)
    assert found.unlike == [("quiet", "noisy")]
    about = Retest(
        *("T1", "T_1", list(repeats.maps), (), "quiet", 2, [repeats], Found([]), [found], ("wm", "gm"), "", {})
    )
    *_, said = page_of_sharpness(about, repeats, found)
    assert "quiet / noisy and is above 0.1" in str(said)
    assert "calm" not in str(said)


@pytest.mark.parametrize("truth", [True, False])
def test_the_direction_of_a_step_is_that_of_the_truth(truth):
    """A reference of no value in a tissue, or that has the tissues the other way round, decides nothing on a twin."""
    places, repeats = scanned({"reference": 0.02, "other": 0.02}, truth)
    turned = repeats.maps["reference"].copy()
    turned[0] = 3 - turned[0]
    (found,) = sharpness(
        places, [replace(repeats, maps={**repeats.maps, "reference": turned})], [("reference", "other")], "reference"
    )
    lost = "reference" if truth else "other"
    assert found.together.left_out(lost) == {"wrong contrast": found.offered}
    assert not found.together.left_out("other" if truth else "reference")
    # labels that lie where no map has a value: either direction counts
    (at,) = places
    elsewhere = np.where(at.labels == at.inside, 7, at.labels).astype(np.uint8)
    (found,) = sharpness([replace(at, labels=elsewhere)], [repeats], [("reference", "other")], "reference")
    assert all(fit.ok for fits in found.fits.values() for fit in fits)
