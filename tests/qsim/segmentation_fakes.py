"""Results of a study of segmentation across domains: made up, either by hand or drawn from a simple model."""

from math import log

import numpy as np

from qsim.evaluation.studies.segmentation_results import TEST, TRAIN, Ensemble, Run, SegmentationResults, Shown

SETS = ("A rotation and scaling", "B additional", "C physics")


def by_hand(dice, **changes):
    """Results of runs whose every Dice is given: {set: {(fold, seed): {split: values}}}."""
    runs = tuple(
        Run(name, fold, seed, {split: np.asarray(values, dtype=float) for split, values in splits.items()})
        for name, of in dice.items()
        for (fold, seed), splits in of.items()
    )
    given = {
        "train_domain": "T1",
        "domains": tuple(s for s in runs[0].dice if s not in (TRAIN, TEST)),
        "sets": tuple(dice),
        "folds": tuple(sorted({run.fold for run in runs})),
        "n_folds": 5,
        "seeds": len({run.seed for run in runs}),
        "runs": runs,
        "ensembles": (),
        "shown": (),
        "curves": {},
        "baseline": next(iter(dice)),
        "draws": 500,
        "seed": 7,
        "members": 1,
        "samples": 1,
        "seconds": {},
    }
    return SegmentationResults(**{**given, **changes})


def drawn(
    sets=SETS, folds=3, seeds=3, domains=("T1rho", "T2"), images=(15, 24), tests=26, shown=True, draws=500, seed=0
):
    """Like the paper's: the baseline loses on the domains, the other sets less; harder images are less certain."""
    rng = np.random.default_rng(seed)
    means = {TRAIN: (0.96, 0.90, 0.90), TEST: (0.80, 0.83, 0.84), "T1rho": (0.56, 0.64, 0.70), "T2": (0.68, 0.74, 0.78)}
    hard = {domain: rng.normal(0, 0.09, n) for domain, n in zip(domains, images, strict=False)}
    runs, ensembles = [], []
    for s, name in enumerate(sets):
        for fold in range(folds):
            own = {TEST: np.random.default_rng(fold).normal(0, 0.06, tests), **hard}
            of_fold = rng.normal(0, 0.015)
            for number in range(seeds):
                dice = {TRAIN: np.clip(means[TRAIN][min(s, 2)] + rng.normal(0, 0.015, 105), 0, 1)}
                for split, difficulty in own.items():
                    noise = rng.normal(0, 0.03, difficulty.size) + rng.normal(0, 0.015)
                    dice[split] = np.clip(means[split][min(s, 2)] + of_fold + difficulty + noise, 0, 1)
                runs.append(Run(name, fold, number, dice))
            for split, difficulty in own.items():
                if seeds < 2:
                    continue
                found = np.mean([run.dice[split] for run in runs[-seeds:]], axis=0) + 0.01
                doubt = np.clip(0.9 * (1 - found) + rng.normal(0, 0.05, difficulty.size), 0.01, 1)
                scores = {
                    "disagreement": doubt,
                    "entropy_per_target": 0.8 * doubt + 0.1,
                    "mutual_per_target": doubt / 3,
                }
                names = tuple(f"{split} {fold if split == TEST else ''}/{i}" for i in range(difficulty.size))
                ensembles.append(Ensemble(name, fold, split, names, found, scores))
    epochs = np.arange(1, 61)
    curves = {name: 0.05 * (s + 1) + 0.7 * np.exp(-epochs / (6 + 4 * s)) for s, name in enumerate(sets)}
    pictures = [
        picture(name, domain, which, seed=10 * s + d) for s, name in enumerate(sets) for d, domain in enumerate(domains)
        for which in ("best", "worst")
    ]  # fmt: skip
    return SegmentationResults(
        "T1", tuple(domains), tuple(sets), tuple(range(folds)), 5, seeds, tuple(runs), tuple(ensembles),
        tuple(pictures) if shown else (), curves, sets[0], draws, 3, seeds, 1,
        {"loader_per_image": 0.012, "step_per_image": 0.34},
    )  # fmt: skip


def picture(name, domain, which, size=96, seed=0):
    """A ring, and one that is shifted: far for the worst."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2

    def ring(dy, dx):
        radius = np.hypot(y - dy, x - dx)
        return (radius > 0.11 * size) & (radius < 0.19 * size)

    shift = 1.0 if which == "best" else 6.0
    truth, predicted = ring(4, -3), ring(4 + shift, -3 + shift)
    inside = np.exp(-((np.hypot(y, x) / (0.42 * size)) ** 6))
    image = inside * (0.35 + 0.3 * truth + 0.05 * rng.normal(size=truth.shape)) + 0.02 * rng.random(truth.shape)
    entropy = log(2) * np.clip(0.9 * (truth ^ predicted) + 0.05 * rng.random(truth.shape), 0, 1)
    dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
    return Shown(name, domain, which, f"subject {seed:02d}", float(dice), image, truth, predicted, entropy)
