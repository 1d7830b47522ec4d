"""What is inside a patch store: numbers, and one self-contained page with pictures."""

import base64
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from jaxtyping import Float, Shaped, UInt8

from generators.schema import ParameterRow
from generators.store import PatchStore, StoredSamples
from qsim.kspace.artefacts.base import Stage
from qsim.kspace.noise import snr_of
from qsim.parameters import RELAXATION_TIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# voxels below this share of their largest tissue are `mixed` and stay out of bias tables [1]
PURE = 0.9
# samples in the picture and in the histograms of the page
_SHOWN, _COUNTED = 6, 256
_SNR_TICKS = (1, 3, 10, 30, 100, 300, 1000)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TissueRow:
    """One parameter in the voxels of one tissue [SI]; None where no voxel holds the tissue."""

    tissue: str
    share: float
    parameter: str
    unit: str
    low: float | None
    mean: float | None
    sd: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ArtefactRow:
    """One artefact over the samples.

    Attributes:
        kind: of the config.
        share: of the samples that have it [1].
        median, high: of the severity in these; None if none has it.
        measures: what the severity is.
    """

    kind: str
    share: float
    median: float | None
    high: float | None
    measures: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a store holds.

    Attributes:
        background: share of the voxels without a tissue [1].
        mixed: share of the tissue voxels whose largest fraction is below 0.9 [1].
        sigma: smallest and largest noise SD [units of A].
        snr: the SNR of those two, 0.65 / sigma.
        rows: one per tissue and parameter.
        artefacts: one per artefact of the config.
    """

    path: str
    samples: int
    subjects: int
    patch: tuple[int, ...]
    images: int
    dtype: str
    times_s: tuple[float, ...]
    bytes_on_disk: int
    bytes_decoded: int
    background: float
    mixed: float
    sigma: tuple[float, float]
    snr: tuple[float, float]
    rows: tuple[TissueRow, ...]
    artefacts: tuple[ArtefactRow, ...]


class _Moments:
    """Count, mean, sum of squared deviations and range of every (tissue, parameter), shard by shard."""

    def __init__(self, tissues: int, parameters: int) -> None:
        shape = (tissues, parameters)
        self.count = np.zeros(tissues)
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, labels: UInt8[np.ndarray, "b *space"], kappa: Float[np.ndarray, "b q *space"]) -> None:
        rows = np.moveaxis(kappa, 1, 0).reshape(kappa.shape[1], -1)
        flat = labels.reshape(-1)
        for t in range(len(self.count)):
            x = rows[:, flat == t + 1].astype(np.float64)
            n = x.shape[1]
            if n == 0:
                continue
            # pairwise update of mean and squares: sums of squares alone would cancel
            # Chan et al. 1983, doi:10.1080/00031305.1983.10483115
            mean = x.mean(1)
            delta, total = mean - self.mean[t], self.count[t] + n
            self.squares[t] += ((x - mean[:, None]) ** 2).sum(1) + delta**2 * self.count[t] * n / total
            self.mean[t] += delta * n / total
            self.count[t] = total
            self.low[t] = np.minimum(self.low[t], x.min(1))
            self.high[t] = np.maximum(self.high[t], x.max(1))


def summarise(store: PatchStore, progress: Progress | None = None) -> Summary:
    """Read all maps of a store and condense them.

    Args:
        store: the store.
        progress: called with samples read and samples in all.
    """
    attributes = store.attributes
    moments = _Moments(len(attributes.tissues), len(attributes.parameters))
    background = mixed = voxels = 0
    for start, stop in attributes.layout.ranges(len(store)):
        labels = np.asarray(store.arrays["labels"][start:stop])
        purity = np.asarray(store.arrays["purity"][start:stop])
        moments.add(labels, np.asarray(store.arrays["kappa"][start:stop]))
        background += int((labels == 0).sum())
        mixed += int(((labels > 0) & (purity < PURE)).sum())
        voxels += labels.size
        if progress is not None:
            progress(stop, len(store))
    sigma = np.asarray(store.arrays["sigma"][:], dtype=np.float64)
    low, high = float(sigma.min()), float(sigma.max())
    files = (file for file in store.path.rglob("*") if file.is_file())
    return Summary(
        path=str(store.path),
        samples=len(store),
        subjects=len(np.unique(store.arrays["subject"][:])),
        patch=store.config.patch,
        images=store.config.signal_model.n_images,
        dtype="maps only" if store.config.store == "maps" else store.config.dtype,
        times_s=attributes.times_s,
        bytes_on_disk=sum(file.stat().st_size for file in files),
        bytes_decoded=store.nbytes,
        background=background / voxels,
        mixed=mixed / max(voxels - background, 1),
        sigma=(low, high),
        snr=(snr_of(high), snr_of(low)),
        rows=tuple(_rows(store, moments, voxels)),
        artefacts=tuple(_artefacts(store)),
    )


def _artefacts(store: PatchStore) -> list[ArtefactRow]:
    if not store.attributes.artefacts:
        return []
    rows = []
    severity = np.asarray(store.arrays["severity"][:], dtype=np.float64)
    for artefact, column in zip(store.attributes.artefacts, severity.T, strict=True):
        there = column[column > 0]
        median, high = (float(np.median(there)), float(there.max())) if there.size else (None, None)
        rows.append(ArtefactRow(artefact.kind, there.size / len(column), median, high, artefact.severity))
    return rows


def _rows(store: PatchStore, moments: _Moments, voxels: int) -> list[TissueRow]:
    rows = []
    for t, tissue in enumerate(store.tissues):
        n = moments.count[t]
        for q, parameter in enumerate(store.attributes.parameters):
            numbers = (
                moments.low[t, q],
                moments.mean[t, q],
                float(np.sqrt(moments.squares[t, q] / max(n - 1, 1))),
                moments.high[t, q],
            )
            low, mean, sd, high = (float(x) if n else None for x in numbers)
            rows.append(TissueRow(tissue, float(n / voxels), parameter.name, parameter.unit, low, mean, sd, high))
    return rows


def shown(value: float | None, unit: str) -> str:
    """A number as tables print it: times in ms, three to four digits."""
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if unit == "s" else f"{value:.3g} {unit}".removesuffix(" 1")


def snr_label(store: PatchStore) -> str:
    """What the SNR of the config's noise is called; artefacts may hold noise of their own."""
    noisy = any(artefact.stage == Stage.NOISE for artefact in store.config.artefact_list)
    return "SNR before artefacts" if noisy else "SNR"


