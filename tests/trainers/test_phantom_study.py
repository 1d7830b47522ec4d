"""Study `phantom` from config to files, on the twin, on scans that were written from it, and on real scans."""

import csv
import json
from functools import partial
from pathlib import Path

import cloudpickle
import nibabel
import numpy as np
import pytest
import yaml

from generators.reading import read_config
from qsim.errors import InputError
from qsim.evaluation.study import noisy_images
from trainers.infer import load_estimator
from trainers.studies.block_runner import Command
from trainers.studies.measured import Scans, read_scans
from trainers.studies.measured_maps import fit_methods, map_repeat
from trainers.studies.methods import choose
from trainers.studies.phantom import run_phantom
from trainers.studies.phantom_blocks import compute_block
from trainers.studies.phantom_config import PhantomConfig
from trainers.studies.phantom_parts import twin_case
from trainers.studies.phantom_plan import make_phantom_plan
from trainers.studies.registry import STUDIES
from trainers.studies.study_files import digest_of

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
    # four scans, what their sidecars say, and the regions
    assert len(record["files"]) == 9


def test_another_file_is_another_study(scans, tmp_path):
    """The same path with other images, or the same images with other times."""
    series = scans["data"]["scans"]["series"][:1]
    source = Path(series[0])
    copy, sidecar = tmp_path / "scan.nii.gz", tmp_path / "scan.json"
    copy.write_bytes(source.read_bytes())
    text = source.with_name("scan0.json").read_text(encoding="utf-8")
    sidecar.write_text(text, encoding="utf-8")
    data = {**scans["data"], "scans": {"series": [str(copy)], "sigma": 0.01}}
    config = PhantomConfig.model_validate({**scans, "data": data})

    def digest():
        plan = make_phantom_plan(config)
        return digest_of(plan.config, plan.methods, plan.files)

    before = digest()
    assert digest() == before
    sidecar.write_text(text.replace("2.2]", "2.3]"), encoding="utf-8")
    other_times = digest()
    sidecar.write_text(text, encoding="utf-8")
    copy.write_bytes(Path(scans["data"]["scans"]["series"][1]).read_bytes())
    assert len({before, other_times, digest()}) == 3


@pytest.mark.usefixtures("no_page")
def test_workers_a_copy_of_the_plan_and_a_second_run_give_the_same_bytes(scans, tmp_path):
    told = {**scans["data"]["scans"], "slices": [0, 1], "series": scans["data"]["scans"]["series"][:2]}
    few = {**scans, "data": {**scans["data"], "scans": told}}
    run(few, tmp_path / "one", workers=2)
    first = (tmp_path / "one" / "results.csv").read_bytes()
    # what a process is sent and sends back; that processes are started is tested for other kinds of study
    plan = make_phantom_plan(PhantomConfig.model_validate(few))
    sent = cloudpickle.loads(cloudpickle.dumps(partial(compute_block, plan=plan)))
    with np.load(tmp_path / "one" / "blocks" / "repeat001.npz") as held:
        for key, array in sent("repeat001").items():
            np.testing.assert_array_equal(held[key], array)
    lost, kept = tmp_path / "one" / "blocks" / "repeat001.npz", tmp_path / "one" / "blocks" / "repeat000.npz"
    lost.unlink()
    before = kept.stat().st_mtime_ns
    (tmp_path / "one" / "results.csv").unlink()
    run(few, tmp_path / "one")
    assert (tmp_path / "one" / "results.csv").read_bytes() == first
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds a study of another config"):
        run({**few, "seed": 4}, tmp_path / "one")


