"""Structures put into phantoms: where they may lie, what they take, and what train and test share."""

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from generators import GeneratorConfig, make_samples
from phantoms import MNI, BrainWeb, Geometry, WithStructures
from phantoms.base import as_fractions
from phantoms.shapes.geometry import Ball, Disc, Rectangle
from phantoms.shapes.structures import Line, Point, Square, Tumour
from qsim.errors import InputError

BALL = Geometry(
    size=(40, 44, 48),
    spacing_mm=(1.0, 1.0, 1.5),
    shapes=(Ball(tissue="gm", radius_mm=19.0), Ball(tissue="wm", radius_mm=14.0)),
    subjects=3,
    test_subjects=1,
    jitter_mm=1.3,
)
DISC = Geometry(
    size=(50, 41),
    spacing_mm=(1.0, 1.2),
    shapes=(Disc(tissue="gm", radius_mm=22.0), Rectangle(tissue="wm", extent_mm=(21.0, 23.0))),
    subjects=3,
    test_subjects=1,
    jitter_mm=1.0,
)
EVERY = (
    Tumour(tissue="lesion", within=("gm", "wm"), diameter_mm=(3.0, 4.0)),
    Square(tissue="bright", within=("wm",), extent=(5, 4)),
    Line(tissue="lesion", within=("wm",), count=2),
    Point(tissue="csf", count=3),
)


def labels(tmp_path, block=1):
    """A ball of gm in wm, as a label model of one file, whose fractions are stored as whole steps."""
    grid = np.indices((46, 40, 60)) - np.array([23, 20, 30])[:, None, None, None]
    r = np.sqrt((grid**2).sum(axis=0))
    file = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.select([r < 12, r < 19], [2, 3], 0).astype(np.uint8), np.eye(4)), file)
    return BrainWeb(path=str(file), block=block, gap=2)


