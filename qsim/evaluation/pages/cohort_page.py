"""The page of a `self_supervised` study: which methods map best, in what order, and whether their uncertainty holds.

The study's own names of conditions: `plain`; `calibrated`: SD times their factor; `snr 10`: noise added; `square`,
`lesion`: something put into the images, `square before`: the same images without it. The metric `cpu_seconds_per_slice`
is the time of one slice. What has no seed, or is of all seeds together, has one run in each fold.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from markupsafe import Markup

from qsim.evaluation.metrics import over_draws
from qsim.evaluation.pages.cohort_aims import aims, aims_table, verdict
from qsim.evaluation.pages.cohort_figures import map_figure
from qsim.evaluation.pages.cohort_joint import joint_sections
from qsim.evaluation.pages.cohort_order import Runs, cell, known, mean, smallest, spread
from qsim.evaluation.pages.cohort_papers import CONSTANT, REFERENCES, TWO_POINT, against, single_sections, unperturbed
from qsim.evaluation.pages.cohort_trust import trust_sections
from qsim.evaluation.pages.content import plain
from qsim.evaluation.pages.heat_report import Block, Grid, Page, Picture, Section, Text, Words
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.cohort_results import ALL_IMAGES, CohortResults

_OTHERS = (TWO_POINT, CONSTANT, "least-squares", "rician")
_LEFT_OUT = 0.5


def cohort_page(
    results: CohortResults,
    *,
    title: str,
    meta: str,
    methods: Sequence[tuple[str, Words]] = (),
    versions: Mapping[str, str] | None = None,
    files: str = "results.csv (every figure, each run) beside this page",
    config: str = "",
    digest: str = "",
    limits: Sequence[Words] = (),
) -> Page:
    """The whole page.

    Args:
        meta: what was run, in one line.
        methods: what is to be said of data, training and estimators, before the definitions of the figures.
        limits: what limits the study, besides what its numbers show.
    Raises: ValueError if no method has an error.
    """
    if not against(results):
        raise ValueError("values: hold no rmae_truth and no rmae_fit; judge at least one method")
    return Page(
        title=title,
        meta=meta,
        lead=lead(results),
        sections=sections(results),
        methods=[*methods, *methods_text(results)],
        versions={} if versions is None else versions,
        files=files,
        config=config,
        digest=digest,
        warnings=[*limits, *warnings(results)],
    )


def lead(results: CohortResults) -> list[Words]:
    """Which method errs least, what its opponents do, and which aims are met."""
    kind = against(results)[0]
    said: list[Words] = []
    for parameter in results.parameters:
        errors = {m: results.get(m, parameter, f"rmae_{kind}") for m in unperturbed(results)}
        errors = {m: runs for m, runs in errors.items() if known(runs)}
        if not errors:
            continue
        few = {m: runs for m, runs in errors.items() if not known(_of_all(results, m, parameter, kind))}
        best = min(few or errors, key=lambda name: mean(errors[name]))
        held = over_draws(errors[best])
        over = f"{best} errs least in the ROI of the methods that see part of the images: "
        over += f"mean |estimate − {kind}| {spread(errors[best], 3)} ms"
        over += f" over {int(np.isfinite(errors[best]).sum())} runs" if isfinite(held.high) else ""
        beside = [f"{name} {spread(errors[name], 3)}" for name in _OTHERS if name in errors and name != best]
        over += f"; {', '.join(beside)} ms." if beside else "."
        said.append(Markup("<b>{}</b>: {}").format(plain(parameter), over))
    if text := verdict(aims(results)):
        said.append(text)
    return said


def _of_all(results: CohortResults, method: str, parameter: str, kind: str) -> Runs:
    return results.get(method, parameter, f"rmae_{kind}", shown=ALL_IMAGES)


def sections(results: CohortResults) -> list[Section]:
    """Tables and figures; those of which the results hold nothing are left out."""
    parts: list[Section] = []
    if found := aims(results):
        text = (
            "Mean over runs; second line: ± half-width of the 95 % interval over runs (number of runs). Marked: the "
            "mean meets the aim; unsettled: the interval holds an end of the range, so other runs may say otherwise."
        )
        parts.append(Section("Aims", [aims_table(found), Text(text, soft=True)]))
    for parameter in results.parameters:
        of = f", {plain(parameter)}" if len(results.parameters) > 1 else ""
        parts.append(Section(f"Every method{of}", _ranked(results, parameter)))
    if tuple(results.parameters) == ("T1RHO",):
        parts += single_sections(results)
    if set(results.parameters) == {"T1RHO", "T2"}:
        parts += joint_sections(results)
    for parameter in results.parameters:
        maps = results.maps.get(("plain", parameter))
        if maps is not None and maps.methods:
            paper = "huang2022 Fig. 5" if len(results.parameters) == 1 else f"huang2023 Fig. 2, {plain(parameter)}"
            reference = "truth" if "truth" in maps.shared else "fit"
            text = (
                f"Above: maps on one scale. Below: estimate − {reference} on one scale; beyond its ends the colour is "
                "that of the end. White outline: ROI, drawn before any fitting. Dark blue-grey: no value."
            )
            source = map_figure(maps, parameter, results.methods)
            alt = "anatomy with ROI, reference maps, every method's map and its error"
            parts.append(Section(f"Maps of one slice ({paper})", [Picture(source, alt), Text(text, soft=True)]))
    parts += trust_sections(results)
    for parameter in results.parameters:
        of = f", {plain(parameter)}" if len(results.parameters) > 1 else ""
        if limited := _limited(results, parameter):
            parts.append(Section(f"Limited voxels{of}", limited))
        for region in ("body", "lesion"):
            if (grid := _elsewhere(results, parameter, region)) is not None:
                parts.append(Section(f"Errors in the {region}{of}", [grid, Text(_INTERVAL, soft=True)], folded=True))
    return parts


_INTERVAL = "Mean over the inputs. Second line: ± half-width of the 95 % interval over runs (number of runs)."


def _ranked(results: CohortResults, parameter: str) -> list[Block]:
    """Every method, the smallest error first."""
    kinds = against(results)
    kind = kinds[0]
    columns = [("RMAE", f"rmae_{one}", "roi") for one in kinds]
    columns += [
        ("median |error|", f"median_error_{kind}", "roi"),
        ("bias", f"bias_{kind}", "roi"),
        ("RMSE", f"rmse_{kind}", "roi"),
        ("slope, subjects", f"slope_subjects_{kind}", "roi"),
        ("concordance, subjects", f"concordance_subjects_{kind}", "roi"),
        ("slope within tissue", f"slope_within_{kind}", "roi"),
        ("lesion contrast recovered", f"lesion_recovery_{kind}", "lesion"),
    ]
    methods = [m for m in unperturbed(results) if known(results.get(m, parameter, f"rmae_{kind}"))]
    methods.sort(key=lambda name: mean(results.get(name, parameter, f"rmae_{kind}")))
    columns = [c for c in columns if any(known(results.get(m, parameter, c[1], c[2])) for m in methods)]
    ideal = {"bias": 0.0, "slope": 1.0, "concordance": 1.0, "lesion": 1.0}
    heads: list[Words] = ["method"]
    off: dict[int, list[float]] = {}
    for text, metric, region in columns:
        in_ms = metric.startswith(("rmae", "median", "bias", "rmse"))
        against_fit = metric.startswith("rmae") and len(kinds) > 1
        name = f"{text}, {metric.rpartition('_')[2]}" if against_fit else text
        target = ideal.get(metric.partition("_")[0], 0.0)
        if not (metric.startswith("rmae") and not metric.endswith(kind)):
            off[len(heads)] = [abs(mean(results.get(m, parameter, metric, region)) - target) for m in methods]
        heads.append(f"{name} [{'ms' if in_ms else '1'}]")
    lines: list[list[Words]] = [
        [m, *(cell(results.get(m, parameter, metric, region)) for _, metric, region in columns)] for m in methods
    ]
    text = (
        f"ROI, against the {REFERENCES[kind]}, in the order of RMAE. {_INTERVAL} Marked: best of its column, "
        "for slopes, concordance and contrast what is nearest 1. Slope and concordance of the subjects' means in the "
        "ROI on the reference's; slope within: of deviations from the slice's mean, 0 for a method that paints means."
    )
    return [Grid(heads, lines, best=smallest(off)), Text(text, soft=True), *_bound(results, parameter)]


def _bound(results: CohortResults, parameter: str) -> list[Block]:
    """The smallest SD that an unbiased estimate of one voxel can have."""
    found = {shown: results.get("bound", parameter, "bound_sd", shown=shown) for shown in (*results.inputs, ALL_IMAGES)}
    said = [f"{shown}: {number(mean(values))} ms" for shown, values in found.items() if known(values)]
    if not said:
        return []
    text = (
        f"Cramér-Rao bound of one voxel by itself, mean SD over the ROI: {', '.join(said)}. An unbiased estimate of "
        "normal errors with this SD has a mean |error| of 0.80 times it; who looks at neighbours can be below."
    )
    return [Text(text, soft=True)]


def _elsewhere(results: CohortResults, parameter: str, region: str) -> Grid | None:
    kind = against(results)[0]
    columns = [("RMAE", "rmae"), ("median |error|", "median_error"), ("bias", "bias"), ("RMSE", "rmse")]
    columns.append(("95th percentile of |error|", "p95_error"))
    methods = [m for m in results.methods if known(results.get(m, parameter, f"rmae_{kind}", region))]
    if not methods:
        return None
    lines: list[list[Words]] = [
        [m, *(cell(results.get(m, parameter, f"{metric}_{kind}", region)) for _, metric in columns)] for m in methods
    ]
    off = {
        i + 1: [abs(mean(results.get(m, parameter, f"{metric}_{kind}", region))) for m in methods]
        for i, (_, metric) in enumerate(columns)
    }
    return Grid(["method", *(f"{head} [ms]" for head, _ in columns)], lines, best=smallest(off))


def _limited(results: CohortResults, parameter: str) -> list[Block]:
    """Share of voxels whose value was cut to the range, by input."""
    regions = {"roi": "ROI", "body": "body"}
    inputs = [*results.inputs, ALL_IMAGES]
    lines: list[list[Words]] = []

    def runs(name: str, region: str, shown: str) -> Runs:
        return results.get(name, parameter, "limited_share", region, shown)

    used = [
        shown for shown in inputs if any(known(runs(m, region, shown)) for m in results.methods for region in regions)
    ]
    for name in results.methods:
        shares = [runs(name, region, shown) for region in regions for shown in used]
        if any(known(each) for each in shares):
            lines.append([name, *(cell(each, 100.0) for each in shares)])
    if not lines:
        return []
    groups: list[tuple[Words, int]] = [("", 1), *((f"{title} [%]", len(used)) for title in regions.values())]
    text = (
        "Voxels whose value was cut to the range of the method. Their errors count like all others. Second line: ± "
        "half-width of the 95 % interval over runs (number of runs)."
    )
    return [Grid(["method", *(used * len(regions))], lines, groups=groups), Text(text, soft=True)]


def methods_text(results: CohortResults) -> list[tuple[str, Words]]:
    """What the figures mean."""
    said: list[tuple[str, Words]] = [
        ("RMAE", "Mean of |estimate − reference| over the voxels of the ROI (huang2022 Eq. 10)."),
        (
            "references",
            "Truth: the digital map. Fit: least squares on all images of the series, the papers' reference; its own "
            "noise is in every error against it, and it shares the noise of the input images with the methods."
            if "truth" in against(results)
            else "Fit: least squares on all images of the series, the papers' reference; nobody knows the truth. Its "
            "noise is in every error, and it shares the noise of the input images with the methods.",
        ),
        (
            "runs",
            "Fold and seed. Intervals: t-interval of the mean over runs. Runs share subjects, in training across folds "
            "and in testing across seeds, so that the intervals are those of training and division, not of the choice "
            "of subjects.",
        ),
        (
            "ratios",
            "Of the two figures of the same run, then their mean; what has no seed counts for every seed of its fold.",
        ),
        (
            "order",
            "By the mean over runs; Kendall's τ-b over the methods that the paper's table and this study both hold.",
        ),
    ]
    uncertain = any(figure.metric == "sd_mean" for figure in results.values)
    if uncertain:
        said.append(
            ("SD", "Total² = aleatoric² + epistemic², in the unit of the map unless a method's name says else.")
        )
        said.append(("CRPS", "Of a Gaussian of the stated SD; doi:10.1198/016214506000001437."))
    return said


def warnings(results: CohortResults) -> list[Words]:
    """What limits the comparison, as far as its numbers show it."""
    kinds = against(results)
    # what has no seed has one run in each fold
    folds = len({name.partition(",")[0] for name in results.runs})
    said: list[Words] = []
    if len(results.runs) < 2:
        said.append("One run: no interval, and differences between methods may be those of one training.")
    elif len(results.runs) < 3:
        said.append("Two runs: intervals are wide.")
    if kinds and "truth" not in kinds:
        said.append("The truth is not known: errors are against the fit of all images, which errs itself.")
    for parameter in results.parameters:
        of = plain(parameter)
        for name in results.methods:
            runs = results.get(name, parameter, f"rmae_{kinds[0]}") if kinds else np.full(1, np.nan)
            if known(runs) and (n := int(np.isfinite(runs).sum())) < len(results.runs) and n != folds:
                said.append(f"{name}, {of}: {n} of {len(results.runs)} runs have a figure.")
            lost = results.get(name, parameter, f"left_out_{kinds[0]}") if kinds else runs
            if known(lost) and mean(lost) >= _LEFT_OUT:
                said.append(f"{name}, {of}: {number(mean(lost))} voxels of the ROI have no value and are in no error.")
            seen = [s for s in results.inputs if known(results.get(name, parameter, f"rmae_{kinds[0]}", shown=s))]
            if 0 < len(seen) < len(results.inputs):
                said.append(f"{name}, {of}: its means are over {', '.join(seen)} alone.")
    return said


__all__ = ["cohort_page", "lead", "methods_text", "sections", "warnings"]