def megabytes(size: int) -> str:
    """A size as tables print it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def write_page(store: PatchStore, summary: Summary, file: Path) -> None:
    """Write the page: summary first, then figures with captions, then protocol, provenance and the config."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    some = store.take(np.linspace(0, len(store) - 1, min(_COUNTED, len(store))).astype(int).tolist())
    picture = store.take(np.linspace(0, len(store) - 1, min(_SHOWN, len(store))).astype(int).tolist())
    environment = Environment(loader=PackageLoader("generators", "pages"), autoescape=select_autoescape(default=True))
    environment.filters["shown"] = shown
    environment.filters["megabytes"] = megabytes
    attributes = store.attributes
    page = environment.get_template("inspect.html").render(
        summary=asdict(summary),
        attributes=attributes.model_dump(),
        name=store.path.name,
        snr_label=snr_label(store),
        times_ms=", ".join(f"{1000 * time:g}" for time in attributes.times_s),
        patches=_png(draw_patches(store, picture)),
        histograms=_png(draw_histograms(store, some)),
        counted=len(some),
        config=yaml.safe_dump(attributes.config, sort_keys=False),
    )
    file.write_text(page, encoding="utf-8")


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="white")
    return base64.b64encode(buffer.getvalue()).decode()


# fields, shown about these values
_NOMINAL = {"DELTA_B0": 0.0, "REL_B1": 1.0, "C": 0.0}


def colour_map(parameter: str) -> "Colormap":
    """Colours of a parameter: lipari for T1, navia for T2, T2* and T1rho (doi:10.1002/mrm.30290), two-sided for fields.

    Invalid is black.
    """
    import matplotlib
    from cmcrameri import cm

    if parameter == "T1":
        chosen = cm.cmaps["lipari"]
    elif parameter in _NOMINAL:
        chosen = cm.cmaps["vik"]
    elif parameter in RELAXATION_TIMES:
        chosen = cm.cmaps["navia"]
    else:
        chosen = matplotlib.colormaps["gray"] if parameter in ("A", "M0") else cm.cmaps["batlow"]
    colours: Colormap = chosen.with_extremes(bad="black")
    return colours


