"""Reading and checking an image for `qsim segment`, and the grids between file and network.

    grid of the file  <-- axes turned and flipped, exact -->  axes to right, anterior, superior (RAS)
                      <-- linear resampling, if needed -->    grid of the training

Networks are trained with flips of the three axes and rotations, so the way that the patient lies hardly matters; the
axes are turned nonetheless, so that the same head in another order of axes gives the same answer. An oblique image is
not turned to the world: its axes take the nearest directions.

Resampling is separable, over the same field of view: a voxel of the new grid is a mean of the old ones weighted by a
triangle that reaches as far as the wider of the two spacings. So it is linear interpolation onto a finer grid, and does
not alias onto a coarser one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from phantoms.brains.label_files import read_labels
from phantoms.brains.label_schemes import BACKGROUND, LABEL_SCHEMES
from phantoms.files.map_files import Place
from phantoms.series.nifti import load, read_volumes
from qsim.errors import InputError

Millimetres = tuple[float, float, float]
# a network needs surroundings [voxels]
LEAST_VOXELS = 16
# more is a wrong voxel size, not an image [voxels]
_MOST_VOXELS = 2**27
# spacings that differ by less are those of the training [1]
_SAME_SPACING = 0.1
# pixdim and the columns of the affine, both in single precision and often rounded [1]
_SAME_ZOOM = 0.01
_RAS = ("LR", "PA", "IS")


@dataclass(frozen=True, slots=True)
class Turn:
    """From the axes of a file to those to right, anterior, superior; exact both ways.

    Attributes:
        order: axis of the turned array that each axis of the file becomes.
        flipped: axes of the file that run the other way.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    def there(self, values: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "r a s"]:
        """An array of the file, turned."""
        return np.flip(values, self.flipped).transpose(self.source)

    def back(self, values: Shaped[np.ndarray, "r a s"]) -> Shaped[np.ndarray, "x y z"]:
        """A turned array as the file has it."""
        return np.flip(values.transpose(self.order), self.flipped)

    @property
    def source(self) -> tuple[int, ...]:
        """Axis of the file that each axis of the turned array was."""
        return tuple(self.order.index(axis) for axis in range(3))

    @property
    def codes(self) -> str:
        """Where the axes of the file run, such as LPS."""
        return "".join(_RAS[to][0 if axis in self.flipped else 1] for axis, to in enumerate(self.order))


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image that has been checked.

    Attributes:
        file: that it comes from.
        values: turned to right, anterior, superior [units of the file].
        spacing_mm: of these axes [mm].
        turn: between these axes and those of the file.
        place: grid of the file.
        notes: what was done or taken for granted, a sentence each.
    """

    file: Path
    values: Float[np.ndarray, "r a s"]
    spacing_mm: Millimetres
    turn: Turn
    place: Place
    notes: tuple[str, ...]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, sheared ones too [mm^3]."""
        return float(abs(np.linalg.det(self.place.affine[:3, :3])))


def read_image(file: Path) -> Image:
    """Read a three-dimensional NIfTI image.

    Raises: InputError naming the file and what is wrong with it.
    """
    image = load(file)
    shape = tuple(int(size) for size in image.shape)
    if len(shape) == 4 and shape[3] != 1:
        raise InputError(f"{file}: holds {shape[3]} volumes, wanted one; save one of them as a file of its own")
    if len(shape) not in (3, 4):
        raise InputError(f"{file}: has {len(shape)} dimensions, wanted a three-dimensional image")
    if min(shape[:3]) < LEAST_VOXELS:
        raise InputError(
            f"{file}: has {_by(shape[:3])} voxels, wanted at least {LEAST_VOXELS} along every axis; give a volume"
        )
    affine, spacing = _geometry(file, image)
    stored = read_volumes(file)
    with np.errstate(over="ignore"):
        values = stored.volumes[0].T.astype(np.float32)
    notes = _values(file, values)
    turn = _turn(affine)
    if turn.codes != "RAS":
        notes = (
            *notes,
            f"{file.name}: axes run {turn.codes}; turned to RAS for the network, and the results turned back",
        )
    header = stored.header
    x, y, z = shape[:3]
    place = Place((z, y, x), affine, spacing[::-1], header if len(header) == 348 else b"")
    a, b, c = (spacing[axis] for axis in turn.source)
    return Image(file, np.ascontiguousarray(turn.there(values)), (a, b, c), turn, place, (*stored.notes, *notes))


