"""Whether the uncertainty of an ensemble tells the Dice of an image: rank correlations, by set and domain."""

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from qsim.distributions import Streams
from qsim.evaluation.metrics import Interval
from qsim.evaluation.segmentation import Rank, spearman, spearman_by_cluster, spearman_within
from qsim.evaluation.studies.segmentation_results import Ensemble, SegmentationResults


class Followed(NamedTuple):
    """Spearman's correlation of a score with Dice.

    Attributes:
        set, domain, score: of what.
        by_fold: of each fold's ensemble.
        mean: over folds weighted by their images, with its bootstrap interval over images [1].
        averaged: of scores and Dice that were first averaged over folds, image by image; where each fold has its own
            images, of the images of all folds together [1].
        images: that differ.
    """

    set: str
    domain: str
    score: str
    by_fold: tuple[tuple[int, Rank], ...]
    mean: Interval
    averaged: Interval
    images: int


def followed(results: SegmentationResults, name: str, domain: str, score: str) -> Followed | None:
    """How a score follows Dice, or None if no ensemble has it.

    The networks are fixed: intervals say what other images would give, not what other networks would.
    """
    of = ensembles_of(results, name, domain)
    of = [each for each in of if score in each.scores]
    if not of:
        return None
    same = shared_images(of)
    x, y = [each.scores[score].astype(np.float64) for each in of], [each.dice.astype(np.float64) for each in of]
    place, n = [], 0
    for each in of:
        place.append(np.arange(len(each.names)) + n)
        n += 0 if same else len(each.names)
    fold = np.concatenate([np.full(len(each.names), each.fold) for each in of])
    image = np.concatenate(place)
    by_fold = tuple((each.fold, spearman(a, b)) for each, a, b in zip(of, x, y, strict=True))
    mean = _interval(results, np.concatenate(x), np.concatenate(y), image, fold)
    together = [np.mean(v, axis=0) if same else np.concatenate(v) for v in (x, y)]
    alone = np.arange(together[0].size)
    averaged = _interval(results, together[0], together[1], alone, np.zeros_like(alone))
    return Followed(name, domain, score, by_fold, mean, averaged, images_of(of))


def ensembles_of(results: SegmentationResults, name: str, domain: str) -> list[Ensemble]:
    """By fold."""
    return sorted((e for e in results.ensembles if (e.set, e.domain) == (name, domain)), key=lambda e: e.fold)


def shared_images(of: Sequence[Ensemble]) -> bool:
    """Whether all folds were shown the same images."""
    return all(each.names == of[0].names for each in of)


def images_of(of: Sequence[Ensemble]) -> int:
    """How many different images the folds were shown."""
    return of[0].dice.size if shared_images(of) else sum(each.dice.size for each in of)


def _interval(
    results: SegmentationResults,
    x: Float[np.ndarray, " i"],
    y: Float[np.ndarray, " i"],
    image: Int[np.ndarray, " i"],
    fold: Int[np.ndarray, " i"],
) -> Interval:
    rho = spearman_within(x, y, fold)[0].rho
    known = ~np.isnan(x) & ~np.isnan(y)
    if np.isnan(rho) or np.unique(image[known]).size < 2:
        return Interval(rho, nan, nan)
    # the same images are drawn for every set and score
    rng = Streams(results.seed, 0).rng("bootstrap ranks")
    found = spearman_by_cluster(x, y, image, rng, results.draws, group=fold)
    return Interval(found.rho, found.low, found.high)
