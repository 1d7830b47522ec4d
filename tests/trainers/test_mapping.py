"""`qsim map`: maps of a measured series against the truth, against scipy, and as files."""

import hashlib
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from phantoms.files.map_files import read_map
from phantoms.series.base import Series
from phantoms.series.motion import Movement
from qsim.errors import InputError
from qsim.estimators import Estimate, Status
from qsim.information import crb
from qsim.signals import GradientEcho, InversionRecovery, SpinEcho, T2Prep, VariableFlipAngle
from tests.phantoms.test_derivatives import AFFINE, validate
from tests.phantoms.test_registration import brain
from trainers import cli
from trainers.mapping import motion
from trainers.mapping.inputs import MapJob, foreground
from trainers.mapping.series import map_series

TE = (0.01, 0.02, 0.04, 0.06, 0.09, 0.13)
TI = (0.05, 0.1, 0.2, 0.5, 2.0, 4.0)
SHAPE = (3, 17, 15)
SIGMA = 4.0


def truth():
    """A [units of the scanner] and T2 [s] of a ball-like object in air, another in each slice."""
    z, y, x = np.indices(SHAPE)
    inside = (y - 8) ** 2 + (x - 7) ** 2 < 36
    return np.where(inside, 800.0 + 40 * x, 0.0), np.where(inside, 0.04 + 0.01 * z + 0.002 * y, np.nan), inside


def decay(sigma=SIGMA, name="sub-01_MESE", **changes):
    """A series of a decay, magnitudes of complex noise."""
    a, t2, inside = truth()
    rng = np.random.default_rng(3)
    clean = [np.where(inside, a * np.exp(-te / np.where(inside, t2, 1)), 0) for te in TE]
    noisy = [np.abs(s + sigma * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))) for s in clean]
    given = {"affine": AFFINE, "spacing_mm": (3.0, 0.91, 0.91), "suffix": "MESE"} | changes
    return Series(
        name, (Path("/data/sub-01_MESE.nii.gz"),), tuple(v.astype(np.float32) for v in noisy), "EchoTime", TE, **given
    )


MODEL = SpinEcho(te=TE)


def maps(out, record):
    return {Path(m.file).name.split("_")[-1][:-7]: read_map(out / m.file) for m in record.maps}


def test_a_noise_free_series_gives_the_truth(tmp_path):
    a, t2, inside = truth()
    record = map_series(decay(sigma=0.0), MODEL, MapJob(out=tmp_path / "o", method="least-squares"))
    found = maps(tmp_path / "o", record)
    # float32 images and maps: seven digits
    np.testing.assert_allclose(found["T2map"][inside], t2[inside], rtol=1e-5)
    np.testing.assert_allclose(found["S0map"][inside], a[inside], rtol=1e-5)
    assert np.isnan(found["T2map"][~inside]).all()
    status = read_map(tmp_path / "o/sub-01/anat/sub-01_desc-status_T2map.nii.gz")
    assert (status[inside] == Status.OK).all()
    assert (status[~inside] == Status.NOT_COMPUTED).all()


def test_the_numbers_of_the_summary_are_those_of_the_object(tmp_path):
    _, t2, inside = truth()
    record = map_series(decay(), MODEL, MapJob(out=tmp_path / "o", method="least-squares"))
    assert record.voxels == inside.sum()
    summary = next(m for m in record.maps if m.parameter == "T2")
    # the fit scatters by 1 % a voxel, the quartiles of 327 by less
    np.testing.assert_allclose(
        (summary.low, summary.median, summary.high), np.quantile(t2[inside], (0.25, 0.5, 0.75)), rtol=0.01
    )
    assert record.status["ok"] == 1.0


def test_sigma_is_found_in_the_air_and_said(tmp_path):
    record = map_series(decay(), MODEL, MapJob(out=tmp_path / "o", method="rician"))
    # 438 voxels of air, 6 images: 2628 values, standard error 1.4 %
    assert record.sigma == pytest.approx(SIGMA, rel=0.05)
    assert "background outside the object" in record.noise
    said = json.loads((tmp_path / "o/sub-01/anat/sub-01_T2map.json").read_text())
    assert said["Sigma"] == record.sigma
    assert said["SigmaSource"] == record.noise


def test_a_map_of_sigma_is_used_slice_by_slice(tmp_path):
    sigma = np.broadcast_to(np.array([2.0, 4.0, 8.0])[:, None, None], SHAPE).astype(np.float32)
    file = save(tmp_path / "sigma.nii.gz", sigma)
    whole = map_series(decay(), MODEL, MapJob(out=tmp_path / "o", method="rician", sigma=file))
    assert (whole.sigma, whole.noise) == (None, "a map as given, sigma.nii.gz")
    for z, level in enumerate((2.0, 4.0, 8.0)):
        one = map_series(decay(), MODEL, MapJob(out=tmp_path / str(z), method="rician", sigma=level, slices=(z, z + 1)))
        inside = truth()[2][z]
        np.testing.assert_allclose(
            maps(tmp_path / "o", whole)["T2map"][z][inside],
            maps(tmp_path / str(z), one)["T2map"][z][inside],
            rtol=1e-4,
        )


