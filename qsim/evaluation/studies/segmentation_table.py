"""Tables of a study of segmentation across domains: a line per image and network, and the long table of what follows.

In the long table `estimator` is the set (or `B - A`, a difference of two), `tissue` the split, `parameter` what the
figure is of; `draw` is the fold where a row is of one fold. Intervals of `gap`, `closure` and `difference` are those of
the crossed bootstrap; `..._t_runs` and `..._t_folds` hold the t-intervals of the same figures.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import nan

from qsim.evaluation.metrics import Interval, over_draws
from qsim.evaluation.studies.segmentation_compared import Compared, closure, difference, gap
from qsim.evaluation.studies.segmentation_ranks import ensembles_of, followed
from qsim.evaluation.studies.segmentation_results import (
    SCORES,
    TEST,
    SegmentationResults,
    cell,
    fold_means,
    run_means,
)
from qsim.evaluation.table import ALL, Row

HEADER = ("set", "fold", "seed", "split", "image", "name", "dice", *SCORES)
# in place of the seed, in lines of all networks of a fold together
ENSEMBLE = "ensemble"


def image_lines(results: SegmentationResults) -> Iterator[Sequence[str | int | float]]:
    """Lines of images.csv after its header: every network, then every ensemble with its scores."""
    for name in results.sets:
        names = {(e.fold, e.domain): e.names for e in results.ensembles if e.set == name}
        for (fold, seed), run in results.of_set(name).items():
            for split, dice in run.dice.items():
                called = names.get((fold, split), ())
                for i, value in enumerate(dice.tolist()):
                    image = called[i] if len(called) == dice.size else ""
                    yield (name, fold, seed, split, i, image, value, *(nan for _ in SCORES))
        for split in (TEST, *results.domains):
            for each in ensembles_of(results, name, split):
                for i, value in enumerate(each.dice.tolist()):
                    scores = (float(each.scores[s][i]) if s in each.scores else nan for s in SCORES)
                    yield (name, each.fold, ENSEMBLE, split, i, each.names[i], value, *scores)


def rows(results: SegmentationResults) -> Iterator[Row]:
    """The long table."""
    for name in results.sets:
        if not results.of_set(name):
            continue
        for split in results.splits:
            yield from _dice(results, name, split)
        for domain in results.domains:
            yield from _three(name, domain, "gap", gap(results, name, domain))
            if name != results.baseline:
                closed = closure(results, name, domain)
                ends = Interval(closed.value, closed.low, closed.high)
                yield _row(name, domain, "dice", "closure", ends, closed.runs)
        yield from _ranks(results, name)
    for domain in results.domains:
        for other, name in combinations([s for s in results.sets if results.of_set(s)], 2):
            found, who = difference(results, name, other, domain), f"{name} - {other}"
            yield from _three(who, domain, "difference", found)
            yield _row(who, domain, "dice", "difference_favour", found.favour / found.runs, found.runs)


def _dice(results: SegmentationResults, name: str, split: str) -> Iterator[Row]:
    found, means = cell(results, name, split), run_means(results, name, split)
    yield _row(name, split, "dice", "mean", found.mean, found.runs)
    yield _row(name, split, "dice", "mean_of_folds", over_draws(fold_means(means)), found.folds)
    yield _row(name, split, "dice", "sd_folds", found.sd_folds, found.folds)
    yield _row(name, split, "dice", "sd_runs", found.sd_runs, found.runs)
    for fold in sorted({fold for fold, _ in means}):
        each = [value for (of, _), value in means.items() if of == fold]
        yield _row(name, split, "dice", "mean", sum(each) / len(each), len(each), fold)


def _three(who: str, domain: str, metric: str, found: Compared) -> Iterator[Row]:
    yield _row(who, domain, "dice", metric, found.crossed, found.runs)
    yield _row(who, domain, "dice", f"{metric}_t_runs", found.over_runs, found.runs)
    yield _row(who, domain, "dice", f"{metric}_t_folds", found.over_folds, found.folds)


def _ranks(results: SegmentationResults, name: str) -> Iterator[Row]:
    for split in (TEST, *results.domains):
        for each in ensembles_of(results, name, split):
            yield _row(name, split, "ensemble_dice", "mean", float(each.dice.mean()), each.dice.size, each.fold)
        for score in SCORES:
            found = followed(results, name, split, score)
            if found is None:
                continue
            for fold, rank in found.by_fold:
                yield _row(name, split, score, "spearman_dice", rank.rho, rank.n, fold)
            yield _row(name, split, score, "spearman_dice", found.mean, found.images)
            yield _row(name, split, score, "spearman_dice_averaged", found.averaged, found.images)


def _row(who: str, split: str, figure: str, metric: str, value: Interval | float, n: int, draw: int | str = ALL) -> Row:
    found = value if isinstance(value, Interval) else Interval(value, nan, nan)
    return Row("segmentation", who, split, figure, nan, nan, draw, metric, found.value, found.low, found.high, n)
