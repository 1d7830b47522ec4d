"""The files of `qsim segment`: their names, the maps on the grid of the image, and the writing of all."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from phantoms.files.derivatives import Derivatives, Json, MapName, Sources
from qsim import __version__
from qsim.errors import InputError
from trainers.quality.image import Image, Resampling
from trainers.quality.picture import quick_look
from trainers.quality.segment_figures import artefact_variance
from trainers.quality.segment_record import SegmentRecord
from trainers.quality.segment_text import title
from trainers.quality.segmenter import TASK, Segmentation


@dataclass(frozen=True, slots=True)
class Names:
    """Files of an image, relative to the folder of derivatives."""

    name: MapName
    target: tuple[str, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        for names in (self.target, self.sources):
            if len({_label(name) for name in names}) < len(names):
                raise InputError(f"--model: {', '.join(names)} would share file names; they differ in signs only")

    def file(self, suffix: str, description: str = "", end: str = ".nii.gz") -> Path:
        return self.name.folder("anat") / f"{self.name.stem(suffix, _label(description))}{end}"

    @property
    def maps(self) -> dict[tuple[str, str], Path]:
        """By suffix and what it is of."""
        of_target = [(suffix, name) for name in self.target for suffix in ("dseg", "probseg")]
        keys = [*of_target, *(("variance", source) for source in self.sources)]
        return {key: self.file(*key) for key in keys}

    @property
    def planned(self) -> tuple[Path, ...]:
        """All that will be written."""
        maps = tuple(self.maps.values())
        sidecars = tuple(_sidecar(file) for file in maps)
        return (*maps, *sidecars, self.file("quality", end=".json"), self.file("quality", end=".png"))

    @property
    def belonging(self) -> tuple[Path, ...]:
        """Maps of this name without description: those with one, of another call, go when this one's are written."""
        return tuple(self.file(suffix) for suffix in ("dseg", "probseg", "variance"))


@dataclass(frozen=True, slots=True)
class Maps:
    """Results on the grid of the image, axes to right, anterior, superior.

    Attributes:
        labels: number of the most probable class, 0 the background.
        probabilities: of the classes of the target.
        artefacts: variance of all artefacts.
    """

    target: tuple[str, ...]
    labels: Int[np.ndarray, "x y z"]
    probabilities: Mapping[str, Float[np.ndarray, "x y z"]]
    variances: Mapping[str, Float[np.ndarray, "x y z"]]
    artefacts: Float[np.ndarray, "x y z"]

    @classmethod
    def of(cls, found: Segmentation, grid: Resampling, target: tuple[str, ...], shown: tuple[str, ...]) -> "Maps":
        """Bring an answer back from the grid of the network.

        Args:
            target: names of the classes after the background.
            shown: sources whose maps are wanted.
        """
        probabilities = grid.back(found.probabilities.numpy())
        return cls(
            target,
            probabilities.argmax(0),
            dict(zip(target, probabilities[1:], strict=True)),
            {source: grid.back(found.variances[source].numpy()) for source in shown},
            grid.back(artefact_variance(found)),
        )

    def inside(self, name: str) -> Bool[np.ndarray, "x y z"]:
        """Voxels of a class."""
        return self.labels == 1 + self.target.index(name)


def write(made: Derivatives, names: Names, image: Image, maps: Maps, record: SegmentRecord, sources: Sources) -> None:
    """Write maps with their sidecars, the record and the picture.

    Args:
        made: the folder, not yet in its place.
    """
    said: dict[str, Json] = {
        "SkullStripped": False,
        "Sources": sources.uris(made.link),
        "Model": {"Name": record.model, "SHA256": record.digest or None},
        "Notes": list(record.notes),
        "SoftwareName": "qsim",
        "SoftwareVersion": __version__,
    }
    for (suffix, name), file in names.maps.items():
        if suffix == "dseg":
            values: Shaped[np.ndarray, "x y z"] = maps.inside(name).astype(np.uint8)
            words: dict[str, Json] = {"Description": f"1: {name} is the most probable class", "Manual": False}
        elif suffix == "probseg":
            values, words = maps.probabilities[name], {"Description": f"probability of {name}", "Units": "1"}
        else:
            values = maps.variances[name]
            what = "what is hard in the segmentation itself" if name == TASK else f"the artefact {name}"
            words = {"Description": f"variance of the network's logits by {what}", "Units": "1"}
        dtype = np.uint8 if suffix == "dseg" else np.float32
        made.map_file(file, image.place, dtype).append(image.turn.back(values).transpose(2, 1, 0))
        made.sidecar(_sidecar(file), {**words, **said})
    made.close_maps()
    shown = {key: each for key, each in record.as_json().items() if key not in ("out", "files", "seconds")}
    made.sidecar(names.file("quality", end=".json"), shown)
    quick_look(
        made.path(names.file("quality", end=".png")),
        title(record),
        image.values,
        image.spacing_mm,
        {name: maps.inside(name) for name in maps.target},
        {"all artefacts": maps.artefacts, **maps.variances},
    )


def _label(name: str) -> str:
    """Letters and digits, as BIDS wants them."""
    return re.sub("[^a-zA-Z0-9]", "", name)


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name.replace(".nii.gz", ".json"))
