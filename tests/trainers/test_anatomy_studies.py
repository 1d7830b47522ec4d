"""`blurriness` and `generalisation` from config to files, on analytic shapes."""

import csv
import json
import re

import pytest
import yaml

import trainers.infer
from generators.config import GeneratorConfig
from generators.reading import read_config
from qsim.errors import InputError
from trainers.studies.block_runner import Command
from trainers.studies.blurriness import BlurrinessConfig, run_blurriness
from trainers.studies.generalisation import GeneralisationConfig, run_generalisation
from trainers.studies.methods import _apart
from trainers.studies.study_plan import StudyConfig, make_plan

DATA = {
    "seed": 4,
    "split": "test",
    "phantom": {
        "kind": "geometry",
        "size": [40, 40],
        "spacing_mm": [1.0, 1.0],
        "shapes": [
            {"shape": "disc", "tissue": "gm", "radius_mm": 19.0},
            {"shape": "disc", "tissue": "wm", "radius_mm": 13.0},
        ],
    },
    "tissues": {"kind": "sabidussi2021"},
    "partial_volume": False,
    "model": {"kind": "inversion_recovery", "ti": [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
}
BLUR = {
    "seed": 2,
    "kind": "blurriness",
    "data": DATA,
    "estimators": ["shared-b", {"method": "least-squares", "known": ["B"]}],
    "structures": [
        {"name": "point", "tissue": "wm", "extent": [1, 1], "value": 1.4},
        {"name": "line", "tissue": "wm", "extent": [1, 4], "value": 1.4},
    ],
    "snr": [60],
    "draws": 2,
    "repeats": 4,
    "crop": [36, 36],
}
PROTOCOLS = {"long": [0.1, 0.2, 0.4, 0.8, 1.6, 3.0], "short": [0.1, 0.2, 0.4, 0.8, 1.2]}
GENERAL = {key: BLUR[key] for key in ("seed", "data", "estimators", "snr", "draws", "crop")} | {
    "kind": "generalisation",
    "repeats": 3,
    "protocols": PROTOCOLS,
    "estimators": ["shared-b", "least-squares"],
}
ANGLES = {
    "data": DATA | {"model": {"kind": "spoiled_gradient_echo", "flip_angles": [0.05, 0.2, 0.4], "tr": 0.02}},
    "estimators": ["least-squares"],
}
KINDS = {"blurriness": (BlurrinessConfig, run_blurriness), "generalisation": (GeneralisationConfig, run_generalisation)}


def run(config, out, **command):
    kind, runner = KINDS[config["kind"]]
    return runner(kind.model_validate(config), out, Command(**command))


def table(folder):
    with (folder / "results.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] != "cpu_seconds_per_image"]


@pytest.fixture(scope="module", params=[BLUR, GENERAL], ids=["blurriness", "generalisation"])
def finished(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run(request.param, out)
    return request.param, out


def test_files_and_page(finished):
    _, out = finished
    assert sorted(p.name for p in out.iterdir()) == ["blocks", "provenance.json", "report.html", "results.csv"]
    assert json.loads((out / "provenance.json").read_text())["complete"] is True
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    for text in ("0.65 / σ", "least-squares", "shared-b", "population-constant", "bound"):
        assert text in page


def test_without_networks_the_fits_are_summarised(finished):
    config, out = finished
    page = (out / "report.html").read_text()
    assert f"{config['repeats']} noise realisations: the CV" in page
    if config["kind"] == "generalisation":
        assert "Smallest median RMSE of T1 over all pure voxels under each protocol. <b>long</b>: shared-b" in page
        assert "No two networks" not in page
        assert "CV / own" not in page
        # median of chi-square with two degrees of freedom: 2 ln 2, so sqrt(ln 2) = .83 of the CV
        assert "come out about 17 % low" in page


def test_workers_and_processes_change_no_number(finished, tmp_path):
    config, out = finished
    run(config, tmp_path / "out", workers=2, scheduler="processes")
    assert table(tmp_path / "out") == table(out)
    with pytest.raises(InputError, match="another config"):
        run(config | {"repeats": 5}, out)


def test_a_voxelwise_fit_keeps_small_structures(tmp_path):
    run(BLUR, tmp_path / "out")
    rows = {
        (row["estimator"], row["tissue"], row["metric"]): float(row["value"])
        for row in table(tmp_path / "out")
        if row["draw"] == "all" and row["value"]
    }
    for who in ("shared-b", "least-squares, B known"):
        # nothing is smoothed: the contrast is kept up to the noise, some per cent of it
        assert rows[who, "point, structure", "contrast_recovery"] == pytest.approx(1, abs=0.1)
        assert rows[who, "line, structure", "contrast_recovery"] == pytest.approx(1, abs=0.05)
    # who paints the mean of the tissue shows no contrast at all
    assert rows["true-tissue-mean", "point, structure", "contrast_recovery"] == pytest.approx(0, abs=1e-3)


def test_more_images_tell_more(tmp_path):
    run(GENERAL, tmp_path / "out")
    cv = {
        row["estimator"]: float(row["value"])
        for row in table(tmp_path / "out")
        if (row["metric"], row["parameter"], row["tissue"], row["draw"]) == ("bound_median", "T1", "gm", "all")
    }
    # T1 of grey matter is 1.4 s: a protocol that ends at 1.2 s hardly tells B from A
    assert cv["bound-free on short"] > 2 * cv["bound-free on long"]


def test_a_network_that_takes_one_protocol_is_left_out_elsewhere_and_the_page_says_so(tmp_path, monkeypatch):
    from tests.trainers.test_evaluate import Network as Paints

    weights = tmp_path / "run" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    monkeypatch.setattr(trainers.infer, "find_network", lambda run: weights)

    def load(run, model=None, device="cpu", contrast=None, noise=None):
        if model is not None and len(model.ti) != 6:
            raise InputError("model: maps only the protocol it was trained on")
        return Paints()

    monkeypatch.setattr(trainers.infer, "load_estimator", load)
    config = GENERAL | {"estimators": ["shared-b", {"model": "resnet"}], "allow_training_anatomy": True}
    page = run(config, tmp_path / "out").read_text()
    assert "Not applicable" in page
    assert "maps only the protocol it was trained on" in page
    who = {row["estimator"] for row in table(tmp_path / "out")}
    assert {f"{Paints.name} on long", "shared-b on short"} <= who
    assert f"{Paints.name} on short" not in who
    only_short = config | {"protocols": {"short": PROTOCOLS["short"]}}
    with pytest.raises(InputError, match=r"estimators\[1\]\.model: takes none of the protocols"):
        run(only_short, tmp_path / "other")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BLUR, {"structures": []}, r"structures: empty"),
        (BLUR, {"parameter": "T2"}, r"parameter: got T2, wanted a relaxation time of the model: T1"),
        (BLUR, {"structures": [BLUR["structures"][0] | {"value": 400}]}, r"structures\[0\]\.value: .*milliseconds"),
        (BLUR, {"structures": [BLUR["structures"][0]] * 2}, r"structures\[1\]\.name: point is given twice"),
        (BLUR, {"structures": [BLUR["structures"][0] | {"extent": [0, 1]}]}, r"extent"),
        (GENERAL, {"protocols": {"ms": [100, 200, 400]}}, r"protocols\.ms: ti must be in seconds"),
        (GENERAL, {"protocols": {}}, r"protocols"),
        (GENERAL, {"protocols": {"a/b": [0.1, 0.2, 0.3]}}, r"protocols: 'a/b' is no name"),
        (GENERAL, ANGLES, r": protocols\.long: the model spoiled_gradient_echo has no list"),
        (GENERAL, {"draws": 0}, r"draws: "),
    ],
)
def test_refusals_name_the_field(config, changes, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps({**config, **changes}))))
    with pytest.raises(InputError, match=message):
        read_config(path, KINDS[config["kind"]][0])


