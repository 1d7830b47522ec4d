"""Augmentation of slices and their masks (jacobs2025 section 3).

    set A, `rotation_scaling`: flips, quarter turns, scaling
    set B, `additional`:       A, rotation, grid distortion, perspective                      of image and mask
                               brightness, illumination, blur, noise, parts masked out        of the image only

The paper names what set B does, neither how strongly nor how often; the defaults are ours. What happens is a pure
function of the image, the mask and the generator handed over; no global random state is read or changed. Image and mask
go through the same linear interpolation, and the mask is cut at one half once, at the end. Shares of a side are the
same at any resolution; voxels are taken to be square.
"""

from math import exp, log
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torchio
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from generators.config import Count, RootConfig
from qsim.errors import InputError

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]

# an image that was interpolated to 0..1 may be beyond by its rounding
ROUNDING = 1e-3
# corners of the image in the coordinates of grid_sample, x and y
CORNERS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


class _Turns(RootConfig):
    """What both sets do.

    Attributes:
        flips: whether each axis is mirrored in half of the slices.
        quarter_turns: whether the slice is turned by 0, 90, 180 or 270 degrees, all equally likely; one that is not
            square by 0 or 180.
        scale: least and largest factor of size, the same along both axes and about the middle, drawn log-uniformly;
            what comes in from outside is 0. The paper tells no range; the default is that of nnU-Net (Isensee et al.
            2021, doi:10.1038/s41592-020-01008-z) [1].
    """

    flips: Flag = True
    quarter_turns: Flag = True
    scale: tuple[Positive, Positive] = (0.7, 1.4)

    @model_validator(mode="after")
    def _scale_in_order(self) -> "_Turns":
        _check_order("scale", self.scale)
        return self

    def _turned(self, both: Float[Tensor, "c y x"], rng: np.random.Generator) -> Float[Tensor, "c y x"]:
        """Flipped and turned, voxels as they are."""
        if self.flips:
            mirrored = [axis for axis in (-2, -1) if rng.random() < 0.5]
            both = torch.flip(both, mirrored) if mirrored else both
        if self.quarter_turns:
            quarters = int(rng.integers(4))
            square = both.shape[-1] == both.shape[-2]
            both = torch.rot90(both, quarters if square else quarters & 2, (-2, -1))
        return both

    def _factor(self, rng: np.random.Generator) -> float:
        return exp(rng.uniform(log(self.scale[0]), log(self.scale[1])))


class RotationScaling(_Turns):
    """Set A: random flips, quarter turns, scaling."""

    kind: Literal["rotation_scaling"] = "rotation_scaling"

    def apply(
        self, image: Float[Tensor, "y x"], mask: Bool[Tensor, "y x"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "y x"], Bool[Tensor, "y x"]]:
        """A slice and its mask, changed alike.

        Args:
            image: 0 to 1 [1].
            mask: of the same shape.
            rng: all that is drawn comes from it.
        Returns: in single precision; nothing is clamped, as neither turns nor linear interpolation leave 0 to 1.
        Raises: InputError if the shapes differ, or the image is not within 0 to 1.
        """
        both = self._turned(_stacked(image, mask), rng)
        return _parted(resampled(both, self._factor(rng), 0.0))


