"""The page of a study on a cohort, from results whose every number was chosen, beside what the papers print."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from qsim.evaluation.pages.cohort_aims import aims, aims_table, verdict
from qsim.evaluation.pages.cohort_figures import (
    before_after_figure,
    map_figure,
    noise_figure,
    sparsification_figure,
    uncertainty_figure,
    weights_figure,
)
from qsim.evaluation.pages.cohort_order import cell, kendall, order_sentence, paired, ratio, smallest
from qsim.evaluation.pages.cohort_page import cohort_page, lead, sections, warnings
from qsim.evaluation.pages.cohort_published import CORRUPTED_2023, INPUTS_2022, METHODS_2022, METHODS_2023
from qsim.evaluation.pages.heat_report import Grid, Picture, Points, render
from qsim.evaluation.studies.cohort_results import CohortResults, Figure
from tests.qsim.cohort_fakes import ALL, JOINT, RUNS, SINGLE, STATED, STEP, T_975_2, joint, single


@pytest.fixture(scope="module")
def plain_single():
    """Sections of the study of T1rho, without figures of maps."""
    return {part.title: part for part in sections(single(pictures=False))}


@pytest.fixture(scope="module")
def plain_joint():
    return {part.title: part for part in sections(replace(joint(), maps={}))}


def grid(part, number=0):
    return [block for block in part.blocks if isinstance(block, Grid)][number]


def said(part):
    return [str(point) for block in part.blocks if isinstance(block, Points) for point in block.points]


def value(text):
    """The number of a cell, without its interval."""
    return str(text).partition("<small>")[0]


def row(table, *names):
    return next(line for line in table.rows if tuple(line[: len(names)]) == names)


def test_kendalls_tau_is_scipys():
    rng = np.random.default_rng(4)
    for n in (2, 3, 7, 12):
        # whole numbers: ties in both lists
        one, other = ({f"m{i}": float(v) for i, v in enumerate(rng.integers(0, n, n))} for _ in range(2))
        expected = stats.kendalltau(list(one.values()), list(other.values())).statistic
        assert kendall(one, other) == pytest.approx(expected, nan_ok=True)


def test_kendalls_tau_is_of_common_names_and_none_without_an_order():
    assert kendall({"a": 1.0, "b": 2.0, "c": 0.0}, {"b": 9.0, "a": 8.0, "x": 1.0}) == 1.0
    assert np.isnan(kendall({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}))
    assert np.isnan(kendall({"a": 1.0}, {"a": 1.0}))


def test_cell_holds_mean_half_width_and_number_of_runs():
    # t(0.975, 2) 0.1 / sqrt(3) = 0.2484
    assert T_975_2 * 0.1 / np.sqrt(3) == pytest.approx(0.2484, abs=1e-4)
    assert cell(3.6 + STEP) == "3.60<small>± 0.25 (3)</small>"
    assert cell(0.5 + STEP / 10, 100.0) == "50.0<small>± 2.5 (3)</small>"
    assert cell(np.array([2.0, np.nan, np.nan])) == "2.00<small>(1)</small>"
    assert cell(np.full(3, np.nan)) == "–"


def test_ratio_of_nothing_is_no_number():
    np.testing.assert_array_equal(ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]), RUNS[:2]), [0.5, np.nan])


def test_what_has_no_seed_stands_beside_every_seed_of_its_fold():
    names = ("fold 0, seed 0", "fold 0, seed 1", "fold 1, seed 0", "fold 1, seed 1")
    network = np.array([1.0, 2.0, 3.0, np.nan])
    once = np.array([10.0, np.nan, 20.0, np.nan])
    np.testing.assert_array_equal(paired(network, once, names)[1], [10.0, 10.0, 20.0, np.nan])
    np.testing.assert_array_equal(ratio(network, once, names), [0.1, 0.2, 0.15, np.nan])
    # two of them have no more runs together than each
    np.testing.assert_array_equal(ratio(once, once, names), [1.0, np.nan, 1.0, np.nan])


def test_marks_are_those_of_the_smallest_and_of_what_is_equal():
    assert smallest({1: [3.0, 2.0, np.nan, 2.0], 2: [1.0, 1.0, np.nan, np.nan], 3: [np.nan] * 4}) == {(1, 1), (3, 1)}


def test_order_sentence_names_both_orders_and_every_turned_pair():
    here = {"a": 3.0 + STEP, "b": 2.0 + STEP, "c": 5.0 + STEP, "own": 0.0 + STEP}
    text = order_sentence(here, {"a": 1.0, "b": 2.0, "c": 2.0, "gone": 7.0}, "RMAE [ms]", RUNS)
    # pairs: a-b opposed, a-c agreeing, b-c tied in the paper: tau = 0 / sqrt(3 x 2)
    assert text == (
        "RMAE [ms]: here b < a < c; in the paper a < b = c. Kendall's τ 0 (3 pairs). "
        "The other way round here: b before a (by 1.0 ± 0). No figure here of gone."
    )
    unclear = order_sentence({"a": 3 + STEP, "b": np.array([2.0, 4.0, 2.9])}, {"a": 1.0, "b": 2.0}, "x", RUNS)
    assert "Kendall's τ −1.0 (1 pair)" in unclear
    assert "not told apart over runs" in unclear
    same = order_sentence({"a": 1 + STEP, "b": 2 + STEP}, {"a": 1.0, "b": 2.0}, "x", RUNS)
    assert same.endswith("Kendall's τ 1.0 (1 pair). No pair stands the other way round.")
    assert "fewer than two" in order_sentence({"a": 1 + STEP}, {"a": 1.0, "b": 2.0}, "x", RUNS)


def test_printed_numbers_agree_among_themselves():
    # Table 2 of huang2022 is the mean over the columns of Table 3, but for 0.1 ms of 2-TSL
    for method, line in INPUTS_2022.numbers.items():
        assert np.mean(list(line.values())) == pytest.approx(METHODS_2022.numbers[method]["T1RHO"], abs=0.1)
    # section III of huang2023: the baseline loses by every disturbance, HOMOU is the best of each
    for printed in CORRUPTED_2023.values():
        assert printed.numbers["baseline"]["T1RHO"] > METHODS_2023.numbers["baseline"]["T1RHO"]
        assert min(printed.column("T1RHO"), key=printed.column("T1RHO").get) == "HOMOU"


def test_methods_stand_beside_the_papers(plain_single):
    part = plain_single["Methods (huang2022 Table 2)"]
    table = grid(part)
    # mean over the inputs: (4.0 + 3.6 + 3.5) / 3 = 3.7, half more against the fit; the paper's 3.60
    assert [value(c) for c in row(table, "proposed")] == ["proposed", "3.70", "4.20", "3.60"]
    assert [value(c) for c in row(table, "two-point")] == ["two-point", "8.00", "8.50", "7.55"]
    assert value(row(table, "qsim")[3]) == "–"
    assert table.best == {([str(r[0]) for r in table.rows].index("rician"), 1)}
    assert not {"baseline", "baseline + aleatoric"} & {str(r[0]) for r in table.rows}
    # here: fit 3.6 < proposed 3.7 < two-stream 4.2 < two-point 8: 4 of 6 pairs agree, (4 - 2) / 6
    assert said(part)[0].startswith(
        "T1ρ, RMAE against truth [ms]: here supervised on fit < proposed < two-stream < two-point; in the paper "
        "proposed < two-stream < supervised on fit < two-point. Kendall's τ 0.33 (6 pairs). The other way round here: "
        "supervised on fit before proposed (by 0.10 ± "
    )


def test_inputs_stand_beside_two_point_and_the_paper(plain_single):
    part = plain_single["By input (huang2022 Table 3)"]
    table = grid(part)
    assert [text for text, _ in table.groups] == ["", "input 0, 10 ms", "input 0, 30 ms", "input 0, 50 ms"]
    line = [value(c) for c in row(table, "proposed")]
    # 4.0 of 12.0 in each of three runs (3.9 / 11.9, 4.0 / 12.0, 4.1 / 12.1)
    assert line[1:5] == ["4.00", "0.333", "4.50", "3.84"]
    assert line[9:13] == ["3.50", "0.700", "4.00", "3.44"]
    assert "least-squares" not in [str(r[0]) for r in table.rows]
    names = [str(r[0]) for r in table.rows]
    assert {(names.index("supervised on truth"), c) for c in (1, 5, 9)} <= set(table.best)
    assert len(said(part)) == 6
    assert "two-point < proposed" in said(part)[4]


def test_ablation(plain_single):
    table = grid(plain_single["Ablation (huang2022 Table 4)"])
    assert [str(r[0]) for r in table.rows] == ["baseline", "baseline + epistemic", "baseline + aleatoric", "proposed"]
    assert [value(r[3]) for r in table.rows] == ["3.72", "3.68", "3.62", "3.60"]
    assert table.best == {(3, 1)}


def test_ranked_table_is_in_the_order_of_the_error(plain_single):
    table = grid(plain_single["Every method"])
    means = {name: np.mean(line) for name, line in SINGLE.items()} | ALL
    assert [str(r[0]) for r in table.rows] == sorted(means, key=lambda name: round(means[name], 9))
    heads = [str(h) for h in table.heads]
    constant = dict(zip(heads, row(table, "population-constant"), strict=True))
    assert value(constant["slope, subjects [1]"]) == "0"
    assert value(constant["bias [ms]"]) == "−1.50"
    # every other method has slope 1: all are nearest to it, the one that paints a constant is not
    column = heads.index("slope, subjects [1]")
    assert len([c for c in table.best if c[1] == column]) == len(table.rows) - 1


def test_calibration_before_and_after(plain_single):
    table = grid(plain_single["Coverage, width and score"])
    line = [value(c) for c in row(table, "body", "qsim")]
    assert line[2:] == ["0.550", "0.450", "70.0", "95.0", "6.00", "12.0", "2.40", "2.10", "2.60"]


def test_regions_noise_structures_and_limits(plain_single):
    part = plain_single["Uncertainty by region (huang2022 Table 5)"]
    assert [value(c) for c in grid(part).rows[-1]][1:] == ["3.25", "3.74", "3.21", "3.65"]
    # left 3.0 < inside 3.2 < outside 3.9 < right 4.0; in the paper inside before left: 5 of 6 pairs agree
    assert "Kendall's τ 0.67 (6 pairs)" in said(part)[0]
    assert len(said(part)) == len(STATED)
    noise = grid(plain_single["Uncertainty and noise (huang2022 Fig. 8)"])
    assert [value(c) for c in row(noise, "ROI", "proposed")][2:] == ["9.00", "6.00", "6.50", "no"]
    assert row(noise, "body", "qsim")[-1] == "yes"
    unseen = grid(plain_single["Structures never seen (huang2022 Figs. 9 and 10)"])
    square = [value(c) for c in row(unseen, "square", "square", "qsim")]
    # runs 2.4 / 0.9, 2.5 / 1.0, 2.6 / 1.1: 2.510 in the mean
    assert square[3:] == ["1.00", "2.50", f"{np.mean([2.4 / 0.9, 2.5, 2.6 / 1.1]):.2f}", "2.51"]
    assert [value(c) for c in row(unseen, "lesion", "lesion", "qsim")][3:] == ["–", "1.80", "–", "1.50"]
    limited = grid(plain_single["Limited voxels"])
    assert value(row(limited, "two-point")[1]) == "12.5"
    assert len(limited.rows) == 1


def test_aims_are_met_or_missed_by_the_mean():
    found = aims(single(pictures=False))
    own = {aim.what: aim for aim in found if aim.method == "proposed"}
    assert own["RMAE / two-point's, input 0, 10 ms [1]"].met
    assert own["RMAE / population-constant's [1]"].met  # 3.7 / 6.0
    assert not own["contrast recovery of lesions [1]"].met
    assert not own["largest mean SD / that at the next lower SNR [1]"].met  # 6.5 / 6.0
    assert own["epistemic SD with square / before [1]"].met
    table = aims_table(found)
    assert [str(h) for h in table.heads] == ["number", "aim", "proposed", "qsim", "qsim, ensemble"]
    line = row(table, "coverage of calibrated 95 % intervals, body [%]")
    assert line[1] == "90 to 98"
    assert value(line[2]) == "95.0"
    assert "met, unsettled" in str(line[2])
    assert "missed" in str(row(table, "largest mean SD / that at the next lower SNR [1]")[2])
    assert verdict(found).startswith("proposed meets 12 of 14 aims (missed: contrast recovery of lesions 0.700; ")


def test_lead_names_the_best_of_those_that_see_part_of_the_images():
    text = str(lead(single(pictures=False))[0])
    assert "supervised on truth errs least" in text
    assert "3.00 ± 0.25 ms over 3 runs" in text
    assert "two-point 8.00" in text
    assert "population-constant 6.00" in text
    assert "rician 2.90" in text


def test_two_parameters_stand_beside_the_paper(plain_joint):
    table = grid(plain_joint["Methods (huang2023 Table II)"])
    line = [value(c) for c in row(table, "HOMOU")]
    assert line[1:] == ["3.20", "3.20", "3.28", "3.00", "3.00", "3.33"]
    names = [str(r[0]) for r in table.rows]
    assert table.best == {(names.index("HETEU"), 1), (names.index("HOMOU"), 4)}
    assert not any(name.startswith("weights") or "x100" in name for name in names)


def test_weights_by_hand_and_learned_ones(plain_joint):
    part = plain_joint["Weights by hand and learned ones (huang2023 Fig. 3)"]
    table = grid(part)
    # best by hand of T1rho: 3.1 at 0.9/0.1; of T2: 3.0 at 0.1/0.9
    assert [value(c) for c in row(table, "HOMOU")][1:] == ["3.20", "3.00", f"{3.2 / 3.1:.2f}", "1.00"]
    assert any(isinstance(block, Picture) for block in part.blocks)


def test_disturbed_contrast_with_its_change(plain_joint):
    table = grid(plain_joint["A disturbed contrast in the loss (huang2023 Table III)"])
    heads = [str(h) for h in table.heads]
    base = dict(zip(heads[:7], row(table, "T2 x10000", "baseline"), strict=False))
    # 4.08 / 3.4 = 1.20; the paper's 3.88 / 3.45 = 1.125
    assert value(base["change, truth [%]"]) == "20"
    assert base["change, paper [%]"] == "12"
    assert base["paper, fit [ms]"] == "3.88"
    assert row(table, "T2 motion", "HETEU")[-2:] == ["–", "–"]
    lines = [str(r[0]) for r in table.rows]
    assert lines == ["T2 x100"] * 3 + ["T2 x10000"] * 3 + ["T2 motion"] * 3


def test_seconds(plain_joint):
    part = plain_joint["Time (huang2023 Table IV)"]
    assert [value(c) for c in row(grid(part), "HOMOU")] == ["HOMOU", "20.0", "17"]
    assert [value(c) for c in row(grid(part), "least-squares")] == ["least-squares", "300", "88"]
    assert "No pair stands the other way round" in said(part)[0]


def test_aims_of_learned_weights():
    own = {(aim.method, aim.what): aim for aim in aims(joint())}
    assert own["HOMOU", "growth of the RMAE of T1ρ, T2 x10000 [%]"].met  # 3.264 / 3.2: 2 %
    # motion: HOMOU 3.1 %, more than half of baseline's 5.9 %
    assert not own["HOMOU", "growth of the RMAE of T1ρ less half of baseline's, T2 motion [%]"].met
    assert own["HETEU", "RMAE of T2 / that of the best weights by hand [1]"].met  # 3.1 / 3.0


def test_without_truth_the_fit_is_the_reference():
    results = single(truth=False, pictures=False)
    table = grid(next(part for part in sections(results) if part.title == "Methods (huang2022 Table 2)"))
    assert [str(h) for h in table.heads] == ["method", "against fit of all images", "paper, against fit"]
    assert any("truth is not known" in str(text) for text in warnings(results))
    assert "|estimate − fit|" in str(lead(results)[0])


def test_one_run_has_no_interval():
    results = single(runs=RUNS[:1], pictures=False)
    assert any(str(text).startswith("One run") for text in warnings(results))
    table = grid(next(part for part in sections(results) if part.title == "Every method"))
    assert re.fullmatch(r"[\d.]+<small>\(1\)</small>", str(table.rows[0][1]))


def test_what_lowers_a_mean_is_said():
    results = single(pictures=False)
    values = dict(results.values)
    for kind in ("truth", "fit"):
        del values[Figure("plain", "two-stream", "0, 10 ms", "roi", "T1RHO", f"rmae_{kind}")]
    values["plain", "two-point", "0, 10 ms", "roi", "T1RHO", "left_out_truth"] = np.full(3, 12.0)
    at = Figure("plain", "qsim", "0, 50 ms", "roi", "T1RHO", "rmae_truth")
    values[at] = np.array([3.0, np.nan, 3.0])
    told = [str(text) for text in warnings(replace(results, values=values))]
    assert "two-stream, T1ρ: its means are over 0, 30 ms, 0, 50 ms alone." in told
    assert "two-point, T1ρ: 12 voxels of the ROI have no value and are in no error." in told
    assert "qsim, T1ρ: 2 of 3 runs have a figure." in told


def test_sections_without_results_are_left_out():
    values = {
        Figure("plain", name, "0, 30 ms", "roi", "T1RHO", "rmae_fit"): 3.0 + i + STEP
        for i, name in enumerate(("proposed", "two-point"))
    }
    results = CohortResults(values, RUNS, ("two-point", "proposed"), ("0, 30 ms",), ("T1RHO",), {}, {})
    assert [part.title for part in sections(results)] == ["Aims", "Every method", "Methods (huang2022 Table 2)"]
    with pytest.raises(ValueError, match=r"^values: hold no rmae_truth"):
        cohort_page(replace(results, values={}), title="t", meta="m")


def svg(source):
    return base64.b64decode(source.partition("base64,")[2]).decode()


def test_figures_hold_names_units_and_outlines():
    results = single()
    maps, after = results.maps["plain", "T1RHO"], results.maps["square", "T1RHO"]
    text = svg(map_figure(maps, "T1RHO", ("two-point", "qsim")))
    assert all(name in text for name in ("fit of all images", "two-point", "qsim", "estimate − truth [ms]"))
    # image, fit, truth, two methods, errors of fit and methods, two bars
    assert text.count("<image") == 5 + 3 + 2
    assert map_figure(maps, "T1RHO", ("two-point", "qsim")) == map_figure(maps, "T1RHO", ("two-point", "qsim"))
    text = svg(uncertainty_figure(maps, "T1RHO", ("two-point", "qsim")))
    assert "aleatoric SD [ms]" in text
    assert "qsim" in text
    assert "two-point" not in text
    text = svg(before_after_figure(results.maps["square before", "T1RHO"], after, ("qsim",), "square"))
    assert "image before" in text
    assert "image with it" in text
    assert "epistemic SD [ms]" in text
    text = svg(sparsification_figure({"qsim": results.curves["qsim", "T1RHO"]}, "T1RHO", {"qsim": "0.45"}))
    assert "AUSE ratio 0.45" in text
    assert "oracle" in text


def test_curves_hold_names_and_units():
    from qsim.evaluation.metrics import Interval

    one = Interval(3.0, 2.5, 3.5)
    text = svg(noise_figure({"ROI": {"qsim": {5.0: one, 10.0: Interval(2.0, np.nan, np.nan)}}}, "T1RHO"))
    assert "qsim" in text
    assert "SNR" in text
    assert "[ms]" in text
    text = svg(weights_figure({"T1RHO": {0.1: one, 0.9: one}}, {"T1RHO": {"HOMOU": {0.0: one}}}, "truth"))
    assert "learned: HOMOU" in text
    assert "RMAE against truth [ms]" in text


def test_whole_page_is_one_file_with_told_figures():
    results = joint()
    page = cohort_page(results, title="Two maps", meta="3 runs", methods=[("data", "fake")], digest="d", limits=["own"])
    text = render(page)
    assert page.warnings[0] == "own"
    assert page.methods[0] == ("data", "fake")
    assert text.count("<img ") == 3
    assert 'alt=""' not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "Maps of one slice (huang2023 Fig. 2, T2)" in text
    assert set(JOINT) >= {"HOMOU"}
