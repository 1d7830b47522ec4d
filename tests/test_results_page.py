"""The script that fills the tables of docs/results/sabidussi2021.md."""

import json
import sys
from math import nan
from pathlib import Path

import nibabel
import numpy as np
import pytest

from qsim.errors import InputError
from qsim.evaluation.table import ALL, Row, csv_text
from tests.scripts import loaded

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "results_sabidussi2021.py"
PAGE = """# Results

before
<!-- table: noise_t1 rmse -->
old figures
of two lines
<!-- end -->
between
<!-- table: noise_t2 rmse -->
stays as it is
<!-- end -->
<!-- table: maps_head agreement -->
<!-- end -->
after
"""


@pytest.fixture(scope="module")
def script():
    with loaded("results_sabidussi2021") as module:
        yield module


def row(estimator, metric, value, draw=ALL):
    return Row("noise", estimator, "pure", "T1", 30.0, 0.0217, draw, metric, value, nan, nan, 900)


def finished(folder, rmse, complete=True, draws=6, kind="noise"):
    """A study of one method at one SNR; what a single draw says is not what all say."""
    folder.mkdir(parents=True)
    rows = [
        row("shared-b", "rmse_median", rmse),
        row("shared-b", "rmse_median", 99.0, draw=0),
        row("shared-b", "relative_bias_median", -0.04),
        row("bound-shared", "bound_median", 1.04),
        row("tissue-mean", "rmse_median", 12.4),
    ]
    (folder / "results.csv").write_text(csv_text(rows))
    about = {"complete": complete, "config": {"kind": kind, "draws": draws, "repeats": 20, "crop": [64, 64]}}
    (folder / "provenance.json").write_text(json.dumps(about))


def test_what_stands_between_its_marks_is_replaced(script, tmp_path):
    finished(tmp_path / "noise_t1_small", 1.26)
    text, said = script.filled(PAGE, tmp_path)
    assert said == [
        "noise_t1 rmse: filled",
        "noise_t2 rmse: not run, left as it is",
        "maps_head agreement: not run, left as it is",
    ]
    head, _, rest = PAGE.partition("old figures\nof two lines\n")
    assert text.startswith(head)
    assert text.endswith(rest)
    made = text[len(head) : -len(rest)]
    assert made.startswith("`study_noise_t1_small`: 6 draws, 20 repeats, 64 x 64 voxels. T1: **median RMSE**")
    lines = [line for line in made.splitlines() if line.startswith("|")]
    assert lines[0] == "| SNR (sigma) | 30 (0.022) |"
    assert "| shared-b | **1.3** -0.0, - |" in lines or "| shared-b | **1.3** +0.0, - |" in lines
    assert "| *bound, one B* | 1.0 |" in lines
    assert not any("99" in line for line in lines)
    # filled again it is the same
    assert script.filled(text, tmp_path) == (text, said)


def test_the_full_study_is_shown_and_an_unfinished_one_is_not(script, tmp_path):
    finished(tmp_path / "noise_t1_small", 1.26)
    finished(tmp_path / "noise_t1_full", 2.34, complete=False, draws=60)
    assert "**1.3**" in script.filled(PAGE, tmp_path)[0]
    (tmp_path / "noise_t1_full" / "provenance.json").unlink()
    (tmp_path / "noise_t1_full" / "results.csv").unlink()
    (tmp_path / "noise_t1_full").rmdir()
    finished(tmp_path / "noise_t1_full", 2.34, draws=60)
    text, _ = script.filled(PAGE, tmp_path)
    assert "**2.3**" in text
    assert "`study_noise_t1_full`: 60 draws" in text


def test_a_page_without_its_studies_is_left_as_it_is(script, tmp_path):
    assert script.filled(PAGE, tmp_path)[0] == PAGE


