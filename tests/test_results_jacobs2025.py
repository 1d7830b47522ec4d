"""The script that fills the tables of docs/results/jacobs2025.md: a made-up study, tables worked out by hand."""

import json
import sys
from math import nan
from pathlib import Path

import pytest

from qsim.errors import InputError
from qsim.evaluation.studies.segmentation_table import rows as rows_of
from qsim.evaluation.table import ALL, Row, csv_text
from tests.qsim.segmentation_fakes import drawn
from tests.scripts import loaded


@pytest.fixture(scope="module")
def script():
    with loaded("results_jacobs2025") as module:
        yield module


def line(who, split, metric, value, low=nan, high=nan, n=6, figure="dice", study="segmentation"):
    return Row(study, who, split, figure, nan, nan, ALL, metric, value, low, high, n)


BY_HAND = [
    line("A", "train", "mean", 0.9),
    line("A", "train", "sd_folds", 0.01),
    line("A", "test", "mean", 0.8),
    line("A", "T1rho", "mean", 0.4),
    line("A", "T1rho", "gap", 0.4, 0.3, 0.5),
    line("A", "T1rho", "spearman_dice", -0.5, -0.75, -0.2, figure="disagreement"),
    line("B", "T1rho", "mean", 0.5),
    line("B", "T1rho", "gap", 0.3, 0.2, 0.4),
    line("B", "T1rho", "closure", 0.25, 0.1, 0.45),
    line("B - A", "T1rho", "difference", 0.1, 0.05, 0.15),
    line("B - A", "T1rho", "difference_favour", 5 / 6),
]


def finished(folder, rows, complete=True):
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text(csv_text(rows))
    (folder / "provenance.json").write_text(json.dumps({"complete": complete}))


def made(script, monkeypatch, tmp_path, kinds, name="sets_small"):
    before, after = tmp_path / "page.md", tmp_path / "out.md"
    before.write_text("".join(f"<!-- table: {name} {kind} -->\nold\n<!-- end -->\n" for kind in kinds))
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path), "--page", str(before), "--out", str(after)])
    script.main()
    return after.read_text()


def test_tables_by_hand(script, monkeypatch, tmp_path):
    finished(tmp_path / "sets_small", BY_HAND)
    text = made(script, monkeypatch, tmp_path, ("dice", "gaps", "differences", "ranks"))
    assert "old" not in text
    for wanted in (
        "| A | 0.900 ± 0.010 | 0.800 | 0.400 | 0.96 ± .002 | 0.80 ± .041 | 0.56 ± .042 |",
        "| B | - | - | 0.500 | 0.90 ± .011 | 0.83 ± .021 | 0.64 ± .049 |",
        "| T1rho | A | 0.400 (0.300 to 0.500) | - |",
        "| T1rho | B | 0.300 (0.200 to 0.400) | 25 (10 to 45) |",
        "| T1rho | B - A | 0.100 (0.050 to 0.150) | - | 5 of 6 |",
        "| T1rho | A | -0.50 (-0.75 to -0.20) | - | - |",
    ):
        assert wanted in text.splitlines()


def test_a_table_of_results_as_the_study_writes_it(script, monkeypatch, tmp_path):
    """Every cell is found under the names that the study gives."""
    results = drawn(sets=("A", "B", "C"), folds=2, domains=("T1rho",), images=(15,), shown=False, draws=50)
    finished(tmp_path / "sets_small", list(rows_of(results)))
    text = made(script, monkeypatch, tmp_path, ("dice", "gaps", "differences", "ranks"))
    lines = [each for each in text.splitlines() if each.startswith("|") and "---" not in each]
    # heads and lines of the four tables
    assert len(lines) == 4 + 3 + 3 + 3 + 6
    missing = [each for each in lines if "| - |" in each]
    # the paper has no set C, and the first set wins nothing back from itself
    assert len(missing) == 2
    assert all(each.startswith(("| C |", "| T1rho | A |")) for each in missing)


def test_what_cannot_be_filled(script, monkeypatch, tmp_path, capsys):
    finished(tmp_path / "sets_small", BY_HAND, complete=False)
    assert "old" in made(script, monkeypatch, tmp_path, ("dice",))
    assert "sets_small: missing or unfinished" in capsys.readouterr().err
    finished(tmp_path / "other", [line("A", "train", "mean", 0.9, study="quality")])
    with pytest.raises(InputError, match="is a study of quality"):
        made(script, monkeypatch, tmp_path, ("dice",), "other")
    with pytest.raises(InputError, match="there is no table 'wobble'"):
        made(script, monkeypatch, tmp_path, ("wobble",))


def test_the_page_of_the_project_asks_for_tables_that_there_are(script):
    page = Path(script.PAGE).read_text(encoding="utf-8")
    _, found = script.command.__globals__["fill"](page, lambda name, kind: None)
    assert found
    assert {kind for _, kind, _ in found} <= set(script.TABLES)
