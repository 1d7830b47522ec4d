"""Fuzzy models: one membership volume per tissue, as BrainWeb's fuzzy normal brains have."""

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from phantoms.base import Slab, Split, VolumePhantom, quantise, slice_first
from phantoms.brains.blocks import Block, block_mean, check_block, coarser, say_block
from phantoms.brains.label_files import Raw, Voxel, check_voxel, find_files, read_volume, split_variable
from phantoms.brains.subjects import Parting, Subject, check_parting
from qsim.errors import InputError
from qsim.values import value

# volumes of 8 bits, one per tissue: each is off by half a step of 1/255 at most, ten of them by 2 % [1]
_ROUNDING = 0.02


@value
class FuzzyBrain:
    """Membership volumes: for each tissue a file that holds its share of every voxel.

    The share is the stored value over `full_scale`. Where shares sum to a little more than 1, by the rounding of 8 bits
    (at most 2 %), they are divided by their sum; more is refused.

    Attributes:
        fractions: files of each tissue: one, a pattern with * (by name), or a list; of each as many as there are
            subjects, in the same order. Formats as `BrainWeb`. `background` is not listed: it is the rest up to 1.
        full_scale: stored value of a voxel wholly of a tissue: 1 for MINC, whose image range is applied; 255 for raw
            bytes.
        block: averages voxels, as in `BrainWeb`.
        voxel_mm, raw: of files without a voxel size and raw files, as in `BrainWeb`.
        test_subjects, test_share, gap: as in `BrainWeb`.
    Source: Collins et al. 1998, doi:10.1109/42.712135; Aubert-Broche et al. 2006,
        doi:10.1016/j.neuroimage.2006.03.052.
    """

    kind: Literal["brainweb_fuzzy"] = "brainweb_fuzzy"
    fractions: Mapping[str, str | tuple[str, ...]]
    full_scale: float = 1.0
    block: Block = 1
    voxel_mm: Voxel | None = None
    raw: Raw | None = None
    test_subjects: int = 1
    test_share: float = 0.2
    gap: int = 5

    def __post_init__(self) -> None:
        if not self.fractions or not all(self.fractions.values()):
            raise ValueError("fractions names no file; give one per tissue, such as {csf: csf.mnc, gm: gm.mnc}")
        if "background" in self.fractions:
            raise ValueError("fractions: background is the rest up to 1; leave it out")
        if not (isfinite(self.full_scale) and self.full_scale > 0):
            raise ValueError(f"full_scale must be finite and above 0, got {self.full_scale}")
        check_block(self.block)
        check_voxel(self.voxel_mm)
        check_parting(self.test_subjects, self.test_share, self.gap)

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues, as listed."""
        return tuple(self.fractions)

    def files(self) -> tuple[tuple[Path, ...], ...]:
        """Every subject's files, in the order of the tissues; train before test.

        Raises: InputError naming what does not exist.
        """
        by_tissue = {
            tissue: find_files((paths,) if isinstance(paths, str) else tuple(paths), _field(tissue))
            for tissue, paths in self.fractions.items()
        }
        counts = {tissue: len(files) for tissue, files in by_tissue.items()}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{n} of {tissue}" for tissue, n in counts.items())
            raise InputError(f"phantom.fractions: {said}; give as many files of each tissue as there are subjects")
        return tuple(zip(*by_tissue.values(), strict=True))

    def files_of(self, split: Split) -> tuple[Path, ...]:
        """The files that a split opens; those of a single subject are of both.

        Raises: InputError naming what does not exist, or a split without subjects.
        """
        return tuple(file for subject in self._parting().of_split(self.files(), split) for file in subject)

    def describe(self, slice_axis: int) -> str:
        """What this is and how train and test are kept apart, for reports."""
        return f"{self._what()}; {self._parting().describe(slice_axis)}"

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab of a single subject, by split.

        Raises: InputError if there are several: these are split by subject.
        """
        return self._parting().slabs(slice_axis)

    def load(self, split: Split, slice_axis: int) -> VolumePhantom:
        """Read one split; the files of the other one are not opened.

        Raises: InputError naming the file that is missing, unreadable or holds what is no share.
        """
        return self._parting().load(split, slice_axis, self.tissues, self._what())

    def _what(self) -> str:
        return f"fuzzy models of {', '.join(self.tissues)}, {say_block(self.block)}"

    def _parting(self) -> Parting:
        subjects = self.files()
        return Parting(
            field="phantom.fractions",
            names=[files[0].name for files in subjects],
            test_subjects=self.test_subjects,
            test_share=float(self.test_share),
            gap=self.gap,
            read=lambda i, slice_axis: self._read(subjects[i], slice_axis),
        )

    def _read(self, files: tuple[Path, ...], slice_axis: int) -> Subject:
        changed = tuple(split_variable(file)[0].stat().st_mtime_ns for file in files)
        fields = tuple(_field(tissue) for tissue in self.tissues)
        return _subject(files, changed, fields, float(self.full_scale), self.block, self.voxel_mm, self.raw, slice_axis)


def _field(tissue: str) -> str:
    return f"phantom.fractions.{tissue}"


@lru_cache(maxsize=2)
def _subject(
    files: tuple[Path, ...],
    _changed: tuple[int, ...],
    fields: tuple[str, ...],
    full_scale: float,
    block: Block,
    voxel_mm: Voxel | None,
    raw: Raw | None,
    slice_axis: int,
) -> Subject:
    shares: list[Float[np.ndarray, "x y z"]] = []
    first = read_volume(files[0], fields[0], raw, voxel_mm)
    for file, field in zip(files, fields, strict=True):
        stored = first if file is files[0] else read_volume(file, field, raw, voxel_mm)
        if stored.data.shape != first.data.shape or not np.allclose(stored.affine, first.affine, rtol=0, atol=1e-3):
            raise InputError(f"{field}: {file} lies on another grid than {files[0]}; give volumes of one grid")
        low, high = float(stored.data.min()), float(stored.data.max())
        # `not`: NaN fails every comparison
        if not (low >= 0 and high <= full_scale):
            raise InputError(
                f"{field}: {file} holds values from {low:g} to {high:g}, wanted 0 to {full_scale:g}; "
                "full_scale is the value of a whole voxel, 255 for bytes"
            )
        shares.append(stored.data.astype(np.float32) / np.float32(full_scale))
    total = np.add.reduce(shares, dtype=np.float64)
    if not total.max() <= 1 + _ROUNDING:
        raise InputError(
            f"phantom.fractions: the tissues of {files[0].name} sum to {total.max():.3g} in a voxel, wanted at most 1; "
            "is one listed twice, or full_scale wrong?"
        )
    if not total.any():
        raise InputError(f"{fields[0]}: {files[0]} and the other tissues hold no tissue, only background")
    above = np.maximum(total, 1)
    blocks = np.stack([block_mean((share / above).astype(np.float32), block) for share in shares])
    spacing, affine = coarser(first.spacing_mm, first.affine, block)
    return Subject(slice_first(quantise(blocks, np.uint16), slice_axis), spacing, affine)
