"""What is told of a motion once the images are known: its trajectory as a table, and the shift that it left."""

from itertools import combinations

import torch
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.acquired import Acquired, Json
from qsim.kspace.motion.residual import residual_shift
from qsim.kspace.motion.sampled import Sampled

# points of a trajectory, of all images together
_NOTED = 200
# lines on either side of the centre of k-space that the shift is seen in
_COARSE = 16


def columns(d: int) -> tuple[str, ...]:
    """Of the table that `noted` makes."""
    axes = ("z", "y", "x")[-d:]
    turns = ("z",) if d == 2 else axes
    pairs = [f"{first}{second}" for first, second in combinations(axes, 2)]
    named = (("translation", axes), ("rotation", turns), ("scaling", axes), ("shear", pairs))
    return ("image", "time", *(f"{name}_{axis}" for name, which in named for axis in which))


def noted(seen: tuple[Sampled, ...]) -> list[Json]:
    """The trajectory about its mean, thinned: a row for each point, of no image if all share it."""
    noted: list[Json] = []
    for image, each in enumerate(seen):
        times, parameters = each.parameters(max(2, _NOTED // len(seen)))
        number = image if len(seen) > 1 else None
        noted += [[number, time, *pose] for time, pose in zip(times.tolist(), parameters.tolist(), strict=True)]
    return noted


def residual_shifts(before: Acquired, after: Acquired) -> list[Json]:
    """By which each image still lies beside itself [voxels], seen at the resolution that decides it."""
    old, new = _coarse(before), _coarse(after)
    scale = [whole / few for whole, few in zip(before.space, old.shape[2:], strict=True)]
    shifts = [residual_shift(one, other) for one, other in zip(old, new, strict=True)]
    return [[each * size for each, size in zip(shift, scale, strict=True)] for shift in shifts]


def _coarse(acquired: Acquired) -> Complex[Tensor, "n c *few"]:
    """Images of the lines near the centre of k-space: small, so that they cost nothing beside the transforms."""
    values = acquired.values
    for axis, n in enumerate(acquired.space):
        if n > 2 * _COARSE + 1:
            ends = (values.narrow(axis + 2, 0, _COARSE + 1), values.narrow(axis + 2, n - _COARSE, _COARSE))
            values = torch.cat(ends, axis + 2)
    # few, so that twice the digits cost nothing: products of two spectra must not vanish, whatever the unit
    values = values.to(torch.complex128)
    return torch.fft.ifftn(values, dim=tuple(range(2, values.ndim)), norm="ortho")
