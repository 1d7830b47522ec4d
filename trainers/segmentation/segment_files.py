"""The files of `qsim segment` for networks of kind segmentation: what is read and checked, and all that is written.

Slices are those across the third axis of the file, as in a training: nothing is turned and nothing is resampled but
each slice to the square that a network sees.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped

from phantoms.files.derivatives import Derivatives, Json, MapName, Sources
from phantoms.files.map_files import Place
from phantoms.series.nifti import Volumes, read_volumes
from qsim import __version__
from qsim.errors import InputError
from trainers.segmentation.segment_picture import montage
from trainers.segmentation.segment_text import title
from trainers.segmentation.slices import best_images

if TYPE_CHECKING:
    from trainers.segmentation.segment_figures import HeartRecord, Maps

# a network needs surroundings [voxels]
_LEAST_VOXELS = 16
# pixdim and the columns of the affine, both in single precision and often rounded [1]
_SAME_ZOOM = 0.01
_TARGET = "lv"
_WORDS: dict[str, dict[str, Json]] = {
    "dseg": {"Description": "1: a probability of the left ventricle of at least a half", "Manual": False},
    "probseg": {"Description": "probability of the left ventricle, mean over the members", "Units": "1"},
    "entropy": {"Description": "entropy of the mean probability, linear from the network's grid", "Units": "nats"},
    "mutual": {
        "Description": "entropy of the mean probability less mean entropy of the members, linear from the network's "
        "grid: what they do not agree on",
        "Units": "nats",
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Images of one place that have been checked.

    Attributes:
        file: that they come from.
        values: n contrasts [units of the file].
        place: grid of the file.
        notes: what was done or taken for granted, a sentence each.
    """

    file: Path
    values: Float[np.ndarray, "n z y x"]
    place: Place
    notes: tuple[str, ...]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, sheared ones and gaps between slices too [mm^3]."""
        return float(abs(np.linalg.det(self.place.affine[:3, :3])))

    @property
    def field_mm(self) -> float:
        """Field of view of a slice along its longest side [mm]."""
        _, y, x = self.place.space
        return max(y, x) * float(self.place.spacing_mm[1] if y >= x else self.place.spacing_mm[2])

    @property
    def pixel_mm2(self) -> float:
        """Area of a voxel in its slice [mm^2]."""
        return float(np.linalg.norm(np.cross(self.place.affine[:3, 0], self.place.affine[:3, 1])))


def read_series(file: Path) -> Series:
    """Read a NIfTI image (x, y, z) or (x, y, z, n).

    Raises: InputError naming the file and what is wrong with it.
    """
    stored = read_volumes(file)
    z, y, x = stored.volumes[0].shape
    if min(y, x) < _LEAST_VOXELS:
        raise InputError(f"{file}: has {x} x {y} voxels in a slice, wanted at least {_LEAST_VOXELS} along x and y")
    _check_geometry(file, stored)
    with np.errstate(over="ignore"):
        values = np.stack([np.asarray(each, dtype=np.float32) for each in stored.volumes])
    wrong = int(values.size - np.isfinite(values).sum())
    if wrong:
        raise InputError(
            f"{file}: NaN or infinity in {wrong} of {values.size} voxels; replace them, air by 0, before segmenting"
        )
    below = float((values < 0).mean())
    notes = [f"{file.name}: {100 * below:.2g} % of its values are negative; networks learn magnitudes"] if below else []
    header = stored.header if len(stored.header) == 348 else b""
    place = Place((z, y, x), stored.affine, stored.spacing_mm, header)
    return Series(file, values, place, (*stored.notes, *notes))


def _check_geometry(file: Path, stored: Volumes) -> None:
    """Refuse voxels whose size is not known: it makes areas and volumes."""
    columns = np.linalg.norm(stored.affine[:3, :3], axis=0)
    spacing = np.array(stored.spacing_mm[::-1])
    fits = np.allclose(columns, spacing, rtol=_SAME_ZOOM, atol=0)
    # columns that hardly span a volume
    if not fits or abs(np.linalg.det(stored.affine[:3, :3] / columns)) < _SAME_ZOOM:
        raise InputError(
            f"{file}: its affine (columns of {_by(columns)}) does not fit voxels of {_by(spacing)} mm; mend its header "
            "(sform, qform, pixdim)"
        )


def contrasts(series: Series, wanted: int | None) -> tuple[int | None, ...]:
    """Number of the contrast of each slice that is segmented; None: the slice holds one value only.

    Args:
        wanted: the same for all; None: in each slice that of the highest SNR.
    Raises: InputError naming --image, or the file if no slice can be segmented.
    """
    n = len(series.values)
    if wanted is not None and not 0 <= wanted < n:
        said = f"{n} images, wanted 0 to {n - 1}" if n > 1 else "one image, wanted 0; or leave it out"
        raise InputError(f"--image: got {wanted}, {series.file.name} holds {said}")
    varies = np.ptp(series.values, axis=(2, 3)) > 0
    found: list[int | None] = []
    for z in range(series.place.space[0]):
        able = [k for k in range(n) if varies[k, z] and wanted in (None, k)]
        best = best_images(torch.from_numpy(series.values[able, z]), 1)[0] if able else None
        found.append(None if best is None else able[best])
    if all(each is None for each in found):
        raise InputError(f"{series.file}: holds one value only in every slice; give an image")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Names:
    """Files of an image, relative to the folder of derivatives.

    Attributes:
        several: whether there are members that can disagree.
    """

    name: MapName
    several: bool

    def file(self, suffix: str, description: str = "", end: str = ".nii.gz") -> Path:
        return self.name.folder("anat") / f"{self.name.stem(suffix, description)}{end}"

    @property
    def maps(self) -> dict[str, Path]:
        """By what they hold."""
        found = {"dseg": self.file("dseg", _TARGET), "probseg": self.file("probseg", _TARGET)}
        # BIDS has no suffix for them; this one is in .bidsignore
        uncertain = ("entropy", "mutual") if self.several else ("entropy",)
        return found | {each: self.file("quality", each) for each in uncertain}

    @property
    def planned(self) -> tuple[Path, ...]:
        """All that will be written."""
        maps = tuple(self.maps.values())
        sidecars = tuple(_sidecar(file) for file in maps)
        return (*maps, *sidecars, self.file("quality", end=".json"), self.file("quality", end=".png"))

    @property
    def belonging(self) -> tuple[Path, ...]:
        """Maps of this name without description: those with one, of another call, go when this one's are written."""
        return tuple(self.file(suffix) for suffix in ("dseg", "probseg", "variance", "quality"))