def test_a_series_without_residual(tmp_path):
    """Three images, three parameters, no air: a fit that needs no sigma goes on, one that needs it says so."""
    rng = np.random.default_rng(2)
    t1, ti = 0.5 + rng.random(SHAPE), (0.1, 0.8, 3.0)
    volumes = tuple((100 * (1 - 1.9 * np.exp(-t / t1))).astype(np.float32) for t in ti)
    series, model = Series("x", (), volumes, "InversionTime", ti), InversionRecovery(ti=ti, signed=True)
    record = map_series(series, model, MapJob(out=tmp_path / "o", method="least-squares"))
    assert record.sigma is None
    assert record.noise.startswith("not used; 3 images leave no residual")
    np.testing.assert_allclose(maps(tmp_path / "o", record)["T1map"], t1, rtol=1e-4)
    with pytest.raises(InputError, match=r"^sigma: 3 images leave no residual to estimate the noise from; give sigma"):
        map_series(series, model, MapJob(out=tmp_path / "p", method="least-squares", std=True))
    assert not (tmp_path / "p").exists()


def test_standard_deviations_are_the_bound(tmp_path):
    a, t2, inside = truth()
    out = tmp_path / "o"
    map_series(decay(sigma=0.0), MODEL, MapJob(out=out, method="least-squares", std=True, sigma=5.0))
    kappa = torch.from_numpy(np.stack([a[inside], t2[inside]]))
    bound = crb(MODEL, kappa, torch.tensor(5.0, dtype=torch.float64))
    for row, suffix in enumerate(("S0map", "T2map")):
        std = read_map(out / f"sub-01/anat/sub-01_desc-std_{suffix}.nii.gz")[inside]
        np.testing.assert_allclose(std, bound.sd[row].numpy(), rtol=1e-4)


