"""Short-axis hearts: what is painted against what was drawn, published sizes, and label maps."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from generators.config import GeneratorConfig
from phantoms.base import WithRegions, as_fractions
from phantoms.drawn.painting import grid
from phantoms.files.export import labels_of
from phantoms.heart import TISSUES, Heart, clinical_t1, preclinical_t1rho, ventricle
from qsim.distributions import Constant, Normal, Uniform
from qsim.errors import InputError

AT = {tissue: t for t, tissue in enumerate(TISSUES)}
LV = [AT["myocardium"], AT["scar"], AT["lv_blood"]]


def fixed(number):
    return Constant(value=number)


@pytest.fixture(scope="module")
def humans():
    """A few subjects of the clinical domain, drawn once."""
    spec = replace(clinical_t1(), planes=2)
    return spec, [spec.fractions(i)[..., 0] for i in range(3)]


@pytest.fixture(scope="module")
def animals():
    spec = replace(preclinical_t1rho(), planes=2)
    return spec, [spec.fractions(i)[..., 0] for i in range(3)]


def along_rays(image, spec, subject, angles, reach=60.0, step=0.05):
    """Values along rays from the middle of the cavity (angle, position), linear between voxels."""
    r = np.arange(0, reach, step)
    y = subject["centre_y_mm"] + r * np.sin(angles)[:, None]
    x = subject["centre_x_mm"] + r * np.cos(angles)[:, None]
    at = [p / h + (n - 1) / 2 for p, h, n in zip((y, x), spec.voxel_mm, spec.matrix, strict=True)]
    return ndimage.map_coordinates(image, at, order=1)


@pytest.mark.parametrize("make", [clinical_t1, preclinical_t1rho])
def test_radius_and_wall_are_those_drawn(make):
    # nothing within the cavity, nothing right beside the wall that is myocardium too; one plane, at mid-ventricle
    spec = replace(make(), papillary_muscles=0, level_mm=fixed(0.0), planes=1, slice_thickness_mm=0.1, scar_share=0.0)
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    for i in range(1, 2):
        subject, fractions = spec.subject(i), spec.fractions(i)[..., 0]
        # integral of the share along a ray: the length within
        cavity = 0.05 * along_rays(fractions[AT["lv_blood"]], spec, subject, angles).sum(axis=1)
        wall = 0.05 * along_rays(fractions[AT["myocardium"]], spec, subject, angles).sum(axis=1)
        # means over the ring: what is off at single rays, up to .1 voxel, averages out
        assert cavity.mean() == pytest.approx(subject["lv_radius_mm"], abs=0.1)
        assert wall.mean() == pytest.approx(subject["wall_mm"], abs=0.1)
        uneven = (wall.max() - wall.min()) / 2 / subject["wall_mm"]
        assert 0.5 * subject["wall_unevenness"] < uneven < 1.4 * subject["wall_unevenness"] + 0.06
        # area of an annulus between the curves, a = 1/2 integral of rho^2
        area = np.prod(spec.voxel_mm) * fractions[AT["myocardium"]].sum()
        rho = np.stack([cavity, cavity + wall])
        np.testing.assert_allclose(area, np.pi * np.diff((rho**2).mean(axis=1))[0], rtol=0.01)


def test_eccentricity_is_the_ratio_of_the_axes():
    spec = Heart(eccentricity=fixed(0.08), variation=0.0, papillary_muscles=0, planes=1)
    subject, fractions = spec.subject(3), spec.fractions(3)[..., 0]
    angles = np.linspace(0, np.pi, 180, endpoint=False)
    blood = 0.05 * along_rays(fractions[AT["lv_blood"]], spec, subject, np.concatenate([angles, angles + np.pi]))
    width = blood.sum(axis=1).reshape(2, -1).sum(axis=0)
    assert (width.max() - width.min()) / (width.max() + width.min()) == pytest.approx(0.08, abs=0.004)


def test_sizes_of_humans_are_published_ones():
    drawn = [clinical_t1().subject(i) for i in range(30)]
    radius, wall = (np.array([subject[name] for subject in drawn]) for name in ("lv_radius_mm", "wall_mm"))
    # Lang et al. 2015, doi:10.1016/j.echo.2014.10.003: 37.8 to 58.4 mm, women and men
    assert 2 * radius.min() > 37
    assert 2 * radius.max() < 59
    assert 45 < 2 * radius.mean() < 50.2
    # Kawel et al. 2012, doi:10.1161/CIRCIMAGING.112.973560: means 5.3 and 6.3 mm, largest 7 and 8 mm in the healthy
    assert 5.3 < wall.mean() < 8


def test_mass_and_volume_of_humans_are_published_ones():
    # slices from valve to apex, thin walls as in the healthy (Kawel et al. 2012)
    spec = Heart(
        slices=10, slice_thickness_mm=8.0, level_mm=fixed(0.0), apex_mm=fixed(52.0), papillary_muscles=0,
        wall_mm=Uniform(low=5.3, high=6.3), planes=1, scar_share=0.0, matrix=(80, 80), voxel_mm=(2.8, 2.8),
    )  # fmt: skip
    voxel_ml = np.prod(spec.spacing_mm) / 1000
    mass, volume = [], []
    for i in range(4):
        fractions = spec.fractions(i)
        mass.append(1.05 * voxel_ml * fractions[AT["myocardium"]].sum())
        volume.append(voxel_ml * fractions[AT["lv_blood"]].sum())
    # Petersen et al. 2017, doi:10.1186/s12968-017-0327-9: 42 +- 7 and 53 +- 9 g/m^2; body surfaces of 1.6 to 2.1 m^2
    assert 42 * 1.6 < np.mean(mass) < 53 * 2.1
    assert min(mass) > 28 * 1.6
    assert max(mass) < 71 * 2.1
    # the label maps' README: 112 to 186 ml, mean 155, from UK Biobank
    assert 100 < np.mean(volume) < 186


@pytest.mark.parametrize("make", [clinical_t1, preclinical_t1rho])
def test_shares_against_supersampling(make):
    # the same heart on a grid four times finer, which leaves a quarter of the voxels' widths to err in
    spec = replace(make(), matrix=(84, 78), voxel_mm=(1.81, 1.76), planes=1, scar_share=1.0)
    finer = replace(spec, matrix=(336, 312), voxel_mm=(0.4525, 0.44))
    coarse = spec.fractions(1)[..., 0]
    truth = finer.fractions(1)[..., 0].reshape(len(TISSUES), 84, 4, 78, 4).mean(axis=(2, 4))
    wanted = truth.sum(axis=(1, 2))
    assert (wanted[:5] > 10).all()
    # the heart's own; and what lies around it
    np.testing.assert_allclose(coarse[:5].sum(axis=(1, 2)), wanted[:5], rtol=0.01)
    np.testing.assert_allclose(coarse[5:].sum(axis=(1, 2)), wanted[5:], rtol=0.02, atol=1.0)
    # single voxels: .06 where an edge runs at 45 degrees (`painting`), more where two edges meet
    assert np.abs(coarse - truth).mean() < 0.001
    assert np.quantile(np.abs(coarse - truth)[:, truth.max(axis=0) < 0.98], 0.95) < 0.06


@pytest.mark.parametrize("domain", ["humans", "animals"])
def test_the_ring_is_closed(domain, request):
    spec, subjects = request.getfixturevalue(domain)
    for i, fractions in enumerate(subjects):
        labels = labels_of(fractions.astype(np.float32))
        mask = ventricle(labels, spec.tissues)
        blood, wall = mask == 2, mask == 1
        around = ndimage.binary_dilation(blood) & ~blood
        assert wall[around].all()
        # one cavity, but for a few voxels caught between a papillary muscle and the wall
        parts, n = ndimage.label(blood)
        assert ndimage.sum_labels(blood, parts, range(1, n + 1)).max() > 0.98 * blood.sum()
        # papillary muscles may stand alone: the largest piece is the ring
        pieces, n = ndimage.label(wall)
        sizes = ndimage.sum_labels(wall, pieces, range(1, n + 1))
        ring = ndimage.binary_fill_holes(pieces == 1 + np.argmax(sizes))
        assert ring[blood].all()
        assert sizes.max() > 0.85 * wall.sum()
        assert n <= 1 + spec.papillary_muscles
        # the middle of the cavity, as drawn, lies in the mask's blood or a papillary muscle
        subject = spec.subject(i)
        at = tuple(
            round(subject[name] / h + (n - 1) / 2)
            for name, h, n in zip(("centre_y_mm", "centre_x_mm"), spec.voxel_mm, spec.matrix, strict=True)
        )
        assert mask[at] > 0


@pytest.mark.parametrize("domain", ["humans", "animals"])
def test_every_tissue_is_there_and_shares_are_shares(domain, request):
    spec, subjects = request.getfixturevalue(domain)
    for i, fractions in enumerate(subjects):
        assert fractions.min() >= 0
        assert fractions.sum(axis=0).max() <= 1 + 1e-12
        present = fractions.sum(axis=(1, 2)) * np.prod(spec.voxel_mm) > 20
        assert (present | (np.arange(len(TISSUES)) == AT["scar"])).all()
        assert present[AT["scar"]] == spec.has_scar(i)
        # air around, lung within: the corners hold nothing
        assert fractions[:, 0, 0].sum() == 0
        # the heart lies in the body, not in the air: no blood and myocardium at the image's edge
        heart = fractions[:5].sum(axis=0)
        assert max(heart[0].max(), heart[-1].max(), heart[:, 0].max(), heart[:, -1].max()) == 0


@pytest.mark.parametrize(("subjects", "share"), [(66, 0.25), (15, 0.6), (7, 0.0), (7, 1.0), (10, 0.33), (1, 0.5)])
def test_number_of_scars_is_exact(subjects, share):
    spec = Heart(subjects=subjects, test_subjects=0, scar_share=share)
    wanted = int(np.floor(subjects * share + 0.5))
    assert sum(spec.has_scar(i) for i in range(subjects)) == wanted
    assert f"{wanted} with a scar" in spec.cohort().describe()


def test_a_scar_lies_in_the_wall_and_is_as_deep_as_stated():
    spec = Heart(
        scar_share=1.0, papillary_muscles=0, planes=1, matrix=(140, 140), voxel_mm=(0.8, 0.8), scar_angle=fixed(1.2),
        wall_mm=fixed(9.0), level_mm=fixed(0.0),
    )  # fmt: skip
    bare = replace(spec, scar_share=0.0)
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    for i, share in ((2, 0.4), (5, 1.0)):
        scarred = replace(spec, scar_transmural=fixed(share)).fractions(i)[..., 0]
        without = bare.fractions(i)[..., 0]
        subject = spec.subject(i)
        # it takes myocardium of the left wall, and nothing else
        rest = [t for t in range(len(TISSUES)) if t not in (AT["myocardium"], AT["scar"])]
        np.testing.assert_allclose(scarred[rest], without[rest], atol=1e-12)
        both = scarred[AT["myocardium"]] + scarred[AT["scar"]]
        np.testing.assert_allclose(both, without[AT["myocardium"]], atol=1e-12)
        rays = along_rays(scarred[AT["scar"]], spec, subject, angles).sum(axis=1)
        wall = along_rays(without[AT["myocardium"]], spec, subject, angles).sum(axis=1)
        depth = rays / wall
        # at its middle, where it is flat; a share of 1 loses what the two edges share there
        middle = np.argmax(ndimage.uniform_filter1d(depth, 15, mode="wrap"))
        found = depth[(middle + np.arange(-5, 6)) % 360].mean()
        assert found == pytest.approx(share, abs=0.03)
        # 1 - u^4 falls below 5 % of its height at u = .987
        spanned = (depth > 0.05 * share).sum() * np.pi / 180
        assert spanned == pytest.approx(1.2, abs=0.08)


def test_subjects_do_not_depend_on_the_cohort_nor_fields_on_each_other():
    small = Heart(subjects=3, test_subjects=1, matrix=(64, 64), voxel_mm=(5.0, 5.0))
    large = replace(small, subjects=40, test_subjects=4)
    for i in range(3):
        np.testing.assert_array_equal(small.fractions(i), large.fractions(i))
    first, second = small.subject(1), replace(small, wall_mm=fixed(7.0), fat_mm=Uniform(low=3.0, high=4.0)).subject(1)
    same = {name for name in first.values if first[name] == second[name]}
    assert set(first.values) - same == {"wall_mm", "fat_mm"}
    assert not np.array_equal(small.fractions(0), replace(small, seed=1).fractions(0))
    assert not np.array_equal(small.fractions(0), small.fractions(1))


def test_splits_are_disjoint_and_hold_what_was_drawn():
    spec = Heart(subjects=4, test_subjects=1, matrix=(72, 64), voxel_mm=(5.0, 5.5), slices=2)
    train, test = spec.load("train", 2), spec.load("test", 2)
    assert train.ids == (0, 1, 2)
    assert test.ids == (3,)
    assert train.spacing_mm == (5.0, 5.5, 8.0)
    assert train.tissues == TISSUES
    # steps of 1/128, and what the rounding of a sum takes from the largest
    assert np.abs(as_fractions(test.volumes[0]) - spec.fractions(3)).max() <= 3 / 128
    assert spec.load("test", 2) is test
    assert isinstance(test, WithRegions)
    assert test.region_names == ("myocardium of the left ventricle", "blood pool of the left ventricle")
    mask = test.regions(3)
    shares = as_fractions(test.volumes[0])
    # where one tissue takes more than half of a voxel there is no doubt
    for region, tissues in ((1, ("myocardium", "scar")), (2, ("lv_blood",))):
        most = (shares[[AT[tissue] for tissue in tissues]] > 0.5).any(axis=0)
        assert most.sum() > 20
        assert (mask[most] == region).all()
    assert (mask[shares[[AT["lung"], AT["rv_blood"]]].max(axis=0) > 0.5] == 0).all()
    # world: right, front, head; the first column is the patient's right, the first row the front
    affine = test.affine
    np.testing.assert_allclose(affine @ [35.5, 31.5, 0.5, 1.0], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(affine @ [35.5, 30.5, 0.5, 1.0], [5.5, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(affine @ [34.5, 31.5, 0.5, 1.0], [0, 5.0, 0, 1], atol=1e-12)
    assert "train 0 to 2, test 3 to 3" in test.description
    with pytest.raises(InputError, match="test_subjects: 4 of 4 subjects leaves none for split: train"):
        replace(spec, test_subjects=4).load("train", 2)
    with pytest.raises(InputError, match="slice_axis: got 3"):
        spec.load("train", 3)


def test_the_domains_differ_where_they_should(humans, animals):
    (human, h), (animal, a) = humans, animals
    drawn = [[spec.subject(i) for i in range(10)] for spec in (human, animal)]
    mean = {
        name: tuple(np.mean([subject[name] for subject in subjects]) for subjects in drawn)
        for name in ("lv_radius_mm", "wall_mm", "rv_angle", "fat_mm", "thorax_x_mm", "aorta_mm", "epicardial_fat_mm")
    }
    for name in ("lv_radius_mm", "fat_mm", "thorax_x_mm", "aorta_mm", "epicardial_fat_mm"):
        assert mean[name][0] > 1.05 * mean[name][1], name
    assert mean["wall_mm"][1] > 1.1 * mean["wall_mm"][0]
    assert mean["rv_angle"][1] - mean["rv_angle"][0] > 0.5

    # as painted: direction from the left to the right cavity, and of the aorta from the left cavity
    def direction(spec, fractions, start, end):
        y, x = grid(spec.matrix, spec.voxel_mm)
        middle = [np.array([(f * y).sum(), (f * x).sum()]) / f.sum() for f in fractions[[AT[start], AT[end]]]]
        return middle[1] - middle[0]

    for f in h:
        dy, dx = direction(human, f, "lv_blood", "rv_blood")
        assert dx < 0
        assert abs(dy) < -dx
        assert direction(human, f, "lv_blood", "marrow")[1] > 0
        assert direction(human, f, "lv_blood", "liver")[0] > 40
    for f in a:
        dy, dx = direction(animal, f, "lv_blood", "rv_blood")
        assert dy < 0
        assert direction(animal, f, "lv_blood", "aorta")[0] > 20
    assert (animal.subjects, human.subjects) == (15, 66)


def test_slices_of_one_subject_narrow_towards_the_apex():
    spec = Heart(slices=7, level_mm=fixed(0.0), matrix=(90, 90), voxel_mm=(4.0, 4.0), planes=2)
    for i in (0, 1):
        fractions = spec.fractions(i)
        blood = fractions[AT["lv_blood"]].sum(axis=(0, 1))
        assert (np.diff(blood[1:]) < 0).all()
        # the same body around them
        np.testing.assert_array_equal(fractions[:, :, 75:, 0], fractions[:, :, 75:, 6])
        middles = [ndimage.center_of_mass(fractions[LV].sum(axis=0)[..., k]) for k in range(7)]
        assert np.ptp(middles, axis=0).max() < 2.5


def test_one_slice_one_voxel_and_a_heart_outside():
    assert Heart(matrix=(1, 1), voxel_mm=(1.0, 1.0)).fractions(0).shape == (11, 1, 1, 1)
    away = Heart(matrix=(8, 9), voxel_mm=(1.0, 1.0), centre_y_mm=fixed(500.0))
    assert away.fractions(0)[:5].sum() == 0


def test_ventricle():
    tissues = ("lung", "lv_blood", "myocardium", "scar", "rv_blood")
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(ventricle(labels, tissues), [[0, 0, 2], [1, 1, 0]])
    assert ventricle(labels[:0], tissues).shape == (0, 3)
    with pytest.raises(InputError, match=r"^tissues: .* needs myocardium, got gm, wm"):
        ventricle(labels, ("gm", "wm"))
    with pytest.raises(InputError, match=r"^labels: 5 stands for no tissue; there are 4"):
        ventricle(labels, tissues[:4])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("subjects", 0, "subjects must be at least 1"),
        ("test_subjects", 70, "test_subjects must lie between 0 and subjects"),
        ("seed", -1, "seed must be at least 0"),
        ("slices", 0, "slices must be at least 1"),
        ("slices", 30, "slices reach .* below mid-ventricle"),
        ("slice_thickness_mm", 0.0, "slice_thickness_mm must be above 0"),
        ("gap_mm", -1.0, "gap_mm must be at least 0"),
        ("matrix", (0, 4), "matrix must be at least 1"),
        ("voxel_mm", (1.0, float("inf")), "voxel_mm must be above 0"),
        ("planes", 0, "planes must be at least 1"),
        ("papillary_muscles", 5, "papillary_muscles must be at most 4"),
        ("papillary_muscles", -1, "papillary_muscles must be at least 0"),
        ("papillary_mm", fixed(9.0), "papillary_mm must be at most 0.4 of the smallest lv_radius_mm"),
        ("scar_share", 1.5, "scar_share must lie between 0 and 1"),
        ("scar_transmural", fixed(1.2), "scar_transmural must be at most 1"),
        ("scar_angle", fixed(7.0), "scar_angle must be at most 6.28"),
        ("variation", 3.0, "variation must lie between 0 and 2"),
        ("labels", "", "labels is empty"),
        ("lv_radius_mm", Normal(mean=24.0, sd=2.0), "lv_radius_mm must stay above 0"),
        ("wall_mm", fixed(0.0), "wall_mm must stay above 0"),
        ("wall_unevenness", fixed(0.6), "wall_unevenness must be at most 0.4"),
        ("eccentricity", fixed(0.5), "eccentricity must be at most 0.3"),
        ("rv_span", fixed(2.0), "rv_span must be at most 1.5"),
        ("rv_angle", Normal(mean=3.0, sd=0.1), "rv_angle must have ends"),
        ("fat_mm", fixed(-1.0), "fat_mm must not fall below 0"),
        ("level_mm", fixed(60.0), "slices reach .* below mid-ventricle"),
        ("level_mm", fixed(-60.0), "slices reach .* above mid-ventricle"),
    ],
)
def test_refusals(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Heart(**{field: value})


def test_a_config_can_name_it(generator_config):
    config = generator_config(
        patch=[48, 40],
        phantom={
            "kind": "heart", "matrix": [48, 40], "voxel_mm": [7, 7], "subjects": 3, "test_subjects": 1,
            "wall_mm": {"kind": "uniform", "low": 6, "high": 8}, "surroundings": "swine",
        },
    )  # fmt: skip
    assert isinstance(config, GeneratorConfig)
    assert config.phantom == Heart(
        matrix=(48, 40), voxel_mm=(7.0, 7.0), subjects=3, test_subjects=1, wall_mm=Uniform(low=6.0, high=8.0),
        surroundings="swine",
    )  # fmt: skip


def write_map(file, radii=(20.0, 28.0), slices=5, spacing=(1.0, 1.0, 10.0), extra=None):
    """Discs: LV blood in LV myocardium, and the right ventricle a disc beside them that they cover."""
    x, y = np.meshgrid(np.arange(101.0) - 50.2, np.arange(90.0) - 44.6, indexing="ij")
    plane = np.zeros(x.shape, dtype=np.uint8)
    plane[np.hypot(x + 22, y) < 25] = 4
    plane[np.hypot(x + 22, y) < 22] = 2
    plane[np.hypot(x - 5, y) < radii[1]] = 3
    plane[np.hypot(x - 5, y) < radii[0]] = 1
    labels = np.repeat(plane[..., None], slices, axis=2)
    # end slices may be empty
    labels[..., 0] = 0
    if extra is not None:
        extra(labels)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([*spacing, 1.0])), file)
    return file


def areas(spec, subject, k=0):
    return spec.fractions(subject)[..., k].sum(axis=(1, 2)) * np.prod(spec.voxel_mm)


def test_a_disc_in_a_label_map_keeps_its_area(tmp_path):
    write_map(tmp_path / "a.nii.gz")
    spec = Heart(
        labels=str(tmp_path / "a.nii.gz"), papillary_muscles=0, scar_share=0.0, voxel_mm=(1.2, 1.2), matrix=(110, 110)
    )
    for i in range(2):
        found = areas(spec, i)
        assert found[AT["lv_blood"]] == pytest.approx(np.pi * 20.0**2, rel=0.02)
        assert found[AT["myocardium"]] == pytest.approx(np.pi * (28.0**2 - 20.0**2), rel=0.02)
        # turned to where the subject has its right ventricle, about the middle of the cavity
        fractions, subject = spec.fractions(i)[..., 0], spec.subject(i)
        y, x = grid(spec.matrix, spec.voxel_mm)
        left, right = (
            np.array([(f * y).sum(), (f * x).sum()]) / f.sum() for f in fractions[[AT["lv_blood"], AT["rv_blood"]]]
        )
        np.testing.assert_allclose(left, (subject["centre_y_mm"], subject["centre_x_mm"]), atol=0.1)
        turn = np.arctan2(*(right - left)) - subject["rv_angle"]
        assert abs((turn + np.pi) % (2 * np.pi) - np.pi) < 0.03


def test_files_take_turns(tmp_path):
    for name, radius in (("a", 15.0), ("b", 22.0)):
        write_map(tmp_path / f"{name}.nii.gz", radii=(radius, 28.0))
    spec = Heart(labels=str(tmp_path), subjects=5, test_subjects=1, papillary_muscles=0, matrix=(128, 128))
    found = [areas(spec, i)[AT["lv_blood"]] for i in range(4)]
    np.testing.assert_allclose(found, np.pi * np.array([15.0, 22.0, 15.0, 22.0]) ** 2, rtol=0.02)
    assert "from 2 label maps, each turned" in spec.cohort().describe()
    # one after another, from base to apex, as thick as in the map
    stack = replace(spec, slices=4, gap_mm=2.0, matrix=(64, 64), voxel_mm=(4.0, 4.0))
    assert stack.fractions(0).shape == (11, 64, 64, 4)


def empty(labels):
    labels[:] = 0


def wrong(labels):
    labels[50, 45, 2] = 9


def no_right(labels):
    labels[(labels == 2) | (labels == 4)] = 0


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({}, empty, r"^phantom.labels: \S*a.nii.gz has no slice with both LV blood \(1\) and LV myocardium \(3\)$"),
        ({}, wrong, r"^phantom.labels: \S*a.nii.gz holds label 9; wanted 1 LV blood"),
        ({}, no_right, r"^phantom.labels: slice 3 of \S*a.nii.gz has no RV blood \(2\)"),
        ({"slices": 5, "gap_mm": 2.0}, None, r"^phantom.slices: 5 are asked for, and \S*a.nii.gz has 4"),
        ({"slices": 2}, None, r"^phantom.gap_mm: slices lie 8 mm apart, those of \S*a.nii.gz 10 mm"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(tmp_path, changes, extra, message):
    file = write_map(tmp_path / "a.nii.gz", extra=extra)
    with pytest.raises(InputError, match=message):
        Heart(labels=str(file), matrix=(16, 16), **changes).load("train", 2)


def test_missing_label_maps_are_refused(tmp_path):
    spec = Heart(labels=str(tmp_path / "none.nii.gz"))
    with pytest.raises(InputError, match=r"^phantom.labels: .*none.nii.gz does not exist"):
        spec.load("train", 2)
    with pytest.raises(InputError, match=r"^phantom.labels: .* holds no .nii or .nii.gz"):
        Heart(labels=str(tmp_path)).load("train", 2)


def test_real_label_maps_keep_their_areas(data_folder):
    folder = data_folder / "cardiac_sax_labels"
    if not folder.is_dir():
        pytest.skip(f"no label maps at {folder}")
    spec = Heart(labels=str(folder), papillary_muscles=0, scar_share=0.0, matrix=(110, 110), voxel_mm=(1.4, 1.4))
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) == 12
    for i, file in list(enumerate(files))[::3]:
        labels = np.asarray(nibabel.load(file).dataobj)
        held = [k for k in range(labels.shape[2]) if {1, 3} <= set(np.unique(labels[..., k]))]
        middle = labels[..., held[len(held) // 2]]
        found = areas(spec, i)
        for tissue, label in (("lv_blood", 1), ("myocardium", 3)):
            # voxels of 1 mm^2
            assert found[AT[tissue]] == pytest.approx((middle == label).sum(), rel=0.03), (file.name, tissue)
