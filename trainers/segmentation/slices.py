"""Series of images with their masks: simulated ones, or those of files; and the images that a network is shown.

domain -> series of co-registered images, a mask each -> the images of the highest SNR -> 0..1, one size
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from torch import Tensor

from generators.build import build
from generators.config import GeneratorConfig
from generators.store import PatchStore
from phantoms.base import Phantom, VolumePhantom
from phantoms.series.nifti import Volumes, read_volumes
from qsim.errors import InputError
from qsim.signals import (
    MOLLI,
    AnyModel,
    Bloch,
    Inversion,
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    LookLockerTrain,
)
from trainers.relaxation.cohort import folds
from trainers.segmentation.config import Domain, LabelledFile, SegmentationData, check_slices
from trainers.segmentation.preparation import Frame, normalised

# an affine is in single precision and often rounded [mm]
_SAME_PLACE = 1e-2
# series whose times are counted from an inversion
_RECOVERIES = (InversionRecovery, InversionRecovery2P, LookLocker, LookLockerTrain, MOLLI, Inversion)


@dataclass(frozen=True, slots=True)
class SeriesSet:
    """Series as they were measured or simulated.

    Attributes:
        images: of each series, co-registered magnitudes (n, y, x), whose sizes may differ [units of the file].
        masks: of each series (y, x).
        subject: number of the subject of each series.
        names: of each series.
        spacing_mm: size of a voxel of each series, y and x [mm].
        times: inversion times of the images of each series [s]; None: not known, or no inversion recovery.
        digest: of all that decides the images.
    """

    images: tuple[Float[Tensor, "_ _ _"], ...]
    masks: tuple[Bool[Tensor, "_ _"], ...]
    subject: Int[np.ndarray, " s"]
    names: tuple[str, ...]
    spacing_mm: tuple[tuple[float, float], ...]
    times: tuple[tuple[float, ...] | None, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def field_mm(self, series: tuple[int, ...]) -> float:
        """Field of view along the longest side, which becomes that of the square; median of these series [mm]."""
        return float(np.median([_field(self.masks[i].shape, self.spacing_mm[i]) for i in series]))

    def of(self, subjects: tuple[int, ...]) -> tuple[int, ...]:
        """Numbers of the series of these subjects."""
        return tuple(int(i) for i in np.flatnonzero(np.isin(self.subject, np.asarray(subjects, dtype=np.int64))))


@dataclass(frozen=True, slots=True)
class Slices:
    """Images as a network is shown them.

    Attributes:
        images: between 0 and 1 [1].
        masks: of each image.
        series: number of the series that each image is of.
        names: of each image.
    """

    images: Float[Tensor, "i size size"]
    masks: Bool[Tensor, "i size size"]
    series: Int[np.ndarray, " i"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def of(self, series: tuple[int, ...]) -> "Slices":
        """The images of these series."""
        chosen = np.flatnonzero(np.isin(self.series, np.asarray(series, dtype=np.int64)))
        names = tuple(self.names[i] for i in chosen)
        return Slices(self.images[chosen], self.masks[chosen], self.series[chosen], names)


@dataclass(frozen=True, slots=True)
class Split:
    """Series of a fold.

    Attributes:
        train, test: numbers of the series; no subject has one in both.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]


def split_of(series: SeriesSet, n_folds: int, fold: int, seed: int) -> Split:
    """The series that are learned from, and those of the fold that is left out.

    Raises: InputError if there are fewer subjects than folds.
    """
    subjects = tuple(int(each) for each in np.unique(series.subject))
    try:
        groups = folds(subjects, n_folds, seed)
    except InputError as error:
        raise InputError(f"data.{error}") from None
    others = tuple(subject for number, group in enumerate(groups) if number != fold for subject in group)
    return Split(series.of(others), series.of(groups[fold]))


def best_images(images: Float[Tensor, "n y x"], count: int) -> tuple[int, ...]:
    """Numbers of the images of the highest SNR, in the order of the series.

    Noise is the same in all images of a series, so that is a matter of signal: the largest mean square.
    """
    power = images.double().square().mean((1, 2))
    # of equal ones the first
    order = sorted(range(len(images)), key=lambda i: (-float(power[i]), i))
    return tuple(sorted(order[:count]))


def prepared(series: SeriesSet, count: int, size: int) -> Slices:
    """The images that a network is shown.

    Args:
        count: of each series, see `best_images`.
        size: longest side [voxels].
    Raises: InputError naming the series whose images cannot be scaled, or that has fewer images.
    """
    images, masks, of, names = [], [], [], []
    for number, (here, mask) in enumerate(zip(series.images, series.masks, strict=True)):
        if len(here) < count:
            raise InputError(f"images: {series.names[number]} has {len(here)}, and {count} are asked for")
        frame = Frame((int(mask.shape[0]), int(mask.shape[1])), size)
        shown = frame.there_mask(mask)
        if not bool(shown.any()):
            raise InputError(f"size: at {size} voxels nothing is left of the mask of {series.names[number]}")
        for chosen in best_images(here, count):
            try:
                images.append(frame.there(normalised(here[chosen])))
            except InputError as error:
                raise InputError(f"{series.names[number]}, image {chosen}: {error}") from None
            masks.append(shown)
            of.append(number)
            names.append(f"{series.names[number]} #{chosen}")
    return Slices(torch.stack(images), torch.stack(masks), np.array(of, dtype=np.int64), tuple(names))


