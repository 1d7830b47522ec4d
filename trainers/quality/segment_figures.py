"""What `qsim segment` says of a whole image: volumes with error bars, mean variances, and which artefact is to blame.

All of it is taken on the grid that the network saw, as its calibration is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from qsim.evaluation.segmentation import (
    VolumeCalibration,
    dice,
    entropic_variance,
    entropy,
    paper_volume_error,
    per_target,
    relative_spread,
    scaled_probabilities,
    volume,
)
from trainers.quality.segment_record import Blame, SourceFigures, Volume
from trainers.quality.segmenter import TASK, Segmentation, Segmenter

_ML = 1e-3
# a source within this many SD of clean images is not blamed
_STANDS_OUT = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What is said of the whole image, on the grid that the network saw.

    Attributes:
        voxel_mm3: volume of a voxel of that grid [mm^3].
    """

    found: Segmentation
    segmenter: Segmenter
    voxel_mm3: float

    def volumes(
        self, labels: Int[np.ndarray, "x y z"], voxel_mm3: float, truth: Mapping[str, Bool[np.ndarray, "x y z"]]
    ) -> tuple[dict[str, Volume], tuple[str, ...]]:
        """By class, and notes.

        Args:
            labels: on the grid of the image.
            voxel_mm3: volume of a voxel of that grid [mm^3].
            truth: voxels of each class on that grid; empty: unknown.
        """
        volumes: dict[str, Volume] = {}
        notes: list[str] = []
        paper, calibration = self._paper(), self.segmenter.volume_calibration()
        if calibration is None:
            why = self._given("volume").get("missing", "the model has no calibration of volumes")
            notes.append(f"no calibrated error bar: {why}")
        for number, name in enumerate(self.segmenter.target, start=1):
            probability, mask = self.found.probabilities[number].numpy(), labels == number
            if not mask.any():
                notes.append(f"no voxel is most likely {name}")
            predicted = volume(probability, self.voxel_mm3)
            given: dict[str, float | None] = {}
            # the first class is the one that was calibrated
            if calibration is not None and number == 1:
                given, note = self._interval(calibration, probability, predicted, name)
                notes += note
            if name in truth:
                given |= {"true_ml": _ML * volume(truth[name], voxel_mm3), "dice": dice(mask, truth[name])}
            volumes[name] = Volume(_ML * predicted, _ML * volume(mask, voxel_mm3), paper_sd_ml=paper, **given)
        return volumes, tuple(notes)

    def _given(self, key: str) -> Mapping[str, Any]:
        """A part of the calibration; empty: there is none."""
        return (self.segmenter.calibration or {}).get(key) or {}

    def _interval(
        self, calibration: VolumeCalibration, probability: Float[np.ndarray, "x y z"], predicted: float, name: str
    ) -> tuple[dict[str, float | None], list[str]]:
        spread = relative_spread(probability)
        if spread <= 0:
            return {}, [f"{name}: every voxel is certain, which no calibration covers: no error bar"]
        artefacts = None if calibration.offset is None else self.found.artefacts_per_target()
        low, high = (float(end) for end in calibration.interval(predicted, spread, artefacts))
        given: dict[str, float | None] = {
            "calibrated_ml": _ML * calibration.ratio * predicted,
            "low_ml": _ML * max(low, 0.0),
            "high_ml": _ML * high,
            "level": calibration.level,
        }
        note = f"{name}: the error bar was calibrated on images of another quality (sum p (1 - p) / sum p {spread:.3g})"
        return given, [] if calibration.knows(spread) else [note]

    def _paper(self) -> float | None:
        """The error bar of the paper [ml]: one for all classes, as the entropy is that of all."""
        reference = self._given("entropic").get("mean")
        if reference is None:
            return None
        total = np.sum([variance.numpy() for variance in self.found.variances.values()], axis=0)
        h = entropy(scaled_probabilities(self.found.logits.numpy(), total))
        return _ML * paper_volume_error(entropic_variance(h), float(reference), self.voxel_mm3, per="voxel").sd

    def _figures(self, variance: Float[np.ndarray, "x y z"], source: str) -> SourceFigures:
        inside = self.found.probabilities.argmax(0).numpy() > 0
        mean = float(variance.mean(dtype=np.float64))
        target = float(variance[inside].mean(dtype=np.float64)) if inside.any() else None
        clean = self._given("clean").get(source, {})
        per_voxel = per_target(variance, self.found.probabilities[1].numpy())
        # an SD of 0 is that of a single clean image
        above = (per_voxel - clean["mean"]) / clean["sd"] if clean.get("sd") else None
        return SourceFigures(mean, target, above)

    def sources(self) -> dict[str, SourceFigures]:
        """By source, the task first."""
        return {source: self._figures(values.numpy(), source) for source, values in self.found.variances.items()}

    def artefacts(self) -> SourceFigures:
        """All sources but the task together."""
        return self._figures(artefact_variance(self.found), "artefacts")

    def blame(self) -> Blame | None:
        """The artefact furthest above clean images; the largest mean variance where these are not known."""
        figures = {source: each for source, each in self.sources().items() if source != TASK}
        if not figures:
            return None
        total = sum(each.mean for each in figures.values())
        above = {source: each.above_clean_sd for source, each in figures.items() if each.above_clean_sd is not None}
        if len(above) == len(figures):
            source = max(above, key=above.__getitem__)
        else:
            source = max(figures, key=lambda name: figures[name].mean)
        share = figures[source].mean / total if total > 0 else 0.0
        stands_out = len(above) < len(figures) or above[source] > _STANDS_OUT
        return Blame(source if stands_out else None, figures[source].above_clean_sd, share)


def artefact_variance(found: Segmentation) -> Float[np.ndarray, "x y z"]:
    """Variance of all artefacts together, without the task."""
    total = torch.zeros_like(found.variances[TASK])
    for source, variance in found.variances.items():
        if source != TASK:
            total += variance
    return total.numpy()