def _geometry(file: Path, image: Any) -> tuple[Float[np.ndarray, "4 4"], tuple[float, ...]]:
    """Affine, and voxel sizes along the axes of the file [mm]."""
    header, affine = image.header, np.asarray(image.affine, dtype=np.float64)
    mend = "mend its header (sform, qform, pixdim)"
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        raise InputError(f"{file}: has no affine (sform_code and qform_code are 0); {mend}")
    if not np.isfinite(affine).all():
        raise InputError(f"{file}: its affine holds NaN or infinity; {mend}")
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise InputError(f"{file}: its lengths are in {unit}, wanted mm; convert its header")
    spacing = tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))
    # columns that hardly span a volume would leave voxels without a size
    if min(spacing) <= 0 or abs(np.linalg.det(affine[:3, :3] / np.array(spacing))) < _SAME_ZOOM:
        raise InputError(f"{file}: its affine has no inverse, voxels of {_by(spacing)} mm; {mend}")
    zooms = tuple(float(zoom) for zoom in header.get_zooms()[:3])
    if not np.allclose(zooms, spacing, rtol=_SAME_ZOOM, atol=0):
        raise InputError(f"{file}: voxels are {_by(spacing)} mm by its affine and {_by(zooms)} mm by pixdim; {mend}")
    return affine, spacing


def _values(file: Path, values: Float[np.ndarray, "x y z"]) -> tuple[str, ...]:
    """Notes about the values.

    Raises: InputError if a network cannot see anything in them.
    """
    wrong = int(values.size - np.isfinite(values).sum())
    if wrong:
        raise InputError(
            f"{file}: NaN or infinity in {wrong} of {values.size} voxels; replace them, air by 0, before segmenting"
        )
    low, high = float(values.min()), float(values.max())
    if high <= 0:
        raise InputError(f"{file}: holds no value above 0 (largest {high:g}); give a magnitude image")
    if low == high:
        raise InputError(f"{file}: holds {low:g} in every voxel; give an image")
    below = float((values < 0).mean())
    return (f"{file.name}: {100 * below:.2g} % of its values are negative; networks learn magnitudes",) if below else ()


def _turn(affine: Float[np.ndarray, "4 4"]) -> Turn:
    from nibabel.orientations import io_orientation

    found = np.asarray(io_orientation(affine))  # type: ignore[no-untyped-call]
    flipped = tuple(axis for axis in range(3) if found[axis, 1] < 0)
    return Turn(tuple(int(axis) for axis in found[:, 0]), flipped)


@dataclass(frozen=True, slots=True)
class Resampling:
    """From the grid of an image to that of a training and back.

    Attributes:
        shape, spacing_mm: of the image [voxels, mm].
        model_shape, model_mm: of the grid of the training over the same field of view; the same: nothing is done.
    """

    shape: tuple[int, int, int]
    spacing_mm: Millimetres
    model_shape: tuple[int, int, int]
    model_mm: Millimetres

    @property
    def needed(self) -> bool:
        """Whether the grids differ."""
        return self.shape != self.model_shape or self.spacing_mm != self.model_mm

    @property
    def voxel_mm3(self) -> float:
        """Of a voxel of the training's grid, without shear [mm^3]."""
        return float(np.prod(self.model_mm))

    def there(self, values: Float[np.ndarray, "*k x y z"]) -> Float[np.ndarray, "*k u v w"]:
        """On the grid of the training."""
        if not self.needed:
            return values
        return resampled(values, self.spacing_mm, self.model_shape, self.model_mm)

    def back(self, values: Float[np.ndarray, "*k u v w"]) -> Float[np.ndarray, "*k x y z"]:
        """On the grid of the image."""
        if not self.needed:
            return values
        return resampled(values, self.model_mm, self.shape, self.spacing_mm)