@pytest.mark.parametrize("per", ["subject", "slice"])
@pytest.mark.parametrize("make", [lambda _: BALL, lambda _: DISC, labels, lambda path: labels(path, 3)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_structures_take_only_what_they_may_and_all_else_stays(tmp_path, make, per, split):
    anatomy = make(tmp_path)
    structures = EVERY
    if getattr(anatomy, "block", 1) == 3:
        # voxels of 3 mm
        structures = (EVERY[0], Square(tissue="bright", within=("wm",), extent=(2, 1)), EVERY[3])
    spec = WithStructures(phantom=anatomy, structures=structures, per=per, apart=1, seed=4)
    plain, filled = anatomy.load(split, 2), spec.load(split, 2)
    n = len(plain.tissues)
    assert filled.tissues[:n] == plain.tissues
    assert set(filled.tissues[n:]) == {s.tissue for s in structures} - set(plain.tissues)
    assert filled.description.startswith(plain.description)
    for i, subject in enumerate(plain.ids):
        before, after = as_fractions(plain.volumes[i]).astype(float), as_fractions(filled.volumes[i]).astype(float)
        assert after.min() >= 0
        assert after.sum(axis=0).max() <= 1
        # what the structures took is what the tissues lost; float32 is rounded, steps are not
        tolerance = 1e-6 if plain.volumes[i].dtype == np.float32 else 0
        np.testing.assert_allclose(after.sum(axis=0), before.sum(axis=0), rtol=0, atol=tolerance)
        expected = np.zeros_like(after)
        for each in (p for p in filled.placed if p.subject == subject):
            box = tuple(slice(a, a + m) for a, m in zip(each.origin, each.share.shape, strict=True))
            expected[(filled.tissues.index(each.tissue), *box)] += each.share
        difference = after - np.concatenate([before, np.zeros((len(after) - n, *after.shape[1:]))])
        made_of = sorted({filled.tissues.index(s.tissue) for s in structures})
        gained = difference[made_of]
        if "csf" not in plain.tissues:
            np.testing.assert_allclose(gained, expected[made_of], rtol=0, atol=tolerance)
        # the square lies in wm and takes no other tissue
        bright = filled.tissues.index("bright")
        lost = -difference[list(filled.tissues).index("wm")]
        assert (after[bright] <= before[filled.tissues.index("wm")] + tolerance).all()
        assert (lost[after[bright] > 0] >= after[bright][after[bright] > 0] - tolerance).all()


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("per", ["subject", "slice"])
def test_structures_of_one_subject_stay_in_their_slab(tmp_path, slice_axis, per):
    spec = WithStructures(phantom=labels(tmp_path), structures=EVERY, per=per, apart=1)
    touched = {}
    for split in ("train", "test"):
        phantom = spec.load(split, slice_axis)
        slabs = phantom.slabs[0]
        touched[split] = set()
        for each in phantom.placed:
            first, last = each.origin[slice_axis], each.origin[slice_axis] + each.share.shape[slice_axis]
            assert any(start <= first and last <= stop for start, stop in slabs)
            touched[split] |= set(range(first, last))
        if per == "slice":
            assert all(each.share.shape[slice_axis] == 1 for each in phantom.placed)
    assert not touched["train"] & touched["test"]


def test_same_seed_same_places_whatever_else_is_read():
    spec = WithStructures(phantom=BALL, structures=EVERY)
    first, again = spec.load("train", 2), spec.load("train", 2)
    assert [(p.structure, p.subject, p.origin) for p in first.placed] == [
        (p.structure, p.subject, p.origin) for p in again.placed
    ]
    for a, b in zip(first.volumes, again.volumes, strict=True):
        np.testing.assert_array_equal(a, b)
    # subjects differ, and so do seeds
    origins = [[p.origin for p in first.placed if p.subject == subject] for subject in first.ids]
    assert origins[0] != origins[1]
    other = WithStructures(phantom=BALL, structures=EVERY, seed=1).load("train", 2)
    assert [p.origin for p in other.placed] != [p.origin for p in first.placed]
    # the spec of the anatomy is left as it was
    assert "lesion" not in BALL.load("train", 2).tissues


def test_lines_and_points_are_those_of_the_paper():
    structures = (
        Point(tissue="hypo", within=("gm",), count=4),
        Line(tissue="vertical", within=("wm",), axis=0, count=2),
        Line(tissue="horizontal", within=("wm",), axis=1, count=2),
    )
    phantom = WithStructures(phantom=DISC, structures=structures, apart=3).load("test", 2)
    volume = as_fractions(phantom.volumes[0])
    for name, extent, count in (("hypo", (1, 1), 4), ("vertical", (6, 1), 2), ("horizontal", (1, 6), 2)):
        components, n = ndimage.label(volume[phantom.tissues.index(name)] > 0.5, np.ones((3, 3)))
        assert n == count
        for box in ndimage.find_objects(components):
            assert tuple(s.stop - s.start for s in box) == extent
    # boxes are at least `apart` free voxels from each other
    assert ndimage.label(ndimage.binary_dilation(volume[2:].sum(axis=0) > 0.5, np.ones((3, 3)), 1), np.ones((3, 3)))[
        1
    ] == len(phantom.placed)


def test_labels_of_a_crop_are_those_of_the_volume(tmp_path):
    spec = WithStructures(phantom=labels(tmp_path), structures=EVERY[:3], per="slice", apart=2)
    phantom = spec.load("test", 1)
    rng = np.random.Generator(np.random.Philox(3))
    seen = 0
    for _ in range(40):
        crop = phantom.crop((17, 21), rng)
        found = phantom.structure_labels(crop.subject, crop.origin, (17, 21))
        assert found.shape == (17, 21)
        lesion, bright = (crop.fractions[phantom.tissues.index(name)] for name in ("lesion", "bright"))
        np.testing.assert_array_equal(np.isin(found, (1, 3)), lesion >= 0.5)
        np.testing.assert_array_equal(found == 2, bright >= 0.5)
        seen += int((found > 0).sum())
    assert seen > 100
    block = phantom.crop((5, 4, 6), rng)
    assert phantom.structure_labels(block.subject, block.origin, (5, 4, 6)).shape == (5, 4, 6)


def test_places_are_uniform():
    # 3 x 3 blocks in a row of tissue 3 high: 12 places along it
    row = Geometry(
        size=(3, 14),
        spacing_mm=(1.0, 1.0),
        shapes=(Rectangle(tissue="wm", extent_mm=(3.0, 14.0)),),
        subjects=2,
        test_subjects=1,
        jitter_mm=1e-9,
    )
    counts = np.zeros(12)
    for seed in range(600):
        spec = WithStructures(phantom=row, structures=(Square(tissue="x", extent=(3, 3)),), seed=seed)
        ((y, x),) = (each.origin for each in spec.load("test", 2).placed)
        assert y == 0
        counts[x] += 1
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_tumour_without_unevenness_has_the_volume_of_its_ball():
    # pi / 6 d^3, whatever its axes; counted on 64 points per voxel
    rng = np.random.Generator(np.random.Philox(0))
    ball = Tumour(tissue="x", diameter_mm=(14.0, 14.0), irregularity=0.0, elongation=1.8)
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.0, 2.5)):
        volumes = [ball.draw(rng, spacing, (0, 1, 2)).sum(dtype=float) * np.prod(spacing) for _ in range(5)]
        np.testing.assert_allclose(volumes, np.pi / 6 * 14**3, rtol=0.01)
    area = ball.draw(rng, (1.0, 0.5, 0.8), (0, 2)).sum(dtype=float) * 0.8
    assert area == pytest.approx(np.pi / 4 * 14**2, rel=0.02)
    # flat across the slice axis; its border is fuzzy
    coverage = Tumour(tissue="x").draw(rng, (1.0, 1.0, 1.0), (0, 2))
    assert coverage.shape[1] == 1
    assert ((coverage > 0) & (coverage < 1)).any()
    # smaller than a voxel: it still covers some
    tiny = Tumour(tissue="x", diameter_mm=(0.01, 0.01)).draw(rng, (1.0, 1.0, 1.0), (0, 1, 2))
    assert tiny.sum() > 0


