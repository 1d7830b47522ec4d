"""Lesions and structures put into any phantom.

A structure covers the share c of a voxel. Of that voxel it takes the tissues in which it may lie, and nothing else:

    taken = c sum_{t in within} f_t,   f_t <- (1 - c) f_t for t in within,   f_structure <- f_structure + taken,

so the sum over the tissues stays as it was, and neither background nor other tissues are touched. Places are drawn
uniformly among those where points, lines and squares find 90 % of every voxel to be such tissue (a voxel that holds
less is a mixed one), and tumours 80 % of their volume; what the anatomy cuts off a tumour is not put anywhere else.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8

from phantoms.base import (
    PhantomSpec,
    Slab,
    Split,
    VolumePhantom,
    slice_first,
)
from phantoms.shapes.placing import Room
from phantoms.shapes.structures import AnyStructure, Line, Square, Tumour
from qsim.errors import InputError
from qsim.values import value

if TYPE_CHECKING:
    AnyAnatomy = PhantomSpec
else:
    # what a config can name there: every phantom but this one
    from phantoms import ANATOMIES

    AnyAnatomy = reduce(or_, ANATOMIES)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a structure lies.

    Attributes:
        structure: its number in the config's list.
        tissue: what it is made of.
        subject: as in `Crop`.
        origin: index of the first voxel of its block.
        share: share of each voxel of the block that it took, in the accuracy in which the fractions are stored [1].
    """

    structure: int
    tissue: str
    subject: int
    origin: tuple[int, ...]
    share: Float[np.ndarray, "*block"]


@dataclass(frozen=True, slots=True)
class VolumeWithStructures(VolumePhantom):
    """Anatomy with structures in it.

    Attributes:
        placed: every structure of this split.
        region_names: of the structures, in the config's order.
    """

    placed: tuple[Placed, ...] = ()
    region_names: tuple[str, ...] = ()

    def regions(self, subject: int) -> UInt8[np.ndarray, "*space"]:
        """Which structure holds at least half of each voxel of a subject: 0 none, 1 + its number."""
        extent = tuple(self.volumes[self.ids.index(subject)].shape[1:])
        return self.structure_labels(subject, (0,) * len(extent), extent)

    def structure_labels(
        self, subject: int, origin: tuple[int, ...], patch: tuple[int, ...]
    ) -> UInt8[np.ndarray, "*space"]:
        """Which structure holds at least half of each voxel: 0 none, 1 + its number in the config's list.

        Args:
            subject, origin: as a `Crop`, and the arrays of a data set, have them.
            patch: extent in voxels; of a slice, two numbers in a volume of three axes.
        """
        block = patch
        if len(patch) < len(origin):
            block = (*patch[: self.slice_axis], 1, *patch[self.slice_axis :])
        labels = np.zeros(block, dtype=np.uint8)
        for each in self.placed:
            if each.subject != subject:
                continue
            low = [max(a, b) for a, b in zip(each.origin, origin, strict=True)]
            ends = zip(each.origin, each.share.shape, origin, block, strict=True)
            high = [min(a + n, b + m) for a, n, b, m in ends]
            if any(start >= stop for start, stop in zip(low, high, strict=True)):
                continue
            here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
            there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, each.origin, strict=True))
            labels[here][each.share[there] >= 0.5] = 1 + each.structure
        return labels.reshape(patch)


