"""The parametric livers: what they look like against published ranges, how they are painted, what is refused."""

from math import pi

import numpy as np
import pytest
from scipy import ndimage

import phantoms
from phantoms import BrainWeb
from phantoms.base import WithRegions, as_fractions
from phantoms.drawn.outlines import curve, polygon_distance
from phantoms.drawn.painting import Frame
from phantoms.liver import Liver, LiverVolumes
from phantoms.liver.numbers import NUMBERS
from phantoms.liver.plane import Plane
from phantoms.liver.raster import Tubes, near_polygon, tubes_region
from phantoms.liver.subject import draw_numbers, draw_subject
from qsim.distributions import Constant, Normal, Uniform
from qsim.errors import InputError

# coarse voxels: quick, and the same subjects
COARSE = {"matrix": (80, 80), "voxel_mm": (5.0, 5.0), "planes": 1, "slices": 1}
T = {name: i for i, name in enumerate(Liver().tissues)}
PARENCHYMA = [T["liver"], T["fibrotic_liver"], T["liver_fat"]]


@pytest.fixture(scope="module")
def cohort():
    """A small cohort, all of the body in the image: both splits."""
    spec = Liver(subjects=4, test_subjects=2, fibrosis_share=0.5, matrix=(160, 160), voxel_mm=(2.4, 2.4), planes=2)
    return spec, {split: spec.load(split, 2) for split in ("train", "test")}


@pytest.fixture(scope="module")
def volumes(cohort):
    """Fractions of all subjects, and their regions of interest."""
    _, splits = cohort
    loaded = [(v, roi) for split in splits.values() for v, roi in zip(split.volumes, split.rois, strict=True)]
    return [(as_fractions(v), roi) for v, roi in loaded]


def frame(n=60, h=1.3, middle=(0.4, -0.2)):
    axis = (np.arange(n) - (n - 1) / 2) * h
    return Frame(axis + middle[0], axis + middle[1], (h, h))


def whole(region, like):
    """A region on the whole frame."""
    full = np.zeros((len(like.y), len(like.x)))
    full[region.box] = region.share
    return full


def counted(inside, like, n):
    """Share of each voxel by counting n x n points."""
    offsets = ((np.arange(n) + 0.5) / n - 0.5) * like.voxel_mm[0]
    y, x = ((axis[:, None] + offsets).ravel() for axis in (like.y, like.x))
    points = inside(*np.meshgrid(y, x, indexing="ij"))
    return points.reshape(len(like.y), n, len(like.x), n).mean(axis=(1, 3))


def test_a_polygons_distance_near_its_edge_is_that_of_the_whole_polygon():
    points = np.array([[-20.0, 3.0], [-6.0, 21.0], [15.0, 17.0], [9.0, 2.0], [22.0, -16.0], [-11.0, -19.0]])
    vertices = curve(points)
    like = frame()
    near = near_polygon(like, vertices, 6.0)
    y, x = np.meshgrid(like.y[near.box[0]], like.x[near.box[1]], indexing="ij")
    expected = polygon_distance(vertices, y, x)
    # the same formulas in another order: rounding of squares of tens of mm
    np.testing.assert_allclose(near.distance, np.clip(expected, -6, 6), atol=1e-9)
    # outside the box nothing is nearer
    outside = np.ones((60, 60), dtype=bool)
    outside[near.box] = False
    all_y, all_x = np.meshgrid(like.y, like.x, indexing="ij")
    assert polygon_distance(vertices, all_y, all_x)[outside].min() >= 6.0 - like.width


def test_a_polygons_share_is_that_of_counted_points():
    vertices = curve(np.array([[-20.0, 3.0], [-6.0, 21.0], [15.0, 17.0], [22.0, -16.0], [-11.0, -19.0]]))
    like = frame(46, 1.3)
    share = whole(near_polygon(like, vertices).region(), like)
    expected = counted(lambda y, x: polygon_distance(vertices, y, x) < 0, like, 8)
    cut = (expected > 0) & (expected < 1)
    # an edge at 45 degrees is off by up to .06, a count of 8 x 8 by about .02
    assert np.abs(share - expected)[cut].mean() < 0.03
    assert np.abs(share - expected).mean() < 0.005


