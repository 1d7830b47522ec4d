"""Composite k-space: every line comes from the image as it lay when that line was read.

    K(k) = sum_i 1[line k in S_i] F{T_i m}(k) exp(-2 pi i k . d(line k) / N)

S_i are the lines read in pose i, T_i m the image in that pose: its content at r goes to r', r' - c = R_i (r - c) + t_i
[voxels] with c = N // 2. The turn R is made by shears (`rigid.py`, exact) if it is rigid, else by splines
(`affine.py`); the translations t_i + d are a ramp, exact for any distance, k = -N/2 at Nyquist. A pose that does not
turn costs nothing but its ramp.
Source: Shaw et al., PMC7116018 (composite of poses); Ehman and Felmlee 1989, doi:10.1148/radiology.173.1.2781017
(a translation is a ramp).
"""

from math import ceil, pi, sqrt

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from qsim.kspace.fourier import require_complex
from qsim.kspace.motion.affine import Splines
from qsim.kspace.motion.lines import Lines, powers, spectrum_into
from qsim.kspace.motion.rigid import Rotations, is_identity, is_rigid, shears_of


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
        shears = shears_of(matrix, space)
        if shears:
            rotations = rotations or Rotations(values)
            rotations.into(result, shears, lines)
        else:
            spectrum_into(result, values, lines)
    return result


def _shift_lines(kspace: Tensor, distances: np.ndarray, encoded: tuple[int, ...]) -> None:
    """Multiply lines by exp(-2 pi i k . d / N), in place.

    Along an axis that is read within a line, k = 0, 1, ... is split, k = L q + l: two small tables of powers, and one
    product of them, instead of an exponential for every sample.
    """
    if not distances.any():
        return
    space = tuple(kspace.shape[1:])
    lines = distances.shape[:-1]
    phase = np.zeros(lines)
    for place, axis in enumerate(encoded):
        n = space[axis]
        k = np.fft.ifftshift(np.arange(n) - n // 2).reshape([-1 if o == place else 1 for o in range(len(lines))])
        phase -= k * distances[..., axis] / n
    others = [axis for axis in range(len(space)) if axis not in encoded]
    read = [axis for axis in others if distances[..., axis].any()]
    view = kspace.movedim(tuple(axis + 1 for axis in encoded), tuple(1 + place for place in range(len(lines))))
    # [turns], (*lines, 1)
    turns = torch.from_numpy(phase).unsqueeze(-1)
    if not read:
        view *= _cast(_wave(turns), kspace).reshape(*lines, *(1 for _ in others))
    for axis in read:
        n = space[axis]
        per_k = torch.from_numpy(-distances[..., axis] / n)
        shape = [*lines, *(-1 if other == axis else 1 for other in others)]
        positive = (n + 1) // 2
        # no negative k on an axis of one voxel
        for first, count in ((0, positive), (positive - n, n - positive))[: 1 if n == 1 else 2]:
            step = ceil(sqrt(count))
            start = _wave(turns + first * per_k.unsqueeze(-1))
            coarse = _cast(powers(step * per_k, ceil(count / step)) * start, kspace)
            fine = _cast(powers(per_k, step), kspace)
            table = (coarse.unsqueeze(-1) * fine.unsqueeze(-2)).flatten(-2)
            dim = 1 + len(lines) + others.index(axis)
            view.narrow(dim, first % n, count).mul_(table[..., :count].reshape(shape))
        # the phase of the lines once
        turns = torch.zeros_like(turns)


def _wave(turns: Tensor) -> Tensor:
    """exp(2 pi i turns)."""
    angle = 2 * pi * (turns - torch.round(turns))
    return torch.polar(torch.ones_like(angle), angle)


def _cast(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(device=like.device, dtype=like.dtype)
