"""Motion: every line of k-space comes from the object as it lay when that line was measured.

    K(k) = sum_i 1[line k measured in pose T_i] F{T_i m}(k),    T_i <- Tbar^-1 T_i

The trajectory is drawn as a function of time (`trajectory.py`), sampled when the order of k-space measures each line
(`timing.py`), and freed of its weighted mean pose Tbar (`pose.py`): what looks like motion is what is left about the
mean, the mean itself is only another position of the object. Weights are the energies of the lines of the images
themselves, or time. Then `composite.py` makes the k-space. Source: shaw2021; PMC7116018.

Assumes: the object moves as a whole within a field of view that is one period; coils and fields move with it; during
one line it rests.   Not: flow, spin history, through-slice motion of 2D images.
"""

from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.base import (
    Ndim,
    Stage,
    applied,
    check_axis,
    check_common,
    check_count,
    check_space,
    drawn_for,
)
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.motion.composite import composite, shifted_lines
from qsim.kspace.motion.findings import columns, noted, residual_shifts
from qsim.kspace.motion.paths import AnyPath
from qsim.kspace.motion.pose import in_voxels
from qsim.kspace.motion.rigid import is_identity
from qsim.kspace.motion.sampled import Sampled
from qsim.kspace.motion.sharing import shared_poses
from qsim.kspace.motion.spectrum import generic_energies, line_energies
from qsim.kspace.motion.timing import line_times
from qsim.kspace.motion.trajectory import AnyTrajectory, Recorded
from qsim.kspace.order import Acquisition
from qsim.values import value

# longer lines are taken for milliseconds [s]
_LONGEST_LINE = 30.0


