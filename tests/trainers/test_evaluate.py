"""`qsim study` from config to files, on analytic shapes."""

import csv
import hashlib
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

import trainers.infer
import trainers.studies.evaluate
from generators.config import GeneratorConfig
from generators.reading import read_config
from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.evaluation.pages.summary import number
from qsim.evaluation.table import Row
from qsim.parameters import T1
from trainers.studies.block_runner import Command
from trainers.studies.evaluate import StudyConfig, run_study

T1_CONFIG = {
    "seed": 2,
    "kind": "noise",
    "data": {
        "seed": 4,
        "split": "test",
        "phantom": {
            "kind": "geometry",
            "size": [28, 28],
            "spacing_mm": [1.0, 1.0],
            "shapes": [
                {"shape": "disc", "tissue": "gm", "radius_mm": 12.0},
                {"shape": "disc", "tissue": "wm", "radius_mm": 7.0},
            ],
        },
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "inversion_recovery", "ti": [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]},
        "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
    },
    "estimators": ["least-squares", "shared-b"],
    "snr": [10, 60],
    "draws": 2,
    "repeats": 3,
    "crop": [24, 24],
}


def changed(**changes):
    """The config above with some keys changed; `data__split` is data.split; None takes a key out."""
    config = json.loads(json.dumps(T1_CONFIG))
    for path, new in changes.items():
        *above, last = path.split("__")
        place = config
        for step in above:
            place = place[step]
        if new is None:
            del place[last]
        else:
            place[last] = new
    return config


def study(config=T1_CONFIG):
    return StudyConfig.model_validate(config)


def table(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder):
    """Every row but the times, which no two runs share."""
    return [row for row in table(folder) if row["metric"] != "cpu_seconds_per_image"]


