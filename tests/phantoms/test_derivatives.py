"""Maps as a BIDS derivatives folder: names, headers, all or nothing, and the validator of BIDS."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from phantoms.files.derivatives import Sources, derivatives, name_of
from phantoms.files.map_files import Place, read_map
from qsim.errors import InputError

AFFINE = np.array([[-0.9, 0.1, 0.0, 80.0], [0.1, 0.9, 0.2, -70.0], [0.0, -0.2, 3.0, 12.5], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("series", "stem"),
    [
        ("sub-01_ses-b_acq-x_run-2_inv-1_IRT1", "sub-01_ses-b_acq-x_run-2_T1map"),
        ("sub-A3_echo-1_part-mag_MESE", "sub-A3_T1map"),
        ("knee mese (2)", "sub-kneemese2_T1map"),
        ("Knöchel_T2", "sub-KnochelT2_T1map"),
        ("頭", "sub-01_T1map"),
    ],
)
def test_names(series, stem):
    assert name_of(series).stem("T1map") == stem


def test_labels_of_the_user_come_first():
    name = name_of("sub-01_ses-b_run-2_IRT1", subject="X", session="9")
    assert name.stem("T1map", "std") == "sub-X_ses-9_run-2_desc-std_T1map"
    assert name.folder("anat") == Path("sub-X/ses-9/anat")
    with pytest.raises(InputError, match=r"^--subject: got 'a-b'"):
        name_of("x", subject="a-b")


def source(folder):
    image = nibabel.Nifti1Image(np.arange(5 * 4 * 3 * 2, dtype=np.int16).reshape(5, 4, 3, 2), None)
    image.header.set_zooms((0.9, 0.9, 3.0, 2.0))
    image.set_sform(AFFINE, code=2)
    image.set_qform(AFFINE, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scanner"
    image.header["cal_max"] = 900
    file = folder / "series.nii.gz"
    nibabel.save(image, file)
    return file


def test_slices_written_one_by_one_read_as_one_volume_in_the_place_of_the_source(tmp_path):
    file = source(tmp_path)
    before = nibabel.load(file)
    values = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    values[1, 2, 3] = np.nan
    place = Place((3, 4, 5), before.affine, (3.0, 0.9, 0.9), before.header.binaryblock)
    out = tmp_path / "maps"
    where = Path("sub-1/anat/sub-1_T1map.nii.gz")
    with derivatives(out, [where], Sources.of([file])) as made:
        growing = made.map_file(where, place)
        growing.append(values[:2])
        assert not growing.whole
        growing.append(values[2:])
        assert growing.whole
    image = nibabel.load(out / where)
    np.testing.assert_array_equal(np.asarray(image.dataobj), values.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_map(out / where), values)
    np.testing.assert_array_equal(image.affine, before.affine)
    np.testing.assert_array_equal(image.get_qform(), before.get_qform())
    for key in ("sform_code", "qform_code", "descrip"):
        assert image.header[key] == before.header[key]
    assert image.header.get_zooms() == before.header.get_zooms()[:3]
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.float32
    assert image.header["cal_max"] == 0


def test_the_same_maps_are_the_same_bytes(tmp_path):
    place = Place((2, 3, 4), AFFINE, (3.0, 0.9, 0.9))
    for name in ("a", "b"):
        with derivatives(tmp_path / name, [], Sources.of([tmp_path / "x.nii"])) as made:
            made.map_file(Path("m.nii.gz"), place, np.uint8).append(np.ones((2, 3, 4), dtype=np.uint8))
    assert (tmp_path / "a/m.nii.gz").read_bytes() == (tmp_path / "b/m.nii.gz").read_bytes()
    # no source file: the affine of the series stands in the header
    np.testing.assert_allclose(nibabel.load(tmp_path / "a/m.nii.gz").affine, AFFINE, atol=1e-6)


def test_a_failure_leaves_nothing(tmp_path):
    out = tmp_path / "new" / "maps"

    def fail():
        with derivatives(out, [], Sources.of([tmp_path / "x.nii"])) as made:
            made.sidecar(Path("sub-1/anat/x.json"), {})
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    assert not list(tmp_path.iterdir())


def test_files_of_another_series_are_added_and_not_replaced_unasked(tmp_path):
    (tmp_path / "other").mkdir()
    out, one, two = tmp_path / "maps", Path("sub-1/anat/sub-1_T1map.json"), Path("sub-2/anat/sub-2_T2map.json")
    std = Path("sub-1/anat/sub-1_desc-std_T1map.json")
    here, there = Sources.of([tmp_path / "x.nii"]), Sources.of([tmp_path / "other" / "y.nii"])
    with derivatives(out, [one], here) as made:
        made.sidecar(one, {"a": 1})
        made.sidecar(std, {})
    with derivatives(out, [two], there) as made:
        assert made.link == "raw2"
        made.sidecar(two, {"b": 2})
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetLinks"] == {"raw": "..", "raw2": "../other"}
    with pytest.raises(InputError, match=r"sub-1_T1map\.json exists already; name another folder, or add --overwrite"):
        derivatives(out, [one], here).__enter__()
    assert json.loads((out / one).read_text()) == {"a": 1}
    with derivatives(out, [one], here, overwrite=True) as made:
        made.sidecar(one, {"a": 3})
    assert json.loads((out / one).read_text()) == {"a": 3}
    # belonged to the map that was replaced
    assert not (out / std).exists()
    assert (out / two).exists()
    assert not list(tmp_path.glob("*.partial*"))


def test_two_runs_at_a_time_write_to_one_folder(tmp_path):
    out, sources = tmp_path / "maps", Sources.of([tmp_path / "x.nii"])
    files = [Path(f"sub-{k}/anat/sub-{k}_T1map.json") for k in (1, 2)]
    with derivatives(out, files[:1], sources) as one, derivatives(out, files[1:], sources) as two:
        one.sidecar(files[0], {"a": 1})
        two.sidecar(files[1], {"b": 2})
    assert [json.loads((out / file).read_text()) for file in files] == [{"a": 1}, {"b": 2}]
    assert [p.name for p in tmp_path.iterdir()] == ["maps"]


def test_folders_that_cannot_be_written_to(tmp_path):
    sources = Sources.of([tmp_path / "data" / "x.nii"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.nii").touch()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    (tmp_path / "file").touch()
    for out, said in (
        (tmp_path / "data", "holds the series itself"),
        (tmp_path / "file" / "maps", "is a file, wanted a folder"),
        (foreign, "a data set that qsim has not made"),
        (tmp_path, "exists and holds other things"),
        (Path("/proc/nowhere/maps"), "(is read-only|cannot be written)"),
    ):
        with pytest.raises(InputError, match=f"^--out: .*{said}"), derivatives(out, [], sources):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file", "foreign"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(InputError, match="is read-only"), derivatives(locked / "maps", [], Sources.of([])):
        pass


def test_sources_name_the_data_set_they_lie_in(tmp_path):
    anat = tmp_path / "set" / "sub-1" / "anat"
    anat.mkdir(parents=True)
    (tmp_path / "set" / "dataset_description.json").write_text("{}")
    files = [anat / f"sub-1_inv-{k}_IRT1.nii.gz" for k in (1, 2)]
    assert Sources.of(files).uris() == [f"bids:raw:sub-1/anat/sub-1_inv-{k}_IRT1.nii.gz" for k in (1, 2)]
    assert Sources.of([anat / "kopf ö.nii"]).uris() == ["bids:raw:sub-1/anat/kopf%20%C3%B6.nii"]


def validate(folder):
    """Errors of the BIDS validator, or skip."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    found = str(beside) if beside.is_file() else shutil.which("bids-validator-deno")
    if found is None:
        pytest.skip("bids-validator-deno is not installed; it comes with the extra dev")
    done = subprocess.run([found, str(folder), "--json"], capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)["issues"]["issues"]
    return [(issue["code"], issue.get("location")) for issue in report if issue["severity"] == "error"]


def test_the_validator_finds_an_error_where_there_is_one(tmp_path):
    with derivatives(tmp_path / "maps", [], Sources.of([tmp_path / "x.nii"])) as made:
        made.sidecar(Path("sub-1/anat/sub-1_T9map.json"), {})
    assert validate(tmp_path / "maps")
