"""What a study of image quality has found: figures of every image by model, and what follows from them.

The names of the figures are those of `trainers.studies.quality_answers`. A rank correlation with Dice is over clean and
corrupted images; with the change of Dice from the clean twin over corrupted images only, as it is 0 on clean ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from qsim.distributions import Streams
from qsim.evaluation.segmentation import (
    diagonal_leads,
    leakage,
    paper_volume_error,
    spearman,
    spearman_by_cluster,
    spearman_within,
)
from qsim.evaluation.uncertainty import half_width

TOTAL = "variance_artefacts"
# what tables and headlines compare, as far as a study has it
COMPARED = (
    TOTAL,
    f"body_{TOTAL}",
    f"ratio_{TOTAL}",
    "variance_task",
    "entropy",
    "ratio_entropy",
    "dropout_variance",
    "dropout_mutual",
    "ensemble_entropy",
    "ensemble_mutual",
    "ensemble_variance",
    "snr_predicted",
    "cnr_pooled_predicted",
    "cnr_difference_predicted",
    "snr_true",
    "cnr_pooled_true",
    "cnr_difference_true",
)
# those whose intervals are drawn in each kind too: a bootstrap of all would take minutes
_IN_EACH_KIND = (TOTAL, f"ratio_{TOTAL}", "entropy")
Against = Literal["dice", "dice_change"]
CLEAN, ALL_KINDS, WITHIN = "clean", "all", "within"


@dataclass(frozen=True, slots=True)
class Seen:
    """Which images were shown, a row each.

    Attributes:
        image: number of the image.
        kind: 0: clean; else 1 + number of the source of the test.
        repeat: number of the draw; of a ladder, the rung.
        severity: of the artefact, 0 where there is none.
    """

    image: Int[np.ndarray, " i"]
    kind: Int[np.ndarray, " i"]
    repeat: Int[np.ndarray, " i"]
    severity: Float[np.ndarray, " i"]


@dataclass(frozen=True, slots=True)
class Example:
    """A slice of an image, clean or with an artefact.

    Attributes:
        kind: `clean`, or the source.
        image: of the order of 1.
        truth, predicted: voxels of the target.
        variances: of the logits, by source, the task first [1].
    """

    kind: str
    image: Float[np.ndarray, "y x"]
    truth: Bool[np.ndarray, "y x"]
    predicted: Bool[np.ndarray, "y x"]
    variances: Mapping[str, Float[np.ndarray, "y x"]]


@dataclass(frozen=True, slots=True)
class QualityResults:
    """All that a report is made of.

    Attributes:
        target: the tissue.
        kinds: sources of the test.
        names: of the images.
        anatomy: number of the subject of each image.
        measured: whether it is no digital image.
        seen: rows of the test.
        figures: by model and name, a number per row; NaN where it has none.
        sources: of each model's variances, without the task.
        ladder_seen, ladder: the same of the ladder; a clean row is the image without artefacts; empty: no ladder.
        examples: by model.
        seed, draws: of the bootstrap.
        members, samples: networks of each model's ensemble, its draws of dropout.
    """

    target: str
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    anatomy: Int[np.ndarray, " n"]
    measured: Bool[np.ndarray, " n"]
    seen: Seen
    figures: Mapping[str, Mapping[str, Float[np.ndarray, " i"]]]
    sources: Mapping[str, tuple[str, ...]]
    ladder_seen: Seen
    ladder: Mapping[str, Mapping[str, Float[np.ndarray, " l"]]]
    examples: Mapping[str, tuple[Example, ...]]
    seed: int
    draws: int
    members: Mapping[str, int]
    samples: Mapping[str, int]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.figures)

    @property
    def groups(self) -> dict[str, Bool[np.ndarray, " i"]]:
        """Rows of digital and of measured images, which are never pooled."""
        of_row = self.measured[self.seen.image]
        rows = {"digital": ~of_row, "measured": of_row}
        return {name: there for name, there in rows.items() if there.any()}

    @property
    def main(self) -> str:
        """The group that headlines are of."""
        return next(iter(self.groups))

    @property
    def of_anatomy(self) -> Int[np.ndarray, " i"]:
        return self.anatomy[self.seen.image]

    def kind_name(self, kind: int) -> str:
        return CLEAN if kind == 0 else self.kinds[kind - 1]

    def has(self, model: str, figure: str) -> bool:
        """Whether any image has the figure."""
        return figure in self.figures[model] and bool(np.isfinite(self.figures[model][figure]).any())


def with_twins(seen: Seen, figures: Mapping[str, Float[np.ndarray, " i"]]) -> dict[str, Float[np.ndarray, " i"]]:
    """Figures with what needs the clean image: the change of Dice, and the paper's error bar.

    `volume_paper_sd` is 0 where the clean image is the more uncertain one, and on clean images themselves.
    """
    twin = twins(seen)
    found = dict(figures)
    found["dice_clean"] = figures["dice"][twin]
    found["dice_change"] = figures["dice"] - found["dice_clean"]
    found["volume_paper_sd"] = np.array(
        [
            paper_volume_error(np.array([own]), float(clean), float(voxel)).sd
            for own, clean, voxel in zip(
                figures["entropic"], figures["entropic"][twin], figures["voxel_mm3"], strict=True
            )
        ]
    )
    return found


def twins(seen: Seen) -> Int[np.ndarray, " i"]:
    """Row of the clean image of every row."""
    clean = {int(seen.image[row]): int(row) for row in np.flatnonzero(seen.kind == 0)}
    return np.array([clean[int(image)] for image in seen.image], dtype=np.int64)


class Correlation(NamedTuple):
    """A rank correlation of one figure.

    Attributes:
        scope: `all` kinds pooled, `within` (mean of the kinds, weighted by their images), or one kind.
        rho, p, low, high: with p of independent images, and the interval over anatomies [1].
        n, anatomies: images and their subjects.
    """

    model: str
    group: str
    figure: str
    against: Against
    scope: str
    rho: float
    p: float
    low: float
    high: float
    n: int
    anatomies: int


def correlations(results: QualityResults) -> list[Correlation]:
    """Of every figure of every model, pooled, within the kinds, and in each kind."""
    found = []
    for group, rows in results.groups.items():
        for model in results.models:
            for figure in COMPARED:
                if results.has(model, figure):
                    found += list(_of_figure(results, group, rows, model, figure))
    return found


def _of_figure(
    results: QualityResults, group: str, rows: Bool[np.ndarray, " i"], model: str, figure: str
) -> Iterator[Correlation]:
    x = results.figures[model][figure]
    pairs: tuple[tuple[Against, Bool[np.ndarray, " i"]], ...] = (
        ("dice", rows),
        ("dice_change", rows & (results.seen.kind > 0)),
    )
    for against, of in pairs:
        y = results.figures[model][against]
        kind, anatomy = results.seen.kind, results.of_anatomy
        scopes: list[tuple[str, Bool[np.ndarray, " i"]]] = [(ALL_KINDS, of), (WITHIN, of & (kind > 0))]
        scopes += [(name, of & (kind == number)) for number, name in enumerate(results.kinds, 1)]
        for scope, there in scopes:
            if not there.any():
                continue
            if scope == WITHIN:
                rank, _ = spearman_within(x[there], y[there], kind[there])
            else:
                rank = spearman(x[there], y[there])
            low = high = nan
            valid = there & ~np.isnan(x) & ~np.isnan(y)
            anatomies = len(np.unique(anatomy[valid]))
            if anatomies > 1 and (scope in (ALL_KINDS, WITHIN) or figure in _IN_EACH_KIND):
                # the same anatomies are drawn for every figure and model
                interval = spearman_by_cluster(
                    *(x[there], y[there], anatomy[there]),
                    Streams(results.seed, 0).rng("bootstrap"),
                    results.draws,
                    group=kind[there] if scope == WITHIN else None,
                )
                low, high = interval.low, interval.high
            yield Correlation(model, group, figure, against, scope, rank.rho, rank.p, low, high, rank.n, anatomies)


def leakage_of(
    results: QualityResults, model: str, group: str, prefix: str = ""
) -> tuple[Float[np.ndarray, "s k"], Bool[np.ndarray, " s"]] | None:
    """Rise of every head on every artefact of the test, and whether a head's own is the largest of its row.

    Rows are the model's sources, columns the kinds of the test. None where the SD between clean images is unknown.

    Args:
        prefix: of the figures: empty, `body_` or `ratio_`.
    """
    sources, rows = results.sources[model], results.groups[group]
    if not sources:
        return None
    mean = np.stack([results.figures[model][f"{prefix}variance_{name}"] for name in sources], 1)
    known = rows & np.isfinite(mean).all(1)
    clean = mean[twins(results.seen)]
    known &= np.isfinite(clean).all(1)
    kind = np.array([0, *(1 + sources.index(name) for name in results.kinds)])[results.seen.kind]
    if len(np.unique(clean[known], axis=0)) < 2:
        return None
    matrix = leakage(mean[known], clean[known], kind[known])
    leads = diagonal_leads(matrix)
    columns = [sources.index(name) for name in results.kinds]
    return matrix[:, columns], leads


def auc(corrupted: Float[np.ndarray, " a"], clean: Float[np.ndarray, " b"]) -> float:
    """Share of pairs in which the corrupted image has the larger figure, ties half: area under the ROC curve [1].

    Source: Mann and Whitney 1947, doi:10.1214/aoms/1177730491.
    """
    n, m = corrupted.size, clean.size
    if not n or not m:
        return nan
    ranks = rankdata(np.concatenate([corrupted, clean]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def aucs(results: QualityResults, model: str, group: str) -> dict[str, tuple[float, float]]:
    """By kind: of its own head, and of the variance of all artefacts, against clean images."""
    rows, kind = results.groups[group], results.seen.kind
    found = {}
    for number, name in enumerate(results.kinds, 1):
        of = [results.figures[model][figure] for figure in (f"variance_{name}", TOTAL)]
        own, total = (auc(each[rows & (kind == number)], each[rows & (kind == 0)]) for each in of)
        found[name] = own, total
    return found


class Coverage(NamedTuple):
    """How often intervals of 95 % (or of the calibration's level) hold the true volume.

    Attributes:
        held: share [%].
        width: mean over images, of the true volume [%].
        n: images that have an interval.
    """

    held: float
    width: float
    n: int


def interval_of(
    figures: Mapping[str, Float[np.ndarray, " i"]], form: str
) -> tuple[Float[np.ndarray, " i"], Float[np.ndarray, " i"]]:
    """Ends of the intervals of volumes, `paper` (95 %, Gaussian) or `calibrated` [mm^3]; NaN where there is none."""
    if form == "calibrated":
        none = np.full_like(figures["dice"], nan)
        return figures.get("volume_low", none), figures.get("volume_high", none)
    half = half_width(1.0, 0.95) * figures["volume_paper_sd"]
    return figures["volume_predicted"] - half, figures["volume_predicted"] + half


def coverage(results: QualityResults, model: str, group: str, form: str) -> dict[str, Coverage]:
    """By kind; `clean` and `all` among them."""
    figures, rows, kind = results.figures[model], results.groups[group], results.seen.kind
    low, high = interval_of(figures, form)
    true = figures["volume_true"]
    scopes = {ALL_KINDS: rows, **{results.kind_name(k): rows & (kind == k) for k in range(len(results.kinds) + 1)}}
    found = {}
    for name, there in scopes.items():
        known = there & np.isfinite(low) & np.isfinite(high)
        if known.any():
            held = (low[known] <= true[known]) & (true[known] <= high[known])
            width = ((high - low) / true)[known]
            found[name] = Coverage(100 * float(held.mean()), 100 * float(width.mean()), int(known.sum()))
    return found
