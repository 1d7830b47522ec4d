"""The script that fills the tables of docs/results/huang2022.md: made-up studies, tables worked out by hand."""

import json
import re
import runpy
import sys
from math import nan
from pathlib import Path

import pytest

from qsim.errors import InputError
from qsim.evaluation.table import ALL, Row, csv_text
from tests.scripts import loaded

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "results_huang2022.py"
TEN, THIRTY, FIFTY = TIMES = ("0, 10 ms", "0, 30 ms", "0, 50 ms")
EVERY = "all images"
PAGE = """# Results

before
<!-- table: t1rho papers -->
old figures
<!-- end -->
after
"""


@pytest.fixture(scope="module")
def script():
    with loaded("results_huang2022") as module:
        yield module


def line(method, shown, metric, value, half=nan, region="roi", row="T1RHO", condition="plain", draw=ALL):
    who = f"{method}; {shown}; {condition}"
    return Row("self_supervised", who, region, row, nan, nan, draw, metric, value, value - half, value + half, 3)


def of_times(method, metric, values, halves=(nan, nan, nan), **more):
    """A figure of each of the three inputs."""
    return [
        line(method, shown, metric, value, half, **more)
        for shown, value, half in zip(TIMES, values, halves, strict=True)
    ]


def finished(folder, rows, complete=True):
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text(csv_text(rows))
    (folder / "provenance.json").write_text(json.dumps({"complete": complete}))


def made(script, monkeypatch, tmp_path, page, studies=None):
    """The page that the command writes."""
    before, after = tmp_path / "page.md", tmp_path / "out.md"
    before.write_text(page)
    given = ["script", str(studies or tmp_path), "--page", str(before), "--out", str(after)]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    assert before.read_text() == page
    return after.read_text()


def table(script, monkeypatch, tmp_path, study, kind, rows):
    """Lines of one table, without its head, and all of its text."""
    finished(tmp_path / f"{study}_small", rows)
    text = made(script, monkeypatch, tmp_path, f"<!-- table: {study} {kind} -->\nold\n<!-- end -->\n")
    assert text.startswith(f"<!-- table: {study} {kind} -->\n`study_{study}_small`, 3 runs of each network. ")
    assert text.endswith("\n<!-- end -->\n")
    assert "old" not in text
    lines = [each for each in text.splitlines() if each.startswith("|")]
    # every line has as many cells as the head
    assert {each.count(" | ") for each in lines if "---" not in each} == {lines[0].count(" | ")}
    return lines[2:], text


T1RHO = [
    # the mean over inputs is 1.5; the widest interval is shown
    *of_times("proposed", "rmae_truth", (2.0, 1.0, 1.5), (0.25, 0.1, 0.2)),
    *of_times("proposed", "rmae_fit", (3.5, 3.2, 3.2)),
    *of_times("proposed", "median_error_truth", (1.2, 1.1, 1.3)),
    *of_times("proposed", "median_error_truth", (7.0, 8.0, 9.0), region="body"),
    *of_times("proposed", "bias_truth", (-0.3, 0.0, 0.6)),
    *of_times("proposed", "slope_subjects_truth", (0.9, 0.9, 0.9)),
    *of_times("proposed", "lesion_recovery_truth", (0.6, 0.6, 0.9), region="lesion"),
    # one run is not the mean over runs
    line("proposed", TEN, "rmae_truth", 99.0, draw=0),
    *of_times("two-point", "rmae_truth", (9.0, 6.0, 3.0)),
    *of_times("two-point", "rmae_fit", (10.0, 4.0, 1.0)),
    line("least-squares", EVERY, "rmae_truth", 3.0),
    line("least-squares", EVERY, "rmae_fit", 0.0),
    *of_times("bound", "bound_sd", (11.0, 5.0, 4.25)),
    line("bound", EVERY, "bound_sd", 3.5),
]


def test_methods_stand_in_the_order_of_their_errors(script, monkeypatch, tmp_path):
    lines, text = table(script, monkeypatch, tmp_path, "t1rho", "accuracy", T1RHO)
    assert lines == [
        "| proposed | 2.00 | 1.00 | 1.50 | **1.50** +-0.25 | 3.30 | 1.20 | 0.10 |  | 0.90 |  |  | 0.70 |  | 8.00 |",
        "| least-squares |  |  |  | **3.00** | 0.00 |  |  |  |  |  |  |  |  |  |",
        "| two-point | 9.00 | 6.00 | 3.00 | **6.00** | 5.00 |  |  |  |  |  |  |  |  |  |",
    ]
    assert text.rstrip().endswith(
        "Bound (SD of an unbiased estimate of one voxel) [ms]: "
        "0, 10 ms: 11.00, 0, 30 ms: 5.00, 0, 50 ms: 4.25, all images: 3.50.\n<!-- end -->"
    )


