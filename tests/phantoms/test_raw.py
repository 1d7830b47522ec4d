"""NumPy, HDF5 and ISMRMRD in and out; ISMRMRD against the package of its authors."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from phantoms.files.raw import open_scan
from qsim.errors import InputError


def noise(*shape: int, seed: int = 1, dtype: type = np.complex64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


def head(**changes: object) -> dict[str, object]:
    """What the head of a line holds; unset counters are 0."""
    return {"center_sample": 4, **changes}


def write_ismrmrd(path: Path, lines: list[tuple[dict, np.ndarray]], xml: str) -> None:
    """Lines (head, samples (c, x)) written by the package of the format's authors."""
    ismrmrd = pytest.importorskip("ismrmrd")
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(xml)
    for changes, samples in lines:
        line = ismrmrd.Acquisition.from_array(samples)
        for name, value in changes.items():
            if name in ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "contrast", "average", "repetition"):
                setattr(line.idx, name, value)
            elif name == "flag":
                line.set_flag(value)
            else:
                setattr(line, name, value)
        dataset.append_acquisition(line)
    dataset.close()


def xml_of(x: int, y: int, z: int = 1, centre: int | None = None, trajectory: str = "cartesian") -> str:
    limits = "" if centre is None else f"<kspace_encoding_step_1><center>{centre}</center></kspace_encoding_step_1>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        f"<encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>"
        f"<fieldOfView_mm><x>{2.0 * x}</x><y>{1.5 * y}</y><z>{5.0 * z}</z></fieldOfView_mm></encodedSpace>"
        f"<encodingLimits>{limits}</encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"
    )


def test_the_ismrmrd_file_holds_the_image_behind_it(data_folder):
    folder = data_folder / "kspace"
    scan = open_scan(str(folder / "brain_sim_ismrmrd.h5")).read()
    assert (scan.values.shape, scan.domain, scan.sampled) == ((1, 1, 256, 256), "kspace", None)
    # README of the data: fftshift(ifft2(ifftshift(K))), transposed
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(scan.values[0, 0])))
    truth = np.load(folder / "brain_sim_truth.npy")
    assert np.corrcoef(np.abs(image).T.ravel(), truth.ravel())[0, 1] > 0.9999