def test_any_slab_gives_the_same_maps_and_unmapped_slices_are_empty(tmp_path, monkeypatch):
    series, job = decay(), {"method": "least-squares", "sigma": 4.0}
    whole = map_series(series, MODEL, MapJob(out=tmp_path / "a", **job))
    monkeypatch.setattr("trainers.mapping.task._VOXELS", 1)
    told = []
    map_series(series, MODEL, MapJob(out=tmp_path / "b", **job), lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr("trainers.mapping.task._VOXELS", 1 << 17)
    one = map_series(series, MODEL, MapJob(out=tmp_path / "c", slices=(1, 2), **job))
    for each in whole.maps:
        values = read_map(tmp_path / "a" / each.file)
        np.testing.assert_array_equal(read_map(tmp_path / "b" / each.file), values)
        np.testing.assert_array_equal(read_map(tmp_path / "c" / each.file)[1], values[1])
        assert np.isnan(read_map(tmp_path / "c" / each.file)[[0, 2]]).all()
    status = read_map(tmp_path / "c/sub-01/anat/sub-01_desc-status_T2map.nii.gz")
    assert (status[[0, 2]] == Status.NOT_COMPUTED).all()
    assert one.voxels == whole.voxels / 3
    # the slices beside it are not mapped, but no air either
    found = map_series(series, MODEL, MapJob(out=tmp_path / "d", slices=(1, 2), method="least-squares"))
    assert found.noise.endswith("; slice 1")
    assert found.sigma == pytest.approx(SIGMA, rel=0.1)


def save(file, values, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(values.T, affine), file)
    return file


def test_mask_and_broken_voxels(tmp_path):
    series = decay()
    series.volumes[2][1, 8, 7] = np.nan
    _, _, inside = truth()
    mask = inside & (np.indices(SHAPE)[2] < 9)
    file = save(tmp_path / "m.nii.gz", mask.astype(np.uint8))
    record = map_series(series, MODEL, MapJob(out=tmp_path / "o", method="least-squares", mask=file))
    t2 = maps(tmp_path / "o", record)["T2map"]
    expected = mask.copy()
    expected[1, 8, 7] = False
    np.testing.assert_array_equal(np.isfinite(t2), expected)
    assert record.voxels == mask.sum()
    assert any("1 voxels hold NaN or infinity" in note for note in record.notes)
    auto = map_series(decay(), MODEL, MapJob(out=tmp_path / "p", method="least-squares", mask="auto"))
    np.testing.assert_array_equal(np.isfinite(maps(tmp_path / "p", auto)["T2map"]), inside)


def test_the_object_is_told_from_the_air_where_one_tissue_is_dark():
    rng = np.random.default_rng(0)
    _, _, inside = truth()
    a = np.where(inside, 250.0, 0)
    a[inside & (np.indices(SHAPE)[1] < 5)] = 1000.0
    series = decay()
    volumes = tuple(np.hypot(a + rng.normal(size=SHAPE), rng.normal(size=SHAPE)).astype(np.float32) for _ in TE)
    found = foreground(Series("x", (), volumes, "EchoTime", TE), range(3), 2)
    np.testing.assert_array_equal(found, inside)
    assert not foreground(series, range(1, 2), 1)[[0, 2]].any()


def recovery(b, name="sub-01_IRT1"):
    """A magnitude inversion recovery with one B for each slice."""
    rng = np.random.default_rng(5)
    t1 = 0.5 + 1.2 * rng.random(SHAPE)
    clean = [100 * (1 - np.asarray(b)[:, None, None] * np.exp(-ti / t1)) for ti in TI]
    volumes = tuple(np.abs(s + 0.05 * rng.normal(size=SHAPE)).astype(np.float32) for s in clean)
    return Series(name, (), volumes, "InversionTime", TI, affine=AFFINE, spacing_mm=(3.0, 0.91, 0.91)), t1


def test_a_pooled_b_is_that_of_each_slice_and_the_note_says_so(tmp_path):
    b = (1.8, 1.9, 2.0)
    series, t1 = recovery(b)
    record = map_series(series, InversionRecovery(ti=TI), MapJob(out=tmp_path / "o", method="shared-b", sigma=0.05))
    found = maps(tmp_path / "o", record)
    # SNR 2000
    np.testing.assert_allclose(np.median(found["Bmap"], axis=(1, 2)), b, atol=2e-3)
    np.testing.assert_allclose(np.median(found["T1map"] / t1), 1, atol=2e-3)
    assert any(note.startswith("B is common to the voxels of a slice") for note in record.notes)
    said = json.loads((tmp_path / "o/sub-01/anat/sub-01_Bmap.json").read_text())
    assert said["InversionTimes"] == list(TI)
    assert said["Units"] == "1"


def test_what_is_known_is_used_and_not_written(tmp_path):
    series, t1 = recovery((1.9, 1.9, 1.9))
    model = InversionRecovery(ti=TI)
    number = map_series(series, model, MapJob(out=tmp_path / "a", method="least-squares", known={"B": 1.9}))
    file = save(tmp_path / "b.nii", np.full(SHAPE, 1.9, dtype=np.float32))
    field = map_series(series, model, MapJob(out=tmp_path / "b", method="least-squares", known={"B": file}))
    assert [m.parameter for m in number.maps] == ["A", "T1"]
    np.testing.assert_allclose(maps(tmp_path / "a", number)["T1map"] / t1, 1, atol=0.01)
    np.testing.assert_allclose(maps(tmp_path / "a", number)["T1map"], maps(tmp_path / "b", field)["T1map"], rtol=1e-6)
    assert json.loads((tmp_path / "b/sub-01/anat/sub-01_T1map.json").read_text())["Known"] == {"B": "b.nii"}


def test_b1_beside_the_series_is_taken(tmp_path):
    angles, tr = (np.radians(3.0), np.radians(10.0), np.radians(20.0)), 0.015
    model = VariableFlipAngle(flip_angles=angles, tr=tr)
    b1 = np.broadcast_to(np.linspace(0.8, 1.2, SHAPE[2]), SHAPE).astype(np.float32)
    kappa = torch.from_numpy(np.stack([np.full(SHAPE, 700.0), np.full(SHAPE, 1.1), b1.astype(float)]))
    volumes = tuple(model(kappa).float().numpy())
    series = Series("sub-1_VFA", (), volumes, "FlipAngle", angles, {"RepetitionTime": tr}, b1=b1)
    record = map_series(series, model, MapJob(out=tmp_path / "o", method="least-squares", sigma=1.0))
    np.testing.assert_allclose(maps(tmp_path / "o", record)["T1map"], 1.1, rtol=1e-3)
    said = json.loads((tmp_path / "o/sub-1/anat/sub-1_T1map.json").read_text())
    np.testing.assert_allclose(said["FlipAngle"], [3, 10, 20])
    assert any("the series brings its map" in note for note in record.notes)
    bare = Series("sub-1_VFA", (), volumes, "FlipAngle", angles)
    nominal = map_series(bare, model, MapJob(out=tmp_path / "p", method="least-squares", sigma=1.0))
    # small angles: the signal depends on (angle^2 T1), so T1 comes out as B1^2 T1
    np.testing.assert_allclose(maps(tmp_path / "p", nominal)["T1map"] / (1.1 * b1**2), 1, atol=0.02)
    assert any(note.startswith("no map of the transmit field: REL_B1 = 1 is taken") for note in nominal.notes)
    said = json.loads((tmp_path / "p/sub-1/anat/sub-1_T1map.json").read_text())
    assert said["Known"] == {"REL_B1": 1.0}


@pytest.mark.parametrize("sigma", [None, 1.0])
def test_voxels_without_b1_are_not_computed_and_counted(tmp_path, sigma):
    """A field map that ends inside the object, and one value that no field has: the rest is as with a whole map."""
    angles, tr = (np.radians(3.0), np.radians(10.0), np.radians(20.0)), 0.015
    model = VariableFlipAngle(flip_angles=angles, tr=tr)
    b1 = np.broadcast_to(np.linspace(0.8, 1.2, SHAPE[2]), SHAPE).astype(np.float32)
    _, _, inside = truth()
    kappa = torch.from_numpy(np.stack([np.where(inside, 7000.0, 0.0), np.full(SHAPE, 1.1), b1.astype(float)]))
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=(2, *SHAPE)) for _ in angles]
    clean = model(kappa).numpy()
    volumes = tuple(np.hypot(s + n[0], n[1]).astype(np.float32) for s, n in zip(clean, noise, strict=True))
    holed = b1.copy()
    holed[:, 10:] = np.nan
    holed[0, 5, 7], holed[1, 5, 7] = 0.1, 2.5
    lost = ~((holed >= 0.2) & (holed <= 2))
    found = {}
    for name, field in (("whole", b1), ("holed", holed)):
        series = Series("sub-1_VFA", (), volumes, "FlipAngle", angles, {"RepetitionTime": tr}, b1=field)
        record = map_series(series, model, MapJob(out=tmp_path / name, method="least-squares", sigma=sigma))
        found[name] = maps(tmp_path / name, record)["T1map"]
        # the hole is in the object and no air: the noise is that of the whole series
        assert record.sigma == pytest.approx(1.0, rel=0.05)
    np.testing.assert_array_equal(np.isnan(found["holed"]), lost | np.isnan(found["whole"]))
    np.testing.assert_allclose(found["holed"][~lost], found["whole"][~lost], rtol=1e-5)
    status = read_map(tmp_path / "holed/sub-1/anat/sub-1_desc-status_T1map.nii.gz")
    assert (status[lost] == Status.NOT_COMPUTED).all()
    assert f"REL_B1 has no value from 0.2 to 2 in {lost.sum()} of {lost.size} voxels: not computed" in record.notes
    empty = Series("x", (), volumes, "FlipAngle", angles, {"RepetitionTime": tr}, b1=np.full_like(b1, np.nan))
    with pytest.raises(InputError, match=r"^--known REL_B1: no voxel of its map holds a value from 0.2 to 2"):
        map_series(empty, model, MapJob(out=tmp_path / "none", method="least-squares"))