def test_nothing_is_refused_in_silence(script, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^rsme: no such kind of table, wanted rmse, .*agreement"):
        script.filled("<!-- table: noise_t1 rsme -->\n<!-- end -->\n", tmp_path)
    (tmp_path / "noise_t1").mkdir()
    (tmp_path / "noise_t1" / "provenance.json").write_text("{}")
    (tmp_path / "noise_t1" / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a study table"):
        script.filled(PAGE, tmp_path)
    # maps in a folder that is not one of `qsim map`
    (tmp_path / "maps_head" / "least-squares").mkdir(parents=True)
    with pytest.raises(InputError, match=r"least-squares: wanted one T1 or T2 map, found 0; run `qsim map`"):
        script.filled(PAGE.replace("noise_t1", "other"), tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="no such folder; run the studies first"):
        script.main()


def test_a_study_in_the_folder_of_another_is_refused_in_one_line(script, tmp_path, monkeypatch):
    finished(tmp_path / "phantom_t1_small", 1.26)
    finished(tmp_path / "noise_t2_small", 1.26)
    page = tmp_path / "page.md"
    for name, kind, said in (
        ("phantom_t1", "phantom", "holds a study of kind noise, wanted phantom"),
        ("noise_t2", "rmse", "holds figures of T1, wanted T2"),
    ):
        page.write_text(f"<!-- table: {name} {kind} -->\nold\n<!-- end -->\n")
        before = page.read_text()
        monkeypatch.setattr(sys, "argv", ["script", str(tmp_path), "--page", str(page)])
        with pytest.raises(SystemExit) as refused:
            script.main()
        assert str(refused.value) == f"{tmp_path / f'{name}_small'}: {said}; give each study its own folder"
        assert page.read_text() == before


def test_what_a_study_does_not_have_is_a_dash(script, tmp_path):
    finished(tmp_path / "phantom_t1", 1.26, kind="phantom")
    page = "<!-- table: phantom_t1 phantom -->\n<!-- end -->\n"
    text, _ = script.filled(page, tmp_path)
    assert "| shared-b | **-** (-), -, -, - |" in text
    finished(tmp_path / "noise_t1", 1.26)
    text, _ = script.filled("<!-- table: noise_t1 ratio -->\n<!-- end -->\n", tmp_path)
    assert "| shared-b | 1.00 |" in text
    assert "nan" not in text


def test_maps_without_that_of_the_fit_are_said_to_be_there(script, tmp_path):
    folder = tmp_path / "maps_head" / "rim-t1" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_T1map.nii.gz").write_bytes(b"")
    text, said = script.filled(PAGE, tmp_path)
    assert text == PAGE
    assert said[2] == "maps_head agreement: maps, but none of least-squares to compare them with, left as it is"


def test_agreement_of_maps(script, tmp_path):
    """Two maps of 100 voxels, one 2 % above the other; a voxel on a limit counts in neither."""
    reference = 0.5 + np.linspace(0, 1, 100).reshape(10, 10, 1)
    for method, values in (("least-squares", reference), ("rim-t1", 1.02 * reference)):
        folder = tmp_path / "maps_head" / method / "sub-01" / "anat"
        folder.mkdir(parents=True)
        status = np.zeros((10, 10, 1), dtype=np.uint8)
        status[0, 0] = 1
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "sub-01_T1map.nii.gz")
        nibabel.save(nibabel.Nifti1Image(status, np.eye(4)), folder / "sub-01_desc-status_T1map.nii.gz")
    text, said = script.filled(PAGE, tmp_path)
    assert said[2] == "maps_head agreement: filled"
    (line,) = [each for each in text.splitlines() if each.startswith("| rim-t1")]
    cells = [each.strip() for each in line.strip("|").split("|")]
    # mean of 1.02 r - r over 99 voxels: 2 % of 1.00505 s
    assert cells[1] == "+20"
    assert cells[3:5] == ["+2.0", "2.0"]
    assert cells[6] == "99"


def test_the_page_itself_asks_for_tables_that_there_are(script, tmp_path):
    text = script.PAGE.read_text(encoding="utf-8")
    same, said = script.filled(text, tmp_path)
    assert same == text
    assert len(said) == text.count("<!-- table:")
    assert all(line.endswith("left as it is") for line in said)
