"""The page of a `run_time` study: seconds of every method on the same images, on one thread, and how good it was."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from qsim.evaluation.pages.content import symbol
from qsim.evaluation.pages.figures import STYLE, colours, svg_uri
from qsim.evaluation.pages.grid_page import snr_heads
from qsim.evaluation.pages.heat_report import Block, Grid, Page, Picture, Section, Text
from qsim.evaluation.pages.summary import number
from qsim.kspace.noise import sigma_of
from qsim.parameters import Parameter


@dataclass(frozen=True, slots=True)
class Timing:
    """One method on one series.

    Attributes:
        name: in tables.
        snr: 0.65 / sigma.
        cpu, wall: of each repeat, after one run that is not timed [s].
        peak: memory beyond what the process held before, of the run that is not timed; NaN where unknown [bytes].
        bias, spread, error: median of the relative error over the voxels, half of its 16 to 84 % range, median of its
            size [%].
        bound_name, bound: Cramér-Rao bound the method is held against, median over the voxels [%].
        failed, at_bound: share of the voxels [%].
        whole: it computes the whole matrix, whatever the mask, as a RIM does.
    """

    name: str
    snr: float
    cpu: Sequence[float]
    wall: Sequence[float]
    peak: float
    bias: float
    spread: float
    error: float
    bound_name: str
    bound: float
    failed: float
    at_bound: float
    whole: bool


@dataclass(frozen=True, slots=True)
class Published:
    """A time that somebody else has reported.

    Attributes:
        name: of the method.
        seconds: as printed.
    """

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RunTimeStudy:
    """What the page is made from.

    Attributes:
        timings: in the order of the config, SNR by SNR.
        parameter: whose errors stand beside the times.
        voxels: that are estimated, of `matrix`.
        n_images, matrix: size of the series.
        repeats: timed runs.
        published, source: times of others, and where they stand.
        machine: what it ran on.
        about: signal and anatomy, in one line.
        ignored: what the command asked for and a serial study does not do.
    """

    timings: Sequence[Timing]
    parameter: Parameter
    voxels: int
    n_images: int
    matrix: tuple[int, int]
    repeats: int
    published: Sequence[Published]
    source: str
    machine: str
    about: str
    ignored: str = ""

    @property
    def snrs(self) -> list[float]:
        return sorted({timing.snr for timing in self.timings})

    def at(self, snr: float) -> list[Timing]:
        return [timing for timing in self.timings if timing.snr == snr]

    def rate(self, timing: Timing) -> float:
        """Voxels per CPU-second."""
        return self.voxels / min(timing.cpu)

    def every_voxel(self, timing: Timing) -> float:
        """CPU seconds of the whole matrix, as if all of it were tissue [s]."""
        return min(timing.cpu) if timing.whole else self.matrix[0] * self.matrix[1] / self.rate(timing)

    def ratio(self, timing: Timing, to: str | None = None) -> float:
        """CPU seconds over those of a method, or of the fastest one; NaN if it is not there [1]."""
        seconds = {each.name: min(each.cpu) for each in self.at(timing.snr)}
        of = min(seconds.values()) if to is None else seconds.get(to, float("nan"))
        return min(timing.cpu) / of


def page(study: RunTimeStudy) -> Page:
    """The page, without config, versions and digest."""
    height, width = study.matrix
    sections = [
        Section(f"SNR {snr:g}: seconds for {study.n_images} images of {height} × {width}", _times(study, snr))
        for snr in study.snrs
    ]
    if len(study.snrs) > 1:
        sections.append(Section("Over SNR", [_over_snr(study)]))
    if study.published:
        sections.append(Section("Times that others have printed", _others(study)))
    warnings = [study.ignored] if study.ignored else []
    return Page(
        title="Run time",
        meta=f"{study.about} · {study.voxels:,} of {height * width:,} voxels estimated · one thread · "
        f"{study.repeats} timed runs of each method",
        lead=[_lead(study)],
        sections=sections,
        methods=_methods(study),
        versions={},
        files="results.csv (every figure) and grid.csv (every timed run)",
        config="",
        digest="",
        warnings=warnings,
    )


def _lead(study: RunTimeStudy) -> Markup:
    said = []
    for snr in study.snrs:
        ordered = sorted(study.at(snr), key=lambda timing: min(timing.cpu))
        first, last = ordered[0], ordered[-1]
        text = Markup(
            "At SNR {:g} <b>{}</b> is the fastest with {:.3g} CPU-seconds ({:,.0f} voxels per second)"
        ).format(snr, first.name, min(first.cpu), study.rate(first))
        if last is not first:
            text += Markup(", {} the slowest with {:.3g} (×{})").format(
                last.name, min(last.cpu), number(study.ratio(last))
            )
        best = min((t for t in ordered if isfinite(t.error)), key=lambda t: t.error, default=None)
        if best is not None:
            text += Markup("; smallest median |error| of {}: {}, {} %").format(
                symbol(study.parameter), best.name, number(best.error)
            )
        said.append(text + ".")
    return Markup(" ").join(said)


def _times(study: RunTimeStudy, snr: float) -> list[Block]:
    timings = study.at(snr)
    rows: list[list[str | Markup]] = []
    least = min(range(len(timings)), key=lambda i: min(timings[i].cpu))
    for timing in timings:
        states = [
            f"{number(rate)} % {text}"
            for rate, text in ((timing.failed, "failed"), (timing.at_bound, "at bound"))
            if rate >= 0.5
        ]
        rows.append(
            [
                Markup("{}<br><small>bound: {}</small>").format(timing.name, timing.bound_name),
                f"{min(timing.cpu):.3g}",
                f"{np.median(timing.cpu):.3g}",
                f"{min(timing.wall):.3g}",
                f"{np.median(timing.wall):.3g}",
                f"{study.rate(timing):,.0f}",
                f"{study.every_voxel(timing):.3g}",
                number(study.ratio(timing)),
                number(study.ratio(timing, "least-squares")),
                f"{timing.peak / 2**20:.0f}" if isfinite(timing.peak) else "–",
                number(timing.bias),
                number(timing.spread),
                number(timing.error),
                number(timing.bound),
                ", ".join(states) or "–",
            ]
        )
    heads: list[str | Markup] = ["method", "min", "median", "min", "median", "voxels / CPU-s", "every voxel"]
    heads += ["× fastest", "× least-squares", "[MB]", "bias", "spread", "|error|", "bound", "voxels"]
    groups = [("", 1), ("CPU [s]", 2), ("wall [s]", 2), ("by fewest CPU [s]", 4), ("memory", 1)]
    groups += [(Markup("{} [%], median").format(symbol(study.parameter)), 4), ("", 1)]
    caption = (
        f"σ {sigma_of(snr):.3g}. Every voxel: seconds that the whole matrix, {study.matrix[0] * study.matrix[1]:,} "
        "voxels, would take at this rate (a RIM or ResNet always computes it). Spread: half of the 16 to 84 % range "
        "of the relative error. Bound: "
        "Cramér-Rao bound of the CV; errors of a Gaussian at the bound have a median size of 0.67 of it. Memory: "
        "largest resident size during the first run less that before it; 0: what the process held was enough."
    )
    return [Text(caption, soft=True), Grid(heads, rows, groups=groups, best=[(least, 1)]), _figure(study, snr)]


def _figure(study: RunTimeStudy, snr: float) -> Picture:
    timings = study.at(snr)
    palette = colours([timing.name for timing in study.at(study.snrs[0])])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 0.7 + 0.32 * len(timings)), layout="constrained")
        axis = figure.subplots()
        low = min(min(timing.cpu) for timing in timings) / 3
        for i, timing in enumerate(timings):
            colour = palette.get(timing.name, "#888888")
            axis.barh(i, min(timing.cpu) - low, left=low, height=0.6, color=colour + "88", lw=0)
            axis.plot(timing.cpu, [i] * len(timing.cpu), ls="", marker="o", ms=3, color=colour)
        axis.set_yticks(range(len(timings)), [timing.name for timing in timings])
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlim(low, 1.4 * max(max(timing.cpu) for timing in timings))
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("CPU seconds on one thread, logarithmic axis (bar: fewest; points: every run)")
        return Picture(svg_uri(figure), f"CPU seconds of each method at SNR {snr:g}")


def _over_snr(study: RunTimeStudy) -> Grid:
    names = [timing.name for timing in study.at(study.snrs[0])]
    seconds = {(timing.name, timing.snr): min(timing.cpu) for timing in study.timings}
    rows = [[name, *(f"{seconds[name, snr]:.3g}" for snr in study.snrs)] for name in names]
    return Grid(["fewest CPU seconds", *snr_heads(study.snrs)], rows)


def _others(study: RunTimeStudy) -> list[Block]:
    rows = [[each.name, f"{each.seconds:g}", "as printed, on the machine of its authors"] for each in study.published]
    rows += [
        [
            timing.name,
            f"{study.every_voxel(timing):.3g}",
            f"here, one thread, every voxel of the matrix at the rate of SNR {timing.snr:g}",
        ]
        for timing in study.at(study.snrs[-1])
    ]
    text = (
        f"{study.source}. Other machines, other software, perhaps several threads: the figures stand side by side, and "
        "no ratio is formed between them."
    )
    return [Text(text, soft=True), Grid(["method", "seconds", "where"], rows)]


def _methods(study: RunTimeStudy) -> list[tuple[str, Markup | str]]:
    return [
        ("machine", study.machine),
        (
            "times",
            "CPU time of the process and wall time of the call alone, images in memory, sigma given, torch held to one "
            "thread. One run that is not timed comes first; then the methods take turns, so that a change of the "
            "machine's speed meets them all. The fewest seconds are the least disturbed; the median says how much was.",
        ),
        (
            "images",
            "one noise realisation, the same for every method and run; tissue voxels are estimated, the rest of the "
            "matrix is masked (a RIM or ResNet computes all of it, a network of posteriors a window about the tissue). "
            + study.about
            + ".",
        ),
        ("order", "one method after another, whatever --workers says: neighbours would disturb the times."),
    ]
