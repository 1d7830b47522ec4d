"""`qsim study` of kinds prep_robustness and readout_bias: files, pages, sameness, and what is refused."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from generators.reading import read_config
from qsim.errors import InputError
from qsim.evaluation.table import Row
from trainers.registry import config_schema, registries
from trainers.studies.block_runner import Command
from trainers.studies.prep_robustness import PrepRobustnessConfig
from trainers.studies.readout_bias import ReadoutBiasConfig
from trainers.studies.registry import STUDIES, read_study

CONFIGS = Path(__file__).parents[2] / "configs" / "bloch"
FILES = ["grid.csv", "provenance.json", "report.html", "results.csv"]
REFERENCE = {"name": "reference", "t1": 1.0, "t2": 0.05, "t1rho": 0.05, "source": "round numbers"}
BSL = {"kind": "spin_lock", "cluster": "BSL", "tsl": [0.0, 0.01, 0.03, 0.05], "fsl": 400.0}
MLEV4 = {"kind": "t2_prep", "refocusing": "MLEV4", "te": [0.02, 0.04, 0.06]}
PREP = {
    "kind": "prep_robustness",
    "preparations": [BSL, {**BSL, "cluster": "RESL"}, MLEV4],
    "pulse_b1": [None, 800.0],
    "tissues": [REFERENCE, {**REFERENCE, "name": "slow", "t1": 2.0}],
    "delta_b0": {"low": -100.0, "high": 100.0, "n": 3},
    "rel_b1": [0.7, 0.9, 1.0, 1.1],
}
GRE = {
    "kind": "spoiled_gradient_echo",
    "name": "linear",
    "flip_angle": 0.17453292519943295,
    "tr": 0.005,
    "acquisition": {"lines": 64},
}
READOUT = {
    "seed": 3,
    "kind": "readout_bias",
    "preparations": [BSL, {"kind": "inversion", "ti": [0.1, 0.5, 1.5, 3.0]}],
    "readouts": [
        {"kind": "ideal", "name": "ideal"},
        GRE,
        {**GRE, "name": "centric", "acquisition": {"lines": 64, "order": "centric"}},
        {"kind": "turbo_spin_echo", "name": "TSE", "esp": 0.005, "acquisition": {"lines": 16}},
    ],
    "tissues": [REFERENCE, {**REFERENCE, "name": "slow", "t1": 2.0}],
    "snr": [30, 300],
    "draws": 2,
    "repeats": 10,
    "sweep": {"t1": [0.5, 1.0, 1.5], "flip_angle": {"low": 0.1, "high": 0.3, "n": 3}, "echoes": [0, 32]},
}


def changed(config, **changes):
    """A config with changes; keys of parts by `part__key`; None removes a key."""
    config = json.loads(json.dumps(config))
    for path, new in changes.items():
        *steps, last = [int(step) if step.isdigit() else step for step in path.split("__")]
        place = config
        for step in steps:
            place = place[step]
        if new is None:
            del place[last]
        else:
            place[last] = new
    return config


def table(folder, name):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def run(config, out, workers=1):
    chosen = STUDIES[config["kind"]]
    return chosen.run(chosen.config.model_validate(config), out, Command(workers))


@pytest.fixture(scope="module", params=[PREP, READOUT], ids=lambda c: c["kind"])
def finished(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run(request.param, out)
    return request.param, out


def test_the_files_are_there_and_nothing_else(finished):
    config, out = finished
    assert sorted(p.name for p in out.iterdir()) == FILES
    record = json.loads((out / "provenance.json").read_text())
    assert record["complete"] is True
    assert record["config"]["kind"] == config["kind"]
    assert {"qsim", "torch", "python"} <= set(record["versions"])


def test_the_page_needs_nothing_else_and_says_how(finished):
    config, out = finished
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert not re.search(r"@import|url\(", page)
    sources = re.findall(r"<img[^>]* src=\"([^\"]*)", page)
    assert len(sources) > 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    for text in (
        "Methods",
        "Provenance",
        "round numbers",
        "doi:10.1038/s41467-020-19160-7",
        "PMC4320682",
        "BSL",
        "slow",
    ):
        assert text in page
    # the config of the page is the config
    shown = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL).group(1).replace("&#39;", "'")
    assert yaml.safe_load(shown)["tissues"] == config["tissues"]


def test_numbers_and_page_do_not_depend_on_the_workers(finished, tmp_path):
    config, out = finished
    run(config, tmp_path / "three", workers=3)
    for name in ("results.csv", "grid.csv", "report.html"):
        assert (tmp_path / "three" / name).read_bytes() == (out / name).read_bytes()


def test_the_same_study_runs_again_and_another_is_refused(finished, tmp_path):
    config, out = finished
    before = (out / "results.csv").read_bytes()
    run(config, out)
    assert (out / "results.csv").read_bytes() == before
    with pytest.raises(InputError, match="holds a study of another config"):
        run(changed(config, tissues__0__t1=1.1), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no study"):
        run(config, tmp_path / "other")


def test_tables_of_prep_robustness(tmp_path):
    run(PREP, tmp_path / "out")
    rows, grid = table(tmp_path / "out", "results.csv"), table(tmp_path / "out", "grid.csv")
    assert tuple(rows[0]) == Row._fields
    names = {f"{name}, {pulses}, {fit}" for name in ("BSL", "RESL", "MLEV4") for pulses in ("hard", "800 Hz")
             for fit in ("2p", "3p")}  # fmt: skip
    assert {row["estimator"] for row in rows} == names
    assert {(row["snr"], row["sigma"], row["draw"]) for row in rows} == {("inf", "0", "all")}
    # 3 preparations, 2 pulses, 2 tissues, 3 x 4 fields
    assert len(grid) == 3 * 2 * 2 * 12
    # physics.md, Oracle B: BSL at B1 .9 on resonance 50.7 ms, at 100 Hz 54.4 ms
    found = {
        (float(line["delta_b0"]), float(line["rel_b1"])): 1e3 * float(line["apparent_2p"])
        for line in grid
        if (line["preparation"], line["pulses"], line["tissue"]) == ("BSL", "hard", "reference")
    }
    assert round(found[0.0, 0.9], 1) == 50.7
    assert round(found[100.0, 1.0], 1) == 54.4


def test_tables_of_readout_bias(tmp_path):
    run(READOUT, tmp_path / "out")
    rows, grid = table(tmp_path / "out", "results.csv"), table(tmp_path / "out", "grid.csv")
    # physics.md, Oracle I
    apparent = {
        row["estimator"]: 1e3 * float(row["value"])
        for row in rows
        if (row["metric"], row["tissue"]) == ("apparent", "reference")
    }
    assert round(apparent["BSL, linear, 2p"], 2) == 68.06
    assert round(apparent["BSL, linear, 3p"], 3) == 50.0
    assert {(row["snr"], row["sigma"]) for row in rows} == {("inf", "0"), ("30", "0.0216667"), ("300", "0.00216667")}
    assert {row["draw"] for row in rows} == {"0", "1", "all"}
    # an SD never stands without its bias
    for metric in ("relative_bias", "sd", "rmse", "bound"):
        assert sum(row["metric"] == metric and row["snr"] != "inf" for row in rows) == 2 * 4 * 2 * 2 * 2 * 3
    # flip angle: linear, centric, TSE; echoes: linear stands for centric too, TSE; of the first tissue
    assert {(line["readout"], line["axis"]) for line in grid} == {
        *(("linear", "flip_angle"), ("centric", "flip_angle"), ("TSE", "flip_angle")),
        *(("linear", "echoes"), ("TSE", "echoes")),
    }
    assert {line["tissue"] for line in grid} == {"reference"}
    one = next(
        line
        for line in grid
        if (line["preparation"], line["readout"], line["axis"], line["value"], line["t1"])
        == ("BSL", "linear", "echoes", "32", "1")
    )
    assert round(1e3 * float(one["apparent_2p"]), 2) == 68.06


def test_names_keep_two_of_a_kind_apart(tmp_path):
    twin = changed(PREP, preparations=[BSL, {**BSL, "fsl": 500.0, "name": "BSL 500"}], pulse_b1=None)
    run(twin, tmp_path / "out")
    assert {line["preparation"] for line in table(tmp_path / "out", "grid.csv")} == {"BSL", "BSL 500"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "readiness"}, r"kind: got 'readiness', wanted one of 'noise', .*'prep_robustness', 'readout_bias'"),
        ({"kind": None}, r"kind: missing, wanted one of 'noise'"),
        ({"preparations__0__cluster": "QSL"}, r"preparations\[0\]\.cluster: input should be 'SSL'"),
        (
            {"preparations__0__kind": "inversion"},
            r"preparations\[0\]\.kind: got 'inversion', wanted one of 'sp",
        ),
        ({"preparations__0__tsl": [0, 10, 30]}, r"preparations\[0\]\.tsl must be in seconds, got 30; divide by 1000"),
        ({"preparations__0__fsl": 0}, r"preparations\[0\]\.fsl must be .* above 0 Hz, got 0"),
        ({"preparations__2__te": [0.02, 0.04]}, r"preparations\[2\]: has 2 different times; .* needs 3"),
        (
            {"preparations__2__te": [0.001, 0.04, 0.06]},
            r"preparations\[2\]: te of 0.001 s is too .*pulse_b1 800 Hz",
        ),
        (
            {"preparations__1__cluster": "BSL"},
            r"preparations\[1\]: is called BSL with hard .* as preparations\[0\]",
        ),
        ({"preparations__0__pulse_b1": 500.0}, r"preparations\[0\]\.pulse_b1: given here and for all"),
        ({"preparations__0__tsI": 1}, r"preparations\[0\]\.tsI: unknown key"),
        ({"tissues__1__t1rho": None}, r"tissues\[1\]\.t1rho: missing; preparations\[0\] is a spin-lock"),
        ({"tissues__1__name": "reference"}, r"tissues\[1\]\.name: reference is given twice"),
        ({"tissues__0__t1": 1000}, r"tissues\[0\]\.t1 must be in seconds, got 1000"),
        ({"tissues__0__source": None}, r"tissues\[0\]\.source: missing"),
        ({"rel_b1": [1.0, 0.9]}, r"rel_b1: wanted ascending values"),
        ({"rel_b1": [0.0, 1.0]}, r"rel_b1: wanted values from 0.05 to 3"),
        ({"rel_b1": []}, r"rel_b1: empty"),
        ({"tissues": []}, r"tissues: empty"),
        ({"pulse_b1": []}, r"pulse_b1: empty"),
        ({"delta_b0__low": 100.0}, r"delta_b0.* ?low must be below high"),
        ({"delta_b0__n": 1}, r"delta_b0\.n must lie between 2 and 1001, got 1"),
        ({"central": {"delta_b0": -1.0}}, r"central\.delta_b0 must not be negative"),
        ({"rel_b1": [0.7, 1.3]}, r"central: holds no point of the grid"),
        ({"pulse_b1": [0.0]}, r"pulse_b1\[0\]: .*greater than 0"),
        ({"snr": [3]}, r"snr: unknown key"),
    ],
)
def test_bad_prep_configs_are_named_in_one_line(tmp_path, changes, message):
    refused(tmp_path, changed(PREP, **changes), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readouts__1__name": "ideal"}, r"readouts\[1\]\.name: ideal is given twice"),
        ({"readouts__1__flip_angle": 10}, r"readouts\[1\]\.flip_angle must lie in \(0, pi\] rad, got 10; 10 degrees"),
        ({"readouts__1__kind": "spiral"}, r"readouts\[1\]\.kind: got 'spiral', wanted one of 'ideal'"),
        ({"readouts__1__acquisition__encoding": "exact"}, r"readouts\[1\]\.acquisition\.encoding: .* wanted centre"),
        ({"readouts__1__acquisition__shots": 5}, r"acquisition\.lines must be a multiple of shots"),
        ({"tr": 0.2}, r"tr of 0.2 s is shorter than preparation and readout"),
        (
            {"sweep__echoes": [0, 500], "tr": 4.0},
            r"sweep\.echoes: tr of 4 s .*preparations\[0\], readouts\[1\]",
        ),
        ({"sweep__echoes": [0.5, 1]}, r"sweep\.echoes: wanted whole numbers"),
        ({"sweep__flip_angle": [5, 10]}, r"sweep\.flip_angle: wanted values from"),
        ({"snr": [10, 10]}, r"snr: 10 is given twice"),
        ({"repeats": 1}, r"repeats: .*greater than or equal to 2"),
        ({"spread": 0.6}, r"spread: .*less than 0.5"),
        ({"seed": None}, r"seed: missing"),
    ],
)
def test_bad_readout_configs_are_named_in_one_line(tmp_path, changes, message):
    refused(tmp_path, changed(READOUT, **changes), message)


def refused(folder, config, message):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=message) as caught:
        read_study(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_runs_a_study_and_refuses_in_one_line(tmp_path):
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(changed(PREP, tissues=[REFERENCE], pulse_b1=None)))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(changed(PREP, kind="readiness")))

    def qsim(name):
        command = [sys.executable, "-m", "trainers.cli", "study", name, "--out", "out"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    bad = qsim("bad.yaml")
    assert bad.returncode == 2
    wanted = ", ".join(map(repr, STUDIES))
    assert bad.stderr.strip() == f"qsim: bad.yaml: kind: got 'readiness', wanted one of {wanted}"
    assert not (tmp_path / "out").exists()
    good = qsim("good.yaml")
    assert good.returncode == 0, good.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES


def test_lists_and_schema_know_every_kind():
    kinds = {"noise", "blurriness", "generalisation", "uncertainty", "grid", "mismatch", "run_time"}
    kinds |= {"prep_robustness", "readout_bias", "phantom", "test_retest", "self_supervised", "quality", "segmentation"}
    assert set(registries()["studies"]) == kinds
    schema = config_schema("study")
    assert schema["properties"]["kind"]["enum"] == list(STUDIES)
    assert set(schema["discriminator"]["mapping"]) == set(STUDIES)
    for reference in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema)):
        assert reference in schema["$defs"]
    for config in (PREP, READOUT):
        title = schema["discriminator"]["mapping"][config["kind"]].removeprefix("#/$defs/")
        assert set(config) <= set(schema["$defs"][title]["properties"])
        assert schema["$defs"][title]["properties"]["kind"]["const"] == config["kind"]


def test_shipped_configs_play_every_cluster_and_the_printed_readout():
    prep = read_config(CONFIGS / "study_prep_robustness.yaml", PrepRobustnessConfig)
    clusters = {p.cluster for p in prep.preparations if p.kind == "spin_lock"}
    assert clusters == {"SSL", "RESL", "CSL", "BSL", "PSCSL", "TRSL"}
    trains = {(p.refocusing, p.composite) for p in prep.preparations if p.kind == "t2_prep"}
    assert trains == {(r, c) for r in ("1x180", "4x180", "MLEV4", "MLEV8") for c in (False, True)}
    assert prep.pulse_b1 == (None, 800.0)
    readout = read_config(CONFIGS / "study_readout_bias.yaml", ReadoutBiasConfig)
    assert {r.kind for r in readout.readouts} == {
        "ideal",
        "spoiled_gradient_echo",
        "balanced_ssfp",
        "turbo_spin_echo",
    }