@pytest.mark.parametrize("lean", [0.0, 0.4, 1.2, 1.55])
def test_a_tube_cut_obliquely_is_the_ellipse_that_it_should_be(lean):
    # a straight tube of radius 4.1 through (.3, -.7, 2), leaning by an angle from the slice axis: r x r / cos(lean)
    r = 4.1
    along = np.array([0.0, np.sin(lean), np.cos(lean)])
    middle = np.array([0.3, -0.7, 2.0])
    like = frame(70, 1.1)
    tube = Tubes((middle - 300 * along)[None], (middle + 300 * along)[None], np.array([[r, r]]))
    share = whole(tubes_region(like, tube, 2.0), like)
    expected = counted(lambda y, x: (y - 0.3) ** 2 + ((x + 0.7) * np.cos(lean)) ** 2 < r**2, like, 6)
    assert np.abs(share - expected).mean() < 0.004
    if lean < 1.0:
        np.testing.assert_allclose(share.sum() * 1.1**2, pi * r**2 / np.cos(lean), rtol=0.02)


@pytest.mark.parametrize("width", [1.3, 2.5, 6.0])
def test_tubes_of_any_size_cover_their_area(width):
    # anywhere on the grid and in any direction: r x r / cosine, an ellipse
    rng = np.random.default_rng(5)
    axis = (np.arange(41) - 20) * width
    like = Frame(axis, axis, (width, width))
    for r, lean in ((0.6, 0.0), (0.6, 1.2), (1.1, 0.5), (2.0, 1.0), (4.0, 0.3)):
        area = []
        for _ in range(30):
            middle, turn = np.append(rng.uniform(-width, width, 2), 0.0), rng.uniform(0, pi)
            along = np.array([np.sin(lean) * np.sin(turn), np.sin(lean) * np.cos(turn), np.cos(lean)])
            tube = Tubes((middle - 200 * along)[None], (middle + 200 * along)[None], np.array([[r, r]]))
            area.append(tubes_region(like, tube, 0.0).share.sum() * width**2)
        # the mean over places; its error is that of 30 draws
        error = max(np.std(area) / np.sqrt(30), 0.01 * pi * r**2)
        assert abs(np.mean(area) - pi * r**2 / np.cos(lean)) < 4 * error


def test_a_tube_thinner_than_a_voxel_covers_its_share():
    like = Frame(np.arange(-10.0, 11.0, 5.0), np.arange(-10.0, 11.0, 5.0), (5.0, 5.0))
    upright = Tubes(np.array([[0.0, 0.0, -9.0]]), np.array([[0.0, 0.0, 9.0]]), np.array([[0.8, 0.8]]))
    flat = Tubes(np.array([[0.0, -50.0, 0.0]]), np.array([[0.0, 50.0, 0.0]]), np.array([[0.8, 0.8]]))
    # the middle voxel: a disc, and a band
    np.testing.assert_allclose(whole(tubes_region(like, upright, 0.0), like)[2, 2], pi * 0.8**2 / 25)
    # within a band the depth is taken as if the tube leaned by .05: half a per cent
    np.testing.assert_allclose(whole(tubes_region(like, flat, 0.0), like)[2, 1:4], 2 * 0.8 / 5, rtol=0.005)


def test_painted_shares_are_those_of_a_finer_grid():
    # 5 x 5 points per voxel of the same plane, as good as a count: only at edges are they neither 0 nor 1
    one = {"subjects": 2, "test_subjects": 0, "slices": 1, "planes": 1}
    coarse, _ = Liver(matrix=(120, 120), voxel_mm=(3.0, 3.0), **one).drawn(1)
    fine, _ = Liver(matrix=(600, 600), voxel_mm=(0.6, 0.6), **one).drawn(1)
    expected = fine[..., 0].reshape(len(T), 120, 5, 120, 5).mean(axis=(2, 4))
    error = np.abs(coarse[..., 0] - expected)
    assert error.mean() < 0.002
    mixed = (expected.max(axis=0) < 0.85) & (expected.sum(axis=0) > 0.05)
    # mean over the voxels that are cut by an edge, and the tissues in them
    assert error[:, mixed].mean() < 0.02


