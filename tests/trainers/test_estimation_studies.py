"""`qsim study` of kinds grid, mismatch and run_time: files, pages, sameness, going on, and what is refused."""

import csv
import json
import pickle
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import trainers.studies.grid
import trainers.studies.mismatch
import trainers.studies.run_time
from generators.reading import read_config
from qsim.errors import InputError
from qsim.evaluation.table import read_csv
from trainers.registry import config_schema
from trainers.studies.block_runner import Command
from trainers.studies.grid import GridConfig
from trainers.studies.methods import MethodEntry, ModelEntry, choose
from trainers.studies.mismatch import MismatchConfig
from trainers.studies.registry import STUDIES, read_study
from trainers.studies.run_time import RunTimeConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "estimation"
TI = [0.1, 0.3, 0.6, 1.0, 1.6, 2.5, 4.0]
GRID = {
    "seed": 1,
    "kind": "grid",
    "model": {"kind": "inversion_recovery", "ti": TI},
    "parameter": "T1",
    "points": {"low": 0.4, "high": 1.6, "n": 3, "log": True},
    "values": {"A": 0.65, "B": 1.9},
    "noise": "gaussian",
    "snr": [100, 10],
    "voxels": 20,
    "repeats": 2,
    "estimators": ["least-squares", {"method": "least-squares", "known": ["B"]}, "shared-b"],
}
MISMATCH = {
    "seed": 2,
    "kind": "mismatch",
    "snr": [30],
    "voxels": 10,
    "repeats": 2,
    "cases": [
        {
            "name": "inversion",
            "text": "B is not 2.",
            "truth": {
                "model": {"kind": "inversion_recovery", "ti": TI},
                "measures": "T1",
                "axis": "B",
                "points": [1.7, 2.0],
                "values": {"T1": 1.0},
            },
            "noise": "gaussian",
            "fits": [
                {"name": "two", "model": {"kind": "inversion_recovery_2p", "ti": TI}},
                {"name": "three", "model": {"kind": "inversion_recovery", "ti": TI}},
            ],
        },
        {
            "name": "floor",
            "truth": {
                "model": {"kind": "spin_lock", "tsl": [0.0, 0.01, 0.03, 0.05]},
                "measures": "T1RHO",
                "points": {"low": 0.02, "high": 0.08, "n": 3, "log": True},
            },
            "noise": {"kind": "rician"},
            "fits": [{"name": "gauss", "model": {"kind": "spin_lock", "tsl": [0.0, 0.01, 0.03, 0.05]}}],
        },
    ],
}
SIGMA = {"kind": "constant", "value": 0.1}
RUN_TIME = {
    "seed": 3,
    "kind": "run_time",
    "data": {
        "seed": 8,
        "split": "test",
        "phantom": {"kind": "mni"},
        "tissues": {"kind": "sabidussi2021"},
        "partial_volume": False,
        "model": {"kind": "inversion_recovery", "ti": TI},
        "noise": {"kind": "gaussian", "sigma": SIGMA},
    },
    "crop": [16, 12],
    "matrix": [20, 21],
    "estimators": ["least-squares", {"method": "least-squares", "known": ["B"], "name": "told"}, "shared-b"],
    "snr": [30],
    "repeats": 2,
    "published": [{"name": "theirs", "seconds": 575}],
    "source": "a paper",
}
FILES = {"grid.csv", "provenance.json", "report.html", "results.csv"}


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


def run(config, out, command=None):
    chosen = STUDIES[config["kind"]]
    return chosen.run(chosen.config.model_validate(config), out, command or Command())


