"""NIfTI in and out: axes, values, header, phase."""

from math import pi
from pathlib import Path

import nibabel
import numpy as np
import pytest

from phantoms.files.images import NiftiFile, layout_of
from qsim.errors import InputError

AFFINE = np.array([[0.0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def write(path: Path, array: np.ndarray, **header: float) -> Path:
    image = nibabel.Nifti1Image(array, AFFINE)
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nibabel.save(image, path)
    return path


def ramp(*shape: int) -> np.ndarray:
    """Another number in every voxel."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "index", "place", "space"),
    [
        # (x, y, z) of the file, and (image, coil, z, y, x) here
        ((5, 4, 3), (4, 2, 1), (0, 0, 1, 2, 4), "zyx"),
        ((5, 4, 3, 2), (4, 2, 1, 1), (1, 0, 1, 2, 4), "zyx"),
        ((5, 4, 1), (4, 2, 0), (0, 0, 2, 4), "yx"),
        ((5, 4), (4, 2), (0, 0, 2, 4), "yx"),
        ((5, 1, 3, 2), (4, 0, 1, 1), (1, 0, 1, 4), "zx"),
        ((1, 4, 3), (0, 2, 1), (0, 0, 1, 2), "zy"),
        ((5, 4, 3, 2, 1), (4, 2, 1, 1, 0), (1, 0, 1, 2, 4), "zyx"),
    ],
)
def test_axes_of_the_file_are_x_y_z_images(tmp_path, shape, index, place, space):
    file = NiftiFile(write(tmp_path / "a.nii", ramp(*shape)))
    scan = file.read()
    assert scan.axes == space
    assert scan.values[place] == ramp(*shape)[index]
    spacing = {"x": 1.5, "y": 2.0, "z": 3.0}
    assert scan.spacing_mm == pytest.approx(tuple(spacing[letter] for letter in space))
    file.write(np.abs(scan.values), tmp_path / "b.nii")
    again = nibabel.load(tmp_path / "b.nii")
    assert again.shape == shape
    assert np.array_equal(np.asarray(again.dataobj), ramp(*shape))


@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_the_header_is_kept_and_the_slope_is_not(tmp_path, version):
    stored = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    image = version(stored, AFFINE)
    image.header.set_slope_inter(0.25, 3)
    image.header["descrip"] = b"a scan"
    image.set_sform(AFFINE, code=4)
    image.set_qform(AFFINE, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "a.nii.gz")
    file = NiftiFile(tmp_path / "a.nii.gz")
    scan = file.read()
    # 0.25 q + 3 of whole numbers is exact in single precision
    assert scan.values.dtype == np.complex64
    file.write(np.abs(scan.values), tmp_path / "b.nii.gz")
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert type(again) is version
    assert again.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(again.dataobj), 0.25 * stored + 3)
    assert np.array_equal(again.affine, AFFINE)
    assert (int(again.header["sform_code"]), int(again.header["qform_code"])) == (4, 1)
    assert bytes(again.header["descrip"]).startswith(b"a scan")
    assert again.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize(
    ("stored", "precision"),
    [
        (np.uint8, np.complex64),
        (np.int16, np.complex64),
        (np.float32, np.complex64),
        (np.complex64, np.complex64),
        (np.int32, np.complex128),
        (np.float64, np.complex128),
        (np.complex128, np.complex128),
    ],
)
def test_no_digit_is_lost(tmp_path, stored, precision):
    array = (np.arange(60).reshape(5, 4, 3) * np.iinfo(np.int32).max // 60).astype(stored)
    array = np.abs(array) if array.dtype.kind == "i" else array
    scan = NiftiFile(write(tmp_path / "a.nii", array)).read()
    assert scan.values.dtype == precision
    assert scan.real == (array.dtype.kind != "c")
    assert np.array_equal(scan.values[0, 0].transpose(2, 1, 0), array)


def test_the_same_image_is_the_same_bytes_under_any_name(tmp_path):
    file = NiftiFile(write(tmp_path / "a.nii.gz", ramp(5, 4, 3)))
    values = np.abs(file.read().values)
    file.write(values, tmp_path / "b.nii.gz")
    file.write(values, tmp_path / "longer name.nii.gz")
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "longer name.nii.gz").read_bytes()


def test_units_of_length(tmp_path):
    for unit, factor in (("meter", 1000.0), ("micron", 0.001), ("unknown", 1.0)):
        image = nibabel.Nifti1Image(ramp(5, 4, 3), AFFINE)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii")
        assert NiftiFile(tmp_path / "a.nii").read().spacing_mm == pytest.approx((3 * factor, 2 * factor, 1.5 * factor))


def test_magnitude_and_phase(tmp_path):
    rng = np.random.default_rng(1)
    angle = rng.uniform(-pi, pi, (5, 4, 3)).astype(np.float32)
    file = NiftiFile(write(tmp_path / "m.nii", ramp(5, 4, 3)), write(tmp_path / "p.nii", angle))
    scan = file.read()
    expected = ramp(5, 4, 3) * (np.cos(angle) + 1j * np.sin(angle))
    np.testing.assert_allclose(scan.values[0, 0].transpose(2, 1, 0), expected, rtol=0, atol=60 * 2e-7)
    assert scan.real
    assert "radians" in scan.assumed[0]


def test_measured_magnitude_and_phase(data_folder):
    folder = data_folder / "gre3_mag_phase_romeo"
    scan = NiftiFile(folder / "Mag.nii.gz", folder / "Phase.nii.gz").read()
    assert scan.values.shape == (3, 1, 41, 51, 51)
    # README of the data: off-resonance of the second echo against the first, 4 ms apart, has its median at -16 Hz
    step = np.angle(scan.values[1] * scan.values[0].conj())
    bright = np.abs(scan.values[0]) > np.median(np.abs(scan.values[0]))
    assert np.median(step[bright]) / (2 * pi * 0.004) == pytest.approx(-16, abs=6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((5, 4, 3), np.nan, np.float32), "NaN or infinity in 60 of 60 voxels"),
        (np.where(np.arange(60) == 7, np.inf, 1.0).reshape(5, 4, 3), "NaN or infinity in 1 of 60 voxels"),
        (np.where(np.arange(60) < 9, -1.0, 1.0).reshape(5, 4, 3), "9 of 60 voxels are negative"),
        (ramp(5, 1, 1), "is a line or a point"),
        (ramp(5, 4, 3, 2, 2), "wanted a slice, a volume or a series"),
    ],
)
def test_bad_images(tmp_path, array, message):
    with pytest.raises(InputError, match=message) as caught:
        NiftiFile(write(tmp_path / "a.nii", array)).read()
    assert str(caught.value).startswith(str(tmp_path / "a.nii"))


@pytest.mark.parametrize(
    ("magnitude", "angle", "message"),
    [
        (ramp(5, 4, 3), 3000 * np.ones((5, 4, 3)), "goes from 3000 to 3000, wanted radians"),
        (ramp(5, 4, 3), np.linspace(0, 2 * pi, 60).reshape(5, 4, 3), "goes from 0 to 6.28319"),
        (ramp(5, 4, 3), np.ones((5, 3, 4)), "has shape"),
        (ramp(5, 4, 3), np.full((5, 4, 3), np.nan), "NaN or infinity in 60"),
        (ramp(5, 4, 3), np.ones((5, 4, 3), np.complex64), "wanted angles in radians"),
        (ramp(5, 4, 3).astype(np.complex64), np.ones((5, 4, 3)), "has a phase of its own"),
    ],
)
def test_bad_phases(tmp_path, magnitude, angle, message):
    file = NiftiFile(write(tmp_path / "m.nii", magnitude), write(tmp_path / "p.nii", angle))
    with pytest.raises(InputError, match=message) as caught:
        file.read()
    assert str(caught.value).startswith("--phase: ")


def test_a_phase_of_another_place(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 4, 3), np.float32), np.eye(4)), tmp_path / "p.nii")
    with pytest.raises(InputError, match="different places"):
        NiftiFile(write(tmp_path / "m.nii", ramp(5, 4, 3)), tmp_path / "p.nii").read()


@pytest.mark.parametrize("keep", [0, 100, 400])
def test_a_file_that_ends_too_early(tmp_path, keep):
    path = write(tmp_path / "a.nii", ramp(5, 4, 3))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.nii: cannot be read") as caught:
        NiftiFile(path).read()
    assert "\n" not in str(caught.value)


def test_signed_images_keep_their_sign_as_phase(tmp_path):
    array = ramp(5, 4, 3) - 20
    scan = NiftiFile(write(tmp_path / "a.nii", array), signed=True).read()
    assert np.array_equal(scan.values[0, 0].transpose(2, 1, 0).real, array)
    assert "0 or pi" in scan.assumed[0]


@pytest.mark.parametrize("letters", ["nczyx", "xyzcn", "yx", "xcy", "zncxy"])
def test_layouts_there_and_back(letters):
    sizes = {"n": 2, "c": 3, "z": 4, "y": 5, "x": 6}
    shape = tuple(sizes[letter] for letter in letters)
    layout = layout_of("file", shape, letters)
    array = ramp(*shape)
    values = layout.arranged(array)
    lead = tuple(sizes[letter] if letter in letters else 1 for letter in "nc")
    assert values.shape == lead + tuple(sizes[letter] for letter in "zyx" if letter in letters)
    assert np.array_equal(layout.restored(values), array)
    index = {letter: size - 2 for letter, size in sizes.items()}
    here = tuple(index[letter] if letter in letters else 0 for letter in "nc")
    there = tuple(index[letter] for letter in "zyx" if letter in letters)
    assert values[here + there] == array[tuple(index[letter] for letter in letters)]