def resampling(image: Image, model_mm: Millimetres, *, allowed: bool) -> tuple[Resampling, tuple[str, ...]]:
    """How an image comes to a grid like that of the training, and a note where it must be resampled.

    Args:
        allowed: False: refuse an image of another spacing.
    Raises: InputError naming the file.
    """
    x, y, z = image.values.shape
    shape, given = (x, y, z), image.spacing_mm
    if all(abs(here / there - 1) <= _SAME_SPACING for here, there in zip(given, model_mm, strict=True)):
        _check_size(image.file, shape, given)
        return Resampling(shape, given, shape, given), ()
    said = f"{image.file.name}: voxels of {_by(given)} mm, the model learned {_by(model_mm)} mm"
    if not allowed:
        raise InputError(f"{image.file}{said.removeprefix(image.file.name)}; resample it, or leave out --no-resample")
    a, b, c = (max(round(n * here / there), 1) for n, here, there in zip(shape, given, model_mm, strict=True))
    _check_size(image.file, (a, b, c), model_mm)
    return Resampling(shape, given, (a, b, c), model_mm), (
        f"{said}: resampled to that grid, and the results back to the image's",
    )


def _check_size(file: Path, shape: tuple[int, ...], spacing_mm: Millimetres) -> None:
    grid = f"{file}: at the model's spacing, {_by(spacing_mm)} mm, it has {_by(shape)} voxels, wanted"
    if min(shape) < LEAST_VOXELS:
        raise InputError(f"{grid} at least {LEAST_VOXELS} along every axis; give an image of a larger field of view")
    if np.prod(shape, dtype=float) > _MOST_VOXELS:
        raise InputError(f"{grid} at most {_MOST_VOXELS} in all; is its voxel size right? Else crop it")


def resampled(
    values: Float[np.ndarray, "*k x y z"], spacing_mm: Millimetres, shape: tuple[int, ...], new_mm: Millimetres
) -> Float[np.ndarray, "*k u v w"]:
    """Values on another grid about the same centre.

    Args:
        spacing_mm: of the values [mm].
        shape, new_mm: of the new grid, which must not reach beyond the field of view by a voxel [voxels, mm].
    """
    for axis in (-3, -2, -1):
        weights = _weights(values.shape[axis], spacing_mm[axis], shape[axis], new_mm[axis])
        values = np.moveaxis(np.moveaxis(values, axis, -1) @ weights.astype(values.dtype).T, -1, axis)
    return np.ascontiguousarray(values)


def _weights(size: int, spacing: float, new: int, new_spacing: float) -> Float[np.ndarray, "new old"]:
    """Share of each old voxel in each new one along an axis."""
    # places of the new voxels in old ones, their centres about the same middle
    at = ((np.arange(new) - (new - 1) / 2) * new_spacing / spacing + (size - 1) / 2)[:, None]
    reach = max(new_spacing / spacing, 1.0)
    weights = np.maximum(1 - np.abs(np.arange(size) - at) / reach, 0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def read_truth(
    file: Path, scheme: str, image: Image, target: tuple[str, ...]
) -> Mapping[str, Bool[np.ndarray, "r a s"]]:
    """Where the classes of the target are by a file of labels on the grid of the image, turned as that is.

    Args:
        scheme: what the numbers mean.
    Raises: InputError naming --labels or --scheme.
    """
    if scheme not in LABEL_SCHEMES:
        raise InputError(f"--scheme: there is no {scheme}; choose from {', '.join(LABEL_SCHEMES)}")
    names = {0: BACKGROUND} | LABEL_SCHEMES[scheme]
    missing = [name for name in target if name not in names.values()]
    if missing:
        raise InputError(f"--scheme: {scheme} has no {missing[0]}, which the model segments; choose another scheme")
    if not file.is_file():
        raise InputError(f"--labels: {file} does not exist")
    labels, _, affine = read_labels(file, field="--labels")
    wanted = image.place.space[::-1]
    if labels.shape != wanted:
        raise InputError(
            f"--labels: {file} has {_by(labels.shape)} voxels, {image.file.name} has {_by(wanted)}; "
            "give labels on the grid of the image"
        )
    if not np.allclose(affine, image.place.affine, rtol=1e-4, atol=1e-3):
        raise InputError(
            f"--labels: {file} lies in another place than {image.file.name} (their affines differ); "
            "give labels on the grid of the image"
        )
    unknown = [int(number) for number in np.unique(labels) if int(number) not in names]
    if unknown:
        raise InputError(f"--labels: {file} holds {unknown[0]}, which {scheme} does not know; choose --scheme")
    turned = image.turn.there(labels)
    return {name: np.isin(turned, [number for number, tissue in names.items() if tissue == name]) for name in target}


def _by(numbers: tuple[float, ...] | tuple[int, ...]) -> str:
    return " x ".join(f"{number:.4g}" if isinstance(number, float) else str(number) for number in numbers)
