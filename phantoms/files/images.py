"""Images in files: what a file of any format holds, in the order of this project, and NIfTI in and out.

    array of the file, its axes named by letters   <->   (n, c, *space)

n counts images (of a series, slices), c coils, space is z y x or y x. A NIfTI array is (x, y, z, images): its first
voxel axis is x (-1 of an artefact), its second y (-2), its third z (-3), whatever way the patient lies in it; voxels
are not reordered. An axis of space of one voxel is no axis: a slice is 2D.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Complex, Inexact, Shaped

from qsim.errors import InputError

LETTERS = "nczyx"
NIFTI = (".nii", ".nii.gz")
# phases are often rounded to three digits [rad]
_PHASE_SLACK = 2e-3


@dataclass(frozen=True, slots=True)
class Scan:
    """Complex data of a file.

    Attributes:
        values: images, coils, space.
        domain: whether they are images or k-space, centred.
        axes: letters of the axes of space.
        spacing_mm: of these axes [mm]; None if the file does not say.
        real: the file holds magnitudes, whose phase was taken as zero.
        sampled: which samples of k-space were measured; None: all.
        assumed: what was taken for granted, a sentence each.
    """

    values: Complex[np.ndarray, "n c *space"]
    domain: Literal["image", "kspace"]
    axes: str
    spacing_mm: tuple[float, ...] | None = None
    real: bool = False
    sampled: Bool[np.ndarray, "n 1 *space"] | None = None
    assumed: tuple[str, ...] = ()


@runtime_checkable
class ScanFile(Protocol):
    """A file that holds a scan, and can be written again with other values."""

    @property
    def path(self) -> Path: ...

    def layout(self) -> "Layout":
        """How its array is laid out."""
        ...

    def read(self) -> Scan:
        """Raises: InputError naming the file if it is not what it should be."""
        ...

    def write(self, values: Inexact[np.ndarray, "n c *space"], file: Path) -> None:
        """Write values in the format and layout of this file."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How the array of a file is laid out.

    Attributes:
        letters: its axes, of `n c z y x`, in the file's order.
        shape: its extent.
    """

    letters: str
    shape: tuple[int, ...]

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Extent along n, c, z, y, x; 1 where the file has no such axis."""
        sizes = dict(zip(self.letters, self.shape, strict=True))
        return tuple(sizes.get(letter, 1) for letter in LETTERS)

    @property
    def space(self) -> str:
        """Letters of the axes of space of more than one voxel."""
        return "".join(letter for letter, size in zip("zyx", self._sizes[2:], strict=True) if size > 1)

    def arranged(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "n c *space"]:
        """The array as images, coils, space."""
        order = [self.letters.index(letter) for letter in LETTERS if letter in self.letters]
        sizes = self._sizes
        space = [size for size in sizes[2:] if size > 1]
        return array.transpose(order).reshape(*sizes[:2], *space)

    def restored(self, values: Shaped[np.ndarray, "n c *space"]) -> Shaped[np.ndarray, "..."]:
        """The inverse of `arranged`."""
        present = [letter for letter in LETTERS if letter in self.letters]
        sizes = dict(zip(self.letters, self.shape, strict=True))
        ordered = values.reshape([sizes[letter] for letter in present])
        return np.ascontiguousarray(ordered.transpose([present.index(letter) for letter in self.letters]))


def layout_of(name: str, shape: tuple[int, ...], letters: str) -> Layout:
    """A layout after a check that it holds images.

    Raises: InputError naming the file.
    """
    if 0 in shape:
        raise InputError(f"{name}: has an empty axis, its shape is {shape}")
    layout = Layout(letters, shape)
    if len(layout.space) < 2:
        raise InputError(f"{name}: shape {shape} is a line or a point, wanted a slice or a volume")
    return layout


def check_finite(name: str, values: Inexact[np.ndarray, "..."], what: str = "voxels") -> None:
    """Refuse NaN and infinity.

    Raises: InputError naming the file, with their number.
    """
    # one sum instead of a test of every voxel: what is not finite stays so in it; huge values may overflow it
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not np.isfinite(total):
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise InputError(f"{name}: NaN or infinity in {wrong} of {values.size} {what}; mend them first")


def as_complex(name: str, array: Shaped[np.ndarray, "..."], signed: bool) -> tuple[Complex[np.ndarray, "..."], bool]:
    """Complex values, and whether they were real: single precision unless the file needs double.

    Args:
        signed: negative values are meant, as a phase of pi.
    Raises: InputError naming the file if they are no numbers, not finite, or negative as no magnitude is.
    """
    kind = array.dtype.kind
    if kind not in "cfiu" or array.dtype.itemsize > (16 if kind == "c" else 8):
        raise InputError(f"{name}: holds {array.dtype}, wanted real or complex numbers of at most double precision")
    real = kind != "c"
    # float32 holds whole numbers of 16 bits, not of 32
    double = array.dtype.itemsize > (8 if kind == "c" else 4 if kind == "f" else 2)
    values = array.astype(np.complex128 if double else np.complex64)
    check_finite(name, values)
    if real and not signed:
        negative = int((array < 0).sum())
        if negative:
            raise InputError(
                f"{name}: {negative} of {array.size} voxels are negative, so this is no magnitude; "
                "--complex keeps the sign, as a phase of pi"
            )
    return values, real


