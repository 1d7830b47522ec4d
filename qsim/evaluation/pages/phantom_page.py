"""The page of a `phantom` study: agreement with nominal values, repeatability, and how methods differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gamma, sqrt

import numpy as np
from markupsafe import Markup
from scipy.special import chdtri

from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Points, Section, Text
from qsim.evaluation.pages.phantom_figures import View, agreement_figure, cv_figure, map_figure
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.phantom_rois import Phantom
from qsim.system_phantom import sphere_names

_HTML = {"T1": "T<sub>1</sub>", "T2": "T<sub>2</sub>", "T2STAR": "T<sub>2</sub>*", "T1RHO": "T<sub>1ρ</sub>"}
# sabidussi2021 section 6.2, T1 array: relative bias and CV [%]
PAPER = {"RIM": (1.34, 3.21), "MLE": (1.71, 7.56), "ResNet": (31.06, 7.5)}
# a bound that is compared with at fewer repeats is a comparison of noise
_TRUSTED = 30
# slope of measured on nominal values, and concordance with them, of which less is a mistake rather than a bias [1]
_FOLLOWS = 0.5
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class About:
    """What the page says of its data.

    Attributes:
        twin: a digital twin rather than scans.
        what: the anatomy, or the scans.
        covered: which regions the summaries are of.
        sigma_source: how sigma of scans was found.
        networks: the trained ones among the methods.
        told: rows whose true values a method is given, by its name.
        notes: what was taken for granted in reading.
    """

    twin: bool
    what: str
    covered: str
    sigma_source: str = ""
    networks: tuple[str, ...] = ()
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def lead(found: Phantom, about: About) -> list[Markup]:
    """Bias and CV of every method over the covered regions, at each SNR."""
    sentences = []
    for i, snr in enumerate(found.snrs):
        said = []
        for method in found.methods:
            text = f"{method} {_figure(found.summary(method, i, 'abs_bias').value)} %"
            if found.repeats > 1:
                text += f", CV {_figure(found.summary(method, i, 'cv').value)} %"
            said.append(text)
        where = f" at SNR {snr:g}" if about.twin else ""
        sentences.append(
            Markup("Mean size of the relative bias of {} over {} of {} regions ({}){}: {}.").format(
                _symbol(found),
                len(found.covered),
                len(found.regions),
                about.covered,
                where,
                "; ".join(said),
            )
        )
    return sentences


def sections(found: Phantom, view: View, about: About) -> list[Section]:
    """Figures and tables, one SNR after the other; maps, and the figures of the paper."""
    parts = []
    for i, (snr, sigma) in enumerate(zip(found.snrs, found.sigmas, strict=True)):
        blocks: list[Block] = [
            Heading("Agreement with the nominal values"),
            Picture(agreement_figure(found, i), "nominal against measured values, and relative bias"),
            Text(
                "Left: mean of each region over repeats; bars: SD over its voxels. Right: relative bias of that mean; "
                "bars: quartiles over voxels; triangles: beyond the axis. Faint: regions that the summaries leave out; "
                "grey: the range of those that they are of. Methods are set side by side.",
                soft=True,
            ),
        ]
        if found.repeats > 1:
            bound = (
                " Lines: Cramér-Rao bound at the nominal value, for the problem that a method solves, median over the "
                "region."
                if found.bounds
                else ""
            )
            blocks += [
                Heading("Repeatability"),
                Picture(cv_figure(found, i), "CV over repeats"),
                Text(f"CV over repeats of each voxel: median and quartiles over the region.{bound}", soft=True),
            ]
        blocks += [
            Heading(f"Over the {len(found.covered)} covered regions"),
            _summary(found, i),
            Text(_summary_caption(found), soft=True),
        ]
        if len(found.methods) > 1 and len(found.covered) > 1:
            blocks += [Heading("Methods against each other"), _tests(found, i)]
            blocks.append(
                Text(
                    "Paired t-test over the covered regions, two-sided, not corrected for the number of tests; "
                    "difference of the mean |bias| in percentage points, of CV and RMSE as a ratio of geometric means. "
                    "With few regions only large differences show.",
                    soft=True,
                )
            )
        known = f"σ {sigma:.3g}" if np.isfinite(sigma) else "σ not known"
        title = f"SNR {snr:g} ({known})" if about.twin else f"Scans ({known})"
        parts.append(Section(title, blocks))
    first = f" at SNR {found.snrs[0]:g}" if about.twin else ""
    parts.append(
        Section(
            f"Maps of the first repeat{first}",
            [
                Picture(map_figure(found, view), "maps with outlined regions"),
                Text("Outlines: regions, dotted where not covered; numbers: their labels.", soft=True),
            ],
        )
    )
    if found.parameter == "T1" and (about.twin or _system_phantom(found)):
        parts.append(Section("Beside the paper", _beside(found, about)))
    for i, snr in enumerate(found.snrs):
        title = f"Every region at SNR {snr:g}" if about.twin else "Every region"
        parts.append(Section(title, [_regions(found, i)], folded=True))
    if about.notes:
        parts.append(Section("Notes on reading the scans", [Points(list(about.notes))], folded=True))
    return parts


def methods_text(about: About) -> list[tuple[str, Markup | str]]:
    """Equations, assumptions, sources."""
    source = "of a digital twin: " + about.what if about.twin else about.what
    said: list[tuple[str, Markup | str]] = [
        ("data", source),
        (
            "regions",
            "Voxels wholly inside the inner part of a sphere (70 % of its radius unless data.share says otherwise); "
            "nominal values are known without error."
            if about.twin
            else "As drawn by the user; nominal values are taken to be known without error, at the temperature given.",
        ),
        ("covered", f"Summaries are of {about.covered}."),
        ("bias", "100 (mean estimate / nominal − 1) of a region, over its voxels and repeats (sabidussi2021 Eq. 7)."),
        ("CV", "SD over repeats (C − 1) / mean of each voxel (Eq. 8); of a region the median over its voxels."),
        (
            "RMSE, ROI SD",
            "Of single estimates against the nominal value; SD over the voxels of one repeat; in % of it.",
        ),
        (
            "concordance, slope",
            "Lin's coefficient (doi:10.2307/2532051) and least-squares slope of the regions' means on their nominal "
            "values, covered regions alone.",
        ),
        (
            "failures",
            "Not finite, not converged or not computed: counted, and left out of means where there is no number. On a "
            "bound: an answer, counted apart.",
        ),
        (
            "noise",
            "SNR = 0.65 / σ. Every method sees the same images; each repeat has noise of its own."
            if about.twin
            else f"σ {about.sigma_source.removeprefix('sigma ')}. Every method sees the same images.",
        ),
    ]
    if about.told:
        said.append(("told", "; ".join(f"{name}: {', '.join(given)}" for name, given in about.told.items())))
    said.append(("source", "sabidussi2021, sections 4.3.1, 5.2 and 6.2; doi:10.1016/j.media.2021.102220."))
    return said


def warnings_of(found: Phantom, about: About) -> list[str]:
    """What limits the study."""
    said = _astray(found, about)
    if found.repeats == 1:
        said.append("One scan: there is no CV, and the bias of a region holds the noise of that scan.")
    elif found.repeats * found.draws < _TRUSTED:
        error = 100 / sqrt(2 * (found.repeats - 1))
        median, mean = _shortfall(found.repeats - 1)
        said.append(
            f"{found.repeats} repeats: the CV of a single voxel carries a relative error of about {error:.0f} %. Of "
            f"Gaussian noise its median over a region lies {100 * (1 - median):.0f} % below the true CV and its mean "
            f"{100 * (1 - mean):.0f} %; the root of its mean square, which is held against the bound, does not."
        )
    if len(found.covered) < 3:
        said.append(f"{len(found.covered)} covered regions: no slope, and intervals over regions say little.")
    if about.twin:
        said.append(
            "The twin has the signal model of the fits, no field of B1 or B0 unless its config gives one, no imperfect "
            "slice profile and no temperature drift: scans will be further off."
        )
    return said


def _shortfall(freedom: int) -> tuple[float, float]:
    """Median and mean of an SD of Gaussian noise over its true value, with few degrees of freedom f.

    sqrt(median(chi^2_f) / f),   sqrt(2 / f) Gamma((f + 1) / 2) / Gamma(f / 2)
    """
    median = sqrt(float(chdtri(freedom, 0.5)) / freedom)
    return median, sqrt(2 / freedom) * gamma((freedom + 1) / 2) / gamma(freedom / 2)


def _symbol(found: Phantom) -> Markup:
    return Markup(_HTML.get(found.parameter, found.parameter))  # noqa: S704  constants of this module


def _figure(value: float) -> str:
    """As `number`, and two significant digits of what is smaller than a tenth, with a power of ten below 1e-4."""
    size = abs(value)
    if not 0 < size < 0.0995:
        return number(value)
    mantissa, power = f"{size:.1e}".split("e")
    sign = "−" if value < 0 else ""
    if int(power) < -4:
        return f"{sign}{mantissa}·10⁻{power.lstrip('-0').translate(_RAISED)}"
    return f"{sign}{size:.{1 - int(power)}f}"


def _held(held: Interval) -> str:
    if not np.isfinite(held.low):
        return _figure(held.value)
    return f"{_figure(held.value)} ({_figure(held.low)} to {_figure(held.high)})"


def _summary(found: Phantom, snr: int) -> Grid:
    metrics = [("abs_bias", "|bias| [%]"), ("bias", "bias [%]")]
    if found.repeats > 1:
        metrics += [("cv", "CV [%]")]
    metrics += [("rmse", "RMSE [%]"), ("sd", "ROI SD [%]")]
    lines, values = [], []
    for method in found.methods:
        held = [found.summary(method, snr, metric) for metric, _ in metrics]
        cells = [method, *(_held(each) for each in held[:-2]), *(_figure(each.value) for each in held[-2:])]
        if found.bounds and found.repeats > 1:
            bound = found.bound(found.bound_of[method], snr)[found.covered]
            cells.append(_figure(float(bound.mean())))
            cells.append(_figure(float(np.mean(found.each(method, snr, "cv_rms")[found.covered] / bound))))
        cells += [f"{found.summary(method, snr, 'concordance').value:.4f}"]
        cells += [number(found.summary(method, snr, "slope").value, 3)]
        rates = (_figure(found.summary(method, snr, rate).value) for rate in ("failure_rate", "at_bound_rate"))
        cells.append(" / ".join(rates))
        lines.append(cells)
        values.append([abs(each.value) for each in held])
    heads: list[Markup | str] = ["method", *(head for _, head in metrics)]
    if found.bounds and found.repeats > 1:
        heads += ["bound of CV [%]", "CV / bound"]
    heads += ["concordance", "slope", "failed / on a bound [%]"]
    best = set()
    if len(found.methods) > 1:
        for column in range(len(metrics)):
            sizes = [line[column] for line in values]
            if np.isfinite(sizes).any():
                best.add((int(np.nanargmin(sizes)), column + 1))
    return Grid(heads, lines, best=best)


def _summary_caption(found: Phantom) -> str:
    text = (
        f"In brackets: 95 % interval of the mean over {len(found.covered)} regions, of |bias| and CV by logarithms: "
        "how much regions differ, not the noise of one of them. Marked: the smallest."
    )
    if found.bounds and found.repeats > 1:
        text += " CV / bound: root mean square of the CV over the voxels of a region over its bound, mean over regions."
    return text + (f" Means over {found.draws} draws of the noise." if found.draws > 1 else "")


def _tests(found: Phantom, snr: int) -> Grid:
    metrics = ["abs_bias", *(["cv"] if found.repeats > 1 else []), "rmse"]
    lines = []
    for first, second in found.pairs:
        cells = [first, second]
        for metric in metrics:
            test = found.test(first, second, snr, metric)
            held = test.difference
            if metric != "abs_bias":
                held = Interval(*(float(np.exp(end)) for end in (held.value, held.low, held.high)))
            cells += [_held(held), f"{test.p:.2g}" if np.isfinite(test.p) else "–"]
        lines.append(cells)
    names = {"abs_bias": "|bias|: difference [points]", "cv": "CV: ratio", "rmse": "RMSE: ratio"}
    heads = ["method", "against"]
    for metric in metrics:
        heads += [names[metric], "p"]
    return Grid(heads, lines, names=2)


def _regions(found: Phantom, snr: int) -> Grid:
    lines = []
    for r, region in enumerate(found.regions):
        for method in found.methods:
            one = {
                name: found.region(method, snr, r, name).value
                for name in ("mean", "bias", "cv", "cv_of_mean", "rmse", "sd", "failure_rate", "at_bound_rate", "n")
            }
            cells = [
                f"{region.label}: {region.name}" + ("" if region.covered else " (not covered)"),
                method,
                _figure(1e3 * region.nominal),
                _figure(1e3 * one["mean"]),
                _figure(one["bias"]),
            ]
            if found.repeats > 1:
                cells += [_figure(one["cv"]), _figure(one["cv_of_mean"])]
                if found.bounds:
                    cells.append(_figure(float(found.bound(found.bound_of[method], snr)[r])))
            cells += [_figure(one["rmse"]), _figure(one["sd"])]
            cells += [_figure(one["failure_rate"]), _figure(one["at_bound_rate"]), f"{one['n']:.0f}"]
            lines.append(cells)
    heads = ["region", "method", "nominal [ms]", "mean [ms]", "bias [%]"]
    if found.repeats > 1:
        heads += ["CV [%]", "CV of the region's mean [%]", *(["bound of CV [%]"] if found.bounds else [])]
    heads += ["RMSE [%]", "ROI SD [%]", "failed [%]", "on a bound [%]", "voxels"]
    return Grid(heads, lines, names=2)


def _beside(found: Phantom, about: About) -> list[Block]:
    """The paper's figures and ours, over all voxels of the covered regions as the paper averages them."""
    lines = [[f"{name} (paper)", f"{bias:g}", "–", f"{cv:g}"] for name, (bias, cv) in PAPER.items()]
    for i, snr in enumerate(found.snrs):
        at = f", SNR {snr:g}" if about.twin else ""
        for method in found.methods:
            bias, cv = (found.summary(method, i, metric).value for metric in ("bias_voxels", "cv_voxels"))
            size = _size_of_bias(found, method, i)
            lines.append([f"{method} (here{at})", _figure(bias), _figure(size), _figure(cv)])
    theirs = (
        "Means over all voxels of the covered regions; in that of the bias, errors of either sign cancel, in that of "
        "|bias| of each region they do not. The paper scanned the phantom four times at 3 T with a cine "
        "Look-Locker series (flip angle 10 degrees, 23 inversion times from 172 to 893 ms); it does not print σ. Its "
        "regions are the spheres between the lowest and the highest inversion time of the training, its MLE has a "
        "smooth B. "
    )
    here = (
        "The twin's signal is that of the fits, its σ is chosen, its regions hold no "
        "partial volume. So the bias of the paper holds what sequence, field and temperature do, and ours "
        "does not; the CVs differ as the noise does. The order of methods can be compared, the figures themselves "
        "cannot."
        if about.twin
        else "These are other scans, of another phantom, protocol or scanner: bias and CV differ as sequence, field, "
        "temperature and noise do. The order of methods can be compared, the figures themselves cannot."
    )
    return [
        Grid(["method", "bias [%]", "|bias| [%]", "CV [%]"], lines),
        Text(theirs + here),
    ]