def test_a_recovery_and_a_decay_of_one_subject_live_in_one_folder(tmp_path):
    out = tmp_path / "o"
    series, _ = recovery((1.9, 1.9, 1.9), "sub-01_IRT1")
    map_series(series, InversionRecovery(ti=TI), MapJob(out=out, method="least-squares", sigma=0.05))
    before = (out / "sub-01/anat/sub-01_M0map.nii.gz").read_bytes()
    map_series(decay(), MODEL, MapJob(out=out, method="least-squares"))
    assert {"M0map", "S0map", "T1map", "T2map"} <= {
        file.name.removesuffix(".nii.gz").split("_")[-1] for file in out.rglob("*.nii.gz")
    }
    assert (out / "sub-01/anat/sub-01_M0map.nii.gz").read_bytes() == before
    with pytest.raises(InputError, match=r"S0map.nii.gz exists already; .* add --overwrite"):
        map_series(decay(), MODEL, MapJob(out=out, method="least-squares"))
    map_series(decay(), MODEL, MapJob(out=out, method="least-squares", overwrite=True))


def test_a_method_for_magnitudes_refuses_signs_and_a_note_names_only_rows_of_the_model(tmp_path):
    series, _ = recovery((1.9, 1.9, 1.9))
    with pytest.raises(InputError, match=r"^--method: rician fits magnitudes, and the series is signed"):
        map_series(series, InversionRecovery(ti=TI, signed=True), MapJob(out=tmp_path / "o", method="rician"))
    record = map_series(decay(), MODEL, MapJob(out=tmp_path / "p", method="empirical-bayes", slices=(1, 2)))
    assert not any("common to the voxels" in note for note in record.notes)


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """Pictures take longer than maps: only the tests that look at them draw them."""
    if "picture" not in request.node.name and "validator" not in request.node.name:
        monkeypatch.setattr("trainers.mapping.series.picture", lambda panels, spacing, title, file: file.touch())


def test_a_method_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halved_signal_fit.py").write_text(
        "import numpy as np\nfrom qsim.estimators.adapters import VoxelByVoxel\n"
        "def build(model):\n"
        "    te = np.array(model.times)\n"
        "    def fit(s):\n"
        "        slope, top = np.polyfit(te, np.log(s), 1)\n"
        "        return np.exp(top), -1 / slope\n"
        "    return VoxelByVoxel('straight line', model, fit)\n"
    )
    _, t2, inside = truth()
    mask = save(tmp_path / "m.nii.gz", inside.astype(np.uint8))
    record = map_series(
        decay(sigma=0.0), MODEL, MapJob(out=tmp_path / "o", own="halved_signal_fit:build", mask=mask, sigma=1.0)
    )
    np.testing.assert_allclose(maps(tmp_path / "o", record)["T2map"][inside], t2[inside], rtol=1e-4)
    said = json.loads((tmp_path / "o/sub-01/anat/sub-01_T2map.json").read_text())
    assert said["Code"]["from"] == "halved_signal_fit:build"
    assert len(said["Code"]["sha256"]) == 64