class Additional(_Turns):
    """Set B: set A, and eight more things, each of which happens in a share of the slices, independently.

    Attributes:
        probability: of each of the eight.
        rotation_deg: largest angle, beside the quarter turns [degrees].
        grid_cells: cells of the grid of the distortion along each axis.
        grid_distortion: largest relative change of the width of a cell [1].
        perspective: largest shift of a corner along each axis [share of the side].
        brightness: largest change of the logarithm of the intensity [1].
        illumination: largest change of the logarithm of the intensity anywhere by a smooth shading [1].
        blur: largest standard deviation of the Gaussian [share of the longest side].
        noise: largest standard deviation of the noise [1].
        rectangles: most rectangles that are masked out; at least one is, where it happens.
        rectangle_side: least and largest side of one [share of the side of the image].
    """

    kind: Literal["additional"] = "additional"
    probability: Share = 0.5
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 90.0
    grid_cells: Count = 5
    grid_distortion: Annotated[float, Field(ge=0, lt=1)] = 0.3
    # from a quarter on, three corners could lie on a line
    perspective: Annotated[float, Field(ge=0, lt=0.25)] = 0.1
    brightness: Annotated[float, Field(ge=0, le=3)] = 0.3
    illumination: Annotated[float, Field(ge=0, le=3)] = 0.5
    blur: Annotated[float, Field(ge=0, le=0.1)] = 0.01
    noise: Share = 0.1
    rectangles: Annotated[int, Field(strict=True, ge=0, le=100)] = 4
    rectangle_side: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.05, 0.2)

    @model_validator(mode="after")
    def _sides_in_order(self) -> "Additional":
        _check_order("rectangle_side", self.rectangle_side)
        return self

    def apply(
        self, image: Float[Tensor, "y x"], mask: Bool[Tensor, "y x"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "y x"], Bool[Tensor, "y x"]]:
        """A slice and its mask: shapes changed alike, then the intensities of the image, in the order of the paper.

        Args:
            image: 0 to 1 [1].
            mask: of the same shape.
            rng: all that is drawn comes from it, set A first.
        Returns: in single precision; the image clamped to [0, 1] after noise. Parts masked out are 0 in the image and
            keep their label.
        Raises: InputError if the shapes differ, the image is not within 0 to 1, or has fewer voxels than cells.
        """
        if min(image.shape) < self.grid_cells:
            raise InputError(f"grid_cells: {self.grid_cells} of them do not fit into {tuple(image.shape)} voxels")
        both = self._turned(_stacked(image, mask), rng)
        factor = self._factor(rng)
        angle = rng.uniform(-self.rotation_deg, self.rotation_deg) if self._happens(self.rotation_deg, rng) else 0.0
        both = resampled(both, factor, angle)
        if self._happens(self.grid_distortion, rng):
            both = distorted(both, 1 + rng.uniform(-self.grid_distortion, self.grid_distortion, (2, self.grid_cells)))
        if self._happens(self.perspective, rng):
            shifts = 2 * rng.uniform(-self.perspective, self.perspective, CORNERS.shape)
            both = projected(both, homography(CORNERS + shifts))
        image, mask = _parted(both)
        return self._coloured(image, rng), mask

    def _coloured(self, image: Float[Tensor, "y x"], rng: np.random.Generator) -> Float[Tensor, "y x"]:
        """What happens to the image alone."""
        if self._happens(self.brightness, rng):
            image = image * exp(rng.uniform(-self.brightness, self.brightness))
        if self._happens(self.illumination, rng):
            image = image * shading(tuple(image.shape), rng.uniform(-1, 1, 5), rng.uniform(0, self.illumination))
        if self._happens(self.blur, rng):
            image = blurred(image, rng.uniform(0, self.blur) * max(image.shape))
        if self._happens(self.noise, rng):
            sigma = rng.uniform(0, self.noise)
            image = image + sigma * torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
        image = image.clamp(0, 1)
        if self._happens(self.rectangles, rng):
            for _ in range(int(rng.integers(1, self.rectangles + 1))):
                image[self._rectangle(tuple(image.shape), rng)] = 0
        return image

    def _happens(self, strength: float | int, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.probability) and strength > 0

    def _rectangle(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
        """A window anywhere inside the image."""
        sides = [max(1, round(rng.uniform(*self.rectangle_side) * n)) for n in shape]
        starts = [int(rng.integers(n - side + 1)) for n, side in zip(shape, sides, strict=True)]
        return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


def resampled(both: Float[Tensor, "c y x"], factor: float, angle_deg: float) -> Float[Tensor, "c y x"]:
    """Larger by a factor and turned by an angle [degrees] about the middle, by TorchIO, in one interpolation."""
    if factor == 1 and angle_deg == 0:
        return both
    subject: Any = torchio.Subject(both=torchio.ScalarImage(tensor=both[..., None]))  # type: ignore[no-untyped-call]
    affine = torchio.Affine((factor, factor, 1.0), (0.0, 0.0, angle_deg), (0.0, 0.0, 0.0), default_pad_value=0)
    # calling the transform itself would draw from torch's global state
    changed: Any = affine.apply_transform(subject)
    return changed["both"].data[..., 0]


def distorted(both: Float[Tensor, "c y x"], widths: Float[np.ndarray, "2 cells"]) -> Float[Tensor, "c y x"]:
    """The cells of a grid narrower and wider, by MONAI; the border of the image stays where it is.

    MONAI samples each cell from its first to its last edge, so that a voxel is off by up to one voxel more.

    Args:
        widths: of what each cell shows, along y and x, in any unit.
    """
    from monai.transforms.spatial.array import GridDistortion  # takes seconds to import

    steps = widths / widths.mean(1, keepdims=True)
    # the library asks for one more cell, for the voxels that are left over
    padded = np.pad(steps, ((0, 0), (0, 1)), constant_values=1).tolist()
    grid: Any = GridDistortion(num_cells=widths.shape[1], distort_steps=padded, padding_mode="border")
    return grid(both).as_tensor()


def homography(corners: Float[np.ndarray, "4 2"]) -> Float[np.ndarray, "3 3"]:
    """The projective map that takes the corners of the image, in the order of `CORNERS`, to other places.

        (u, v) = (h11 x + h12 y + h13, h21 x + h22 y + h23) / (h31 x + h32 y + 1)

    Four corners are eight equations, linear in the eight h.

    Args:
        corners: where they go (x, y), in units of half a side from the middle; a convex quadrangle.
    """
    rows, places = [], []
    for (x, y), (u, v) in zip(CORNERS, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        places += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(places)), 1.0).reshape(3, 3)


