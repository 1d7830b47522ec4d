"""Differences of Dice between splits and between sets of augmentations, with their intervals.

Three intervals stand beside each other: the t-interval over runs, which takes them for independent; the t-interval over
fold means; and a crossed bootstrap over runs (folds, then seeds within them) and, independently, images.
"""

from collections.abc import Mapping, Sequence
from math import nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.evaluation.metrics import Interval, over_draws
from qsim.evaluation.studies.segmentation_results import TEST, Key, SegmentationResults, fold_means, run_means

# fewer fold means give a t-interval that says nothing
_FOLDS = 3
_LEVEL = 0.95


class Compared(NamedTuple):
    """A difference of Dice over runs.

    Attributes:
        value: mean over runs [1].
        over_runs: its t-interval, runs taken for independent.
        over_folds: mean over fold means with its t-interval; no ends below three folds.
        crossed: bootstrap over runs (folds, then seeds within them) and, independently, images.
        runs, favour: runs (of a pair of sets: pairs), and those of them with a difference above 0.
        folds, images: how many; images of the domain.
    """

    value: float
    over_runs: Interval
    over_folds: Interval
    crossed: Interval
    runs: int
    favour: int
    folds: int
    images: int


class Closed(NamedTuple):
    """The share of the baseline's gap that a set closes.

    Attributes:
        value: ratio of means over runs; NaN where the baseline has no gap [1].
        low, high: crossed bootstrap; NaN where more than 2.5 % of its draws have no gap.
        no_gap: share of such draws; they have no part in the interval [1].
        runs: pairs.
    """

    value: float
    low: float
    high: float
    no_gap: float
    runs: int


def gap(results: SegmentationResults, name: str, domain: str) -> Compared:
    """Mean Dice on `test` less that on a domain, over the runs of a set.

    The bootstrap draws the images of the domain, and those of `test` within each fold.
    """
    keys = tuple(results.of_set(name))
    each = {key: test - run_means(results, name, domain)[key] for key, test in run_means(results, name, TEST).items()}
    runs, images = _run_weights(results, keys), _domain_weights(results, domain, name)
    drawn = _drawn_gap(results, name, domain, keys, runs, images)
    return _compared(each, drawn, images.shape[1])


def difference(results: SegmentationResults, name: str, other: str, domain: str) -> Compared:
    """Mean Dice on a domain of a set, less that of another, paired by fold and seed."""
    keys = _pairs(results, name, other)
    each = np.stack([_dice(results, name, domain, keys), _dice(results, other, domain, keys)])
    by_image = each[0] - each[1]
    images = _domain_weights(results, domain, name)
    drawn = _crossed(by_image, _run_weights(results, keys), images)
    return _compared(dict(zip(keys, map(float, by_image.mean(axis=1)), strict=True)), drawn, images.shape[1])


def closure(results: SegmentationResults, name: str, domain: str) -> Closed:
    """Share of the baseline's gap that a set closes: (Dice of the set - that of the baseline) / gap, ratio of means.

    Paired by fold and seed; runs, images of the domain, and those of `test` within each fold are drawn once for both
    parts of the ratio.
    """
    base = results.baseline
    keys = _pairs(results, name, base)
    gained = _dice(results, name, domain, keys) - _dice(results, base, domain, keys)
    test = run_means(results, base, TEST)
    lost = np.mean([test[key] for key in keys]) - _dice(results, base, domain, keys).mean()
    runs, images = _run_weights(results, keys), _domain_weights(results, domain, name)
    below = _drawn_gap(results, base, domain, keys, runs, images)
    drawn = _crossed(gained, runs, images)
    known = below > 0
    no_gap = 1 - float(known.mean())
    ends = (nan, nan)
    if lost > 0 and no_gap <= (1 - _LEVEL) / 2:
        interval = _percentiles(0.0, drawn[known] / below[known])
        ends = interval.low, interval.high
    return Closed(float(gained.mean() / lost) if lost > 0 else nan, *ends, no_gap, len(keys))


