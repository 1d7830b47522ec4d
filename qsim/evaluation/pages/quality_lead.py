"""The first sentences of a page of `quality`, what limits it, and its equations and sources."""

from collections.abc import Callable

import numpy as np
from markupsafe import Markup

from qsim.evaluation.pages.heat_report import Words
from qsim.evaluation.pages.quality_ranks import Held, with_interval
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.quality_results import (
    ALL_KINDS,
    TOTAL,
    WITHIN,
    Against,
    Correlation,
    QualityResults,
    coverage,
    leakage_of,
)


def lead(results: QualityResults, held: Held) -> list[Words]:
    """What came out, model by model: rank correlations, leakage, intervals of volumes."""
    return [each for model in results.models for each in _of_model(results, held, model)]


def limits(results: QualityResults) -> list[str]:
    """What too few anatomies do to correlations and their intervals."""
    found = []
    n = len(np.unique(results.of_anatomy[results.groups[results.main]]))
    if n < 2:
        found.append("One anatomy: there are no intervals, and no correlation says anything of other anatomies.")
    elif n < 20:
        found.append(f"{n} anatomies: intervals that are drawn from so few are too narrow.")
    return found


def _of_model(results: QualityResults, held: Held, model: str) -> list[Words]:
    group = results.main

    def rho(figure: str, against: Against = "dice", scope: str = ALL_KINDS) -> Correlation | None:
        return held.get((model, group, figure, against, scope))

    lines: list[Words] = []
    pooled, within, change = rho(TOTAL), rho(TOTAL, scope=WITHIN), rho(TOTAL, "dice_change")
    if pooled is not None:
        text = Markup("<b>{}</b>: the mean artefact variance follows Dice with Spearman ρ = {}").format(
            model, with_interval(pooled)
        )
        if within is not None:
            text += Markup(", {} within artefacts").format(number(within.rho))
        if change is not None:
            text += Markup(", {} with the Dice that an image lost against its clean twin").format(number(change.rho))
        lines.append(text + Markup(" ({} images, {} anatomies). ").format(pooled.n, pooled.anatomies) + _others(rho))
    matrix = leakage_of(results, model, group)
    if matrix is not None:
        of, leads = len(matrix[1]), int(matrix[1].sum())
        wrong = [name for name, leading in zip(results.sources[model], matrix[1], strict=True) if not leading]
        text = Markup("{} of {} heads answer to their own artefact most").format(
            "All" if leads == of else leads or "None", of
        )
        lines.append(text + Markup(" (not {}).").format(", ".join(wrong)) if wrong else text + ".")
    lines += _volumes(results, model, group)
    return lines


def _others(rho: Callable[[str], Correlation | None]) -> Markup:
    """The figures that quality work compares with, beside it."""
    parts = []
    for figure, words in (
        ("entropy", "softmax entropy"),
        ("dropout_mutual", "dropout"),
        ("ensemble_mutual", "ensemble"),
        ("snr_predicted", "SNR"),
        ("cnr_pooled_predicted", "CNR (predicted labels)"),
        ("cnr_pooled_true", "CNR (true labels)"),
    ):
        one = rho(figure)
        if one is not None and np.isfinite(one.rho):
            parts.append(f"{words} {number(one.rho)}")
    return Markup("On the same images: {}.").format(", ".join(parts)) if parts else Markup("")


def _volumes(results: QualityResults, model: str, group: str) -> list[Words]:
    paper = coverage(results, model, group, "paper").get(ALL_KINDS)
    own = coverage(results, model, group, "calibrated").get(ALL_KINDS)
    if paper is None:
        return []
    said = Markup("the paper's error bars (± 1.96 σ) in {} %").format(number(paper.held))
    if own is None:
        return [Markup("Volumes: the truth lies within ") + said + "; the model has no calibration of volumes."]
    return [
        Markup("Volumes: calibrated intervals hold the truth in {} % of the images at a mean width of {} %, ").format(
            number(own.held), number(own.width)
        )
        + said
        + "."
    ]


METHODS: list[tuple[str, Words]] = [
    (
        "images",
        "every image clean, and once per draw with one artefact of each source; the image that the network sees is the "
        "modulus. Labels are those of the clean image.",
    ),
    (
        "artefact variance",
        "mean over all voxels of the sum of the variances of all heads but the task's (shaw2021 Eq. 9). In the body: "
        "over voxels above a tenth of the largest of the clean image. / target share: divided by the share of voxels "
        "that are segmented, which takes out how much of the image the tissue fills.",
    ),
    (
        "Dice",
        "of the model's own labels, for every figure: those of dropout and ensembles too are judged by how well they "
        "tell the quality of that one segmentation. 2 |A ∩ B| / (|A| + |B|).",
    ),
    (
        "SNR, CNR",
        "Eq. 10: mean of grey matter over its SD. Eq. 11: pooled, |mean − mean| over the root mean variance of both; "
        "difference, |SNR − SNR|. With predicted labels as a user has them, and with true ones. CNR with predicted "
        "labels needs a model that segments white matter too.",
    ),
    (
        "entropy, dropout, ensemble",
        "mean over the image of the entropy of the softmax [nats]; of the spread of the target's probability, and the "
        "mutual information H(mean p) − mean H(p), between draws of dropout (Gal and Ghahramani 2016) or members of an "
        "ensemble (Lakshminarayanan et al. 2017).",
    ),
    (
        "intervals of ρ",
        "percentiles of the bootstrap over anatomies, each drawn with all its images (Davison and Hinkley 1997, "
        "doi:10.1017/CBO9780511802843, section 3.8).",
    ),
    (
        "volumes",
        "predicted: sum of probabilities. Paper: σ = voxel √(Σ exp(2H) / (2πe) − that of the clean image), H of the "
        "softmax of logits / variance (Eq. 8). Calibrated: fitted to held-out images of the training run, see "
        "qsim.evaluation.segmentation.volume_calibration.",
    ),
]