def write(
    made: Derivatives,
    names: Names,
    series: Series,
    maps: "Maps",
    record: "HeartRecord",
    sources: Sources,
    truth: Bool[np.ndarray, "z y x"] | None,
) -> None:
    """Write maps with their sidecars, the record and the picture.

    Args:
        made: the folder, not yet in its place.
    """
    said: dict[str, Json] = {
        "SkullStripped": False,
        "Sources": sources.uris(made.link),
        "Model": [{"Name": each.name, "SHA256": each.digest} for each in record.models],
        "Members": record.members,
        "Notes": list(record.notes),
        "SoftwareName": "qsim",
        "SoftwareVersion": __version__,
    }
    held: dict[str, Shaped[np.ndarray, "z y x"] | None] = {
        "dseg": maps.inside.astype(np.uint8),
        "probseg": maps.probability,
        "entropy": maps.entropy,
        "mutual": maps.mutual,
    }
    for key, file in names.maps.items():
        values = held[key]
        assert values is not None, "several members have a mutual information"
        made.map_file(file, series.place, np.uint8 if key == "dseg" else np.float32).append(values)
        made.sidecar(_sidecar(file), {**_WORDS[key], **said})
    made.close_maps()
    shown = {key: each for key, each in record.as_json().items() if key not in ("out", "files", "seconds")}
    made.sidecar(names.file("quality", end=".json"), shown)
    montage(made.path(names.file("quality", end=".png")), title(record), series, maps, record, truth)


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name.replace(".nii.gz", ".json"))


def _by(numbers: tuple[int, ...] | Shaped[np.ndarray, " k"]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
