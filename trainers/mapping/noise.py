"""The noise level of a series that is mapped: as given, from the air, from residuals, or by the method itself."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qsim.errors import InputError
from qsim.estimators.base import computable
from trainers.mapping.inputs import MapJob, Volume, find_sigma
from trainers.mapping.known import read_volume
from trainers.mapping.task import MapTask, about, depth_of


@dataclass(frozen=True, slots=True)
class Noise:
    """Sigma as methods are given it, and how it was found."""

    sigma: float | Volume | None
    text: str

    @property
    def number(self) -> float | None:
        return self.sigma if isinstance(self.sigma, float) else None


def noise_of(task: MapTask, job: MapJob) -> Noise:
    """One sigma for all slices.

    Raises: InputError if it is given and no noise level, or asked for by the method and not to be found.
    """
    if isinstance(job.sigma, Path):
        values = read_volume("--sigma", job.sigma, task.series).astype(np.float32)
        used = values[task.region]
        if not (np.isfinite(used) & (used > 0)).all():
            place = "of the mask" if task.masked else "of the object"
            raise InputError(f"--sigma: {job.sigma} is not positive and finite in every voxel {place}")
        return Noise(values, f"a map as given, {job.sigma.name}")
    if job.sigma is not None:
        if not (np.isfinite(job.sigma) and job.sigma > 0):
            raise InputError(f"--sigma: must be positive and finite, got {job.sigma:g}")
        return Noise(float(job.sigma), "as given")
    first, last = about(task.region, task.slices, depth_of(task.series))
    images, told = task.images(first, last), task.told(first, last)
    where = computable(images, task.inside(first, last))
    at = f"slices {first} to {last - 1}" if last - first > 1 else f"slice {first}"
    try:
        level = find_sigma(images, where, task.model, told, task.fitting(first, last))
    except InputError as error:
        return _by_method(task, first, str(error))
    if not bool(torch.isfinite(level.sigma).all()):
        return _by_method(task, first, level.text)
    place = "outside the mask" if task.masked else "outside the object as told by brightness"
    return Noise(float(level.sigma), f"{level.text.replace('outside the mask', place)}; {at}")


def _by_method(task: MapTask, first: int, reason: str) -> Noise:
    """What the method itself finds, in one slice; a method that needs a sigma and finds none says so itself."""
    found = task.estimate(first, first + 1, None)
    if getattr(task.mapper.estimator, "needs_sigma", False):
        name, why = task.mapper.estimator.name, reason.removeprefix("sigma: ")
        return Noise(
            None, f"found by {name} itself in each slice, from what no smooth family of signals explains; {why}"
        )
    level = None if found is None else found.noise_level
    if level is None or level.sigma.ndim or not bool(torch.isfinite(level.sigma)):
        return Noise(None, f"not used; {reason.removeprefix('sigma: ')}")
    return Noise(float(level.sigma), f"{level.text}; slice {first}")
