"""The page of a `quality` study: do variances tell how good an image is for the segmentation, and what spoils it?"""

from collections.abc import Callable, Mapping, Sequence
from math import nan

import numpy as np
from markupsafe import Markup

from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Page, Picture, Points, Section, Text, Words
from qsim.evaluation.pages.quality_figures import (
    WORDS,
    box_figure,
    example_figure,
    forest_figure,
    ladder_figure,
    leakage_figure,
    scatter_figure,
)
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.quality_results import (
    ALL_KINDS,
    CLEAN,
    TOTAL,
    WITHIN,
    Against,
    Correlation,
    QualityResults,
    aucs,
    coverage,
    leakage_of,
)

# shaw2021: (rho, p) with Dice of simulated images (Table 1), and with scores 1 to 4 of measured ones (Table 2)
PAPER: Mapping[str, tuple[tuple[float, str], tuple[float, str]]] = {
    TOTAL: ((-0.850, "1.395e−24"), (-0.745, "9.101e−12")),
    "snr": ((0.326, "0.002"), (-0.045, "0.730")),
    "cnr": ((0.200, "0.068"), (0.361, "0.005")),
}
# examples and scatter plots of more models would make the page heavy
_DRAWN_MODELS = 2

Held = Mapping[tuple[str, str, str, Against, str], Correlation]


def quality_page(results: QualityResults, found: Sequence[Correlation], notes: Sequence[str]) -> Page:
    """The page, without config, versions and digest.

    Args:
        found: of `correlations`.
        notes: what limits the study, a sentence each.
    """
    held = {(c.model, c.group, c.figure, c.against, c.scope): c for c in found}
    digital = int((~results.measured).sum())
    images = f"{digital} digital images of {len(np.unique(results.anatomy[~results.measured]))} anatomies"
    measured = f", {int(results.measured.sum())} measured" if results.measured.any() else ""
    return Page(
        title="Quality of images, told by the uncertainty of their segmentation",
        meta=f"{results.target} by {', '.join(results.models)} · {images}{measured} · clean and with "
        f"{', '.join(results.kinds)} · {len(results.seen.image)} images in all · seed {results.seed}",
        lead=[each for model in results.models for each in _lead(results, held, model)],
        sections=_sections(results, found, held),
        methods=_METHODS,
        versions={},
        files="images.csv (every figure of every image) and results.csv (what is on this page) beside it",
        config="",
        digest="",
        warnings=[*notes, *_warnings(results)],
    )


def _warnings(results: QualityResults) -> list[str]:
    found = []
    n = len(np.unique(results.of_anatomy[results.groups[results.main]]))
    if n < 2:
        found.append("One anatomy: there are no intervals, and no correlation says anything of other anatomies.")
    elif n < 20:
        found.append(f"{n} anatomies: intervals that are drawn from so few are too narrow.")
    return found