def test_too_large_a_structure_is_refused_before_anything_is_written(tmp_path):
    config = BLUR | {"structures": [BLUR["structures"][0] | {"extent": [30, 30]}]}
    with pytest.raises(InputError, match=r"structures\[0\]: draw 0 has no 32 x 32 voxels of pure wm"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_draws_of_whole_slices_are_subjects(tmp_path):
    """Slices of one subject share their tissue values: as draws they would pass for independent."""
    data = {
        "seed": 3,
        "split": "test",
        "sampling": "slices",
        "phantom": {
            "kind": "geometry",
            "size": [20, 20, 9],
            "spacing_mm": [1.0, 1.0, 1.0],
            "subjects": 6,
            "test_subjects": 3,
            "shapes": [{"shape": "ball", "tissue": "wm", "radius_mm": 7.0}],
        },
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "t2_prep", "te_prep": [0.01, 0.05, 0.1]},
        "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
    }
    study = {"seed": 1, "kind": "noise", "data": data, "estimators": ["log-linear"], "snr": [30.0], "repeats": 2}
    plan = make_plan(StudyConfig(**study, draws=3, crop=(20, 20)))
    assert [origin.split(",")[0] for origin in plan.origins] == ["subject 3", "subject 4", "subject 5"]
    t2 = [float(case.kappa[1][case.labels > 0].mean()) for case in plan.cases]
    assert min(abs(a - b) for a, b in ((t2[0], t2[1]), (t2[1], t2[2]), (t2[0], t2[2]))) > 1e-4
    with pytest.raises(InputError, match=r"^draws: 4, but with data.sampling: slices every draw is a subject.* has 3"):
        make_plan(StudyConfig(**study, draws=4, crop=(20, 20)))


def test_an_anatomy_with_structures_is_still_that_anatomy():
    plain = {"kind": "mni"}
    lesions = {"kind": "with_structures", "phantom": plain, "structures": [{"shape": "point", "tissue": "csf"}]}
    base = {
        "seed": 1,
        "samples": 1,
        "patch": [20, 20],
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "t2_prep", "te_prep": [0.01, 0.05]},
        "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
    }
    trained = GeneratorConfig(**base, phantom=lesions)
    assert _apart(trained, GeneratorConfig(**base, phantom=plain, split="test"))
    assert not _apart(trained, GeneratorConfig(**base, phantom=plain))
    assert not _apart(trained, GeneratorConfig(**base, phantom={**plain, "gap": 7}, split="test"))
