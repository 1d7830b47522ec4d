"""Dice of networks across domains: means, gaps, closures and differences by hand, intervals against scipy."""

from dataclasses import astuple, replace
from math import isnan, log

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from qsim.errors import InputError
from qsim.evaluation.studies.segmentation_compared import closure, difference, gap
from qsim.evaluation.studies.segmentation_ranks import followed
from qsim.evaluation.studies.segmentation_results import TEST, TRAIN, Ensemble, cell, fold_means, run_means
from qsim.evaluation.studies.segmentation_table import ENSEMBLE, HEADER, image_lines, rows
from qsim.evaluation.table import ALL, csv_text
from tests.qsim.segmentation_fakes import by_hand, drawn

# two folds, two seeds; test images differ by fold, those of the domain do not
HAND = {
    "A": {
        (0, 1): {TRAIN: [1.0, 0.9], TEST: [0.8, 0.9], "T1rho": [0.4, 0.5, 0.6]},
        (0, 2): {TRAIN: [0.9, 0.8], TEST: [0.7, 0.8], "T1rho": [0.5, 0.6, 0.7]},
        (1, 1): {TRAIN: [0.9, 0.9], TEST: [0.9, 0.9, 0.6], "T1rho": [0.6, 0.7, 0.8]},
        (1, 2): {TRAIN: [0.8, 0.8], TEST: [0.6, 0.6, 0.9], "T1rho": [0.3, 0.4, 0.5]},
    },
    "B": {
        (0, 1): {TRAIN: [0.9, 0.9], TEST: [0.8, 0.8], "T1rho": [0.6, 0.6, 0.6]},
        (0, 2): {TRAIN: [0.8, 0.8], TEST: [0.8, 0.8], "T1rho": [0.6, 0.6, 0.9]},
        (1, 1): {TRAIN: [0.8, 0.8], TEST: [0.8, 0.8, 0.8], "T1rho": [0.6, 0.6, 0.6]},
        (1, 2): {TRAIN: [0.8, 0.8], TEST: [0.8, 0.8, 0.8], "T1rho": [0.6, 0.6, 0.6]},
    },
}


def test_table_by_hand():
    found = cell(by_hand(HAND), "A", "T1rho")
    # runs .5, .6, .7, .4; folds .55, .55
    assert_allclose(found[:3], (0.55, 0.0, np.std([0.5, 0.6, 0.7, 0.4], ddof=1)), atol=1e-12)
    assert (found.runs, found.folds, found.images) == (4, 2, (3, 3))
    test = cell(by_hand(HAND), "A", TEST)
    # runs .85, .75, .8, .7; folds .8, .75
    assert_allclose((test.mean, test.sd_folds), (0.775, 0.05 / np.sqrt(2)))
    assert test.images == (2, 3)


def test_one_fold_has_no_sd_over_folds_and_one_run_none_at_all():
    one_fold = {name: {key: run for key, run in of.items() if key[0] == 0} for name, of in HAND.items()}
    found = cell(by_hand(one_fold), "A", "T1rho")
    assert isnan(found.sd_folds)
    assert_allclose(found.sd_runs, 0.1 / np.sqrt(2))
    one = by_hand({"A": {(0, 1): HAND["A"][0, 1]}})
    assert isnan(cell(one, "A", "T1rho").sd_runs)
    lost = gap(one, "A", "T1rho")
    assert_allclose(lost.value, 0.35)
    assert isnan(lost.over_runs.low)
    assert isnan(lost.over_folds.low)
    # images alone are drawn
    assert lost.crossed.low < 0.35 < lost.crossed.high


def test_gap_and_closure_by_hand():
    results = by_hand(HAND)
    # .85 - .5, .75 - .6, .8 - .7, .7 - .4
    lost = gap(results, "A", "T1rho")
    assert_allclose(lost.value, 0.225)
    assert (lost.runs, lost.favour, lost.folds, lost.images) == (4, 4, 2, 3)
    # B on the domain .6, .7, .6, .6: mean .625, of A .55
    assert_allclose(closure(results, "B", "T1rho").value, 0.075 / 0.225)
    assert_allclose(fold_means(run_means(results, "B", "T1rho")), (0.65, 0.6))


def test_difference_is_scipys_paired_t_test():
    results = by_hand(HAND)
    found = difference(results, "B", "A", "T1rho")
    b, a = (np.array(list(run_means(results, name, "T1rho").values())) for name in "BA")
    expected = stats.ttest_rel(b, a).confidence_interval()
    assert_allclose(astuple(found.over_runs), (0.075, expected.low, expected.high))
    # .1, .1, -.1, .2
    assert (found.favour, found.runs) == (3, 4)
    assert isnan(found.over_folds.low)