@value
class WithStructures:
    """Any other phantom with lesions or small structures put into its tissues.

    Every subject has its own, drawn from `seed`, the split and the number of the subject; they lie wholly inside the
    slab of the split. A structure's tissue, if the phantom has no such tissue, comes after the phantom's own.

    Attributes:
        phantom: the anatomy.
        structures: shapes, as `square`, `tumour`, `point` or `line`; the first named are placed first.
        per: each `count` is per subject (tumours are three-dimensional in a volume), or per slice across the slice
            axis (all are flat; a slice without room for one is left without, and the description counts them).
        apart: voxels left free between the blocks of two structures.
        seed: of the places.
    Source: points and lines: sabidussi2021, doi:10.1016/j.media.2021.102220, section 5.1.2.
    """

    kind: Literal["with_structures"] = "with_structures"
    phantom: AnyAnatomy
    structures: tuple[AnyStructure, ...]
    per: Literal["subject", "slice"] = "subject"
    apart: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.structures:
            raise ValueError("structures is empty; name at least one")
        if len(self.structures) > 254:
            raise ValueError(f"structures: at most 254, got {len(self.structures)}; raise their count instead")
        if self.apart < 0:
            raise ValueError(f"apart must be at least 0 voxels, got {self.apart}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def load(self, split: Split, slice_axis: int) -> VolumeWithStructures:
        """Read one split of the anatomy and put the structures in.

        Raises: InputError naming the field of a structure that the anatomy cannot hold.
        """
        anatomy = self.phantom.load(split, slice_axis)
        if not isinstance(anatomy, VolumePhantom):
            raise InputError(
                f"phantom.phantom: structures cannot be put into {self.phantom.kind}, which has no volumes"
            )
        self._check(anatomy)
        names = dict.fromkeys([*anatomy.tissues, *(structure.tissue for structure in self.structures)])
        tissues = tuple(names)
        volumes, placed, missing = [], [], [0] * len(self.structures)
        for subject, volume, slabs in zip(anatomy.ids, anatomy.volumes, anatomy.slabs, strict=True):
            added = np.zeros((len(tissues) - len(anatomy.tissues), *volume.shape[1:]), dtype=volume.dtype)
            filled = np.concatenate([volume, added])
            for region, rng in self._regions(anatomy, slabs, subject, split):
                room = Room(filled, tissues, region, anatomy.slice_axis, self.apart)
                for number, structure in enumerate(self.structures):
                    for _ in range(structure.count):
                        coverage = structure.draw(rng, anatomy.spacing_mm, self._plane(anatomy, structure))
                        origin = room.find(coverage, self._within(structure, anatomy), structure, rng)
                        if origin is None:
                            missing[number] += 1
                            continue
                        share = room.fill(coverage, origin, self._within(structure, anatomy), structure.tissue)
                        placed.append(Placed(number, structure.tissue, subject, origin, share))
                if self.per == "subject" and any(missing):
                    self._refuse(missing, f"subject {subject}")
            volumes.append(slice_first(filled, anatomy.slice_axis))
        wanted = {each.structure for each in placed}
        if len(wanted) < len(self.structures):
            none = [0 if i in wanted else structure.count for i, structure in enumerate(self.structures)]
            self._refuse(none, "any slice")
        return VolumeWithStructures(
            tissues=tissues,
            spacing_mm=anatomy.spacing_mm,
            volumes=tuple(volumes),
            slabs=anatomy.slabs,
            slice_axis=anatomy.slice_axis,
            ids=anatomy.ids,
            description=f"{anatomy.description}; {self._say(missing)}",
            affine=anatomy.affine,
            placed=tuple(placed),
            region_names=tuple(f"{s.shape} of {s.tissue}" for s in self.structures),
        )

    def _check(self, anatomy: VolumePhantom) -> None:
        """Refuse structures that name what this anatomy does not have."""
        ndim = len(anatomy.spacing_mm)
        flat = anatomy.slice_axis if self.per == "slice" and ndim == 3 else None
        for i, structure in enumerate(self.structures):
            unknown = [name for name in structure.within if name not in anatomy.tissues]
            if unknown:
                raise InputError(
                    f"phantom.structures[{i}].within: the anatomy has no {', '.join(unknown)}; it has "
                    f"{', '.join(anatomy.tissues)}"
                )
            if isinstance(structure, Line) and structure.axis is not None:
                if structure.axis >= ndim:
                    raise InputError(
                        f"phantom.structures[{i}].axis: got {structure.axis}, the anatomy has {ndim} axes, from 0"
                    )
                if structure.axis == flat:
                    raise InputError(
                        f"phantom.structures[{i}].axis: {structure.axis} lies across the slices; with per: slice name "
                        "one of the others"
                    )
            if isinstance(structure, Tumour):
                extents = [
                    anatomy.volumes[0].shape[1 + a] * anatomy.spacing_mm[a] for a in self._plane(anatomy, structure)
                ]
                if structure.diameter_mm[1] > min(extents):
                    hint = ", or per: slice" if self.per == "subject" and ndim == 3 else ""
                    wide = " x ".join(f"{extent:g}" for extent in extents)
                    raise InputError(
                        f"phantom.structures[{i}].diameter_mm: up to {structure.diameter_mm[1]:g} mm, but the anatomy "
                        f"is {wide} mm; ask for smaller ones{hint}"
                    )
            if isinstance(structure, Square) and len(structure.extent) == 3 and (ndim == 2 or flat is not None):
                raise InputError(
                    f"phantom.structures[{i}].extent: three numbers need a volume and per: subject; give two"
                )

    def _plane(self, anatomy: VolumePhantom, structure: AnyStructure) -> tuple[int, ...]:
        """Axes along which a structure extends: those of the slice; all of them for a tumour in a volume."""
        ndim = len(anatomy.spacing_mm)
        if ndim == 2 or (isinstance(structure, Tumour) and self.per == "subject"):
            return tuple(range(ndim))
        along = structure.axis if isinstance(structure, Line) else None
        if along == anatomy.slice_axis:
            # a line across the slices: its width lies along the first axis of the slice
            return tuple(range(ndim))
        return tuple(axis for axis in range(ndim) if axis != anatomy.slice_axis)

    def _regions(
        self, anatomy: VolumePhantom, slabs: Sequence[Slab], subject: int, split: Split
    ) -> Iterator[tuple[tuple[Slab, ...], np.random.Generator]]:
        """Slabs in which each `count` is to be placed, and the generator of the places."""
        key = (zlib.crc32(b"phantom.with_structures"), subject, ("train", "test").index(split))
        # a 2D phantom is one slice
        if self.per == "subject" or len(anatomy.spacing_mm) == 2:
            yield tuple(slabs), _rng(self.seed, key)
            return
        for start, stop in slabs:
            for at in range(start, stop):
                yield ((at, at + 1),), _rng(self.seed, (*key, at))

    def _within(self, structure: AnyStructure, anatomy: VolumePhantom) -> tuple[int, ...]:
        names = structure.within or tuple(name for name in anatomy.tissues if name != structure.tissue)
        return tuple(anatomy.tissues.index(name) for name in names)

    def _refuse(self, missing: Sequence[int], where: str) -> None:
        i = next(number for number, count in enumerate(missing) if count)
        structure = self.structures[i]
        within = ", ".join(structure.within) or "the tissues"
        raise InputError(
            f"phantom.structures[{i}]: {where} has no room in {within} for {missing[i]} of {structure.count} x "
            f"{structure.shape}, {self.apart} voxels apart; make it smaller or fewer, or name more tissues"
        )

    def _say(self, missing: Sequence[int]) -> str:
        said = ", ".join(
            f"{s.count} x {s.shape} of {s.tissue} in {', '.join(s.within) or 'any tissue'}"
            + (f" ({left} found no room)" if left else "")
            for s, left in zip(self.structures, missing, strict=True)
        )
        return f"structures per {self.per}, seed {self.seed}: {said}"


def _rng(seed: int, key: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
