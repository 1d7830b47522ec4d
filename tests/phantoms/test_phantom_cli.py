"""`qsim phantom`: what it writes, and that it writes all or nothing."""

import json

import nibabel
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from phantoms import MNI, Geometry, WithStructures
from phantoms.base import as_fractions
from phantoms.cli import phantom
from phantoms.files.export import _colours, labels_of, write
from phantoms.shapes.geometry import Disc
from phantoms.shapes.structures import Point, Square
from qsim.errors import InputError

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
        (("geometry", "--slice-axis", "3"), "slice_axis: got 3"),
        ((__file__, "--labels", "other"), "--labels"),
        ((__file__, "--block", "0"), "--block"),
        ((__file__,), "cannot be read as NIfTI"),
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
