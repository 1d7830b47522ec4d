"""What a `phantom` study is of: a digital twin, or a user's scans with regions and nominal values."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from generators.config import GeneratorConfig
from generators.sample import make_truth
from generators.scene import scene
from phantoms.system_phantom import SystemPhantom
from qsim import distributions
from qsim.errors import InputError
from qsim.evaluation.study import Case
from qsim.system_phantom import WATER, nominal, sphere_names
from trainers.studies.measured import Measured, Scans, read_scans
from trainers.studies.outputs import sha256_of

_FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
# a longer relaxation time is one in milliseconds [s]
_LONGEST = 20.0


class NominalPhantom(BaseModel):
    """Published values of the ISMRM/NIST system phantom: label k is sphere k of the array.

    Attributes:
        serial: number after 130- on the phantom.
        field_strength: [T].
        temperature: of the phantom during the scans [degrees C].
    """

    model_config = _FROZEN
    kind: Literal["system_phantom"]
    array: Literal["t1", "t2"]
    serial: Annotated[int, Field(strict=True)]
    field_strength: float
    temperature: float = 20.0


class NominalCsv(BaseModel):
    """A table with a column of labels and one of values.

    Attributes:
        path: of the file, with a line of heads.
        label, value: heads of the columns; the value's is the parameter (T1) if not given.
        unit: of the values.
    """

    model_config = _FROZEN
    kind: Literal["csv"]
    path: Annotated[str, Field(min_length=1)]
    label: str = "label"
    value: str | None = None
    unit: Literal["s", "ms"] = "s"


class NominalValues(BaseModel):
    """Values by parameter and label, as `{T1: {1: 0.765, 2: 0.795}}` [s]."""

    model_config = _FROZEN
    kind: Literal["values"]
    values: dict[str, dict[int, float]]


Nominal = Annotated[NominalPhantom | NominalCsv | NominalValues, Field(discriminator="kind")]


class PhantomData(BaseModel):
    """Either `twin`, or `scans` with `regions` and `nominal`.

    Attributes:
        twin: generator config whose phantom is `system_phantom`, split test.
        share: of the inner radius of a sphere that its region fills (twin) [1].
        scans: repeated scans.
        regions: NIfTI image of labels on the grid of the scans; label k is sphere or tube k, 0 is none.
        nominal: true values of the labels.
    """

    model_config = _FROZEN
    twin: GeneratorConfig | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    scans: Scans | None = None
    regions: Annotated[str, Field(min_length=1)] | None = None
    nominal: Nominal | None = None


def filled_in(given: Any) -> Any:
    """What the study decides itself need not be written; short forms of `nominal` as what they mean.

    For validators in mode "before", of `data`.
    """
    if not isinstance(given, dict):
        return given
    found = dict(given)
    twin, told = given.get("twin"), given.get("nominal")
    if isinstance(twin, dict):
        phantom = twin.get("phantom")
        matrix = phantom.get("matrix", [210, 210]) if isinstance(phantom, dict) else [210, 210]
        # `patch` and `samples` of a config that was written to generate patches give way to whole slices
        found["twin"] = {**twin, "samples": 1, "patch": matrix, "sampling": "slices"}
    if isinstance(told, str):
        found["nominal"] = {"kind": "csv", "path": told}
    elif isinstance(told, dict) and "kind" not in told:
        found["nominal"] = {"kind": "values", "values": told}
    return found


def check_data(data: PhantomData) -> None:
    """Raises: ValueError, starting with the field at fault."""
    if (data.twin is None) == (data.scans is None):
        raise ValueError("data: give either twin (a generator config) or scans (with regions and nominal)")
    if data.twin is None:
        missing = [key for key in ("regions", "nominal") if getattr(data, key) is None]
        if missing:
            raise ValueError(f"data.{missing[0]}: missing; scans need regions (a label image) and nominal values")
        return
    given = [key for key in ("regions", "nominal") if getattr(data, key)]
    if given:
        raise ValueError(f"data.{given[0]}: does not go with twin, whose regions and values are known")
    twin = data.twin
    if not isinstance(twin.phantom_spec, SystemPhantom):
        raise ValueError(f"data.twin.phantom.kind: got {twin.phantom_spec.kind!r}, wanted 'system_phantom'")
    if twin.split != "test":
        raise ValueError("data.twin.split: got train, wanted test: the slices that hold the spheres")
    if twin.slice_axis != 2:
        raise ValueError(f"data.twin.slice_axis: got {twin.slice_axis}, wanted 2: slices parallel to the plates")
    try:
        twin.phantom_spec.rois(data.share)
    except ValueError as error:
        raise ValueError(f"data.{error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class Spheres:
    """The regions, on the grid of the images.

    Attributes:
        labels: of every voxel; 0: none.
        nominal: value by label, ascending [SI].
        names: by label.
    """

    labels: Int[np.ndarray, "z y x"]
    nominal: Mapping[int, float]
    names: Mapping[int, str]

    @property
    def inside(self) -> Bool[np.ndarray, "z y x"]:
        """Voxels of all regions."""
        return self.labels > 0


def twin_spheres(data: PhantomData, parameter: str) -> tuple[Spheres, tuple[int, ...]]:
    """Regions of the twin, and the numbers (samples) of the slices that hold one."""
    twin = _twin(data)
    spec = twin.phantom_spec
    assert isinstance(spec, SystemPhantom)
    regions = spec.rois(data.share)
    samples, labels = [], []
    for sample, (_, at) in enumerate(scene(twin).order):
        if regions[..., at].any():
            samples.append(sample)
            labels.append(regions[..., at].astype(np.int64))
    table = twin.table
    there = [(k + 1, name) for k, name in enumerate(spec.tissues) if name != WATER]
    values = {label: float(distributions.mean(table[name].values[parameter])) for label, name in there}
    return Spheres(np.stack(labels), values, dict(there)), tuple(samples)


def twin_case(data: PhantomData, draw: int, samples: Sequence[int]) -> Case:
    """The truth of one draw, its slices stacked; fields and B are drawn anew in each draw, spheres are constant."""
    twin = _twin(data)
    config = twin.model_copy(update={"seed": twin.seed + draw, "samples": max(samples) + 1})
    truths = [make_truth(config, sample) for sample in samples]
    return Case(
        draw,
        torch.stack([t.signal for t in truths], dim=1),
        torch.stack([t.kappa for t in truths], dim=1),
        torch.stack([t.labels for t in truths]),
        torch.stack([t.purity for t in truths]),
        scene(twin).phantom.tissues,
    )


def slice_of(case: Case, z: int) -> Case:
    """One slice of a stack, as what is common to voxels is common within a slice."""
    return Case(case.draw, case.signal[:, z], case.kappa[:, z], case.labels[z], case.purity[z], case.tissues)


def _twin(data: PhantomData) -> GeneratorConfig:
    assert data.twin is not None
    return data.twin


def read_measured(data: PhantomData, parameter_of: str | None) -> tuple[Measured, Spheres, str, dict[str, str]]:
    """The scans, their regions and values, the parameter, and the sha256 of every file that was read.

    Raises: InputError, starting with the field at fault.
    """
    assert data.scans is not None
    assert data.regions is not None
    assert data.nominal is not None
    measured = read_scans(data.scans, "data.scans")
    parameter = parameter_of or relaxation_time([p.name for p in measured.model.parameters])
    values = values_of(data.nominal, parameter)
    spheres = _spheres(measured, data.regions, values, data.nominal)
    absent = [str(label) for label in values if label not in spheres.nominal]
    if absent and not isinstance(data.nominal, NominalPhantom):
        note = f"data.nominal has values of label {', '.join(absent)}, which data.regions does not hold in these slices"
        measured = replace(measured, notes=(*measured.notes, note))
    read = [Path(data.regions).expanduser()]
    if isinstance(data.nominal, NominalCsv):
        read.append(Path(data.nominal.path).expanduser())
    return measured, spheres, parameter, {**measured.sha256, **sha256_of(read)}


def relaxation_time(rows: Sequence[str]) -> str:
    """The first relaxation time of a model.

    Raises: InputError if it has none.
    """
    from qsim.parameters import RELAXATION_TIMES

    found = [row for row in rows if row in RELAXATION_TIMES]
    if not found:
        raise InputError(f"parameter: the signal model has no relaxation time, only {', '.join(rows)}")
    return found[0]


def values_of(told: NominalPhantom | NominalCsv | NominalValues, parameter: str) -> dict[int, float]:
    """Nominal values by label [s].

    Raises: InputError, starting with `data.nominal`.
    """
    if isinstance(told, NominalPhantom):
        try:
            published = nominal(told.array, told.serial, told.field_strength, told.temperature)
        except ValueError as error:
            raise InputError(f"data.nominal.{error}") from None
        times = [{"T1": each.t1, "T2": each.t2}.get(parameter) for each in published]
        if any(time is None for time in times):
            raise InputError(f"data.nominal: no {parameter} is published for the {told.array} array there")
        found = {k + 1: float(time) for k, time in enumerate(times) if time is not None}
    elif isinstance(told, NominalCsv):
        found = _from_csv(told, parameter)
    elif parameter not in told.values:
        raise InputError(f"data.nominal: holds {', '.join(told.values) or 'nothing'}, wanted {parameter}")
    else:
        found = dict(told.values[parameter])
    for label, time in found.items():
        if label < 1:
            raise InputError(f"data.nominal: label {label}, wanted labels from 1 on; 0 is no region")
        if not 0 < time <= _LONGEST:
            hint = "; divide by 1000 if these are milliseconds (unit: ms of a csv)" if time > _LONGEST else ""
            raise InputError(f"data.nominal: {parameter} of label {label} is {time:g}, wanted seconds above 0{hint}")
    return dict(sorted(found.items()))


def _from_csv(told: NominalCsv, parameter: str) -> dict[int, float]:
    file = Path(told.path).expanduser()
    try:
        lines = list(csv.DictReader(StringIO(file.read_text(encoding="utf-8-sig"))))
    except OSError as error:
        raise InputError(f"data.nominal: {told.path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.nominal: {told.path}: cannot be read as a table ({error})") from None
    value = told.value or parameter
    found: dict[int, float] = {}
    for number, line in enumerate(lines, start=2):
        for head in (told.label, value):
            if head not in line:
                heads = ", ".join(str(each) for each in line)
                raise InputError(f"data.nominal: {told.path} has no column {head!r}, only {heads}")
        try:
            label, time = int(line[told.label]), float(line[value])
        except (TypeError, ValueError):
            raise InputError(
                f"data.nominal: {told.path}, line {number}: got {line[told.label]!r} and {line[value]!r}, wanted a "
                "label and a number"
            ) from None
        if label in found:
            raise InputError(f"data.nominal: {told.path}, line {number}: label {label} is given twice")
        if not isfinite(time):
            raise InputError(f"data.nominal: {told.path}, line {number}: {time} is no value")
        found[label] = time / 1000 if told.unit == "ms" else time
    return found


def _spheres(
    measured: Measured, path: str, values: Mapping[int, float], told: NominalPhantom | NominalCsv | NominalValues
) -> Spheres:
    """Regions of which every voxel can be computed in every repeat.

    Raises: InputError, starting with `data.regions`.
    """
    stored = measured.volume("data.regions", path)
    labels = np.where(np.isfinite(stored), stored, -1).astype(np.int64)
    if not (labels == stored).all() or labels.min() < 0:
        raise InputError(f"data.regions: {path} holds values that are no labels (whole numbers from 0 on)")
    there = [int(label) for label in np.unique(labels) if label > 0]
    if not there:
        raise InputError(f"data.regions: {path} holds no label in these slices")
    unknown = [label for label in there if label not in values]
    if unknown:
        listed = ", ".join(map(str, values))
        raise InputError(f"data.nominal: no value for label {unknown[0]} of {path}; there are {listed}")
    names = {label: f"region {label}" for label in there}
    if isinstance(told, NominalPhantom):
        names = {label: name for label, name in enumerate(sphere_names(told.array), start=1) if label in there}
    return Spheres(labels, {label: values[label] for label in there}, names)


def object_mask(measured: Measured, spheres: Spheres) -> Bool[Tensor, "z y x"]:
    """The mask of the scans, and every voxel of a region: a dark one is not left out as air."""
    return measured.mask | torch.from_numpy(spheres.inside.copy())
