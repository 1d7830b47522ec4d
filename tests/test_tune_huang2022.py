"""The tuning of every network of a study: its table worked out by hand, and what it refuses."""

from pathlib import Path

import pytest

from qsim.errors import InputError
from tests.scripts import loaded

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "tune_huang2022.py"


@pytest.fixture(scope="module")
def tuning():
    with loaded("tune_huang2022") as module:
        yield module


def tried(name, lr, batch=6, **rows):
    found = {"name": name, "lr": lr, "batch": batch, "iterations": 600}
    for row, (error, slope) in rows.items():
        found |= {f"{row} rmae_truth": error, f"{row} rmae_fit": 9.0, f"{row} slope_subjects_truth": slope}
    return found


def test_the_least_relative_error_is_bold(tuning):
    """Two rows: 3 / 3 + 2 / 1.5 against 3 / 3 + 1 / 1.5; one row: the smaller."""
    found = [
        tried("both", 0.001, T1RHO=(3.0, 0.5), T2=(2.0, 0.25)),
        tried("both", 0.01, T1RHO=(3.0, 0.625), T2=(1.0, 0.75)),
        tried("one", 0.001, T2=(2.5, 1.0)),
        tried("one", 0.01, T2=(2.75, 0.5)),
        tried("one", 0.01, batch=3, T2=(4.0, 0.0)),
    ]
    assert tuning.table(found).split("\n") == [
        "| network | batch x updates | rate 0.001 | rate 0.01 |",
        "| --- | --- | --- | --- |",
        "| both: T1rho / T2 | 6 x 600 | 3.00 / 2.00 (slope 0.50 / 0.25) | **3.00 / 1.00** (slope 0.62 / 0.75) |",
        "| one: T2 | 6 x 600 | **2.50** (slope 1.00) | 2.75 (slope 0.50) |",
        "| one: T2 | 3 x 600 |  | **4.00** (slope 0.00) |",
    ]


def test_networks_that_differ_in_the_loss_alone_are_not_tuned(tuning):
    config = tuning.study(ROOT / "configs" / "huang2022" / "study_pair_small.yaml")
    names = [config.networks[number].name for number in tuning.tuned(config)]
    assert names == ["STSM", "STSM", "ST", "ST", "SL", "baseline", "HETEU", "HOMOU", "qsim"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study_t1rho_small.yaml", "--fold", "0"], r"^--fold: 0 is judged by the study"),
        (["train_own_series.yaml"], r"train_own_series\.yaml: kind: "),
    ],
)
def test_what_is_refused(arguments, said, tuning, tmp_path):
    first, *others = arguments
    with pytest.raises(InputError, match=said):
        tuning.main([str(ROOT / "configs" / "huang2022" / first), *others, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