def test_difference_over_fold_means_is_scipys():
    results = drawn(folds=4, seeds=3, shown=False)
    found = difference(results, "C physics", "B additional", "T1rho")
    c, b = (fold_means(run_means(results, name, "T1rho")) for name in ("C physics", "B additional"))
    expected = stats.ttest_rel(c, b).confidence_interval()
    assert_allclose(astuple(found.over_folds), (np.mean(c - b), expected.low, expected.high))
    other = difference(results, "B additional", "C physics", "T1rho")
    assert_allclose((other.value, other.crossed.low), (-found.value, -found.crossed.high))
    assert other.favour == 12 - found.favour


def test_pairs_are_those_that_both_sets_have():
    fewer = {"A": HAND["A"], "B": {key: run for key, run in HAND["B"].items() if key != (1, 2)}}
    found = difference(by_hand(fewer), "B", "A", "T1rho")
    assert_allclose(found.value, 0.1 / 3)
    assert found.runs == 3
    # the gap is that of the same pairs: .35, .15, .1
    assert_allclose(closure(by_hand(fewer), "B", "T1rho").value, 0.1 / 0.6)
    apart = {"A": {(0, 1): HAND["A"][0, 1]}, "B": {(1, 2): HAND["B"][1, 2]}}
    with pytest.raises(InputError, match="B and A have no fold and seed in common"):
        difference(by_hand(apart), "B", "A", "T1rho")


def test_runs_that_saw_other_images_of_a_domain_are_refused():
    other = {"A": {**HAND["A"], (0, 1): {**HAND["A"][0, 1], "T1rho": [0.5, 0.5]}}}
    with pytest.raises(InputError, match="different numbers of images of T1rho"):
        gap(by_hand(other), "A", "T1rho")


def test_without_a_gap_nothing_can_be_closed():
    # Dice of the domain as high as that of test
    dice = {key: {**run, "T1rho": [0.9, 0.9, 0.9]} for key, run in HAND["A"].items()}
    found = closure(by_hand({"A": dice, "B": HAND["B"]}), "B", "T1rho")
    assert isnan(found.value)
    assert isnan(found.low)
    assert found.no_gap > 0.5


def test_intervals_are_the_same_each_time_and_change_with_the_seed():
    results = drawn(shown=False)
    first = closure(results, "C physics", "T1rho")
    assert first == closure(results, "C physics", "T1rho")
    assert first.low != closure(replace(results, seed=4), "C physics", "T1rho").low
    assert first.low < first.value < first.high


def test_bootstrap_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    true, folds, seeds, images, repeats = 0.08, 10, 2, 30, 200
    held = np.zeros(2)
    for _ in range(repeats):
        hard = rng.normal(0, 0.1, images)
        # what the second set gains differs by fold, by seed and by image
        gain = true + rng.normal(0, 0.03, (folds, 1, 1)) + rng.normal(0, 0.02, (folds, seeds, 1))
        gain = gain + rng.normal(0, 0.08, images)
        base = 0.6 + hard + rng.normal(0, 0.03, (folds, seeds, images))
        test = 0.8 + rng.normal(0, 0.08, (folds, 1, 25)) + rng.normal(0, 0.01, (folds, seeds, 25))
        dice = {
            name: {(f, s): {TEST: test[f, s], "T1rho": of[f, s]} for f in range(folds) for s in range(seeds)}
            for name, of in (("A", base), ("B", base + gain))
        }
        results = by_hand(dice, draws=300)
        crossed = difference(results, "B", "A", "T1rho").crossed
        closed = closure(results, "B", "T1rho")
        held += crossed.low <= true <= crossed.high, closed.low <= true / 0.2 <= closed.high
    # SD of a share of 200 at .95 is .015; percentiles of 10 folds are a little narrow
    assert_allclose(held / repeats, 0.95, atol=0.05)


def test_a_bootstrap_over_folds_is_wider_where_folds_differ():
    rng = np.random.default_rng(2)

    def one(fold_sd):
        fold = fold_sd * rng.standard_normal(6)
        dice = {
            name: {(f, s): {TEST: [0.8] * 4, "T1rho": 0.5 + gain * (0.1 + fold[f]) + 1e-3 * rng.random(40)}
                   for f in range(6) for s in range(4)}
            for name, gain in (("A", 0), ("B", 1))
        }  # fmt: skip
        found = difference(by_hand(dice), "B", "A", "T1rho")
        return found.crossed.high - found.crossed.low, found

    wide, found = one(0.03)
    assert wide > 10 * one(0.0)[0]
    # seeds of a fold agree, so the t-interval over 24 runs is too narrow
    assert found.over_folds.high - found.over_folds.low > 1.7 * (found.over_runs.high - found.over_runs.low)
    assert wide > 1.3 * (found.over_runs.high - found.over_runs.low)