def test_an_uneven_tumour_is_one_piece_and_departs_no_further_than_said():
    rng = np.random.Generator(np.random.Philox(1))
    uneven = Tumour(tissue="x", diameter_mm=(20.0, 20.0), irregularity=0.3, elongation=1.0)
    shapes = []
    for _ in range(5):
        coverage = uneven.draw(rng, (1.0, 1.0, 1.0), (0, 1, 2))
        assert ndimage.label(coverage > 0, np.ones((3, 3, 3)))[1] == 1
        # a ball of radius 13 holds it: 26 mm, and one voxel on either side for its place on the grid
        assert max(coverage.shape) <= 28
        assert np.pi / 6 * 14**3 < coverage.sum(dtype=float) < np.pi / 6 * 26**3
        shapes.append(coverage.sum(dtype=float))
    assert np.std(shapes) > 10


def test_no_room_is_said():
    with pytest.raises(InputError, match=r"^phantom\.structures\[1\]: subject 0 has no room in wm for 1 of 1 x square"):
        WithStructures(
            phantom=BALL, structures=(Point(tissue="x"), Square(tissue="y", within=("wm",), extent=(30, 30)))
        ).load("train", 2)
    with pytest.raises(InputError, match=r"^phantom\.structures\[0\]: subject 0 has no room in wm for 1 of 1 x tumour"):
        WithStructures(phantom=BALL, structures=(Tumour(tissue="x", within=("wm",), diameter_mm=(35.0, 35.0)),)).load(
            "train", 2
        )
    with pytest.raises(InputError, match=r"^phantom\.structures\[0\]: any slice has no room"):
        WithStructures(phantom=BALL, structures=(Square(tissue="x", extent=(39, 39)),), per="slice").load("train", 2)
    # a whole block is found wherever there is one: 500 points a voxel apart fill a disc
    many = WithStructures(phantom=DISC, structures=(Line(tissue="x", length=1, count=200),), apart=0).load("test", 2)
    assert len(many.placed) == 200
    # slices at the poles have no room, and are counted
    some = WithStructures(phantom=BALL, structures=(Square(tissue="x", extent=(9, 9)),), per="slice").load("test", 2)
    (left,) = (
        int(word.split()[-1])
        for word in some.description.split(" found no room")[:1]
        for word in [word.replace("(", " ")]
    )
    assert left == BALL.size[2] - len(some.placed) > 0


@pytest.mark.parametrize(
    ("structure", "fields", "message"),
    [
        (
            Point(tissue="x", within=("liver",)),
            {},
            r"^phantom\.structures\[0\]\.within: the anatomy has no liver; it has gm, wm",
        ),
        (
            Line(tissue="x", axis=2),
            {"phantom": DISC},
            r"^phantom\.structures\[0\]\.axis: got 2, the anatomy has 2 axes",
        ),
        (Line(tissue="x", axis=2), {"per": "slice"}, r"^phantom\.structures\[0\]\.axis: 2 lies across the slices"),
        (Square(tissue="x", extent=(2, 2, 2)), {"per": "slice"}, r"^phantom\.structures\[0\]\.extent: three numbers"),
        (Square(tissue="x", extent=(2, 2, 2)), {"phantom": DISC}, r"^phantom\.structures\[0\]\.extent: three numbers"),
    ],
)
def test_what_the_anatomy_cannot_hold_is_refused(structure, fields, message):
    with pytest.raises(InputError, match=message):
        WithStructures(**({"phantom": BALL, "structures": (structure,)} | fields)).load("test", 2)


