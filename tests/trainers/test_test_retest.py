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
from trainers.infer import load_estimator
from trainers.studies.block_runner import Command
from trainers.studies.registry import read_study
from trainers.studies.test_retest import run_test_retest
from trainers.studies.test_retest_config import RetestConfig

TI = [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]
DATA = {
    "seed": 4,
    "split": "test",
    "phantom": {
        "kind": "geometry",
        "size": [36, 36],
        "spacing_mm": [1.0, 1.0],
        "shapes": [
            {"shape": "disc", "tissue": "gm", "radius_mm": 16.0},
            {"shape": "disc", "tissue": "wm", "radius_mm": 10.0},
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
    "crop": [34, 34],
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
    """The one study whose figures are drawn, but for those of sharpness, which tests of their own draw."""
    out = tmp_path_factory.mktemp("retest") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("qsim.evaluation.pages.sharpness_figures.svg_uri", lambda *_, **__: "data:,")
        run(TWIN, out)
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not drawn, which takes longer than all the rest."""
    for name in ("test_retest_figures", "sharpness_figures"):
        monkeypatch.setattr(f"qsim.evaluation.pages.{name}.svg_uri", lambda *_, **__: "data:,")


def test_files_and_page(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["blocks", "provenance.json", "report.html", "results.csv"]
    assert json.loads((finished / "provenance.json").read_text())["complete"] is True
    page = (finished / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    for text in (
        "the smallest within-subject CV",
        "Bland",
        "Agreement with shared-b",
        "ICC",
        "paired t-test",
        "17.1 %",
        "RIM and ResNet",
    ):
        assert text in page
    # a prior holds the estimate: below the bound, and the page says what that means
    assert "Below the bound of an unbiased method in every draw: empirical-bayes: " in page


def test_a_fit_that_knows_b_repeats_as_the_bound_says(finished):
    found = table(finished)
    for tissue in ("gm", "wm"):
        bound = value(found, "bound-known", tissue, "30", "bound_within_cv")
        # 2 draws of 300 voxels or more, one degree of freedom each: the SD of the ratio is 1 / sqrt(2 n), 3 %
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


@pytest.fixture
def without_sections(monkeypatch):
    """No figure is even made."""
    monkeypatch.setattr("trainers.studies.test_retest.sections", lambda *_: [])


@pytest.mark.usefixtures("without_sections")
def test_workers_change_no_byte_and_blocks_are_kept(tmp_path):
    small = TWIN | {"crop": [28, 28], "estimators": [FIT, "shared-b"], "profiles": 4}
    run(small, tmp_path / "one")
    run(small, tmp_path / "out", workers=2)
    assert (tmp_path / "out" / "results.csv").read_bytes() == (tmp_path / "one" / "results.csv").read_bytes()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "blocks").iterdir()}
    gone = sorted(before)[0]
    (tmp_path / "out" / "blocks" / gone).unlink()
    page = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    run(small, tmp_path / "out")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "blocks").iterdir()}
    assert [name for name in after if after[name] != before[name]] == [gone]
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    with pytest.raises(InputError, match="another config"):
        run(small | {"profiles": 5}, tmp_path / "out")


def write_scans(folder, snr=30.0, affine=(AFFINE, AFFINE), factor=1.0):
    """The first draw of the twin, scanned twice with other noise, in the units of a scanner."""
    data = GeneratorConfig.model_validate({**DATA, "samples": 1, "patch": [34, 34]})
    truth = make_truth(data, 0)
    for k in range(2):
        # magnitudes around which noise was added: some values are below zero
        images = 1000 * factor * noisy_images(truth.signal, data.noise_model, snr, seed=77, draw=0, repeat=k).numpy()
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


@pytest.mark.usefixtures("undrawn")
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
    # two scans and what their sidecars say, mask and labels
    assert len(record["files"]) == 6


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


@pytest.mark.usefixtures("undrawn")
def test_a_network_on_the_twin_and_on_scans(tiny_rim, tmp_path):
    """The maps are what the network says of each scan; on scans it is told in which unit they count."""
    entry = {"model": str(tiny_rim)}
    # trained on other discs, of which nothing says that they are apart
    seen = {"allow_training_anatomy": True}
    run(TWIN | {"estimators": [FIT, entry], "draws": 1, "profiles": 0} | seen, tmp_path / "twin")
    arrays = read_block(tmp_path / "twin" / "blocks")
    data = GeneratorConfig.model_validate({**DATA, "samples": 1, "patch": [34, 34]})
    network = load_estimator(tiny_rim, data.signal_model)
    truth = make_truth(data, 0)
    images = noisy_images(truth.signal, data.noise_model, 30.0, 2, 0, 1)
    wanted = network(images, 0.65 / 30).kappa[-1][truth.labels > 0].numpy()
    np.testing.assert_array_equal(arrays["map/rim"][1], wanted)
    assert value(table(tmp_path / "twin"), "rim", "gm", "30", "within_cv") > 0
    found = {}
    for factor in (1.0, 1500.0):
        folder = tmp_path / f"{factor:g}"
        folder.mkdir()
        write_scans(folder, factor=factor)
        run(scans(folder, estimators=["least-squares", entry], profiles=0), folder / "out")
        found[factor] = table(folder / "out")
    page = (folder / "out" / "report.html").read_text()
    assert "images divided by" in page
    for tissue in ("gm", "wm"):
        rows = [found[f]["rim", tissue, "", "within_cv"] for f in (1.0, 1500.0)]
        # six digits of the table, single precision
        assert float(rows[0]["value"]) == pytest.approx(float(rows[1]["value"]), rel=2e-3)


def read_block(folder):
    """The only block of a study."""
    (file,) = folder.iterdir()
    with np.load(file) as held:
        return {key: held[key] for key in held.files}


def test_configs_that_are_shipped(request):
    folder = request.config.rootpath / "configs" / "sabidussi2021"
    for size in ("small", "full", "t2_small"):
        study, config = read_study(folder / f"study_test_retest_{size}.yaml")
        assert study.config is RetestConfig
        assert read_config(folder / f"study_test_retest_{size}.yaml", RetestConfig) == config
        assert yaml.safe_load((folder / f"study_test_retest_{size}.yaml").read_text())["kind"] == "test_retest"
