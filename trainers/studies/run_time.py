"""`qsim study` of kind `run_time`: its config, and how it is run."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from generators.config import Count, GeneratorConfig, RootConfig, Seed
from generators.sample import make_truth
from qsim.errors import InputError
from qsim.estimators import Estimate, Status
from qsim.evaluation.pages.run_time_page import Published, RunTimeStudy, Timing, page
from qsim.evaluation.studies.grid import bound_name
from qsim.evaluation.study import noisy_images, one_torch_thread
from qsim.evaluation.table import ALL, Row
from qsim.information import crb
from qsim.kspace.noise import coils_of, sigma_of
from qsim.parameters import RELAXATION_TIMES
from qsim.signals.base import SpatialModel
from trainers.mixture_estimator import MixtureEstimator
from trainers.studies.block_runner import Command
from trainers.studies.methods import Chosen, Entry, ModelEntry, check_entries, check_shapes, choose, pools
from trainers.studies.outputs import progress_bar, say
from trainers.studies.study_files import open_files, write_files
from trainers.studies.study_plan import Snr, tissue_prior


class PublishedTime(BaseModel):
    """A time that somebody else has reported, shown beside those of this machine and never divided by them.

    Attributes:
        name: of the method.
        seconds: as printed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: Annotated[str, Field(min_length=1)]
    seconds: Annotated[float, Field(gt=0)]


class RunTimeConfig(RootConfig):
    """Seconds of every method on the same series, on one thread of this machine.

    Attributes:
        seed: of the noise; that of the truth is `data.seed`.
        kind: run_time.
        data: anatomy, tissues, signal model, kind of noise. Its `patch`, `samples` and the distribution of sigma give
            way to `crop`, 1 and `snr`; patch and samples may be left out.
        crop: part of the slice that holds the tissue, in voxels.
        matrix: of the images in voxels, the crop in its middle; the crop itself if not given.
        estimators: names, `{model: run}` for trained networks, or `{method, name, known, options}`.
        snr: 0.65 / sigma; the time of some methods depends on it.
        repeats: timed runs of each method at each SNR.
        allow_training_anatomy: time networks on anatomy that they were, or may have been, trained on; the report says
            so.
        published: times of others, for a table of their own.
        source: where those stand.
    """

    seed: Seed
    kind: Literal["run_time"]
    data: GeneratorConfig
    crop: Annotated[tuple[Count, ...], Field(min_length=2, max_length=2)]
    matrix: Annotated[tuple[Count, ...], Field(min_length=2, max_length=2)] | None = None
    estimators: Annotated[tuple[Entry, ...], Field(min_length=1)]
    snr: Annotated[tuple[Snr, ...], Field(min_length=1)] = (30.0,)
    repeats: Count = 5
    allow_training_anatomy: Annotated[bool, Field(strict=True)] = False
    published: tuple[PublishedTime, ...] = ()
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """What the study decides itself need not be written into `data`."""
        if isinstance(given, dict) and isinstance(given.get("data"), dict):
            crop = given.get("crop")
            patch = crop if isinstance(crop, list | tuple) and len(crop) == 2 else (1, 1)
            return {**given, "data": {"samples": 1, "patch": patch, **given["data"]}}
        return given

    @field_validator("estimators", mode="before")
    @classmethod
    def _entries(cls, given: Any) -> Any:
        return check_shapes(given)

    @model_validator(mode="after")
    def _fits(self) -> "RunTimeConfig":
        if self.matrix is not None and any(m < c for m, c in zip(self.matrix, self.crop, strict=True)):
            raise ValueError(
                f"matrix: {self.matrix[0]} x {self.matrix[1]} is smaller than the crop, {self.crop[0]} x {self.crop[1]}"
            )
        if self.published and not self.source:
            raise ValueError("source: missing; say where the published times stand")
        model = self.data.signal_model
        if isinstance(model, SpatialModel) and model.mixes_voxels:
            raise ValueError("data.model: its readout mixes voxels, which no fit undoes; set encoding: centre")
        if not self._times:
            raise ValueError("data.model: has no relaxation time; this study shows the error of one beside the seconds")
        twice = [f"{snr:g}" for i, snr in enumerate(self.snr) if snr in self.snr[:i]]
        if twice:
            raise ValueError(f"snr: {', '.join(twice)} is given twice")
        networks = any(isinstance(entry, ModelEntry) for entry in self.estimators)
        if networks and self.data.split != "test" and not self.allow_training_anatomy:
            raise ValueError(
                "data.split: got train, wanted test: the errors beside the seconds flatter networks on the anatomy of "
                "the training; set split: test, or allow_training_anatomy: true, which the report then says"
            )
        check_entries(self.estimators, model, tissue_prior(self.data, self.estimators))
        return self

    @property
    def _times(self) -> list[str]:
        rows = [parameter.name for parameter in self.data.signal_model.parameters]
        return [rows[i] for i in self.data.target_rows if rows[i] in RELAXATION_TIMES]

    @property
    def parameter(self) -> str:
        """The row whose error stands beside the seconds: the first relaxation time among the targets."""
        return self._times[0]