def test_areas_and_thicknesses_are_those_of_adults(volumes):
    pixel = 2.4**2
    liver, body, fat, spleen, aorta, canal = [], [], [], [], [], []
    for fractions, _ in volumes:
        area = fractions.sum(axis=(1, 2)) * pixel
        solid = fractions.sum(axis=0) > 0.5
        filled = np.stack([ndimage.binary_fill_holes(solid[..., k]) for k in range(3)], axis=-1)
        body += list(filled.sum(axis=(0, 1)) * pixel)
        liver += list(area[[*PARENCHYMA, T["liver_vessel"], T["lesion"]]].sum(axis=0))
        spleen += list(area[T["spleen"]])
        canal += list(area[T["csf"]])
        aorta += list(area[T["aorta"]])
        # fat under the skin at the patient's right side, along the row of the body's widest part
        row = int(filled[..., 1].sum(axis=1).argmax())
        line = fractions[:, row, :, 1]
        first = int(np.argmax(line[T["muscle"]] > 0.5))
        fat.append(2.4 * line[T["fat"], :first].sum())
    # a body of 280 to 350 x 200 to 270 mm; a liver of a quarter of it at the hilum, less towards the lower end
    assert 0.045e6 < np.mean(body) < 0.075e6
    shares = np.array(liver) / np.array(body)
    assert 0.2 < shares.mean() < 0.35
    assert 0.1 < shares.min() < shares.max() < 0.45
    assert 8 < min(fat) <= max(fat) < 40
    assert np.std(fat) > 1
    assert max(spleen) < 6000
    assert np.mean(spleen) > 800
    # canal: an ellipse of about 15 x 20 mm
    np.testing.assert_allclose(np.mean(canal), pi * 7.5 * 10, rtol=0.2)
    # aorta of 20 mm and vena cava of 17 x 24 mm
    np.testing.assert_allclose(np.mean(aorta), pi * (10**2 + 8.5 * 12), rtol=0.2)


def test_liver_lies_on_the_low_side_and_stomach_and_spleen_on_the_high(volumes):
    x = (np.arange(160) - 79.5) * 2.4
    y = x[:, None]

    def middle(share):
        return np.array([(share * y).sum(), (share * x).sum()]) / share.sum()

    for fractions, _ in volumes:
        slab = fractions[..., 1]
        assert middle(slab[PARENCHYMA].sum(axis=0))[1] < -20
        assert middle(slab[T["stomach_fluid"]])[1] > 20
        assert middle(slab[T["spleen"]])[1] > middle(slab[T["stomach"]])[1]
        # the spine is behind, its canal behind the vertebral body
        assert middle(slab[T["csf"]])[0] > middle(slab[T["aorta"]])[0] + 20


def test_shares_add_up_to_one_in_the_body_and_to_no_more_anywhere(volumes):
    for fractions, _ in volumes:
        total = fractions.sum(axis=0)
        assert total.max() <= 1
        assert fractions.min() >= 0
        # what is inside the liver is tissue
        # save where the air in the stomach lies under it
        assert np.mean(total[fractions[PARENCHYMA].sum(axis=0) > 0.6] > 0.9) > 0.99
        assert total[0].max() == 0


def test_one_liver_is_fibrotic_or_not_and_holds_its_share_of_fat(cohort):
    spec, splits = cohort
    assert len(spec.fibrotic) == 2
    assert {i for split in splits.values() for i in split.fibrotic} == set(spec.fibrotic)
    for loaded in splits.values():
        for subject, volume in zip(loaded.ids, loaded.volumes, strict=True):
            here, other = ("fibrotic_liver", "liver") if subject in spec.fibrotic else ("liver", "fibrotic_liver")
            shares = as_fractions(volume)
            assert shares[T[other]].max() == 0
            fat = spec.fat(subject)
            assert fat >= 0.05
            # steps of 1/128
            np.testing.assert_allclose(shares[T[here]].max(), 1 - fat, atol=1 / 256 + 1e-6)
            inside = shares[T["liver_fat"]][loaded.rois[loaded.ids.index(subject)]]
            np.testing.assert_allclose(inside, fat, atol=1 / 256 + 1e-6)


def test_default_fat_leaves_most_livers_pure_enough():
    spec = Liver()
    drawn = np.array([spec.fat(i) for i in range(700)])
    # half-normal from .05 with scale .05: P(below .10) = .683, P(below .15) = .954; binomial error of 700 below .018
    assert abs(np.mean(drawn < 0.10) - 0.683) < 0.05
    assert abs(np.mean(drawn < 0.15) - 0.954) < 0.025
    assert drawn.max() <= 0.25


@pytest.mark.parametrize(("subjects", "test", "share"), [(52, 13, 0.2), (10, 5, 0.5), (7, 0, 0.3), (5, 5, 1.0)])
def test_the_share_of_fibrosis_is_exact_and_spread(subjects, test, share):
    spec = Liver(subjects=subjects, test_subjects=test, fibrosis_share=share, seed=3)
    assert len(spec.fibrotic) == round(share * subjects)
    assert len(set(spec.fibrotic)) == len(spec.fibrotic)
    in_test = sum(i >= subjects - test for i in spec.fibrotic)
    assert abs(in_test - share * test) <= 1
    assert Liver(subjects=subjects, test_subjects=test, fibrosis_share=0.0).fibrotic == ()


