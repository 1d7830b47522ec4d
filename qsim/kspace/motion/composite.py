"""Composite k-space: every line comes from the image as it lay when that line was read.

    K(k) = sum_i 1[line k in S_i] F{T_i m}(k) exp(-2 pi i k . d(line k) / N)

S_i are the lines read in pose i, T_i m the image in that pose: its content at r goes to r', r' - c = R_i (r - c) + t_i
[voxels] with c = N // 2. The turn R is made by shears (`rigid.py`, exact) if it is rigid, else by splines
(`affine.py`); the translations t_i + d are a ramp, exact for any distance, k = -N/2 at Nyquist. A pose that does not
turn costs nothing but its ramp.
Source: Shaw et al., PMC7116018 (composite of poses); Ehman and Felmlee 1989, doi:10.1148/radiology.173.1.2781017
(a translation is a ramp).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from qsim.kspace.fourier import require_complex
from qsim.kspace.motion.affine import Splines
from qsim.kspace.motion.lines import Lines, powers, slabs, spectrum_into, wave
from qsim.kspace.motion.rigid import (
    Rotations,
    is_identity,
    is_rigid,
    part_turn,
    parts_of,
    shears_of,
)

# so many lines for each distance along the readout, and waves are computed for each distance, not for each line [1]
_FEW = 4


def composite(
    values: Complex[Tensor, "c *space"],
    poses: Float[np.ndarray, "p d1 d1"],
    pose_of_line: Int[np.ndarray, "*lines"],
    encoded: tuple[int, ...],
    shifts: Float[np.ndarray, "*lines d"] | None = None,
) -> Complex[Tensor, "c *space"]:
    """Composite k-space: orthonormal, k = 0 first on every axis, phase origin at voxel 0 as in torch.fft.fftn.

    Args:
        values: image, or its channels.
        poses: homogeneous, about the centre voxel [voxels].
        pose_of_line: index of the pose during each line; its axes are the phase-encoded axes of space, line j holds
            k = j - N // 2.
        encoded: those axes of space, numbered from 0; the others are read within no time.
        shifts: translation during each line, after the pose [voxels].
    Raises: ValueError if shapes do not fit one another, a number is not finite, a pose mirrors the image, or a
        rotation is too large for shears.
    """
    _check(values, poses, pose_of_line, encoded, shifts)
    d = values.ndim - 1
    # from here on lines are in the order of the FFT
    of_line = np.fft.ifftshift(pose_of_line)
    turns, turn_of_pose = _distinct(poses[:, :d, :d], np.unique(of_line))
    result = _turned(values, turns, turn_of_pose[of_line], encoded)
    distances = poses[of_line][..., :d, d].astype(np.float64)
    if shifts is not None:
        distances = distances + np.fft.ifftshift(shifts, tuple(range(of_line.ndim)))
    _shift_lines(result, distances, encoded)
    return result


def shifted_lines(
    kspace: Complex[Tensor, "c *space"], shifts: Float[np.ndarray, "*lines d"], encoded: tuple[int, ...]
) -> Complex[Tensor, "c *space"]:
    """K(k) exp(-2 pi i k . d(line k) / N): what `composite` makes of poses that do not turn, from the spectrum itself.

    Args:
        kspace: k = 0 first on every axis.
        shifts: translation during each line, lines from one end of the centred spectrum to the other [voxels].
        encoded: axes of space that the lines number, from 0.
    """
    result = kspace.clone()
    _shift_lines(result, np.fft.ifftshift(shifts, tuple(range(shifts.ndim - 1))), encoded)
    return result


def moved(values: Complex[Tensor, "c *space"], pose: Float[np.ndarray, "d1 d1"]) -> Complex[Tensor, "c *space"]:
    """An image in one pose, about its centre voxel [voxels]."""
    lines = np.zeros(values.shape[1], dtype=np.int64)
    spectrum = composite(values, pose[None], lines, (0,))
    return torch.fft.ifftn(spectrum, dim=tuple(range(1, values.ndim)), norm="ortho")


def _check(
    values: Tensor, poses: np.ndarray, pose_of_line: np.ndarray, encoded: tuple[int, ...], shifts: np.ndarray | None
) -> None:
    require_complex(values)
    space = tuple(values.shape[1:])
    d = len(space)
    if d not in (2, 3):
        raise ValueError(f"values must be (c, y, x) or (c, z, y, x), got {tuple(values.shape)}")
    if poses.ndim != 3 or poses.shape[1:] != (d + 1, d + 1) or len(poses) == 0:
        raise ValueError(f"poses must be (p, {d + 1}, {d + 1}) for {d} axes of space, got {poses.shape}")
    if not np.isfinite(poses).all():
        raise ValueError("poses must be finite")
    if not np.array_equal(poses[:, d], np.broadcast_to(np.eye(d + 1)[d], (len(poses), d + 1))):
        raise ValueError(f"poses must end in the row {np.eye(d + 1)[d].tolist()}")
    if len(encoded) == 0 or len(set(encoded)) < len(encoded) or not all(0 <= axis < d for axis in encoded):
        raise ValueError(f"encoded must name axes 0 to {d - 1}, each once, got {encoded}")
    wanted = tuple(space[axis] for axis in encoded)
    if pose_of_line.shape != wanted:
        raise ValueError(f"pose_of_line must be {wanted}, the lines of axes {encoded}, got {pose_of_line.shape}")
    if pose_of_line.min() < 0 or pose_of_line.max() >= len(poses):
        raise ValueError(f"pose_of_line must lie in 0 to {len(poses) - 1}, the poses given")
    if shifts is not None and shifts.shape != (*wanted, d):
        raise ValueError(f"shifts must be {(*wanted, d)}, got {shifts.shape}")
    if shifts is not None and not np.isfinite(shifts).all():
        raise ValueError("shifts must be finite")


def _distinct(matrices: np.ndarray, used: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Matrices of the poses in use without repeats, and which of them each pose has."""
    turns: list[np.ndarray] = []
    known: dict[bytes, int] = {}
    of_pose = np.zeros(len(matrices), dtype=np.int64)
    for pose in used:
        matrix = matrices[pose].astype(np.float64)
        matrix = np.eye(len(matrix)) if is_identity(matrix) else matrix
        key = matrix.tobytes()
        if key not in known:
            known[key] = len(turns)
            turns.append(matrix)
        of_pose[pose] = known[key]
    return turns, of_pose


