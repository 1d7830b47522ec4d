"""What `qsim segment` found in an image, and did."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Volume:
    """How much of a class there is.

    Attributes:
        ml: sum of its probabilities [ml].
        labels_ml: voxels of the file of labels [ml].
        calibrated_ml: what held-out images say the volume is, given this prediction; None: no calibration [ml].
        low_ml, high_ml: interval of the `level` about that; from 0, as no volume is below [ml].
        level: part of held-out images whose truth lay in their interval [1].
        paper_sd_ml: the error bar of shaw2021, Eq. 8 less that of clean images; None: nothing is known of these [ml].
        true_ml: by the labels that were given; None: none [ml].
        dice: with them [1].
    """

    ml: float
    labels_ml: float
    calibrated_ml: float | None = None
    low_ml: float | None = None
    high_ml: float | None = None
    level: float | None = None
    paper_sd_ml: float | None = None
    true_ml: float | None = None
    dice: float | None = None


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """What a source says of the image.

    Attributes:
        mean: of its variance over the image [1].
        mean_in_target: over the voxels of the predicted target; None: there are none [1].
        above_clean_sd: how far the variance per voxel of the predicted target is above that of clean images, in SD
            between these; None: not calibrated [1].
    """

    mean: float
    mean_in_target: float | None
    above_clean_sd: float | None = None


@dataclass(frozen=True, slots=True)
class Blame:
    """The artefact that the model blames most.

    Attributes:
        source: None: no artefact stands out of clean images.
        above_clean_sd: of it [SD between clean images]; None: not calibrated.
        share: of its mean variance in that of all artefacts [1].
    """

    source: str | None
    above_clean_sd: float | None
    share: float


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What was done.

    Attributes:
        volumes: by class of the target.
        sources: by source, the task first.
        artefacts: all sources but the task together.
        blame: None: the model knows no artefact.
        seconds: in all but starting up.
        files: all that was written, relative to `out`.
    """

    image: str
    out: str
    model: str
    digest: str
    resampled: bool
    volumes: Mapping[str, Volume]
    sources: Mapping[str, SourceFigures]
    artefacts: SourceFigures
    blame: Blame | None
    notes: tuple[str, ...]
    files: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
