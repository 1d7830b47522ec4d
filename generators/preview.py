"""What is inside a patch store: numbers, and one self-contained page with pictures."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from jaxtyping import Float, UInt8

from generators.preview_figures import a_is_the_signal, draw_histograms, draw_patches, png, snr_label
from generators.store import PatchStore, StoredSamples
from qsim.kspace.noise import snr_of

if TYPE_CHECKING:
    pass

# voxels below this share of their largest tissue are `mixed` and stay out of bias tables [1]
PURE = 0.9
# samples in the picture; in the histograms of the page and the signal over sigma
_SHOWN, _COUNTED = 6, 256

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
        snr: the SNR of those two, 0.65 / sigma; None where 0.65 is not about the signal: of models other than closed
            forms of A.
        first_over_sigma: median of |first image| / sigma over the tissue voxels of `looked_at` stored samples spread
            evenly over the store, noise included; None of closed forms of A, and of maps without images [1].
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
    snr: tuple[float, float] | None
    first_over_sigma: float | None
    looked_at: int
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
    ratio, looked_at = None, 0
    if store.config.store == "images" and not a_is_the_signal(store):
        ratio, looked_at = _first_over_sigma(store)
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
        snr=(snr_of(high), snr_of(low)) if a_is_the_signal(store) else None,
        first_over_sigma=ratio,
        looked_at=looked_at,
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


def _first_over_sigma(store: PatchStore) -> tuple[float | None, int]:
    """Median of |first image| / sigma over the tissue voxels (None: there are none) [1], and the samples looked at."""
    chosen = np.unique(np.linspace(0, len(store) - 1, min(_COUNTED, len(store))).astype(int))
    ratios = []
    # one image at a time: whole series of blocks would fill the memory
    for i in chosen.tolist():
        first = np.asarray(store.arrays["images"][i, 0], dtype=np.float64)
        inside = np.asarray(store.arrays["labels"][i]) > 0
        ratios.append(np.abs(first[inside]) / float(store.arrays["sigma"][i]))
    together = np.concatenate(ratios)
    return float(np.median(together)) if together.size else None, len(chosen)


def _spread(store: PatchStore, most: int) -> StoredSamples:
    """Samples spread evenly over a store."""
    return store.take(np.linspace(0, len(store) - 1, min(most, len(store))).astype(int).tolist())


def megabytes(size: int) -> str:
    """A size as tables print it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def write_page(store: PatchStore, summary: Summary, file: Path) -> None:
    """Write the page: summary first, then figures with captions, then protocol, provenance and the config."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    some, picture = _spread(store, _COUNTED), _spread(store, _SHOWN)
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
        patches=png(draw_patches(store, picture)),
        histograms=png(draw_histograms(store, some)),
        counted=len(some),
        config=yaml.safe_dump(attributes.config, sort_keys=False),
    )
    file.write_text(page, encoding="utf-8")
