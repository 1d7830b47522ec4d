"""Series read from files: values, places, times; every mistake is one line that names file and field."""

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from math import radians
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
from scipy.optimize import curve_fit

from phantoms.series import key_for, model_for, open_series
from qsim.errors import InputError
from qsim.signals import (
    GradientEcho,
    InversionRecovery,
    MultiEchoSpinEcho,
    OffsetDecay,
    SaturationRecovery,
    SpinEcho,
    SpinLock,
    T2Prep,
    VariableFlipAngle,
)

TI = [0.05, 0.4, 2.0]
AFFINE = np.array([[0.0, -2.0, 0.0, 5.0], [1.5, 0.0, 0.0, -7.0], [0.0, 0.0, 3.0, 1.0], [0, 0, 0, 1]])


def stored(shape: Sequence[int] = (4, 3, 2, 3), dtype: Any = np.int16) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 97 + 1).astype(dtype)


def save(
    file: Path,
    array: np.ndarray | None = None,
    content: Mapping[str, object] | None = None,
    affine: np.ndarray = AFFINE,
    **header: Any,
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(stored() if array is None else array, affine)
    image.header.set_xyzt_units("mm")
    for field, value in header.items():
        image.header[field] = value
    nibabel.save(image, file)
    if content is not None:
        file.with_name(file.name.split(".")[0] + ".json").write_text(json.dumps(content), encoding="utf-8")
    return file


def refused(path: Path, *words: str, **options: Any) -> str:
    """The one line of a refusal, which holds all these words."""
    with pytest.raises(InputError) as caught:
        open_series(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_nifti_values_axes_place_and_times(tmp_path: Path) -> None:
    array = stored()
    file = save(tmp_path / "ir.nii.gz", array, {"InversionTime": TI, "RepetitionTime": 3.5, "EchoTime": 0.01})
    series = open_series(file)
    assert (series.key, series.times, series.name, series.files) == ("InversionTime", tuple(TI), "ir", (file,))
    assert series.protocol == {"RepetitionTime": 3.5, "EchoTime": 0.01}
    assert series.space == (2, 3, 4)
    # a voxel counted by hand: x 3, y 1, z 0 of image 2; whole numbers stay what they are
    assert series.volumes[2][0, 1, 3] == array[3, 1, 0, 2]
    assert series.volumes[0].dtype == np.int16
    assert np.array_equal(series.slab(1, 2)[:, 0], np.moveaxis(array[:, :, 1], (0, 1, 2), (2, 1, 0)))
    assert series.spacing_mm == (3.0, 2.0, 1.5)
    assert series.notes == ()
    assert not series.signed


def test_a_map_goes_back_to_the_place_of_the_series(tmp_path: Path) -> None:
    file = save(tmp_path / "ir.nii", None, {"InversionTime": TI}, descrip=b"scanner", cal_max=900)
    original = nibabel.load(file)
    series = open_series(file)
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    out = tmp_path / "map.nii.gz"
    nibabel.save(series.image(values), out)
    found = nibabel.load(out)
    assert np.array_equal(found.get_fdata(), values.transpose(2, 1, 0))
    assert np.array_equal(found.affine, original.affine)
    assert found.shape == (4, 3, 2)
    for field in ("qform_code", "sform_code", "xyzt_units", "descrip"):
        assert found.header[field] == original.header[field]
    assert found.header["cal_max"] == 0


def test_scaled_integers_are_their_values(tmp_path: Path) -> None:
    array = stored()
    image = nibabel.Nifti1Image(array, AFFINE)
    image.header.set_slope_inter(0.25, -3)
    raw = tmp_path / "t2.nii"
    nibabel.save(image, raw)
    # what is stored is written by hand: nibabel divides by the slope when it saves
    raw.with_suffix(".json").write_text(json.dumps({"EchoTime": [0.01, 0.02, 0.04]}))
    with raw.open("r+b") as stream:
        stream.seek(112)
        stream.write(struct.pack("<ff", 0.25, -3.0))
        stream.seek(352)
        stream.write(np.asfortranarray(array).tobytes(order="F"))
    series = open_series(raw)
    assert series.volumes[1].dtype == np.float32
    assert np.array_equal(series.volumes[1], (array[..., 1] * 0.25 - 3).transpose(2, 1, 0))
    assert series.signed
    assert any("negative" in note for note in series.notes)


def test_a_slope_that_overflows_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "t2.nii", None, {"EchoTime": TI})
    with file.open("r+b") as stream:
        stream.seek(112)
        stream.write(struct.pack("<f", 3e38))
    refused(file, str(file), "scl_slope", "larger than single precision")


MODELS = [
    ({"InversionTime": TI}, "x.nii", InversionRecovery(ti=tuple(TI))),
    ({"InversionTime": TI, "RepetitionTime": 6.0}, "x.nii", InversionRecovery(ti=tuple(TI), tr=6.0)),
    ({"InversionTime": TI, "RepetitionTime": 12.0}, "x.nii", InversionRecovery(ti=tuple(TI))),
    ({"EchoTime": TI}, "x.nii", SpinEcho(te=tuple(TI))),
    ({"EchoTime": TI}, "sub-1_MEGRE.nii", GradientEcho(te=tuple(TI))),
    ({"SpinLockTime": TI, "SpinLockFrequency": 500}, "x.nii", SpinLock(tsl=tuple(TI))),
    ({"T2PrepTime": TI}, "x.nii", T2Prep(te_prep=tuple(TI))),
    ({"SaturationTime": TI}, "x.nii", SaturationRecovery(ts=tuple(TI))),
    (
        {"FlipAngle": [3, 10, 20], "RepetitionTimeExcitation": 0.015},
        "x.nii",
        VariableFlipAngle(flip_angles=(radians(3), radians(10), radians(20)), tr=0.015),
    ),
]


@pytest.mark.parametrize(("content", "name", "model"), MODELS)
def test_the_key_chooses_the_model(tmp_path: Path, content: dict[str, object], name: str, model: object) -> None:
    assert model_for(open_series(save(tmp_path / name, None, content))) == model


def test_negative_values_are_fitted_signed_unless_told_otherwise(tmp_path: Path) -> None:
    array = stored()
    array[..., 0] *= -2
    series = open_series(save(tmp_path / "x.nii", array, {"InversionTime": TI}))
    assert model_for(series) == InversionRecovery(ti=tuple(TI), signed=True)
    assert model_for(series, signed=False) == InversionRecovery(ti=tuple(TI))


def test_the_signal_overrides_the_key(tmp_path: Path) -> None:
    echoes = (0.01, 0.02, 0.03)
    series = open_series(save(tmp_path / "x.nii", None, {"EchoTime": list(echoes)}))
    assert isinstance(model_for(series, "multi_echo_spin_echo"), MultiEchoSpinEcho)
    assert model_for(series, "offset_decay") == OffsetDecay(te=echoes)
    locked = open_series(save(tmp_path / "y.nii", None, {"SpinLockTime": list(echoes)}))
    assert model_for(locked, "offset_decay") == OffsetDecay(tsl=echoes)
    with pytest.raises(InputError, match="--signal: spoiled_gradient_echo needs FlipAngle"):
        model_for(series, "spoiled_gradient_echo")
    with pytest.raises(InputError, match="--signal: got 'bloch', wanted one of inversion_recovery"):
        model_for(series, "bloch")


def test_the_times_of_another_key_are_taken_if_the_signal_says_so(tmp_path: Path) -> None:
    echoes = (0.01, 0.02, 0.03)
    file = save(tmp_path / "x.nii", None, {"EchoTime": list(echoes)})
    series = open_series(file, key=key_for("t2_prep"))
    assert (series.key, model_for(series, "t2_prep")) == ("EchoTime", T2Prep(te_prep=echoes))
    assert any("has no T2PrepTime; its EchoTime is taken for it" in note for note in series.notes)
    with pytest.raises(InputError, match=r"x.json: has no FlipAngle, wanted a list of 3"):
        open_series(file, key=key_for("spoiled_gradient_echo"))
    both = {"EchoTime": [0.001, 0.002, 0.003], "SpinLockTime": list(echoes)}
    file = save(tmp_path / "y.nii", None, both)
    with pytest.raises(InputError, match="EchoTime and SpinLockTime both hold a list"):
        open_series(file)
    assert model_for(open_series(file, key=key_for("spin_lock")), "spin_lock") == SpinLock(tsl=echoes)
    with pytest.raises(InputError, match=r"y.json: EchoTime and SpinLockTime both hold a list"):
        open_series(file, key=key_for("inversion_recovery"))


def test_times_without_a_sidecar(tmp_path: Path) -> None:
    file = save(tmp_path / "x.nii")
    bare = open_series(file, times=TI)
    assert (bare.key, bare.times) == ("", tuple(TI))
    with pytest.raises(InputError, match=r"--signal: nothing says what the times of .*x.nii are"):
        model_for(bare)
    assert model_for(bare, "spin_lock") == SpinLock(tsl=tuple(TI))
    named = open_series(file, times=[3.0, 10.0, 20.0], key=key_for("spoiled_gradient_echo"))
    assert named.times == pytest.approx([radians(3), radians(10), radians(20)], rel=1e-15)
    with pytest.raises(InputError, match="RepetitionTimeExcitation or RepetitionTime"):
        model_for(named)


def test_times_replace_the_sidecar(tmp_path: Path) -> None:
    file = save(tmp_path / "x.nii", None, {"InversionTime": [50, 400, 2000], "RepetitionTime": 6})
    series = open_series(file, times=TI)
    assert (series.key, series.times, series.protocol) == ("InversionTime", tuple(TI), {"RepetitionTime": 6.0})
    assert any("--times replaces InversionTime" in note for note in series.notes)


def test_numbers_as_strings_and_repeats_are_noted(tmp_path: Path) -> None:
    content = {"EchoTime": ["0.01", "0.02", "0.02"], "MagneticFieldStrength": "3T", "SliceTiming": [1, 2]}
    series = open_series(save(tmp_path / "x.nii", None, content))
    assert series.times == (0.01, 0.02, 0.02)
    assert any("EchoTime is written as text" in note for note in series.notes)
    assert any("0.02 occurs more than once" in note for note in series.notes)
    assert any("MagneticFieldStrength" in note and "left out" in note for note in series.notes)


def test_a_readout_tr_is_not_taken_for_that_of_the_inversion(tmp_path: Path) -> None:
    series = open_series(save(tmp_path / "x.nii", None, {"InversionTime": TI, "RepetitionTime": 0.005}))
    assert model_for(series) == InversionRecovery(ti=tuple(TI))
    assert any("full recovery is assumed" in note for note in series.notes)


def test_the_list_that_differs_is_meant(tmp_path: Path) -> None:
    content = {"InversionTime": TI, "FlipAngle": [5, 5, 5], "EchoTime": 0.002}
    series = open_series(save(tmp_path / "x.nii", None, content))
    assert series.key == "InversionTime"
    assert series.protocol["FlipAngle"] == pytest.approx(radians(5), rel=1e-15)


BAD = [
    ({"InversionTime": TI[:2]}, ["x.json: InversionTime holds 2 times for 3 images"]),
    ({"InversionTime": [50, 400, 2000]}, ["x.json: InversionTime", "seconds", "milliseconds", "1000"]),
    ({"EchoTime": [6.3, 12.6, 18.9]}, ["x.json: EchoTime must be in seconds", "1000"]),
    ({"InversionTime": [0.05, "0.4 s", 2]}, ["x.json: InversionTime holds '0.4 s'"]),
    ({"InversionTime": [0.05, None, 2]}, ["x.json: InversionTime holds null"]),
    ({"InversionTime": [0.05, True, 2]}, ["x.json: InversionTime holds true"]),
    ({"InversionTime": [0.05, float("nan"), 2]}, ["x.json: InversionTime holds nan"]),
    ({"InversionTime": [-0.05, 0.2, 2]}, ["x.json: InversionTime must not be negative"]),
    ({"InversionTime": 0.05}, ["x.json: InversionTime is one number for 3 images"]),
    ({"InversionTime": []}, ["x.json: InversionTime holds [] for 3 images"]),
    ({"InversionTime": "0.1 0.2 0.3"}, ["x.json: InversionTime holds", "0.1 0.2 0.3"]),
    ({"InversionTime": TI, "EchoTime": TI}, ["x.json: InversionTime and EchoTime", "--signal"]),
    ({"Modality": "MR"}, ["x.json: no list of times", "--times"]),
    ({"InversionTime": TI, "RepetitionTime": 2450}, ["x.json: RepetitionTime must be in seconds", "1000"]),
    ({"FlipAngle": [0.05, 0.2, 0.35], "RepetitionTime": 0.015}, ["x.json: FlipAngle must be in degrees", "radians"]),
    ({"FlipAngle": [3, 10, 20], "RepetitionTime": 15}, ["x.json: the repetition time", "1000"]),
    ({"FlipAngle": [3, 10, 20], "RepetitionTime": [0.01, 0.02, 0.02]}, ["x.json: RepetitionTime differs"]),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_sidecars_that_cannot_be_meant(tmp_path: Path, content: dict[str, object], words: list[str]) -> None:
    refused(save(tmp_path / "x.nii", None, content), *words)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii", "none.nii: no such file")
    refused(save(tmp_path / "a.nii.gz"), "a.nii.gz: has no sidecar a.json", "--times", "--signal")
    broken = save(tmp_path / "b.nii")
    (tmp_path / "b.json").write_text("{'InversionTime': 1}")
    refused(broken, "b.json: cannot be read")
    (tmp_path / "b.json").write_text("[1, 2]")
    refused(broken, "b.json: holds a list")
    (tmp_path / "b.json").write_bytes(b'{"Name": "\xff"}')
    refused(broken, "b.json: cannot be read")
    # random numbers, so that half of the file is half of the data
    noise = np.random.default_rng(1).integers(0, 30000, (16, 16, 4, 3)).astype(np.int16)
    whole = save(tmp_path / "c.nii.gz", noise, {"EchoTime": TI})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(whole, "c.nii.gz: cannot be read")
    cut = save(tmp_path / "d.nii", noise, {"EchoTime": TI})
    cut.write_bytes(cut.read_bytes()[:900])
    refused(cut, "d.nii: cannot be read")
    fake = tmp_path / "e.nii.gz"
    fake.write_bytes(gzip.compress(b"nothing"))
    refused(fake, "e.nii.gz: cannot be read")
    (tmp_path / "f.mgz").write_bytes(b"x")
    refused(tmp_path / "f.mgz", "f.mgz: unknown suffix '.mgz'", ".nii.gz", ".mat")


def test_shapes_and_types_that_are_no_series(tmp_path: Path) -> None:
    times = {"EchoTime": TI}
    refused(save(tmp_path / "a.nii", stored((4, 3, 3)), times), "a.nii: has shape (4, 3, 3)", "z is 1")
    refused(save(tmp_path / "b.nii", stored((4, 3)), times), "b.nii: has shape (4, 3)")
    refused(save(tmp_path / "c.nii", stored((4, 3, 2, 1, 3)), times), "c.nii: has shape")
    colour = np.zeros((4, 3, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "d.nii", colour, times), "d.nii: holds colours (RGB)")
    waves = save(tmp_path / "e.nii", stored(dtype=np.complex64) * np.complex64(0.6 - 0.8j), times)
    refused(waves, "e.nii: holds complex numbers", "magnitude")
    modulus = open_series(waves, magnitude=True)
    assert modulus.volumes[0] == pytest.approx(stored()[..., 0].T, rel=1e-6)
    assert any("modulus" in note for note in modulus.notes)
    refused(save(tmp_path / "f.nii", None, times), "--axes", axes="nzyx")


def test_dicom_is_left_to_dcm2niix(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    file = tmp_path / "scan" / "IM0001"
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 8)
    refused(file, "IM0001: DICOM is not read", "dcm2niix")
    refused(tmp_path / "scan", "DICOM is not read", "dcm2niix")


def test_voxels_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    array = stored(dtype=np.float32)
    array[0, 0, 0, 0], array[1, 1, 1, 2] = np.nan, np.inf
    series = open_series(save(tmp_path / "x.nii", array, {"EchoTime": TI}))
    assert any("NaN or infinity in 2 of 72 voxels" in note for note in series.notes)
    huge = stored(dtype=np.float64) * 1e300
    refused(save(tmp_path / "y.nii", huge, {"EchoTime": TI}), "larger than single precision")


def test_names_of_any_language(tmp_path: Path) -> None:
    folder = tmp_path / "Gehirn größe 脳"
    series = open_series(save(folder / "сerie_é.nii.gz", None, {"EchoTime": TI}))
    assert series.name == "сerie_é"


# arrays


@pytest.mark.parametrize("ending", [".npy", ".npz", ".mat", "-v73.mat", ".h5"])
def test_arrays_of_other_programs(tmp_path: Path, ending: str) -> None:
    """Image 2, z 0, y 1, x 3 is the same number in every format."""
    images = stored((3, 2, 5, 4), np.float32)  # n z y x
    rows = images.transpose(2, 3, 1, 0)  # MATLAB: y x z n
    file = tmp_path / f"t{ending}"
    if ending == ".npy":
        np.save(file, images)
    elif ending == ".npz":
        np.savez(file, images=images, te=np.array(TI))
    elif ending == ".mat":
        scipy.io.savemat(file, {"images": rows, "te": np.array(TI)})
    elif ending == ".h5":
        with h5py.File(file, "w") as held:
            held["images"] = images
    else:
        # as MATLAB does: 512 bytes of its own, and the axes turned round
        with h5py.File(file, "w", userblock_size=512) as held:
            held["images"] = rows.transpose()
        with file.open("r+b") as stream:
            stream.write(b"MATLAB 7.3 MAT-file")
    series = open_series(file, times=TI, key="EchoTime")
    assert series.space == (2, 5, 4)
    assert [volume[0, 1, 3] for volume in series.volumes] == list(images[:, 0, 1, 3])
    assert model_for(series) == SpinEcho(te=tuple(TI))
    assert any("axes" in note for note in series.notes)
    named = open_series(Path(f"{file}:images"), times=TI) if ending != ".npy" else series
    assert np.array_equal(named.volumes[1], series.volumes[1])


def test_a_sidecar_beside_an_array_and_axes_by_name(tmp_path: Path) -> None:
    images = stored((4, 5, 3), np.float64)  # x y n
    np.save(tmp_path / "a.npy", images)
    (tmp_path / "a.json").write_text(json.dumps({"EchoTime": TI}))
    series = open_series(tmp_path / "a.npy", axes="xyn")
    assert series.space == (1, 5, 4)
    assert series.volumes[2][0, 4, 1] == images[1, 4, 2]
    refused(tmp_path / "a.npy", "EchoTime holds 3 times for 4 images")
    refused(tmp_path / "a.npy", "--axes xynz", axes="xynz")
    refused(tmp_path / "a.npy", "--axes: got 'xxn'", axes="xxn")


def test_arrays_that_are_no_series(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(tmp_path / "o.npy", "o.npy: cannot be read", times=TI)
    np.savez(tmp_path / "two.npz", a=stored((3, 4, 5)), b=stored((3, 4, 5)))
    refused(tmp_path / "two.npz", "two.npz: name one array, as two.npz:NAME; it holds a (3, 4, 5)", times=TI)
    refused(Path(f"{tmp_path}/two.npz:c"), "holds no c", times=TI)
    np.save(tmp_path / "c.npy", stored((3, 4, 5)) * 1j)
    refused(tmp_path / "c.npy", "holds complex numbers", times=TI)
    scipy.io.savemat(tmp_path / "s.mat", {"s": {"a": 1}})
    refused(tmp_path / "s.mat", "s.mat", times=TI)
    (tmp_path / "t.mat").write_bytes(b"no matlab at all" * 20)
    refused(tmp_path / "t.mat", "t.mat: cannot be read", times=TI)
    refused(Path(f"{tmp_path}/two.npz:a"), "names a inside, and x is asked for", times=TI, dataset="x")
    np.save(tmp_path / "f.npy", stored((4, 3)).astype(float))
    refused(tmp_path / "f.npy", "has 2 axes", times=TI)


@pytest.mark.parametrize("ending", [".npy", ".mat", "-v73.mat", ".h5"])
def test_the_voxel_size_of_an_array(tmp_path: Path, ending: str) -> None:
    images = stored((3, 2, 5, 4), np.float32)  # n z y x
    file = tmp_path / f"a{ending}"
    if ending == ".npy":
        np.save(file, images)
    elif ending == ".mat":
        scipy.io.savemat(file, {"images": images.transpose(2, 3, 1, 0)})
    else:
        with h5py.File(file, "w", userblock_size=512) as held:
            held["images"] = images
        if ending == "-v73.mat":
            with file.open("r+b") as stream:
                stream.write(b"MATLAB 7.3 MAT-file")
    beside = tmp_path / f"{file.stem}.json"
    said = {"EchoTime": TI, "VoxelSize": [4, 0.9, 0.8]}

    def take(content: Mapping[str, object], *given: float) -> Any:
        beside.write_text(json.dumps(content))
        return open_series(file, voxel_mm=given or None)

    none = take({"EchoTime": TI})
    assert none.spacing_mm == (1.0, 1.0, 1.0)
    assert any(note == "the voxel size is not in the file: 1 mm is taken" for note in none.notes)
    beside_it = take(said)
    assert beside_it.spacing_mm == (4.0, 0.9, 0.8)
    # columns of the affine are x, y, z
    np.testing.assert_array_equal(beside_it.affine, np.diag([0.8, 0.9, 4.0, 1.0]))
    assert not any("voxel size" in note or "VoxelSize" in note for note in beside_it.notes)
    option = take({"EchoTime": TI}, 5.0, 2.0, 3.0)
    assert option.spacing_mm == (5.0, 2.0, 3.0)
    assert not any("voxel size" in note for note in option.notes)
    both = take(said, 5.0, 2.0, 3.0)
    assert both.spacing_mm == (5.0, 2.0, 3.0)
    assert any(note == f"--voxel-mm replaces VoxelSize of {beside}" for note in both.notes)
    # and maps have them
    assert np.array_equal(
        np.linalg.norm(both.image(np.zeros(both.space, np.float32)).affine[:3, :3], axis=0), [3, 2, 5]
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([4, 0.9], "holds 4, 0.9; wanted three sizes z, y, x in mm, from 0.01 to 100"),
        ([4, 0, 0.9], "holds 4, 0, 0.9; wanted three sizes"),
        ([4, -1, 0.9], "holds 4, -1, 0.9; wanted three sizes"),
        ([0.004, 0.0009, 0.0009], "holds 0.004, 0.0009, 0.0009; wanted three sizes"),
        (2, "holds 2; wanted three sizes"),
        ([], "holds nothing; wanted three sizes"),
        (["a", 1, 1], "holds 'a', wanted a number"),
        ([None, 1, 1], "holds null, wanted a number"),
        (None, ""),
    ],
)
def test_voxel_sizes_that_cannot_be_meant(tmp_path: Path, given: object, words: str) -> None:
    np.save(tmp_path / "a.npy", stored((3, 2, 5, 4), np.float32))
    (tmp_path / "a.json").write_text(json.dumps({"EchoTime": TI, "VoxelSize": given}))
    if given is None:
        # null says nothing, as if the key were not there
        assert open_series(tmp_path / "a.npy").spacing_mm == (1.0, 1.0, 1.0)
        return
    refused(tmp_path / "a.npy", f"{tmp_path / 'a.json'}: VoxelSize {words}")
    if isinstance(given, list) and all(isinstance(each, int | float) for each in given):
        message = refused(tmp_path / "a.npy", words, voxel_mm=[float(each) for each in given])
        assert message.startswith("--voxel-mm: ")


def test_a_file_that_says_its_voxel_size_is_told_no_other(tmp_path: Path) -> None:
    file = save(tmp_path / "n.nii.gz", content={"EchoTime": TI, "VoxelSize": [9, 9, 9]})
    # of the affine: columns of 1.5, 2 and 3 mm
    series = open_series(file)
    assert series.spacing_mm == (3.0, 2.0, 1.5)
    assert f"VoxelSize of {tmp_path / 'n.json'} is not used: the images say their own voxel size" in series.notes
    refused(file, f"--voxel-mm: {file} says its own voxel size, 3 x 2 x 1.5 mm (z, y, x)", voxel_mm=(1.0, 1.0, 1.0))


def test_kspace_becomes_magnitude_images(tmp_path: Path) -> None:
    """Two coils of a known image: sqrt(|s1|^2 + |s2|^2) m, by a transform written out as a sum."""
    rng = np.random.default_rng(3)
    m = rng.uniform(0.5, 1, (3, 5, 4))
    coils = np.array([0.6, 0.8j])
    y, x = np.arange(5) - 2, np.arange(4) - 2
    to_y = np.exp(-2j * np.pi * np.outer(y, y) / 5) / np.sqrt(5)
    to_x = np.exp(-2j * np.pi * np.outer(x, x) / 4) / np.sqrt(4)
    k = np.einsum("ij,ncjk,lk->ncil", to_y, m[:, None] * coils[:, None, None], to_x)
    with h5py.File(tmp_path / "k.h5", "w") as held:
        held["kspace"] = k
    with h5py.File(tmp_path / "one_coil.h5", "w") as held:
        held["data"] = k[:, 0] / 0.6
    np.save(tmp_path / "k.npy", k)
    from_hdf5 = open_series(tmp_path / "k.h5", times=TI, axes="ncyx")
    from_numpy = open_series(tmp_path / "k.npy", times=TI, axes="ncyx", kspace=True)
    # three axes of k-space are images, not partitions
    from_one = open_series(tmp_path / "one_coil.h5", times=TI)
    for series in (from_hdf5, from_numpy, from_one):
        assert np.abs(np.stack(series.volumes)[:, 0] - m).max() < 1e-12
        assert any("root of the sum of squares" in note for note in series.notes)


# real data


def prepared(tmp_path: Path, source: Path, content: Mapping[str, object]) -> Path:
    """A copy of a file of the data folder with a sidecar."""
    file = tmp_path / "series.nii.gz"
    file.write_bytes(source.read_bytes())
    (tmp_path / "series.json").write_text(json.dumps(content))
    return file


def seconds(values: Sequence[float]) -> list[float]:
    return [value / 1000 for value in values]


def test_brain_inversion_recovery(data_folder: Path, tmp_path: Path) -> None:
    """Signed, its T1 by an independent fit of the images as read: the bands of the data set's README."""
    folder = data_folder / "brain_ir_se_basel"
    told = json.loads((folder / "series.json").read_text())["ir"]
    series = open_series(
        prepared(
            tmp_path,
            folder / told["file"],
            {
                "InversionTime": seconds(told["inversion_times_ms"]),
                "RepetitionTime": told["repetition_time_ms"] / 1000,
            },
        )
    )
    assert model_for(series) == InversionRecovery(ti=(0.05, 0.1, 0.2, 0.5, 2.0, 4.0), signed=True)
    images = series.slab(0, 1)[:, 0]
    source = np.asarray(nibabel.load(folder / told["file"]).dataobj)
    assert np.array_equal(images, source[:, :, 0].transpose(2, 1, 0))
    # white matter as the README has it: T1 between 600 and 950 ms, median 878
    level = np.abs(images).max(axis=0)
    voxels = np.argwhere(level > 0.2 * np.percentile(level, 99))[::60]
    ti = np.array(series.times)
    found = []
    for y, x in voxels:
        signal = images[:, y, x].astype(float)
        try:
            fit, _ = curve_fit(lambda t, a, b, t1: a - b * np.exp(-t / t1), ti, signal, [signal[-1], 2 * signal[-1], 1])
        except RuntimeError:
            continue
        found.append(fit[2])
    t1 = np.array(found)
    band = t1[(t1 > 0.6) & (t1 < 0.95)]
    assert band.size > 60
    # the median of some 80 voxels with an SD of 80 ms is known to 11 ms
    assert np.median(band) == pytest.approx(0.878, abs=0.025)


def test_knee_echoes(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "knee_mese_pymskt"
    told = json.loads((folder / "series.json").read_text())
    content = {
        "EchoTime": seconds(told["echo_times_ms"]),
        "RepetitionTime": told["repetition_time_ms"] / 1000,
        "MagneticFieldStrength": told["field_T"],
    }
    series = open_series(prepared(tmp_path, folder / told["file"], content))
    assert (series.space, series.volumes[0].dtype, len(series.volumes)) == ((6, 256, 256), np.int16, 8)
    assert series.spacing_mm == pytest.approx(told["voxel_mm"][::-1], rel=1e-5)
    assert np.array_equal(series.affine, nibabel.load(folder / told["file"]).affine)
    assert isinstance(model_for(series, "multi_echo_spin_echo"), MultiEchoSpinEcho)
    # log-linear over echoes 2 to 8: muscle and cartilage at 30 to 40 ms, as the README found
    echoes = series.slab(3, 4)[1:, 0].astype(float)
    bright = echoes[0] > 0.15 * np.percentile(echoes[0], 99)
    slope = np.polyfit(series.times[1:], np.log(np.maximum(echoes[:, bright], 1)), 1)[0]
    t2 = -1 / slope[slope < 0]
    counts, edges = np.histogram(t2[t2 < 0.08], bins=np.arange(0.0, 0.085, 0.01))
    assert edges[counts.argmax()] == pytest.approx(0.03)


def test_phantom_as_nifti_and_as_matlab(data_folder: Path, tmp_path: Path) -> None:
    """The source's own MATLAB file holds the same series, with rows and columns the other way."""
    folder = data_folder / "phantom10_ir_se_arizona"
    told = json.loads((folder / "series.json").read_text())
    times = seconds(told["seir_inversion_times_ms_inferred"])
    series = open_series(prepared(tmp_path, folder / "seir.nii.gz", {"InversionTime": times, "RepetitionTime": 5.1}))
    assert model_for(series) == InversionRecovery(ti=tuple(times), tr=5.1)
    matlab = open_series(folder / "reference_maps.mat", dataset="seir_contrast", times=times, key="InversionTime")
    assert np.abs(matlab.slab(0, 1)[:, 0] - series.slab(0, 1)[:, 0].transpose(0, 2, 1)).max() < 2e-8
    refused(folder / "reference_maps.mat", "name one array", "sese_contrast", times=times)


def test_brain_flip_angles_with_field(data_folder: Path, tmp_path: Path) -> None:
    """T1 of the straight line of Fram, with the angles scaled by the map: the percentiles of the README."""
    folder = data_folder / "brain_vfa_b1_qmrlab"
    file = prepared(tmp_path, folder / "vfa_t1.nii.gz", {"FlipAngle": [3, 20], "RepetitionTimeExcitation": 0.015})
    series = open_series(file, b1=folder / "vfa_t1_B1map.nii.gz")
    assert model_for(series) == VariableFlipAngle(flip_angles=(radians(3), radians(20)), tr=0.015)
    assert series.b1 is not None
    inside = np.asarray(nibabel.load(folder / "vfa_t1_mask.nii.gz").dataobj).transpose(2, 1, 0) > 0
    field = series.b1[inside].astype(float)
    low, high = (volume[inside].astype(float) for volume in series.volumes)
    one, two = (angle * field for angle in series.times)
    slope = (high / np.sin(two) - low / np.sin(one)) / (high / np.tan(two) - low / np.tan(one))
    with np.errstate(invalid="ignore", divide="ignore"):
        t1 = -0.015 / np.log(slope)
    t1 = t1[np.isfinite(t1)]
    assert np.percentile(t1, [5, 25, 50, 75, 95]) == pytest.approx([0.891, 1.041, 1.336, 1.724, 2.540], rel=0.01)


def test_synthetic_t2(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "synthetic_t2_minnesota"
    told = json.loads((folder / "series.json").read_text())
    source = folder / "synth_imagenet_1k_test_000001_images.nii.gz"
    series = open_series(prepared(tmp_path, source, {"EchoTime": seconds(told["echo_times_ms"])}))
    s0, t2 = np.asarray(nibabel.load(folder / source.name.replace("images", "labels")).dataobj)[:, :, 0].T
    clean = s0 * np.exp(-np.array(series.times)[:, None, None] / (t2 * 0.1452 + 1e-9))
    assert isinstance(model_for(series), SpinEcho)
    # sd of the difference where the signal is above 0.3, as the README states it
    assert (series.slab(0, 1)[:, 0] - clean)[clean > 0.3].std() == pytest.approx(0.0246, rel=0.02)


def test_ismrmrd_kspace(data_folder: Path) -> None:
    folder = data_folder / "kspace"
    series = open_series(folder / "brain_sim_ismrmrd.h5", times=[0.1], key="EchoTime")
    truth = np.load(folder / "brain_sim_truth.npy")
    assert series.space == (1, 256, 256)
    image = series.volumes[0][0].astype(float)
    # the truth is stored with x first
    assert np.corrcoef(image.T.ravel(), truth.ravel())[0, 1] > 0.9999995


def test_matlab_kspace_of_one_coil(data_folder: Path) -> None:
    file = data_folder / "kspace" / "brain_sag_se_ksp.mat"
    series = open_series(file, times=[0.1], dataset="data", axes="yx", kspace=True)
    k = scipy.io.loadmat(file)["data"]
    plain = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k), norm="ortho")))
    assert np.abs(series.volumes[0][0] - plain).max() < 1e-12 * plain.max()