def test_lines_across_the_slices_and_boxes_in_volumes():
    structures = (Line(tissue="x", axis=2, length=5, width=2), Square(tissue="y", extent=(2, 3, 4)))
    phantom = WithStructures(phantom=BALL, structures=structures).load("test", 2)
    assert [each.share.shape for each in phantom.placed] == [(2, 1, 5), (2, 3, 4)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Point(tissue=""), "tissue"),
        (lambda: Point(tissue="gm", within=("gm",)), "within"),
        (lambda: Point(tissue="x", count=0), "count"),
        (lambda: Line(tissue="x", length=0), "length"),
        (lambda: Line(tissue="x", width=0), "width"),
        (lambda: Square(tissue="x", extent=(1, 0)), "extent"),
        (lambda: Tumour(tissue="x", diameter_mm=(2.0, 1.0)), "diameter_mm"),
        (lambda: Tumour(tissue="x", elongation=0.5), "elongation"),
        (lambda: Tumour(tissue="x", irregularity=1.0), "irregularity"),
        (lambda: WithStructures(phantom=BALL, structures=()), "structures"),
        (lambda: WithStructures(phantom=BALL, structures=EVERY, apart=-1), "apart"),
        (lambda: WithStructures(phantom=BALL, structures=EVERY, seed=-1), "seed"),
    ],
)
def test_refusals_name_the_field(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


CONFIG = {
    "seed": 3,
    "samples": 6,
    "patch": [40, 40],
    "phantom": {
        "kind": "with_structures",
        "phantom": {"kind": "mni"},
        "per": "slice",
        "structures": [{"shape": "square", "tissue": "marrow", "within": ["gm", "wm"], "extent": [6, 6], "count": 9}],
    },
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": [0.1, 0.4, 0.9]},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.03}},
    "partial_volume": False,
}


def test_a_data_set_with_structures_holds_them_as_labels():
    config = GeneratorConfig.model_validate(CONFIG)
    samples = make_samples(config, range(6))
    phantom = config.phantom_spec.load("train", 2)
    assert phantom.tissues == ("csf", "gm", "wm", "marrow")
    assert isinstance(phantom.volumes[0][0, 0, 0, 0], np.uint16)
    found = 0
    for label, subject, origin in zip(samples.labels, samples.subject, samples.origin, strict=True):
        mask = phantom.structure_labels(int(subject), tuple(int(o) for o in origin), (40, 40))
        torch.testing.assert_close(label == 4, torch.from_numpy(mask == 1))
        found += int(mask.sum())
    assert found > 100


def test_a_tissue_that_the_table_lacks_is_named():
    (structure,) = CONFIG["phantom"]["structures"]
    phantom = CONFIG["phantom"] | {"structures": [structure | {"tissue": "metastasis"}]}
    config = GeneratorConfig.model_validate(CONFIG | {"phantom": phantom})
    with pytest.raises(InputError, match="tissues: the phantom holds metastasis, which the table"):
        make_samples(config, [0])


def test_mni_keeps_its_own_memory():
    # the cached volume of the anatomy is shared by train, test and every spec
    before = MNI().load("test", 2).volumes[0]
    assert not before.flags.writeable
    WithStructures(phantom=MNI(), structures=(Point(tissue="x"),)).load("test", 2)
    assert before is MNI().load("test", 2).volumes[0]


def test_a_tumour_wider_than_the_anatomy_is_refused_before_it_is_drawn() -> None:
    # its points alone would take minutes and gigabytes
    anatomy = Geometry(size=(30, 28, 26), spacing_mm=(2.0, 2.0, 2.0), shapes=(Ball(tissue="wm", radius_mm=24.0),))
    spec = WithStructures(phantom=anatomy, structures=(Tumour(tissue="t", diameter_mm=(8.0, 5000.0)),))
    with pytest.raises(InputError, match=r"structures\[0\]\.diameter_mm: up to 5000 mm, .* 60 x 56 x 52 mm"):
        spec.load("train", 2)