@dataclass(frozen=True, slots=True)
class _Series:
    """What every method is given, in the matrix.

    Attributes:
        signal: noise-free [units of A].
        kappa: true maps, 0 outside the tissue [SI].
        mask: tissue.
    """

    signal: Float[Tensor, "n y x"]
    kappa: Float[Tensor, "q y x"]
    mask: Bool[Tensor, "y x"]


def _series(config: RunTimeConfig) -> _Series:
    """The truth, in the middle of the matrix.

    Raises: InputError naming the field at fault.
    """
    try:
        truth = make_truth(config.data.model_copy(update={"patch": config.crop, "samples": 1}), 0)
    except InputError as error:
        text = str(error)
        raise InputError("crop" + text.removeprefix("patch") if text.startswith("patch") else text) from None
    matrix = config.matrix or config.crop
    before = [(m - c) // 2 for m, c in zip(matrix, config.crop, strict=True)]
    pads = [(b, m - c - b) for b, m, c in zip(before, matrix, config.crop, strict=True)]
    margins = [*pads[1], *pads[0]]
    mask = torch.nn.functional.pad(truth.labels > 0, margins)
    if not bool(mask.any()):
        raise InputError("crop: holds no tissue; choose another, or another data.seed")
    return _Series(
        torch.nn.functional.pad(truth.signal.float(), margins), torch.nn.functional.pad(truth.kappa, margins), mask
    )


def run_run_time(config: RunTimeConfig, out: Path, command: Command = Command()) -> Path:  # noqa: B008  frozen
    """Time the methods, again if the folder holds the same study; returns the path of the report.

    Args:
        config: the study.
        out: folder of results.csv, grid.csv, report.html, provenance.json.
        command: the user's own methods; the study runs serially and on the CPU, whatever the number of workers.
    Raises: InputError naming the field at fault, or the folder if it holds another study.
    """
    if command.scheduler != "threads":
        raise InputError(f"scheduler: a study of kind run_time times this machine, got {command.scheduler!r}")
    if command.device == "cuda":
        raise InputError("device: a study of kind run_time times one CPU thread; leave --device out")
    model = config.data.signal_model
    chosen = choose(
        config.estimators,
        command.estimators,
        model,
        data=config.data,
        prior=tissue_prior(config.data, config.estimators),
    )
    seen = _seen(config, chosen)
    series = _series(config)
    open_files(config, chosen, out)
    began = time.monotonic()
    timings: list[Timing] = []
    total = len(chosen) * len(config.snr) * (config.repeats + 1)
    with one_torch_thread(), progress_bar("runs (method x SNR x repeat)", total) as (progress, bar):
        for snr in config.snr:
            timings += _time_all(config, series, chosen, snr, lambda: progress.advance(bar))
    matrix = tuple(series.mask.shape)
    study = RunTimeStudy(
        timings=timings,
        parameter=next(p for p in model.parameters if p.name == config.parameter),
        voxels=int(series.mask.sum()),
        n_images=model.n_images,
        matrix=(matrix[0], matrix[1]),
        repeats=config.repeats,
        published=[Published(each.name, each.seconds) for each in config.published],
        source=config.source,
        machine=f"{_processor()}, {platform.platform()}, torch {torch.__version__}, one thread",
        about=f"{model.kind}, {model.n_images} images, {config.data.noise_model.kind} noise, "
        f"{config.data.phantom_spec.kind} anatomy ({config.data.split}{seen})",
        ignored="" if command.workers == 1 else f"--workers {command.workers} was not used: methods run one by one.",
    )
    path = write_files(config, chosen, out, _rows(study), (_HEADER, _lines(study)), page(study))
    say(f"study: {len(chosen)} methods, {study.voxels} voxels in {time.monotonic() - began:.0f} s; open {path}")
    return path


def _seen(config: RunTimeConfig, chosen: Sequence[Chosen]) -> str:
    """For the page: which networks the anatomy flatters.

    Raises: InputError naming the first of them, unless that is allowed.
    """
    seen = []
    for i, (entry, method) in enumerate(zip(config.estimators, chosen, strict=False)):
        if isinstance(entry, ModelEntry) and not method.held_out:
            if not config.allow_training_anatomy:
                raise InputError(
                    f"estimators[{i}].model: {entry.model} may have been trained on the anatomy of this study; set "
                    "split: test of the phantom and slice_axis of its training, or allow_training_anatomy: true, "
                    "which the report then says"
                )
            seen.append(method.name)
    return f", which {', '.join(seen)} may have been trained on" if seen else ""


def _time_all(
    config: RunTimeConfig, series: _Series, chosen: Sequence[Chosen], snr: float, done: Callable[[], None]
) -> list[Timing]:
    """Every method at one SNR: one run each that is not timed, then taking turns."""
    sigma = sigma_of(snr)
    images = noisy_images(series.signal, config.data.noise_model, snr, config.seed, 0, 0)
    peaks: dict[str, float] = {}
    first: dict[str, Estimate] = {}
    known = {each.name: _told(config, series, each.told) for each in chosen}
    for each in chosen:
        before = _reset_peak()
        first[each.name] = each.estimator(images.clone(), sigma=sigma, mask=series.mask, known=known[each.name])
        peaks[each.name] = _peak() - before
        done()
    cpu: dict[str, list[float]] = {each.name: [] for each in chosen}
    wall: dict[str, list[float]] = {each.name: [] for each in chosen}
    for _ in range(config.repeats):
        for each in chosen:
            copy = images.clone()
            wall_began, cpu_began = time.perf_counter(), time.process_time()
            each.estimator(copy, sigma=sigma, mask=series.mask, known=known[each.name])
            cpu[each.name].append(time.process_time() - cpu_began)
            wall[each.name].append(time.perf_counter() - wall_began)
            done()
    return [
        _judged(config, series, each, snr, first[each.name], cpu[each.name], wall[each.name], peaks[each.name])
        for each in chosen
    ]


def _told(config: RunTimeConfig, series: _Series, rows: Sequence[str]) -> Mapping[str, Tensor] | None:
    """True values that a method is given: one number where the tissue shares it, else a map."""
    if not rows:
        return None
    found = {}
    for parameter, row in zip(config.data.signal_model.parameters, series.kappa, strict=True):
        if parameter.name in rows:
            inside = row[series.mask]
            found[parameter.name] = inside[0] if bool((inside == inside[0]).all()) else row
    return found


def _judged(
    config: RunTimeConfig,
    series: _Series,
    each: Chosen,
    snr: float,
    estimate: Estimate,
    cpu: Sequence[float],
    wall: Sequence[float],
    peak: float,
) -> Timing:
    """Times and errors of one method."""
    model, mask = config.data.signal_model, series.mask
    rows = [parameter.name for parameter in model.parameters]
    names = [parameter.name for parameter in each.estimator.parameters]
    if config.parameter in names:
        found = estimate.kappa[names.index(config.parameter)][mask].double().cpu()
        true = series.kappa[rows.index(config.parameter)][mask].double()
        error = 100 * (found / true - 1).numpy()
        error = error[np.isfinite(error)]
    else:
        error = np.empty(0)
    low, middle, high = np.percentile(error, (16, 50, 84)) if error.size else (nan, nan, nan)
    # a network has learnt from patches with one B each
    pooled = ("B",) if each.weights and "B" in rows else pools(each.estimator)
    shared = tuple(row for row in pooled if row in rows and row not in each.told)
    noise = config.data.noise_model
    bound = crb(model, series.kappa[:, mask], sigma_of(snr), shared=shared, known=each.told, coils=coils_of(noise)).cv[
        rows.index(config.parameter)
    ]
    status = estimate.status[mask].cpu()
    lost = (status == int(Status.NOT_CONVERGED)) | (status == int(Status.NOT_COMPUTED))
    return Timing(
        name=each.name,
        snr=snr,
        cpu=tuple(cpu),
        wall=tuple(wall),
        peak=peak,
        bias=float(middle),
        spread=float(high - low) / 2,
        error=float(np.median(np.abs(error))) if error.size else nan,
        bound_name=bound_name(shared, each.told),
        bound=float(bound.median()),
        failed=100 * float(lost.double().mean()),
        at_bound=100 * float((status == int(Status.AT_BOUND)).double().mean()),
        whole=each.weights is not None and not isinstance(each.estimator, MixtureEstimator),
    )


def _reset_peak() -> float:
    """Resident size now; the system's record of the largest starts anew [bytes]. NaN where it has no such record."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return nan
    return _memory("VmRSS")


def _peak() -> float:
    """Largest resident size since then [bytes]."""
    return _memory("VmHWM")


def _memory(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return nan
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(field)), nan)


def _processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _rows(study: RunTimeStudy) -> Iterator[Row]:
    """Rows of results.csv: seconds, ratios, bytes, percent."""
    for timing in study.timings:
        figures = {
            "cpu_seconds_min": min(timing.cpu),
            "cpu_seconds_median": float(np.median(timing.cpu)),
            "wall_seconds_min": min(timing.wall),
            "wall_seconds_median": float(np.median(timing.wall)),
            "voxels_per_cpu_second": study.rate(timing),
            "ratio_to_fastest": study.ratio(timing),
            "ratio_to_least_squares": study.ratio(timing, "least-squares"),
            "peak_memory": timing.peak,
            "relative_bias_median": timing.bias,
            "spread": timing.spread,
            "abs_error_median": timing.error,
            "bound": timing.bound,
            "failure_rate": timing.failed,
            "at_bound_rate": timing.at_bound,
        }
        for metric, value in figures.items():
            yield Row(
                *("run_time", timing.name, "", study.parameter.name, timing.snr, sigma_of(timing.snr), ALL, metric),
                *(value, nan, nan, study.voxels),
            )


_HEADER = ("estimator", "snr", "repeat", "cpu_seconds", "wall_seconds")


def _lines(study: RunTimeStudy) -> Iterator[Sequence[str | float | int]]:
    """One line of grid.csv for each timed run."""
    for timing in study.timings:
        for repeat, (cpu, wall) in enumerate(zip(timing.cpu, timing.wall, strict=True)):
            yield timing.name, timing.snr, repeat, cpu, wall