def reading(name: str, read: Callable[[], Any]) -> Any:
    """What a foreign reader returns; its errors as InputError.

    Raises: InputError naming the file.
    """
    try:
        return read()
    except InputError:
        raise
    except Exception as error:  # a broken file makes readers raise anything; nothing of this project runs inside
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason or type(error).__name__
        raise InputError(f"{name}: cannot be read ({' '.join(reason.split())[:200]})") from None


ZERO_PHASE = "a magnitude holds no phase: it is taken as zero everywhere"


@dataclass(frozen=True, slots=True)
class NiftiFile:
    """A NIfTI image: magnitude or complex, a slice, a volume or a series (last axis).

    Attributes:
        path: of the magnitude or complex image.
        phase: of the phase that goes with a magnitude [rad, -pi to pi].
        signed: a real image may be negative.
    """

    path: Path
    phase: Path | None = None
    signed: bool = False

    def _image(self, path: Path) -> Any:
        import nibabel

        image = reading(str(path), lambda: nibabel.load(path))
        if not isinstance(image, nibabel.Nifti1Image):
            raise InputError(f"{path}: is {type(image).__name__}, wanted NIfTI")
        return image

    def layout(self) -> Layout:
        """(x, y, z, images)."""
        shape = tuple(int(size) for size in self._image(self.path).shape)
        if len(shape) < 2 or any(size != 1 for size in shape[4:]):
            raise InputError(f"{self.path}: shape {shape}, wanted a slice, a volume or a series of them")
        # axes beyond the fourth hold one image each
        return layout_of(str(self.path), shape[:4], "xyzn"[: len(shape)])

    def _array(self, path: Path) -> Shaped[np.ndarray, "..."]:
        image = self._image(path)
        if image.get_data_dtype().kind not in "cfiu":
            raise InputError(f"{path}: holds {image.get_data_dtype()}, wanted real or complex numbers")
        array = reading(str(path), lambda: np.asanyarray(image.dataobj))
        stored = image.get_data_dtype()
        if array.dtype.kind == "f" and stored.kind in "iu" and stored.itemsize <= 2:
            # whole numbers of 16 bits times a slope: nibabel makes them double, single holds all their digits
            array = array.astype(np.float32)
        return array.reshape(array.shape[:4])

    def read(self) -> Scan:
        name, layout = str(self.path), self.layout()
        values, real = as_complex(name, self._array(self.path), self.signed)
        assumed: tuple[str, ...] = ()
        if self.phase is not None:
            values = self._with_phase(values, real, self.phase)
            assumed = (f"the phase in {self.phase.name} is in radians: its values lie in [-pi, pi]",)
        elif real:
            assumed = ("the sign is taken as a phase of 0 or pi" if self.signed else ZERO_PHASE,)
        if "n" in layout.letters and layout.shape[3] > 1:
            assumed = (*assumed, f"the last axis is taken as {layout.shape[3]} images")
        return Scan(
            layout.arranged(values),
            "image",
            layout.space,
            self._spacing(layout),
            real=real,
            assumed=assumed,
        )

    def _with_phase(self, values: Complex[np.ndarray, "..."], real: bool, file: Path) -> Complex[np.ndarray, "..."]:
        if not real:
            raise InputError(f"--phase: {self.path} is complex and has a phase of its own")
        if self.signed and (values.real < 0).any():
            raise InputError(f"--phase: {self.path} holds negative values; a magnitude goes with a phase")
        angle = self._array(file)
        if angle.shape != values.shape:
            raise InputError(f"--phase: {file} has shape {angle.shape}, {self.path} has {values.shape}")
        if angle.dtype.kind == "c":
            raise InputError(f"--phase: {file} is complex, wanted angles in radians")
        if not np.allclose(self._image(file).affine, self._image(self.path).affine, rtol=1e-4, atol=1e-3):
            raise InputError(f"--phase: {file} and {self.path} lie in different places (their affines differ)")
        check_finite(f"--phase: {file}", angle.astype(np.float64))
        low, high = float(angle.min()), float(angle.max())
        if low < -pi - _PHASE_SLACK or high > pi + _PHASE_SLACK:
            raise InputError(
                f"--phase: {file} goes from {low:.6g} to {high:.6g}, wanted radians in [-pi, pi]; rescale it first"
            )
        factor = np.exp(1j * angle.astype(values.real.dtype))
        return values * factor.astype(values.dtype)

    def _spacing(self, layout: Layout) -> tuple[float, ...] | None:
        """Voxel size in the order of space; None if the header has none."""
        header = self._image(self.path).header
        unit = header.get_xyzt_units()[0]
        factor = {"meter": 1000.0, "micron": 1e-3}.get(unit, 1.0)
        zooms = dict(zip("xyz", (float(zoom) * factor for zoom in header.get_zooms()), strict=False))
        spacing = tuple(zooms[letter] for letter in layout.space)
        return spacing if all(np.isfinite(zoom) and zoom > 0 for zoom in spacing) else None

    def write(self, values: Inexact[np.ndarray, "n c *space"], file: Path) -> None:
        """Write with the affine and the header of this file; no slope, its own dtype."""
        import nibabel

        source = self._image(self.path)
        header = source.header.copy()
        header.set_data_dtype(values.dtype)
        header.set_slope_inter(1, 0)
        array = self.layout().restored(values).reshape(source.shape)
        nibabel.save(type(source)(array, source.affine, header), file)