@pytest.fixture
def no_page(monkeypatch):
    """Drawing the report takes longer than all the rest of these studies."""
    monkeypatch.setattr(trainers.studies.evaluate, "write_report", lambda path, report: path.write_text("page"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(study(), out)
    return out


def test_the_files_are_there_and_nothing_else(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["blocks", "provenance.json", "report.html", "results.csv"]
    assert not list(finished.rglob("*.partial"))


def test_the_table_holds_what_the_study_asks_for(finished):
    rows = table(finished)
    assert tuple(rows[0]) == Row._fields
    assert {row["study"] for row in rows} == {"noise"}
    painters = {"population-constant", "tissue-prior-mean", "true-tissue-mean"}
    bounds = {"bound-free", "bound-shared", "bound-known"}
    assert {row["estimator"] for row in rows} == {"least-squares", "shared-b", "truth", *painters, *bounds}
    assert {row["tissue"] for row in rows} == {"gm", "wm", "pure", "mixed", ""}
    assert {row["parameter"] for row in rows} == {"A", "B", "T1", ""}
    assert {row["draw"] for row in rows} == {"0", "1", "all"}
    assert {(row["snr"], row["sigma"]) for row in rows} == {("10", "0.065"), ("60", "0.0108333")}
    # a CV never stands alone
    key = ("estimator", "tissue", "parameter", "snr", "draw")
    by_metric = {
        metric: {tuple(row[k] for k in key) for row in rows if row["metric"] == metric}
        for metric in ("cv_median", "relative_bias_median", "rmse_median")
    }
    assert by_metric["cv_median"] == by_metric["relative_bias_median"] == by_metric["rmse_median"]


def test_the_fit_is_near_its_bound(finished):
    """Least squares on a protocol that identifies B, at SNR 60: RMSE over the free bound near 1."""
    row = next(
        row
        for row in table(finished)
        if (row["estimator"], row["tissue"], row["parameter"], row["snr"], row["draw"], row["metric"])
        == ("least-squares", "wm", "T1", "60", "all", "rmse_over_bound_free")
    )
    # the median over voxels of three repeats is sqrt(median(chi^2_3) / 3) = .888; voxels: about 250
    assert float(row["value"]) == pytest.approx(0.888, abs=0.1)


def test_provenance_says_where_the_numbers_come_from(finished):
    record = json.loads((finished / "provenance.json").read_text())
    assert record["complete"] is True
    assert record["seeds"] == {"noise": 2, "truth": 4}
    assert record["tissues"]["truncation"].startswith("every normal cut")
    assert record["anatomy"]["split"] == "test"
    assert len(record["anatomy"]["draws"]) == 2
    assert record["config"]["data"]["patch"] == [24, 24]
    assert {"qsim", "torch", "python"} <= set(record["versions"])


def test_the_report_is_one_page_that_needs_nothing_else(finished):
    page = (finished / "report.html").read_text()
    assert len(page.encode()) < 3_000_000
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert not re.search(r"@import|url\(", page)
    for name in ("least-squares", "shared-b", "population-constant", "tissue-prior-mean", "true-tissue-mean"):
        assert name in page
    for text in (
        "0.65 / σ",
        "doi:10.1016/j.media.2021.102220",
        "every normal cut at mean ± 2 SD".replace("±", "+-"),
        "seeds",
    ):
        assert text in page
    # every picture is inside
    assert all(source.startswith("data:image/") for source in re.findall(r"<img[^>]* src=\"([^\"]*)", page))
    # two draws are not six, and the page says so
    assert "2 draws of tissue values instead of at least 6" in page


def test_the_report_shows_the_numbers_of_the_table(finished):
    page = (finished / "report.html").read_text()
    shown = re.findall(r"<span class=\"rmse\">([^<]*)<", page)
    for row in table(finished):
        if (row["parameter"], row["metric"], row["draw"]) == ("T1", "rmse_median", "all"):
            assert number(float(row["value"])) in shown


def test_numbers_do_not_depend_on_the_workers(finished, tmp_path, no_page):
    run_study(study(), tmp_path / "three", Command(workers=3))
    assert numbers(tmp_path / "three") == numbers(finished)


def test_numbers_do_not_depend_on_processes(finished, tmp_path, no_page):
    run_study(study(), tmp_path / "processes", Command(workers=2, scheduler="processes"))
    assert numbers(tmp_path / "processes") == numbers(finished)


OWN = """
import torch
from qsim.estimators import build_estimator
from qsim.estimators.adapters import VoxelByVoxel


def build(model):
    return VoxelByVoxel("mine", model, lambda series: [series.max(), 2.0, 1.0])


def broken(model):
    return 3


fixed = 3
"""


def test_a_method_of_ones_own(tmp_path, no_page, monkeypatch):
    """By module and object, from the current folder; its source is recorded, and another source is another study."""
    (tmp_path / "my_fit.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = Command(estimators=("my_fit:build",))
    config = study(changed(draws=1, snr=[10]))
    run_study(config, tmp_path / "out", command)
    rows = [row for row in table(tmp_path / "out") if row["estimator"] == "mine"]
    bias = next(
        float(r["value"])
        for r in rows
        if (r["metric"], r["parameter"], r["draw"], r["tissue"]) == ("relative_bias_mean", "T1", "all", "wm")
    )
    truth = next(
        float(r["value"])
        for r in table(tmp_path / "out")
        if (r["estimator"], r["metric"], r["parameter"], r["draw"], r["tissue"])
        == ("truth", "truth_mean", "T1", "all", "wm")
    )
    # voxels vary by 5 %: the mean of ratios is about .25 % from the ratio of means
    assert bias == pytest.approx(100 * (1.0 / truth - 1), abs=1.0)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    digest = hashlib.sha256(OWN.encode()).hexdigest()
    assert record["own_methods"] == {"mine": {"from": "my_fit:build", "sha256": digest}}
    with pytest.raises(InputError, match="another config"):
        run_study(config, tmp_path / "out")
    for where, message in {
        "my_fit": "wanted module:object",
        "my_fit:nothing": "my_fit has no 'nothing'",
        "no_fit:build": "there is no module 'no_fit'",
        "my_fit:fixed": "is no function or class",
        "my_fit:broken": "does not build an Estimator",
    }.items():
        with pytest.raises(InputError, match=message):
            run_study(config, tmp_path / "other", Command(estimators=(where,)))
    assert not (tmp_path / "other").exists()


def test_a_fit_that_is_told_b_is_held_against_the_known_bound(tmp_path):
    told = {"method": "least-squares", "known": ["B"]}
    report = run_study(study(changed(estimators=["least-squares", told], draws=1, snr=[60])), tmp_path / "out")
    assert "least-squares, B known" in report.read_text()
    rmse = {
        row["estimator"]: float(row["value"])
        for row in table(tmp_path / "out")
        if (row["metric"], row["parameter"], row["draw"], row["tissue"]) == ("rmse_median", "T1", "all", "gm")
    }
    # the bounds of this protocol with B free and known differ by more than a fifth
    assert rmse["least-squares, B known"] < 0.9 * rmse["least-squares"]


def test_a_killed_study_goes_on_and_ends_the_same(finished, tmp_path, monkeypatch, no_page):
    ran = []
    real = trainers.studies.evaluate.run_block

    def dies_in_the_third(case, methods, design, snr):
        ran.append((case.draw, snr))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(case, methods, design, snr)

    monkeypatch.setattr(trainers.studies.evaluate, "run_block", dies_in_the_third)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(study(), out)
    assert not (out / "results.csv").exists()
    assert not (out / "report.html").exists()
    assert json.loads((out / "provenance.json").read_text())["complete"] is False
    run_study(study(), out)
    # two blocks were kept, the third began twice
    assert len(ran) == 3 + 2
    assert numbers(out) == numbers(finished)


def test_a_damaged_block_is_computed_again(finished, tmp_path, no_page):
    out = shutil.copytree(finished, tmp_path / "out")
    block = out / "blocks" / "draw001_snr60.npz"
    block.write_bytes(block.read_bytes()[:1000])
    run_study(study(), out)
    assert numbers(out) == numbers(finished)


def test_another_study_or_a_foreign_folder_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="another config"):
        run_study(study(changed(repeats=4)), finished)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds no study"):
        run_study(study(), foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]


def test_a_model_without_b_has_no_shared_bound(tmp_path):
    config = changed(
        data__model={"kind": "t2_prep", "te_prep": [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]},
        estimators=["least-squares"],
        crop=None,
    )
    out = tmp_path / "out"
    run_study(study(config), out)
    rows = table(out)
    assert {row["parameter"] for row in rows} == {"A", "T2", ""}
    assert {row["estimator"] for row in rows if row["estimator"].startswith("bound")} == {"bound-free"}
    assert not [row for row in rows if row["metric"] in ("rmse_over_bound_shared", "rmse_over_shared-b")]
    page = (out / "report.html").read_text()
    assert "T<sub>2</sub>" in page
    # no crop: the whole slice
    assert "28 × 28 voxels" in page


class Network:
    """A trained network that knows T1 only, 5 % too long."""

    name = "rim"
    parameters = (T1,)
    trained_on = GeneratorConfig.model_validate(
        T1_CONFIG["data"] | {"split": "train", "samples": 9, "patch": [8, 8], "seed": 5}
    )

    def __call__(self, images, sigma=None, mask=None, known=None):
        status = torch.zeros(images.shape[1:], dtype=torch.uint8)
        return Estimate(kappa=torch.full((1, *images.shape[1:]), 1.05), status=status)


@pytest.fixture
def run(tmp_path, monkeypatch):
    weights = tmp_path / "run" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    monkeypatch.setattr(trainers.infer, "load_estimator", lambda run, model, device, contrast, noise: Network())
    monkeypatch.setattr(trainers.infer, "find_network", lambda run: weights)
    return weights


def test_a_network_joins_by_its_run_and_its_weights_are_part_of_the_study(run, tmp_path):
    config = study(changed(estimators=["least-squares", "shared-b", {"model": str(run.parent)}], draws=1))
    out = tmp_path / "out"
    run_study(config, out)
    rows = [row for row in table(out) if row["estimator"] == "rim"]
    # rows that it does not know stay blank
    assert {row["parameter"] for row in rows} == {"T1", ""}
    assert {"rmse_over_least-squares", "rmse_over_shared-b"} <= {row["metric"] for row in rows}
    record = json.loads((out / "provenance.json").read_text())
    digest = hashlib.sha256(b"weights").hexdigest()
    assert record["models"] == {"rim": {"run": str(run.parent), "sha256": {"model.safetensors": digest}}}
    page = (out / "report.html").read_text()
    # a constant paints means, and the summary says it
    assert "It paints means" in page
    run.write_bytes(b"other weights")
    with pytest.raises(InputError, match="another config, scans, weights"):
        run_study(config, out)


@pytest.mark.parametrize(
    "trained",
    [{"split": "test"}, {"slice_axis": 0}, {"phantom": T1_CONFIG["data"]["phantom"] | {"test_share": 0.3}}, None],
)
def test_a_network_that_may_have_seen_the_anatomy_is_refused(run, tmp_path, monkeypatch, trained):
    on = None if trained is None else Network.trained_on.model_dump(mode="json") | trained
    monkeypatch.setattr(Network, "trained_on", on and GeneratorConfig.model_validate(on))
    keys = changed(estimators=[{"model": str(run.parent)}], draws=1, snr=[10])
    with pytest.raises(InputError, match=r"estimators\[0\]\.model: .* may have been trained on the anatomy"):
        run_study(study(keys), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    page = run_study(study(keys | {"allow_training_anatomy": True}), tmp_path / "out").read_text()
    assert "rim may have been trained on this anatomy" in page


def test_the_seed_of_the_training_is_refused(run, tmp_path, monkeypatch):
    """Seed and index decide the tissue values: the study's first draws would be training samples."""
    seed = T1_CONFIG["data"]["seed"]
    monkeypatch.setattr(Network, "trained_on", Network.trained_on.model_copy(update={"seed": seed}))
    with pytest.raises(InputError, match=rf"data\.seed: {seed} is the seed of the training data"):
        run_study(study(changed(estimators=[{"model": str(run.parent)}], draws=1, snr=[10])), tmp_path / "out")


def test_two_networks_of_one_name_need_names(run, tmp_path, no_page):
    twice = [{"model": str(run.parent)}, {"model": str(run), "name": "second"}, {"model": "third"}]
    with pytest.raises(InputError, match="rim; name one of them"):
        run_study(study(changed(estimators=twice)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run_study(study(changed(estimators=twice[:2], draws=1, snr=[30])), tmp_path / "out")
    assert {"rim", "second"} <= {row["estimator"] for row in table(tmp_path / "out")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__split": "train"}, r"data\.split: got train, wanted test"),
        (
            {"estimators": ["least-squares", "mle"]},
            r"estimators\[1\]: unknown method 'mle'; known are two-point, log-linear, least-squares, ",
        ),
        ({"estimators": [{"models": "x"}]}, r"estimators\[0\]: got \{'models': 'x'\}, wanted a name"),
        ({"estimators": []}, r"estimators: "),
        ({"estimators": [{"method": "shared-b", "weight": 3}]}, r"estimators\[0\]: got .*options: "),
        ({"estimators": [{"method": "mle"}]}, r"estimators\[0\]: unknown method 'mle'"),
        (
            {"estimators": [{"method": "least-squares", "known": ["T2"]}]},
            r"estimators\[0\]\.known: T2 is no row of the model, which has A, B, T1",
        ),
        (
            {"estimators": [{"method": "least-squares", "options": {"weight": 3}}]},
            r"estimators\[0\]: least-squares has no option 'weight'",
        ),
        ({"estimators": ["shared-b", "shared-b"]}, r"estimators\[1\]: shared-b is given twice"),
        ({"snr": [10, 0]}, r"snr\[1\]: wanted an SNR \(0\.65 / sigma\) from 0\.01 to 1e6, got 0$"),
        ({"snr": [0]}, r"snr\[0\]: wanted an SNR .*, got 0$"),
        ({"snr": [1e-300]}, r"snr\[0\]: wanted an SNR .*, got 1e-300$"),
        ({"snr": [1e7]}, r"snr\[0\]: wanted an SNR "),
        ({"snr": ["x"]}, r"snr\[0\]: [^\n]*, got 'x'$"),
        (
            {"estimators": [{"method": "least-squares", "known": ["B", "B"]}]},
            r"estimators\[0\]\.known: B is given twice$",
        ),
        ({"estimators": [{"model": 5}]}, r"estimators\[0\]\.model: wanted a folder or a name, got 5$"),
        ({"snr": [10, 10]}, r"snr: 10 is given twice"),
        ({"repeats": 1}, r"repeats: .*greater than or equal to 2"),
        ({"draws": 0}, r"draws: "),
        ({"crop": [24]}, r"crop must hold two numbers"),
        ({"kind": "blur"}, r"kind: .*'noise'"),
        ({"repeat": 5}, r"repeat: unknown key; did you mean repeats\?"),
        ({"data__model__ti": [139, 166]}, r"data\.model\.ti must be in seconds"),
        (
            {"data__model": {"kind": "t2_prep", "te_prep": [0.01, 0.1]}},
            r"estimators\[1\]: .*shared-b",
        ),
    ],
)
def test_bad_configs_are_named_in_one_line(tmp_path, changes, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(changed(**changes)))
    with pytest.raises(InputError, match=message) as caught:
        read_config(path, StudyConfig)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": [24, 99]}, r"^crop: 24 x 99 is larger than the anatomy"),
        (
            {"estimators": ["least-squares", {"model": "no/such/run"}]},
            r"^estimators\[1\]\.model: no/such/run: neither a run",
        ),
    ],
)
def test_what_only_the_files_can_tell_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run_study(study(changed(**changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_anatomy_is_allowed_only_aloud(tmp_path):
    config = changed(data__split="train", allow_training_anatomy=True, draws=1, snr=[30], repeats=2)
    run_study(study(config), tmp_path / "out")
    assert "anatomy that networks were trained on" in (tmp_path / "out" / "report.html").read_text()


def test_patch_and_samples_of_the_data_give_way(tmp_path, no_page):
    config = study(changed(data__patch=[3, 3], data__samples=99, draws=1, snr=[30], repeats=2))
    run_study(config, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["config"]["data"]["patch"] == [24, 24]
    counts = {
        int(row["n"]) for row in table(tmp_path / "out") if row["metric"] == "truth_mean" and row["tissue"] == "pure"
    }
    # two discs, radius 12 voxels, less the ring of mixed voxels
    assert len(counts) == 1
    assert np.pi * 10**2 < counts.pop() < np.pi * 12**2
