"""Study `phantom` from config to files, on the twin, on scans that were written from it, and on real scans."""

import csv
import json

import nibabel
import numpy as np
import pytest
import yaml

from generators.reading import read_config
from qsim.errors import InputError
from qsim.evaluation.study import noisy_images
from trainers.studies.block_runner import Command
from trainers.studies.measured import Scans, map_repeat, read_scans
from trainers.studies.methods import choose
from trainers.studies.phantom import PhantomConfig, make_phantom_plan, run_phantom
from trainers.studies.phantom_parts import twin_case
from trainers.studies.registry import STUDIES

TWIN = {
    "seed": 1,
    "split": "test",
    "phantom": {"kind": "system_phantom", "array": "t1", "matrix": [56, 56], "voxel_mm": [3.0, 3.0]},
    "tissues": {"kind": "system_phantom", "serial": 41, "field_strength": 3.0},
    "model": {"kind": "inversion_recovery", "ti": [0.1, 0.2, 0.4, 0.7, 1.1, 1.6, 2.2]},
    "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.02}},
}
CONFIG = {
    "seed": 3,
    "kind": "phantom",
    "data": {"twin": TWIN, "share": 0.9},
    "estimators": ["least-squares", {"method": "least-squares", "known": ["B"], "name": "B known"}],
    "covered": {"T1": [0.2, 2.5]},
    "snr": [60],
    "repeats": 4,
}
SYSTEM = {"kind": "system_phantom", "array": "t1", "serial": 41, "field_strength": 3.0}


def run(config, out, **command):
    return run_phantom(PhantomConfig.model_validate(config), out, Command(**command))


@pytest.fixture
def no_page(monkeypatch):
    """Figures take longer than all the rest."""
    monkeypatch.setattr("trainers.studies.phantom.sections", lambda *_: [])


def table(out):
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {(line["estimator"], line["tissue"], line["draw"], line["metric"]): line for line in lines}


def value(found, estimator, tissue, metric, draw="all"):
    return float(found[estimator, tissue, draw, metric]["value"])


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    out = tmp_path_factory.mktemp("twin") / "study"
    run(CONFIG, out)
    return out


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The repeats of the twin's study as NIfTI with sidecars, and its regions; returns a config of them."""
    folder = tmp_path_factory.mktemp("scans")
    config = PhantomConfig.model_validate(CONFIG)
    plan = make_phantom_plan(config)
    case = twin_case(config.data, 0, plan.samples)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    paths = []
    for repeat in range(4):
        images = noisy_images(case.signal, config.data.twin.noise_model, 60.0, 3, 0, repeat).numpy()
        path = folder / f"scan{repeat}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(images.T, affine), path)
        (folder / f"scan{repeat}.json").write_text(json.dumps({"InversionTime": TWIN["model"]["ti"]}))
        paths.append(str(path))
    labels = plan.spheres.labels.astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels.T, affine), folder / "regions.nii.gz")
    data = {
        "scans": {"series": paths, "sigma": 0.65 / 60},
        "regions": str(folder / "regions.nii.gz"),
        "nominal": SYSTEM,
    }
    kept = {key: CONFIG[key] for key in ("seed", "kind", "covered")}
    return {**kept, "data": data, "estimators": ["least-squares"]}