def test_the_shipped_ismrmrd_file_comes_back(data_folder, tmp_path):
    source = data_folder / "kspace" / "brain_sim_ismrmrd.h5"
    file = open_scan(str(source))
    scan = file.read()
    file.write(scan.values, tmp_path / "same.h5")
    file.write(2 * scan.values, tmp_path / "twice.h5")
    file.write(2 * scan.values, tmp_path / "again.h5")
    assert np.array_equal(open_scan(str(tmp_path / "same.h5")).read().values, scan.values)
    assert np.array_equal(open_scan(str(tmp_path / "twice.h5")).read().values, 2 * scan.values)
    assert (tmp_path / "twice.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    with h5py.File(source) as before, h5py.File(tmp_path / "twice.h5") as after:
        assert np.array_equal(before["dataset/data"].fields("head")[()], after["dataset/data"].fields("head")[()])
        assert before["dataset/xml"][0] == after["dataset/xml"][0]


def test_lines_in_any_order_go_where_their_counters_say(tmp_path):
    kspace = noise(2, 3, 5, 8)
    order = np.random.default_rng(2).permutation(10)
    lines = [(head(kspace_encode_step_1=i % 5, slice=i // 5), kspace[i // 5, :, i % 5]) for i in order.tolist()]
    # a noise scan of other extent comes first, as on a scanner
    flagged = (head(flag=19, center_sample=0), noise(3, 20))
    write_ismrmrd(tmp_path / "a.h5", [flagged, *lines], xml_of(8, 5))
    file = open_scan(str(tmp_path / "a.h5"))
    scan = file.read()
    assert np.array_equal(scan.values, kspace)
    assert scan.spacing_mm == (1.5, 2.0)
    assert scan.assumed == ("1 lines hold no image (noise, calibration): they stay as they are",)
    file.write(scan.values * 1j, tmp_path / "b.h5")
    ismrmrd = pytest.importorskip("ismrmrd")
    again = ismrmrd.Dataset(str(tmp_path / "b.h5"), "dataset", create_if_needed=False)
    assert np.array_equal(again.read_acquisition(0).data, flagged[1])
    for number, i in enumerate(order.tolist(), 1):
        assert np.array_equal(again.read_acquisition(number).data, 1j * kspace[i // 5, :, i % 5])
    again.close()


def test_partitions_make_a_volume(tmp_path):
    kspace = noise(3, 5, 8)
    lines = [
        (head(kspace_encode_step_1=y, kspace_encode_step_2=z), kspace[z, y][None]) for z in range(3) for y in range(5)
    ]
    write_ismrmrd(tmp_path / "a.h5", lines, xml_of(8, 5, 3))
    scan = open_scan(str(tmp_path / "a.h5")).read()
    assert np.array_equal(scan.values[0, 0], kspace)
    assert (scan.axes, scan.spacing_mm) == ("zyx", (5.0, 1.5, 2.0))


def test_asymmetric_echo_and_missing_lines(tmp_path):
    # six of eight samples, k = 0 at the third; of nine rows those from 2 on, k = 0 counted as 6
    kspace = noise(1, 9, 6)
    lines = [(head(kspace_encode_step_1=y + 2, center_sample=2), kspace[:, y]) for y in range(2, 9)]
    write_ismrmrd(tmp_path / "a.h5", lines, xml_of(8, 9, centre=6))
    file = open_scan(str(tmp_path / "a.h5"))
    scan = file.read()
    expected = np.zeros((9, 8), np.complex64)
    # row = step - 6 + 4, column = sample - 2 + 4
    expected[2:9, 2:8] = kspace[0, 2:]
    assert np.array_equal(scan.values[0, 0], expected)
    assert np.array_equal(scan.sampled[0, 0], expected != 0)
    file.write(scan.values * 3, tmp_path / "b.h5")
    assert np.array_equal(open_scan(str(tmp_path / "b.h5")).read().values[0, 0], 3 * expected)


@pytest.mark.parametrize(
    ("lines", "xml", "message"),
    [
        ([head()], xml_of(8, 5, trajectory="radial"), "trajectory is radial, only Cartesian"),
        ([head(flag=22)], xml_of(8, 5), "line 0 is read backwards"),
        ([head(flag=53)], xml_of(8, 5), "line 0 is compressed"),
        ([head(flag=19)], xml_of(8, 5), "holds no line of an image"),
        ([head(), head()], xml_of(8, 5), "line 1 was measured before"),
        ([head(kspace_encode_step_1=5)], xml_of(8, 5), "kspace_encode_step_1 goes from 5 to 5"),
        ([head(kspace_encode_step_1=0)], xml_of(8, 5, centre=3), "kspace_encode_step_1 goes from 0 to 0"),
        ([head(kspace_encode_step_2=1)], xml_of(8, 5), "kspace_encode_step_2 goes from 1 to 1"),
        ([head(center_sample=0)], xml_of(8, 5), "about center_sample 0 do not fit the 8 samples"),
        ([head(encoding_space_ref=1)], xml_of(8, 5), "second encoding space"),
        ([head(), head(kspace_encode_step_1=1, center_sample=3)], xml_of(8, 5), "center_sample differs between lines"),
        ([head()], xml_of(0, 5), "matrixSize of its header"),
        ([head()], "no xml", "XML header cannot be read"),
        ([head()], "<!DOCTYPE a []><a/>", "defines entities"),
        ([head()], "<a/>", "holds 0 encodings"),
        ([head()], xml_of(8, 5).replace("<x>8</x>", "<x>eight</x>"), "wanted a number"),
    ],
)
def test_what_ismrmrd_can_hold_and_this_cannot(tmp_path, lines, xml, message):
    write_ismrmrd(tmp_path / "a.h5", [(line, noise(1, 8)) for line in lines], xml)
    with pytest.raises(InputError, match=message) as caught:
        open_scan(str(tmp_path / "a.h5")).read()
    assert str(caught.value).startswith(str(tmp_path / "a.h5"))
    assert "\n" not in str(caught.value)


def test_fastmri(tmp_path):
    kspace = noise(4, 3, 7, 6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("kspace", data=kspace, chunks=(1, 3, 7, 6), compression="gzip")
        file["ismrmrd_header"] = "<a/>"
        file["reconstruction_rss"] = np.ones((4, 7, 6), np.float32)
        file.attrs["acquisition"] = "CORPD_FBK"
    file = open_scan(str(tmp_path / "a.h5"))
    scan = file.read()
    assert np.array_equal(scan.values, kspace)
    assert scan.assumed == ("the axes are those of fastMRI: n c y x",)
    file.write(scan.values + 1, tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as again:
        assert np.array_equal(again["kspace"][()], kspace + 1)
        assert (again["kspace"].compression, again["kspace"].chunks) == ("gzip", (1, 3, 7, 6))
        assert again.attrs["acquisition"] == "CORPD_FBK"
        assert np.array_equal(again["reconstruction_rss"][()], np.ones((4, 7, 6)))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, ">c8"])
@pytest.mark.parametrize(
    ("letters", "shape"), [(None, (7, 6)), ("cyx", (3, 7, 6)), ("xyc", (6, 7, 3)), (None, (2, 7, 6))]
)
def test_numpy_kspace_comes_back(tmp_path, dtype, letters, shape):
    array = noise(*shape, dtype=np.complex128).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", data=array, other=np.arange(3))
    for name, inside in (("a.npy", ""), ("a.npz", ":data")):
        file = open_scan(str(tmp_path / name) + inside, kspace=True, axes=letters)
        scan = file.read()
        assert scan.domain == "kspace"
        assert scan.values.dtype == np.dtype(dtype).newbyteorder("=")
        target = tmp_path / f"b{Path(name).suffix}"
        file.write(scan.values, target)
        loaded = np.load(target)
        assert np.array_equal(loaded if name == "a.npy" else loaded["data"], array)
        if name == "a.npz":
            assert np.array_equal(loaded["other"], np.arange(3))
            loaded.close()
            first = hashlib.sha256(target.read_bytes()).digest()
            file.write(scan.values, target)
            assert hashlib.sha256(target.read_bytes()).digest() == first


def test_letters_put_coils_where_they_belong(tmp_path):
    array = noise(6, 3, 7)
    np.save(tmp_path / "a.npy", array)
    values = open_scan(str(tmp_path / "a.npy"), kspace=True, axes="xcy").read().values
    assert values.shape == (1, 3, 7, 6)
    assert values[0, 2, 5, 4] == array[4, 2, 5]


def test_the_undersampled_coils_are_known_as_such(data_folder):
    file = open_scan(str(data_folder / "kspace" / "brain_8ch_poisson8x_ksp.npy"), kspace=True, axes="cyx")
    scan = file.read()
    assert scan.values.shape == (1, 8, 230, 180)
    # README of the data: 12.4 % of the points are not zero
    assert scan.sampled.mean() == pytest.approx(0.124, abs=0.001)
    assert "were not measured" in scan.assumed[0]


def test_a_single_zero_is_chance(data_folder, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    data = scipy_io.loadmat(data_folder / "kspace" / "brain_sag_se_ksp.mat")["data"]
    np.save(tmp_path / "a.npy", data)
    scan = open_scan(str(tmp_path / "a.npy"), kspace=True).read()
    assert (np.abs(data) == 0).sum() == 1
    assert scan.sampled is None


def test_magnitudes_of_numpy_have_no_phase(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((7, 6), np.float32))
    scan = open_scan(str(tmp_path / "a.npy")).read()
    assert scan.real
    assert "taken as zero" in scan.assumed[0]


def refused(tmp_path: Path, image: str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_scan(str(tmp_path / image), **options).read()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bad_numpy(tmp_path):
    for name, array in {
        "real": np.ones((7, 6)),
        "nan": np.full((7, 6), np.nan + 0j),
        "zero": np.zeros((7, 6), complex),
        "line": noise(7),
        "many": noise(2, 2, 2, 7, 6),
        "empty": noise(0, 6),
        "text": np.array([["a", "b"], ["c", "d"]]),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "object.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=noise(7, 6), b=noise(7, 6))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    for image, options, message in (
        ("real.npy", {"kspace": True}, "k-space must be complex64 or complex128, got float64"),
        ("nan.npy", {"kspace": True}, "NaN or infinity in 42 of 42 samples"),
        ("zero.npy", {"kspace": True}, "every sample of k-space is 0"),
        ("line.npy", {"kspace": True}, "line.npy: its array of shape (7,) has 1 axis; name them with --axes, such as"),
        ("many.npy", {"kspace": True}, "has 5 axes; name them with --axes, such as"),
        ("empty.npy", {}, "has an empty axis"),
        ("text.npy", {}, "wanted real or complex numbers"),
        ("object.npy", {}, "cannot be read"),
        ("two.npz", {}, "it holds a, b"),
        ("two.npz:c", {}, "it holds a, b"),
        ("broken.npy", {}, "cannot be read"),
        ("broken.npz", {}, "cannot be read"),
        ("real.npy", {"axes": "yz"}, "--axes: got 'yz'"),
        ("real.npy", {"axes": "yxx"}, "--axes: got 'yxx'"),
        ("real.npy", {"axes": "cyx"}, "--axes cyx names 3 axes, its array of shape (7, 6) has 2 axes"),
        ("missing.npy", {}, "no such file"),
        ("picture.jpg", {}, "unknown suffix '.jpg'"),
    ):
        assert message in refused(tmp_path, image, **options)


def test_bad_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["real"] = np.ones((7, 6))
        file["one"] = noise(7, 6)
        file["two"] = noise(7, 6)
        layout = h5py.VirtualLayout((7, 6), np.complex64)
        layout[...] = h5py.VirtualSource(str(tmp_path / "elsewhere.h5"), "x", (7, 6), np.complex64)
        file.create_virtual_dataset("virtual", layout)
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    for image, message in (
        ("a.h5", "it holds one (7, 6) complex64"),
        ("a.h5:three", "name a dataset as a.h5:NAME"),
        ("a.h5:real", "got float64; images in HDF5 are not read, save them as NumPy or NIfTI"),
        ("a.h5:virtual", "keeps its values in other files"),
        ("broken.h5", "cannot be read"),
    ):
        assert message in refused(tmp_path, image)
    assert open_scan(str(tmp_path / "a.h5:two")).read().values.shape == (1, 1, 7, 6)