def _slice(block: Shaped[np.ndarray, "... z y x"], dims: int) -> Shaped[np.ndarray, "... y x"]:
    """Central slice of blocks; slices as they are."""
    return block if dims == 2 else block[..., block.shape[-3] // 2, :, :]


def draw_patches(store: PatchStore, samples: StoredSamples) -> "Figure":
    """Some samples, one per row: images at the first, a middle and the last time, labels, true maps."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

    dims, times, parameters = len(store.config.patch), store.attributes.times_s, store.attributes.parameters
    labels = _slice(samples.labels.numpy(), dims)
    kappa = np.where(labels[:, None] > 0, _slice(samples.kappa.numpy(), dims), np.nan)
    chosen = sorted({0, len(times) // 2, len(times) - 1}) if samples.images is not None else []
    rows, columns = len(samples), len(chosen) + 1 + len(parameters)
    figure = Figure(figsize=(1.55 * columns, 1.45 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)

    if samples.images is not None:
        images = _slice(samples.images.numpy(), dims)[:, chosen]
        low, high = min(0.0, float(np.quantile(images, 0.005))), float(np.quantile(images, 0.995))
        for column, time in enumerate(chosen):
            for row in range(rows):
                shade = axes[row, column].imshow(images[row, column], cmap="gray", vmin=low, vmax=high)
            axes[0, column].set_title(f"{1000 * times[time]:.4g} ms", fontsize=9)
        bar = figure.colorbar(shade, ax=axes[:, : len(chosen)], location="bottom", shrink=0.6)
        bar.set_label("signal [units of A]", fontsize=8)
        bar.ax.tick_params(labelsize=7)

    count = len(store.tissues)
    tissue_colours = ListedColormap(["black", *_tissue_colours(count)])
    norm = BoundaryNorm(np.arange(-0.5, count + 1), count + 1)
    column = len(chosen)
    for row in range(rows):
        shade = axes[row, column].imshow(labels[row], cmap=tissue_colours, norm=norm, interpolation="nearest")
    axes[0, column].set_title("tissue", fontsize=9)
    bar = figure.colorbar(shade, ax=axes[:, column], location="bottom", ticks=np.arange(1, count + 1))
    bar.ax.set_xticklabels(store.tissues, rotation=60 if count > 4 else 0, fontsize=6.5)

    for q, parameter in enumerate(parameters):
        column = len(chosen) + 1 + q
        factor, unit = (1000, "ms") if parameter.unit == "s" else (1, parameter.unit)
        maps = factor * kappa[:, q]
        low, high = _shown(parameter.name, maps)
        for row in range(rows):
            shade = axes[row, column].imshow(maps[row], cmap=colour_map(parameter.name), vmin=low, vmax=high)
        axes[0, column].set_title(f"${parameter.symbol}$", fontsize=9)
        bar = figure.colorbar(shade, ax=axes[:, column], location="bottom")
        bar.set_label(_axis_label(parameter, unit), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.ax.locator_params(nbins=4)

    # the row is low: what is long stands on two lines
    label = snr_label(store).replace(" before", "\nbefore")
    for row in range(rows):
        axes[row, 0].set_ylabel(f"{label} {snr_of(float(samples.sigma[row])):.1f}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _shown(parameter: str, maps: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Ends of the colour bar: fields about their nominal value, B over its range, all else from 0."""
    if not np.isfinite(maps).any():
        return 0.0, 1.0
    low, high = (float(np.nanquantile(maps, share)) for share in (0.005, 0.995))
    if parameter in _NOMINAL:
        middle = _NOMINAL[parameter]
        reach = max(high - middle, middle - low, 1e-3)
        return middle - reach, middle + reach
    if parameter != "B":
        low = 0.0
    return low, max(high, low + 1e-6)


def _axis_label(parameter: ParameterRow, unit: str) -> str:
    return f"${parameter.symbol}$" if unit == "1" else f"${parameter.symbol}$ [{unit}]"


def _tissue_colours(count: int) -> list[str]:
    return [f"C{t % 10}" for t in range(count)]


def draw_histograms(store: PatchStore, samples: StoredSamples) -> "Figure":
    """Distribution of every parameter in every tissue, and of the SNR over samples."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    parameters = store.attributes.parameters
    figure = Figure(figsize=(3.1 * (len(parameters) + 1), 2.5), layout="constrained")
    axes = figure.subplots(1, len(parameters) + 1, squeeze=False)[0]
    labels = samples.labels.numpy()
    colours = _tissue_colours(len(store.tissues))
    for q, parameter in enumerate(parameters):
        factor, unit = (1000, "ms") if parameter.unit == "s" else (1, parameter.unit)
        values = factor * samples.kappa.numpy()[:, q]
        tissue_values = [values[labels == t + 1] for t in range(len(store.tissues))]
        _histogram(axes[q], tissue_values, store.tissues, colours)
        axes[q].set_xlabel(_axis_label(parameter, unit))
        axes[q].set_ylabel("density" if q == 0 else "")
    axes[0].legend(fontsize=7, frameon=False)
    snr = snr_of(1.0) / samples.sigma.numpy().astype(float)
    edges = np.geomspace(snr.min() * 0.999, snr.max() * 1.001, 25)
    axes[-1].hist(snr, bins=edges.tolist(), color="0.4")
    axes[-1].set_xscale("log")
    axes[-1].xaxis.set_major_locator(FixedLocator([x for x in _SNR_TICKS if edges[0] <= x <= edges[-1]]))
    axes[-1].xaxis.set_major_formatter("{x:g}")
    axes[-1].xaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel(f"{snr_label(store)} = 0.65 / sigma")
    axes[-1].set_ylabel("samples")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    return figure


def _histogram(
    axis: "Axes",
    values: list[Float[np.ndarray, " _"]],
    names: tuple[str, ...],
    colours: list[str],
) -> None:
    whole = np.concatenate(values)
    if whole.size == 0:
        return
    low, high = float(whole.min()), float(whole.max())
    bins = np.linspace(low, high, 61) if high > low else np.array([low - 0.5, low + 0.5])
    for tissue, name, colour in zip(values, names, colours, strict=True):
        if tissue.size:
            axis.hist(tissue, bins=bins.tolist(), density=True, histtype="stepfilled", alpha=0.25, color=colour)
            axis.hist(tissue, bins=bins.tolist(), density=True, histtype="step", color=colour, label=name)
    axis.set_yticks([])
