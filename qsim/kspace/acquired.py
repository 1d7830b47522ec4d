"""Images on their way through a chain of artefacts, each axis in the image or in k-space, whichever was needed last.

Most artefacts are a factor per sample along a few axes of k-space, or a factor per voxel of the image. A factor along
ky does not care whether x has been transformed, so every artefact names the axes it needs, and only those are
transformed that are not there yet. Neighbours thereby share transforms, and one axis costs a third of three.

Inside, transforms are orthonormal (`fourier.py`) but not centred: image axes keep the order of the voxels, k axes
stand in the order of the FFT, k = 0 first. A factor per sample is the same in either; `line_order` gives the k of
each sample. Nothing outside artefacts sees this order.

Artefacts are not differentiable: they work in place and look at values. Images that require grad are refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from jaxtyping import Complex, Int
from torch import Tensor

from qsim.kspace.fourier import require_complex

# what json.dumps takes; the inside of lists and mappings is not spelt out
Json = bool | int | float | str | None | list[Any] | dict[str, Any]


def space_of(shape: tuple[int, ...], ndim: int | None) -> tuple[int, ...]:
    """The axes of space of images of a shape: the last `ndim`; without it all but the first, `(n, *space)`.

    Raises: ValueError if the shape has too few axes, or an empty one.
    """
    wanted = len(shape) - 1 if ndim is None else ndim
    if wanted not in (2, 3) or len(shape) < wanted:
        remedy = "images are (n, y, x) or (n, z, y, x); say ndim: 2 or 3 for any other number of axes"
        raise ValueError(f"shape: {tuple(shape)} does not fit ndim {ndim}; {remedy}")
    if min(shape) < 1:
        raise ValueError(f"shape: {tuple(shape)} has an empty axis")
    return tuple(int(size) for size in shape[len(shape) - wanted :])


def line_order(n: int, device: torch.device | str = "cpu") -> Int[Tensor, " n"]:
    """k of each sample of a k axis: 0, 1, ..., then the negative ones [cycles per field of view]."""
    return torch.fft.ifftshift(torch.arange(n, device=device) - n // 2)


def require_detached(name: str, values: Tensor) -> None:
    """Refuse a tensor whose gradient is asked for.

    Raises: ValueError, starting with the name.
    """
    if values.requires_grad:
        raise ValueError(f"{name} must not require grad, as artefacts are not differentiable; call .detach() first")


@dataclass(frozen=True, slots=True)
class Acquired:
    """Images, some of whose axes are in k-space.

    Attributes:
        values: images, coils, space.
        in_kspace: axes of space that are transformed, numbered from 0.
        lead: axes before space as they were given.
        facts: what an artefact found out about these images, as JSON holds it.
    """

    values: Complex[Tensor, "n c *space"]
    in_kspace: frozenset[int] = frozenset()
    lead: tuple[int, ...] = ()
    facts: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Complex[Tensor, "*lead_and_space"], ndim: int | None) -> "Acquired":
        """Checked images.

        Args:
            images: the first axis counts images, the axes between it and space coils.
            ndim: axes of space; all but the first if None.
        Raises: ValueError if they are real, empty, not finite, require grad, or are of too few axes.
        """
        require_detached("images", images)
        require_complex(images)
        space = space_of(tuple(images.shape), ndim)
        lead = tuple(images.shape[: images.ndim - len(space)])
        count = lead[0] if lead else 1
        # a conjugate that is not yet made is made; one layout in memory, so that the last bits do not depend on theirs
        return cls(images.resolve_conj().resolve_neg().contiguous().reshape(count, prod(lead[1:]), *space), lead=lead)

    @property
    def space(self) -> tuple[int, ...]:
        """Extent of the axes of space [voxels]."""
        return tuple(self.values.shape[2:])

    @property
    def count(self) -> int:
        """How many images."""
        return int(self.values.shape[0])

    def along(self, values: Tensor, axis: int) -> Tensor:
        """A vector along one axis of space, in the shape, dtype (if complex or real, kept) and device of the values."""
        shape = [1] * len(self.space)
        shape[axis] = -1
        dtype = self.values.dtype if values.is_complex() else self.values.real.dtype
        return values.to(device=self.values.device, dtype=dtype).reshape(shape)

    def brought(self, kspace: Collection[int] = (), image: Collection[int] = ()) -> "Acquired":
        """With these axes in k-space and those in the image; all others stay as they are."""
        forth = tuple(sorted(a for a in kspace if a not in self.in_kspace))
        back = tuple(sorted(a for a in image if a in self.in_kspace))
        values = self.values
        if back:
            values = torch.fft.ifftn(values, dim=tuple(a + 2 for a in back), norm="ortho")
        if forth:
            values = torch.fft.fftn(values, dim=tuple(a + 2 for a in forth), norm="ortho")
        return replace(self, values=values, in_kspace=(self.in_kspace - set(back)) | set(forth))

    def with_values(self, values: Complex[Tensor, "n c *space"]) -> "Acquired":
        """Other values in the same domains."""
        return replace(self, values=values)

    def noting(self, **facts: Json) -> "Acquired":
        """With more facts."""
        return replace(self, facts={**self.facts, **facts})

    def images(self) -> Complex[Tensor, "*lead_and_space"]:
        """All axes in the image, in the shape that was given."""
        whole = self.brought(image=range(len(self.space)))
        return whole.values.reshape(*self.lead, *self.space)