def read_domain(
    domain: Domain, target: tuple[str, ...], folder: Path, field: str, workers: int, console: Console
) -> SeriesSet:
    """The series of a domain; a data set that is to be generated is made in `folder`, or found there.

    Args:
        target: tissues of simulated data that are the mask.
        field: of the config, for messages.
    Raises: InputError naming the field or file at fault.
    """
    if domain.files:
        return _of_files(domain.files, field)
    path = domain.store
    if path is None:
        assert domain.generate is not None, "the config holds one of the three"
        path = folder / f"{field.replace('.', '_').replace('[', '_').rstrip(']')}.zarr"
        if not _is_made(path, domain.generate):
            try:
                built = build(domain.generate, path, workers=workers)
            except InputError as error:
                raise InputError(f"{field}.generate: {error}") from None
            console.print(f"{path}: made {built.made} series in {built.seconds:.0f} s")
    return _of_store(path, target, field)


def _is_made(path: Path, config: GeneratorConfig) -> bool:
    """Whether the whole data set is there; then several processes may read it, and none asks to write it."""
    try:
        store = PatchStore(path)
    except InputError:
        return False
    return store.config.digest == config.digest and len(store) == config.samples


def check_domains(data: SegmentationData, tests: tuple[Domain, ...] = (), *, physics: bool = False) -> None:
    """Read what simulated domains are cut from, and all that is there already, before a folder is made.

    Args:
        physics: whether contrasts are made from the series of the training.
    Raises: InputError naming the field at fault.
    """
    from generators.sample import scene

    for field, domain in (("data.train", data.train), *((f"tests[{i}]", each) for i, each in enumerate(tests))):
        if domain.generate is not None:
            try:
                world = scene(domain.generate)
            except InputError as error:
                raise InputError(f"{field}.generate: {error}") from None
            _check_target(data.target, world.phantom.tissues, f"{field}.generate")
            if field == "data.train":
                _check_simulated(domain.generate, world.phantom, data.folds, physics)
            continue
        series = _of_files(domain.files, field) if domain.store is None else _of_store(domain.store, data.target, field)
        try:
            prepared(series, domain.images, data.size)
        except InputError as error:
            raise InputError(f"{field}: {error}") from None
        if field == "data.train":
            split_of(series, data.folds, 0, data.split_seed)
            timeless = [name for name, times in zip(series.names, series.times, strict=True) if times is None]
            if physics and timeless:
                raise InputError(
                    f"physics: needs T1 of the series, and {timeless[0]} of data.train has no inversion times; give "
                    "times in its entry of files, or leave physics out"
                )


def _check_simulated(config: GeneratorConfig, phantom: Phantom, n_folds: int, physics: bool) -> None:
    subjects = len(phantom.ids) if isinstance(phantom, VolumePhantom) else n_folds
    if subjects < n_folds:
        raise InputError(f"data.folds: {n_folds} of {subjects} subjects; give at most as many folds as subjects")
    if physics and _inversion_times(config.signal_model) is None:
        raise InputError(
            f"physics: needs T1 of the series, and model.kind {config.signal_model.kind} of data.train is no inversion "
            "recovery; take molli, look_locker or inversion_recovery, or leave physics out"
        )


def _check_target(target: tuple[str, ...], tissues: tuple[str, ...], place: str) -> None:
    missing = [name for name in target if name not in tissues]
    if missing:
        raise InputError(f"data.target: {place} holds no {', '.join(missing)}; it has {', '.join(tissues)}")


def _of_store(path: Path, target: tuple[str, ...], field: str) -> SeriesSet:
    try:
        store = PatchStore(path)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    try:
        check_slices(store.config)
    except ValueError as error:
        raise InputError(f"{field}: {path}: {error}") from None
    _check_target(target, store.tissues, f"{field}: {path}")
    numbers = torch.tensor([1 + store.tissues.index(name) for name in target], dtype=torch.uint8)
    found = store.read(0, len(store))
    assert found.images is not None, "check_slices has refused maps"
    masks = torch.isin(found.labels, numbers)
    config = store.config
    spacing = tuple(store.attributes.spacing_mm)
    if len(spacing) == 3:
        spacing = spacing[: config.slice_axis] + spacing[config.slice_axis + 1 :]
    times = _inversion_times(config.signal_model)
    # patches of a slice may miss the target
    kept = [i for i in range(len(store)) if bool(masks[i].any())]
    if not kept:
        raise InputError(f"{field}: {path}: no slice holds {', '.join(target)}")
    return SeriesSet(
        images=tuple(found.images[i].float() for i in kept),
        masks=tuple(masks[i] for i in kept),
        subject=found.subject.numpy().astype(np.int64)[kept],
        names=tuple(f"{config.phantom_spec.kind} {int(found.subject[i])}" for i in kept),
        spacing_mm=((spacing[0], spacing[1]),) * len(kept),
        times=(times,) * len(kept),
        digest=_digest([config.digest, len(store), list(target)]),
    )


