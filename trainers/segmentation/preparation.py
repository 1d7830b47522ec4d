"""What a network is shown of an image: brightness from 0 to 1, one size, padded with zeros.

    image -> (image - min) / (max - min) -> longest side to `size` -> zeros around it

Source: jacobs2025, section 3: 384 x 384, aspect ratio kept.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from qsim.errors import InputError


def normalised(image: Float[Tensor, "y x"]) -> Float[Tensor, "y x"]:
    """The image between 0, its darkest voxel, and 1, its brightest [1].

    Raises: InputError if a voxel is NaN or infinite, or all are the same.
    """
    low, high = float(image.min()), float(image.max())
    # NaN and infinity spread into the difference
    if not 0 < high - low < float("inf"):
        raise InputError("holds NaN, infinity, or one value only; it cannot be scaled to 0..1: mend or leave it out")
    return (image - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies in the square that a network sees.

    Attributes:
        shape: of the image, y and x [voxels].
        size: side of the square [voxels].
    """

    shape: tuple[int, int]
    size: int

    @property
    def inner(self) -> tuple[int, int]:
        """Extent of the image in the square, its longest side `size` [voxels]."""
        longest = max(self.shape)
        y, x = (max(1, round(n * self.size / longest)) for n in self.shape)
        return y, x

    def there(self, image: Float[Tensor, "y x"]) -> Float[Tensor, "size size"]:
        """The image in the square; linear, each voxel a mean where it becomes smaller."""
        scaled = image
        if self.inner != self.shape:
            scaled = functional.interpolate(
                image[None, None], size=self.inner, mode="bilinear", align_corners=False, antialias=True
            )[0, 0]
        return functional.pad(scaled, self._margins)

    def there_mask(self, mask: Bool[Tensor, "y x"]) -> Bool[Tensor, "size size"]:
        """A mask in the square: voxels of which it fills at least a half."""
        return self.there(mask.float()) >= 0.5

    def back(self, values: Float[Tensor, "size size"]) -> Float[Tensor, "y x"]:
        """What a network said, on the grid of the image; linear."""
        left, _, top, _ = self._margins
        y, x = self.inner
        inside = values[top : top + y, left : left + x]
        if self.inner == self.shape:
            return inside.clone()
        return functional.interpolate(
            inside[None, None], size=self.shape, mode="bilinear", align_corners=False, antialias=True
        )[0, 0]

    @property
    def _margins(self) -> tuple[int, int, int, int]:
        """Voxels to the left, to the right, above and below."""
        y, x = self.inner
        top, left = (self.size - y) // 2, (self.size - x) // 2
        return left, self.size - x - left, top, self.size - y - top
