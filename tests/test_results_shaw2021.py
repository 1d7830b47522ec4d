"""The script that fills the tables of docs/results/shaw2021.md: made-up studies, tables worked out by hand."""

import json
import re
import runpy
import sys
from math import nan
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student_t

from qsim.errors import InputError
from qsim.evaluation.pages.quality_paper import PAPER
from qsim.evaluation.studies.quality_results import QualityResults, Seen, correlations, with_twins
from qsim.evaluation.studies.quality_table import rows as rows_of
from qsim.evaluation.table import ALL, Row, csv_text
from tests.scripts import loaded

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "results_shaw2021.py"
PAGE = """# Results

before
<!-- table: quality dice -->
old figures
<!-- end -->
between
<!-- table: quality each -->
<!-- end -->
<!-- table: quality_small dice -->
small figures
<!-- end -->
after
"""


@pytest.fixture(scope="module")
def script():
    with loaded("results_shaw2021") as module:
        yield module


def line(model, kind, figure, metric, value, low=nan, high=nan, n=4, draw=ALL, study="quality"):
    return Row(study, model, kind, figure, nan, nan, draw, metric, value, low, high, n)


def finished(folder, rows, complete=True):
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text(csv_text(rows))
    (folder / "provenance.json").write_text(json.dumps({"complete": complete}))


def made(script, monkeypatch, tmp_path, page):
    """The page that the command writes."""
    before, after = tmp_path / "page.md", tmp_path / "out.md"
    before.write_text(page)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path), "--page", str(before), "--out", str(after)])
    script.main()
    assert before.read_text() == page
    return after.read_text()


def table(script, monkeypatch, tmp_path, kind, rows):
    """Head and lines of one table, and all of its text."""
    finished(tmp_path / "quality", rows)
    text = made(script, monkeypatch, tmp_path, f"<!-- table: quality {kind} -->\nfigures of before\n<!-- end -->\n")
    assert text.startswith(f"<!-- table: quality {kind} -->\n`study_quality`")
    assert text.endswith("\n<!-- end -->\n")
    assert "figures of before" not in text
    lines = [each for each in text.splitlines() if each.startswith("|")]
    # every line has as many cells as the head
    assert len({each.count("|") for each in lines}) <= 1
    return lines[0] if lines else "", lines[2:], text


# 4 clean images and 6 with an artefact
DICE = [
    line("qsim", "clean", "dice", "mean", 0.9),
    line("qsim", "noise", "dice", "mean", 0.5, n=2),
    line("qsim", "blur", "dice", "mean", 0.7),
    # a median is no mean
    line("qsim", "blur", "dice", "median", 0.1),
]


def test_a_figure_is_a_line_and_one_that_is_missing_none(script, monkeypatch, tmp_path):
    rows = [
        line("qsim", "all", "variance_artefacts", "spearman_dice", -0.854, -0.91, -0.7, n=10),
        line("qsim", "all", "variance_artefacts", "spearman_dice_p", 1.234e-11, n=10),
        line("qsim", "within", "variance_artefacts", "spearman_dice", -0.6, -0.9, 0.001, n=6),
        line("qsim", "all", "variance_artefacts", "spearman_dice_change", -0.75, -0.8, -0.7, n=6),
        line("qsim", "within", "variance_artefacts", "spearman_dice_change", -0.5, n=6),
        # one source is not all of them
        line("qsim", "noise", "variance_artefacts", "spearman_dice", 0.99, n=2),
        *DICE,
        line("paper", "all", "snr_true", "spearman_dice", 0.326, n=10),
        line("paper", "all", "snr_true", "spearman_dice_p", 0.0021, n=10),
        line("paper", "all", "ratio_entropy", "spearman_dice", -0.004, n=9),
        # measured images are not pooled with these
        line("paper; measured", "all", "entropy", "spearman_dice", 0.9, n=9),
    ]
    _, lines, text = table(script, monkeypatch, tmp_path, "ranks", rows)
    assert lines == [
        "| qsim | artefact variance (Eq. 9) | -0.85 [-0.91, -0.70] | 1.2e-11 | 10 | -0.60 [-0.90, 0.00] "
        "| -0.75 [-0.80, -0.70] | -0.50 |",
        "| paper | softmax entropy / target share | 0.00 |  | 9 |  |  |  |",
        "| paper | SNR, true labels | 0.33 | 0.002 | 10 |  |  |  |",
    ]
    assert "`study_quality`, 4 digital images clean, 6 with an artefact. " in text


def test_dice_of_all_images_weights_every_image_alike(script, monkeypatch, tmp_path):
    """(4 x .9 + 2 x .5 + 4 x .7) / 10 = .74, where the mean of the kinds is .7."""
    rows = [*DICE, line("paper", "clean", "dice", "mean", 0.8), line("paper", "clean", "ensemble_dice", "mean", 0.85)]
    head, lines, _ = table(script, monkeypatch, tmp_path, "dice", rows)
    assert head == "| model | clean | noise | blur | all |"
    assert lines == [
        "| qsim | 0.900 | 0.500 | 0.700 | 0.740 |",
        "| paper | 0.800 |  |  | 0.800 |",
        "| paper, ensemble | 0.850 |  |  | 0.850 |",
    ]