def _inversion_times(model: AnyModel) -> tuple[float, ...] | None:
    """Inversion times of a series [s]; None of another contrast, whose times are something else."""
    made_by = model.preparation if isinstance(model, Bloch) else model
    return tuple(float(t) for t in made_by.times) if isinstance(made_by, _RECOVERIES) else None


def _of_files(files: tuple[LabelledFile, ...], field: str) -> SeriesSet:
    images: list[Float[Tensor, "n y x"]] = []
    masks: list[Bool[Tensor, "y x"]] = []
    subjects: list[str] = []
    names: list[str] = []
    spacing: list[tuple[float, float]] = []
    times: list[tuple[float, ...] | None] = []
    sums = []
    for number, each in enumerate(files):
        place = f"{field}.files[{number}]"
        for image, mask, name, size in _slices_of(each, place):
            images.append(image)
            masks.append(mask)
            names.append(name)
            spacing.append(size)
            times.append(each.times)
            subjects.append(each.subject or str(each.image))
        sums.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in (each.image, each.mask)])
    _, subject = np.unique(np.array(subjects), return_inverse=True)
    return SeriesSet(
        images=tuple(images),
        masks=tuple(masks),
        subject=subject.astype(np.int64),
        names=tuple(names),
        spacing_mm=tuple(spacing),
        times=tuple(times),
        digest=_digest([sums, subjects]),
    )


def _slices_of(
    given: LabelledFile, place: str
) -> Iterator[tuple[Float[Tensor, "n y x"], Bool[Tensor, "y x"], str, tuple[float, float]]]:
    """Series, mask, name and voxel size of every slice that holds a target.

    Raises: InputError naming the file.
    """
    image = _volumes(given.image, f"{place}.image")
    n, shape = len(image.volumes), image.volumes[0].shape
    inside = read_mask(given.mask, f"{place}.mask", given.image.name, shape, image.affine)
    if given.times is not None and len(given.times) != n:
        raise InputError(f"{place}.times: got {len(given.times)}, {given.image.name} has {n} images")
    volumes = np.stack([np.asarray(each) for each in image.volumes])
    if np.iscomplexobj(volumes):
        raise InputError(f"{place}.image: {given.image} is complex; give magnitudes")
    if not np.isfinite(volumes).all():
        raise InputError(f"{place}.image: {given.image} holds NaN or infinity; mend these voxels first")
    found = [z for z in range(shape[0]) if inside[z].any()]
    if not found:
        raise InputError(f"{place}.mask: {given.mask} is empty; mark the target, or leave the file out")
    stem = given.image.name.removesuffix(".gz").removesuffix(".nii")
    for z in found:
        name = stem if shape[0] == 1 else f"{stem} slice {z}"
        size = (float(image.spacing_mm[-2]), float(image.spacing_mm[-1]))
        yield torch.from_numpy(volumes[:, z].astype(np.float32)), torch.from_numpy(inside[z]), name, size


def read_mask(
    file: Path, field: str, of: str, shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"]
) -> Bool[np.ndarray, "z y x"]:
    """Where the target is by a mask on the voxels of an image: above 0.

    Args:
        field: of a config or a command, for messages.
        of: name of the image.
        shape, affine: of its volumes (z, y, x).
    Raises: InputError naming the field and the file.
    """
    stored = _volumes(file, field)
    if len(stored.volumes) != 1:
        raise InputError(f"{field}: {file} holds {len(stored.volumes)} volumes, wanted one for all contrasts")
    mask = np.asarray(stored.volumes[0])
    if mask.shape != shape:
        raise InputError(
            f"{field}: {file} has {_by(mask.shape[::-1])} voxels, {of} has {_by(shape[::-1])}; give the mask on the "
            "voxels of the image"
        )
    if not np.allclose(stored.affine, affine, rtol=1e-4, atol=_SAME_PLACE):
        raise InputError(
            f"{field}: {file} lies in another place than {of} (their affines differ); give the mask on the voxels of "
            "the image"
        )
    if not np.isfinite(mask).all() or mask.min() < 0:
        raise InputError(f"{field}: {file} holds NaN or values below 0; above 0 is the target")
    return np.asarray(mask > 0)


def _volumes(path: Path, place: str) -> Volumes:
    try:
        return read_volumes(path)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _field(shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> float:
    y, x = shape
    return max(y, x) * (spacing_mm[0] if y >= x else spacing_mm[1])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _by(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