def projected(both: Float[Tensor, "c y x"], matrix: Float[np.ndarray, "3 3"]) -> Float[Tensor, "c y x"]:
    """Perspective: the voxel at (x, y) shows what was at matrix (x, y); outside is 0.

    Coordinates are -1 and 1 at the centres of the first and last voxels.
    """
    y, x = (torch.linspace(-1, 1, n) for n in both.shape[1:])
    u, v, w = (float(a) * x[None, :] + float(b) * y[:, None] + float(c) for a, b, c in matrix)
    grid = torch.stack([u / w, v / w], -1)
    return functional.grid_sample(both[None], grid[None], "bilinear", "zeros", align_corners=True)[0]


def shading(shape: tuple[int, ...], coefficients: Float[np.ndarray, "5"], amount: float) -> Float[Tensor, "y x"]:
    """Smooth factor exp(amount p / max |p|), p a polynomial of second order without constant; x, y from -1 to 1.

    Args:
        coefficients: of x, x^2, y, x y, y^2, not all 0.
        amount: largest change of the logarithm [1].
    """
    of_powers = np.zeros((3, 3))
    of_powers[[0, 0, 1, 1, 2], [1, 2, 0, 1, 0]] = coefficients
    y, x = (np.linspace(-1, 1, n) for n in shape)
    p = np.polynomial.polynomial.polygrid2d(y, x, of_powers)
    return torch.from_numpy(np.exp(amount * p / np.abs(p).max())).float()


def blurred(image: Float[Tensor, "y x"], sigma: float) -> Float[Tensor, "y x"]:
    """Gaussian blur of a standard deviation [voxels], by TorchIO; mirrored at the border."""
    subject: Any = torchio.Subject(image=torchio.ScalarImage(tensor=image[None, ..., None]))  # type: ignore[no-untyped-call]
    changed: Any = torchio.Blur((sigma, sigma, 0.0)).apply_transform(subject)
    return changed["image"].data[0, ..., 0]


def _stacked(image: Float[Tensor, "y x"], mask: Bool[Tensor, "y x"]) -> Float[Tensor, "2 y x"]:
    """Image and mask in one, so that they move as one."""
    if image.shape != mask.shape:
        raise InputError(f"mask: shape {tuple(mask.shape)}, the image has {tuple(image.shape)}")
    low, high = (float(each) for each in torch.aminmax(image))
    # written so that NaN is refused
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(f"image: from {low:g} to {high:g}; normalise it to 0..1 first")
    return torch.stack([image.float(), mask.float()])


def _parted(both: Float[Tensor, "2 y x"]) -> tuple[Float[Tensor, "y x"], Bool[Tensor, "y x"]]:
    """Image and mask of a stack."""
    return both[0].contiguous(), both[1] >= 0.5


def _check_order(field: str, pair: tuple[float, float]) -> None:
    """Raises: ValueError naming the field."""
    if pair[0] > pair[1]:
        raise ValueError(f"{field}: {pair[0]:g} is more than {pair[1]:g}; give the smaller first")
