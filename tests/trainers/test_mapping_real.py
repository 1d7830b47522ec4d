"""`qsim map` on measured series: against scipy, against what their authors report, and how long it takes."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from phantoms.files.map_files import read_map
from phantoms.series import model_for, open_series
from qsim.estimators import build_estimator
from qsim.signals import VariableFlipAngle
from trainers.mapping.inputs import MapJob
from trainers.mapping.series import map_series

TI = (0.05, 0.1, 0.2, 0.5, 2.0, 4.0)


@pytest.fixture
def mapped(data_folder, tmp_path, monkeypatch):
    """Map a series of the data folder; sidecars are written here, in seconds."""
    monkeypatch.setattr("trainers.mapping.series.picture", lambda panels, spacing, title, file: file.touch())

    def run(file, key, times, **job):
        source, here = data_folder / file, tmp_path / file.replace("/", "_")
        if not here.exists():
            here.symlink_to(source)
        beside = here.with_name(here.name.removesuffix(".nii.gz") + ".json")
        beside.write_text(json.dumps({key: list(times), **job.pop("protocol", {})}))
        series = open_series(here)
        out = tmp_path / "maps" / str(len(list(tmp_path.glob("maps/*"))))
        record = map_series(series, model_for(series), MapJob(out=out, **job))
        return {m.parameter: read_map(out / m.file) for m in record.maps}, series, record

    return run


def volume(file):
    return np.asanyarray(nibabel.load(file).dataobj).T


def test_brain_inversion_recovery(mapped):
    """brain_ir_se_basel: S = A (1 - B exp(-TI / T1)), signed."""
    maps, series, _ = mapped(
        "brain_ir_se_basel/ir_tse_real.nii.gz", "InversionTime", TI, method="least-squares", mask="auto"
    )
    t1 = maps["T1"]
    head = np.argwhere(np.isfinite(t1))
    chosen = head[np.random.default_rng(0).choice(len(head), 300, replace=False)]
    images = series.slab(0, 1).astype(float)
    differences = []
    for z, y, x in chosen:
        s = images[:, z, y, x]
        found, _ = curve_fit(
            lambda ti, a, b, t: a * (1 - b * np.exp(-ti / t)),
            TI,
            s,
            (s.max(), 1.9, 1.0),
            bounds=((0, 0, 0.01), (np.inf, 3, 6)),
        )
        differences.append(abs(t1[z, y, x] / found[2] - 1))
    # the issue asks for 0.5 %; both are minima of the same sum, to the digits of scipy
    assert np.median(differences) < 1e-5
    assert np.mean(np.array(differences) < 0.005) > 0.98
    # medians of the README, of 2500 voxels drawn at random: the ends of the bands let some of the next tissue in
    for low, high, median, tolerance in ((0.6, 0.95, 0.878, 0.01), (1.05, 1.7, 1.372, 0.01), (3.0, 5.99, 3.852, 0.05)):
        assert np.median(t1[(t1 > low) & (t1 < high)]) == pytest.approx(median, rel=tolerance)


def test_ten_tubes(mapped, data_folder):
    """phantom10_ir_se_arizona: T1 and T2 of the authors, whose times were inferred."""
    folder = data_folder / "phantom10_ir_se_arizona"
    rois = volume(folder / "rois.nii.gz")
    with (folder / "roi_reference.csv").open() as file:
        rows = list(csv.DictReader(file))
    ti = np.array([40, 90, 150, 300, 500, 750, 1000, 1500, 2000, 3000, 4000]) / 1000
    te = (10 + np.array([0, 10, 20, 30, 40, 50, 60, 70, 80, 100, 120, 140, 160, 180, 200, 220, 240])) / 1000
    t1, _, _ = mapped("phantom10_ir_se_arizona/seir.nii.gz", "InversionTime", ti, method="least-squares")
    t2, _, _ = mapped("phantom10_ir_se_arizona/sese.nii.gz", "EchoTime", te, method="least-squares")
    for row in rows:
        tube = rois == int(row["roi"])
        assert 1000 * t1["T1"][tube].mean() == pytest.approx(float(row["T1_ref_ms_mean"]), rel=0.01)
        assert 1000 * t2["T2"][tube].mean() == pytest.approx(float(row["T2_ref_ms_mean"]), rel=0.01)


def test_knee(mapped):
    """knee_mese_pymskt: two peaks of T2, muscle and cartilage at 30 to 40 ms, fat and marrow at 120 to 140 ms."""
    te = [0.006312 * k for k in range(1, 9)]
    maps, _, _ = mapped(
        "knee_mese_pymskt/mese.nii.gz", "EchoTime", te, method="least-squares", mask="auto", slices=(2, 4)
    )
    counts, edges = np.histogram(1000 * maps["T2"][np.isfinite(maps["T2"])], np.arange(10, 200, 5))
    middle = (edges[1:] + edges[:-1]) / 2
    short, long = middle < 70, (middle > 100) & (middle < 180)
    # the README leaves the first echo out, which stimulated echoes make too dark: with it T2 is a little longer
    assert 27 < middle[short][counts[short].argmax()] < 45
    assert 115 < middle[long][counts[long].argmax()] < 160


def test_flip_angles_with_a_b1_map(mapped, data_folder):
    """brain_vfa_b1_qmrlab: percentiles of T1 inside the mask."""
    folder = data_folder / "brain_vfa_b1_qmrlab"
    maps, _, _ = mapped(
        "brain_vfa_b1_qmrlab/vfa_t1.nii.gz",
        "FlipAngle",
        (3, 20),
        protocol={"RepetitionTimeExcitation": 0.015},
        method="least-squares",
        mask=folder / "vfa_t1_mask.nii.gz",
        known={"REL_B1": folder / "vfa_t1_B1map.nii.gz"},
    )
    t1 = 1000 * maps["T1"][np.isfinite(maps["T1"])]
    np.testing.assert_allclose(np.percentile(t1, (5, 25, 50, 75, 95)), (891, 1041, 1336, 1724, 2540), rtol=0.005)


def test_the_rician_fit_removes_the_floor(mapped, data_folder):
    """synthetic_t2_minnesota: exact labels; the noise floor makes T2 of a short decay too long."""
    labels = volume(data_folder / "synthetic_t2_minnesota/synth_imagenet_1k_test_000001_labels.nii.gz")
    s0, t2 = labels[0], 0.1452 * labels[1]
    te = [0.0264 + 0.0132 * k for k in range(10)]
    error, sigma = {}, {}
    for method in ("least-squares", "rician"):
        maps, _, record = mapped(
            "synthetic_t2_minnesota/synth_imagenet_1k_test_000001_images.nii.gz", "EchoTime", te, method=method
        )
        error[method], sigma[method] = maps["T2"] / t2 - 1, record.sigma
    # of the README: .0246 where the signal is high
    assert sigma["rician"] == pytest.approx(0.0246, rel=0.02)
    floor = (s0 > 0.15) & (t2 > 0.06) & (t2 < 0.1)
    assert floor.sum() == 250
    # 250 voxels of about 10 % each: the median is known to 0.8 %
    assert np.median(error["least-squares"][floor]) > 0.03
    assert abs(np.median(error["rician"][floor])) < 0.015
    high = (s0 > 0.15) & (t2 > 0.1) & (t2 < 0.3)
    assert abs(np.median(error["rician"][high])) < 0.002 < np.median(error["least-squares"][high])


def _numbers(cell):
    return np.array([float(each) for each in cell.split()])


def _rows(data_folder, name):
    with (data_folder / "vfa_voxels_osipi" / name).open(encoding="utf-8-sig") as stream:
        return [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]


def test_flip_angles_of_brain_voxels(data_folder):
    """vfa_voxels_osipi: R1 of a nonlinear fit [1/s]; that of fluid is beyond the range of T1, which ends at 6 s."""
    rows = _rows(data_folder, "t1_brain_data.csv")
    found = np.array([_fit(row, 1.0) for row in rows])
    reference = 1 / np.array([float(row["R1"]) for row in rows])
    long = reference > 6
    assert (len(rows), long.sum()) == (76, 14)
    # R1 is given to five digits after the point
    np.testing.assert_allclose(1 / found[~long], 1 / reference[~long], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[long], 6, rtol=1e-6)


def test_flip_angles_of_a_digital_object(data_folder):
    """vfa_voxels_osipi: R1 [1/ms] is the truth of the QIBA object, whose images hold noise and are whole numbers."""
    rows = _rows(data_folder, "t1_quiba_data.csv")
    ratio = np.array([_fit(row, 1.0) * 1000 * float(row["R1"]) for row in rows])
    assert np.abs(np.median(ratio) - 1) < 0.002
    assert np.median(np.abs(ratio - 1)) < 0.005
    # the worst are those of the lowest SNR
    assert np.abs(ratio - 1).max() < 0.04


@pytest.mark.parametrize("corrected", [False, True])
def test_flip_angles_of_prostate_voxels(data_folder, corrected):
    """vfa_voxels_osipi: T1 [ms] of a nonlinear fit, without and with B1 [%]."""
    rows = _rows(data_folder, "t1_prostate_data.csv")
    found = [_fit(row, 1e-3, float(row["B1"]) / 100 if corrected else 1.0) for row in rows]
    reference = [1e-3 * float(row["T1 nonlinear B1cor" if corrected else "T1 nonlinear"]) for row in rows]
    # both are minima of the same sum, to the digits of the search
    np.testing.assert_allclose(found, reference, rtol=1e-5)


def _fit(row, tr_unit, b1=1.0):
    """T1 of one voxel by least squares [s]."""
    model = VariableFlipAngle(
        flip_angles=tuple(np.radians(_numbers(row["FA"])).tolist()), tr=tr_unit * float(_numbers(row["TR"])[0])
    )
    images = torch.from_numpy(_numbers(row["s"]))[:, None]
    kappa = build_estimator("least-squares", model)(images, known={"REL_B1": b1}).kappa
    return float(kappa[[p.name for p in model.parameters].index("T1"), 0])