def test_slices_of_ismrmrd_are_one_volume(data_folder: Path, tmp_path: Path) -> None:
    """The file three contrasts and two slices over, each with a strength of its own."""
    source = data_folder / "kspace" / "brain_sim_ismrmrd.h5"
    strength = np.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]], np.float32)
    with h5py.File(source) as old, h5py.File(tmp_path / "many.h5", "w") as new:
        group = next(name for name in old if "data" in old[name])
        rows = old[group]["data"][()]
        together = np.concatenate([rows] * 6)
        for number in range(6):
            contrast, part = divmod(number, 2)
            for row in range(number * len(rows), (number + 1) * len(rows)):
                together["head"]["idx"]["contrast"][row] = contrast
                together["head"]["idx"]["slice"][row] = part
                together["data"][row] = together["data"][row] * strength[contrast, part]
        new.create_dataset(f"{group}/data", data=together, dtype=old[group]["data"].dtype)
        old.copy(f"{group}/xml", new[group])
    one = open_series(source, times=[0.1], key="EchoTime").volumes[0][0]
    series = open_series(tmp_path / "many.h5", times=[0.01, 0.02, 0.03], key="EchoTime")
    assert series.space == (2, 256, 256)
    for contrast, volume in enumerate(series.volumes):
        # powers of two change no digit
        assert np.array_equal(volume, np.stack([one * strength[contrast, 0], one * strength[contrast, 1]]))
    refused(tmp_path / "many.h5", "--times: 6 times for 3 images", times=[0.01] * 6)
