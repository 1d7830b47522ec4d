"""`test_retest` from config to files: a twin of analytic shapes, and the same object as scans on disk."""

import copy
import csv
import json
import re

import nibabel
import numpy as np
import pytest
import yaml

from generators.config import GeneratorConfig
from generators.reading import read_config
from generators.sample import make_truth
from qsim.errors import InputError
from qsim.evaluation.study import noisy_images
from trainers.studies.block_runner import Command
from trainers.studies.registry import read_study
from trainers.studies.test_retest import RetestConfig, run_test_retest

TI = [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]
DATA = {
    "seed": 4,
    "split": "test",
    "phantom": {
        "kind": "geometry",
        "size": [44, 44],
        "spacing_mm": [1.0, 1.0],
        "shapes": [
            {"shape": "disc", "tissue": "gm", "radius_mm": 20.0},
            {"shape": "disc", "tissue": "wm", "radius_mm": 13.0},
        ],
    },
    "tissues": {"kind": "sabidussi2021"},
    "partial_volume": False,
    "model": {"kind": "inversion_recovery", "ti": TI},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
}
FIT = {"method": "least-squares", "known": ["B"], "name": "fit"}
TWIN = {
    "seed": 2,
    "kind": "test_retest",
    "data": {"twin": DATA},
    "estimators": ["shared-b", FIT, "empirical-bayes"],
    "snr": [30],
    "draws": 2,
    "crop": [42, 42],
    "profiles": 6,
}
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def run(config, out, **command):
    return run_test_retest(RetestConfig.model_validate(copy.deepcopy(config)), out, Command(**command))


def table(out):
    with (out / "results.csv").open(newline="") as file:
        return {
            (r["estimator"], r["tissue"], r["snr"], r["metric"]): r for r in csv.DictReader(file) if r["draw"] == "all"
        }


