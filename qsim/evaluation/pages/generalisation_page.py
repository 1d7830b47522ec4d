"""The page of a `generalisation` study: every method on every protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from qsim.evaluation.metrics import Interval
from qsim.evaluation.pages.content import plain, title
from qsim.evaluation.pages.figures import STYLE, colours, svg_uri
from qsim.evaluation.pages.heat_report import Block, Grid, Heading, Picture, Section, Text
from qsim.evaluation.pages.summary import number
from qsim.evaluation.table import Table

# beyond this bias the axis is logarithmic [%]
_LINEAR = 20.0
_TICKS = [sign * size for size in (0, 10, 20, 50, 100, 200, 500, 1000) for sign in (-1, 1)]
# metric of the table, its statistic there, and what the page calls it
_SHOWN = (("relative_bias_median", "bias"), ("cv_median", "CV"), ("rmse_median", "RMSE"))


@dataclass(frozen=True, slots=True)
class Generalisation:
    """All that was found.

    Attributes:
        parameter: row of kappa that the page is about.
        symbol: of it, as mathtext.
        tissues: regions with voxels.
        protocols: number of images of each, by name.
        methods: names, in the order of the tables, painters last.
        painters: those of them that look at no image.
        tables: of each protocol.
        home: protocols that a network was trained on, by its name.
        refused: why a method does not take a protocol, by (method, protocol).
        bound_of: the bound that each method is held against.
        ratios: CV over that of the network at home on the protocol, by (method, protocol, tissue, SNR), paired by draw.
        snrs: of the study.
    """

    parameter: str
    symbol: str
    tissues: Sequence[str]
    protocols: Mapping[str, int]
    methods: Sequence[str]
    painters: Sequence[str]
    tables: Mapping[str, Table]
    home: Mapping[str, Sequence[str]]
    refused: Mapping[tuple[str, str], str]
    bound_of: Mapping[str, str]
    ratios: Mapping[tuple[str, str, str, float], Interval]
    snrs: Sequence[float]

    def value(self, method: str, protocol: str, tissue: str, snr: float, metric: str) -> float:
        return self.tables[protocol].value(method, tissue, self.parameter, snr, metric)

    def bound(self, method: str, protocol: str, tissue: str, snr: float) -> float:
        """Median bound of the problem that the method solves [%]."""
        return self.value(f"bound-{self.bound_of.get(method, 'free')}", protocol, tissue, snr, "bound_median")


def lead(found: Generalisation) -> list[Markup]:
    """How much a network loses away from home, in the ratios of the CV; without networks, how the fits do."""
    if not found.home:
        return _fits(found)
    away = [
        (ratio.value, method, protocol)
        for (method, protocol, tissue, _), ratio in found.ratios.items()
        if tissue == "pure" and method in found.home and protocol not in found.home[method] and isfinite(ratio.value)
    ]
    if not away:
        return [Markup("No two networks share a protocol, so none can be compared with the one trained for it.")]
    worst, best = max(away), min(away)
    text = Markup(
        "Networks away from their own protocol: CV of {} over all pure voxels {} times ({} on {}) to {} times "
        "({} on {}) that of the network trained for the protocol."
    )
    return [
        text.format(plain(found.parameter), number(best[0]), best[1], best[2], number(worst[0]), worst[1], worst[2])
    ]


def _fits(found: Generalisation) -> list[Markup]:
    """The method with the smallest median RMSE over all pure voxels, protocol by protocol."""
    said = []
    for protocol in found.protocols:
        parts = []
        for snr in found.snrs:
            errors = {
                method: error
                for method in found.methods
                if method not in found.painters
                and (method, protocol) not in found.refused
                and isfinite(error := found.value(method, protocol, "pure", snr, "rmse_median"))
            }
            if errors:
                best = min(errors, key=lambda method: errors[method])
                parts.append(Markup("{} {} % at SNR {:g}").format(best, number(errors[best]), snr))
        if parts:
            said.append(Markup("<b>{}</b>: {}").format(protocol, Markup(", ").join(parts)))
    if not said:
        return [Markup("No method gives an estimate under any protocol.")]
    text = Markup("Smallest median RMSE of {} over all pure voxels under each protocol. {}.")
    return [text.format(plain(found.parameter), Markup("; ").join(said))]


def sections(found: Generalisation) -> list[Section]:
    """One section per SNR: figure, tables by tissue, what does not apply."""
    parts = []
    for snr in found.snrs:
        blocks: list[Block] = [
            Picture(_figure(found, snr), f"bias, CV and RMSE of every method on every protocol, SNR {snr:g}"),
            Text(
                "Medians over the voxels of all draws. Black: the Cramér-Rao bound of the problem that the method "
                "solves." + (" Hatched: a network on a protocol that it was not trained on." if found.home else ""),
                soft=True,
            ),
        ]
        for tissue in found.tissues:
            blocks += [Heading(title(tissue)), _table(found, tissue, snr)]
        parts.append(Section(f"SNR {snr:g} (σ {0.65 / snr:.3g})", blocks))
    if found.refused:
        lines = [[method, protocol, why] for (method, protocol), why in found.refused.items()]
        parts.append(Section("Not applicable", [Grid(["method", "protocol", "why"], lines, names=3)]))
    return parts


def _table(found: Generalisation, tissue: str, snr: float) -> Grid:
    lines = []
    # without networks nothing is at home anywhere
    columns = [*(name for _, name in _SHOWN), "bound", *(["CV / own"] if found.home else [])]
    for method in found.methods:
        cells = [method]
        for protocol in found.protocols:
            if (method, protocol) in found.refused:
                cells += ["–"] * len(columns)
                continue
            cells += [number(found.value(method, protocol, tissue, snr, metric)) for metric, _ in _SHOWN]
            cells.append("–" if method in found.painters else number(found.bound(method, protocol, tissue, snr)))
            if not found.home:
                continue
            ratio = found.ratios.get((method, protocol, tissue, snr))
            if protocol in found.home.get(method, ()):
                cells.append("at home")
            elif ratio is None:
                cells.append("–")
            else:
                cells.append(f"{number(ratio.value)} ({number(ratio.low)} to {number(ratio.high)})")
        lines.append(cells)
    heads = ["method", *(columns * len(found.protocols))]
    groups = [("", 1)] + [(f"{name}: {n} images [%]", len(columns)) for name, n in found.protocols.items()]
    return Grid(heads, lines, names=1, groups=groups)


def _figure(found: Generalisation, snr: float) -> str:
    shown = [method for method in found.methods if method not in found.painters]
    palette = colours(shown)
    tissues = list(found.tissues)[:4]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 2.9 * len(tissues), 6.4), layout="constrained")
        axes = figure.subplots(3, len(tissues), sharex=True, sharey="row", squeeze=False)
        slot = 0.84 / max(len(shown), 3)
        for column, tissue in enumerate(tissues):
            axes[0, column].set_title(title(tissue), loc="left", fontweight="bold")
            for line, (metric, name) in enumerate(_SHOWN):
                axis = axes[line, column]
                for p, protocol in enumerate(found.protocols):
                    for m, method in enumerate(shown):
                        if (method, protocol) in found.refused:
                            continue
                        x = p + slot * (m - (len(shown) - 1) / 2)
                        away = method in found.home and protocol not in found.home[method]
                        axis.bar(
                            x,
                            found.value(method, protocol, tissue, snr, metric),
                            width=0.86 * slot,
                            color=palette[method] + ("77" if away else "cc"),
                            edgecolor="white",
                            hatch="////" if away else None,
                            lw=0,
                        )
                        bound = found.bound(method, protocol, tissue, snr)
                        if name != "bias" and isfinite(bound):
                            axis.plot(
                                [x - 0.43 * slot, x + 0.43 * slot], [bound, bound], color="black", lw=1.3, zorder=5
                            )
                if name == "bias":
                    axis.axhline(0, color="#bbbbbb", lw=0.7)
                axis.set_xticks(range(len(found.protocols)), [name.replace(" ", "\n") for name in found.protocols])
        for line, (_, name) in enumerate(_SHOWN):
            _scale(axes[line, 0], signed=name == "bias")
            axes[line, 0].set_ylabel(f"{name} of ${found.symbol}$ [%]")
        handles: list[Patch | Line2D] = [Patch(facecolor=c + "cc", label=name) for name, c in palette.items()]
        handles.append(Line2D([], [], color="black", lw=1.3, label="bound"))
        figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8.5)
        return svg_uri(figure)


def _scale(axis: Axes, *, signed: bool) -> None:
    """Scale and ticks of a row of panels, which share them."""
    if not signed and axis.get_ylim()[1] > 2 * _LINEAR:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_locator(NullLocator())
    elif signed and max(map(abs, axis.get_ylim())) > _LINEAR:
        axis.set_yscale("symlog", linthresh=_LINEAR)
        axis.yaxis.set_major_locator(FixedLocator(_TICKS))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