def test_one_scan_has_bias_and_no_cv(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("qsim.evaluation.pages.phantom_figures.svg_uri", lambda *_, **__: "data:,")
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
    assert (maps.status[part] != 3).all()
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
    with pytest.raises(InputError, match=r"^data\.scans\.times: InversionTime must be in seconds, got 100 to 2000"):
        read_scans(Scans(series=(first,), times=(100.0, 400.0, 1000.0, 2000.0)), "data.scans")
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
    r"data\.nominal: none\.csv: cannot be read \(No such file": "none.csv",
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
    with file.open("a", encoding="utf-8") as longer:
        longer.write("15,1500\n")
    notes = make_phantom_plan(config).notes
    assert [note for note in notes if "values of label 15, which data.regions does not hold" in note]
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


@pytest.mark.usefixtures("no_page")
def test_a_network_maps_the_twin_and_scans_of_it(scans, tiny_rim, tmp_path):
    """Its estimates are what it says of each whole slice; regions are covered where its training had times."""
    entry = {"model": str(tiny_rim)}
    config = {**without(CONFIG, "covered"), "estimators": [entry], "repeats": 1}
    plan = make_phantom_plan(PhantomConfig.model_validate(config))
    found = compute_block(next(iter(plan.blocks)), plan)["0/estimate"]
    case = twin_case(plan.config.data, 0, plan.samples)
    images = noisy_images(case.signal, plan.config.data.twin.noise_model, 60.0, 3, 0, 0)
    network = load_estimator(tiny_rim, plan.model)
    maps = np.stack([network(images[:, z], 0.65 / 60).kappa[-1].numpy() for z in range(images.shape[1])])
    np.testing.assert_array_equal(found[0], maps[plan.spheres.inside])
    # trained from 0.2 to 2 s
    assert [region.nominal for region in plan.regions if region.covered] == [
        region.nominal for region in plan.regions if 0.2 <= region.nominal <= 2
    ]
    told = {**scans["data"]["scans"], "series": scans["data"]["scans"]["series"][:1]}
    run({**scans, "estimators": [entry], "data": {**scans["data"], "scans": told}}, tmp_path / "out")
    own = table(tmp_path / "out")
    for k in range(1, 15):
        mean = found[0][plan.spheres.labels[plan.spheres.inside] == k].mean()
        assert value(own, "rim", f"t1_{k:02d}", "mean") == pytest.approx(mean, rel=1e-3)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert list(record["models"]) == ["rim"]


def test_a_network_is_told_the_unit_of_the_scanner(scans, tiny_rim, tmp_path):
    """Images of any brightness: the network sees them as bright as those of its training."""
    source = nibabel.load(scans["data"]["scans"]["series"][0])
    kept = np.asarray(source.dataobj)[:, :, 1:3]
    assert kept.shape == (56, 56, 2, 7)
    found, notes = {}, {}
    for factor in (1, 1500, 6000):
        path = tmp_path / f"{factor}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.float32(factor) * kept, source.affine), path)
        path.with_name(f"{factor}.json").write_text(json.dumps({"InversionTime": TWIN["model"]["ti"]}))
        measured = read_scans(Scans(series=(str(path),), sigma=factor * 0.65 / 60), "data.scans")
        chosen, notes[factor] = fit_methods(
            choose(
                PhantomConfig.model_validate({**scans, "estimators": [{"model": str(tiny_rim)}]}).estimators,
                (),
                measured.model,
            ),
            measured,
        )
        found[factor] = map_repeat(measured, 0, chosen[0].estimator).kappa
    assert notes[1] == ()
    assert notes[1500][0].startswith("images divided by ")
    # single precision, through a network
    np.testing.assert_allclose(found[6000][-1], found[1500][-1], rtol=1e-4)
    np.testing.assert_allclose(found[6000][0], 4 * found[1500][0], rtol=1e-4, atol=1e-2)
    # the brightest becomes that of the training, which those of the twin already are nearly
    np.testing.assert_allclose(np.nanmedian(found[1500][-1]), np.nanmedian(found[1][-1]), rtol=0.2)


def signed_by_noise(folder, name, images):
    """Images (x, y, z, n) as a file."""
    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(images.astype(np.float32), np.eye(4)), path)
    (folder / f"{name}.json").write_text(json.dumps({"InversionTime": TIMES.tolist()}))
    return str(path)