def ensemble(fold, x, y, domain="T1rho", names=None):
    names = names or tuple(f"{i}" for i in range(len(x)))
    return Ensemble("A", fold, domain, names, np.array(y), {"disagreement": np.array(x)})


def test_rank_correlation_is_scipys_by_fold_and_their_mean():
    rng = np.random.default_rng(3)
    x, y = rng.random((2, 12)), rng.random((2, 12))
    results = by_hand(HAND, ensembles=(ensemble(0, x[0], y[0]), ensemble(1, x[1], y[1])))
    found = followed(results, "A", "T1rho", "disagreement")
    each = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert_allclose([rank.rho for _, rank in found.by_fold], each)
    assert_allclose(found.mean.value, np.mean(each))
    assert_allclose(found.averaged.value, stats.spearmanr(x.mean(0), y.mean(0)).statistic)
    assert found.mean.low < found.mean.value < found.mean.high
    assert found.images == 12
    # of test, where each fold has its own images, all are taken together
    apart = tuple(ensemble(f, x[f], y[f], TEST, tuple(f"{f} {i}" for i in range(12))) for f in (0, 1))
    pooled = followed(by_hand(HAND, ensembles=apart), "A", TEST, "disagreement")
    assert_allclose(pooled.averaged.value, stats.spearmanr(x.ravel(), y.ravel()).statistic)
    assert pooled.images == 24


def test_rank_correlation_where_there_is_none():
    assert followed(by_hand(HAND), "A", "T1rho", "disagreement") is None
    constant = by_hand(HAND, ensembles=(ensemble(0, [0.5] * 4, [0.1, 0.2, 0.3, 0.4]),))
    assert isnan(followed(constant, "A", "T1rho", "disagreement").mean.value)
    unknown = by_hand(HAND, ensembles=(ensemble(0, [np.nan] * 4, [0.1, 0.2, 0.3, 0.4]),))
    assert isnan(followed(unknown, "A", "T1rho", "disagreement").averaged.value)
    assert followed(constant, "A", "T1rho", "entropy_per_target") is None


def test_sets_stand_for_those_of_the_paper_by_letter_or_by_order():
    by_letter = by_hand(dict.fromkeys(("A rotation", "C physics", "B additional"), HAND["A"]))
    assert [by_letter.role(letter) for letter in "ABC"] == ["A rotation", "B additional", "C physics"]
    by_order = by_hand(dict.fromkeys(("plain", "additional"), HAND["A"]))
    assert [by_order.role(letter) for letter in "ABC"] == ["plain", "additional", None]


def test_long_table_holds_what_was_found():
    results = by_hand(HAND, ensembles=(ensemble(0, [0.1, 0.2, 0.4], [0.9, 0.5, 0.7]),))
    table = list(rows(results))
    held = {(r.estimator, r.tissue, r.parameter, r.draw, r.metric): r for r in table}
    assert len(held) == len(table)
    assert_allclose(held["A", "T1rho", "dice", ALL, "mean"].value, 0.55)
    assert_allclose(held["A", TEST, "dice", 1, "mean"].value, 0.75)
    assert_allclose(held["B", "T1rho", "dice", ALL, "closure"].value, 1 / 3)
    assert_allclose(held["B - A", "T1rho", "dice", ALL, "difference"].value, 0.075)
    assert_allclose(held["B - A", "T1rho", "dice", ALL, "difference_favour"].value, 0.75)
    assert_allclose(held["A", "T1rho", "disagreement", 0, "spearman_dice"].value, -0.5)
    assert ("A", "T1rho", "dice", ALL, "closure") not in held
    assert csv_text(table).count("\n") == len(table) + 1


def test_lines_of_images_hold_every_network_and_every_ensemble():
    results = by_hand(HAND, ensembles=(ensemble(0, [0.1, 0.2, log(2)], [0.9, 0.5, 0.7], names=("a", "b", "c")),))
    lines = list(image_lines(results))
    assert {len(line) for line in lines} == {len(HEADER)}
    # A: 7 + 7 + 8 + 8 images; the ensemble 3
    assert len(lines) == 2 * 30 + 3
    held = {line[:5]: line for line in lines}
    assert held["A", 0, 1, "T1rho", 2][5:7] == ("c", 0.6)
    assert held["A", 1, 1, "T1rho", 2][5:7] == ("", 0.8)
    assert held["A", 0, ENSEMBLE, "T1rho", 2][5:8] == ("c", 0.7, log(2))
