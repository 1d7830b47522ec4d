"""Groups of BIDS files: order, inherited sidecars, parts, the map of the transmit field, and what does not fit."""

import json
from collections.abc import Mapping
from math import radians
from pathlib import Path

import nibabel
import numpy as np
import pytest

from phantoms.series import Series, model_for, open_series
from qsim.errors import InputError
from qsim.signals import GradientEcho, InversionRecovery, SpinEcho, SpinLock, T2Prep, VariableFlipAngle

AFFINE = np.diag([2.0, 1.5, 3.0, 1.0])


def put(
    file: Path, value: float, content: Mapping[str, object] | None = None, shape: tuple[int, ...] = (4, 3, 2)
) -> Path:
    """A volume of one value, and its sidecar."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full(shape, value, np.float32), AFFINE), file)
    if content is not None:
        file.with_name(file.name.split(".")[0] + ".json").write_text(json.dumps(content))
    return file


def values(series: Series) -> list[float]:
    return [float(volume[0, 0, 0]) for volume in series.volumes]


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        open_series(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def anat(tmp_path: Path) -> Path:
    (tmp_path / "dataset_description.json").write_text("{}")
    return tmp_path / "sub-01" / "anat"


def test_images_stand_in_the_order_of_their_numbers(anat: Path) -> None:
    """inv-10 comes after inv-2, and times stay as they are."""
    times = {1: 0.9, 2: 0.05, 10: 0.3}
    for number, time in times.items():
        put(anat / f"sub-01_inv-{number}_IRT1.nii.gz", number, {"InversionTime": time, "RepetitionTime": 4})
    put(anat / "sub-01_T1w.nii.gz", 77)
    for path in (anat / "sub-01_inv-2_IRT1.nii.gz", anat, anat.parent, anat / "*_IRT1.nii.gz"):
        series = open_series(path)
        assert values(series) == [1, 2, 10]
        assert series.times == (0.9, 0.05, 0.3)
        assert (series.name, series.suffix) == ("sub-01", "IRT1")
        assert model_for(series) == InversionRecovery(ti=(0.9, 0.05, 0.3), tr=4.0)
        assert any("inv-3" in note and "inv-9" in note for note in series.notes)
    refused(anat / "*.nii.gz", "sub-01_T1w.nii.gz: matches, but is no image of the series")


def test_sidecars_are_inherited_and_the_nearest_wins(anat: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        put(anat / f"sub-01_echo-{number}_MESE.nii.gz", number, {"EchoTime": 0.01 * number})
    (tmp_path / "MESE.json").write_text(json.dumps({"RepetitionTime": 2.0, "MagneticFieldStrength": 3}))
    (anat.parent / "sub-01_MESE.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    # of another suffix, another echo, another subject: none of them speaks of these images
    (tmp_path / "IRT1.json").write_text(json.dumps({"RepetitionTime": 9.0}))
    (tmp_path / "echo-3_MESE.json").write_text(json.dumps({"RepetitionTime": 9.0}))
    (tmp_path / "sub-02_MESE.json").write_text(json.dumps({"RepetitionTime": 9.0}))
    series = open_series(anat / "sub-01_echo-1_MESE.nii.gz")
    assert series.protocol == {"RepetitionTime": 2.5, "MagneticFieldStrength": 3.0}
    assert model_for(series) == SpinEcho(te=(0.01, 0.02))


def test_times_in_a_list_of_the_whole_series(anat: Path) -> None:
    """One file of four axes whose sidecar lies above it."""
    put(anat / "sub-01_MEGRE.nii.gz", 5, None, (4, 3, 2, 2))
    (anat.parent / "MEGRE.json").write_text(json.dumps({"EchoTime": [0.002, 0.004]}))
    series = open_series(anat / "sub-01_MEGRE.nii.gz")
    assert series.name == "sub-01"
    assert model_for(series) == GradientEcho(te=(0.002, 0.004))


def test_spin_lock_and_t2_prep_by_local_names(anat: Path) -> None:
    for time in (0, 10, 5):
        content = {"SpinLockTime": time / 1000, "SpinLockFrequency": 500}
        put(anat / f"sub-01_acq-hrtsl{time}_run-1_T1rhow.nii.gz", time, content)
        put(anat / f"sub-01_acq-te{time}_T2prepw.nii.gz", time, {"T2PrepTime": time / 1000})
    locked = open_series(anat / "sub-01_acq-hrtsl10_run-1_T1rhow.nii.gz")
    assert (values(locked), locked.name) == ([0, 5, 10], "sub-01_acq-hr_run-1")
    assert locked.protocol["SpinLockFrequency"] == 500
    assert model_for(locked) == SpinLock(tsl=(0.0, 0.005, 0.01))
    assert model_for(open_series(anat / "sub-01_acq-te5_T2prepw.nii.gz")) == T2Prep(te_prep=(0.0, 0.005, 0.01))
    refused(anat, "holds 2 series", "T1rhow", "T2prepw")


def test_real_parts_are_signed_and_phases_are_left_out(anat: Path) -> None:
    for number, sign in ((1, -1), (2, 1)):
        content = {"InversionTime": 0.4 * number}
        put(anat / f"sub-01_inv-{number}_part-real_IRT1.nii", sign * 3.0, content)
        put(anat / f"sub-01_inv-{number}_part-phase_IRT1.nii", 0.0, content)
    series = open_series(anat)
    assert (values(series), series.name) == ([-3, 3], "sub-01")
    assert model_for(series) == InversionRecovery(ti=(0.4, 0.8), signed=True)
    assert any("part-phase" in note for note in series.notes)
    refused(anat / "sub-01_inv-1_part-phase_IRT1.nii", "part-phase cannot be fitted")
    for number in (1, 2):
        put(anat / f"sub-01_inv-{number}_part-mag_IRT1.nii", 3.0, {"InversionTime": 0.4 * number})
    refused(anat, "holds 2 series", "part-mag", "part-real")
    assert values(open_series(anat / "sub-01_inv-1_part-mag_IRT1.nii")) == [3, 3]


def flip_angles(anat: Path) -> Path:
    for number, angle in ((1, 4), (2, 18)):
        put(anat / f"sub-01_flip-{number}_VFA.nii", number, {"FlipAngle": angle, "RepetitionTimeExcitation": 0.015})
    return anat / "sub-01_flip-1_VFA.nii"


@pytest.mark.parametrize(("scale", "note"), [(1, ""), (100, "percent")])
def test_transmit_field_of_the_same_voxels(anat: Path, scale: float, note: str) -> None:
    file = flip_angles(anat)
    put(anat.parent / "fmap" / "sub-01_TB1map.nii", 0.9 * scale)
    series = open_series(file)
    assert model_for(series) == VariableFlipAngle(flip_angles=(radians(4), radians(18)), tr=0.015)
    assert series.b1 is not None
    assert series.b1 == pytest.approx(0.9, rel=1e-6)
    assert any(note in text for text in series.notes)


def test_transmit_field_is_interpolated_between_its_voxels(anat: Path) -> None:
    """A field that is linear in the world stays so, on voxels of another size, origin and orientation."""
    file = flip_angles(anat)
    turned = np.array([[0, 4.0, 0, -2.0], [-3.0, 0, 0, 9.0], [0, 0, 2.5, -1.0], [0, 0, 0, 1]])
    index = np.indices((5, 5, 4)).reshape(3, -1)
    world = turned[:3, :3] @ index + turned[:3, 3:]
    slope = np.array([0.02, -0.03, 0.015])
    field = (0.9 + slope @ world).reshape(5, 5, 4).astype(np.float32)
    b1 = anat.parent / "elsewhere.nii"
    nibabel.save(nibabel.Nifti1Image(field, turned), b1)
    series = open_series(file, b1=b1)
    assert series.b1 is not None
    z, y, x = np.indices((2, 3, 4))
    wanted = 0.9 + slope[0] * 2 * x + slope[1] * 1.5 * y + slope[2] * 3 * z
    assert np.abs(series.b1 - wanted).max() < 1e-6
    assert any("interpolated" in note for note in series.notes)


def test_transmit_fields_that_do_not_fit(anat: Path) -> None:
    file = flip_angles(anat)
    fmap = anat.parent / "fmap"
    first = put(fmap / "sub-01_acq-a_TB1map.nii", 7.5)
    refused(file, "acq-a_TB1map.nii: the median", "7.5", "percent")
    put(first, 0.0)
    refused(file, "acq-a_TB1map.nii: no value", "above 0")
    put(fmap / "sub-01_acq-b_TB1map.nii", 1.0)
    refused(file, "fmap: holds 2 maps", "--b1")
    far = anat.parent / "far.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 2), np.float32), np.diag([1, 1, 1, 1]) + 500 * np.eye(4, k=3)), far)
    with pytest.raises(InputError, match=r"far.nii: .* does not lie where the series does"):
        open_series(file, b1=far)


def test_groups_that_do_not_fit_together(anat: Path) -> None:
    first = put(anat / "sub-01_echo-1_MESE.nii.gz", 1, {"EchoTime": 0.01})
    second = put(anat / "sub-01_echo-2_MESE.nii.gz", 2)
    refused(first, "sub-01_echo-2_MESE.nii.gz: has no sidecar")
    second.with_name("sub-01_echo-2_MESE.json").write_text('{"RepetitionTime": 2}')
    refused(first, "sub-01_echo-2_MESE.json: has no EchoTime")
    second.with_name("sub-01_echo-2_MESE.json").write_text('{"EchoTime": 20}')
    refused(first, "EchoTime must be in seconds", "1000")
    put(second, 2, {"EchoTime": 0.02}, (4, 3, 1))
    refused(first, "sub-01_echo-2_MESE.nii.gz: has shape (4, 3, 1)", "echo-1_MESE.nii.gz has (4, 3, 2)")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 2), np.float32), 2 * AFFINE), second)
    refused(first, "sub-01_echo-2_MESE.nii.gz: lies in another place")
    put(second, 2, {"EchoTime": 0.02}, (4, 3, 2, 2))
    refused(first, "sub-01_echo-2_MESE.nii.gz: holds 2 images")
    put(second, 2, {"EchoTime": 0.02})
    put(anat / "sub-01_echo-02_MESE.nii.gz", 2, {"EchoTime": 0.02})
    refused(first, "sub-01_echo-2_MESE.nii.gz: is the same image")


def test_files_without_bids_names_by_a_pattern(tmp_path: Path) -> None:
    for letter, time in zip("abc", (0.03, 0.01, 0.02), strict=True):
        put(tmp_path / f"tsl {letter}.nii", time, {"SpinLockTime": time, "EchoTime": 0.004})
    series = open_series(tmp_path / "tsl*.nii")
    assert model_for(series) == SpinLock(tsl=(0.03, 0.01, 0.02))
    assert series.protocol["EchoTime"] == 0.004
    assert any("in the order of their names" in note for note in series.notes)
    refused(tmp_path / "nothing*.nii", "no NIfTI file matches")
    refused(tmp_path, "holds 3 NIfTI files", "name the one")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no NIfTI file")