TIMES = np.array([0.1, 0.3, 0.6, 1.0, 1.6, 2.5])


@pytest.fixture(scope="module")
def recovery():
    """Signed inversion recovery of T1 from 0.4 to 1.5 s in half of the field, air in the other."""
    t1 = np.linspace(0.4, 1.5, 200).reshape(20, 10, 1, 1)
    signal = 1000 * (1 - 2 * np.exp(-TIMES / t1))
    return np.concatenate((signal, np.zeros_like(signal)))


def test_noise_below_zero_is_not_taken_for_inverted_magnetisation(recovery, tmp_path):
    noise = np.random.default_rng(4).normal(0, 1, recovery.shape)
    for sigma in (10, 100):
        path = signed_by_noise(tmp_path, f"magnitude{sigma}", np.abs(recovery) + sigma * noise)
        measured = read_scans(Scans(series=(path,)), "data.scans")
        assert not measured.model.signed
        assert not [note for note in measured.notes if "taken as signed" in note]
        assert [note for note in measured.notes if "taken for noise around magnitudes (signed: true" in note]
        path = signed_by_noise(tmp_path, f"signed{sigma}", recovery + sigma * noise)
        measured = read_scans(Scans(series=(path,)), "data.scans")
        assert measured.model.signed
        assert not [note for note in measured.notes if "magnitudes" in note]
    # closed form: T1 of the noiseless series, had the sign been kept, would not fit
    path = signed_by_noise(tmp_path, "small", np.abs(recovery) + 2 * noise)
    measured = read_scans(Scans(series=(path,)), "data.scans")
    method = choose(["least-squares"], (), measured.model)[0]
    t1 = map_repeat(measured, 0, method.estimator).kappa[2, 0].numpy().T[:20]
    np.testing.assert_allclose(t1, np.linspace(0.4, 1.5, 200).reshape(20, 10), rtol=0.05)


def test_signs_that_the_values_do_not_tell_must_be_given(recovery, tmp_path):
    """Late times alone and much noise: neither."""
    noise = np.random.default_rng(5).normal(0, 1, recovery.shape)
    path = signed_by_noise(tmp_path, "either", np.abs(recovery) + 350 * noise)
    with pytest.raises(InputError, match=r"^data\.scans\.signed: missing; .* write signed: true"):
        read_scans(Scans(series=(path,)), "data.scans")
    for sign in (True, False):
        assert read_scans(Scans(series=(path,), signed=sign), "data.scans").model.signed is sign
    decay = {"signal": "spin_echo", "times": tuple(TIMES)}
    assert not [note for note in read_scans(Scans(series=(path,), **decay), "data.scans").notes if "signed" in note]
    with pytest.raises(InputError, match=r"^data\.scans\.signed: does not go with SpinEcho"):
        read_scans(Scans(series=(path,), signed=True, **decay), "data.scans")


@pytest.mark.parametrize(
    ("name", "file", "sign"),
    [("brain_ir_se_basel", "ir_tse_real.nii.gz", True), ("phantom10_ir_se_arizona", "seir.nii.gz", False)],
)
def test_signs_of_real_series(data_folder, name, file, sign):
    if not (data_folder / name).is_dir():
        pytest.skip(f"{name} is not among the test data")
    n = nibabel.load(data_folder / name / file).shape[3]
    scans = Scans(
        series=(str(data_folder / name / file),),
        times=tuple(0.1 * (k + 1) for k in range(n)),
        signal="inversion_recovery",
        sigma=1.0,
    )
    measured = read_scans(scans, "data.scans")
    assert measured.model.signed is sign
    assert not [note for note in measured.notes if "magnitudes" in note]


def test_the_study_is_registered():
    assert STUDIES["phantom"].config is PhantomConfig
