"""`uncertainty` from config to files, on analytic shapes."""

import csv
import json
import re
import shutil

import pytest
import yaml

from generators.reading import read_config
from qsim.errors import InputError
from trainers.studies.block_runner import Command
from trainers.studies.uncertainty import UncertaintyConfig, run_uncertainty

TIMES = {"kind": "truncated", "of": {"kind": "normal", "mean": 0.045, "sd": 0.002}, "low": 0.04, "high": 0.05}
TABLE = {
    "kind": "table",
    "name": "test",
    "field_strength": 3.0,
    "truncation": "cut",
    "tissues": [
        {"name": name, "source": "none", "values": {"A": {"kind": "constant", "value": 0.65}, "T1RHO": t}}
        for name, t in (("liver", TIMES), ("muscle", {"kind": "constant", "value": 0.055}))
    ],
}
DATA = {
    "seed": 4,
    "split": "test",
    "phantom": {
        "kind": "geometry",
        "size": [24, 24],
        "spacing_mm": [1.0, 1.0],
        "shapes": [
            {"shape": "disc", "tissue": "muscle", "radius_mm": 11.0},
            {"shape": "disc", "tissue": "liver", "radius_mm": 7.0},
        ],
    },
    "tissues": TABLE,
    "partial_volume": False,
    "model": {"kind": "spin_lock", "tsl": [0.0, 0.01, 0.03, 0.05]},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.01}},
}
CONFIG = {
    "seed": 2,
    "kind": "uncertainty",
    "data": DATA,
    "estimators": [
        "least-squares",
        "two-point",
        {"method": "least-squares", "name": "mute", "options": {"covariance": False}},
    ],
    "snr": [5, 100],
    "draws": 2,
    "repeats": 4,
    "crop": [22, 22],
}
RECOVERY = CONFIG | {
    "data": DATA
    | {
        "phantom": DATA["phantom"]
        | {
            "shapes": [
                {"shape": "disc", "tissue": "gm", "radius_mm": 11.0},
                {"shape": "disc", "tissue": "wm", "radius_mm": 7.0},
            ]
        },
        "tissues": {"kind": "sabidussi2021"},
        "model": {"kind": "inversion_recovery", "ti": [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]},
    },
    "estimators": [{"method": "least-squares", "known": ["B"]}],
    "intervals": ["log-wald", "profile"],
    "snr": [60],
    "draws": 1,
}


def run(config, out, **command):
    return run_uncertainty(UncertaintyConfig.model_validate(config), out, Command(**command))


def table(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def values(folder):
    return {
        (row["estimator"], row["tissue"], float(row["snr"]), row["metric"]): float(row["value"])
        for row in table(folder)
        if row["draw"] == "all" and row["value"]
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run(CONFIG, out)
    return out


def test_files_and_page(finished):
    assert sorted(p.name for p in finished.iterdir()) == ["blocks", "provenance.json", "report.html", "results.csv"]
    assert json.loads((finished / "provenance.json").read_text())["complete"] is True
    page = (finished / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    for text in (
        "0.65 / σ",
        "meet both targets",
        "AUSE",
        "CRPS",
        "State no uncertainty",
        "mute (it states no variances)",
    ):
        assert text in page
    assert "No choose interval of two-point: the estimate is not the maximum" in page
    # coverage and width of three kinds, sparsification, two of calibration, maps of two SNRs
    assert page.count("data:image/svg") == 3 + 1 + 2 + 2
    # a block is small: no error of any voxel but those of one map
    assert max(p.stat().st_size for p in (finished / "blocks").iterdir()) < 100_000


def test_honest_where_the_noise_is_low_and_the_table_says_where_it_is_not(finished):
    found = values(finished)
    for kind in ("wald", "log-wald", "choose"):
        # some 270 voxels x 4 x 2 draws: binomial SD .5 %
        assert found["least-squares", "all tissues", 100, f"coverage_{kind}"] == pytest.approx(95, abs=2)
        assert found["least-squares", "muscle", 100, f"width_over_bound_{kind}"] == pytest.approx(1, abs=0.02)
    # two of the four images: 1.2 to 1.3 times the bound of all
    assert 1.1 < found["two-point", "muscle", 100, "width_over_bound_wald"] < 1.4
    # at SNR 5 the likelihood has no upper end in many voxels
    assert found["least-squares", "muscle", 5, "coverage_wald"] < 93
    assert found["least-squares", "muscle", 5, "one_sided_rate_choose"] > 10
    assert found["two-point", "liver", 5, "undefined_rate"] > 0
    assert found["least-squares", "liver, tercile 1", 100, "coverage_wald"] == 100
    assert {who for who, *_ in found} == {"least-squares", "two-point"}
    assert not any(who == "two-point" and metric.endswith("choose") for who, *_, metric in found)


def test_workers_and_processes_and_a_second_start_change_no_number(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    # a study that was stopped: two of the four blocks gone, the table with them
    for block in sorted((out / "blocks").iterdir())[1:3]:
        block.unlink()
    (out / "results.csv").unlink()
    run(CONFIG, out, workers=2, scheduler="processes")
    assert table(out) == table(finished)
    with pytest.raises(InputError, match="another config"):
        run(CONFIG | {"level": 0.9}, out)


def test_a_fit_that_is_told_b_is_held_against_the_bound_of_known_b(tmp_path):
    page = run(RECOVERY, tmp_path / "out").read_text()
    found = values(tmp_path / "out")
    who = "least-squares, B known"
    assert f"{who}: that row known" in page
    for kind in ("log-wald", "profile"):
        assert found[who, "wm", 60, f"width_over_bound_{kind}"] == pytest.approx(1, abs=0.05)
        assert found[who, "all tissues", 60, f"coverage_{kind}"] == pytest.approx(95, abs=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 95}, r"level"),
        ({"intervals": []}, r"intervals: empty; give at least one of wald, log-wald, profile, choose"),
        ({"intervals": ["wald", "wald"]}, r"intervals\[1\]: wald is given twice"),
        ({"intervals": ["bayes"]}, r"intervals\[0\]: got 'bayes', wanted one of wald"),
        ({"parameter": "T1"}, r"parameter: got T1, wanted a relaxation time of the model: T1RHO"),
        ({"estimators": ["nothing"]}, r"estimators\[0\]: unknown method 'nothing'"),
        ({"repeats": 1}, r"repeats"),
    ],
)
def test_refusals_name_the_field(changes, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps({**CONFIG, **changes}))))
    with pytest.raises(InputError, match=message) as caught:
        read_config(path, UncertaintyConfig)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"estimators": CONFIG["estimators"][2:]},
            r"estimators: none states an uncertainty of T1RHO \(mute: it states",
        ),
        (
            {"estimators": ["two-point"], "intervals": ["profile"]},
            r"intervals: no method has one of profile \(two-point, profile: the estimate is not the maximum",
        ),
    ],
)
def test_nothing_to_judge_is_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(CONFIG | changes, tmp_path / "out")
    assert not (tmp_path / "out").exists()