def _turned(values: Tensor, turns: list[np.ndarray], turn_of_line: np.ndarray, encoded: tuple[int, ...]) -> Tensor:
    """Lines of the spectra of the turned images."""
    space = tuple(values.shape[1:])
    rotations: Rotations | None = None
    splines: Splines | None = None
    if len(turns) == 1 and is_identity(turns[0]):
        return torch.fft.fftn(values, dim=tuple(range(1, values.ndim)), norm="ortho")
    result = torch.empty_like(values, memory_format=torch.contiguous_format)
    for number, matrix in enumerate(turns):
        lines = Lines.of(turn_of_line == number, encoded, len(space), values.device)
        if not is_rigid(matrix):
            splines = splines or Splines(values)
            spectrum_into(result, splines.moved(matrix), lines)
            continue
        parts = parts_of(matrix)
        if parts > 1:
            # shears of a large turn would carry the image out of its field of view: a part of it, several times
            part = part_turn(matrix, parts)
            pose = np.eye(len(space) + 1)
            pose[:-1, :-1] = part
            turned = values
            for _ in range(parts - 1):
                turned = moved(turned, pose)
            Rotations(turned).into(result, shears_of(part, space), lines)
            continue
        shears = shears_of(matrix, space)
        if shears:
            rotations = rotations or Rotations(values)
            rotations.into(result, shears, lines)
        else:
            spectrum_into(result, values, lines)
    return result


def _shift_lines(kspace: Tensor, distances: np.ndarray, encoded: tuple[int, ...]) -> None:
    """Multiply lines by exp(-2 pi i k . d / N), in place, part by part: the factors of a part stay in the cache."""
    if not distances.any():
        return
    space = tuple(kspace.shape[1:])
    lines = distances.shape[:-1]
    phase = np.zeros(lines)
    for place, axis in enumerate(encoded):
        n = space[axis]
        k = np.fft.ifftshift(np.arange(n) - n // 2).reshape([-1 if o == place else 1 for o in range(len(lines))])
        phase -= k * distances[..., axis] / n
    # [turns]
    turns = torch.from_numpy(phase)
    others = [axis for axis in range(len(space)) if axis not in encoded]
    read = [axis for axis in others if distances[..., axis].any()]
    waves = [_Waves.of(-distances[..., axis] / space[axis], space[axis], kspace) for axis in read]
    view = kspace.movedim(tuple(axis + 1 for axis in encoded), tuple(1 + place for place in range(len(lines))))
    for part in slabs(view, 1):
        # the phase of the lines once
        factor = _cast(wave(turns[part]), kspace).unsqueeze(-1)
        there, extent = view[:, part], factor.shape[:-1]
        if not read:
            there.mul_(factor.reshape(*extent, *(1 for _ in others)))
        for number, (axis, each) in enumerate(zip(read, waves, strict=True)):
            along = each.of_lines(part) if number else each.of_lines(part).mul_(factor)
            there.mul_(along.reshape(*extent, *(-1 if other == axis else 1 for other in others)))


@dataclass(frozen=True, slots=True)
class _Waves:
    """exp(2 pi i k turns) along an axis that is read within a line, for k in the order of the FFT.

    Attributes:
        n: extent of the axis.
        turns: per k, of each line.
        like: what the waves are multiplied by.
        few: waves of all the turns that there are, and which of them each line has; None where most lines differ.
    """

    n: int
    turns: Tensor
    like: Tensor
    few: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, turns: Float[np.ndarray, "*lines"], n: int, like: Tensor) -> "_Waves":
        distinct = np.unique(turns)
        few = None
        if _FEW * len(distinct) <= turns.size:
            numbers = torch.from_numpy(np.searchsorted(distinct, turns)).to(like.device)
            few = _table(torch.from_numpy(distinct), n, like), numbers
        return cls(n, torch.from_numpy(turns), like, few)

    def of_lines(self, part: slice) -> Complex[Tensor, "part *lines n"]:
        """Of a part of the first axis of lines, to be changed at will."""
        if self.few is not None:
            return self.few[0][self.few[1][part]]
        return _table(self.turns[part], self.n, self.like)


def _table(turns: Float[Tensor, "*lines"], n: int, like: Tensor) -> Complex[Tensor, "*lines n"]:
    count = (n + 1) // 2
    positive = powers(turns, count, like)
    first = _cast(wave((count - n) * turns), like).unsqueeze(-1)
    return torch.cat([positive, positive[..., : n - count] * first], -1)


def _cast(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(device=like.device, dtype=like.dtype)