@dataclass(frozen=True)
class Net:
    """What `load_estimator` returns, with straight-line arithmetic for a network."""

    images_unit: float = 1.0
    scale: tuple[float, float] | None = (0.8, 1.2)
    name: str = "net"
    parameters: tuple = MODEL.parameters
    needs_sigma: bool = True

    def __call__(self, images, sigma=None, mask=None, known=None):
        assert images.ndim == 3
        # an edge slice may be dark: the scale was looked at on the brightest
        assert self.scale is None
        seen = images / self.images_unit
        assert float(seen.max()) < 2
        kappa = torch.stack((seen.amax(0) * self.images_unit, torch.full_like(seen[0], 0.1)))
        return Estimate(kappa, torch.zeros(images.shape[1:], dtype=torch.uint8))


def test_a_network_sees_images_as_bright_as_its_training(tmp_path, monkeypatch):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.setattr("trainers.infer.load_estimator", lambda run, model, device, contrast, noise: Net())
    series = decay()
    record = map_series(series, MODEL, MapJob(out=tmp_path / "n", network=str(weights), device="cpu"))
    assert any(note.startswith("images divided by") for note in record.notes)
    np.testing.assert_allclose(maps(tmp_path / "n", record)["S0map"], np.max(series.volumes, 0), rtol=1e-5)
    said = json.loads((tmp_path / "n/sub-01/anat/sub-01_T2map.json").read_text())
    assert said["Network"] == {"File": "model.safetensors", "SHA256": hashlib.sha256(b"weights").hexdigest()}
    # neither air nor residuals
    _, _, inside = truth()
    short = replace(series, volumes=tuple(v * inside for v in series.volumes[:2]), times=TE[:2])
    record = map_series(short, SpinEcho(te=TE[:2]), MapJob(out=tmp_path / "s", network=str(weights), device="cpu"))
    assert (record.sigma, record.noise.split(", ")[0]) == (None, "found by net itself in each slice")
    for unit, wrong in ((1.0, "99th percentile of the images is then"), (-1.0, "must be a positive number")):
        job = MapJob(out=tmp_path / "m", network=str(weights), options={"images_unit": unit}, device="cpu")
        with pytest.raises(InputError, match=f"^--option images_unit: .*{wrong}"):
            map_series(series, MODEL, job)


def test_the_prior_is_of_times_and_not_of_the_units_of_the_scanner(tmp_path):
    job = {"method": "map", "tissues": "stanisz2005", "slices": (1, 2), "sigma": 4.0}
    with pytest.raises(InputError, match=r"^--tissues: missing; map needs the distributions"):
        map_series(decay(), MODEL, MapJob(out=tmp_path / "o", method="map"))
    one = map_series(decay(), MODEL, MapJob(out=tmp_path / "a", **job))
    series = decay()
    tenfold = Series("sub-01_MESE", (), tuple(10 * v for v in series.volumes), "EchoTime", TE)
    ten = map_series(tenfold, MODEL, MapJob(out=tmp_path / "b", **job | {"sigma": 40.0}))
    _, _, inside = truth()
    np.testing.assert_allclose(
        maps(tmp_path / "a", one)["T2map"][1][inside[1]], maps(tmp_path / "b", ten)["T2map"][1][inside[1]], rtol=1e-3
    )


def test_the_same_call_gives_the_same_bytes_and_a_picture(tmp_path):
    for name in ("a", "b"):
        map_series(decay(), MODEL, MapJob(out=tmp_path / name, method="least-squares", std=True))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    picture = tmp_path / "a/sub-01/anat/sub-01_T2map.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    from matplotlib.image import imread

    # air is black, tissue is not
    pixels = imread(picture)[..., :3].max(-1)
    assert pixels[:, 0].max() == 0
    assert (pixels > 0.2).mean() > 0.1


def test_the_validator_of_bids_finds_no_error(tmp_path):
    out = tmp_path / "derivatives"
    map_series(decay(), MODEL, MapJob(out=out, method="least-squares", std=True))
    map_series(decay(name="knee 7"), T2Prep(te_prep=TE), MapJob(out=out, method="rician", session="b"))
    series, _ = recovery((1.9, 1.9, 1.9), "sub-03_ses-1_run-2_inv-1_IRT1")
    map_series(series, InversionRecovery(ti=TI), MapJob(out=out, method="least-squares", sigma=1.0))
    assert sorted(p.name for p in out.iterdir()) == [
        ".bidsignore", "README", "dataset_description.json", "sub-01", "sub-03", "sub-knee7",
    ]  # fmt: skip
    assert (out / "sub-knee7/ses-b/anat/sub-knee7_ses-b_T2map.nii.gz").is_file()
    assert validate(out) == []