def test_files_and_columns(twin):
    assert {path.name for path in twin.iterdir()} == {"results.csv", "report.html", "provenance.json", "blocks"}
    head = (twin / "results.csv").read_text(encoding="utf-8").splitlines()[0]
    assert head == "study,estimator,tissue,parameter,snr,sigma,draw,metric,value,low,high,n"
    record = json.loads((twin / "provenance.json").read_text(encoding="utf-8"))
    assert record["complete"]
    assert record["config"]["data"]["twin"]["sampling"] == "slices"
    assert record["told"] == {"B known": ["B"]}
    page = (twin / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "31.06" in page
    assert "nominal against measured" in page


def test_estimates_lie_where_they_should(twin):
    """With B known the CV over regions is that of the bound, and the bias far below it."""
    found = table(twin)
    assert value(found, "nominal", "t1_01", "mean") == 1.989
    covered = [f"t1_{k:02d}" for k in range(1, 8)]
    assert [value(found, "nominal", name, "covered") for name in covered] == [1.0] * 7
    assert value(found, "nominal", "t1_08", "covered") == 0
    ratios, biases = [], []
    for name in covered:
        bound = value(found, "bound-known", name, "bound")
        ratios.append(value(found, "B known", name, "cv_rms") / bound)
        biases.append(value(found, "B known", name, "bias") / bound)
        assert value(found, "bound-free", name, "bound") > bound
    # a region has at least 20 voxels of 3 degrees of freedom, seven regions 420: their pooled SD is known to 3.5 %
    assert np.mean(ratios) == pytest.approx(1, abs=0.11)
    # mean of at least 80 estimates: SD 0.11 bounds
    assert np.abs(biases).max() < 0.45
    assert value(found, "B known", "covered", "concordance") > 0.9999
    assert value(found, "B known", "covered", "slope") == pytest.approx(1, abs=0.01)


@pytest.mark.usefixtures("no_page")
def test_scans_of_the_twin_give_what_the_twin_gives(twin, scans, tmp_path):
    """The same images through files: the same estimates of a method that fits voxel by voxel."""
    run(scans, tmp_path / "study")
    here, there = table(tmp_path / "study"), table(twin)
    for k in range(1, 15):
        for metric in ("bias", "cv", "cv_of_mean", "rmse", "sd", "at_bound_rate"):
            got, wanted = (value(each, "least-squares", f"t1_{k:02d}", metric) for each in (here, there))
            # six digits of the table, and times that went through JSON
            assert got == pytest.approx(wanted, rel=1e-3, abs=2e-4), (k, metric)
    record = json.loads((tmp_path / "study" / "provenance.json").read_text(encoding="utf-8"))
    files = record["config"]["data"]["files"]
    assert len(files) == 5
    # the config as it was recorded runs again, and refuses another file
    changed = {**record["config"]["data"], "files": dict.fromkeys(files, "0" * 64)}
    with pytest.raises(InputError, match=r"^data\.files: .* is not the file"):
        run({**scans, "data": {**scans["data"], "files": changed["files"]}}, tmp_path / "other")


@pytest.mark.usefixtures("no_page")
def test_any_number_of_workers_and_a_second_run_give_the_same_bytes(scans, tmp_path):
    few = {**scans, "data": {**scans["data"], "scans": {**scans["data"]["scans"], "slices": [0, 1]}}}
    for name, workers in (("one", 1), ("two", 2)):
        run(few, tmp_path / name, workers=workers)
    first = (tmp_path / "one" / "results.csv").read_bytes()
    assert (tmp_path / "two" / "results.csv").read_bytes() == first
    lost, kept = tmp_path / "one" / "blocks" / "repeat001.npz", tmp_path / "one" / "blocks" / "repeat000.npz"
    lost.unlink()
    before = kept.stat().st_mtime_ns
    (tmp_path / "one" / "results.csv").unlink()
    run(few, tmp_path / "one")
    assert (tmp_path / "one" / "results.csv").read_bytes() == first
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds a study of another config"):
        run({**few, "seed": 4}, tmp_path / "one")


def test_one_scan_has_bias_and_no_cv(scans, tmp_path):
    one = {**scans["data"]["scans"], "series": scans["data"]["scans"]["series"][:1], "sigma": None, "mask": "auto"}
    run({**scans, "data": {**scans["data"], "scans": one}}, tmp_path / "study")
    found = table(tmp_path / "study")
    assert ("least-squares", "covered", "all", "cv") not in found
    # voxels of one sphere: the mean of 20 of them at SNR 60
    assert abs(value(found, "least-squares", "t1_04", "bias")) < 5
    assert "One scan: there is no CV" in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")


def test_sigma_is_found_as_it_was_drawn(scans):
    """From the air outside the phantom, or the residuals: sigma to a few percent, and no note that repeats disagree."""
    data = scans["data"]["scans"]
    measured = read_scans(Scans(series=data["series"], mask="auto"), "data.scans")
    assert measured.images.shape == (4, 7, measured.mask.shape[0], 56, 56)
    assert measured.sigma == pytest.approx(0.65 / 60, rel=0.05)
    assert not [note for note in measured.notes if "differ between repeats" in note]
    assert measured.names == ("scan0.nii.gz", "scan1.nii.gz", "scan2.nii.gz", "scan3.nii.gz")
    method = choose(["least-squares"], (), measured.model)[0]
    part = measured.mask.clone()
    part[1:] = False
    maps = map_repeat(measured, 1, method.estimator, part)
    assert np.isfinite(maps.kappa[:, part].numpy()).all()
    assert (maps.status[1:] == 3).all()


def written(folder, name, shape=(6, 5, 2, 4), times=(0.1, 0.4, 1.0, 2.0), affine=None, **sidecar):
    data = np.random.default_rng(len(name)).uniform(0.5, 1.0, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), folder / f"{name}.nii.gz")
    (folder / f"{name}.json").write_text(json.dumps({"InversionTime": list(times), **sidecar}))
    return str(folder / f"{name}.nii.gz")


