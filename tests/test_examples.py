"""The examples in docs and in examples/ run as they stand there."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = """
seed: 2
kind: noise
data:
  seed: 4
  split: test
  phantom:
    kind: geometry
    size: [16, 16]
    spacing_mm: [1.0, 1.0]
    shapes: [{shape: disc, tissue: wm, radius_mm: 6.0}]
  tissues: {kind: sabidussi2021}
  model: {kind: inversion_recovery, ti: [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]}
  noise: {kind: gaussian, sigma: {kind: constant, value: 0.01}}
estimators: [least-squares]
snr: [30]
draws: 1
repeats: 2
crop: [14, 14]
"""


@pytest.mark.parametrize(
    ("where", "name", "ratio"),
    # a local fit seldom beats the global one; eight neighbours among 50,000 are coarse
    [("my_curve_fit:build", "curve_fit", 1.5), ("my_regressor:build", "nearest-neighbours", 4.0)],
)
def test_a_method_of_ones_own_joins_a_study_from_the_shell(where, name, ratio, tmp_path):
    (tmp_path / "study.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "trainers.cli", "study", str(tmp_path / "study.yaml")]
    command += ["--out", str(tmp_path / "out"), "--estimator", where]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT / "examples", env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["metric"], row["parameter"]) == ("rmse_median", "T1")]
    rmse = {row["estimator"]: float(row["value"]) for row in rows if (row["tissue"], row["draw"]) == ("wm", "all")}
    assert 0.5 * rmse["least-squares"] < rmse[name] < ratio * rmse["least-squares"]
    assert name in (tmp_path / "out" / "report.html").read_text()


def test_the_page_shows_the_example_as_it_is():
    page = (ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
    shown = page.split("```python\n")[1].split("```")[0].splitlines()
    lines = (ROOT / "examples" / "my_curve_fit.py").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if not line.strip().startswith('"""')]
    # the blank line behind a docstring goes with it
    assert [line for line in shown if line] == [line for line in code if line]


def test_artefacts_while_training():
    done = subprocess.run(
        [sys.executable, "augment_dataset.py"],
        cwd=ROOT / "examples",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert len(set(lines)) == 5, "an epoch repeats another"
    assert lines[-1].startswith("TorchIO: (1, 32, 30, 28), severity [")