def _pairs(results: SegmentationResults, name: str, other: str) -> tuple[Key, ...]:
    """Folds and seeds that both sets have.

    Raises: InputError if there are none.
    """
    keys = tuple(key for key in results.of_set(name) if key in results.of_set(other))
    if not keys:
        raise InputError(f"sets: {name} and {other} have no fold and seed in common; train both with the same")
    return keys


def _dice(results: SegmentationResults, name: str, split: str, keys: Sequence[Key]) -> Float[np.ndarray, "r i"]:
    """Dice of every image by run [1].

    Raises: InputError if the runs were not judged on as many images.
    """
    of = results.of_set(name)
    found = [of[key].dice[split].astype(np.float64) for key in keys]
    if len({values.size for values in found}) > 1:
        raise InputError(f"runs: those of {name} were judged on different numbers of images of {split}")
    return np.stack(found)


def _compared(each: Mapping[Key, float], drawn: Float[np.ndarray, " d"], images: int) -> Compared:
    values, folds = np.array(list(each.values())), fold_means(each)
    value = float(values.mean())
    by_fold = over_draws(folds) if folds.size >= _FOLDS else Interval(float(folds.mean()), nan, nan)
    # one run and one image: nothing to draw from
    crossed = _percentiles(value, drawn) if values.size * images > 1 else Interval(value, nan, nan)
    favour = int((values > 0).sum())
    return Compared(value, over_draws(values), by_fold, crossed, values.size, favour, folds.size, images)


def _weights(results: SegmentationResults, n: int, stage: str) -> Float[np.ndarray, "d n"]:
    """How often each of n was drawn, over n; the same for one seed, n and stage, so that comparisons share draws."""
    rng = Streams(results.seed, 0).rng(f"bootstrap {stage}")
    return rng.multinomial(n, np.full(n, 1 / n), size=results.draws) / n


def _run_weights(results: SegmentationResults, keys: Sequence[Key]) -> Float[np.ndarray, "d r"]:
    """How often each run was drawn, as a share: folds first, then seeds within each drawn fold.

    Runs of a fold are alike, so that drawing them one by one would give too narrow an interval; with one fold that is
    all there is.
    """
    rng = Streams(results.seed, 0).rng("bootstrap runs")
    fold = np.array([of for of, _ in keys])
    names = np.unique(fold)
    times = rng.multinomial(names.size, np.full(names.size, 1 / names.size), size=results.draws)
    counts = np.zeros((results.draws, len(keys)))
    for name, drawn in zip(names, times.T, strict=True):
        n = int((fold == name).sum())
        counts[:, fold == name] = rng.multinomial(drawn * n, np.full(n, 1 / n))
    return counts / counts.sum(axis=1, keepdims=True)


def _domain_weights(results: SegmentationResults, domain: str, name: str) -> Float[np.ndarray, "d i"]:
    n = next(iter(results.of_set(name).values())).dice[domain].size
    return _weights(results, n, f"images {domain}")


def _crossed(
    values: Float[np.ndarray, "r i"], runs: Float[np.ndarray, "d r"], images: Float[np.ndarray, "d i"]
) -> Float[np.ndarray, " d"]:
    """Mean over runs and images of every draw.

    Source: Owen 2007, doi:10.1214/07-AOAS122 (rows and columns drawn independently; wide rather than narrow).
    """
    return np.asarray(np.sum((runs @ values) * images, axis=1))


def _drawn_gap(
    results: SegmentationResults,
    name: str,
    domain: str,
    keys: Sequence[Key],
    runs: Float[np.ndarray, "d r"],
    images: Float[np.ndarray, "d i"],
) -> Float[np.ndarray, " d"]:
    """Mean gap of every draw; the seeds of a fold share the drawn images of its `test`."""
    of = results.of_set(name)
    tests = [_weights(results, of[key].dice[TEST].size, f"images {TEST} {key[0]}") @ of[key].dice[TEST] for key in keys]
    return np.asarray(np.sum(runs * np.stack(tests, 1), axis=1)) - _crossed(
        _dice(results, name, domain, keys), runs, images
    )


def _percentiles(value: float, drawn: Float[np.ndarray, " d"]) -> Interval:
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
