"""`qsim bound`: what a protocol can tell at best, per tissue and parameter."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, model_validator
from torch import Tensor

from generators.config import GeneratorConfig, RootConfig
from generators.fitting import complete_tissues
from generators.reading import read_config, read_yaml
from phantoms import MNI
from phantoms.brains.mni import TISSUES as MNI_TISSUES
from phantoms.fields import ChemicalShift
from qsim import distributions
from qsim.errors import InputError
from qsim.information import Bound, crb, crb_of_equal_voxels
from qsim.information.design import with_times
from qsim.kspace.noise import sigma_of
from qsim.signals import ClosedForm
from qsim.signals.base import SignalModel, SpatialModel

Problem = Literal["free", "shared", "known"]

# a CV above which a parameter is practically not identified [%]
PRACTICAL = 50.0
# maps that are measured apart: never unknown in a fit that does not want them
_FIELDS = ("DELTA_B0", "REL_B1")


class _Study(RootConfig):
    """A noise study, of which only `data` is read."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    data: GeneratorConfig

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """What the study decides itself need not be written into `data`."""
        if isinstance(given, dict) and isinstance(given.get("data"), dict):
            crop = given.get("crop")
            patch = crop if isinstance(crop, list | tuple) and len(crop) in (2, 3) else (1, 1)
            return {**given, "data": {"samples": 1, "patch": patch, **given["data"]}}
        return given