def _lead(results: QualityResults, held: Held, model: str) -> list[Words]:
    """What came out for one model."""
    group = results.main

    def rho(figure: str, against: Against = "dice", scope: str = ALL_KINDS) -> Correlation | None:
        return held.get((model, group, figure, against, scope))

    lines: list[Words] = []
    pooled, within, change = rho(TOTAL), rho(TOTAL, scope=WITHIN), rho(TOTAL, "dice_change")
    if pooled is not None:
        text = Markup("<b>{}</b>: the mean artefact variance follows Dice with Spearman ρ = {}").format(
            model, _with_interval(pooled)
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
    lines += _volume_lead(results, model, group)
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


def _volume_lead(results: QualityResults, model: str, group: str) -> list[Words]:
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


def _with_interval(each: Correlation) -> str:
    if not np.isfinite(each.low):
        return number(each.rho)
    return f"{number(each.rho)} ({number(each.low)} to {number(each.high)})"


def _p(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    if value >= 0.001:
        return f"{value:.3f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e−{abs(int(power))}" if value > 0 else "< 1e−300"


def _sections(results: QualityResults, found: Sequence[Correlation], held: Held) -> list[Section]:
    group = results.main
    sections = [
        Section("Which figure follows Dice", _ranks(results, found, held, group)),
        Section("Beside the paper", _beside(results, held, group)),
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
        _rank_table(
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
        _rank_table(results, held, group, [(kind, "dice", kind) for kind in results.kinds]),
    ]


def _rank_table(results: QualityResults, held: Held, group: str, columns: Sequence[tuple[str, Against, str]]) -> Grid:
    lines: list[list[Words]] = []
    best = []
    for model in results.models:
        start = len(lines)
        sizes = np.full((len(WORDS), len(columns)), nan)
        names = [name for name in WORDS if (model, group, name, "dice", ALL_KINDS) in held]
        for i, name in enumerate(names):
            cells: list[Words] = [model, WORDS[name]]
            for j, (_, against, scope) in enumerate(columns):
                one = held.get((model, group, name, against, scope))
                if one is None or not np.isfinite(one.rho):
                    cells.append("–")
                    continue
                sizes[i, j] = one.rho if name.startswith(("snr", "cnr")) else -one.rho
                cell = Markup("{}").format(number(one.rho))
                if np.isfinite(one.low):
                    cell += Markup("<small>{} to {}</small>").format(number(one.low), number(one.high))
                if np.isfinite(one.p):
                    cell += Markup("<small>p {} · n {}</small>").format(_p(one.p), one.n)
                cells.append(cell)
            lines.append(cells)
        best += [(start + int(np.nanargmax(column)), 2 + j) for j, column in enumerate(sizes.T) if (column > 0).any()]
    return Grid(["model", "figure", *(head for head, _, _ in columns)], lines, names=2, best=best)


def _beside(results: QualityResults, held: Held, group: str) -> list[Block]:
    lines: list[list[Words]] = []
    rows: list[tuple[str, str, str]] = [(TOTAL, TOTAL, "mean artefact variance (Eq. 9)")]
    for whose in ("predicted", "true"):
        rows.append(("snr", f"snr_{whose}", f"SNR (Eq. 10), {whose} labels"))
        rows += [
            ("cnr", f"cnr_{form}_{whose}", f"CNR (Eq. 11, {form}), {whose} labels") for form in ("pooled", "difference")
        ]
    for key, figure, words in rows:
        table = PAPER[key]
        cells: list[Words] = [words, *(Markup("{:.3f}<small>p {}</small>").format(r, p) for r, p in table)]
        cells = [cell.replace("-", "−") if isinstance(cell, Markup) else cell for cell in cells]
        known = False
        for model in results.models:
            one = held.get((model, group, figure, "dice", ALL_KINDS))
            known |= one is not None
            cells.append(
                "–" if one is None else Markup("{}<small>p {} · n {}</small>").format(number(one.rho), _p(one.p), one.n)
            )
        if known:
            lines.append(cells)
    return [
        Heading("Spearman's ρ as in Tables 1 and 2 of shaw2021"),
        Text(
            "The paper: Dice of simulated images of 28 ADNI subjects (Table 1), and blind scores 1 to 4 of 40 rejected "
            "scans (Table 2). Its text says 28 × 5 artefact images and the clean ones, n = 168, and 40; its ρ and p "
            "together imply n = 85 and 60. Its Eq. 10 is mean over SD of grey matter, which contrast and shading in "
            "the tissue enter; its two forms of Eq. 11 are not equal, so both are given. It does not say whose labels "
            "gave SNR and CNR. Other data, another contrast and other severities here: the order of the figures can be "
            "compared, not the third digit.",
            soft=True,
        ),
        Grid(["figure", "shaw2021, Table 1", "shaw2021, Table 2", *results.models], lines),
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
    found = aucs(results, model, group)
    rows: list[list[Words]] = []
    figures, there = results.figures[model], results.groups[group]
    for number_of, kind in enumerate((CLEAN, *results.kinds)):
        of = there & (results.seen.kind == number_of)
        dice = figures["dice"][of]
        if not dice.size:
            continue
        own, total = (number(value) for value in found.get(kind, (nan, nan)))
        low, middle, high = (number(float(v), 3) for v in np.percentile(dice, (25, 50, 75)))
        lost = number(float(-figures["dice_change"][of].mean()), 3) if number_of else "–"
        rows.append(
            [kind, str(dice.size), number(float(dice.mean()), 3), f"{middle} ({low} to {high})", lost, own, total]
        )
    blocks += [
        Heading("Dice, and clean told from corrupted"),
        Text(
            "Area under the ROC curve: how often a corrupted image has the larger mean variance than a clean one, of "
            "the artefact's own head and of all heads together; 0.5 is chance. Every pair of images counts, whatever "
            "their anatomies.",
            soft=True,
        ),
        Grid(["images", "n", "mean Dice", "median (quartiles)", "mean loss", "AUC, own head", "AUC, all heads"], rows),
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
    forms = {"paper": "paper, ± 1.96 σ", "calibrated": "calibrated"}
    each = {form: coverage(results, model, group, form) for form in forms}
    rows: list[list[Words]] = []
    for kind in (CLEAN, *results.kinds, ALL_KINDS):
        cells: list[Words] = [kind]
        for form in forms:
            one = each[form].get(kind)
            cells += ["–", "–", "–"] if one is None else [number(one.held, 3), number(one.width, 3), str(one.n)]
        rows.append(cells)
    blocks: list[Block] = [
        Heading("Intervals that hold the true volume"),
        Text(
            "Share of images whose interval holds the true volume, beside the mean width of the intervals in % of it. "
            "The paper's error bar is Eq. 8 summed over voxels, less that of the clean image: 0 on clean images by its "
            "definition, and wherever an artefact makes the network more certain.",
            soft=True,
        ),
        Grid(
            ["images", "held [%]", "width [%]", "n", "held [%]", "width [%]", "n"],
            rows,
            groups=[("", 1), *((words, 3) for words in forms.values())],
        ),
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
    rows: list[list[Words]] = []
    seen = results.seen
    for model in results.models:
        figures = results.figures[model]
        for image in np.flatnonzero(results.measured).tolist():
            for kind in range(len(results.kinds) + 1):
                of = (seen.image == image) & (seen.kind == kind)
                values = [float(figures[name][of].mean()) for name in ("dice", TOTAL, "entropy", "snr_predicted")]
                predicted = float(figures["volume_predicted"][of].mean() / figures["volume_true"][of].mean())
                rows.append(
                    [
                        *(model, results.names[image], results.kind_name(kind), str(int(of.sum()))),
                        *(number(value, 3) for value in (*values, 100 * (predicted - 1))),
                    ]
                )
    points: list[Words] = []
    for model in results.models:
        one = held.get((model, "measured", TOTAL, "dice", ALL_KINDS))
        if one is not None and np.isfinite(one.rho):
            points.append(
                Markup("<b>{}</b>: ρ of the artefact variance with Dice {} (n {}, {} anatomies).").format(
                    model, _with_interval(one), one.n, one.anatomies
                )
            )
    return [
        Text(
            "Measured images with labels, clean as they were measured and with the same artefacts. They have no part "
            "in the figures above. Mean over draws.",
            soft=True,
        ),
        Grid(
            ["model", "image", "artefact", "n", "Dice", WORDS[TOTAL], WORDS["entropy"], WORDS["snr_predicted"],
             "volume error [%]"],
            rows,
            names=3,
        ),
        *([Points(points)] if points else []),
    ]  # fmt: skip


_METHODS: list[tuple[str, Words]] = [
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