def test_the_papers_figures_stand_beside_those_of_the_same_method(script, monkeypatch, tmp_path):
    """huang2022: Table 2 (2-TSL 7.55, proposed 3.60), Table 3 at 10, 30 and 50 ms, Table 4."""
    lines, _ = table(script, monkeypatch, tmp_path, "t1rho", "papers", T1RHO)
    assert lines == [
        "| proposed | 3.30 | 3.50 | 3.20 | 3.20 | 3.60 | 3.84 | 3.54 | 3.44 | 3.60 |",
        "| two-point | 5.00 | 10.00 | 4.00 | 1.00 | 7.55 | 11.39 | 8.69 | 2.28 |  |",
    ]


def test_uncertainty_is_told_of_those_that_state_one(script, monkeypatch, tmp_path):
    rows = list(T1RHO)
    for metric, region, condition, value in (
        ("spearman_truth", "body", "plain", 0.6),
        ("ause_ratio_truth", "body", "plain", 0.2),
        ("ause_ratio_truth", "roi", "plain", 0.8),
        ("coverage_95_truth", "body", "plain", 0.9),
        ("coverage_95_truth", "roi", "plain", 0.99),
        ("coverage_95_truth", "body", "calibrated", 0.945),
        ("coverage_95_truth", "roi", "calibrated", 1.0),
        ("width_median", "body", "calibrated", 60.0),
        ("crps_truth", "body", "calibrated", 50.25),
        ("crps_constant_truth", "body", "calibrated", 55.5),
        ("sd_mean", "left", "plain", 40.0),
        ("sd_mean", "right", "plain", 80.0),
        ("sd_mean", "inside", "plain", 8.0),
        ("sd_mean", "outside", "plain", 70.0),
    ):
        rows += of_times("proposed", metric, (value,) * 3, region=region, condition=condition)
    lines, _ = table(script, monkeypatch, tmp_path, "t1rho", "uncertainty", rows)
    assert lines == [
        "| proposed | 0.60 | 0.20 | 0.80 | 90.0 / 99.0 | 94.5 / 100.0 | 60.0 | 50.25 | 55.50 "
        "| 40.0 | 80.0 | 8.0 | 70.0 |"
    ]


def test_perturbed_images_stand_in_the_order_of_their_noise(script, monkeypatch, tmp_path):
    rows = list(T1RHO)
    for condition, region, metric, value in (
        # by its letters 14 comes before 4
        ("snr 14", "roi", "sd_mean", 10.0),
        ("snr 4", "roi", "sd_mean", 20.0),
        ("square before", "square", "sd_mean_epistemic", 0.5),
        ("square", "square", "sd_mean_epistemic", 6.0),
        ("lesion before", "lesion", "sd_mean_epistemic", 0.8),
        ("lesion", "lesion", "sd_mean_epistemic", 2.0),
    ):
        rows.append(line("proposed", THIRTY, metric, value, region=region, condition=condition))
    lines, text = table(script, monkeypatch, tmp_path, "t1rho", "perturbed", rows)
    assert "| mean SD in the ROI, SNR 4 | mean SD in the ROI, SNR 14 |" in text
    assert lines == ["| proposed | 20.0 | 10.0 | 0.50 -> 6.00 | 12.0 | 0.80 -> 2.00 | 2.5 |"]


BOTH = "0, 30, 34.6 ms"


def of_both(method, t1rho, t2, metric="rmae_truth", half=nan):
    return [line(method, BOTH, metric, value, half, row=row) for row, value in (("T1RHO", t1rho), ("T2", t2))]


PAIR = [
    *of_both("two-point", 8.0, 5.0),
    *of_both("baseline", 2.0, 4.0, half=0.5),
    *of_both("baseline", 3.0, 2.5, "rmae_fit"),
    *of_both("HETEU", 4.0, 5.0),
    *of_both("HOMOU", 2.5, 3.2),
    *of_both("weights 0.1/0.9", 3.0, 2.0),
    *(
        each
        for what, share in (("T2 x100", 1.25), ("T2 x10000", 1.5), ("T2 motion", 0.95))
        for method, t1rho, t2 in (("baseline", 2.0, 4.0), ("HETEU", 4.0, 5.0), ("HOMOU", 2.5, 3.2))
        for each in of_both(f"{method}, {what}", share * t1rho, t2)
    ),
]


def test_both_contrasts(script, monkeypatch, tmp_path):
    """huang2023 Table II."""
    lines, _ = table(script, monkeypatch, tmp_path, "pair", "pair", PAIR)
    assert lines == [
        "| two-point | **8.00** |  | 7.51 |  |  |  | **5.00** |  | 5.21 |  |  |  |",
        "| baseline | **2.00** +-0.50 | 3.00 | 3.45 |  |  |  | **4.00** +-0.50 | 2.50 | 3.51 |  |  |  |",
        "| HETEU | **4.00** |  | 3.32 |  |  |  | **5.00** |  | 3.32 |  |  |  |",
        "| HOMOU | **2.50** |  | 3.28 |  |  |  | **3.20** |  | 3.33 |  |  |  |",
    ]