@dataclass(frozen=True, slots=True)
class MotionDrawn:
    """Attributes: space: extent [voxels]; count: images, if they differ; paths: of all images, or one for each;
    severity: see `Motion`.
    """

    space: tuple[int, ...]
    count: int | None
    paths: tuple[AnyPath, ...]
    severity: float


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A drawn trajectory in the order of time, before its mean is taken out; a row for each image, or one for all.

    Attributes:
        times: of the lines, from the start of the acquisition [s].
        parameters: translation [voxels or mm], rotation [rad], logarithm of the stretch, shear; see `Recorded`.
        poses: homogeneous, about the centre of the image [voxels].
    """

    times: Float[np.ndarray, "m t"]
    parameters: Float[np.ndarray, "m t p"]
    poses: Float[np.ndarray, "m t d1 d1"]


@value
class Motion:
    """Rigid or affine motion during and between the images of a series.

    Attributes:
        trajectory: by `kind`: sudden, drift, breathing, random_walk, recorded.
        line_time: from one readout line to the next [s].
        order, shots: of the lines of the inner phase axis; see `Acquisition`. Partitions of a volume follow
            one another.
        shot_time: from the start of one shot to that of the next [s]; None: as long as its lines take.
        lines: scheduled along the inner phase axis, if an image of other rows stands for the same field of view.
        readout: axis along which a line is read (-1 is x); of the others the last is the inner phase axis.
        scope: `within`: every image is measured from time 0 of a trajectory; `between`: one trajectory over the whole
            series, each image as the object lies when its centre of k-space is measured; `series`: the same, each line
            as the object lies.
        pause: between the images of a series [s]; for `between` and `series`.
        per_image: each image has a trajectory of its own; for `within`.
        weights: of the mean pose: `spectral`: energy of each line of the images; `time`: equal; `none`: no mean is
            taken out, the images stay where the trajectory starts.
        reference: whether the whole `series` has one mean pose (energies are then those of the mean image, each of the
            same energy) or each `image` its own; None: image for `within`, else series.
        rotation_tolerance: rotations (and stretches) that differ by no more anywhere in the field of view are taken as
            one [voxels]; translations are always exact. What it cost is among the facts.
        spacing_mm: edges of the voxels [mm]; translations are then in mm.
        probability, ndim: see `Artefact`.
    Severity: root mean square displacement of the voxels about their mean pose, over voxels and lines, the lines
        weighted as natural images would, 1 / (1 + |k|^2) [mm with `spacing_mm`, else voxels]; of `weights: none` about
        the position of the image. For `between` it is the displacement from image to image.
    Facts: `trajectory` about the mean, a table of about 200 points whose columns are `trajectory_columns` (image: None
        if all share it); `residual_shift` of each image [voxels]; `poses` that were resampled; `rotation_error` of
        sharing them [voxels].
    """

    stage: ClassVar[Stage] = Stage.OBJECT
    kind: Literal["motion"] = "motion"
    trajectory: AnyTrajectory
    line_time: float
    order: Literal["linear", "centric", "segmented"] = "linear"
    shots: int = 1
    shot_time: float | None = None
    lines: int | None = None
    readout: int = -1
    scope: Literal["within", "between", "series"] = "within"
    pause: float = 0.0
    per_image: bool = False
    weights: Literal["spectral", "time", "none"] = "spectral"
    reference: Literal["image", "series"] | None = None
    rotation_tolerance: float = 0.05
    spacing_mm: tuple[float, ...] | None = None
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        if not 0 < self.line_time <= _LONGEST_LINE:
            remedy = "divide by 1000 if these are milliseconds"
            raise ValueError(f"line_time must lie in (0, {_LONGEST_LINE:g}] seconds, got {self.line_time}; {remedy}")
        if self.order not in ("linear", "centric", "segmented"):
            raise ValueError(f"order must be linear, centric or segmented, got {self.order!r}")
        if self.shots < 1:
            raise ValueError(f"shots must be at least 1, got {self.shots}")
        if self.shot_time is not None and not (isfinite(self.shot_time) and self.shot_time > 0):
            raise ValueError(f"shot_time must be a positive number of seconds, got {self.shot_time}")
        if self.lines is not None and self.lines < 1:
            raise ValueError(f"lines must be at least 1, got {self.lines}")
        if self.scope not in ("within", "between", "series"):
            raise ValueError(f"scope must be within, between or series, got {self.scope!r}")
        if not (isfinite(self.pause) and self.pause >= 0):
            raise ValueError(f"pause must be at least 0 s, got {self.pause}")
        if self.pause and self.scope == "within":
            raise ValueError("pause has no meaning for scope: within, where each image is measured from time 0")
        if self.per_image and self.scope != "within":
            raise ValueError(f"per_image has no meaning for scope: {self.scope}, where one trajectory runs on")
        if self.per_image and isinstance(self.trajectory, Recorded):
            raise ValueError("per_image has no meaning for a recorded trajectory: there is one")
        if self.weights not in ("spectral", "time", "none"):
            raise ValueError(f"weights must be spectral, time or none, got {self.weights!r}")
        if self.reference not in ("image", "series", None):
            raise ValueError(f"reference must be image or series, got {self.reference!r}")
        if self.reference is not None and self.weights == "none":
            raise ValueError("reference has no meaning for weights: none, where no mean pose is taken out")
        if self.reference == "image" and self.scope == "between":
            raise ValueError("reference: image would take all motion out of scope: between; use series")
        if not (isfinite(self.rotation_tolerance) and self.rotation_tolerance >= 0):
            raise ValueError(f"rotation_tolerance must be at least 0 voxels, got {self.rotation_tolerance}")
        if self.spacing_mm is not None and not all(isfinite(edge) and edge > 0 for edge in self.spacing_mm):
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")
        check_common(self.probability, self.ndim)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> MotionDrawn:
        """The trajectory, or one for each image.

        Raises: ValueError if it does not fit the axes or the times of the lines.
        """
        count, space = drawn_for(shape, self.ndim)
        if self.spacing_mm is not None and len(self.spacing_mm) != len(space):
            raise ValueError(f"spacing_mm must hold {len(space)} edges, one for each axis, got {self.spacing_mm}")
        times = self._line_times(space)
        duration = self._duration(space)
        images = 1 if self.scope == "within" else count
        if isinstance(self.trajectory, Recorded):
            self.trajectory.require(float(self._times(times, duration, images).max()))
        whole = images * duration + (images - 1) * self.pause
        n_paths = count if self.per_image else 1
        paths = tuple(self.trajectory.draw(len(space), whole, rng) for _ in range(n_paths))
        shared = self.scope == "within" and not self.per_image
        drawn = MotionDrawn(space, None if shared else count, paths, 0.0)
        _check_flat(space, self._sampled(drawn).poses)
        return replace(drawn, severity=self._severity(drawn))

    def act(self, acquired: Acquired, drawn: MotionDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.count is not None:
            check_count(acquired, drawn.count)
        if drawn.severity == 0:
            return acquired
        encoded = self._encoded(drawn.space)
        every = range(len(drawn.space))
        still = acquired.brought(kspace=every)
        seen = self._seen(drawn, self._energies(still, drawn))
        before = acquired.brought(image=every)
        if len(seen) == 1:
            # all images move alike: as channels of one
            together, spectra = before.values.flatten(0, 1), still.values.flatten(0, 1)
            poses = [self._composite(together, spectra, seen[0], encoded)]
            values = poses[0].values.unflatten(0, before.values.shape[:2])
        else:
            each_image = zip(before.values, still.values, seen, strict=True)
            poses = [self._composite(image, spectrum, own, encoded) for image, spectrum, own in each_image]
            values = torch.stack([each.values for each in poses])
        after = replace(before, values=values, in_kspace=frozenset(every))
        return after.noting(
            trajectory_columns=list(columns(len(drawn.space))),
            trajectory=noted(seen),
            residual_shift=residual_shifts(still, after),
            poses=sum(each.resampled for each in poses),
            rotation_error=max(each.error for each in poses),
        )

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: MotionDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)

    def sampled(self, drawn: MotionDrawn) -> Trajectory:
        """The drawn trajectory at the times of the lines, in the order of time, for a look at it."""
        whole = self._sampled(drawn)
        rows = len(whole.times)
        times, numbers = whole.times.reshape(rows, -1), whole.pose_of_line.reshape(rows, -1)
        order = np.argsort(times, axis=1, kind="stable")
        times, numbers = np.take_along_axis(times, order, 1), np.take_along_axis(numbers, order, 1)
        paths = drawn.paths if len(drawn.paths) > 1 else drawn.paths * rows
        parameters = np.stack([path.parameters(row) for path, row in zip(paths, times, strict=True)])
        return Trajectory(times, parameters, in_voxels(whole.poses, self.spacing_mm)[numbers])

    def _encoded(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of space that the lines number, the outer one first."""
        readout = check_axis("readout", self.readout, space)
        return tuple(axis for axis in range(len(space)) if axis != readout)

    def _acquisition(self, rows: int) -> Acquisition:
        lines = rows if self.lines is None else self.lines
        if lines % self.shots:
            raise ValueError(f"shots: {lines} lines are no multiple of {self.shots} shots")
        return Acquisition(lines=lines, shots=self.shots, order=self.order)

    def _shot_time(self, acquisition: Acquisition) -> float:
        least = acquisition.n_echoes * self.line_time
        if self.shot_time is not None and self.shot_time < least * (1 - 1e-9):
            raise ValueError(
                f"shot_time must be at least {least:g} s, as long as {acquisition.n_echoes} lines take, "
                f"got {self.shot_time:g}"
            )
        return least if self.shot_time is None else self.shot_time

    def _line_times(self, space: tuple[int, ...]) -> Float[np.ndarray, "*lines"]:
        """From the start of an image [s], lines from one end of the centred spectrum to the other."""
        lines = tuple(space[axis] for axis in self._encoded(space))
        acquisition = self._acquisition(lines[-1])
        partitions = lines[0] if len(lines) == 2 else 1
        times = line_times(acquisition, self.line_time, self._shot_time(acquisition), lines[-1], partitions)
        return times.reshape(lines)

    def _duration(self, space: tuple[int, ...]) -> float:
        """Of one image [s]."""
        lines = tuple(space[axis] for axis in self._encoded(space))
        acquisition = self._acquisition(lines[-1])
        return (lines[0] if len(lines) == 2 else 1) * self.shots * self._shot_time(acquisition)

    def _times(self, times: Float[np.ndarray, "*lines"], duration: float, images: int) -> Float[np.ndarray, "m *lines"]:
        """At which the object is looked at, from the start of the series [s]."""
        if self.scope == "between":
            times = np.full_like(times, times[tuple(n // 2 for n in times.shape)])
        starts = np.arange(images) * (duration + self.pause)
        return starts.reshape(-1, *(1 for _ in times.shape)) + times

    def _sampled(self, drawn: MotionDrawn) -> Sampled:
        """The poses of the lines as they were drawn."""
        images = drawn.count if drawn.count is not None and not self.per_image else 1
        times = self._times(self._line_times(drawn.space), self._duration(drawn.space), images)
        if self.per_image:
            times = np.repeat(times, len(drawn.paths), 0)
            parameters = [path.parameters(row.ravel()) for path, row in zip(drawn.paths, times, strict=True)]
            every = np.concatenate(parameters)
        else:
            every = drawn.paths[0].parameters(times.ravel())
        return Sampled.of(times, every, len(drawn.space))

    def _seen(self, drawn: MotionDrawn, weights: Float[np.ndarray, "k *lines"] | None) -> tuple[Sampled, ...]:
        """The poses that make the k-space: one trajectory for all images, or one for each."""
        sampled = self._sampled(drawn)
        if weights is None:
            return sampled.rows()
        reference = self.reference or ("image" if self.scope == "within" else "series")
        return sampled.about_mean(weights, reference)

    def _energies(self, acquired: Acquired, drawn: MotionDrawn) -> Float[np.ndarray, "k *lines"] | None:
        """Of the lines of each image, as shares of the image."""
        encoded = self._encoded(drawn.space)
        lines = tuple(drawn.space[axis] for axis in encoded)
        if self.weights == "none":
            return None
        if self.weights == "time":
            return np.ones((1, *lines))
        energies = line_energies(acquired, encoded)
        energies = np.fft.fftshift(energies, tuple(range(1, energies.ndim)))
        whole = energies.sum(tuple(range(1, energies.ndim)), keepdims=True)
        # an image of zeros has no energy, and no position either
        return np.where(whole > 0, energies / np.where(whole > 0, whole, 1), 1 / energies[0].size)

    def _severity(self, drawn: MotionDrawn) -> float:
        lines = tuple(drawn.space[axis] for axis in self._encoded(drawn.space))
        weights = np.fft.fftshift(generic_energies(lines))
        seen = self._seen(drawn, None if self.weights == "none" else weights[None])
        edges = self.spacing_mm or (1.0,) * len(drawn.space)
        return sqrt(sum(each.mean_square(drawn.space, edges, weights) for each in seen) / len(seen))

    def _composite(
        self,
        values: Complex[Tensor, "c *space"],
        spectrum: Complex[Tensor, "c *space"],
        seen: Sampled,
        encoded: tuple[int, ...],
    ) -> "_Composed":
        poses, of_line = in_voxels(seen.poses, self.spacing_mm), seen.pose_of_line[0]
        d = poses.shape[-1] - 1
        chosen, stands, error = shared_poses(poses[:, :d, :d], tuple(values.shape[1:]), self.rotation_tolerance)
        shifts = poses[:, :d, d][of_line]
        if len(chosen) == 1 and is_identity(poses[chosen[0], :d, :d]):
            return _Composed(shifted_lines(spectrum, shifts, encoded), 0, error)
        turns = np.broadcast_to(np.eye(d + 1), (len(chosen), d + 1, d + 1)).copy()
        turns[:, :d, :d] = poses[chosen, :d, :d]
        return _Composed(composite(values, turns, stands[of_line], encoded, shifts), len(chosen), error)


def _check_flat(space: tuple[int, ...], poses: Float[np.ndarray, "u d1 d1"]) -> None:
    """Refuse turns and shears out of an axis of one voxel, of which nothing is known beyond it."""
    d = len(space)
    linear = poses[:, :d, :d] - np.eye(d)
    for axis in (axis for axis in range(d) if space[axis] == 1):
        if np.abs(linear[:, axis]).max() > 0 or np.abs(linear[:, :, axis]).max() > 0:
            raise ValueError(
                f"trajectory: it turns or stretches axis {axis - d}, which is one voxel wide; "
                "give slices as 2D images (ndim: 2)"
            )


@dataclass(frozen=True, slots=True)
class _Composed:
    """Attributes: values: k-space; resampled: poses that it took; error: of sharing them [voxels]."""

    values: Complex[Tensor, "c *space"]
    resampled: int
    error: float
