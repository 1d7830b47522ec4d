"""A trained network of image quality that answers for whole volumes: what it segments, and what spoils it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qsim.errors import InputError
from qsim.evaluation.segmentation import VolumeCalibration, per_target
from trainers.quality.scaling import intensity_scale
from trainers.quality.windows import Progress, by_windows

TASK = "task"


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What a network says of a volume.

    Attributes:
        logits: of background and the classes of the target.
        probabilities: softmax of the logits.
        variances: of the logits, by source; `task` first.
    """

    logits: Float[Tensor, "k x y z"]
    probabilities: Float[Tensor, "k x y z"]
    variances: Mapping[str, Float[Tensor, "x y z"]]

    def artefacts_per_target(self) -> float:
        """Variances of all artefacts per voxel of the first class of the target, sum v / sum p [1]."""
        probability = self.probabilities[1].numpy()
        return sum(per_target(each.numpy(), probability) for name, each in self.variances.items() if name != TASK)


@dataclass(frozen=True, slots=True)
class Segmenter:
    """A network with what is needed to use it.

    Attributes:
        net: gives an answer with `logits` and `log_variance`; in evaluation mode, on `device`.
        sources: of the log variances, `task` first.
        target: names of the classes after the background.
        spacing_mm: of the grid of the training, x, y, z [mm].
        patch: of the training, and the window here.
        calibration: what held-out images told, as `trainers.quality.calibrate` writes it: of clean ones mean and SD of
            each source's variance per voxel of the target (`clean`) and of Eq. 8 (`entropic`), and the error bar of the
            volume of the first class of the target (`volume`); None: nothing.
        device: where the network is.
        overlap: of neighbouring windows [part of the window].
        name: for messages and sidecars.
        digest: SHA-256 of the network's file; empty: unknown.
        notes: what a user should know of the answers, a sentence each.
    """

    net: nn.Module
    sources: tuple[str, ...]
    target: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    calibration: Mapping[str, Any] | None
    device: torch.device
    overlap: float = 0.5
    name: str = ""
    digest: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sources[:1] != (TASK,) or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"sources: must be different and start with {TASK}, got {list(self.sources)}")
        if not self.target:
            raise ValueError("target: must name at least one class")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: must be from 0 to below 1, got {self.overlap:g}")

    def __call__(self, image: Float[Tensor, "x y z"], progress: Progress | None = None) -> Segmentation:
        """Segment a volume on the grid of the training; its brightness does not matter.

        Args:
            progress: called with windows done and windows in all.
        Raises: InputError if the image has no brightness, or an answer is not finite.
        """
        scaled = image / intensity_scale(image)
        logits, variances = by_windows(
            self.net, scaled, self.patch, overlap=self.overlap, device=self.device, progress=progress
        )
        if (len(logits), len(variances)) != (1 + len(self.target), len(self.sources)):
            raise ValueError(
                f"net: answers with {len(logits)} classes and {len(variances)} sources, "
                f"target and sources say {1 + len(self.target)} and {len(self.sources)}"
            )
        # half precision may overflow
        if not (logits.isfinite().all() and variances.isfinite().all()):
            raise InputError(f"{self.name or 'the network'}: answers with NaN or infinity; train it again")
        return Segmentation(logits, logits.softmax(0), dict(zip(self.sources, variances, strict=True)))

    def volume_calibration(self) -> VolumeCalibration | None:
        """Of the volume of the first class of the target; None where the training found none."""
        given = (self.calibration or {}).get("volume") or {}
        return VolumeCalibration.from_json(given) if given and "missing" not in given else None

    def check_sources(self, asked: tuple[str, ...], field: str) -> tuple[str, ...]:
        """The sources that were asked for in the order of the network; all if none was.

        Raises: InputError naming the field.
        """
        for name in asked:
            if name not in self.sources:
                raise InputError(f"{field}: the model has no source {name}; it has {', '.join(self.sources)}")
        return tuple(name for name in self.sources if not asked or name in asked)
