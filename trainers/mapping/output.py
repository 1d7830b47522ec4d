"""The files of `qsim map`: maps, standard deviations and status slice by slice, then sidecars and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import degrees
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from pydantic import TypeAdapter

from phantoms.files.derivatives import OWN_SUFFIXES, Derivatives, Json, MapName
from phantoms.files.map_files import MapFile, Place, read_map
from phantoms.series.base import Series
from qsim import __version__
from qsim.estimators import Estimate, Status
from qsim.parameters import PARAMETERS, RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel
from trainers.mapping.inputs import MapJob
from trainers.mapping.quick_look import Panel

LEGEND = {
    Status.OK: "ok",
    Status.AT_BOUND: "at bound",
    Status.NOT_CONVERGED: "not converged",
    Status.NOT_COMPUTED: "not computed",
}
_MEANING = {
    Status.OK: "ok",
    Status.AT_BOUND: "at bound: an estimate lies on an end of its range",
    Status.NOT_CONVERGED: "not converged: the last estimate is kept",
    Status.NOT_COMPUTED: "not computed: left out by mask or slices, zero or not finite, or without a solution (NaN)",
}
_WORDS = {
    "A": "signal at full recovery, or at time zero of a decay, flip angle and receiver included",
    "B": "depth of the recovery, 1 + efficiency of the inversion",
    "FRACTION": "share of the short decay in the signal at time zero",
    "C": "constant offset of the signal",
    "DELTA_B0": "off-resonance",
    "REL_B1": "transmit field over the nominal one",
}
_ARBITRARY = ("A", "M0", "C")
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class MapSummary:
    """A map in numbers, over the voxels of the region that have an estimate.

    Attributes:
        median, low, high: with the quartiles; None: no voxel [unit].
        at_ends: voxels of the region that lie at the lower and at the upper end of its range.
    """

    parameter: str
    file: str
    unit: str
    median: float | None
    low: float | None
    high: float | None
    at_ends: tuple[int, int] = (0, 0)


def suffix_of(parameter: Parameter, rows: tuple[Parameter, ...]) -> str:
    """Of the file of its map: A is M0map beside a T1, and S0map where T1 weighting is part of it.

    Args:
        rows: of the model.
    """
    if parameter.suffix == "M0map" and all(p.name != "T1" for p in rows):
        return "S0map"
    return parameter.suffix or OWN_SUFFIXES[parameter.name]


def folder_of(parameter: Parameter) -> str:
    """Fields lie apart from tissue."""
    return "fmap" if parameter.name in ("REL_B1", "DELTA_B0") else "anat"


def main_row(parameters: tuple[Parameter, ...]) -> Parameter:
    """The relaxation time that a series is about."""
    times = [p for p in parameters if p.name in RELAXATION_TIMES and not p.name.endswith("_SHORT")]
    return times[0] if times else parameters[0]


class MapWriter:
    """Maps that grow slice by slice; what was never mapped is NaN, and "not computed" in the status.

    Attributes:
        rows: parameter and description (empty: the map; std, epistemic, ...) of each file.
    """

    def __init__(
        self,
        made: Derivatives,
        name: MapName,
        place: Place,
        parameters: tuple[Parameter, ...],
        rows: tuple[Parameter, ...],
    ) -> None:
        """Args:
        parameters: that are written.
        rows: of the model, the known ones included.
        """
        self._made, self._name, self._place = made, name, place
        self._parameters, self._rows = parameters, rows
        self.main = main_row(parameters)
        self._maps: dict[tuple[Parameter, str], MapFile] = {}
        self._next = 0
        self._status = made.map_file(self.file(self.main, "status"), place, np.uint8)

    @property
    def rows(self) -> tuple[tuple[Parameter, str], ...]:
        return tuple(self._maps)

    def file(self, parameter: Parameter, description: str = "") -> Path:
        """Where a map lies, relative to the folder."""
        stem = self._name.stem(suffix_of(parameter, self._rows), description)
        return self._name.folder(folder_of(parameter)) / f"{stem}.nii.gz"

    def add(self, first: int, estimate: Estimate, rows: tuple[Parameter, ...]) -> None:
        """Append slices, from `first` on.

        Args:
            estimate: maps of z, y, x.
            rows: of the estimate, those that are known included; only the others are written.
        """
        self._fill(first)
        for i, parameter in enumerate(rows):
            if parameter not in self._parameters:
                continue
            self._append(parameter, "", estimate.kappa[i].cpu().numpy())
            variances = {source: values[i].cpu().numpy() for source, values in estimate.variances.items()}
            if variances:
                self._append(parameter, "std", np.sqrt(sum(variances.values())))
            if len(variances) > 1:
                for source, values in variances.items():
                    self._append(parameter, source, np.sqrt(values))
        self._status.append(estimate.status.cpu().numpy())
        self._next = first + estimate.status.shape[0]

    def finish(self) -> None:
        """Fill up, and end the files."""
        self._fill(self._place.space[0])
        self._made.close_maps()

    def _append(self, parameter: Parameter, description: str, values: Shaped[np.ndarray, "slab y x"]) -> None:
        key = (parameter, description)
        if key not in self._maps:
            made = self._maps[key] = self._made.map_file(self.file(parameter, description), self._place)
            self._empty(made, self._next)
        self._maps[key].append(values)

    def _fill(self, first: int) -> None:
        """Slices up to `first` that nobody has mapped."""
        missing = first - self._next
        for made in self._maps.values():
            self._empty(made, missing)
        for _ in range(missing):
            self._status.append(np.full((1, *self._place.space[1:]), int(Status.NOT_COMPUTED), dtype=np.uint8))
        self._next = first

    def _empty(self, made: MapFile, count: int) -> None:
        for _ in range(count):
            made.append(np.full((1, *self._place.space[1:]), np.nan, dtype=np.float32))


def summarise(
    writer: MapWriter, folder: Path, region: Bool[np.ndarray, "z y x"], z: int
) -> tuple[tuple[MapSummary, ...], tuple[Panel, ...], Mapping[str, float]]:
    """Numbers of every map over the region, one slice of it to be drawn, and the share of each status.

    Args:
        z: slice to be drawn.
    """
    summaries, panels = [], []
    for parameter, description in writer.rows:
        if description:
            continue
        file = writer.file(parameter)
        values = read_map(folder / file)
        inside = values[region & np.isfinite(values)].astype(np.float64)
        low, median, high = np.quantile(inside, (0.25, 0.5, 0.75)).tolist() if inside.size else (None, None, None)
        ends = (_at(inside, parameter.lower), _at(inside, parameter.upper))
        summaries.append(MapSummary(parameter.name, str(file), _unit(parameter), median, low, high, ends))
        top = float(np.quantile(inside, 0.98)) if inside.size else 1.0
        panels.append(Panel(parameter, values[z], top, region[z]))
    status = read_map(folder / writer.file(writer.main, "status"))
    inside = status[region]
    shares = {LEGEND[code]: float(np.mean(inside == code)) if inside.size else 0.0 for code in Status}
    panels.append(Panel(None, status[z].astype(np.float32), len(Status) - 1.0, region[z]))
    return tuple(summaries), tuple(panels), shares


def _at(values: Float[np.ndarray, " v"], end: float) -> int:
    """Values at an end of a range, to the digits of single precision."""
    return int((np.abs(values - end) <= _SAME * abs(end)).sum()) if np.isfinite(end) else 0


def bound_notes(maps: tuple[MapSummary, ...], voxels: int, region: str) -> tuple[str, ...]:
    """A sentence for each map that holds voxels at an end of its range, which are no estimates but limits."""
    notes = []
    for each in maps:
        if each.parameter not in PARAMETERS:
            continue
        ends = (PARAMETERS[each.parameter].lower, PARAMETERS[each.parameter].upper)
        for count, end in zip(each.at_ends, ends, strict=True):
            if count:
                unit = f" {each.unit}" if each.unit not in ("1", "arbitrary") else ""
                notes.append(
                    f"{each.parameter}: {count} of {voxels} voxels of the {region} lie at the end of its range, "
                    f"{end:g}{unit} (status 1)"
                )
    return tuple(notes)


def protocol(series: Series, model: SignalModel) -> dict[str, Json]:
    """Timings and model, as sidecars hold them: seconds, and degrees as BIDS counts angles."""
    times = [degrees(time) if series.key == "FlipAngle" else time for time in series.times]
    described: Json = TypeAdapter(type(model)).dump_python(model, mode="json")
    # BIDS reads InversionTime as that of one image
    key = "InversionTimes" if series.key == "InversionTime" else series.key
    others = {name: degrees(each) if name == "FlipAngle" else each for name, each in series.protocol.items()}
    second = {"T2PrepTime": [float(f"{time:.9g}") for time in series.te_prep]} if series.te_prep else {}
    return {key: [float(f"{time:.9g}") for time in times], **second, **others, "SignalModel": described}


def common(
    job: MapJob,
    series: Series,
    model: SignalModel,
    method: Mapping[str, Json],
    known: Mapping[str, Json],
    notes: tuple[str, ...],
) -> dict[str, Json]:
    """What all sidecars of a call say, but sources and noise."""
    said: dict[str, Json] = {"SkullStripped": False, **method, **protocol(series, model)}
    if known:
        said["Known"] = dict(known)
    mask = job.mask.name if isinstance(job.mask, Path) else job.mask
    said["Mask"] = "none: every voxel was mapped" if mask is None else mask
    if job.slices is not None:
        said["Slices"] = list(job.slices)
    return {**said, "Notes": list(notes), "SoftwareName": "qsim", "SoftwareVersion": __version__}


def write_sidecars(writer: MapWriter, made: Derivatives, said: Mapping[str, Json]) -> None:
    """One beside each map."""
    for parameter, description in writer.rows:
        words = _WORDS.get(parameter.name, "relaxation time")
        if description == "std":
            words = (
                f"standard deviation of {parameter.name} as the method states it; infinite where the series cannot tell"
            )
        elif description:
            words = f"{description} part of the standard deviation of {parameter.name}"
        own: dict[str, Json] = {"Description": f"{parameter.name}: {words}" if not description else words}
        own["Units"] = _unit(parameter)
        made.sidecar(_beside(writer.file(parameter, description)), {**own, **said})
    levels: dict[str, Json] = {str(int(code)): text for code, text in _MEANING.items()}
    status: dict[str, Json] = {"Description": "what became of each voxel", "Units": "arbitrary", "Levels": levels}
    made.sidecar(_beside(writer.file(writer.main, "status")), {**status, **said})


def _beside(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".nii.gz") + ".json")


def _unit(parameter: Parameter) -> str:
    return "arbitrary" if parameter.name in _ARBITRARY else parameter.unit


def text_of(summary: MapSummary, suffix: str) -> str:
    """One line for the terminal."""
    if summary.median is None or summary.low is None or summary.high is None:
        return f"{suffix:12} no voxel"
    factor, unit = (
        (1000.0, " ms")
        if summary.unit == "s"
        else (1.0, "" if summary.unit in ("1", "arbitrary") else f" {summary.unit}")
    )
    low, median, high = (f"{factor * each:.4g}" for each in (summary.low, summary.median, summary.high))
    return f"{suffix:12} median {median}{unit}, middle half {low} to {high}{unit}"


def status_text(shares: Mapping[str, float]) -> str:
    """Share of each status that occurs."""
    return ", ".join(f"{name} {100 * share:.3g} %" for name, share in shares.items() if share > 0)
