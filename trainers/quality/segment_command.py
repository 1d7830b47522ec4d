"""`qsim segment`: labels, probabilities, variances by source, volume with error bar, and a picture of one image.

    image -> axes to RAS -> grid of the training -> windows -> back to the grid of the image -> folder of derivatives

What is said of the whole image (volume, error bar, mean variances) is taken on the grid that the network saw, as its
calibration is; maps are on the grid of the image. Probabilities and variances come back linearly, and the labels are
the most probable class there.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float, Int, Shaped

from generators.cli import bar, stopped
from phantoms.files.derivatives import Derivatives, Json, MapName, Sources, check_out, derivatives, name_of
from qsim import __version__
from qsim.errors import InputError
from qsim.evaluation.segmentation import (
    VolumeCalibration,
    bernoulli_spread,
    dice,
    entropic_variance,
    entropy,
    paper_volume_error,
    scaled_probabilities,
    volume,
)
from trainers.quality.image import Image, Resampling, read_image, read_truth, resampling
from trainers.quality.picture import quick_look
from trainers.quality.segmenter import TASK, Segmentation, Segmenter
from trainers.quality.windows import Progress

_ML = 1e-3
# a source within this many SD of clean images is not blamed
_STANDS_OUT = 2.0


@dataclass(frozen=True, slots=True)
class SegmentWords:
    """The options of the command as they were typed."""

    model: str
    source: tuple[str, ...] = ()
    labels: Path | None = None
    scheme: str = "freesurfer"
    resample: bool = True
    device: str = "auto"
    overwrite: bool = False


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
        above_clean_sd: how far the mean is above that of clean images, in SD between these; None: not calibrated [1].
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


def run(image: Path, out: Path, words: SegmentWords, *, as_json: bool) -> None:
    """Segment an image, and say what was found.

    Raises: InputError naming the option or file at fault.
    """
    with stopped("stopped; nothing was written"), bar("segment", "windows") as progress:
        record = segment(image, out, words, progress)
    if as_json:
        typer.echo(json.dumps(record.as_json(), indent=1, allow_nan=False))
        return
    typer.echo("\n".join(_lines(record)))


def segment(file: Path, out: Path, words: SegmentWords, progress: Progress | None = None) -> SegmentRecord:
    """Segment an image, and write all of it or nothing.

    Args:
        progress: called with windows done and windows in all.
    Raises: InputError naming the option or file at fault.
    """
    from trainers.quality.loading import load_segmenter

    began = time.perf_counter()
    image = read_image(file)
    segmenter = load_segmenter(words.model, words.device)
    shown = segmenter.check_sources(words.source, "--source")
    truth = read_truth(words.labels, words.scheme, image, segmenter.target) if words.labels else {}
    grid, resampled = resampling(image, segmenter.spacing_mm, allowed=words.resample)
    names = _Names(name_of(file.name.removesuffix(".gz").removesuffix(".nii")), segmenter.target, shown)
    sources = Sources.of((file,))
    check_out(out, names.planned, sources, overwrite=words.overwrite)
    found = segmenter(torch.from_numpy(grid.there(image.values)), progress)
    maps = _Maps.of(found, grid, segmenter, shown)
    measured = _Measured(found, segmenter, grid.voxel_mm3 if grid.needed else image.voxel_mm3)
    volumes, notes = measured.volumes(maps.labels, image.voxel_mm3, truth)
    record = SegmentRecord(
        image=file.name,
        out=str(out),
        model=segmenter.name or words.model,
        digest=segmenter.digest,
        resampled=grid.needed,
        volumes=volumes,
        sources=measured.sources(),
        artefacts=measured.artefacts(),
        blame=measured.blame(),
        notes=(*image.notes, *resampled, *segmenter.notes, *notes),
    )
    with derivatives(out, (*names.planned, *names.belonging), sources, overwrite=words.overwrite) as made:
        _write(made, names, image, maps, record, sources)
        files = tuple(str(each) for each in made.files)
    return replace(record, files=files, seconds=time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class _Names:
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


def _label(name: str) -> str:
    """Letters and digits, as BIDS wants them."""
    return re.sub("[^a-zA-Z0-9]", "", name)


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name.replace(".nii.gz", ".json"))


@dataclass(frozen=True, slots=True)
class _Maps:
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
    def of(cls, found: Segmentation, grid: Resampling, segmenter: Segmenter, shown: tuple[str, ...]) -> "_Maps":
        """Args:
        shown: sources whose maps are wanted.
        """
        probabilities = grid.back(found.probabilities.numpy())
        return cls(
            segmenter.target,
            probabilities.argmax(0),
            dict(zip(segmenter.target, probabilities[1:], strict=True)),
            {source: grid.back(found.variances[source].numpy()) for source in shown},
            grid.back(_total(found)),
        )

    def inside(self, name: str) -> Bool[np.ndarray, "x y z"]:
        """Voxels of a class."""
        return self.labels == 1 + self.target.index(name)


def _total(found: Segmentation) -> Float[np.ndarray, "x y z"]:
    """Variance of all artefacts together, without the task."""
    total = torch.zeros_like(found.variances[TASK])
    for source, variance in found.variances.items():
        if source != TASK:
            total += variance
    return total.numpy()


@dataclass(frozen=True, slots=True)
class _Measured:
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
        paper, calibration = self._paper(), self._calibration()
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

    def _calibration(self) -> VolumeCalibration | None:
        given = self._given("volume")
        return VolumeCalibration.from_json(given) if given and "missing" not in given else None

    def _interval(
        self, calibration: VolumeCalibration, probability: Float[np.ndarray, "x y z"], predicted: float, name: str
    ) -> tuple[dict[str, float | None], list[str]]:
        spread = bernoulli_spread(probability)
        if spread <= 0:
            return {}, [f"{name}: every voxel is certain, which no calibration covers: no error bar"]
        mean = None if calibration.offset is None else float(_total(self.found).mean(dtype=np.float64))
        low, high = (float(end) for end in calibration.interval(predicted, spread, mean))
        given: dict[str, float | None] = {
            "calibrated_ml": _ML * calibration.ratio * predicted,
            "low_ml": _ML * max(low, 0.0),
            "high_ml": _ML * high,
            "level": calibration.level,
        }
        note = (
            f"{name}: the error bar was calibrated on images of another size or quality (summed p (1 - p) {spread:.3g})"
        )
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
        # an SD of 0 is that of a single clean image
        above = (mean - clean["mean"]) / clean["sd"] if clean.get("sd") else None
        return SourceFigures(mean, target, above)

    def sources(self) -> dict[str, SourceFigures]:
        return {source: self._figures(values.numpy(), source) for source, values in self.found.variances.items()}

    def artefacts(self) -> SourceFigures:
        return self._figures(_total(self.found), "artefacts")

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


def _write(
    made: Derivatives, names: _Names, image: Image, maps: _Maps, record: SegmentRecord, sources: Sources
) -> None:
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
        f"{record.image}: {'; '.join(_volume_text(*each) for each in record.volumes.items())}\n{_blame_text(record)}",
        image.values,
        image.spacing_mm,
        {name: maps.inside(name) for name in maps.target},
        {"all artefacts": maps.artefacts, **maps.variances},
    )


def _lines(record: SegmentRecord) -> list[str]:
    lines = [f"{record.out}: {record.image} by {record.model}, {record.seconds:.1f} s"]
    for name, each in record.volumes.items():
        lines.append(f"  {_volume_text(name, each)}")
        if each.true_ml is not None and each.dice is not None:
            error = each.ml - each.true_ml
            part = f" ({100 * error / each.true_ml:+.1f} %)" if each.true_ml else ""
            lines.append(f"  truth {each.true_ml:.1f} ml: error {error:+.1f} ml{part}, Dice {each.dice:.3f}")
    width = max(len(source) for source in record.sources)
    for source, figures in record.sources.items():
        inside = "" if figures.mean_in_target is None else f", {figures.mean_in_target:.3g} in the target"
        above = "" if figures.above_clean_sd is None else f", {_above(figures.above_clean_sd)} clean images"
        lines.append(f"  {source:{width}}  mean variance {figures.mean:.3g}{inside}{above}")
    return [*lines, f"  {_blame_text(record)}", *(f"note: {note}" for note in record.notes)]


def _volume_text(name: str, found: Volume) -> str:
    text = f"{name} {found.ml:.1f} ml"
    if found.low_ml is not None and found.high_ml is not None and found.level is not None:
        text += f", {100 * found.level:.0f} % interval {found.low_ml:.1f} to {found.high_ml:.1f} ml"
    if found.paper_sd_ml is not None:
        text += f" (error bar of shaw2021: +- {found.paper_sd_ml:.2g} ml)"
    return text


def _blame_text(record: SegmentRecord) -> str:
    blame = record.blame
    if blame is None:
        return "blame: the model knows no artefact"
    if blame.source is None:
        return "blame: no artefact stands out of clean images"
    if blame.above_clean_sd is None:
        return (
            f"blame: {blame.source}, {100 * blame.share:.0f} % of the artefact variance; not compared with clean images"
        )
    return f"blame: {blame.source}, {_above(blame.above_clean_sd)} clean images"


def _above(sd: float) -> str:
    return f"{abs(sd):.1f} SD {'above' if sd >= 0 else 'below'}"
