"""The page of a `segmentation` study: does a segmentation that learnt on one kind of image hold on another?"""

from collections.abc import Sequence

from markupsafe import Markup

from qsim.evaluation.pages.heat_report import Block, Heading, Page, Picture, Points, Section, Text
from qsim.evaluation.pages.segmentation_figures import (
    curve_figure,
    image_figure,
    run_figure,
    scatter_figure,
    shown_figure,
)
from qsim.evaluation.pages.segmentation_lead import SCORE_WORDS, aims, lead, limits, methods, shown_name
from qsim.evaluation.pages.segmentation_tables import (
    dice_table,
    difference_table,
    gap_table,
    rank_table,
)
from qsim.evaluation.studies.segmentation_results import SegmentationResults


def segmentation_page(results: SegmentationResults, notes: Sequence[str]) -> Page:
    """The page, without config, versions and digest.

    Args:
        notes: what limits the study, a sentence each.
    """
    train, domains = shown_name(results.train_domain), " and ".join(map(shown_name, results.domains))
    folds = f"{len(results.folds)} of {results.n_folds} folds"
    seeds = f"{results.seeds} seed{'s' if results.seeds > 1 else ''}"
    networks = f"{len(results.runs)} network{'s' if len(results.runs) > 1 else ''}"
    return Page(
        title=f"Left ventricle: learnt on {train} images, segmented on {domains}",
        meta=f"{', '.join(results.sets)} · {folds} · {seeds} · {networks} · seed {results.seed}",
        lead=lead(results),
        sections=_sections(results),
        methods=methods(results),
        versions={},
        files="images.csv (Dice of every image and network, scores of every ensemble) and results.csv (what is on this "
        "page) beside it",
        config="",
        digest="",
        warnings=[*notes, *limits(results)],
    )


def _sections(results: SegmentationResults) -> list[Section]:
    sections = [
        Section("Dice of every set on every split", _dice(results)),
        Section("The gap, and what closes it", _gaps(results)),
        Section("Image by image", _images(results)),
        Section("Does uncertainty tell?", _uncertainty(results)),
    ]
    if results.shown:
        sections.append(Section("Best and worst", _shown(results)))
    if results.curves:
        sections.append(
            Section(
                "Training",
                [
                    Text(
                        "Mean over the runs of a set. The loss is that of augmented images: stronger augmentation, "
                        "larger loss, whatever the network is worth on others.",
                        soft=True,
                    ),
                    Picture(curve_figure(results), "training loss by epoch of every set"),
                ],
            )
        )
    return sections


def _dice(results: SegmentationResults) -> list[Block]:
    return [
        Text(
            "Mean Dice over runs ± SD over folds; a shade marks the best of a split. On the right what the paper "
            "prints of its sets A and B, from its own images, which are not public: other images, other numbers; what "
            "can be compared is the order, and what is lost from left to right.",
            soft=True,
        ),
        dice_table(results),
        Heading("Every run"),
        Text(
            "A point is the mean Dice of one network; grey lines join networks of the same fold and seed; bars: means.",
            soft=True,
        ),
        Picture(run_figure(results), "Dice of every run by set and split"),
    ]


def _gaps(results: SegmentationResults) -> list[Block]:
    blocks: list[Block] = [
        *_aims(results),
        Heading("Gap to the domain, and the share of the baseline's that is closed"),
        Text(
            f"Gap: mean Dice on test images less that on the domain. The last column: what a set gains on the domain "
            f"over {results.baseline}, as a share of the gap of {results.baseline}.",
            soft=True,
        ),
        gap_table(results),
    ]
    if len([name for name in results.sets if results.of_set(name)]) > 1:
        blocks += [
            Heading("Paired differences on the domain"),
            Text(
                "First named less second, in the same fold and with the same seed. Crossed: over runs and images; it "
                "also holds for other images. Seeds of one fold share their training images, and so do folds in large "
                "part, which the t-interval over runs leaves out.",
                soft=True,
            ),
            difference_table(results),
        ]
    return blocks


def _aims(results: SegmentationResults) -> list[Block]:
    """The verdicts, a sentence each."""
    classes = {"met": "smaller", "not met": "larger", "open": "no"}
    blocks: list[Block] = [Text("Of what the study asked for, each as it came out.", soft=True)]
    for domain in results.domains:
        if len(results.domains) > 1:
            blocks.append(Heading(f"Aims on {shown_name(domain)}"))
        blocks.append(
            Points(
                [
                    Markup('<span class="{}">{}</span>: {}. Found: {}; {}.').format(
                        classes[aim.verdict], aim.verdict.capitalize(), aim.wanted, aim.found, aim.why
                    )
                    for aim in aims(results)
                    if aim.domain == domain
                ]
            )
        )
    return blocks


def _images(results: SegmentationResults) -> list[Block]:
    return [
        Text(
            "Dots: mean Dice of an image over the runs of a set; lines: from the worst to the best run. All runs see "
            "the same images.",
            soft=True,
        ),
        Picture(image_figure(results), "Dice of every image by set"),
    ]


def _uncertainty(results: SegmentationResults) -> list[Block]:
    if not results.ensembles:
        return [
            Text(
                "There is no ensemble: one network in each fold, without passes of dropout, cannot disagree with "
                "itself. Train with more seeds."
            )
        ]
    blocks: list[Block] = [
        Text(
            "Does an ensemble know which images it segments badly, without any labels? A score that tells puts the "
            "points on one falling line. Not only errors are in it: disagreement on a small target costs more, as "
            "Dice itself does.",
            soft=True,
        ),
    ]
    score = next((s for s in SCORE_WORDS if any(s in each.scores for each in results.ensembles)), None)
    if score is not None:
        blocks.append(Picture(scatter_figure(results, score, SCORE_WORDS[score]), "uncertainty against Dice by set"))
    return [
        *blocks,
        Heading("Rank correlations, and the Dice of ensembles"),
        Text(
            "Mean over folds with its interval over images; then of figures averaged over folds. n: different images.",
            soft=True,
        ),
        rank_table(results),
    ]


def _shown(results: SegmentationResults) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "As Figures 2 to 5 of the paper: the image with the highest and the one with the lowest Dice of each set, "
            "cut out around the target. Blue: truth; orange: prediction. A good map of entropy is bright just where "
            "the outlines part.",
            soft=True,
        )
    ]
    for domain in dict.fromkeys(one.domain for one in results.shown):
        if len({one.domain for one in results.shown}) > 1:
            blocks.append(Heading(shown_name(domain)))
        blocks.append(Picture(shown_figure(results, domain), f"best and worst images of {domain} by set"))
    return blocks
