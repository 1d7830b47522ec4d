"""What networks of kind segmentation say of an image, slice by slice, and the figures that are told of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from generators.cli import Progress
from qsim.errors import InputError
from qsim.evaluation.segmentation import dice, volume
from trainers.segmentation.preparation import Frame, normalised
from trainers.segmentation.running import THRESHOLD

if TYPE_CHECKING:
    from trainers.segmentation.predict import Masker
    from trainers.segmentation.segment_files import Series

_ML = 1e-3
# largest ratio of fields of view that nothing is said of; networks learn hearts of about such sizes [1]
_OTHER_SIZE = 1.25
Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Maps:
    """Answers on the grid of the image; 0 in slices that could not be segmented.

    Attributes:
        probability: of the target [1].
        entropy: of the mean probability [nats].
        mutual: what the members do not agree on [nats]; None: there is one member.
    """

    probability: Float[np.ndarray, "z y x"]
    entropy: Float[np.ndarray, "z y x"]
    mutual: Float[np.ndarray, "z y x"] | None

    @property
    def inside(self) -> Bool[np.ndarray, "z y x"]:
        """The mask."""
        return np.asarray(self.probability >= THRESHOLD)


@dataclass(frozen=True, slots=True)
class Model:
    """A network.

    Attributes:
        digest: SHA-256 of its file.
    """

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class HeartVolume:
    """How much of the target there is in all slices.

    Attributes:
        ml: sum of the probability [ml].
        labels_ml: voxels of the file of labels [ml].
        true_ml: by the labels that were given; None: none [ml].
        dice: with them, all slices together [1].
    """

    ml: float
    labels_ml: float
    true_ml: float | None = None
    dice: float | None = None


@dataclass(frozen=True, slots=True)
class SliceFigures:
    """What is said of a slice.

    Attributes:
        slice: its number along z.
        image: number of the contrast that was segmented; None: the slice holds one value only.
        area_mm2: sum of the probability [mm^2].
        labels_mm2: voxels of the file of labels [mm^2].
        disagreement: 1 - mean Dice of the members with each other [1]; None: there is one member.
        entropy_per_target: sum of the entropy over that of the probability [nats].
        mutual_per_target: of the mutual information [nats]; None: there is one member.
        dice: with the labels that were given; None: none [1].
    """

    slice: int
    image: int | None
    area_mm2: float
    labels_mm2: float
    disagreement: float | None = None
    entropy_per_target: float | None = None
    mutual_per_target: float | None = None
    dice: float | None = None


@dataclass(frozen=True, slots=True)
class HeartRecord:
    """What was done.

    Attributes:
        models: the networks.
        members: answers to each slice.
        samples: passes of dropout of each network; 0: one without.
        images: contrasts of the file.
        seconds: in all but starting up.
        files: all that was written, relative to `out`.
    """

    image: str
    out: str
    models: tuple[Model, ...]
    members: int
    samples: int
    images: int
    volume: HeartVolume
    slices: tuple[SliceFigures, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def answers(
    masker: "Masker", series: "Series", chosen: Sequence[int | None], progress: Progress | None = None
) -> tuple[Maps, tuple[Scores, ...]]:
    """Segment every slice by itself, so that none depends on the others.

    Args:
        chosen: contrast of each slice; None: it is left empty.
        progress: called with slices done and slices in all.
    Returns: the maps, and the scores of each slice; empty: it was left empty.

    Raises: InputError if the networks answer with NaN.
    """
    z, y, x = series.place.space
    frame = Frame((y, x), masker.size)
    probability, entropy, mutual = (np.zeros((z, y, x), dtype=np.float32) for _ in range(3))
    scores: list[Scores] = []
    members = 1
    for number, contrast in enumerate(chosen):
        if contrast is None:
            scores.append({})
        else:
            image = torch.from_numpy(series.values[contrast, number])
            found = masker(frame.there(normalised(image))[None])
            members = len(found.members)
            if not bool(torch.isfinite(found.members).all()):
                raise InputError(f"{', '.join(masker.names)}: answers with NaN or infinity; train it again")
            probability[number] = _back(frame, found.probability).clip(0, 1)
            entropy[number] = _back(frame, found.entropy)
            mutual[number] = _back(frame, found.mutual)
            several = members > 1
            scores.append(
                {
                    key: float(each[0]) if several or key == "entropy_per_target" else None
                    for key, each in found.scores().items()
                }
            )
        if progress:
            progress(number + 1, z)
    return Maps(probability, entropy, mutual if members > 1 else None), tuple(scores)


def _back(frame: Frame, values: Float[Tensor, "1 size size"]) -> Float[np.ndarray, "y x"]:
    return frame.back(values[0]).numpy()


def volume_of(maps: Maps, series: "Series", truth: Bool[np.ndarray, "z y x"] | None) -> HeartVolume:
    """Of all slices.

    Args:
        truth: mask on the same grid; None: unknown.
    """
    voxel = series.voxel_mm3
    found = HeartVolume(_ML * volume(maps.probability, voxel), _ML * volume(maps.inside, voxel))
    if truth is None:
        return found
    return HeartVolume(found.ml, found.labels_ml, _ML * volume(truth, voxel), dice(maps.inside, truth))


def slices_of(
    maps: Maps,
    series: "Series",
    chosen: Sequence[int | None],
    scores: Sequence[Scores],
    truth: Bool[np.ndarray, "z y x"] | None,
) -> tuple[SliceFigures, ...]:
    """Of each slice, see `answers`."""
    inside, pixel = maps.inside, series.pixel_mm2
    return tuple(
        SliceFigures(
            slice=z,
            image=contrast,
            area_mm2=volume(maps.probability[z], pixel),
            labels_mm2=volume(inside[z], pixel),
            dice=None if truth is None else dice(inside[z], truth[z]),
            **scores[z],
        )
        for z, contrast in enumerate(chosen)
    )


def notes_of(
    name: str, maps: Maps, chosen: Sequence[int | None], field_mm: float, trained_mm: float | None
) -> tuple[str, ...]:
    """What a reader of the maps must know, a sentence each.

    Args:
        field_mm, trained_mm: field of view of the slices and of the training; None: not told [mm].
    """
    notes = []
    if trained_mm is not None and not 1 / _OTHER_SIZE < field_mm / trained_mm < _OTHER_SIZE:
        notes.append(
            f"{name}: a slice is {field_mm:.0f} mm wide, those of the training were {trained_mm:.0f}; all are scaled "
            "to one square, so that hearts look larger or smaller: crop or pad the image if that is much"
        )
    empty = [str(z) for z, contrast in enumerate(chosen) if contrast is None]
    if empty:
        several = len(empty) > 1
        notes.append(
            f"{name}: slice{'s' if several else ''} {', '.join(empty)} hold{'' if several else 's'} one value only and "
            f"{'are' if several else 'is'} left empty"
        )
    if not maps.inside.any():
        notes.append("no voxel has a probability of at least a half: the mask is empty")
    return tuple(notes)
