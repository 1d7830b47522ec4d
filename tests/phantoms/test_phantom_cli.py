"""`qsim phantom`: what it writes, and that it writes all or nothing."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import typer
from matplotlib.image import imread
from typer.testing import CliRunner

from generators import GeneratorConfig
from generators.reading import read_config
from phantoms import MNI, Geometry, Heart, Liver, WithStructures
from phantoms.base import as_fractions
from phantoms.brains.label_schemes import LABEL_SCHEMES
from phantoms.cli import phantom
from phantoms.files.export import _colours, labels_of, picture, write
from phantoms.files.of_config import phantom_of_config
from phantoms.files.one_subject import one_subject
from phantoms.heart.subject import TISSUES as HEART_TISSUES
from phantoms.shapes.geometry import Disc
from phantoms.shapes.structures import Point, Square
from qsim.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/generate_*.yaml"))
app = typer.Typer()
app.command()(phantom)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_geometry_is_written(tmp_path):
    out = tmp_path / "out"
    result = run("geometry", "--out", out, "--split", "test")
    assert result.exit_code == 0, result.output
    assert sorted(f.name for f in out.iterdir()) == ["fractions.nii.gz", "labels.nii.gz", "phantom.json", "phantom.png"]
    fractions = nibabel.load(out / "fractions.nii.gz")
    labels = np.asarray(nibabel.load(out / "labels.nii.gz").dataobj)
    about = json.loads((out / "phantom.json").read_text())
    assert about["tissues"] == ["csf", "gm", "wm"]
    assert about["split"] == "test"
    assert about["subject_written"] == 1
    assert fractions.shape == (*labels.shape, 3)
    np.testing.assert_allclose(fractions.header.get_zooms()[:3], about["spacing_mm"])
    # the outer ball, 85 mm
    total = np.asarray(fractions.dataobj).sum(dtype=float) * 8
    assert total == pytest.approx(4 / 3 * np.pi * 85**3, rel=1e-5)
    centre = tuple(n // 2 for n in labels.shape)
    assert about["labels"][str(labels[centre])] == "csf"
    assert labels[0, 0, 0] == 0


def test_mni_lies_in_world_coordinates(tmp_path):
    spec = MNI()
    loaded = spec.load("train", 2)
    write(loaded, spec, "train", tmp_path / "out")
    image = nibabel.load(tmp_path / "out" / "fractions.nii.gz")
    np.testing.assert_array_equal(image.affine[:3, 3], [-98, -134, -72])
    np.testing.assert_array_equal(np.moveaxis(np.asarray(image.dataobj), -1, 0), as_fractions(loaded.volumes[0]))


def test_regions_of_interest_are_written_where_a_phantom_has_them(tmp_path):
    assert run("system_phantom", "--out", tmp_path / "out", "--split", "test").exit_code == 0
    regions = np.asarray(nibabel.load(tmp_path / "out" / "regions.nii.gz").dataobj)
    fractions = np.asarray(nibabel.load(tmp_path / "out" / "fractions.nii.gz").dataobj)
    about = json.loads((tmp_path / "out" / "phantom.json").read_text())
    assert list(about["regions"].values()) == [f"t1_{k:02d}" for k in range(1, 15)]
    for number, name in about["regions"].items():
        # of pure solution, and not more than the inner .7 of a ball of 15 mm
        inside = regions == int(number)
        assert fractions[..., about["tissues"].index(name)][inside].min() == 1
        assert 0 < inside.sum() * 0.82**2 * 1.5 < 4 / 3 * np.pi * (0.7 * 7.5) ** 3


def test_structures_are_regions(tmp_path):
    anatomy = Geometry(size=(20, 30), spacing_mm=(1.0, 2.0), shapes=(Disc(tissue="gm", radius_mm=9.0),))
    spec = WithStructures(phantom=anatomy, structures=(Square(tissue="wm", extent=(3, 2)), Point(tissue="csf")))
    write(spec.load("test", 0), spec, "test", tmp_path / "out")
    regions = np.asarray(nibabel.load(tmp_path / "out" / "regions.nii.gz").dataobj)
    labels = np.asarray(nibabel.load(tmp_path / "out" / "labels.nii.gz").dataobj)
    about = json.loads((tmp_path / "out" / "phantom.json").read_text())
    assert about["regions"] == {"1": "square of wm", "2": "point of csf"}
    assert (regions == 1).sum() == 6
    assert (regions == 2).sum() == 1
    np.testing.assert_array_equal(regions == 1, labels == 1 + about["tissues"].index("wm"))


def test_flat_phantom(tmp_path):
    spec = Geometry(size=(20, 30), spacing_mm=(1.0, 2.0), shapes=(Disc(tissue="gm", radius_mm=5.0),))
    write(spec.load("train", 0), spec, "train", tmp_path / "flat")
    assert nibabel.load(tmp_path / "flat" / "fractions.nii.gz").shape == (20, 30, 1, 1)


def test_majority_label():
    fractions = np.array([[0.3, 0.5, 0.2, 0.1], [0.3, 0.1, 0.2, 0.9]], dtype=np.float32)
    # background holds 0.4, 0.4, 0.6, 0
    np.testing.assert_array_equal(labels_of(fractions), [0, 1, 0, 2])


def test_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    result = run("geometry", "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError)
    assert "exists already" in str(result.exception)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phantoms.files.export.picture", full_disk)
    result = run("geometry", "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError)
    assert "No space left" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moon",), "NAME: moon is none of mni, geometry, liver"),
        (("geometry", "--split", "all"), "--split: got all"),
        (("geometry", "--slice-axis", "3"), "--slice-axis: got 3"),
        ((__file__, "--labels", "other"), "--labels"),
        ((__file__, "--block", "0"), "--block"),
        ((__file__,), "NAME: "),
        ((__file__,), "cannot be read as NIfTI"),
        (("liver", "--subject", "52"), "--subject: got 52, the cohort has 0 to 51"),
        (("liver", "--seed", "-1"), "--seed: got -1"),
        (("liver", "--subject", "3", "--split", "test"), "--split: subject 3 is train"),
        (("heart-preclinical", "--split", "train"), "--split: all 15 subjects are test; ask for --split test"),
        (("heart", "--from", "nowhere"), "--from: nowhere does not exist"),
        (("nowhere.yaml",), "nowhere.yaml: cannot be read"),
    ],
)
def test_bad_input(tmp_path, arguments, message):
    result = run(*arguments, "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError), result.exception
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("mni", "--array", "t1"), "--array: belongs to system_phantom, not to mni"),
        (("mni", "--subject", 1), "--subject: belongs to liver and heart, not to mni"),
        (("liver", "--from", "maps"), "--from: belongs to heart and heart-preclinical, not to liver"),
        ((CONFIGS[0], "--labels", "twelve"), "--labels: belongs to label models"),
        (("system_phantom", "--block", 2), "--block: belongs to label models, not to system_phantom"),
        ((__file__, "--array", "pd"), "--array: belongs to system_phantom"),
        ((__file__, "--block", 99), "--block must hold at most 32768 voxels"),
    ],
)
def test_options_that_would_change_nothing_are_refused(tmp_path, arguments, line):
    result = run(*arguments, "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(line)


def test_no_two_tissues_look_alike():
    names = tuple(f"sphere {i}" for i in range(42))
    colours = _colours((*names, "water", "csf"))
    apart = np.abs(colours[:, None] - colours[None]).max(axis=-1) + np.eye(len(colours))
    # one step of the nine levels of a channel, and a half of another
    assert apart.min() > 0.12
    # and none is as dark as the background
    assert colours.max(axis=1).min() > 0.3


def labels_file(file, labels, spacing=(2.0, 2.0, 8.0)):
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.diag([*spacing, 1.0])), file)
    return file


def blocks(shape, numbers):
    """Labels of a box that fills most of the volume, by columns."""
    labels = np.zeros(shape)
    labels[2:-2, 2:-2] = np.resize(numbers, shape[1] - 4)[:, None]
    return labels


def test_labels_that_cannot_tell_what_they_mean_are_refused(tmp_path):
    for number in range(2):
        labels_file(tmp_path / f"heart{number}.nii.gz", blocks((12, 12, 5), [1, 2, 3, 4]))
    for name in (tmp_path, tmp_path / "heart0.nii.gz"):
        result = run(name, "--out", tmp_path / "out")
        assert isinstance(result.exception, InputError)
        message = str(result.exception)
        assert message.startswith("--labels: heart0.nii.gz holds the labels 1, 2, 3, 4,")
        assert all(scheme in message for scheme in LABEL_SCHEMES)
        assert "discrete (1 csf, 2 gm, 3 wm, 4 fat)" in message
        assert f"`qsim phantom heart --from {name}`" in message
        assert not (tmp_path / "out").exists()
    assert run(tmp_path, "--labels", "discrete", "--out", tmp_path / "out").exit_code == 0


def test_labels_of_another_scheme_name_it(tmp_path):
    file = labels_file(tmp_path / "aseg.nii.gz", blocks((12, 12, 5), [2, 3, 4, 10, 41, 42, 43, 60]))
    result = run(file, "--out", tmp_path / "out")
    assert "name all of these labels: freesurfer (2 wm, 3 gm, 4 csf" in str(result.exception)
    assert "discrete (" not in str(result.exception)


def test_the_scheme_that_is_taken_is_said(tmp_path):
    file = labels_file(tmp_path / "brain.nii.gz", blocks((14, 14, 30), range(1, 10)))
    result = run(file, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "no --labels given" in result.output
    assert "taken as discrete (BrainWeb's normal brain): 1 csf, 2 gm, 3 wm, 4 fat, 5 muscle" in result.output
    assert "no --labels" not in run(file, "--labels", "discrete", "--out", tmp_path / "second").output


@pytest.mark.parametrize(("slices", "split", "gap"), [(1, "test", 5), (7, "train", 0), (40, "train", 5)])
def test_every_volume_is_written_without_a_split(tmp_path, slices, split, gap):
    file = labels_file(tmp_path / "one.nii.gz", blocks((12, 12, slices), [1, 2, 3]))
    result = run(file, "--labels", "discrete", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "out" / "phantom.json").read_text())
    assert about["split"] == split
    assert about["parameters"]["gap"] == gap
    assert nibabel.load(tmp_path / "out" / "labels.nii.gz").shape == (12, 12, slices)


def test_remedies_are_flags(tmp_path):
    file = labels_file(tmp_path / "one.nii.gz", blocks((12, 12, 1), [1, 2, 3]))
    result = run(file, "--labels", "discrete", "--split", "train", "--out", tmp_path / "out")
    assert "ask for --split test" in str(result.exception)
    file = labels_file(tmp_path / "two.nii.gz", blocks((12, 12, 2), [1, 2, 3]))
    result = run(file, "--labels", "discrete", "--out", tmp_path / "out")
    assert str(result.exception).startswith("--slice-axis: two.nii.gz has too few slices")
    assert run(file, "--labels", "discrete", "--slice-axis", 0, "--out", tmp_path / "out").exit_code == 0
    from scipy.io import savemat

    savemat(tmp_path / "slice.mat", {"labels": blocks((12, 12, 1), [1, 2, 3])[..., 0]})
    result = run(tmp_path / "slice.mat", "--labels", "discrete", "--out", tmp_path / "mat")
    assert str(result.exception).startswith("--voxel-mm: ")
    assert str(result.exception).endswith("give it, such as --voxel-mm 1")
    assert run(tmp_path / "slice.mat", "--labels", "discrete", "--voxel-mm", 1, "--out", tmp_path / "m").exit_code == 0


@pytest.mark.parametrize(
    "spec",
    [
        Liver(
            subjects=4,
            test_subjects=2,
            slices=2,
            matrix=(48, 40),
            voxel_mm=(8.0, 9.0),
            fibrosis_share=0.5,
            planes=1,
            seed=3,
        ),
        Heart(subjects=4, test_subjects=2, slices=2, matrix=(40, 36), voxel_mm=(8.0, 9.0), scar_share=0.5, seed=3),
    ],
)
def test_one_subject_is_that_of_the_cohort(spec):
    axis = 0
    whole = spec.load("test", axis)
    one = one_subject(spec, 3, axis)
    assert type(one) is type(whole)
    assert one.ids == (3,)
    np.testing.assert_array_equal(one.volumes[0], whole.volumes[1])
    assert one.slabs[0] == whole.slabs[1]
    assert one.description.startswith(spec.cohort.describe() if isinstance(spec, Liver) else spec.cohort().describe())
    if isinstance(spec, Liver):
        np.testing.assert_array_equal(one.rois[0], whole.rois[1])
        assert one.fibrotic == tuple(i for i in whole.fibrotic if i == 3)
    else:
        np.testing.assert_array_equal(one.regions(3), whole.regions(3))


def test_a_subject_of_the_whole_cohort(tmp_path):
    result = run("liver", "--subject", 45, "--seed", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "out" / "phantom.json").read_text())
    assert (about["subject_written"], about["split"]) == (45, "test")
    assert (about["parameters"]["subjects"], about["parameters"]["seed"]) == (52, 2)
    assert "10 of 52 fibrotic, seed 2" in about["description"]
    assert "train 0 to 38, test 39 to 51" in about["description"]
    shares, _ = Liver(seed=2).drawn(45)
    written = np.moveaxis(np.asarray(nibabel.load(tmp_path / "out" / "fractions.nii.gz").dataobj), -1, 0)
    # steps of 1/128; where the sum would pass 1, the largest gives way to all others
    assert np.abs(written - shares).max() < 8 / 128


def test_heart_from_label_maps(tmp_path):
    # rings about the middle: blood of 20 mm, wall of 10; the right ventricle at one side
    y, x = np.mgrid[-60:61, -60:61]
    r = np.hypot(y, x)
    right = np.hypot(y + 30, x) < 25
    plane = np.where(r < 20, 1, np.where(r < 30, 3, np.where(right, 2, 0)))
    labels_file(tmp_path / "map.nii.gz", np.repeat(plane[..., None], 3, axis=2), (1.0, 1.0, 10.0))
    result = run("heart", "--from", tmp_path / "map.nii.gz", "--subject", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "out" / "phantom.json").read_text())
    assert "66 hearts in short axis, from 1 label maps" in about["description"]
    fractions = np.asarray(nibabel.load(tmp_path / "out" / "fractions.nii.gz").dataobj)
    wall = sum(fractions[..., about["tissues"].index(name)].sum() for name in ("myocardium", "scar", "lv_blood"))
    # papillary muscles included
    assert wall * 1.4**2 == pytest.approx(np.pi * 30**2, rel=0.01)


@pytest.mark.parametrize("config", CONFIGS[::4], ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_phantom_of_a_config_is_that_of_its_data_set(config):
    whole = read_config(config, GeneratorConfig)
    assert phantom_of_config(config) == (whole.phantom_spec, whole.split, whole.slice_axis)


def test_a_config_is_a_name(tmp_path):
    config = tmp_path / "data.yaml"
    phantom = "{kind: liver, subjects: 6, test_subjects: 2, slices: 1, matrix: [40, 36], voxel_mm: [9, 10]}"
    # too coarse for a region of interest
    config.write_text(f"split: test\nphantom: {phantom}\n")
    result = run(config, "--out", tmp_path / "out")
    assert str(result.exception).startswith("phantom.voxel_mm: subject 4 has no voxel")
    assert [file.name for file in tmp_path.iterdir()] == ["data.yaml"]
    config.write_text(f"split: test\nphantom: {phantom.replace('liver', 'heart')}\n")
    for arguments, subject in (((), 4), (("--split", "train"), 0), (("--subject", 2), 2)):
        out = tmp_path / f"out{subject}"
        result = run(config, *arguments, "--out", out)
        assert result.exit_code == 0, result.output
        about = json.loads((out / "phantom.json").read_text())
        assert about["subject_written"] == subject
        assert about["split"] == ("test" if subject == 4 else "train")
        assert about["parameters"]["subjects"] == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1", "phantom: missing"),
        ("phantom: {kind: moon}", "phantom"),
        ("phantom: {kind: liver, subjects: 0}", "phantom: subjects must be at least 1"),
        ("phantom: {kind: liver, moons: 0}", "phantom.moons"),
        ("phantom: {kind: liver}\nsplit: all", "split: got all"),
        ("a: &a 1\nphantom: *a", "anchors and aliases"),
        ("phantom: [", "cannot be read as YAML"),
    ],
)
def test_configs_that_name_no_phantom(tmp_path, text, message):
    config = tmp_path / "data.yaml"
    config.write_text(text)
    with pytest.raises(InputError) as error:
        phantom_of_config(config)
    assert str(error.value).startswith(f"{config}: {message}")


def test_help_names_every_scheme():
    text = "".join(run("--help").output.split())
    assert all(scheme in text for scheme in LABEL_SCHEMES)


@pytest.mark.parametrize(("shape", "names"), [((30, 30, 1), HEART_TISSUES), ((30, 30, 3), Liver().tissues)])
def test_no_legend_or_title_is_cut(tmp_path, shape, names):
    picture(np.zeros((len(names), *shape), dtype=np.float32), names, (1.0, 1.0, 1.0), tmp_path / "phantom.png")
    bright = imread(tmp_path / "phantom.png")[..., :3].max(axis=-1) > 0.2
    # background all around, and every tissue's patch is there
    assert not bright[:4].any()
    assert not bright[-4:].any()
    assert not bright[:, :4].any()
    assert not bright[:, -4:].any()
