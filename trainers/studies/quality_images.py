"""The images of a study of quality: clean ones with known tissues, and the same after an artefact."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor

from generators.store import PatchStore
from phantoms.brains.label_schemes import LABEL_SCHEMES
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace import Artefact, apply_chain, magnitude
from trainers.quality.blocks import Blocks, make_stores, read_blocks
from trainers.quality.image import read_image, read_truth
from trainers.quality.scaling import intensity_scale
from trainers.quality.views import one_of
from trainers.studies.quality_config import LabelledImage, QualityConfig

WHITE = "wm"
# voxels above this part of the brightest one of the clean image are the body [1]
_BODY = 0.1


@dataclass(frozen=True, slots=True)
class CleanImage:
    """An image without artefacts.

    Attributes:
        values: of the order of 1.
        target: voxels of the tissue that is segmented.
        white: of white matter; None: the labels do not tell it.
        spacing_mm: of the voxels [mm].
        voxel_mm3: volume of a voxel [mm^3].
    """

    values: Float[Tensor, "x y z"]
    target: Bool[np.ndarray, "x y z"]
    white: Bool[np.ndarray, "x y z"] | None
    spacing_mm: tuple[float, float, float]
    voxel_mm3: float

    @property
    def body(self) -> Bool[np.ndarray, "x y z"]:
        """Where something is imaged."""
        return np.asarray((self.values > _BODY * self.values.max()).numpy())


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The clean images of a study, digital ones first; pickled with paths, read where they are needed.

    Attributes:
        stores: of the digital images.
        images: measured ones.
        target: the tissue that is segmented.
        names: of every image.
        anatomy: number of the subject of every image.
    """

    stores: tuple[Path, ...]
    images: tuple[LabelledImage, ...]
    target: str
    names: tuple[str, ...]
    anatomy: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digital(self) -> int:
        """How many of the images are digital."""
        return len(self) - len(self.images)

    def read(self, index: int) -> CleanImage:
        """The image of that number.

        Raises: InputError naming the file at fault.
        """
        if index >= self.digital:
            return _measured(self.images[index - self.digital], self.target, f"images[{index - self.digital}]")
        blocks = _blocks(self.stores, self.target)
        values = blocks.images[index]
        white = blocks.mask(index, (WHITE,)).numpy() if WHITE in blocks.tissues else None
        return CleanImage(
            values / intensity_scale(values),
            blocks.mask(index, (self.target,)).numpy(),
            white,
            blocks.spacing_mm,
            float(np.prod(blocks.spacing_mm)),
        )


@lru_cache(maxsize=1)
def _blocks(stores: tuple[Path, ...], target: str) -> Blocks:
    return read_blocks(stores, (target,), "data")


@lru_cache(maxsize=2)
def _measured(given: LabelledImage, target: str, field: str) -> CleanImage:
    try:
        image = read_image(given.image)
        knows_white = WHITE in LABEL_SCHEMES[given.scheme].values()
        wanted = (target, WHITE) if knows_white and target != WHITE else (target,)
        truth = read_truth(given.labels, given.scheme, image, wanted)
    except InputError as error:
        # messages of `qsim segment` name its options
        said = str(error).removeprefix("--labels: ").replace("choose --scheme", "choose another scheme")
        said = said.removeprefix("--scheme: ")
        raise InputError(f"{field}: {said}") from None
    values = torch.from_numpy(image.values)
    white = truth.get(WHITE)
    return CleanImage(
        values / intensity_scale(values), truth[target].copy(), None if white is None else white.copy(),
        image.spacing_mm, image.voxel_mm3,
    )  # fmt: skip


def image_set(config: QualityConfig, target: str, folder: Path, workers: int) -> ImageSet:
    """All clean images; digital ones that are to be generated are made in `folder`, or found there.

    Raises: InputError naming the data at fault.
    """
    stores: tuple[Path, ...] = ()
    names: list[str] = []
    anatomy: list[int] = []
    if config.data:
        folder.mkdir(exist_ok=True)
        stores = tuple(make_stores(config.data, folder, "data", workers, Console(stderr=True)))
        blocks = _blocks(stores, target)
        for number, subject in enumerate(blocks.anatomy.tolist()):
            names.append(f"{blocks.names[subject]} #{number}")
            anatomy.append(int(subject))
    first = 1 + max(anatomy, default=-1)
    for number, given in enumerate(config.images):
        names.append(given.image.name)
        anatomy.append(first + number)
    found = ImageSet(stores, config.images, target, tuple(names), tuple(anatomy))
    for index in range(found.digital, len(found)):
        _check_target(found, index, f"images[{index - found.digital}]")
    for index in range(found.digital):
        _check_target(found, index, f"data: image {found.names[index]}")
    return found


def _check_target(images: ImageSet, index: int, place: str) -> None:
    if np.count_nonzero(images.read(index).target) < 2:
        raise InputError(f"{place} holds no {images.target}, so no segmentation of it can be judged; leave it out")


def files_of(config: QualityConfig) -> dict[str, str]:
    """Checksums of what the config names and does not hold: stores by what they were made from, files by content.

    Raises: InputError if a file is missing.
    """
    found = {str(each.store): PatchStore(each.store).config.digest for each in config.data if each.store is not None}
    for number, each in enumerate(config.images):
        for field, file in (("image", each.image), ("labels", each.labels)):
            if not file.is_file():
                raise InputError(f"images[{number}].{field}: {file} does not exist")
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def spoiled(
    clean: CleanImage, artefacts: Sequence[Artefact[Any]], streams: Streams, stage: str
) -> tuple[Float[Tensor, "x y z"], float]:
    """The modulus after one of the artefacts, all equally likely, and its severity.

    Args:
        stage: of the stream; the same stage draws the same places, times and noise.
    """
    image = clean.values.to(torch.complex64)[None]
    artefact, drawn = one_of(artefacts, tuple(image.shape), streams.rng(stage), clean.spacing_mm)
    result = apply_chain(image, [artefact], [drawn])
    return magnitude(result.images)[0], float(result.severity[0])