def test_repeats_that_do_not_go_together_are_refused(tmp_path):
    first = written(tmp_path, "a")
    moved = np.eye(4)
    moved[0, 3] = 3.0
    wrong = {
        "no such file": str(tmp_path / "missing.nii.gz"),
        r"has shape \(6, 4, 2\)": written(tmp_path, "b", shape=(6, 4, 2, 4)),
        "lies in another place": written(tmp_path, "c", affine=moved),
        "InversionTime of image 2 is 1.1, of the first repeat 1;": written(tmp_path, "d", times=(0.1, 0.4, 1.1, 2.0)),
        "has 3 images, the first repeat 4": written(tmp_path, "e", shape=(6, 5, 2, 3), times=(0.1, 0.4, 1.0)),
        "RepetitionTime is 3, of the first repeat missing": written(tmp_path, "f", RepetitionTime=3.0),
    }
    for text, path in wrong.items():
        with pytest.raises(InputError, match=rf"^data\.scans\.series\[1\]: .*{text}") as caught:
            read_scans(Scans(series=(first, path)), "data.scans")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^data\.scans\.mask: .* does not exist"):
        read_scans(Scans(series=(first,), mask=str(tmp_path / "none.nii")), "data.scans")
    with pytest.raises(InputError, match=r"^data\.scans\.signal: got 'nothing'"):
        read_scans(Scans(series=(first,), signal="nothing"), "data.scans")
    with pytest.raises(InputError, match=r"^data\.scans\.slices: got \[0, 3\], the scans have slices 0 to 1"):
        read_scans(Scans(series=(first,), slices=(0, 3)), "data.scans")
    with pytest.raises(InputError, match=r"^data\.scans\.series\[0\]: .*milliseconds"):
        read_scans(Scans(series=(written(tmp_path, "g", times=(100, 400, 1000, 2000)),)), "data.scans")


def without(config, *keys):
    return {key: held for key, held in config.items() if key not in keys}


SCANS = {"scans": {"series": ["a.nii"]}, "regions": "r.nii", "nominal": SYSTEM}
WRONG = {
    "data: give either twin": {"data": {}},
    "data: give either twin ": {"data": {**SCANS, "twin": TWIN}},
    "data.regions: missing": {"data": without(SCANS, "regions"), "snr": None, "repeats": None},
    "data.nominal: does not go with twin": {"data": {"twin": TWIN, "nominal": SYSTEM}},
    "data.twin.split: got train": {"data": {"twin": {**TWIN, "split": "train"}}},
    "data.twin.phantom.kind: got 'mni'": {
        "data": {"twin": {**TWIN, "phantom": {"kind": "mni"}, "tissues": {"kind": "sabidussi2021"}}}
    },
    "snr: does not go with data.scans": {"data": SCANS},
    "repeats: got 4, data.scans.series holds 1": {"data": SCANS, "snr": None},
    "covered.T3: is no relaxation time": {"covered": {"T3": [0, 1]}},
    "covered.T1: got [2.0, 1.0]": {"covered": {"T1": [2, 1]}},
    "parameter: got T2, the signal model has T1": {"parameter": "T2"},
    "estimators[0]: ": {"estimators": ["nothing"]},
    "snr: 30 is given twice": {"snr": [30, 30]},
    "data.scans.series: a.nii is given twice": {"data": {**SCANS, "scans": {"series": ["a.nii", "a.nii"]}}},
    "data.share: no voxel lies wholly": {"data": {"twin": TWIN, "share": 0.2}},
}


@pytest.mark.parametrize(("start", "change"), WRONG.items(), ids=list(WRONG))
def test_configs_that_mean_nothing_are_refused(start, change, tmp_path):
    given = {key: held for key, held in {**CONFIG, **change}.items() if held is not None}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_config(path, PhantomConfig)
    assert str(caught.value).startswith(f"{path}: {start.strip()}"), str(caught.value)
    assert "\n" not in str(caught.value)


