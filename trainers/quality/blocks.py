"""Clean blocks to learn from: read once, kept in memory, cut by anatomy and not by patch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from rich.console import Console
from torch import Tensor

from generators.build import build
from generators.store import PatchStore
from qsim.errors import InputError
from trainers.quality.config import BlockData, check_blocks

# samples that are read from a store together
_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Blocks:
    """Clean images of one extent, with the tissue of every voxel.

    Attributes:
        images: magnitudes [units of A].
        labels: 1 + index of the tissue in `tissues`; 0 background.
        tissues: names.
        anatomy: number of the subject, over all data sets.
        spacing_mm: voxel size [mm].
        digest: of all that decides the blocks.
        names: of the data set of each anatomy, for reports.
    """

    images: Float[Tensor, "s x y z"]
    labels: UInt8[Tensor, "s x y z"]
    tissues: tuple[str, ...]
    anatomy: Int[np.ndarray, " s"]
    spacing_mm: tuple[float, float, float]
    digest: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, index: int, tissues: Sequence[str]) -> Tensor:
        """Where a block holds one of these tissues."""
        return mask_of(self.labels[index], self.tissues, tissues)


def mask_of(labels: UInt8[Tensor, "x y z"], tissues: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Where labels are one of the wanted tissues."""
    numbers = torch.tensor([number for number, name in enumerate(tissues, 1) if name in wanted], dtype=torch.uint8)
    return torch.isin(labels, numbers)


def classes_of(labels: UInt8[Tensor, "x y z"], tissues: Sequence[str], target: Sequence[str]) -> Int[Tensor, "x y z"]:
    """Class of each voxel: 1 + the place of its tissue in `target`, else 0."""
    table = torch.zeros(256, dtype=torch.int64)
    for number, name in enumerate(tissues, 1):
        if name in target:
            table[number] = 1 + list(target).index(name)
    return table[labels.long()]


def make_stores(data: Sequence[BlockData], folder: Path, field: str, workers: int, console: Console) -> list[Path]:
    """Stores of the data sets; those that are to be generated are made in `folder`, or found there.

    Raises: InputError naming the data set at fault.
    """
    paths = []
    for number, each in enumerate(data):
        if each.store is not None:
            paths.append(each.store)
            continue
        assert each.generate is not None, "the config holds one of the two"
        path = folder / f"{field.replace('.', '_')}_{number}.zarr"
        try:
            built = build(each.generate, path, workers=workers)
        except InputError as error:
            raise InputError(f"{field}[{number}]: {error}") from None
        if built.made:
            console.print(f"{path}: made {built.made} blocks in {built.seconds:.0f} s")
        paths.append(path)
    return paths


def read_blocks(paths: Sequence[Path], target: Sequence[str], field: str) -> Blocks:
    """Read whole stores into memory, under one list of tissues.

    Raises: InputError naming the store that is missing, unfinished, no store of clean volumes, or unlike the others.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    anatomy: list[np.ndarray] = []
    digests: list[list[object]] = []
    names: list[str] = []
    tissues: list[str] = []
    spacing: tuple[float, ...] | None = None
    for number, path in enumerate(paths):
        store = PatchStore(path)
        place = f"{field}[{number}]"
        try:
            check_blocks(store.config)
        except ValueError as error:
            raise InputError(f"{place}: {path}: {error}") from None
        here = store.attributes.spacing_mm
        spacing = spacing or here
        if not np.allclose(here, spacing, rtol=1e-3):
            raise InputError(f"{place}: voxels of {here} mm, the data before it have {spacing}; give one voxel size")
        tissues.extend(name for name in store.tissues if name not in tissues)
        table = torch.zeros(256, dtype=torch.uint8)
        for own, name in enumerate(store.tissues, 1):
            table[own] = 1 + tissues.index(name)
        subjects: list[Tensor] = []
        for start in range(0, len(store), _TOGETHER):
            found = store.read(start, min(start + _TOGETHER, len(store)))
            assert found.images is not None, "check_blocks has refused maps"
            images.append(found.images[:, 0])
            labels.append(table[found.labels.long()])
            subjects.append(found.subject)
        unique, inverse = np.unique(torch.cat(subjects).numpy(), return_inverse=True)
        anatomy.append(inverse + len(names))
        names.extend(f"{store.config.phantom_spec.kind} {number}.{subject}" for subject in unique)
        digests.append([store.config.digest, len(store)])
    absent = [name for name in target if name not in tissues]
    if absent:
        raise InputError(f"data.target: {field} holds no {', '.join(absent)}; it has {', '.join(tissues)}")
    shapes = {tuple(each.shape[1:]) for each in images}
    if len(shapes) > 1:
        raise InputError(f"{field}: blocks of different extents, {' and '.join(map(str, shapes))}; give one patch")
    assert spacing is not None, "there is at least one store"
    return Blocks(
        images=torch.cat(images),
        labels=torch.cat(labels),
        tissues=tuple(tissues),
        anatomy=np.concatenate(anatomy),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        digest=hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        names=tuple(names),
    )