@pytest.fixture(scope="module")
def study():
    """Three digital images of as many anatomies and a measured one, as a study writes them."""
    kinds, image = np.tile([0, 1, 2], 4), np.repeat([0, 1, 2, 3], 3)

    def figure(clean, noise, blur):
        return np.stack([clean, noise, blur], 1).ravel()

    ones = np.ones(4)
    dice = figure([0.9, 0.85, 0.8, 0.8], [0.6, 0.5, 0.4, 0.5], [0.72, 0.64, 0.75, 0.6])
    # each head: SD .1 between clean images
    clean = [0.1, 0.2, 0.3, 0.4]
    heads = {
        "variance_noise": figure(clean, [1.1, 1.2, 1.3, 9.0], [0.15, 0.25, 0.35, 9.0]),
        "variance_blur": figure(clean, [0.4, 0.5, 0.6, 9.0], [0.3, 0.4, 0.5, 9.0]),
    }
    figures = {
        "dice": dice,
        "variance_artefacts": 1 - dice,
        "entropy": figure([0.01, 0.02, 0.03, 0.1], [0.1, 0.2, 0.15, 0.1], [0.3, 0.25, 0.05, 0.1]),
        **heads,
        **{f"{prefix}_{name}": values for prefix in ("body", "ratio") for name, values in heads.items()},
        "volume_true": np.full(12, 100.0),
        "volume_predicted": figure(100 * ones, 104 * ones, 104 * ones),
        # voxels of 1 mm^3: SDs of 0, 1 and 3 mm^3
        "entropic": figure(5 * ones, 6 * ones, 14 * ones),
        "voxel_mm3": np.ones(12),
        "volume_low": figure(95 * ones, [95.0, 101.0, 95.0, 95.0], 90 * ones),
        "volume_high": figure(110 * ones, [115.0, 121.0, 115.0, 115.0], 120 * ones),
    }
    seen = Seen(image, kinds, np.zeros(12, dtype=np.int64), np.zeros(12))
    none = Seen(*(np.zeros(0, dtype=np.int64),) * 3, np.zeros(0))
    results = QualityResults(
        target="gm",
        kinds=("noise", "blur"),
        names=("a", "b", "c", "measured"),
        anatomy=np.arange(4),
        measured=np.array([False, False, False, True]),
        seen=seen,
        figures={"qsim": with_twins(seen, figures)},
        sources={"qsim": ("noise", "blur")},
        ladder_seen=none,
        ladder={},
        examples={},
        seed=1,
        draws=20,
        members={},
        samples={},
    )
    return list(rows_of(results, correlations(results)))


def test_ranks_in_each_source_of_a_study_as_it_is_written(script, monkeypatch, tmp_path, study):
    """Entropy: rank differences of 2, 1 and 1 in either source, 1 - 6 x 6 / (3 x 8) = -.5."""
    head, lines, text = table(script, monkeypatch, tmp_path, "each", study)
    assert head == "| model | figure | noise | blur |"
    assert "`study_quality`, 3 digital images clean, 6 with an artefact. " in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [line[:2] for line in cells] == [["qsim", "artefact variance (Eq. 9)"], ["qsim", "softmax entropy"]]
    assert [[cell.split(" [")[0] for cell in line[2:]] for line in cells] == [["-1.00", "-1.00"], ["-0.50", "-0.50"]]


def test_a_head_that_answers_to_its_own_artefact_most_is_bold(script, monkeypatch, tmp_path, study):
    """Rises of 1, .05, .3 and .2 over an SD of .1; AUC of blur: 8 pairs of 9 and a tie."""
    head, lines, _ = table(script, monkeypatch, tmp_path, "leakage", study)
    assert head == "| model | head | noise | blur | AUC |"
    assert lines == ["| qsim | noise | **10.0** | 0.5 | 1.00 |", "| qsim | blur | 3.0 | 2.0 | 0.94 |"]


def test_volumes_within_their_intervals_and_the_widths(script, monkeypatch, tmp_path, study):
    """The paper: 100 +- 0, 104 +- 1.96 and 104 +- 5.88 of 100; calibrated: one of three of noise misses."""
    head, lines, _ = table(script, monkeypatch, tmp_path, "volume", study)
    assert head == "| model | interval | clean | noise | blur | all |"
    assert lines == [
        "| qsim | paper | 100.0 / 0.00 | 0.0 / 3.92 | 100.0 / 11.76 | 66.7 / 5.23 |",
        "| qsim | calibrated | 100.0 / 15.00 | 66.7 / 20.00 | 100.0 / 30.00 | 88.9 / 21.67 |",
    ]


