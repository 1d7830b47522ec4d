"""The pictures of docs/phantoms: the first and the last image of simulated series of drawn subjects.

python examples/phantom_gallery.py [--out docs/gallery] [--only phantom_liver]
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from phantoms.base import VolumePhantom, as_fractions
from phantoms.heart import clinical_t1, preclinical_t1rho
from phantoms.liver import Liver
from qsim.distributions import mean
from qsim.organ_tissues import Huang2022, Jacobs2025
from qsim.signals import InversionRecovery, SpinLock
from qsim.tissues import TissueTable

# standard deviation of the noise [units of A]
NOISE = 0.012
NAMES = ("phantom_liver", "phantom_heart")
# of one image; gap between two, and height of a line of text [pixels]
SIZE, GAP, LINE = (190, 210), 4, 18


@dataclass(frozen=True)
class Group:
    """Subjects of one cohort.

    Attributes:
        phantom: the cohort, of one slice each.
        table: its tissues.
        model: of the series of two images.
        said: what stands above both rows.
    """

    phantom: VolumePhantom
    table: TissueTable
    model: InversionRecovery | SpinLock
    said: tuple[str, str]


def groups(name: str) -> tuple[Group, ...]:
    """What a picture shows."""
    if name == "phantom_liver":
        liver = Liver(subjects=4, test_subjects=0, slices=1, lesions=(1, 2), fibrosis_share=0.25).load("train", 2)
        said = ("spin-lock of 0 ms at 3 T, blood and fat suppressed", "50 ms")
        return (Group(liver, Huang2022(tr=2.0).table(), SpinLock(tsl=(0.0, 0.05)), said),)
    human, swine = (
        replace(domain, subjects=2, test_subjects=0, scar_share=0.5).load("train", 2)
        for domain in (clinical_t1(), preclinical_t1rho())
    )
    inversion, lock = InversionRecovery(ti=(0.15, 2.5)), SpinLock(tsl=(0.01, 0.05))
    return (
        Group(human, Jacobs2025().table(), inversion, ("human: inversion, 150 ms at 1.5 T", "2500 ms")),
        Group(swine, Jacobs2025(field_strength=3.0).table(), lock, ("swine: spin-lock of 10 ms at 3 T", "50 ms")),
    )


def series(group: Group, volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of the images (n, y, x) of one slice, each tissue at its mean, with Rician noise."""
    means = {"B": 1.95}
    kappa = [
        [means.get(row.name) or mean(group.table[name].values[row.name]) for row in group.model.parameters]
        for name in group.phantom.tissues
    ]
    signal = group.model.coherent(torch.tensor(kappa, dtype=torch.float64).T.contiguous()).numpy()
    clean = np.einsum("nt,tyx->nyx", signal, as_fractions(volume)[..., 0])
    return np.hypot(clean + rng.normal(0, NOISE, clean.shape), rng.normal(0, NOISE, clean.shape))


def paint(name: str, path: Path) -> None:
    """One picture: subjects beside each other, the first image above the last."""
    columns = [
        (group, series(group, volume, np.random.default_rng(n)))
        for group in groups(name)
        for n, volume in enumerate(group.phantom.volumes)
    ]
    height, width = SIZE
    total = (len(columns) * (width + GAP) - GAP, 2 * (height + LINE))
    figure = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100, facecolor="black")
    before = None
    for column, (group, images) in enumerate(columns):
        white = np.quantile(images, 0.995)
        for row, image in enumerate(images):
            left, bottom = column * (width + GAP), total[1] - (row + 1) * (height + LINE)
            place = (left / total[0], bottom / total[1], width / total[0], height / total[1])
            axes = figure.add_axes(place)
            axes.imshow(_trimmed(image), cmap="gray", vmin=0, vmax=white)
            axes.set_axis_off()
            if group is not before:
                at = (left + 4) / total[0], (bottom + height + 4) / total[1]
                figure.text(*at, group.said[row], fontsize=8, color="white")
        before = group
    _save(figure, path)


def _trimmed(image: np.ndarray) -> np.ndarray:
    """Without the air above and below, to the proportions of a tile."""
    rows = round(image.shape[1] * SIZE[0] / SIZE[1])
    first = (image.shape[0] - rows) // 2
    return image[first : first + rows]


def _save(figure: Figure, path: Path) -> None:
    """As a PNG of 32 greys."""
    raw = BytesIO()
    figure.savefig(raw, format="png", dpi=100, facecolor="black")
    Image.open(raw).convert("L").quantize(32).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "gallery")
    parser.add_argument("--only", nargs="*", default=NAMES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if name in options.only:
            path = options.out / f"{name}.png"
            paint(name, path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