def test_weights_by_hand_and_learned(script, monkeypatch, tmp_path):
    lines, _ = table(script, monkeypatch, tmp_path, "pair", "weights", PAIR)
    assert lines == [
        "| weights 0.1/0.9 | 3.00 | 2.00 |",
        "| weights 0.5/0.5 (baseline) | 2.00 | 4.00 |",
        "| HETEU | 4.00 | 5.00 |",
        "| HOMOU | 2.50 | 3.20 |",
    ]


def test_what_a_disturbed_contrast_changes(script, monkeypatch, tmp_path):
    """huang2023 Table III; T2 itself is as good as before."""
    lines, _ = table(script, monkeypatch, tmp_path, "pair", "disturbed", PAIR)
    assert lines == [
        "| T2 x100 | baseline | 2.50 | +25.0 | 3.62 | 4.00 | +0.0 | 3.44 |",
        "| T2 x100 | HETEU | 5.00 | +25.0 | 3.53 | 5.00 | +0.0 | 3.49 |",
        "| T2 x100 | HOMOU | 3.12 | +25.0 | 3.45 | 3.20 | +0.0 | 3.44 |",
        "| T2 x10000 | baseline | 3.00 | +50.0 | 3.88 | 4.00 | +0.0 | 3.67 |",
        "| T2 x10000 | HETEU | 6.00 | +50.0 | 3.56 | 5.00 | +0.0 | 3.40 |",
        "| T2 x10000 | HOMOU | 3.75 | +50.0 | 3.44 | 3.20 | +0.0 | 3.45 |",
        "| T2 motion | baseline | 1.90 | -5.0 | 3.55 | 4.00 | +0.0 |  |",
        "| T2 motion | HETEU | 3.80 | -5.0 | 3.44 | 5.00 | +0.0 |  |",
        "| T2 motion | HOMOU | 2.38 | -5.0 | 3.39 | 3.20 | +0.0 |  |",
    ]


def test_seconds_of_a_slice_are_told_in_ms(script, monkeypatch, tmp_path):
    rows = list(PAIR)
    for method, shown, seconds in (("HOMOU", BOTH, 0.0124), ("HOMOU, T2 x100", BOTH, 0.5), ("least-squares", EVERY, 1)):
        rows.append(line(method, shown, "cpu_seconds_per_slice", float(seconds), region=""))
    rows.append(line("least-squares", EVERY, "rmae_truth", 3.0))
    lines, text = table(script, monkeypatch, tmp_path, "pair", "seconds", rows)
    assert lines == ["| HOMOU | 12.4 |", "| least-squares | 1000.0 |"]
    assert "the paper: 17 (network), 88 (pixel-wise fit)" in text


def test_an_unfinished_study_leaves_the_page_and_says_so(script, monkeypatch, tmp_path, capsys):
    finished(tmp_path / "t1rho_full", T1RHO, complete=False)
    assert made(script, monkeypatch, tmp_path, PAGE) == PAGE
    assert capsys.readouterr().err == "t1rho: missing or unfinished, left as it is\n"
    # the small one is finished
    finished(tmp_path / "t1rho_small", T1RHO)
    text = made(script, monkeypatch, tmp_path, PAGE)
    assert "`study_t1rho_small`" in text
    assert capsys.readouterr().err == ""
    # and not shown beside a full one that is
    (tmp_path / "t1rho_full" / "provenance.json").write_text('{"complete": true}')
    text = made(script, monkeypatch, tmp_path, PAGE)
    assert "`study_t1rho_full`" in text
    head, _, rest = PAGE.partition("old figures\n")
    assert text.startswith(head)
    assert text.endswith(rest)
    # filled again it is the same
    assert made(script, monkeypatch, tmp_path, text) == text


def test_the_page_has_a_mark_for_every_table_and_no_other(script, monkeypatch, tmp_path, capsys):
    page = script.PAGE.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- table: (\S+) (\S+) -->", page)
    assert {kind for _, kind in marks} == set(script.TABLES)
    assert {study for study, _ in marks} == {"t1rho", "pair"}
    assert len(set(marks)) == len(marks) == page.count("<!-- end -->")
    assert made(script, monkeypatch, tmp_path, page) == page
    assert capsys.readouterr().err.splitlines() == [
        f"{study}: missing or unfinished, left as it is" for study in dict.fromkeys(study for study, _ in marks)
    ]


def test_a_table_that_there_is_not_is_refused(script, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"there is no table 'acuracy', wanted one of accuracy, papers"):
        made(script, monkeypatch, tmp_path, PAGE.replace("papers", "acuracy"))


def test_a_folder_that_is_not_there_is_one_line_and_a_failure(monkeypatch, tmp_path):
    missing = tmp_path / "none"
    monkeypatch.setattr(sys, "argv", ["script", str(missing)])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    # a text is printed on stderr, with the exit status 1
    assert refused.value.code == f"results: {missing}: is no folder; name the one that holds the studies"