def _size_of_bias(found: Phantom, method: str, snr: int) -> float:
    """Mean |bias| of the covered regions, each weighted by its voxels [%]."""
    sizes, n = np.abs(found.each(method, snr, "bias"))[found.covered], found.each(method, snr, "n")[found.covered]
    known = np.isfinite(sizes)
    return float(np.average(sizes[known], weights=n[known])) if known.any() else float("nan")


def _system_phantom(found: Phantom) -> bool:
    """Whether the regions are spheres of the phantom that the paper scanned."""
    return {region.name for region in found.regions} <= {*sphere_names("t1"), *sphere_names("t2")}


def _astray(found: Phantom, about: About) -> list[str]:
    """A warning where a method's means of the regions have little to do with the nominal values."""
    said = []
    for i, snr in enumerate(found.snrs):
        for method in found.methods:
            line, agreement = (found.summary(method, i, metric).value for metric in ("slope", "concordance"))
            if line < _FOLLOWS or agreement < _FOLLOWS:
                at = f" at SNR {snr:g}" if about.twin else ""
                said.append(f"{method}{at}: slope {line:.2f}, concordance {agreement:.2f}")
    if not said:
        return []
    text = f"Measured values do not follow the nominal ones ({'; '.join(said)})"
    return [text + ("." if about.twin else ": check the numbering of the regions and the units.")]


__all__ = ["PAPER", "About", "View", "lead", "methods_text", "sections", "warnings_of"]