def value(found, *key):
    return float(found[key]["value"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("retest") / "out"
    run(TWIN, out)
    return out


def test_files_and_page(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["blocks", "provenance.json", "report.html", "results.csv"]
    assert json.loads((finished / "provenance.json").read_text())["complete"] is True
    page = (finished / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    for text in (
        "repeats best",
        "Bland",
        "Agreement with shared-b",
        "ICC",
        "paired t-test",
        "17.1 %",
        "RIM and ResNet",
    ):
        assert text in page
    # a prior holds the estimate: below the bound, and the page says what that means
    assert "Below the bound of an unbiased method: empirical-bayes in" in page


def test_a_fit_that_knows_b_repeats_as_the_bound_says(finished):
    found = table(finished)
    for tissue in ("gm", "wm"):
        bound = value(found, "bound-known", tissue, "30", "bound_within_cv")
        # 2 draws of some 500 voxels, one degree of freedom each: the SD of the ratio is 1 / sqrt(2 n), 2 %
        assert value(found, "fit", tissue, "30", "within_cv") / bound == pytest.approx(1, abs=0.09)
        assert abs(value(found, "fit", tissue, "30", "bias_mean")) < 0.2 * bound
        # of two scans the differences have sqrt(2) the SD: limits are the repeatability coefficient
        rc = value(found, "fit", tissue, "30", "repeatability_coefficient")
        assert value(found, "fit", tissue, "30", "limit_high") == pytest.approx(rc, rel=0.15)
        # RMSE against truth has the same SD where there is no bias
        assert value(found, "fit", tissue, "30", "rmse") == pytest.approx(bound, rel=0.1)
    # prior at low SNR: repeats better than the bound
    assert value(found, "empirical-bayes", "wm", "30", "within_cv") < 0.95 * value(
        found, "bound-shared", "wm", "30", "bound_within_cv"
    )


def test_sharp_discs_stay_sharp(finished):
    found = table(finished)
    # a step between voxels, by a cubic spline: about a voxel wide, in the truth and in a fit of each voxel
    for who in ("truth", "fit"):
        assert 0.3 < value(found, who, "wm/gm", "30", "width_mm") < 1.6
    assert value(found, "fit / shared-b", "wm/gm", "30", "width_ratio") == pytest.approx(1, abs=0.25)
    assert int(found["fit / shared-b", "wm/gm", "30", "width_ratio"]["n"]) >= 4


def test_workers_change_no_byte_and_blocks_are_kept(finished, tmp_path):
    run(TWIN, tmp_path / "out", workers=2)
    for name in ("report.html", "results.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "blocks").iterdir()}
    gone = sorted(before)[0]
    (tmp_path / "out" / "blocks" / gone).unlink()
    (tmp_path / "out" / "report.html").unlink()
    run(TWIN, tmp_path / "out")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "blocks").iterdir()}
    assert [name for name in after if after[name] != before[name]] == [gone]
    assert (tmp_path / "out" / "report.html").read_bytes() == (finished / "report.html").read_bytes()
    with pytest.raises(InputError, match="another config"):
        run(TWIN | {"profiles": 5}, tmp_path / "out")


def write_scans(folder, snr=30.0, affine=(AFFINE, AFFINE)):
    """The first draw of the twin, scanned twice with other noise, in the units of a scanner."""
    data = GeneratorConfig.model_validate({**DATA, "samples": 1, "patch": [42, 42]})
    truth = make_truth(data, 0)
    for k in range(2):
        images = noisy_images(truth.signal, data.noise_model, snr, seed=77, draw=0, repeat=k).numpy()
        # scanners write magnitudes; negative values would be taken for a signed series
        images = 1000 * np.abs(images)
        # (n, y, x) -> (x, y, z, n)
        volume = images.transpose(2, 1, 0)[:, :, None].astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, affine[k]), folder / f"scan{k + 1}.nii.gz")
        (folder / f"scan{k + 1}.json").write_text(json.dumps({"InversionTime": TI}))
    labels = truth.labels.numpy()
    for name, values in (("labels", 10 * labels), ("mask", labels > 0)):
        image = nibabel.Nifti1Image(values.T[:, :, None].astype(np.uint8), AFFINE)
        nibabel.save(image, folder / f"{name}.nii.gz")
    return truth


def scans(folder, **changes):
    numbers = {"gm": 10, "wm": 20}
    data = {
        "scans": {
            "series": [str(folder / "scan1.nii.gz"), str(folder / "scan2.nii.gz")],
            "mask": str(folder / "mask.nii.gz"),
        },
        "labels": str(folder / "labels.nii.gz"),
        "numbers": numbers,
    }
    config = {
        "seed": 2,
        "kind": "test_retest",
        "data": data,
        "estimators": ["shared-b", "least-squares"],
        "profiles": 6,
    }
    return config | changes


def test_scans_agree_with_the_twin(finished, tmp_path):
    write_scans(tmp_path)
    run(scans(tmp_path), tmp_path / "out")
    found, twin = table(tmp_path / "out"), table(finished)
    for tissue in ("gm", "wm"):
        row = found["shared-b", tissue, "", "within_cv"]
        low, high = float(row["low"]), float(row["high"])
        # other noise and other units around the same truth: the intervals of both meet
        with (finished / "results.csv").open(newline="") as file:
            own = next(
                r
                for r in csv.DictReader(file)
                if (r["estimator"], r["tissue"], r["snr"], r["draw"], r["metric"])
                == ("shared-b", tissue, "30", "0", "within_cv")
            )
        assert low < float(own["high"])
        assert float(own["low"]) < high
        assert 0 < high - low < 0.3 * float(row["value"])
    assert value(twin, "truth", "wm/gm", "30", "width_mm") > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "these scans" in page
    assert "against truth" not in page.split("<h2>Methods")[0].split("Beside the paper")[0]
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert len(record["scans"]["sha256"]) >= 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {}}, "data: wanted either twin"),
        ({"data": {"twin": DATA, "labels": "x.nii"}}, "data.labels: goes with scans"),
        ({"repeats": 1}, "greater than or equal to 2"),
        ({"boundary": ["wm", "wm"]}, "boundary: got wm twice"),
        ({"parameter": "T2"}, "parameter: got T2, wanted a relaxation time of the model: T1"),
        ({"data": {"twin": {**DATA, "split": "train"}}}, "data.twin.split: got train, wanted test"),
        ({"estimators": ["no-such"]}, r"estimators\[0\]: "),
        ({"snr": [10, 10]}, "snr: 10 is given twice"),
    ],
)
def test_refused_configs(changes, said):
    with pytest.raises(ValueError, match=said):
        RetestConfig.model_validate(copy.deepcopy(TWIN) | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "mle"}, "^reference: got 'mle', wanted one of 'shared-b'"),
        ({"compare": [["shared-b", "mle"]]}, r"^compare\[0\]: got 'mle'"),
        ({"boundary": ["wm", "csf"]}, "^boundary: "),
    ],
)
def test_refused_before_anything_is_written(changes, said, tmp_path):
    with pytest.raises(InputError, match=said):
        run(TWIN | changes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refused_scans(tmp_path):
    other = AFFINE.copy()
    other[0, 3] = 4.0
    write_scans(tmp_path, affine=(AFFINE, other))
    with pytest.raises(InputError, match=r"^data\.scans\.series\[1\]: .*register the scans to each other first"):
        run(scans(tmp_path), tmp_path / "out")
    write_scans(tmp_path)
    with pytest.raises(InputError, match=r"^data\.numbers\.wm: no voxel .* holds 7; .* holds 0, 10, 20"):
        run(scans(tmp_path, data=scans(tmp_path)["data"] | {"numbers": {"gm": 10, "wm": 7}}), tmp_path / "out")
    with pytest.raises(InputError, match="the truth of scans is not known"):
        run(scans(tmp_path, estimators=[FIT]), tmp_path / "out")
    with pytest.raises(ValueError, match="snr: is of the twin"):
        RetestConfig.model_validate(scans(tmp_path, snr=[10]))
    with pytest.raises(ValueError, match=r"repeats: got 3, data\.scans.series holds 2"):
        RetestConfig.model_validate(scans(tmp_path, repeats=3))
    without = {"scans": scans(tmp_path)["data"]["scans"]}
    with pytest.raises(InputError, match=r"^boundary: .*give data\.labels"):
        run(scans(tmp_path, data=without), tmp_path / "out")


def test_configs_that_are_shipped(request):
    folder = request.config.rootpath / "configs" / "sabidussi2021"
    for size in ("small", "full"):
        study, config = read_study(folder / f"study_test_retest_{size}.yaml")
        assert study.config is RetestConfig
        assert read_config(folder / f"study_test_retest_{size}.yaml", RetestConfig) == config
        assert yaml.safe_load((folder / f"study_test_retest_{size}.yaml").read_text())["kind"] == "test_retest"