def run(monkeypatch, capsys, *arguments):
    """Exit code, and what was printed on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["qsim", "map", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def file(tmp_path):
    """A series as a user has it: 4D NIfTI and JSON."""
    folder = tmp_path / "in"
    folder.mkdir()
    stack = np.stack(decay().volumes)
    save(folder / "knee.nii.gz", stack)
    (folder / "knee.json").write_text(json.dumps({"EchoTime": TE}))
    return folder / "knee.nii.gz"


def test_the_command(tmp_path, file, monkeypatch, capsys, unchecked):
    out = tmp_path / "Karten für 1"
    code, printed, wrong = run(monkeypatch, capsys, file, "--method", "least-squares", "--out", out, "--mask", "auto")
    assert (code, wrong) == (0, "")
    # the true median is 66 ms, the third digit is noise
    assert re.search(r"^  T2map +median 6[567]\.\d+ ms, middle half \d+", printed, re.MULTILINE), printed
    assert "status       ok 100 %" in printed
    assert "sigma        sigma" in printed
    assert (out / "sub-knee/anat/sub-knee_T2map.nii.gz").is_file()
    code, _, wrong = run(monkeypatch, capsys, file, "--method", "least-squares", "--out", out)
    assert code == 2
    assert "exists already; name another folder, or add --overwrite" in wrong
    options = ("--option", "coils=1", "--signal", "t2_prep", "--times", "0.01,0.02,0.04,0.06,0.09,0.13")
    options += ("--slices", "1:2", "--sigma", "4", "--overwrite", "--json")
    code, printed, _ = run(monkeypatch, capsys, file, "--method", "rician", "--out", out, *options)
    assert code == 0
    record = json.loads(printed)
    assert record["sigma"] == 4.0
    assert json.loads((out / "sub-knee/anat/sub-knee_T2map.json").read_text())["SignalModel"]["kind"] == "t2_prep"


def test_the_command_is_told_signs_that_the_values_do_not_tell(tmp_path, monkeypatch, capsys, unchecked):
    """A fifth of the energy below zero: refused, then signed or a magnitude as it is said."""
    stack = np.abs(np.stack(recovery((1.9, 1.9, 1.9))[0].volumes))
    # E = a^2 / (a^2 + the others)
    stack[0] *= -np.sqrt(0.25 * (stack[1:] ** 2).sum(0) / stack[0] ** 2)
    save(tmp_path / "x.nii.gz", stack)
    (tmp_path / "x.json").write_text(json.dumps({"InversionTime": TI}))
    words = (tmp_path / "x.nii.gz", "--method", "least-squares", "--out", tmp_path / "out", "--overwrite", "--json")
    code, _, wrong = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "--signed: missing; negative values hold 20 % of the energy of the object: write --signed yes if" in wrong
    for said, signed in (("yes", True), ("no", False)):
        code, _, _ = run(monkeypatch, capsys, *words, "--signed", said)
        assert code == 0
        sidecar = json.loads(next((tmp_path / "out").rglob("*_T1map.json")).read_text())
        assert sidecar["SignalModel"]["signed"] is signed
    code, _, wrong = run(monkeypatch, capsys, *words, "--signed", "maybe")
    assert (code, "--signed: got 'maybe', wanted yes or no" in wrong) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--method: give one of --method, --model and --estimator, got none"),
        (("--method", "x", "--model", "y"), "got --method and --model"),
        (("--method", "nonsense"), "--method: unknown method 'nonsense'"),
        (("--method", "shared-b"), "--method: shared-b needs a model with B"),
        (("--method", "two-point", "--option", "third=1"), "two-point has no option 'third'"),
        (("--method", "rician", "--option", "coils"), "--option: got 'coils', wanted key=value"),
        (("--method", "rician", "--option", "coils=a"), "coils: got 'a', wanted int"),
        (("--method", "least-squares", "--tissues", "sabidussi2021"), "--tissues: least-squares is told nothing"),
        (("--method", "map", "--tissues", "mine"), "--tissues: got 'mine'"),
        (("--method", "least-squares", "--sigma", "0"), "--sigma: must be positive and finite, got 0"),
        (("--method", "least-squares", "--sigma", "nowhere.nii"), "--sigma: nowhere.nii does not exist"),
        (("--method", "least-squares", "--mask", "nowhere.nii"), "--mask: nowhere.nii does not exist"),
        (("--method", "least-squares", "--mask", "in/knee.json"), "--mask: in/knee.json is no NIfTI file"),
        (("--method", "least-squares", "--mask", "in/knee.nii.gz"), "has shape (15, 17, 3, 6), the images"),
        (("--method", "least-squares", "--mask", "moved.nii.gz"), "lie in different places"),
        (("--method", "least-squares", "--mask", "thirds.nii.gz"), "a mask says yes or no"),
        (("--method", "least-squares", "--mask", "empty.nii.gz"), "empty.nii.gz holds no voxel"),
        (("--method", "least-squares", "--mask", "short.nii.gz"), "--mask: short.nii.gz: cannot be read"),
        (("--method", "least-squares", "--known", "B=1.9"), "--known B: is no row of the model, which has A, T2"),
        (("--method", "least-squares", "--known", "T2"), "--known: got 'T2', wanted NAME=FILE"),
        (("--method", "least-squares", "--known", "T2=80"), "divide by 1000 if these are milliseconds"),
        (("--method", "least-squares", "--b1", "ones.nii.gz"), "--b1: the signal model has no REL_B1"),
        (("--method", "least-squares", "--b1", "nowhere.nii"), "--b1: nowhere.nii does not exist"),
        (("--method", "least-squares", "--slices", "2"), "--slices: got '2', wanted A:B"),
        (("--method", "least-squares", "--slices", "1:9"), "--slices: got 1:9, the series has slices 0 to 2"),
        (("--method", "least-squares", "--times", "a,b"), "--times: got 'a,b', wanted numbers in seconds"),
        (("--method", "least-squares", "--times", "0.1,0.2"), "--times: 2 times for 6 images"),
        (("--method", "least-squares", "--times", "10,20,40,60,90,130"), "divide by 1000 if these are milliseconds"),
        (("--method", "least-squares", "--voxel-mm", "1,1,1"), "knee.nii.gz says its own voxel size, 3.0"),
        (("--method", "least-squares", "--voxel-mm", "1x1x1"), "--voxel-mm: got '1x1x1', wanted z,y,x in mm"),
        (("--method", "least-squares", "--signal", "t3"), "--signal: got 't3'"),
        (("--method", "least-squares", "--subject", "a_b"), "--subject: got 'a_b'"),
        (("--model", "nowhere"), "--model: nowhere: neither a run of qsim train nor a shipped network"),
        (("--estimator", "nowhere"), "--estimator: got 'nowhere', wanted module:object"),
        (("--estimator", "no_such_module:build", "--std"), "--estimator: a method of your own has no --option, --std"),
        (("--method", "least-squares", "--out", "in/knee.json/x"), "is a file, wanted a folder"),
        (("--method", "least-squares", "--out", "in"), "in holds the series itself"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, file, monkeypatch, capsys, unchecked, arguments, said):
    monkeypatch.chdir(tmp_path)
    _, _, inside = truth()
    moved = AFFINE.copy()
    moved[0, 3] += 5
    save(tmp_path / "moved.nii.gz", inside.astype(np.uint8), moved)
    save(tmp_path / "thirds.nii.gz", (inside / 3).astype(np.float32) + 0.1)
    save(tmp_path / "ones.nii.gz", np.ones(SHAPE, dtype=np.float32))
    save(tmp_path / "empty.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    whole = save(
        tmp_path / "short.nii.gz", np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    ).read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(whole[: len(whole) // 2])
    before = sorted(tmp_path.rglob("*"))
    out = () if "--out" in arguments else ("--out", "new/maps")
    code, printed, wrong = run(monkeypatch, capsys, "in/knee.nii.gz", *out, *arguments)
    assert code == 2, wrong
    assert printed == ""
    assert len(wrong.strip().splitlines()) == 1
    assert said in wrong
    assert sorted(tmp_path.rglob("*")) == before


def test_a_method_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "stops_at_second.py").write_text(
        "from qsim.estimators.adapters import VoxelByVoxel\n"
        "def build(model):\n"
        "    inner = VoxelByVoxel('x', model, lambda s: (1.0, 0.1))\n"
        "    class Stops:\n"
        "        name, parameters, calls = 'stops', model.parameters, 0\n"
        "        def __call__(self, images, sigma=None, mask=None, known=None):\n"
        "            self.calls += 1\n"
        "            if self.calls > 2:\n"
        "                raise OverflowError('lost')\n"
        "            return inner(images, sigma, mask, known)\n"
        "    return Stops()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"stops_at_second:build raised OverflowError: lost \(slices 1 to 1\)"):
        map_series(decay(), MODEL, MapJob(out=tmp_path / "new" / "o", own="stops_at_second:build", sigma=1.0))
    assert not (tmp_path / "new").exists()


def test_nothing_to_map(tmp_path):
    empty = Series("x", (), tuple(np.zeros(SHAPE, dtype=np.float32) for _ in TE), "EchoTime", TE)
    with pytest.raises(InputError, match="no voxel can be mapped"):
        map_series(empty, MODEL, MapJob(out=tmp_path / "o", method="least-squares"))
    with pytest.raises(InputError, match="holds 6 images, the signal model has 2 times"):
        map_series(decay(), SpinEcho(te=(0.1, 0.2)), MapJob(out=tmp_path / "o", method="least-squares"))
    assert not list(tmp_path.iterdir())


def shifted(series, image, voxels):
    volumes = list(series.volumes)
    volumes[image] = np.roll(volumes[image], voxels, axis=2)
    return replace(series, volumes=tuple(volumes))


def brain_series(sigma=1.0):
    """An inversion recovery of a slice of the MNI brain, 1 mm: signed images, and T1 [s]."""
    a, t1 = brain()
    rng = np.random.default_rng(4)
    clean = [a * (1 - 1.9 * np.exp(-ti / t1)) for ti in TI]
    volumes = tuple((each + sigma * rng.standard_normal(a.shape)).astype(np.float32) for each in clean)
    return Series(
        "sub-01_IRT1", (), volumes, "InversionTime", TI, spacing_mm=(4.0, 1.0, 1.0), affine=np.diag([1, 1, 4, 1.0])
    ), t1


def test_motion_is_told_and_registration_takes_it_away(tmp_path, drawn):
    series, t1 = brain_series()
    # whole voxels: nothing is interpolated on the way into the series
    model, moved = InversionRecovery(ti=TI, signed=True), shifted(series, 3, 3)
    still = map_series(series, model, MapJob(out=tmp_path / "still", method="least-squares"))
    assert not any("motion" in note for note in still.notes)
    flagged = map_series(moved, model, MapJob(out=tmp_path / "moved", method="least-squares"))
    told = [note for note in flagged.notes if note.startswith("motion: ")]
    assert len(told) == 1
    assert re.fullmatch(
        r"motion: image 4 \(of 1 to 6\) seems moved by about (3|3\.1|2\.9) mm \(more than half a voxel\); "
        r"consider --register",
        told[0],
    )
    said = json.loads((tmp_path / "moved/sub-01/anat/sub-01_T1map.json").read_text())
    # a tenth of a voxel: what the estimate takes as its own standard error
    assert said["MotionEstimate"]["Displacement"][3] == pytest.approx(3, abs=0.1)
    assert max(d for i, d in enumerate(said["MotionEstimate"]["Displacement"]) if i != 3) < 0.1
    job = MapJob(out=tmp_path / "back", method="least-squares", mask="auto", register=True)
    back = map_series(moved, model, job)
    assert any(note.startswith("registered to image 6 of 1 to 6") for note in back.notes)
    lines = (tmp_path / "back/sub-01/anat/sub-01_desc-motion_T1map.tsv").read_text().splitlines()
    rows = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    assert len(rows) == 6
    assert float(rows[3]["trans_x"]) == pytest.approx(3, abs=0.1)
    assert abs(float(rows[3]["trans_y"])) < 0.1
    assert abs(float(rows[3]["rot_z"])) < 0.2
    assert (float(rows[5]["trans_x"]), rows[5]["registered_to"]) == (0, "6")
    correction = json.loads((tmp_path / "back/sub-01/anat/sub-01_T1map.json").read_text())["MotionCorrection"]
    assert (correction["Reference"], correction["InPlaneOnly"]) == (6, True)
    where = (brain()[0] > 60) & ~np.isnan(maps(tmp_path / "back", back)["T1map"])

    def wrong(record, out):
        return np.mean(np.abs(maps(tmp_path / out, record)["T1map"][where] / t1[where] - 1))

    # 14 % moved, 2.7 % still; of three whole voxels registration gives the images back
    assert wrong(flagged, "moved") > 3 * wrong(still, "still")
    assert wrong(back, "back") < 1.1 * wrong(still, "still")
    assert validate(tmp_path / "back") == []


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        ((1,), "motion: image 2 (of 1 to 6) shows too little to tell whether it has moved"),
        ((1, 3), "motion: images 2 and 4 (of 1 to 6) show too little to tell whether they have moved"),
    ],
)
def test_one_image_shows_and_two_show(unknown, said, monkeypatch):
    error = tuple(np.inf if i in unknown else 0.1 for i in range(len(TE)))
    found = Movement(0, tuple(0.0 for _ in TE), error, 0.91)
    monkeypatch.setattr(motion, "movement", lambda *_: found)
    assert motion.steadied(decay(), range(3), wanted=False).notes == (said,)


def test_another_decay_of_one_subject_gets_a_name_of_its_own(tmp_path, drawn):
    out = tmp_path / "o"
    job = MapJob(out=out, method="least-squares")
    map_series(decay(), MODEL, job)
    before = (out / "sub-01/anat/sub-01_S0map.nii.gz").read_bytes()
    gradient = replace(decay(name="sub-01_MEGRE", suffix="MEGRE"), files=(Path("/data/sub-01_echo-1_MEGRE.nii.gz"),))
    for overwrite in (False, True):
        record = map_series(gradient, GradientEcho(te=TE), replace(job, overwrite=overwrite))
        assert any("these maps are named acq-MEGRE" in note for note in record.notes)
        assert (out / "sub-01/anat/sub-01_acq-MEGRE_T2starmap.nii.gz").is_file()
        assert (out / "sub-01/anat/sub-01_acq-MEGRE_S0map.nii.gz").is_file()
        assert (out / "sub-01/anat/sub-01_S0map.nii.gz").read_bytes() == before
    with pytest.raises(InputError, match=r"acq-MEGRE_S0map.nii.gz exists already"):
        map_series(gradient, GradientEcho(te=TE), job)
    # the same series once more is no other series
    with pytest.raises(InputError, match=r"sub-01_S0map.nii.gz exists already"):
        map_series(decay(), MODEL, job)
    assert validate(out) == []


def test_voxels_at_an_end_of_the_range_are_counted(tmp_path, drawn):
    series, t1 = brain_series(sigma=0.0)
    long = np.zeros(t1.shape, dtype=bool)
    long[:, 100:105, 90:97] = True
    volumes = tuple(
        np.where(long, 100 * (1 - 1.9 * np.exp(-ti / 9.0)), volume).astype(np.float32)
        for ti, volume in zip(TI, series.volumes, strict=True)
    )
    job = MapJob(out=tmp_path / "o", method="least-squares", sigma=1.0)
    record = map_series(replace(series, volumes=volumes), InversionRecovery(ti=TI, signed=True), job)
    summary = next(m for m in record.maps if m.parameter == "T1")
    assert summary.at_ends == (0, 35)
    assert any(
        re.match(r"T1: 35 of \d+ voxels of the object lie at the end of its range, 6 s", note) for note in record.notes
    )
