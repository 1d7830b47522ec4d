"""The page of a `quality` study: do variances tell how good an image is for the segmentation, and what spoils it?"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from qsim.evaluation.pages.heat_report import Block, Heading, Page, Picture, Points, Section, Text, Words
from qsim.evaluation.pages.quality_figures import (
    WORDS,
    box_figure,
    example_figure,
    forest_figure,
    ladder_figure,
    leakage_figure,
    scatter_figure,
)
from qsim.evaluation.pages.quality_lead import METHODS, lead, limits
from qsim.evaluation.pages.quality_paper import beside_paper
from qsim.evaluation.pages.quality_ranks import Held, by_name, rank_table, with_interval
from qsim.evaluation.pages.quality_tables import dice_table, interval_table, measured_table
from qsim.evaluation.studies.quality_results import (
    ALL_KINDS,
    TOTAL,
    WITHIN,
    Against,
    Correlation,
    QualityResults,
    leakage_of,
)

# examples and scatter plots of more models would make the page heavy
_DRAWN_MODELS = 2


def quality_page(results: QualityResults, found: Sequence[Correlation], notes: Sequence[str]) -> Page:
    """The page, without config, versions and digest.

    Args:
        found: of `correlations`.
        notes: what limits the study, a sentence each.
    """
    held = by_name(found)
    digital = int((~results.measured).sum())
    images = f"{digital} digital images of {len(np.unique(results.anatomy[~results.measured]))} anatomies"
    measured = f", {int(results.measured.sum())} measured" if results.measured.any() else ""
    return Page(
        title="Quality of images, told by the uncertainty of their segmentation",
        meta=f"{results.target} by {', '.join(results.models)} · {images}{measured} · clean and with "
        f"{', '.join(results.kinds)} · {len(results.seen.image)} images in all · seed {results.seed}",
        lead=lead(results, held),
        sections=_sections(results, found, held),
        methods=METHODS,
        versions={},
        files="images.csv (every figure of every image) and results.csv (what is on this page) beside it",
        config="",
        digest="",
        warnings=[*notes, *limits(results)],
    )


def _sections(results: QualityResults, found: Sequence[Correlation], held: Held) -> list[Section]:
    group = results.main
    sections = [
        Section("Which figure follows Dice", _ranks(results, found, held, group)),
        Section("Beside the paper", beside_paper(results, held, group)),
    ]
    for i, model in enumerate(results.models):
        title = f"{model}: " if len(results.models) > 1 else ""
        folded = i >= _DRAWN_MODELS
        if not folded:
            sections.append(Section(f"{title}Images and their figures", _plots(results, held, model, group)))
        sections.append(Section(f"{title}Which artefact", _heads(results, model, group), folded=folded))
        if not folded and results.examples.get(model):
            sections.append(Section(f"{title}Where it is", _examples(results, model)))
        sections.append(Section(f"{title}Volume and its error bars", _volumes(results, model, group), folded=folded))
    if "measured" in results.groups and group != "measured":
        sections.append(Section("Measured images", _measured(results, held)))
    return sections


def _ranks(results: QualityResults, found: Sequence[Correlation], held: Held, group: str) -> list[Block]:
    return [
        Heading("Rank correlations with Dice"),
        Text(
            "Spearman's ρ of each figure, points, with 95 % intervals over anatomies, lines. The further from 0 the "
            "better; uncertainties should be negative, SNR and CNR positive. Left: all images, clean and corrupted; "
            "anatomy and the kind of artefact have a part in it. Middle: within each artefact, the mean over these. "
            "Right: corrupted images against the Dice they lost, in which anatomy has no part.",
            soft=True,
        ),
        Picture(forest_figure(results, found, group), "Spearman's rho of every figure with Dice"),
        Text(
            "ρ with its interval, and p for independent images below (images of one anatomy are not independent, so "
            "the intervals say more). Marked: the strongest of a model in the right direction.",
            soft=True,
        ),
        rank_table(
            results,
            held,
            group,
            [
                ("Dice, all images", "dice", ALL_KINDS),
                ("Dice, within artefacts", "dice", WITHIN),
                ("change of Dice, all", "dice_change", ALL_KINDS),
                ("change of Dice, within", "dice_change", WITHIN),
            ],
        ),
        Heading("Rank correlations with Dice in each artefact"),
        Text("As above, corrupted images of one artefact alone: anatomy and severity are all that differs.", soft=True),
        rank_table(results, held, group, [(kind, "dice", kind) for kind in results.kinds]),
    ]


def _plots(results: QualityResults, held: Held, model: str, group: str) -> list[Block]:
    cnr = "cnr_pooled_predicted" if results.has(model, "cnr_pooled_predicted") else "cnr_pooled_true"
    shown = [name for name in (TOTAL, "entropy", "snr_predicted", cnr) if results.has(model, name)]

    def rho(against: Against) -> dict[str, float]:
        keys = ((name, held.get((model, group, name, against, ALL_KINDS))) for name in WORDS)
        return {name: one.rho for name, one in keys if one is not None}

    blocks: list[Block] = [
        Heading("Dice against what tells the quality of an image"),
        Text(
            "One point per image, grey without artefact. A figure that tells quality puts the points on one falling "
            "(uncertainty) or rising (SNR, CNR) line, whatever the artefact.",
            soft=True,
        ),
        Picture(scatter_figure(results, model, group, shown, "dice", rho("dice")), f"Dice against figures, {model}"),
    ]
    paired = [name for name in (TOTAL, f"ratio_{TOTAL}", "entropy") if results.has(model, name)]
    blocks += [
        Heading("Change of Dice from the clean image"),
        Text("The same for corrupted images alone, each against its clean twin: what the artefact cost.", soft=True),
        Picture(
            scatter_figure(results, model, group, paired, "dice_change", rho("dice_change")),
            f"change of Dice against figures, {model}",
        ),
        Heading("Clean against corrupted"),
        Text(
            "Boxes: quartiles and median; whiskers: 5 to 95 %; points: images. Dotted: median of the clean images.",
            soft=True,
        ),
        Picture(box_figure(results, model, group), f"boxes of clean and corrupted images, {model}"),
    ]
    return blocks


def _heads(results: QualityResults, model: str, group: str) -> list[Block]:
    panels = {}
    for prefix, title in (("", "over the image"), ("body_", "in the body"), ("ratio_", "by share of target")):
        matrix = leakage_of(results, model, group, prefix)
        if matrix is not None:
            panels[title] = results.sources[model], matrix[0]
    blocks: list[Block] = []
    if panels:
        blocks += [
            Heading("Leakage of the heads"),
            Text(
                "Mean variance of a head (row) on images of an artefact (column), less that on their clean twins, in "
                "SD of that head between clean images. Framed: the head's own artefact, which should be the largest of "
                "its row. Blue: the head falls. The colour scale is linear to 1 and logarithmic beyond.",
                soft=True,
            ),
            Picture(leakage_figure(results, panels), f"leakage matrices of {model}"),
        ]
    blocks += [
        Heading("Dice, and clean told from corrupted"),
        Text(
            "Area under the ROC curve: how often a corrupted image has the larger mean variance than a clean one, of "
            "the artefact's own head and of all heads together; 0.5 is chance. Every pair of images counts, whatever "
            "their anatomies.",
            soft=True,
        ),
        dice_table(results, model, group),
    ]
    return blocks


def _examples(results: QualityResults, model: str) -> list[Block]:
    return [
        Heading(f"One slice of {results.names[0]}, clean and with each artefact"),
        Text(
            "Error: voxels wrongly taken for the target, orange; missed ones, blue. Then the variance of every head. "
            "One scale for the task, one for all artefact heads, so that rows and heads can be compared. A good head "
            "is dark in all rows but its own, and bright where the artefact harms the segmentation.",
            soft=True,
        ),
        Picture(example_figure(results.examples[model]), f"slices with their variances, {model}"),
    ]


def _volumes(results: QualityResults, model: str, group: str) -> list[Block]:
    blocks: list[Block] = [
        Heading("Intervals that hold the true volume"),
        Text(
            "Share of images whose interval holds the true volume, beside the mean width of the intervals in % of it. "
            "The paper's error bar is Eq. 8 summed over voxels, less that of the clean image: 0 on clean images by its "
            "definition, and wherever an artefact makes the network more certain.",
            soft=True,
        ),
        interval_table(results, model, group),
    ]
    if results.ladder.get(model):
        blocks += [
            Heading(f"Volume of {results.names[0]} under growing artefacts"),
            Text(
                "As Figure 5 of the paper: one image, one draw that grows stronger. Points: predicted volume with the "
                "paper's ± σ; band: calibrated interval; dashed: truth. Severity is in the artefact's own unit: of "
                "noise the root of its power over that of the signal. A trustworthy bar reaches the dashed line.",
                soft=True,
            ),
            Picture(ladder_figure(results, model), f"volume with error bars over severity, {model}"),
        ]
    return blocks


def _measured(results: QualityResults, held: Held) -> list[Block]:
    """Figures of images that no simulation made."""
    points: list[Words] = []
    for model in results.models:
        one = held.get((model, "measured", TOTAL, "dice", ALL_KINDS))
        if one is not None and np.isfinite(one.rho):
            points.append(
                Markup("<b>{}</b>: ρ of the artefact variance with Dice {} (n {}, {} anatomies).").format(
                    model, with_interval(one), one.n, one.anatomies
                )
            )
    return [
        Text(
            "Measured images with labels, clean as they were measured and with the same artefacts. They have no part "
            "in the figures above. Mean over draws.",
            soft=True,
        ),
        measured_table(results),
        *([Points(points)] if points else []),
    ]
