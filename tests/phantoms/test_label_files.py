"""Label models in every format against the arrays that were written, published numbers of real files, and damage."""

import gzip
import os
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import loadmat, netcdf_file, savemat

from phantoms import BrainWeb, FuzzyBrain
from phantoms.base import as_fractions
from phantoms.brains.label_files import Raw, read_labels, read_volume
from phantoms.brains.label_schemes import LABEL_SCHEMES
from qsim.errors import InputError

ROOT = Path(os.environ.get("QSIM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not ROOT.is_dir(), reason="no real data: set QSIM_TEST_DATA to the folder of test data")
SHIPPED = Path(nibabel.__file__).parent / "tests" / "data"
shipped = pytest.mark.skipif(not (SHIPPED / "tiny.mnc").is_file(), reason="this nibabel ships no MINC files")
SHAPE = (7, 6, 5)


def some_labels(seed=0, shape=SHAPE, high=4):
    return np.random.default_rng(seed).integers(0, high, size=shape).astype(np.uint8)


def stored_numbers(values, tops):
    """What a MINC file of the valid range 10 to 250 holds for values (z, y, x) between 0 and the top of each slice."""
    return np.rint(10 + 240.0 * values / tops[:, None, None]).astype(np.uint8)


def write_minc1(file, values, tops):
    """MINC 1 (netCDF), axes z, y, x as BrainWeb has them, its steps (2, 1.5, 1) mm; `values` (z, y, x)."""
    with netcdf_file(file, "w") as out:
        for name, n, step, start in zip(
            ("zspace", "yspace", "xspace"), values.shape, (2.0, 1.5, 1.0), (-3.0, 5.0, -7.0), strict=True
        ):
            out.createDimension(name, n)
            axis = out.createVariable(name, "i", ())
            axis.step, axis.start, axis.spacing = step, start, b"regular__"
        image = out.createVariable("image", "b", ("zspace", "yspace", "xspace"))
        image.signtype, image.valid_range = b"unsigned", np.array([10.0, 250.0])
        image[:] = stored_numbers(values, tops).view(np.int8)
        for name, bounds in (("image-min", np.zeros(len(tops))), ("image-max", tops)):
            out.createVariable(name, "d", ("zspace",))[:] = bounds


def write_minc2(file, values, tops):
    """The same in MINC 2 (HDF5)."""
    with h5py.File(file, "w") as out:
        dims = out.create_group("minc-2.0/dimensions")
        for name, n, step, start in zip(
            ("zspace", "yspace", "xspace"), values.shape, (2.0, 1.5, 1.0), (-3.0, 5.0, -7.0), strict=True
        ):
            axis = dims.create_dataset(name, data=0)
            axis.attrs.update({"step": step, "start": start, "length": n, "spacing": np.bytes_("regular__")})
        group = out.create_group("minc-2.0/image/0")
        image = group.create_dataset("image", data=stored_numbers(values, tops))
        image.attrs["dimorder"], image.attrs["valid_range"] = np.bytes_("zspace,yspace,xspace"), np.array([10.0, 250.0])
        for name, bounds in (("image-min", np.zeros(len(tops))), ("image-max", tops)):
            group.create_dataset(name, data=bounds).attrs["dimorder"] = np.bytes_("zspace")


@pytest.mark.parametrize("write", [write_minc1, write_minc2])
def test_minc_is_turned_to_x_y_z_and_its_image_range_applied(tmp_path, write):
    labels = some_labels()
    # another range in every slice: 240 / top steps for a label, whole for these tops
    tops = np.array([3.0, 4.0, 5.0, 6.0, 8.0])
    write(tmp_path / "a.mnc", labels.transpose(2, 1, 0), tops)
    read, spacing, affine = read_labels(tmp_path / "a.mnc")
    np.testing.assert_array_equal(read, labels)
    assert read.dtype == np.uint8
    assert spacing == (1.0, 1.5, 2.0)
    np.testing.assert_allclose(affine, [[1, 0, 0, -7], [0, 1.5, 0, 5], [0, 0, 2, -3], [0, 0, 0, 1]])


def test_minc_of_fractions_is_no_label_model_but_a_fuzzy_one(tmp_path):
    # a sixteenth is a whole number of the 240 steps, in a range up to 1
    shares = np.random.default_rng(1).integers(0, 9, size=(2, *SHAPE)) / 16
    for name, share in zip(("gm", "wm"), shares, strict=True):
        write_minc1(tmp_path / f"{name}.mnc", share.transpose(2, 1, 0), np.ones(5))
    with pytest.raises(
        InputError, match=r"^phantom\.path: .*gm\.mnc holds values that are not whole .* brainweb_fuzzy"
    ):
        read_labels(tmp_path / "gm.mnc")
    spec = FuzzyBrain(
        fractions={"gm": str(tmp_path / "gm.mnc"), "wm": str(tmp_path / "wm.mnc")}, block=(1, 2, 1), gap=0
    )
    phantom = spec.load("test", 0)
    assert phantom.tissues == ("gm", "wm")
    assert phantom.spacing_mm == (1.0, 3.0, 2.0)
    # steps of 2^-15 hold 32nds
    np.testing.assert_array_equal(as_fractions(phantom.volumes[0]), (shares[:, :, ::2] + shares[:, :, 1::2]) / 2)


def test_freesurfer_files_keep_their_axes(tmp_path):
    # as aseg.mgz: axes left, inferior, anterior
    affine = np.array([[-1.0, 0, 0, 3], [0, 0, 1, -2], [0, -1, 0, 4], [0, 0, 0, 1]])
    labels = some_labels(7, high=256)
    nibabel.save(nibabel.MGHImage(labels, affine), tmp_path / "aseg.mgz")
    read, spacing, turned = read_labels(tmp_path / "aseg.mgz")
    np.testing.assert_array_equal(read, labels)
    assert spacing == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(turned, affine, atol=1e-6)


@shipped
@pytest.mark.parametrize(
    ("name", "low", "high", "mean"),
    # as nibabel's own tests state them, got from the minc tools
    [
        ("tiny.mnc", 0.20784314, 0.74901961, 0.60602819),
        ("minc1_1_scale.mnc", 0.2082842439, 0.2094327615, 0.2091292083),
        ("minc2_1_scale.mnc", 0.2082842439, 0.2094327615, 0.2091292083),
    ],
)
def test_shipped_minc_files(name, low, high, mean):
    stored = read_volume(SHIPPED / name, "phantom.path")
    assert (stored.data.min(), stored.data.max(), stored.data.mean()) == pytest.approx((low, high, mean), abs=1e-6)
    assert stored.data.shape == (20, 20, 10)
    np.testing.assert_allclose(np.diag(stored.affine), (2, 2, 2, 1), atol=1e-12)


def write_matlab73(file, **arrays):
    """MATLAB v7.3 is HDF5 behind 512 bytes of header, axes reversed."""
    with h5py.File(file, "w", userblock_size=512) as out:
        for name, array in arrays.items():
            out.create_dataset(name, data=array.T).attrs["MATLAB_class"] = np.bytes_("uint8")
        text = out.create_dataset("comment", data=np.array([[72], [105]], dtype=np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_("char")
    with file.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("write", [lambda file, **arrays: savemat(file, {**arrays, "comment": "Hi"}), write_matlab73])
def test_matlab_arrays_by_name_and_by_themselves(tmp_path, write):
    a, b = some_labels(1), some_labels(2)
    write(tmp_path / "one.mat", anatomy=a)
    read, spacing, _ = read_labels(tmp_path / "one.mat", voxel_mm=(1.0, 2.0, 3.0))
    np.testing.assert_array_equal(read, a)
    assert spacing == (1.0, 2.0, 3.0)
    write(tmp_path / "two.mat", first=a, second=b)
    read, _, _ = read_labels(tmp_path / "two.mat:second", voxel_mm=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(read, b)
    with pytest.raises(InputError, match=r"two\.mat holds first, second; name one, as in two\.mat:first"):
        read_labels(tmp_path / "two.mat", voxel_mm=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"two\.mat has no array third; it holds first, second"):
        read_labels(tmp_path / "two.mat:third", voxel_mm=(1.0, 1.0, 1.0))


def test_a_single_slice_is_test_only(tmp_path):
    savemat(tmp_path / "a.mat", {"axial": some_labels(0, (30, 20), 4)})
    spec = BrainWeb(path=f"{tmp_path}/a.mat:axial", voxel_mm=(0.5, 0.5, 0.5))
    phantom = spec.load("test", 2)
    assert phantom.crop((8, 9), np.random.default_rng(0)).fractions.shape == (7, 8, 9)
    assert "one slice, test only" in phantom.description
    with pytest.raises(InputError, match=r"^phantom\.path: a\.mat:axial is one slice, which cannot be split"):
        spec.load("train", 2)
    with pytest.raises(InputError, match=r"^slice_axis: a\.mat:axial is one slice across axis 2, got 0"):
        spec.load("test", 0)
    with pytest.raises(InputError, match="named twice"):
        BrainWeb(path=(f"{tmp_path}/a.mat:axial", f"{tmp_path}/a.mat:other")).files()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "stored", "raw"),
    [
        ("uint8", "<u1", {}),
        ("int8", "<i1", {"fastest": "last"}),
        ("uint16", ">u2", {"big_endian": True}),
        ("uint8", "<u1", {"offset": 128}),
        ("int8", "<i1", {"offset": -128}),
    ],
)
def test_raw_numbers(tmp_path, packed, dtype, stored, raw):
    labels = some_labels(3)
    # x fastest: written slice by slice, row by row, as Fortran and BrainWeb do
    order = "C" if raw.get("fastest") == "last" else "F"
    content = (labels.astype(int) + raw.get("offset", 0)).astype(stored).tobytes(order)
    file = tmp_path / ("a.rawb.gz" if packed else "a.bin")
    file.write_bytes(gzip.compress(content) if packed else content)
    read, _, affine = read_labels(file, Raw(shape=SHAPE, dtype=dtype, **raw), (1.0, 1.0, 2.0))
    np.testing.assert_array_equal(read, labels)
    np.testing.assert_array_equal(affine, np.diag([1, 1, 2, 1]))


def test_fuzzy_bytes_are_scaled(tmp_path):
    rng = np.random.default_rng(4)
    gm = rng.integers(0, 256, size=SHAPE).astype(np.uint8)
    # one byte over in every voxel, as rounding leaves them
    wm = 255 - gm + (gm > 100)
    for name, share in (("gm", gm), ("wm", wm.astype(np.uint8))):
        (tmp_path / f"{name}.rawb").write_bytes(share.tobytes("F"))
    fields = {
        "fractions": {name: str(tmp_path / f"{name}.rawb") for name in ("gm", "wm")},
        "raw": Raw(shape=SHAPE),
        "voxel_mm": (1.0, 1.0, 1.0),
        "gap": 0,
    }
    volume = as_fractions(FuzzyBrain(**fields, full_scale=255.0).load("test", 2).volumes[0])
    # steps of 2^-15, and the largest gives way by one more
    assert np.abs(volume[0] - gm / np.maximum(255.0, gm.astype(int) + wm)).max() <= 2 * 2.0**-15
    assert volume.sum(axis=0, dtype=float).max() <= 1
    with pytest.raises(
        InputError, match=r"^phantom\.fractions\.gm: .*gm\.rawb holds values from . to 255, wanted 0 to 1"
    ):
        FuzzyBrain(**fields).load("test", 2)
    twice = fields | {"fractions": {"gm": str(tmp_path / "gm.rawb"), "wm": str(tmp_path / "gm.rawb")}}
    with pytest.raises(InputError, match=r"^phantom\.fractions: the tissues of gm\.rawb sum to 2 in a voxel"):
        FuzzyBrain(**twice, full_scale=255.0).load("test", 2)
    (tmp_path / "wm.rawb").write_bytes(wm.astype(np.uint8).tobytes("F")[:-5])
    with pytest.raises(InputError, match=r"^phantom\.raw\.shape: .*wm\.rawb holds 205 bytes, 7 x 6 x 5 numbers .* 210"):
        FuzzyBrain(**fields, full_scale=255.0).load("test", 2)


def test_several_fuzzy_subjects_are_split(tmp_path):
    for i in range(3):
        for name in ("gm", "wm"):
            share = np.full(SHAPE, 0.5, dtype=np.float32)
            nibabel.save(nibabel.Nifti1Image(share, np.eye(4)), tmp_path / f"{i}_{name}.nii")
    spec = FuzzyBrain(fractions={name: str(tmp_path / f"*_{name}.nii") for name in ("gm", "wm")})
    assert spec.load("train", 2).ids == (0, 1)
    assert spec.load("test", 2).ids == (2,)
    uneven = FuzzyBrain(fractions={"gm": str(tmp_path / "*_gm.nii"), "wm": str(tmp_path / "0_wm.nii")})
    with pytest.raises(InputError, match=r"^phantom\.fractions: 3 of gm, 1 of wm"):
        uneven.load("train", 2)
    nibabel.save(nibabel.Nifti1Image(share, np.diag([2, 1, 1, 1])), tmp_path / "2_wm.nii")
    with pytest.raises(InputError, match=r"^phantom\.fractions\.wm: .*2_wm\.nii lies on another grid than .*2_gm\.nii"):
        spec.load("test", 2)


def truncated(writer):
    def write(file):
        writer(file)
        file.write_bytes(file.read_bytes()[:-400])

    return write


def minc1(file):
    write_minc1(file, some_labels().transpose(2, 1, 0), np.full(5, 3.0))


def minc2(file):
    write_minc2(file, some_labels().transpose(2, 1, 0), np.full(5, 3.0))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.mnc", truncated(minc1)),
        ("a.mnc", truncated(minc2)),
        ("a.mnc", lambda file: file.write_bytes(b"CDF\x01 and no more")),
        ("a.mat", truncated(lambda file: savemat(file, {"a": some_labels()}))),
        ("a.mat", truncated(lambda file: write_matlab73(file, a=some_labels()))),
        ("a.mat", lambda file: file.write_text("not a MATLAB file, but long enough to have a header" * 5)),
        ("a.mat", lambda file: file.write_bytes(b"")),
        ("a.mat", lambda file: savemat(file, {"a": "text only"})),
        ("a.mat", lambda file: savemat(file, {"a": np.zeros((2, 2, 2, 2))})),
        ("a.mat", lambda file: savemat(file, {"a": np.full((3, 3, 3), np.nan)})),
        ("a.bin.gz", lambda file: file.write_bytes(gzip.compress(bytes(210))[:-9])),
        ("a.bin", lambda file: file.write_bytes(bytes(range(210)))),
        ("a.tif", lambda file: file.write_bytes(b"II")),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, name, write):
    file = tmp_path / name
    write(file)
    voxel = None if name.endswith(("mnc", "tif")) else (1.0, 1.0, 1.0)
    # the raw numbers 0 to 209 become negative
    with pytest.raises(InputError, match=rf"^phantom\.path: .*{name}") as said:
        read_labels(file, Raw(shape=SHAPE, offset=128), voxel)
    assert "\n" not in str(said.value)


def test_what_a_file_does_not_know_must_be_said(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(210))
    nibabel.save(nibabel.Nifti1Image(some_labels(), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"^phantom\.voxel_mm: .*a\.bin holds no voxel size"):
        read_labels(tmp_path / "a.bin", Raw(shape=SHAPE))
    with pytest.raises(InputError, match=r"^phantom\.raw: .*a\.bin needs a layout"):
        read_labels(tmp_path / "a.bin", None, (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"^phantom\.voxel_mm: .*a\.nii holds its own voxel size"):
        read_labels(tmp_path / "a.nii", None, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Raw(shape=(0, 1, 1)), "shape"),
        (lambda: Raw(shape=(1, 1, 1), offset=10**6), "offset"),
        (lambda: FuzzyBrain(fractions={}), "fractions"),
        (lambda: FuzzyBrain(fractions={"gm": ""}), "fractions"),
        (lambda: FuzzyBrain(fractions={"background": "a"}), "fractions"),
        (lambda: FuzzyBrain(fractions={"gm": "a"}, full_scale=0.0), "full_scale"),
        (lambda: FuzzyBrain(fractions={"gm": "a"}, block=(1, 0, 1)), "block"),
        (lambda: BrainWeb(path="a", block=(64, 64, 64)), "block"),
        (lambda: BrainWeb(path="a", voxel_mm=(1.0, 0.0, 1.0)), "voxel_mm"),
    ],
)
def test_refusals_name_the_field(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@real
def test_matlab_model_is_the_nifti_one():
    folder = ROOT / "brainweb_labels"
    mat, _, _ = read_labels(folder / "mrilab_BrainModel.mat", voxel_mm=(1.0, 1.0, 1.0))
    nifti, spacing, _ = read_labels(folder / "brainweb_normal_discrete_1mm.nii.gz")
    np.testing.assert_array_equal(mat, nifti)
    assert spacing == (1.0, 1.0, 1.0)


@real
def test_twelve_classes_of_subject_04():
    # pixels of 0.5 mm as the source holds them: README of the folder, CSF and dura together, fat and connective
    file = ROOT / "brainweb_labels" / "komamri_brain2D.mat"
    spec = BrainWeb(path=f"{file}:axial", labels="twelve-komamri", voxel_mm=(0.5, 0.5, 0.5))
    counts = as_fractions(spec.load("test", 2).volumes[0]).sum(axis=(1, 2, 3), dtype=float)
    axial = loadmat(file)["axial"]
    by_tissue = dict(zip(spec.tissues, counts, strict=True))
    assert (by_tissue["gm"], by_tissue["wm"], by_tissue["vessel"]) == (35568, 32632, 355)
    assert by_tissue["csf"] == np.isin(axial, (23, 232)).sum()
    assert by_tissue["fat"] == np.isin(axial, (93, 209)).sum()
    assert sum(counts) == (axial > 0).sum()


@real
def test_whole_heads_map_every_label_that_their_source_lists():
    folder = ROOT / "head_labels_synthseg"
    listed = set(np.load(folder / "generation_labels.npy").tolist()) - {0}
    assert listed <= set(LABEL_SCHEMES["synthseg"])
    spec = BrainWeb(path=str(folder / "training_seg_01.nii.gz"), labels="synthseg", block=2)
    volume = as_fractions(spec.load("test", 2).volumes[0])
    ml = dict(zip(spec.tissues, volume.sum(axis=(1, 2, 3), dtype=float) * 8 / 1000, strict=True))
    # README: cortex 401.954 ml, WM 438.776 ml, CSF 416.650 ml; each tissue holds more structures than these
    assert ml["gm"] > 401.9
    assert ml["wm"] > 438.7
    assert ml["csf"] > 416.6
    # 507 and the muscles of the eye; 511 and mucosa; 515
    assert ml["muscle"] == pytest.approx((1804210 + 3471) / 1000, rel=1e-6)
    assert ml["skin"] == pytest.approx((431620 + 36607) / 1000, rel=1e-6)
    assert ml["skull"] == pytest.approx(428369 / 1000, rel=1e-6)
    # SynthSeg groups the labels by intensity: those of one class are one tissue here
    by_class = {}
    for label, group in zip(
        np.load(folder / "generation_labels.npy"), np.load(folder / "generation_classes.npy"), strict=True
    ):
        by_class.setdefault(int(group), set()).add(LABEL_SCHEMES["synthseg"].get(int(label)))
    assert all(len(tissues) == 1 for tissues in by_class.values())


@real
def test_freesurfer_brain():
    spec = BrainWeb(path=str(ROOT / "brain_t1w_aseg_voxelmorph" / "aseg_labels.nii.gz"), labels="freesurfer")
    volume = as_fractions(spec.load("train", 2).volumes[0])
    counts = dict(zip(spec.tissues, volume.sum(axis=(1, 2, 3), dtype=float), strict=True))
    # README: white matter 543858 and cortex 697211 voxels, among others of the same tissue
    assert counts["wm"] > 543858
    assert counts["gm"] > 697211
    with pytest.raises(InputError, match=r"which phantom\.labels does not name"):
        BrainWeb(path=spec.path, labels="twelve").load("train", 2)


@pytest.mark.parametrize("dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_what_is_no_real_number_is_refused(tmp_path: Path, dtype: object) -> None:
    file = tmp_path / "labels.nii.gz"
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), dtype=dtype), np.eye(4))  # type: ignore[call-overload,no-untyped-call]
    nibabel.save(image, file)
    with pytest.raises(InputError, match=r"labels\.nii\.gz holds numbers of type .*, wanted one real number"):
        read_labels(file)