NOMINAL = {
    r"data\.nominal: .*none\.csv: cannot be read": "none.csv",
    r"data\.nominal: no value for label 2 of": {"T1": {1: 1.0}},
    r"data\.nominal: holds T2, wanted T1": {"T2": {1: 1.0}},
    r"data\.nominal: T1 of label 1 is 1989, wanted seconds above 0; divide by 1000": {"T1": {1: 1989.0}},
    r"data\.nominal\.field_strength must be 1\.5 or 3\.0": {**SYSTEM, "field_strength": 7.0},
}


@pytest.mark.parametrize(("text", "nominal"), NOMINAL.items(), ids=list(NOMINAL))
def test_nominal_values_that_do_not_fit_are_refused(text, nominal, scans, tmp_path):
    data = {**scans["data"], "nominal": nominal}
    with pytest.raises(InputError, match=f"^{text}"):
        run({**scans, "data": data}, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_table_of_nominal_values(scans, tmp_path):
    """Milliseconds in a column of any name."""
    file = tmp_path / "values.csv"
    file.write_text("roi,T1_ms\n" + "".join(f"{k},{100 * k}\n" for k in range(1, 15)), encoding="utf-8")
    told = {"kind": "csv", "path": str(file), "label": "roi", "value": "T1_ms", "unit": "ms"}
    config = PhantomConfig.model_validate({**scans, "data": {**scans["data"], "nominal": told}})
    plan = make_phantom_plan(config)
    assert [region.nominal for region in plan.regions] == pytest.approx([0.1 * k for k in range(1, 15)])
    assert [region.covered for region in plan.regions] == [False] + [True] * 13
    file.write_text("roi,T1_ms\n1,x\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^data\.nominal: .*, line 2: got '1' and 'x', wanted a label and a number"):
        make_phantom_plan(config)


def test_what_cannot_be_known_of_scans_is_refused(scans):
    told = [{"method": "least-squares", "known": ["B"]}]
    with pytest.raises(InputError, match=r"^estimators\[0\]\.known: the true B of scans is not known"):
        make_phantom_plan(PhantomConfig.model_validate({**scans, "estimators": told}))
    with pytest.raises(InputError, match=r"^covered: no region has T1 from 5 to 6 s"):
        make_phantom_plan(PhantomConfig.model_validate({**scans, "covered": {"T1": [5, 6]}}))
    with pytest.raises(InputError, match=r"^covered: holds T2, the study is about T1"):
        make_phantom_plan(PhantomConfig.model_validate({**scans, "covered": {"T2": [0.05, 0.06]}}))


@pytest.mark.usefixtures("no_page")
def test_real_scans_agree_with_the_values_of_their_authors(data_folder, tmp_path):
    """Ten tubes: the same images fitted by others (times inferred), so this is agreement of fits."""
    folder = data_folder / "phantom10_ir_se_arizona"
    if not folder.is_dir():
        pytest.skip("phantom10_ir_se_arizona is not among the test data")
    reference = {"kind": "csv", "path": str(folder / "roi_reference.csv"), "label": "roi", "unit": "ms"}
    steps = [1e-3 * t for t in (40, 90, 150, 300, 500, 750, 1000, 1500, 2000, 3000, 4000)]
    echoes = [1e-3 * (10 + t) for t in (*range(0, 90, 10), *range(100, 250, 20))]
    for name, signal, times in (("seir", "inversion_recovery", steps), ("sese", "spin_echo", echoes)):
        parameter = "T1" if name == "seir" else "T2"
        config = {
            "seed": 1,
            "kind": "phantom",
            "data": {
                "scans": {"series": [str(folder / f"{name}.nii.gz")], "times": times, "signal": signal, "mask": "auto"},
                "regions": str(folder / "rois.nii.gz"),
                "nominal": {**reference, "value": f"{parameter}_ref_ms_mean"},
            },
            "estimators": ["least-squares"],
        }
        run(config, tmp_path / name)
        found = table(tmp_path / name)
        for k in range(1, 11):
            assert abs(value(found, "least-squares", f"region {k}", "bias")) < 0.02, (name, k)
        assert value(found, "least-squares", "covered", "concordance") > 0.99999


def test_the_study_is_registered():
    assert STUDIES["phantom"].config is PhantomConfig
