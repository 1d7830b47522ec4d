"""The page of a study of segmentation across domains, from results whose numbers were chosen."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from qsim.evaluation.pages.heat_report import Picture, Points, render
from qsim.evaluation.pages.segmentation_figures import window_of
from qsim.evaluation.pages.segmentation_lead import aims, limits, shown_name, signed
from qsim.evaluation.pages.segmentation_page import segmentation_page
from qsim.evaluation.studies.segmentation_results import TEST, TRAIN, Ensemble
from tests.qsim.segmentation_fakes import by_hand, drawn, picture


def chosen(a=0.5, b=0.6, c=0.7, folds=3, seeds=2, jitter=0.01, **changes):
    """Every image of a set with the same Dice on the domain, but for a small pattern; test .8."""
    pattern = jitter * np.array([-1.0, 1.0, -1.0, 1.0])

    def run(value, fold, seed):
        return {TRAIN: [0.95, 0.97], TEST: [0.8, 0.8], "T1rho": value + pattern * (1 + 0.1 * seed + 0.1 * fold)}

    sets = {"A": a, "B": b, "C": c}
    return by_hand(
        {name: {(f, s): run(value, f, s) for f in range(folds) for s in range(seeds)} for name, value in sets.items()},
        **changes,
    )


def text_of(results):
    return render(segmentation_page(results, ["A note."]))


def test_page_holds_the_numbers_and_the_papers_beside_them():
    text = text_of(chosen())
    # A loses .3; B closes a third of it, C two thirds
    assert "they lose 0.300" in text
    assert "closes 33 %" in text
    assert "closes 67 %" in text
    assert "+0.100 Dice" in text
    assert "better in 6 of 6 pairs" in text
    assert "0.56 ± 0.042" in text
    assert "0.64 ± 0.049" in text
    assert "the paper (jacobs2025 Table 1)" in text
    assert "A note." in text
    assert "There is no ensemble" in text


def verdicts(results):
    return [(aim.verdict, aim.why) for aim in aims(results)]


def test_aims_are_judged_by_the_numbers():
    assert verdicts(chosen()) == [
        ("met", "by its whole interval"),
        ("met", "by its whole interval"),
        ("met", "the interval holds no 0"),
    ]
    assert verdicts(chosen(a=0.7, b=0.71, c=0.705)) == [
        ("not met", "the domains are too close"),
        ("not met", "by its whole interval"),
        ("not met", "B has the higher Dice"),
    ]
    # no gap at all
    assert verdicts(chosen(a=0.85, b=0.86, c=0.87))[1] == ("open", "there is no gap to close")


def test_a_gain_whose_interval_holds_0_is_left_open():
    results = chosen(c=0.6)
    # C is .004 above B in the mean of every fold, its seeds .05 above and below that
    shifted = tuple(
        replace(run, dice={**run.dice, "T1rho": run.dice["T1rho"] + 0.004 + (0.05 if run.seed else -0.05)})
        if run.set == "C"
        else run
        for run in results.runs
    )
    assert verdicts(replace(results, runs=shifted))[2] == ("open", "a gain, but the interval holds 0")


def test_a_gain_that_fold_means_do_not_bear_out_says_so():
    results = chosen(c=0.6, folds=3, seeds=4)
    gains = {0: 0.01, 1: 0.05, 2: 0.2}
    shifted = tuple(
        replace(run, dice={**run.dice, "T1rho": run.dice["T1rho"] + gains[run.fold]}) if run.set == "C" else run
        for run in results.runs
    )
    verdict, why = verdicts(replace(results, runs=shifted))[2]
    assert verdict == "met"
    assert "though that of 3 fold means does (−0.162 to 0.335)" in why


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "met"), (1, "not met")])
def test_uncertainty_that_tells_or_does_not(sign, verdict):
    dice = np.linspace(0.3, 0.7, 20)
    ensembles = tuple(
        Ensemble("A", fold, "T1rho", tuple(map(str, range(20))), dice, {"disagreement": 0.5 + sign * 0.5 * dice})
        for fold in range(3)
    )
    results = chosen(ensembles=ensembles, members=2)
    last = aims(results)[-1]
    assert (last.verdict, last.why) == (verdict, "by its whole interval")
    text = text_of(results)
    assert f"{'−' if sign < 0 else ''}1.0" in text
    assert "There is no ensemble" not in text


def test_page_of_made_up_results_with_everything():
    page = segmentation_page(drawn(draws=200), [])
    assert page.title == "Left ventricle: learnt on T1 images, segmented on T1ρ and T2"
    pictures = {b.alt: b.source for section in page.sections for b in section.blocks if isinstance(b, Picture)}
    assert len(pictures) == 6
    for source in pictures.values():
        svg = base64.b64decode(source.partition(",")[2])
        assert svg.startswith(b"<svg")
        assert len(svg) < 600_000
    scatter = base64.b64decode(pictures["uncertainty against Dice by set"].partition(",")[2]).decode()
    assert "disagreement of members [1]" in scatter
    assert "ρ = −0." in scatter
    overlays = base64.b64decode(pictures["best and worst images of T1rho by set"].partition(",")[2]).decode()
    assert "[nats]" in overlays
    said = [str(p) for s in page.sections for b in s.blocks if isinstance(b, Points) for p in b.points]
    # three aims and three correlations in both domains
    assert len(said) == 12
    assert "<html" in render(page)


@pytest.mark.parametrize(
    "changes",
    [
        {"sets": ("augmented",), "folds": 1, "seeds": 1, "domains": ("T1rho",), "shown": False},
        {"sets": ("plain", "more"), "folds": 2, "seeds": 1, "domains": ("T2",), "images": (3,)},
        {"sets": ("A", "B", "C", "D", "E"), "folds": 1, "seeds": 2, "domains": ("T1rho",), "images": (1,)},
    ],
)
def test_page_of_few_or_many(changes):
    text = text_of(drawn(draws=50, tests=4, **changes))
    assert "nan" not in text.partition("<h2>Methods")[0].replace("data:", "").lower().split()
    assert text.count("<h2>") >= 6


def test_limits_are_said():
    one = limits(chosen(folds=1, seeds=2))
    assert any("Fold 0 of 5 only" in line for line in one)
    assert any("no SD over folds" in line for line in one)
    assert any("share their training images" in line for line in one)
    whole = chosen(folds=5, seeds=1, n_folds=5, draws=1000)
    assert limits(whole) == ["T1ρ: 4 images; intervals that are drawn from so few are too narrow."]
    assert any("1 of the runs are missing" in line for line in limits(replace(whole, runs=whole.runs[:-1])))


def test_window_holds_the_mask_within_the_image():
    one = picture("A", "T1rho", "worst")
    mask = one.truth | one.predicted
    window = window_of(mask)
    assert mask[window].sum() == mask.sum()
    assert mask[window].shape[0] == mask[window].shape[1] < mask.shape[0]
    corner = np.zeros((40, 60), dtype=bool)
    corner[:2, -2:] = True
    assert corner[window_of(corner)].sum() == 4
    assert corner[window_of(corner)].shape == (21, 21)
    assert window_of(np.zeros((4, 5), dtype=bool)) == (slice(0, 4), slice(0, 5))
    assert window_of(np.ones((4, 5), dtype=bool))[0] == slice(0, 4)


def test_an_empty_prediction_is_drawn():
    empty = replace(picture("A", "T1rho", "worst"), predicted=np.zeros((96, 96), dtype=bool), dice=0.0)
    assert "worst images of T1rho" in text_of(chosen(shown=(empty,)))


def test_names_and_signs():
    assert [shown_name(name) for name in ("T1rho", "T2rho", "T1", "rhodium")] == ["T1ρ", "T2ρ", "T1", "rhodium"]
    assert [signed(value) for value in (0.1, -0.1, 0.0)] == ["+0.100", "−0.100", "0"]