def test_different_seeds_choose_different_subjects():
    assert Liver(seed=1).fibrotic != Liver(seed=2).fibrotic


def test_a_subject_is_the_same_in_any_cohort_and_any_stack():
    few = Liver(subjects=8, test_subjects=1, fibrosis_share=0.0, lesions=(0, 0), **COARSE)
    many = Liver(subjects=52, fibrosis_share=0.0, lesions=(0, 0), **COARSE)
    seven, roi = few.drawn(7)
    np.testing.assert_array_equal(seven, many.drawn(7)[0])
    # three slices have the one in their middle
    more, more_roi = Liver(
        subjects=8, test_subjects=1, fibrosis_share=0.0, lesions=(0, 0), **(COARSE | {"slices": 3})
    ).drawn(7)
    np.testing.assert_array_equal(more[..., 1:2], seven)
    np.testing.assert_array_equal(more_roi[..., 1:2], roi)
    assert np.abs(seven - few.drawn(6)[0]).max() > 0.5
    other = Liver(subjects=8, test_subjects=1, fibrosis_share=0.0, seed=1, **COARSE)
    assert np.abs(seven - other.drawn(7)[0]).max() > 0.5


def test_without_variation_all_anatomies_are_equal():
    spec = Liver(variation=0.0, fibrosis_share=0.0, lesions=(0, 0), fat_fraction=Constant(value=0.08), **COARSE)
    np.testing.assert_array_equal(spec.drawn(0)[0], spec.drawn(5)[0])
    assert draw_numbers(0, 3, 0.0) == {name: number.mean for name, number in NUMBERS.items()}


def test_numbers_vary_as_the_table_says():
    drawn = [draw_numbers(9, i, 1.0) for i in range(100)]
    for name in ("fat.mean", "aorta.radius", "spleen.z"):
        values = np.array([each[name] for each in drawn])
        number = NUMBERS[name]
        # cut at two standard deviations: sd .88; error of the mean sd / sqrt(100)
        assert abs(values.mean() - number.mean) < 4 * number.sd / 10
        assert abs(values.std() / number.sd - 0.88) < 0.2
        assert np.abs(values - number.mean).max() <= 2 * number.sd


def test_lesions_lie_in_the_liver_and_are_as_large_as_asked():
    size = {"matrix": (96, 96), "voxel_mm": (4.0, 4.0), "planes": 1, "subjects": 4, "test_subjects": 0}
    spec = Liver(lesions=(2, 2), lesion_diameter_mm=(18.0, 22.0), **size)
    empty = Liver(lesions=(0, 0), **size)
    for subject in range(1):
        lesions = spec.lesions_of(subject)
        assert len(lesions) == 2
        for lesion in lesions:
            assert 18 <= 2 * np.prod(lesion.half_mm) ** (1 / 3) <= 22
        shares, roi = spec.drawn(subject)
        bare, _ = empty.drawn(subject)
        filled = shares[T["lesion"]]
        assert filled.max() > 0.99
        # where a lesion is, the liver or what runs in it was before
        before = bare[[*PARENCHYMA, T["liver_vessel"], T["bile"], T["fat"], T["kidney"], T["aorta"]]].sum(axis=0)
        assert (before >= filled - 1e-5).all()
        inside = bare[[*PARENCHYMA, T["liver_vessel"], T["bile"]]].sum(axis=0)
        assert (inside * filled).sum() > 0.85 * filled.sum()
        assert not (roi & (filled > 0)).any()


def test_numbers_of_lesions_are_drawn():
    counts = [len(Liver(**COARSE).lesions_of(i)) for i in range(12)]
    assert set(counts) == {0, 1, 2}


def test_region_of_interest_is_pure_right_lobe(cohort, volumes):
    spec, _ = cohort
    for subject, (fractions, roi) in enumerate(volumes):
        # every slice has one
        assert roi.sum(axis=(0, 1)).min() > 40
        cast = draw_subject(spec.seed, subject, 1.0)
        x = (np.arange(160) - 79.5) * 2.4
        lobe = Plane(cast, 0.0).right_lobe(x, x)
        pure = fractions[PARENCHYMA].sum(axis=0) > 1 - 1 / 64
        for k in range(3):
            assert lobe[roi[..., k]].all()
            # 3 mm from the nearest voxel that is not pure: from middle to middle half a voxel more
            away = ndimage.distance_transform_edt(pure[..., k], sampling=2.4)
            assert away[roi[..., k]].min() >= 3.0