@dataclass(frozen=True, slots=True)
class Row:
    """Bounds of one parameter of one tissue as CV; None: infinite, or nothing is shared [%]."""

    tissue: str
    parameter: str
    snr: float
    sigma: float
    cv_free: float | None
    cv_shared: float | None
    cv_known: float | None
    identifiable: bool


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a config measures, at the mean of each distribution.

    Attributes:
        model: without the mixing of voxels.
        tissues: names, one for each column of `kappa`.
        kappa: [SI].
        targets: rows whose bound is wanted.
        shared: rows that are drawn once per sample.
        known: rows that a fit would be given.
        coils: 0: Gaussian noise; 1: Rician; more: non-central chi.
        fields: kinds of those whose changes are left out.
    """

    model: SignalModel
    noise: str
    tissues: tuple[str, ...]
    kappa: Float[Tensor, "q t"]
    targets: tuple[str, ...]
    shared: tuple[str, ...]
    known: tuple[str, ...]
    coils: int
    fields: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Rows of kappa."""
        return tuple(p.name for p in self.model.parameters)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Rows that a free fit has to find."""
        return tuple(name for name in self.names if name not in self.known)

    def bound(
        self, problem: Problem, sigma: float | Tensor, n_voxels: int, times: tuple[float, ...] | None = None
    ) -> Bound:
        """Bound of every row in every tissue, for a series at other times if they are given [s]."""
        model = self.model if times is None else with_times(self.model, times)
        kappa = self.kappa if not isinstance(sigma, Tensor) else self.kappa[..., None]
        if problem == "shared":
            return crb_of_equal_voxels(
                model, kappa, sigma, shared=self.shared, n_voxels=n_voxels, known=self.known, coils=self.coils
            )
        known = self.known if problem == "free" else (*self.known, *self.shared)
        return crb(model, kappa, sigma, known=known, coils=self.coils)


def read_protocol(path: Path) -> GeneratorConfig:
    """The generator config of a file, or that under `data` of a study.

    Raises: InputError naming the file and the field at fault.
    """
    mapping = read_yaml(path)
    data = mapping.get("data")
    if data is None:
        if "kind" in mapping:
            raise InputError(
                f"{path}: data: missing; qsim bound reads a generator config, or a study that holds one under data"
            )
        return read_config(path, GeneratorConfig)
    if isinstance(data, dict) and {"store", "generate"} & set(data):
        raise InputError(f"{path}: data: this trains a network; give the generator config of its data set instead")
    return read_config(path, _Study).data


def protocol(config: GeneratorConfig, tissues: Sequence[str] = ()) -> Protocol:
    """The protocol of a config, for the tissues of its phantom or for those named.

    Raises: InputError if a tissue is not in the table, or lacks what the model needs.
    """
    model = config.signal_model
    rows = [p.name for p in model.parameters]
    table = config.table
    complete = {tissue.name: tissue for tissue in complete_tissues(rows, config.field_list, table)}
    chosen = tuple(tissues) or _of_phantom(config) or tuple(complete)
    for name in chosen:
        if name not in complete:
            where = "--tissues" if tissues else "tissues"
            raise InputError(
                f"{where}: the table has no {name} with all that the model needs; it has {names_of(complete)}"
            )
    sources = [{**complete[name].values, **table.per_sample} for name in chosen]
    kappa = [
        [
            distributions.mean(source[row]) + _offset(config, name, row)
            for name, source in zip(chosen, sources, strict=True)
        ]
        for row in rows
    ]
    targets = tuple(rows[i] for i in config.target_rows)
    changed = {row for field in config.field_list for row in field.changes}
    # a closed form has only rows that a fit must find; of the others, what is no target is given to it
    whole = isinstance(model, ClosedForm)
    known = tuple(row for row in rows if row not in targets and (row in _FIELDS or not whole))
    noise = config.noise_model
    return Protocol(
        model=model.pointwise if isinstance(model, SpatialModel) else model,
        noise=noise.kind,
        tissues=chosen,
        kappa=torch.tensor(kappa, dtype=torch.float64),
        targets=targets,
        shared=tuple(row for row in rows if row in table.per_sample and row not in changed and row not in known),
        known=known,
        coils=1 if noise.kind == "rician" else int(getattr(noise, "coils", 0)),
        fields=tuple(field.kind for field in config.field_list if not isinstance(field, ChemicalShift)),
    )


def _offset(config: GeneratorConfig, tissue: str, row: str) -> float:
    """What the fields add to a whole tissue: its chemical shift [SI]."""
    shifts = [field for field in config.field_list if isinstance(field, ChemicalShift) and row in field.changes]
    return sum((field.shift for field in shifts if tissue in field.tissues), 0.0)


def _of_phantom(config: GeneratorConfig) -> tuple[str, ...]:
    """Tissues of the phantom, if it tells them before it is read."""
    spec = config.phantom_spec
    return MNI_TISSUES if isinstance(spec, MNI) else tuple(getattr(spec, "tissues", ()))


def names_of(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names) or "none"


def bound_rows(of: Protocol, snrs: Sequence[float], n_voxels: int) -> list[Row]:
    """Bounds of every target in every tissue at every SNR."""
    sigmas = torch.tensor([sigma_of(snr) for snr in snrs], dtype=torch.float64)
    problems: tuple[Problem, ...] = ("free", "shared", "known") if of.shared else ("free",)
    found = {problem: of.bound(problem, sigmas, n_voxels).cv for problem in problems}
    rows = []
    for t, tissue in enumerate(of.tissues):
        for name in of.targets:
            for s, snr in enumerate(snrs):
                at = (of.names.index(name), t, s)
                cvs = {problem: finite(float(cv[at])) for problem, cv in found.items()}
                free = cvs["free"]
                rows.append(
                    Row(
                        tissue=tissue,
                        parameter=name,
                        snr=snr,
                        sigma=float(sigmas[s]),
                        cv_free=free,
                        cv_shared=cvs.get("shared"),
                        cv_known=cvs.get("known"),
                        identifiable=free is not None and free <= PRACTICAL,
                    )
                )
    return rows


def finite(number: float) -> float | None:
    """The number, or None for infinity and what is none."""
    return number if isfinite(number) else None


def read_snrs(text: str) -> tuple[float, ...]:
    """SNRs as the command takes them, separated by commas.

    Raises: InputError.
    """
    try:
        snrs = tuple(float(part) for part in text.split(","))
    except ValueError:
        snrs = ()
    if not snrs or not all(isfinite(snr) and snr > 0 for snr in snrs):
        raise InputError(f"--snr: got {text!r}, wanted numbers above 0 separated by commas, such as 10,30,100")
    return tuple(dict.fromkeys(snrs))
