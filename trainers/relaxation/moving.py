"""Slight rotations and shifts of whole series, drawn for every example: the augmentation of huang2022, and its motion.

What is drawn is a pure function of (seed, position). Every image of a series, and every map that goes with it, moves
alike: the relation between the images of a voxel stays.
"""

from collections.abc import Sequence
from math import cos, radians, sin
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from qsim.distributions import Streams
from qsim.values import value

# vertical, horizontal, and both diagonals (y, x)
_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))


@value
class Augmentation:
    """What an example may be moved by; one of all, or nothing, each as likely.

    Attributes:
        rotations_deg: about the centre of the image, either way [degrees].
        shifts: along an axis or a diagonal, either way [voxels].
        flips: left and right exchanged in half of the examples. Off in the papers: a liver lies on one side.
    Source: huang2022 section 4.2: 2.5, 5, 7.5 degrees; 5 and 10 of 256 voxels.
    """

    rotations_deg: tuple[Annotated[float, Field(gt=0, le=180)], ...] = (2.5, 5.0, 7.5)
    shifts: tuple[Annotated[int, Field(strict=True, ge=1)], ...] = (5, 10)
    flips: bool = False

    def draw(self, seed: int, position: int) -> Float[np.ndarray, "2 3"]:
        """The map from places in the moved image to places in the given one, in voxels about the centre (y, x)."""
        rng = Streams(seed, position).rng("augmentation")
        moves = [(0.0, 0, 0)]
        moves += [(sign * angle, 0, 0) for angle in self.rotations_deg for sign in (1, -1)]
        moves += [(0.0, s * y * n, s * x * n) for n in self.shifts for y, x in _DIRECTIONS for s in (1, -1)]
        angle, y, x = moves[int(rng.integers(len(moves)))]
        flip = self.flips and bool(rng.random() < 0.5)
        return rigid(angle, float(y), float(x), flip)


@value
class ImageMotion:
    """Every image of a contrast moved by itself: patients who do not lie still (huang2023, table III).

    Attributes:
        rotation_deg: SD of the rotation of each image [degrees].
        shift: SD of its shift along either axis [voxels].
    """

    rotation_deg: Annotated[float, Field(ge=0)] = 5.0
    shift: Annotated[float, Field(ge=0)] = 3.0

    def draw(self, seed: int, position: int, images: int) -> Float[np.ndarray, "n 2 3"]:
        """As `Augmentation.draw`, for each image."""
        normals = Streams(seed, position).rng("motion").standard_normal((images, 3))
        return np.stack(
            [rigid(self.rotation_deg * a, self.shift * y, self.shift * x, flip=False) for a, y, x in normals]
        )


def rigid(angle_deg: float, y: float, x: float, flip: bool) -> Float[np.ndarray, "2 3"]:
    """Rotation, then shift [degrees; voxels]; `flip` exchanges left and right."""
    c, s = cos(radians(angle_deg)), sin(radians(angle_deg))
    turn = np.array([[c, -s], [s, c]]) @ np.diag([1.0, -1.0 if flip else 1.0])
    return np.concatenate((turn, -np.array([[y], [x]])), 1)


def moved(images: Float[Tensor, "b n y x"], maps: Sequence[np.ndarray]) -> Float[Tensor, "b n y x"]:
    """Each example moved by its own map; bilinear between voxels, 0 where nothing was.

    Shifts by whole voxels change no value.
    """
    still = np.eye(2, 3)
    if all(np.array_equal(each, still) for each in maps):
        return images
    height, width = images.shape[-2:]
    # torch counts x first, and from -1 to 1 over the extent of the image
    extent = np.array([height, width], dtype=float)
    scaled = [
        (np.concatenate((each[:, :2] * extent[None] / extent[:, None], 2 * each[:, 2:] / extent[:, None]), 1))[
            ::-1, [1, 0, 2]
        ].copy()
        for each in maps
    ]
    theta = torch.from_numpy(np.stack(scaled)).to(images)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def draws(augmentation: Augmentation | None, seed: int, positions: Int[Tensor, " b"]) -> list[np.ndarray]:
    """Of every example; the identity without augmentation."""
    if augmentation is None:
        return [np.eye(2, 3) for _ in range(len(positions))]
    return [augmentation.draw(seed, int(position)) for position in positions]