def test_roi_follows_the_crop(cohort):
    _, splits = cohort
    loaded = splits["test"]
    assert isinstance(loaded, LiverVolumes)
    rng = np.random.Generator(np.random.Philox(3))
    crop = loaded.crop((40, 50), rng)
    roi = loaded.roi(crop.subject, crop.origin, (40, 50))
    assert roi.shape == (40, 50)
    y, x, z = crop.origin
    np.testing.assert_array_equal(roi, loaded.rois[crop.subject - 2][y : y + 40, x : x + 50, z])
    assert loaded.roi(3, (0, 0, 0), (160, 160, 3)).sum() == loaded.rois[1].sum()
    coarse = Liver(subjects=2, test_subjects=1, **COARSE)
    along, across = (coarse.load("test", axis) for axis in (2, 0))
    np.testing.assert_array_equal(across.roi(1, (40, 3, 0), (50, 1)), along.rois[0][40, 3:53])
    for subject, origin, patch, message in (
        (0, (0, 0, 0), (9, 9), "subject: 0"),
        (3, (155, 0, 0), (9, 9), "patch: "),
        (3, (0, 0, 0), (9,), "patch: "),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            loaded.roi(subject, origin, patch)


def test_regions_are_the_region_of_interest(cohort):
    loaded = cohort[1]["test"]
    assert isinstance(loaded, WithRegions)
    assert loaded.region_names == ("parenchyma of the right lobe",)
    found = loaded.regions(3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, loaded.rois[1])


def test_an_empty_region_of_interest_is_refused():
    size = {"matrix": (30, 30), "voxel_mm": (13.0, 13.0), "slices": 1, "planes": 1}
    loaded = Liver(subjects=1, test_subjects=0, **size).load("train", 2)
    # images can be made of it all the same
    for ask in (lambda: loaded.regions(0), lambda: loaded.roi(0, (0, 0, 0), (30, 30))):
        with pytest.raises(InputError, match=r"^phantom\.voxel_mm: subject 0 has no voxel .* smaller voxels"):
            ask()


def test_lesions_without_room_are_made_smaller_or_left_out(monkeypatch):
    drawn = {"subjects": 6, "test_subjects": 0, "lesions": (2, 2)}
    wide = Liver(lesion_diameter_mm=(10.0, 50.0), **drawn)
    found = [lesion for i in range(6) for lesion in wide.lesions_of(i)]
    assert len(found) == 12
    # half axes are stretched by up to exp(.15) times what keeps their mean; 4 mm stay free around
    for i in range(6):
        cast = draw_subject(0, i, 1.0)
        for lesion in wide.lesions_of(i):
            y, x, z = lesion.middle_mm
            assert 5 <= np.prod(lesion.half_mm) ** (1 / 3) <= 25
            depth = -polygon_distance(Plane(cast, z).liver(), np.array([y]), np.array([x]))[0]
            assert depth >= max(lesion.half_mm) + 4 - 1e-9
    # one place is tried: not each has room for the least
    monkeypatch.setattr("phantoms.liver.lesions._TRIES", 1)
    tried = Liver(lesion_diameter_mm=(30.0, 50.0), **drawn | COARSE)
    left_out = sum(tried.lesions_left_out(i) for i in range(6))
    assert 0 < left_out < 12
    assert sum(len(tried.lesions_of(i)) for i in range(6)) == 12 - left_out
    assert tried.load("train", 2).description.endswith(f"; {left_out} lesions found no room and were left out")


def test_lesions_lie_within_the_stack():
    for slices, within in ((1, 3.5), (2, 8.5), (3, 10.0)):
        spec = Liver(slices=slices, lesions=(1, 2))
        assert spec.lesions_within_mm == within
        for i in range(4):
            level = draw_subject(0, i, 1.0).numbers["place.z"]
            assert all(abs(lesion.middle_mm[2] - level) <= within for lesion in spec.lesions_of(i))


def test_vessels_fit_from_slice_to_slice():
    # thin slices without gaps: what is vessel in one touches vessel in the next, save the ends of the branches
    spec = Liver(
        subjects=2, test_subjects=0, slices=9, slice_thickness_mm=1.0, gap_mm=0.0, planes=1, lesions=(0, 0),
        matrix=(107, 107), voxel_mm=(3.0, 3.0),
    )  # fmt: skip
    shares, _ = spec.drawn(0)
    vessel = shares[T["liver_vessel"]] > 0.5
    grown = ndimage.binary_dilation(vessel, np.ones((3, 3, 1)))
    joined = (vessel[..., 1:] & grown[..., :-1]).sum() / vessel[..., 1:].sum()
    assert joined > 0.85
    # a tree, not a cloud: the largest connected part holds most of it
    labels, _ = ndimage.label(vessel, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    assert sizes.max() > 0.35 * sizes.sum()


def test_splits_are_disjoint_and_in_order(cohort):
    _, splits = cohort
    assert splits["train"].ids == tuple(range(2))
    assert splits["test"].ids == (2, 3)
    assert "train 0 to 1, test 2 to 3" in splits["train"].description
    assert splits["train"].spacing_mm == (2.4, 2.4, 10.0)


def test_the_affine_says_where_the_patient_is(cohort):
    spec, splits = cohort
    affine = splits["train"].affine
    middle = np.array([79.5, 79.5, 1.0, 1.0])
    np.testing.assert_allclose(affine @ middle, [0, 0, 0, 1], atol=1e-12)
    # index 0 of x is the patient's right, of y the front, of the slices the feet (world: right, front, head)
    assert (affine @ [79.5, 0, 1, 1])[0] > 0
    assert (affine @ [0, 79.5, 1, 1])[1] > 0
    assert (affine @ [79.5, 79.5, 0, 1])[2] == -10
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spec.spacing_mm)


def test_it_is_loaded_once_and_found_by_its_name():
    spec = Liver(subjects=2, test_subjects=1, **COARSE)
    assert spec.load("train", 2) is Liver(subjects=2, test_subjects=1, **COARSE).load("train", 2)
    assert phantoms.Liver is Liver
    assert Liver in phantoms.ANATOMIES


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match=r"^phantom\.test_subjects"):
        Liver(subjects=2, test_subjects=0, **COARSE).load("test", 2)
    with pytest.raises(InputError, match=r"^slice_axis"):
        Liver(subjects=2, test_subjects=1, **COARSE).load("test", 3)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("subjects", 0),
        ("test_subjects", 53),
        ("seed", -1),
        ("slices", 0),
        ("planes", 0),
        ("matrix", (0, 4)),
        ("voxel_mm", (1.5, 0.0)),
        ("slice_thickness_mm", float("nan")),
        ("gap_mm", -1.0),
        ("fibrosis_share", 1.1),
        ("lesions", (2, 1)),
        ("lesions", (-1, 1)),
        ("lesion_diameter_mm", (20.0, 10.0)),
        ("lesion_diameter_mm", (10.0, 90.0)),
        ("fat_fraction", Normal(mean=0.1, sd=0.05)),
        ("fat_fraction", Uniform(low=0.1, high=1.0)),
        ("variation", 2.0),
    ],
)
def test_what_cannot_be_is_refused(field, wrong):
    with pytest.raises(ValueError, match=f"^{field}"):
        Liver(**{field: wrong})


@pytest.mark.parametrize(
    ("file", "scheme", "organs"),
    [
        ("example_seg_mr", "totalseg-mr", {"liver": ["liver"], "spleen": ["spleen"], "aorta": ["aorta", "inferior"]}),
        ("example_seg", "totalseg-ct", {"liver": ["liver"], "kidney": ["kidney"], "marrow": ["vertebrae", "rib_"]}),
        ("example_seg_fast_body_seg", "totalseg-ct", {"bile": ["gallbladder"], "csf": ["spinal"]}),
    ],
)
def test_organs_of_label_models_are_those_of_their_list(data_folder, file, scheme, organs):
    folder = data_folder / "abdomen_labels_totalseg"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {data_folder}")
    loaded = BrainWeb(path=str(folder / f"{file}.nii.gz"), labels=scheme, gap=1)
    volume = as_fractions(loaded.load("train", 2).volumes[0])
    rows = [line.split(",") for line in (folder / f"{file}.labels.csv").read_text().split()[1:]]
    for tissue, starts in organs.items():
        listed = sum(int(count) for _, name, count in rows if any(name.startswith(start) for start in starts))
        assert volume[loaded.tissues.index(tissue)].sum() == listed
    assert set(loaded.tissues) <= set(T)
