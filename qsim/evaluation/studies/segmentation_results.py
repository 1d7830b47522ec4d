"""What a study of segmentation across domains has found: Dice of every image, and what follows from it.

A *run* is one network: a set of augmentations, a fold and a seed. Runs of one fold saw the same training images, so
they are no independent repeats of a study: SD are given over folds too, and intervals over fold means where there are
three folds or more. All runs are judged on the same images of a domain; on `test` each fold has its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

TRAIN, TEST = "train", "test"
SCORES = ("disagreement", "entropy_per_target", "mutual_per_target")
# fold and seed
Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """One network.

    Attributes:
        set: of augmentations.
        fold, seed: of the training.
        dice: by split, one value per image [1].
    """

    set: str
    fold: int
    seed: int
    dice: Mapping[str, Float[np.ndarray, " _"]]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """All networks of a set and a fold together, on the images of a domain.

    Attributes:
        domain: `test`, or a domain.
        names: of the images.
        dice: of the voxels whose mean probability is at least 0.5 [1].
        scores: uncertainty of each image, by name: `disagreement` [1], the others [nats].
    """

    set: str
    fold: int
    domain: str
    names: tuple[str, ...]
    dice: Float[np.ndarray, " i"]
    scores: Mapping[str, Float[np.ndarray, " i"]]


@dataclass(frozen=True, slots=True)
class Shown:
    """An image with what was found in it.

    Attributes:
        which: of all images of the domain, by Dice.
        image: any unit.
        truth, predicted: voxels of the target.
        entropy: of the mean probability [nats].
    """

    set: str
    domain: str
    which: Literal["best", "worst"]
    name: str
    dice: float
    image: Float[np.ndarray, "y x"]
    truth: Bool[np.ndarray, "y x"]
    predicted: Bool[np.ndarray, "y x"]
    entropy: Float[np.ndarray, "y x"]


@dataclass(frozen=True, slots=True)
class SegmentationResults:
    """All that a report is made of.

    Attributes:
        train_domain: where the networks learnt.
        domains: that they were tested in besides `test`, the headline's first.
        sets: of augmentations, in the order of the tables.
        folds: those that were trained, of `n_folds`.
        seeds: runs of each set and fold.
        runs, ensembles, shown: what was found.
        curves: mean training loss by set and epoch [1].
        baseline: the set that others are held against.
        draws, seed: of the bootstrap.
        members, samples: networks of an ensemble, and passes with dropout of each.
        seconds: CPU time of training, `loader_per_image` and `step_per_image` [s].
    """

    train_domain: str
    domains: tuple[str, ...]
    sets: tuple[str, ...]
    folds: tuple[int, ...]
    n_folds: int
    seeds: int
    runs: tuple[Run, ...]
    ensembles: tuple[Ensemble, ...]
    shown: tuple[Shown, ...]
    curves: Mapping[str, Float[np.ndarray, " _"]]
    baseline: str
    draws: int
    seed: int
    members: int
    samples: int
    seconds: Mapping[str, float]

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that every run was judged on."""
        return tuple(s for s in (TRAIN, TEST, *self.domains) if all(s in run.dice for run in self.runs))

    def of_set(self, name: str) -> dict[Key, Run]:
        """Runs of a set by fold and seed, in their order."""
        return {(r.fold, r.seed): r for r in sorted(self.runs, key=lambda r: (r.fold, r.seed)) if r.set == name}

    def role(self, letter: Literal["A", "B", "C"]) -> str | None:
        """The set that stands for one of jacobs2025 (A, B) or for B with physics (C).

        By the letter that names begin with (`B additional`); where no name does, the first, second and third set.
        """
        letters = {found[0]: name for name in reversed(self.sets) if (found := re.match(r"[ABC]\b", name))}
        if not letters:
            letters = dict(zip("ABC", self.sets, strict=False))
        return letters.get(letter)


class Cell(NamedTuple):
    """Dice of a set on a split.

    Attributes:
        mean: over runs of a run's mean [1].
        sd_folds: over folds, of the mean over a fold's seeds; NaN with one fold [1].
        sd_runs: over runs [1].
        runs, folds: how many.
        images: of one run, least and most.
    """

    mean: float
    sd_folds: float
    sd_runs: float
    runs: int
    folds: int
    images: tuple[int, int]


def run_means(results: SegmentationResults, name: str, split: str) -> dict[Key, float]:
    """Mean Dice over the images of a split, of every run of a set [1]."""
    return {key: float(run.dice[split].mean()) for key, run in results.of_set(name).items()}


def fold_means(by_run: Mapping[Key, float]) -> Float[np.ndarray, " f"]:
    """Mean over the seeds of each fold."""
    folds = sorted({fold for fold, _ in by_run})
    return np.array([np.mean([value for (of, _), value in by_run.items() if of == fold]) for fold in folds])


def cell(results: SegmentationResults, name: str, split: str) -> Cell:
    """Table C6: mean, SD over folds and over runs."""
    means = run_means(results, name, split)
    sizes = [run.dice[split].size for run in results.of_set(name).values()]
    if not means:
        return Cell(nan, nan, nan, 0, 0, (0, 0))
    values, folds = np.array(list(means.values())), fold_means(means)
    return Cell(
        float(values.mean()), _sd(folds), _sd(values), values.size, folds.size, (int(min(sizes)), int(max(sizes)))
    )


def _sd(values: Float[np.ndarray, " r"]) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else nan