@pytest.fixture(scope="module", params=[GRID, MISMATCH, RUN_TIME], ids=lambda c: c["kind"])
def finished(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run(request.param, out)
    return request.param, out


def test_the_files_are_there_and_the_page_needs_nothing_else(finished):
    config, out = finished
    blocks = set() if config["kind"] == "run_time" else {"blocks"}
    assert {p.name for p in out.iterdir()} == FILES | blocks
    record = json.loads((out / "provenance.json").read_text())
    assert record["complete"] is True
    assert record["config"]["kind"] == config["kind"]
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert not re.search(r"@import|url\(", page)
    sources = re.findall(r"<img[^>]* src=\"([^\"]*)", page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert record["digest"] in page
    # the config of the page is one, and the same
    shown = yaml.safe_load(re.search(r"<pre>(.*?)</pre>", page, re.DOTALL).group(1).replace("&#39;", "'"))
    assert STUDIES[config["kind"]].config.model_validate(shown) == STUDIES[config["kind"]].config.model_validate(config)


def test_the_long_table_reads_back(finished):
    config, out = finished
    rows = read_csv(out / "results.csv")
    assert {row.study for row in rows} == {config["kind"]}
    assert {row.snr for row in rows} == {float(snr) for snr in config["snr"]}
    with (out / "grid.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == {"grid": 3 * 2 * 3, "mismatch": 2 * 2 + 3, "run_time": 3 * 2}[config["kind"]]


def test_grid_holds_each_method_against_its_own_bound(finished):
    config, out = finished
    if config["kind"] != "grid":
        return
    rows = {(row.estimator, row.tissue, row.snr, row.metric): row.value for row in read_csv(out / "results.csv")}
    points = ["T1 0.4 s", "T1 0.8 s", "T1 1.6 s"]
    told = "least-squares, B known"
    for point in points:
        bounds = [rows[f"bound: {name}", point, 100.0, "bound"] for name in ("free", "shared B", "known B")]
        assert bounds == sorted(bounds, reverse=True)
        rmse, ratio = (rows[told, point, 100.0, metric] for metric in ("rmse", "rmse_over_bound"))
        assert rmse / ratio == pytest.approx(bounds[2], rel=1e-4)
        # 40 errors: relative SD of their RMSE 11 %
        assert 0.6 < ratio < 1.4
        # the bound goes as sigma
        assert rows["bound: free", point, 10.0, "bound"] == pytest.approx(10 * bounds[0], rel=1e-4)


def test_workers_and_interruption_change_nothing(finished, tmp_path):
    config, one = finished
    if config["kind"] == "run_time":
        return
    two = tmp_path / "two"
    run(config, two, Command(workers=2))
    wanted = {name: (one / name).read_bytes() for name in ("results.csv", "grid.csv")}
    assert {name: (two / name).read_bytes() for name in wanted} == wanted
    # a study that was killed has some of its blocks, perhaps a damaged one
    blocks = sorted((two / "blocks").iterdir())
    blocks[0].unlink()
    blocks[1].write_bytes(blocks[1].read_bytes()[:100])
    kept = blocks[2].stat().st_mtime_ns
    (two / "results.csv").unlink()
    run(config, two)
    assert {name: (two / name).read_bytes() for name in wanted} == wanted
    assert blocks[2].stat().st_mtime_ns == kept
    other = changed(config, seed=77)
    with pytest.raises(InputError, match="holds a study of another config"):
        run(other, two)


def test_a_block_can_be_computed_in_another_process():
    config = GridConfig.model_validate(GRID)
    methods, _ = trainers.studies.grid.contenders(config.estimators, Command(), config.model, None)
    plan = trainers.studies.grid._Plan(config.truth, "T1", methods, config.snr)
    compute = partial(trainers.studies.grid._compute, plan=plan)
    key = next(iter(plan.blocks))
    here, there = compute(key), pickle.loads(pickle.dumps(compute))(key)
    assert here.keys() == there.keys()
    assert all(np.array_equal(here[name], there[name], equal_nan=True) for name in here)
    config = MismatchConfig.model_validate(MISMATCH)
    cases = tuple(trainers.studies.mismatch._case(entry, config, Command())[0] for entry in config.cases)
    compute = partial(trainers.studies.mismatch._compute, plan=trainers.studies.mismatch._Plan(cases, config.snr))
    key = "case01_fit00_snr30.0"
    here, there = compute(key), pickle.loads(pickle.dumps(compute))(key)
    assert all(np.array_equal(here[name], there[name], equal_nan=True) for name in here)


OWN = """
from dataclasses import dataclass
import torch
from qsim.estimators import Estimate
from qsim.signals.base import SignalModel

@dataclass(frozen=True)
class Constant:
    model: SignalModel
    name = "always-one"

    @property
    def parameters(self):
        return self.model.parameters

    def __call__(self, images, sigma=None, mask=None, known=None):
        kappa = torch.ones(len(self.parameters), *images.shape[1:])
        return Estimate(kappa, torch.zeros(images.shape[1:], dtype=torch.uint8))
"""


@pytest.mark.parametrize(
    "config", [GRID, changed(MISMATCH, cases=MISMATCH["cases"][:1]), RUN_TIME], ids=lambda c: c["kind"]
)
def test_a_method_of_ones_own_takes_part(config, tmp_path, monkeypatch):
    module = f"own_{config['kind']}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run(config, tmp_path / "out", Command(estimators=(f"{module}:Constant",)))
    rows = [row for row in read_csv(tmp_path / "out" / "results.csv") if row.estimator == "always-one"]
    assert rows
    if config["kind"] != "run_time":
        bias = {row.tissue: row.value for row in rows if row.metric == "relative_bias"}
        # the truth of the first point: T1 of 0.4 s, or of 1 s
        assert next(iter(bias.values())) == pytest.approx(150 if config["kind"] == "grid" else 0, abs=1e-3)
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["own_methods"]["always-one"]["from"] == f"{module}:Constant"


def test_run_time_counts_what_it_says(tmp_path):
    torch.set_num_threads(2)
    try:
        run(RUN_TIME, tmp_path / "out", Command(workers=3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    rows = {(row.estimator, row.metric): row for row in read_csv(tmp_path / "out" / "results.csv")}
    voxels = rows["told", "cpu_seconds_min"].n
    assert 0 < voxels <= 16 * 12
    for name in ("least-squares", "told", "shared-b"):
        seconds = rows[name, "cpu_seconds_min"].value
        assert 0 < seconds <= rows[name, "cpu_seconds_median"].value
        assert rows[name, "voxels_per_cpu_second"].value == pytest.approx(voxels / seconds, rel=1e-4)
        fits = rows["least-squares", "cpu_seconds_min"].value
        assert rows[name, "ratio_to_least_squares"].value == pytest.approx(seconds / fits, rel=1e-4)
    assert min(rows[name, "ratio_to_fastest"].value for name in ("least-squares", "told", "shared-b")) == 1
    # with B known the error at SNR 30 is that of its bound, within the noise of about a hundred voxels
    assert rows["told", "abs_error_median"].value == pytest.approx(0.67 * rows["told", "bound"].value, rel=0.5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "--workers 3 was not used" in page
    assert "theirs" in page
    assert "575" in page
    # timed again, not refused
    run(RUN_TIME, tmp_path / "out")


def test_run_time_refuses_other_places(tmp_path):
    with pytest.raises(InputError, match=r"scheduler: .*run_time"):
        run(RUN_TIME, tmp_path / "a", Command(scheduler="processes"))
    with pytest.raises(InputError, match="device: "):
        run(RUN_TIME, tmp_path / "b", Command(device="cuda"))
    with pytest.raises(InputError, match=r"crop: .*larger than the anatomy"):
        run(changed(RUN_TIME, crop=[16, 999], matrix=None), tmp_path / "c")


REFUSED = [
    (GRID, {"parameter": "T2"}, "parameter: T2 is no row of the model, which has A, B, T1"),
    (GRID, {"parameter": "B"}, "parameter: input should be 'T1', 'T2', 'T2STAR' or 'T1RHO', got 'B'"),
    (GRID, {"points": [400, 800]}, "points: wanted T1 from 0.01 to 6 s, got 400 to 800; divide by 1000"),
    (GRID, {"points": [0.8, 0.4]}, "points: wanted ascending values"),
    (GRID, {"points": []}, "points: empty"),
    (GRID, {"points__low": 2.0}, "points.low must be below high"),
    (GRID, {"points__n": 1}, "points.n must lie between 2 and 1001"),
    (GRID, {"points__low": 0.0}, "points.low must be above 0 on a logarithmic axis"),
    (GRID, {"values__B": None}, "values.B: missing; the model has A, B, T1"),
    (GRID, {"values__T1": 1.0}, "values.T1: is the axis of the study"),
    (GRID, {"values__T2": 1.0}, "values.T2: no row of the model"),
    (GRID, {"values__A": 0.0}, "values.A: wanted A above 0, got 0"),
    (GRID, {"values__A": -1.0}, "values.A: wanted A above 0, got -1"),
    (GRID, {"values__B": 3.5}, "values.B: wanted B from 0 to 3, got 3.5"),
    (GRID, {"values__B": -0.1}, "values.B: wanted B from 0 to 3, got -0.1"),
    (GRID, {"points": {"low": 0.3}}, "points: high and n missing; wanted {low, high, n} or a list of values"),
    (GRID, {"points": {"low": 0.3, "high": 1.0, "log": True}}, "points: n missing; wanted {low, high, n}"),
    (GRID, {"points": {}}, "points: low and high and n missing"),
    (GRID, {"snr": [0]}, "snr[0]: wanted an SNR (0.65 / sigma) from 0.01 to 1e6, got 0"),
    (GRID, {"snr": [1e-300]}, "snr[0]: wanted an SNR (0.65 / sigma) from 0.01 to 1e6, got 1e-300"),
    (GRID, {"noise": "ricain"}, "noise: got 'ricain', wanted one of 'gaussian'"),
    (GRID, {"noise": {"kind": "rician", "sigma": SIGMA}}, "noise.sigma: not wanted here"),
    (GRID, {"noise": "signed"}, "noise: kind signed needs a signed model"),
    (GRID, {"model__signed": True}, "noise: a signed model needs kind signed"),
    (GRID, {"snr": [10, 10]}, "snr: 10 is given twice"),
    (GRID, {"repeats": 1}, "repeats: input should be greater than or equal to 2"),
    (GRID, {"estimators": ["fits"]}, "estimators[0]: unknown method 'fits'"),
    (GRID, {"estimators": [{"model": "demo/rim"}]}, "estimators[0]: a network looks at the neighbours"),
    (GRID, {"estimators": [{"method": "least-squares", "known": ["T1"]}]}, "estimators[0].known: T1 is what the study"),
    (GRID, {"estimators": [{"method": "least-squares", "known": ["C"]}]}, "estimators[0].known: C is no row"),
    (GRID, {"estimators": [{"methods": "x"}]}, "estimators[0]: got {'methods': 'x'}"),
    (GRID, {"estimators": ["log-linear"]}, "estimators[0]: log-linear needs a mono-exponential decay"),
    (GRID, {"estimators": [{"method": "log-linear"}]}, "estimators[0]: log-linear needs a mono-exponential decay"),
    *(
        (GRID, {"estimators": ["shared-b", {"method": "least-squares", **wrong}]}, f"estimators[1].{message}")
        for wrong, message in [
            ({"known": "B"}, "known: wanted a list of rows, got 'B'"),
            ({"known": ["B", 3]}, "known[1]: wanted the name of a row, got 3"),
            ({"known": ["B", "B"]}, "known: B is given twice"),
            ({"name": ""}, "name: wanted a name, got ''"),
            ({"method": ""}, "method: wanted the name of a method, got ''"),
            ({"options": 3}, "options: wanted a mapping of options, got 3"),
            ({"options": {True: 1}}, "options: wanted words as keys, got True"),
            ({"options": {"covariance": [1]}}, "options.covariance: wanted a number, true, false or a word, got [1]"),
        ]
    ),
    (GRID, {"estimators": [{"model": "a", "name": ""}]}, "estimators[0].name: wanted a name, got ''"),
    (GRID, {"voxel": 3}, "voxel: unknown key"),
    (MISMATCH, {"cases": []}, "cases: empty"),
    (MISMATCH, {"cases__1__name": "inversion"}, "cases[1].name: inversion is given twice"),
    (MISMATCH, {"cases__0__fits": []}, "cases[0].fits: empty"),
    (MISMATCH, {"cases__0__fits__1__name": "two"}, "cases[0].fits[1].name: two is given twice"),
    (MISMATCH, {"cases__0__truth__measures": "T2"}, "cases[0].truth.measures: T2 is no row of the model"),
    (MISMATCH, {"cases__0__truth__axis": "C"}, "cases[0].truth.axis: C is no row of the model"),
    (MISMATCH, {"cases__0__truth__points": [2.0, 4.0]}, "cases[0].truth.points: wanted B from 0 to 3, got 2 to 4"),
    (
        MISMATCH,
        {"cases__0__truth__values": {"T1": 1000.0}},
        "cases[0].truth.values.T1: wanted T1 from 0.01 to 6 s, got 1000; divide by 1000 if these are milliseconds",
    ),
    (MISMATCH, {"cases__0__truth__values__A": 0.0}, "cases[0].truth.values.A: wanted A above 0, got 0"),
    (
        MISMATCH,
        {"cases__0__truth": changed(MISMATCH["cases"][0]["truth"], axis="A", points=[0, 1], values__B=1.9)},
        "cases[0].truth.points: wanted A above 0, got 0 to 1",
    ),
    (MISMATCH, {"cases__1__truth__points": {"low": 0.02, "high": 0.08}}, "cases[1].truth.points: n missing; wanted"),
    (MISMATCH, {"cases__0__fits__1__known": ["B", "B"]}, "cases[0].fits[1].known: B is given twice"),
    (MISMATCH, {"cases__0__fits__0__method": "log-linear"}, "cases[0].fits[0]: log-linear needs a mono-exponential"),
    (MISMATCH, {"cases__0__truth__values": {}}, "cases[0].truth.values.T1: missing"),
    (MISMATCH, {"cases__0__fits__0__model__ti": [0.1, 1.0]}, "cases[0].fits[0].model: has 2 images, the truth 7"),
    (MISMATCH, {"cases__1__fits__0__model": {"kind": "t2_prep", "te_prep": [0, 0.1, 0.2, 0.3]}}, "has no T1RHO"),
    (MISMATCH, {"cases__0__fits__0__method": "fits"}, "cases[0].fits[0]: unknown method 'fits'"),
    (MISMATCH, {"cases__0__fits__1__known": ["T1"]}, "cases[0].fits[1].known: T1 is what the fit is held against"),
    (MISMATCH, {"cases__0__fits__1__known": ["C"]}, "cases[0].fits[1].known: C is no row of the truth"),
    (MISMATCH, {"snr": [3, 3]}, "snr: 3 is given twice"),
    (RUN_TIME, {"matrix": [10, 10]}, "matrix: 10 x 10 is smaller than the crop, 16 x 12"),
    (RUN_TIME, {"source": ""}, "source: missing; say where the published times stand"),
    (RUN_TIME, {"crop": [16]}, "crop: "),
    (RUN_TIME, {"repeats": 0}, "repeats: "),
    (RUN_TIME, {"snr": [3, 3]}, "snr: 3 is given twice"),
    (RUN_TIME, {"data__targets": ["A"]}, "data.model: has no relaxation time"),
    (RUN_TIME, {"data__split": "train", "estimators": [{"model": "a"}]}, "data.split: got train, wanted test: the err"),
]


@pytest.mark.parametrize(("config", "changes", "message"), REFUSED, ids=lambda x: x[:40] if isinstance(x, str) else "")
def test_mistakes_are_refused_in_one_line(config, changes, message, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(changed(config, **changes)))
    with pytest.raises(InputError) as refused:
        read_config(path, STUDIES[config["kind"]].config)
    text = str(refused.value)
    assert message in text
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    # the message names no field twice, and no field that is not at fault
    assert text.count("estimators") <= 1


def test_entries_are_what_their_keys_say():
    given = ["shared-b", {"method": "least-squares", "known": ["B"], "options": {"covariance": True}}, {"model": "a"}]
    wanted = (
        "shared-b",
        MethodEntry(method="least-squares", known=("B",), options={"covariance": True}),
        ModelEntry(model="a"),
    )
    assert RunTimeConfig.model_validate(changed(RUN_TIME, estimators=given)).estimators == wanted


def test_snr_reaches_from_one_end_to_the_other():
    assert GridConfig.model_validate(changed(GRID, snr=[0.01, 1e6])).snr == (0.01, 1e6)


def test_run_time_says_what_networks_may_have_seen(tmp_path, monkeypatch):
    def chosen(entries, *args, **kwargs):
        network, *rest = choose(["least-squares", *entries[1:]], *args, **kwargs)
        return (replace(network, held_out=False), *rest)

    monkeypatch.setattr(trainers.studies.run_time, "choose", chosen)
    config = changed(RUN_TIME, estimators=[{"model": "a"}, "shared-b"])
    with pytest.raises(InputError, match=r"^estimators\[0\]\.model: a may have been trained on the anatomy"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(changed(config, allow_training_anatomy=True, data__split="train"), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "anatomy (train, which least-squares may have been trained on)" in page
    # fits learn from no anatomy
    assert RunTimeConfig.model_validate(changed(RUN_TIME, data__split="train")).data.split == "train"


def test_the_schema_knows_the_kinds():
    schema = config_schema("study")
    assert {"grid", "mismatch", "run_time"} <= set(schema["properties"]["kind"]["enum"])


def test_the_shipped_configs_are_of_these_kinds():
    kinds = {"grid": GridConfig, "mismatch": MismatchConfig, "run_time": RunTimeConfig}
    found = {type(read_study(path)[1]) for path in sorted(CONFIGS.glob("*_small.yaml"))}
    assert found >= set(kinds.values())
