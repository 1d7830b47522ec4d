"""Pictures of what is inside a patch store."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from generators.schema import ParameterRow
from generators.store import PatchStore, StoredSamples
from qsim.kspace.artefacts.base import Stage
from qsim.kspace.noise import snr_of
from qsim.parameters import RELAXATION_TIMES
from qsim.signals import ClosedForm, VariableFlipAngle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# tissues whose names fit under a colour bar; more stand in a legend of rows
_UNDER_A_BAR = 4
# parts of the voxels that colours of tissue parameters leave out on either side [%]
_WINDOW = (2, 98)
# a relaxation time whose window spans more than this is drawn on a logarithmic scale: fluid is not all there is [1]
_STEEP = 10.0
_SNR_TICKS = (1, 3, 10, 30, 100, 300, 1000)


def a_is_the_signal(store: PatchStore) -> bool:
    """Whether the model is a closed form that is A times weights near 1, so that 0.65 / sigma is about its SNR.

    Sequences and small flip angles leave a fraction of A.
    """
    model = store.config.signal_model
    return isinstance(model, ClosedForm) and not isinstance(model, VariableFlipAngle)


def snr_label(store: PatchStore) -> str:
    """What the SNR of the config's noise is called; artefacts may hold noise of their own."""
    noisy = any(artefact.stage == Stage.NOISE for artefact in store.config.artefact_list)
    return "SNR before artefacts" if noisy else "SNR"


def png(figure: "Figure") -> str:
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
    from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
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
    few = count <= _UNDER_A_BAR
    column = len(chosen)
    for row in range(rows):
        shade = axes[row, column].imshow(labels[row], cmap=tissue_colours, norm=norm, interpolation="nearest")
    axes[0, column].set_title("tissue", fontsize=9)
    bar = figure.colorbar(shade, ax=axes[:, column], location="bottom", ticks=np.arange(1, count + 1) if few else [])
    if few:
        bar.ax.set_xticklabels(store.tissues, fontsize=6.5)
    else:
        bar.set_label("legend below", fontsize=8)
        _legend_of_rows(figure, store.tissues)

    for q, parameter in enumerate(parameters):
        column = len(chosen) + 1 + q
        factor, unit = (1000, "ms") if parameter.unit == "s" else (1, parameter.unit)
        maps = factor * kappa[:, q]
        low, high = _shown(parameter.name, maps)
        steep = parameter.name in RELAXATION_TIMES and high > _STEEP * low > 0
        scale = LogNorm(low, high) if steep else Normalize(low, high)
        for row in range(rows):
            shade = axes[row, column].imshow(maps[row], cmap=colour_map(parameter.name), norm=scale)
        axes[0, column].set_title(f"${parameter.symbol}$", fontsize=9)
        windowed = parameter.name not in _NOMINAL
        bar = figure.colorbar(shade, ax=axes[:, column], location="bottom", extend="both" if windowed else "neither")
        told = f"\n{_WINDOW[0]}nd to {_WINDOW[1]}th percentile" if windowed else ""
        told += ",\nlogarithmic" if steep else ""
        bar.set_label(_axis_label(parameter, unit) + told, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        if steep:
            bar.ax.xaxis.set_major_formatter("{x:g}")
        else:
            bar.ax.locator_params(nbins=4)

    # the row is low: what is long stands on two lines
    label = snr_label(store).replace(" before", "\nbefore")
    for row in range(rows):
        sigma = float(samples.sigma[row])
        told = f"{label} {snr_of(sigma):.1f}" if a_is_the_signal(store) else f"sigma\n{sigma:.3g}"
        axes[row, 0].set_ylabel(told, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _shown(parameter: str, maps: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Ends of the colour bar: fields about their nominal value, else the 2nd and 98th percentile of labelled voxels.

    Fluid has times far above those of all other tissue: its few voxels do not set the scale.
    """
    if not np.isfinite(maps).any():
        return 0.0, 1.0
    if parameter in _NOMINAL:
        low, high = (float(np.nanquantile(maps, share)) for share in (0.005, 0.995))
        middle = _NOMINAL[parameter]
        reach = max(high - middle, middle - low, 1e-3)
        return middle - reach, middle + reach
    low, high = (float(np.nanpercentile(maps, share)) for share in _WINDOW)
    return low, max(high, low + 1e-6)


def _axis_label(parameter: ParameterRow, unit: str) -> str:
    return f"${parameter.symbol}$" if unit == "1" else f"${parameter.symbol}$ [{unit}]"


def _tissue_colours(count: int) -> list[str]:
    if count <= 10:
        return [f"C{t}" for t in range(count)]
    import matplotlib

    twenty = [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["tab20"].resampled(20)(range(20))]
    return [twenty[t % 20] for t in range(count)]


def _legend_of_rows(figure: "Figure", tissues: tuple[str, ...]) -> None:
    """Tissues and their colours below a figure, as many in a row as its width holds."""
    from matplotlib.patches import Patch

    # a name takes about 0.075 inches a letter, its patch and the gaps 0.6
    wide = 0.6 + 0.075 * max(len(name) for name in tissues)
    columns = max(1, min(len(tissues), int(figure.get_figwidth() / wide)))
    patches = [Patch(color=colour) for colour in _tissue_colours(len(tissues))]
    figure.legend(patches, tissues, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)


def draw_histograms(store: PatchStore, samples: StoredSamples) -> "Figure":
    """Distribution of every parameter in every tissue; over samples of the SNR, or sigma where 0.65 is no signal."""
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
    if len(store.tissues) <= _UNDER_A_BAR:
        axes[0].legend(fontsize=7, frameon=False)
    else:
        _legend_of_rows(figure, store.tissues)
    sigma = samples.sigma.numpy().astype(float)
    if a_is_the_signal(store):
        snr = snr_of(1.0) / sigma
        edges = np.geomspace(snr.min() * 0.999, snr.max() * 1.001, 25)
        axes[-1].hist(snr, bins=edges.tolist(), color="0.4")
        axes[-1].set_xscale("log")
        axes[-1].xaxis.set_major_locator(FixedLocator([x for x in _SNR_TICKS if edges[0] <= x <= edges[-1]]))
        axes[-1].xaxis.set_major_formatter("{x:g}")
        axes[-1].xaxis.set_minor_locator(NullLocator())
        axes[-1].set_xlabel(f"{snr_label(store)} = 0.65 / sigma")
    else:
        axes[-1].hist(sigma, bins=np.linspace(sigma.min() * 0.999, sigma.max() * 1.001, 25).tolist(), color="0.4")
        axes[-1].locator_params(axis="x", nbins=4)
        axes[-1].set_xlabel("sigma [units of A]")
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