def test_measured_images_stand_apart(script, monkeypatch, tmp_path, study):
    _, lines, text = table(script, monkeypatch, tmp_path, "measured", study)
    assert "`study_quality`, 1 measured images clean, 2 with an artefact. " in text
    assert lines == [
        "| qsim | mean Dice | 0.800 | 0.500 | 0.600 | 0.633 |",
        "| qsim | interval, paper | 100.0 / 0.00 | 0.0 / 3.92 | 100.0 / 11.76 | 66.7 / 5.23 |",
        "| qsim | interval, calibrated | 100.0 / 15.00 | 100.0 / 20.00 | 100.0 / 30.00 | 100.0 / 21.67 |",
    ]


def test_a_study_without_measured_images_says_so(script, monkeypatch, tmp_path):
    _, lines, text = table(script, monkeypatch, tmp_path, "measured", DICE)
    assert not lines
    assert "`study_quality` has no measured images." in text


def test_a_missing_and_an_unfinished_study_leave_the_page_and_say_so_once(script, monkeypatch, tmp_path, capsys):
    finished(tmp_path / "quality", DICE, complete=False)
    assert made(script, monkeypatch, tmp_path, PAGE) == PAGE
    left = "{}: missing or unfinished, left as it is\n"
    assert capsys.readouterr().err == left.format("quality") + left.format("quality_small")
    # either size has its own tables: the full one does not hide the small one, nor stand in its place
    finished(tmp_path / "quality_small", [each._replace(value=0.25) for each in DICE])
    text = made(script, monkeypatch, tmp_path, PAGE)
    assert capsys.readouterr().err == left.format("quality")
    head, _, rest = PAGE.partition("small figures\n")
    assert text.startswith(head)
    assert text.endswith(rest)
    (tmp_path / "quality" / "provenance.json").write_text('{"complete": true}')
    text = made(script, monkeypatch, tmp_path, PAGE)
    assert capsys.readouterr().err == ""
    assert "| qsim | 0.900 | 0.500 | 0.700 | 0.740 |" in text
    assert "`study_quality` has none of these figures." in text
    assert "| qsim | 0.250 | 0.250 | 0.250 | 0.250 |" in text
    # filled again it is the same
    assert made(script, monkeypatch, tmp_path, text) == text


def test_the_page_has_a_mark_for_every_table_of_either_study(script, monkeypatch, tmp_path):
    page = script.PAGE.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- table: (\S+) (\S+) -->", page)
    assert sorted(marks) == sorted((study, kind) for study in ("quality", "quality_small") for kind in script.TABLES)
    assert page.count("<!-- end -->") == len(marks)
    assert made(script, monkeypatch, tmp_path, page) == page
    # the studies are those of the configs
    configs = SCRIPT.parents[1] / "configs" / "shaw2021"
    assert all((configs / f"study_{study}.yaml").is_file() for study, _ in marks)


def test_the_page_has_the_papers_figures_and_the_sizes_that_they_imply(script):
    page = script.PAGE.read_text(encoding="utf-8")
    for table_of, label in enumerate(("(Table 1)", "(Table 2)")):
        (told,) = [line for line in page.splitlines() if label in line]
        cells = [f"{PAPER[key][table_of][0]:.3f}" for key in ("variance_artefacts", "snr", "cnr")]
        assert [cell.split()[0] for cell in told.split("|")[2:-1]] == cells
    # two-sided p of a t-test of rho; rho of three digits leaves n +- 2
    for rho, p, n in ((-0.850, 1.395e-24, 85), (-0.745, 9.101e-12, 60)):
        sizes = np.arange(5, 300)
        found = 2 * student_t.sf(abs(rho) * np.sqrt((sizes - 2) / (1 - rho**2)), sizes - 2)
        assert abs(int(sizes[np.abs(np.log(found / p)).argmin()]) - n) <= 2
    assert "imply n = 85 and 60" in page


def test_a_table_that_there_is_not_is_refused(script, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"there is no table 'rank', wanted one of ranks, each"):
        made(script, monkeypatch, tmp_path, PAGE.replace("quality each", "quality rank"))


def test_a_study_of_another_kind_is_refused(script, monkeypatch, tmp_path):
    finished(tmp_path / "quality", [line("qsim", "clean", "dice", "mean", 0.9, study="noise")])
    with pytest.raises(InputError, match=r"quality: is a study of noise, not of quality; give the folders of configs/"):
        made(script, monkeypatch, tmp_path, PAGE)


def test_a_folder_that_is_not_there_is_one_line_and_a_failure(monkeypatch, tmp_path):
    missing = tmp_path / "none"
    monkeypatch.setattr(sys, "argv", ["script", str(missing)])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    # a text is printed on stderr, with the exit status 1
    assert refused.value.code == f"results: {missing}: is no folder; name the one that holds the studies"
