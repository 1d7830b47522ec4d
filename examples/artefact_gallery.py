"""The pictures of docs/artefacts.md: every artefact at three severities, on a brain slice with a smooth phase.

python examples/artefact_gallery.py [--out docs/gallery] [--only motion]
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import pi
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from cmcrameri import cm
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from phantoms.base import as_fractions
from phantoms.brains.mni import MNI
from qsim.kspace import (
    Artefact,
    BiasField,
    Distortion,
    Ghosting,
    Gibbs,
    KSpaceNoise,
    LowPass,
    Motion,
    PartialFourier,
    RFSpike,
    Wraparound,
    Zipper,
    magnitude,
    to_kspace,
)
from qsim.kspace.artefacts.bias_field import field_of
from qsim.kspace.motion.trajectory import Breathing, Drift, Sudden
from qsim.signals import InversionRecovery
from qsim.tissues import Sabidussi2021

Below = Literal["k-space", "centre", "difference", "field", "trajectory", "nothing"]
COLUMNS = ("clean", "mild", "medium", "strong")
# brightest shown [units of A], of every picture
WHITE = 0.62
# k-space is shown over so many decades
DECADES = 4.0
# differences are shown from minus to plus this [units of A]
DIFFERENCE = 0.4
LINES = ("#0072B2", "#E69F00", "#009E73")


@dataclass(frozen=True)
class Picture:
    """One file.

    Attributes:
        name: of the file.
        strengths: the artefact three times, each with what is said above it.
        unit: of its severity.
        below: second row: k-space (the brightest of 2 x 2 samples), its centre (each sample), what changed in the
            image, the field, the trajectory.
        seed: of the draws, the same in each column.
        volume: show a volume in two cuts.
    """

    name: str
    strengths: tuple[tuple[str, Artefact[Any]], ...]
    unit: str = ""
    below: Below = "k-space"
    seed: int = 1
    volume: bool = False


def _voxels(size: float) -> str:
    return f"{size:g} voxel" + ("" if size == 1 else "s")


def _sudden(size: float, degrees: float) -> tuple[str, Motion]:
    moves = Sudden(events=2, translation=size, rotation=degrees * pi / 180)
    return f"{_voxels(size)}, {degrees:g}°", Motion(trajectory=moves, line_time=0.01)


def _breathing(size: float) -> tuple[str, Motion]:
    breaths = Breathing(period=0.55, translation=size, axis=-2)
    return _voxels(size), Motion(trajectory=breaths, line_time=0.01)


def _drift(size: float, degrees: float) -> tuple[str, Motion]:
    drift = Drift(translation=size, rotation=degrees * pi / 180, smooth=True)
    return f"{_voxels(size)}, {degrees:g}°", Motion(trajectory=drift, line_time=0.005)


def _distortion(peak: float) -> tuple[str, Distortion]:
    return f"{peak:g} Hz", Distortion(
        delta_b0=peak, bandwidth=30.0, te=0.006, axis=-2, b0_axis=None, sources=1, radius=0.08
    )


PICTURES = (
    Picture("motion", (_sudden(1, 1), _sudden(3, 3), _sudden(8, 7)), "voxels", "trajectory", seed=4),
    Picture("motion_breathing", tuple(_breathing(size) for size in (1, 3, 8)), "voxels", "trajectory"),
    Picture("motion_volume", (_drift(1, 2), _drift(3, 5), _drift(6, 12)), "voxels", "nothing", seed=2, volume=True),
    Picture(
        "bias_field", tuple((f"strength {s}", BiasField(strength=s)) for s in (0.15, 0.4, 0.9)), "", "field", seed=3
    ),
    Picture("distortion", tuple(_distortion(peak) for peak in (60, 180, 420)), "voxels", "field", seed=1848),
    Picture(
        "ghosting", tuple((f"phase {p} rad", Ghosting(phase=p, axis=-2)) for p in (0.1, 0.3, 0.8)), "", "difference"
    ),
    Picture(
        "ghosting_periodic",
        tuple((f"phase {p} rad", Ghosting(pattern="periodic", period=7.3, phase=p, axis=-2)) for p in (0.1, 0.4, 1.2)),
        "",
        "difference",
    ),
    Picture("rf_spike", tuple((f"amplitude {a}", RFSpike(amplitude=a)) for a in (0.2, 0.8, 3.0)), seed=19),
    Picture(
        "zipper",
        tuple(
            (f"{a}, width {w}", Zipper(amplitude=a, axis=-1, position=0.4, width=w))
            for a, w in ((0.1, 1), (0.3, 2), (0.8, 3))
        ),
    ),
    Picture("k_space_noise", tuple((f"{d:g} dB", KSpaceNoise(snr_db=d)) for d in (20.0, 10.0, 0.0))),
    Picture("low_pass", tuple((f"factor {f}", LowPass(factor=f, axes=(-1,))) for f in (2, 4, 8))),
    Picture("gibbs", tuple((f"kept {k}", Gibbs(kept=k)) for k in (0.6, 0.4, 0.2))),
    Picture(
        "wraparound",
        tuple(
            (f"R {r}, strength {s:g}", Wraparound(strength=s, axis=-1, offset=0, factor=r))
            for r, s in ((2, 0.3), (2, 1.0), (3, 1.0))
        ),
        "",
        "centre",
    ),
    Picture(
        "wraparound_random",
        tuple(
            (f"omitted {share}", Wraparound(pattern="random", omitted=share, axis=-2, centre=0.05))
            for share in (0.1, 0.3, 0.6)
        ),
        "",
        "centre",
    ),
    Picture(
        "partial_fourier",
        tuple(
            (f"fraction {fraction}", PartialFourier(fraction=fraction, axis=-2, side="negative"))
            for fraction in (0.8, 0.65, 0.52)
        ),
    ),
)


@cache
def brain() -> tuple[torch.Tensor, torch.Tensor]:
    """A slice (1, 216, 192) of 1 mm, and a volume (1, 76, 108, 96) of 2 mm: inversion recovery, smooth phase."""
    phantom = MNI().load("test", 2)
    table = Sabidussi2021().table()
    # white brighter than grey matter, CSF nearly nulled
    model = InversionRecovery(ti=(1.8,))
    fractions = torch.from_numpy(as_fractions(phantom.volumes[0][:, 2:194, 9:225, 2:154]))
    mean = {"B": 1.95}
    kappas = []
    for name in phantom.tissues:
        values = table[name].values
        kappas.append(
            [mean.get(row.name) or float(values[row.name].ppf(np.array([0.5]))[0]) for row in model.parameters]
        )
    signal = model.coherent(torch.tensor(kappas).T.contiguous())[0]
    # x y z becomes z y x, the front of the head above
    images = torch.einsum("t,txyz->zyx", signal, fractions).flip(1)
    flat = _with_phase(images[76:77])
    coarse = images.reshape(76, 2, 108, 2, 96, 2).mean((1, 3, 5))
    return flat, _with_phase(coarse)[None]


def _with_phase(images: torch.Tensor) -> torch.Tensor:
    """Phase as fields and coils leave it: a polynomial of a few radians."""
    z, y, x = torch.meshgrid(
        *(torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in images.shape), indexing="ij"
    )
    phase = 0.6 + 0.7 * x - 0.5 * y + 0.9 * x * y - 0.8 * y**2 + 0.4 * z
    return images * torch.exp(1j * phase)


def draw(picture: Picture, artefact: Artefact[Any]) -> tuple[Any, torch.Tensor]:
    """What was drawn for one column, and the complex image."""
    images = brain()[1 if picture.volume else 0]
    drawn = artefact.draw(tuple(images.shape), np.random.default_rng(picture.seed))
    return drawn, artefact.apply(images, drawn)


def paint(picture: Picture, path: Path) -> None:
    """One picture of four columns."""
    clean = brain()[1 if picture.volume else 0]
    columns = [(None, clean), *(draw(picture, artefact) for _, artefact in picture.strengths)]
    tiles = [_cuts(magnitude(images)) for _, images in columns]
    height, width = tiles[0].shape
    rows = {"nothing": 0, "trajectory": 110}.get(picture.below, height)
    gap, head, side = 8, 40, 10
    # right of the images: colour bars
    right = side + 4 * (width + gap)
    total = (right + 56, head + height + (rows + gap if rows else 0) + side)
    figure = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100, facecolor="white")
    for number, ((drawn, images), tile) in enumerate(zip(columns, tiles, strict=True)):
        left = side + number * (width + gap)
        axes = figure.add_axes(_place(left, head, width, height, total))
        axes.imshow(tile, cmap="gray", vmin=0, vmax=WHITE, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        _title(figure, picture, number, drawn, left, total)
        if rows:
            _below(figure, picture, number, drawn, images, (left, head + height + gap, width, rows), total)
    _bar(figure, "gray", (0, WHITE), "units of A", (right, head, 8, height), total)
    scale = _scale(picture)
    if scale is not None:
        _bar(figure, *scale, (right, head + height + gap, 8, rows), total)
    _save(figure, path)


def _scale(picture: Picture) -> tuple[Any, tuple[float, float], str] | None:
    """Colours, ends and unit of the second row."""
    if picture.below in ("nothing", "trajectory"):
        return None
    if picture.below == "difference":
        return cm.vik, (-DIFFERENCE, DIFFERENCE), "change, units of A"
    if picture.below == "field":
        _, reach = _field(picture, 0, None, brain()[0])
        unit = "Hz" if isinstance(picture.strengths[-1][1], Distortion) else "ln of the field"
        return cm.vik, (-reach, reach), unit
    return cm.batlow, (-DECADES, 0), "log10 of |K| / max"


def _bar(
    figure: Figure, colours: Any, ends: tuple[float, float], unit: str, box: tuple[int, ...], total: tuple[int, int]
) -> None:
    axes = figure.add_axes(_place(*box, total))
    bar = figure.colorbar(ScalarMappable(Normalize(*ends), colours), cax=axes)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    axes.tick_params(labelsize=6.5, length=2, colors="#555555", pad=1)
    bar.set_label(unit, fontsize=6.5, color="#555555", labelpad=1)


def _cuts(image: torch.Tensor) -> np.ndarray:
    """A slice as it is; of a volume the coronal and the sagittal middle, one above the other."""
    values = image[0].numpy()
    if values.ndim == 2:
        return values
    coronal, sagittal = values[::-1, values.shape[1] // 2], values[::-1, :, values.shape[2] // 2 + 4]
    # two pixels a voxel
    shape = max(coronal.shape[1], sagittal.shape[1])
    padded = [
        np.pad(cut, ((0, 0), ((shape - cut.shape[1]) // 2, (shape - cut.shape[1] + 1) // 2)))
        for cut in (coronal, sagittal)
    ]
    return np.concatenate(padded).repeat(2, 0).repeat(2, 1)


def _title(figure: Figure, picture: Picture, number: int, drawn: Any, left: int, total: tuple[int, int]) -> None:
    y = 1 - 16 / total[1]
    if drawn is None:
        figure.text(left / total[0], y, COLUMNS[0], fontsize=9, weight="bold", va="center", color="#222222")
        figure.text(
            left / total[0], 1 - 31 / total[1], picture.name.replace("_", " "), fontsize=8, va="center", color="#555555"
        )
        return
    what, _ = picture.strengths[number - 1]
    figure.text(
        left / total[0], y, f"{COLUMNS[number]}: {what}", fontsize=9, weight="bold", va="center", color="#222222"
    )
    severity = f"severity {drawn.severity:.3g} {picture.unit}".strip()
    figure.text(left / total[0], 1 - 31 / total[1], severity, fontsize=8, va="center", color="#555555")


def _below(
    figure: Figure,
    picture: Picture,
    number: int,
    drawn: Any,
    images: torch.Tensor,
    box: tuple[int, ...],
    total: tuple[int, int],
) -> None:
    if picture.below == "trajectory":
        _trajectory(figure, picture, number, drawn, box, total)
        return
    axes = figure.add_axes(_place(*box, total))
    axes.set_axis_off()
    if picture.below == "field":
        field, reach = _field(picture, number, drawn, images)
        axes.imshow(field, cmap=cm.vik, vmin=-reach, vmax=reach, interpolation="nearest", aspect="auto")
        return
    if picture.below == "difference":
        change = (magnitude(images) - magnitude(brain()[0]))[0].numpy()
        axes.imshow(change, cmap=cm.vik, vmin=-DIFFERENCE, vmax=DIFFERENCE, interpolation="nearest", aspect="auto")
        return
    amplitude = to_kspace(images, (-2, -1)).abs()[0].numpy()
    top = float(to_kspace(brain()[0], (-2, -1)).abs().max())
    ny, nx = amplitude.shape
    if picture.below == "centre":
        seen = amplitude[ny // 4 : ny // 4 + ny // 2, nx // 4 : nx // 4 + nx // 2]
    else:
        # a single sample is seen
        seen = amplitude.reshape(ny // 2, 2, nx // 2, 2).max((1, 3))
    shown = np.log10(np.maximum(seen, top * 10 ** -(2 * DECADES)) / top)
    axes.imshow(shown, cmap=cm.batlow, vmin=-DECADES, vmax=0, interpolation="nearest", aspect="auto")


def _field(picture: Picture, number: int, drawn: Any, images: torch.Tensor) -> tuple[np.ndarray, float]:
    _, strongest = picture.strengths[-1]
    if isinstance(strongest, Distortion):
        reach = float(strongest.delta_b0)  # type: ignore[arg-type]
        if number == 0:
            return np.zeros(tuple(images.shape[1:])), reach
        _, artefact = picture.strengths[number - 1]
        assert isinstance(artefact, Distortion)
        return artefact.field(drawn).numpy(), reach
    assert isinstance(strongest, BiasField)
    reach = float(strongest.strength)  # type: ignore[arg-type]
    return (np.zeros(tuple(images.shape[1:])) if number == 0 else np.log(field_of(drawn))), reach


def _trajectory(
    figure: Figure, picture: Picture, number: int, drawn: Any, box: tuple[int, ...], total: tuple[int, int]
) -> None:
    """Translation along y and x [voxels] and rotation [degrees], before the mean is taken out."""
    left, top, width, height = box
    axes = figure.add_axes(_place(left + 22, top + 6, width - 26, height - 26, total))
    _, strongest = picture.strengths[-1]
    assert isinstance(strongest, Motion)
    last = strongest.draw(tuple(brain()[0].shape), np.random.default_rng(picture.seed))
    reach = max(1.0, float(np.abs(_shown(strongest, last)[1]).max()) * 1.1)
    if number > 0:
        _, artefact = picture.strengths[number - 1]
        assert isinstance(artefact, Motion)
        times, values = _shown(artefact, drawn)
        for name, colour, row in zip(("y", "x", "turn"), LINES, values.T, strict=True):
            axes.plot(times, row, color=colour, lw=1.2, label=name)
    else:
        times = _shown(strongest, last)[0]
        axes.plot(times, np.zeros_like(times), color="#888888", lw=1.2)
    axes.set_xlim(0, float(times[-1]))
    axes.set_ylim(-reach, reach)
    axes.tick_params(labelsize=6.5, length=2, colors="#555555", pad=1)
    axes.set_xlabel("s", fontsize=6.5, labelpad=-6, loc="right", color="#555555")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if number == 0:
        axes.text(0.02, 0.95, "voxels, degrees", transform=axes.transAxes, fontsize=7, va="top", color="#555555")
    if number == 1:
        axes.legend(
            fontsize=6.5, frameon=False, loc="upper left", ncols=3, handlelength=1, columnspacing=0.8, borderpad=0
        )


def _shown(artefact: Motion, drawn: Any) -> tuple[np.ndarray, np.ndarray]:
    trajectory = artefact.sampled(drawn)
    values = trajectory.parameters[0][:, :3].copy()
    values[:, 2] *= 180 / pi
    return trajectory.times[0], values


def _place(
    left: float, top: float, width: float, height: float, total: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Pixels from the upper left to the fractions of matplotlib."""
    return left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1]


def _save(figure: Figure, path: Path) -> None:
    """As a PNG of a fixed palette: small, and a grey stays grey."""
    raw = BytesIO()
    figure.savefig(raw, format="png", dpi=100)
    greys = [(grey, grey, grey) for grey in range(0, 256, 5)]
    maps = [tuple(round(255 * c) for c in cmap(i / 60)[:3]) for cmap in (cm.batlow, cm.vik) for i in range(61)]
    lines = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in LINES]
    palette = np.array([*greys, *maps, *lines])
    pixels = np.asarray(Image.open(raw).convert("RGB"))
    colours, number = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    nearest = ((colours[:, None].astype(int) - palette) ** 2).sum(-1).argmin(1)
    picture = Image.fromarray(nearest[number].reshape(pixels.shape[:2]).astype(np.uint8))
    picture.putpalette(palette.astype(np.uint8).tobytes())
    picture.save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "gallery")
    parser.add_argument("--only", nargs="*", default=[picture.name for picture in PICTURES])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        if picture.name in options.only:
            path = options.out / f"{picture.name}.png"
            paint(picture, path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
