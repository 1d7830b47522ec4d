"""The page of a `blurriness` study: what becomes of each structure, what of its neighbours, and how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from qsim.evaluation.pages.figures import INK, STYLE, colours, sequential, svg_uri
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Section, Text
from qsim.evaluation.pages.summary import number
from qsim.evaluation.studies.blurriness import REGIONS
from qsim.evaluation.studies.blurriness_table import Blurriness

# of the t-test
_LEVELS = ((0.01, "**"), (0.05, "*"))
# beyond this bias the axis is logarithmic [%]
_LINEAR = 20.0
_TICKS = [sign * size for size in (0, 10, 20, 50, 100, 200, 500, 1000) for sign in (-1, 1)]
# the picture shows this many voxels beyond a structure
_MARGIN = 7


@dataclass(frozen=True, slots=True)
class View:
    """Maps of one draw with structures.

    Attributes:
        snr: of the noise.
        truth: with the structures [s].
        inside: voxels of each structure.
        estimates: of one realisation, by method [s].
    """

    snr: float
    truth: Float[np.ndarray, "y x"]
    inside: Sequence[Bool[np.ndarray, "y x"]]
    estimates: dict[str, Float[np.ndarray, "y x"]]


def lead(found: Blurriness) -> list[Markup]:
    """What becomes of the structure that each method renders least well, at each SNR."""
    sentences = []
    for snr in found.snrs:
        said = []
        for method in found.methods:
            if method in found.painters:
                continue
            kept = {s.name: float(np.mean(found.recovery(method, snr, k))) for k, s in enumerate(found.structures)}
            worst = max(kept, key=lambda name: abs(kept[name] - 1))
            said.append(f"{method} {number(100 * kept[worst])} % ({worst})")
        text = "Contrast against the surroundings, of the structure that each method renders least well (100 % is the "
        sentences.append(Markup("{}truth), at SNR {:g}: {}.").format(text, snr, "; ".join(said)))
    return sentences


def sections(found: Blurriness, views: Sequence[View]) -> list[Section]:
    """Figures and tables, one SNR after the other."""
    parts = []
    for snr in found.snrs:
        blocks: list[Block] = []
        for r, region in enumerate(REGIONS):
            blocks += [Heading(region.capitalize()), Picture(_figure(found, snr, r), f"bias and CV, {region}")]
        blocks.append(
            Text(
                "Boxes: relative bias of the region's mean over all noise realisations of all draws, 25 to 75 %, line "
                "at the median, whiskers 5 to 95 %; light: without structures (E1), full: with them (E2). CV: mean "
                "over the voxels of the region and over draws, its SD over draws, and the Cramér-Rao bound of the "
                "problem that the method solves (black). * and **: E1 and E2 differ with p < 0.05 and p < 0.01 in the "
                "median draw (independent t-test of Welch over the noise realisations).",
                soft=True,
            )
        )
        for r, region in enumerate(REGIONS):
            said = (
                f"{region.capitalize()}, means over draws; bias: mean over draws of the medians over noise realisations"
            )
            blocks += [Heading(said), _table(found, snr, r)]
        view = next((v for v in views if v.snr == snr), None)
        if view is not None:
            blocks += [Heading("One realisation"), Picture(_maps(found, view), "maps around each structure")]
        parts.append(Section(f"SNR {snr:g} (σ {0.65 / snr:.3g})", blocks))
    return parts


def _stars(p_values: Sequence[float]) -> str:
    known = [p for p in p_values if p == p]
    middle = float(np.median(known)) if known else 1.0
    return next((mark for level, mark in _LEVELS if middle < level), "")


def _table(found: Blurriness, snr: float, region: int) -> Grid:
    lines = []
    for k, structure in enumerate(found.structures):
        for method in found.methods:
            change = found.change(method, snr, k, region)
            p_values = [p for p in found.p_values(method, snr, k, region) if p == p]
            cells = [structure.name, method]
            for values in (found.bias, found.spread, found.rmse):
                cells += [number(float(np.mean(values(method, snr, k, region, s)))) for s in (0, 1)]
            if method not in found.painters:
                bounds = (found.bound(found.bound_of[method], snr, k, region, s) for s in (0, 1))
                cells += [number(float(np.mean(bound))) for bound in bounds]
            else:
                cells += ["–", "–"]
            cells.append(f"{number(change.value)} ({number(change.low)} to {number(change.high)})")
            cells.append(f"{sum(p < 0.05 for p in p_values)} of {len(p_values)}" if p_values else "–")
            if region == 0:
                cells.append(f"{number(100 * float(np.mean(found.recovery(method, snr, k))))}")
            lines.append(cells)
    heads = ["structure", "method", "E1", "E2", "E1", "E2", "E1", "E2", "E1", "E2"]
    heads += ["change of bias [%] (95 % over draws)", "draws with p < 0.05"] + (
        ["contrast kept [%]"] if region == 0 else []
    )
    groups = [
        ("", 2),
        ("bias [%]", 2),
        ("CV [%]", 2),
        ("RMSE of the mean [%]", 2),
        ("bound of CV [%]", 2),
        ("", 2 + (region == 0)),
    ]
    return Grid(heads, lines, names=2, groups=groups)


def _figure(found: Blurriness, snr: float, region: int) -> str:
    """Bias and CV of every structure and method, E1 beside E2."""
    shown = [name for name in found.methods if name not in found.painters]
    palette = colours(shown)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 5.0), layout="constrained")
        bias, spread = figure.subplots(2, 1, sharex=True)
        slot = 0.84 / max(len(shown), 3)
        marks: list[tuple[float, str]] = []
        for k in range(len(found.structures)):
            for m, name in enumerate(shown):
                centre = k + slot * (m - (len(shown) - 1) / 2)
                for s, shade in enumerate(("44", "bb")):
                    x = centre + 0.24 * slot * (2 * s - 1)
                    errors = np.concatenate([e[name].error[s, k, region] for e in found.errors[snr]])
                    _box(bias, errors[np.isfinite(errors)], x, 0.4 * slot, palette[name], shade)
                    values = found.spread(name, snr, k, region, s)
                    spread.bar(x, np.mean(values), width=0.42 * slot, color=palette[name] + shade, lw=0)
                    bound = np.mean(found.bound(found.bound_of[name], snr, k, region, s))
                    if np.isfinite(bound):
                        spread.plot([x - 0.21 * slot, x + 0.21 * slot], [bound, bound], color="black", lw=1.4)
                    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
                    spread.errorbar(x, np.mean(values), deviation, color=INK, lw=0.8)
                marks.append((centre, _stars(found.p_values(name, snr, k, region))))
        if max(map(abs, bias.get_ylim())) > _LINEAR:
            bias.set_yscale("symlog", linthresh=_LINEAR)
            bias.yaxis.set_major_locator(FixedLocator(_TICKS))
        bias.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
        if spread.get_ylim()[1] > 2 * _LINEAR:
            spread.set_yscale("log")
            spread.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
            spread.yaxis.set_minor_locator(NullLocator())
        spread.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        bias.axhline(0, color="#bbbbbb", lw=0.7, zorder=0)
        top = bias.get_ylim()[1]
        for x, text in marks:
            bias.text(x, top, text, ha="center", va="top", fontsize=9)
        bias.set_ylabel("relative bias [%]")
        spread.set_ylabel("CV [%]")
        spread.set_xticks(range(len(found.structures)), [s.name.replace("_", " ") for s in found.structures])
        handles: list[Patch | Line2D] = [Patch(facecolor=c + "bb", label=name) for name, c in palette.items()]
        handles += [Patch(facecolor="#88888844", label="E1"), Patch(facecolor="#888888bb", label="E2")]
        handles.append(Line2D([], [], color="black", lw=1.4, label="bound"))
        figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def _box(axis: Axes, values: Float[np.ndarray, " c"], x: float, width: float, colour: str, shade: str) -> None:
    if not values.size:
        return
    low, first, middle, third, high = np.percentile(values, (5, 25, 50, 75, 95))
    axis.bar(x, third - first, width=width, bottom=first, color=colour + shade, edgecolor=colour, lw=0.7)
    axis.plot([x, x], [low, first], color=colour, lw=0.8)
    axis.plot([x, x], [third, high], color=colour, lw=0.8)
    axis.plot([x - width / 2, x + width / 2], [middle, middle], color=INK, lw=1.2)


def _maps(found: Blurriness, view: View) -> str:
    """A row for each structure: truth, then every method, around it."""
    shown = ["truth", *view.estimates]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 1.25 * len(shown), 1.35 * len(view.inside) + 0.3), layout="constrained")
        axes = figure.subplots(len(view.inside), len(shown), squeeze=False)
        picture = None
        for line, (structure, inside) in enumerate(zip(found.structures, view.inside, strict=True)):
            window = _window(inside)
            part = 1e3 * view.truth[window]
            low, high = float(part[part > 0].min()) * 0.8, float(part.max()) * 1.1
            for column, name in enumerate(shown):
                axis = axes[line, column]
                values = view.truth if name == "truth" else view.estimates[name]
                masked = np.ma.masked_invalid(np.where(view.truth > 0, 1e3 * values, np.nan)[window])
                picture = axis.imshow(masked, cmap=ListedColormap(sequential(found.parameter)), vmin=low, vmax=high)
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                if line == 0:
                    axis.set_title(name, fontsize=7.5, loc="left")
            axes[line, 0].set_ylabel(structure.name.replace("_", " "), fontsize=8)
            assert picture is not None
            bar = figure.colorbar(picture, ax=axes[line, :], fraction=0.02, pad=0.01)
            bar.set_label("ms", fontsize=8)
            bar.outline.set_linewidth(0.4)
        return svg_uri(figure)


def _window(inside: Bool[np.ndarray, "y x"]) -> tuple[slice, ...]:
    """The structure in the middle of a square."""
    found = np.argwhere(inside)
    middle = (found.min(0) + found.max(0)) // 2
    reach = _MARGIN + int((found.max(0) - found.min(0)).max()) // 2
    return tuple(slice(max(0, m - reach), m + reach + 1) for m in middle)
