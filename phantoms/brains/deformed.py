"""Further anatomies from those of another phantom, by smooth displacements that fold nothing.

Anatomy k of a subject has at the place r what the subject has at r + u_k(r). Along every axis of the volume

    u_i(r) = d g_i(r),

with g_i a sum of plane waves of SD 1 and correlation length l (`phantoms.fields.smooth.Waves`). The map r -> r + u(r)
keeps the neighbourhood of every point as long as det(I + du/dr) > 0. The entries of du/dr are normal with SD d / l;
lowest determinants of 60 fields over 210 x 240 x 210 mm with l = 30 mm, on a grid of l / 4:

| d / l | 0.1 | 0.133 | 0.15 | 0.175 | 0.2 | 0.25 |
| --- | --- | --- | --- | --- | --- | --- |
| lowest of all | 0.40 | 0.26 | 0.19 | 0.05 | -0.11 | -0.61 |
| median over fields | 0.51 | 0.39 | 0.33 | 0.24 | 0.16 | -0.04 |
"""

import zlib
from dataclasses import dataclass, field
from functools import reduce
from math import isfinite
from operator import or_
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Shaped

from phantoms.base import Crop, PhantomSpec, Slab, Split, VolumePhantom, as_fractions, quantise
from phantoms.fields.base import Place
from phantoms.fields.smooth import Waves
from qsim.errors import InputError
from qsim.values import value

if TYPE_CHECKING:
    AnyAnatomy = PhantomSpec
else:
    # what a config can name there: every phantom that holds no other
    from phantoms import ANATOMIES

    AnyAnatomy = reduce(or_, ANATOMIES)

# d / l up to which no field folded, and the lowest determinant of 60 was 0.19
LARGEST_RATIO = 0.15
# length over which a displacement fades towards the end of a slab, over d: there tissue is stretched or squeezed by
# e^{u / 3 d}, 1.4 at one SD
_FADE = 3.0
# displacements are rounded to this share of a voxel: places on the grid of the volume are then exact in float64,
# whichever patch asks for them
_STEP = 2.0**-16


@dataclass(frozen=True, slots=True)
class DeformedVolumes(VolumePhantom):
    """Anatomies cut from deformed volumes, which are computed where they are cut.

    `volumes`, `slabs` and `ids` name every anatomy; a volume is that of the subject, not yet deformed, and all
    anatomies of one subject share it. Centres of patches are drawn, and slices listed, where the undeformed subject
    holds tissue, so a patch near the surface can hold less of it than one of the subject.

    Attributes:
        anatomy: the subjects.
        deformation: what is done to them.
    """

    anatomy: VolumePhantom = field(kw_only=True)
    deformation: "Deformed" = field(kw_only=True)

    def __post_init__(self) -> None:
        # those of the subjects, found once: the anatomies of one share them
        n = self.deformation.subjects
        shared = tuple(centres for centres in self.anatomy._centres for _ in range(n))
        object.__setattr__(self, "_centres", shared)
        object.__setattr__(self, "_largest", self.anatomy._largest)

    def crop(self, patch: tuple[int, ...], rng: np.random.Generator) -> Crop:
        """Cut a patch at random: as from the subjects, then deformed.

        Raises: InputError if the patch is larger than the anatomy.
        """
        return self._deformed(VolumePhantom.crop(self, patch, rng), patch)

    def whole_slice(self, i: int, at: int, patch: tuple[int, ...]) -> Crop:
        """Cut one whole slice, deformed.

        Args:
            i: place of the anatomy in `ids`.
            at: index along `slice_axis`.
            patch: extent of the slice, as a check.
        Raises: InputError if a slice of this anatomy is not of that extent, or not of this split.
        """
        return self._deformed(VolumePhantom.whole_slice(self, i, at, patch), patch)

    def displacement_mm(
        self, subject: int, origin: tuple[int, ...], block: tuple[int, ...]
    ) -> Float[np.ndarray, "axes *block"]:
        """From where each voxel of a block has its tissue: u(r) [mm].

        Args:
            subject, origin: as in `Crop`.
            block: extent in voxels along every axis of the volume, inside one slab.
        Raises: InputError if the block lies in no slab of this split.
        """
        i = self.ids.index(subject)
        extent = self.volumes[i].shape[1:]
        base, k = divmod(subject, self.deformation.subjects)
        u = np.zeros((len(extent), *block))
        if k == 0:
            return u
        of = self.deformation
        rng = _rng(of.seed, (zlib.crc32(b"phantom.deformed"), base, k))
        place = Place(origin, block, self.spacing_mm, extent, None, block)
        for axis, n in enumerate(extent):
            # drawn for every axis, so that the others do not depend on it
            waves = Waves.draw(rng, len(extent), of.length_mm)
            # across a single slice there is nowhere to go
            if n > 1:
                u[axis] = of.displacement_mm * waves.at(place)
        self._stay_inside(u, i, place)
        return u

    def _stay_inside(self, u: Float[np.ndarray, "axes *block"], i: int, place: Place) -> None:
        """Let no place leave the slab of its block, in place.

        Along the slice axis the slab is stretched over all numbers, moved there and folded back. With s and t the
        distances from its first and last slice, W = s + t and h = 3 d,

            phi(s) = h ln((e^{s/h} - 1) / (1 - e^{-t/h})),    u <- phi^-1(phi(s) + u) - s.

        So nothing changes a few h away from the ends, and the ends themselves stay. As phi' >= 1, the determinant is a
        positive multiple of a mean of det(I + du/dr) and of that of its part without the axis. An end of the slab that
        is the end of the volume needs none of it: beyond is background.
        """
        axis, extent = self.slice_axis, self.volumes[i].shape[1:]
        first, stop = self._slab(i, place.origin[axis], place.block[axis])
        spacing, h = self.spacing_mm[axis], _FADE * self.deformation.displacement_mm
        ends = [first > 0, stop < extent[axis]]
        if not any(ends):
            return
        if stop - first == 1:
            u[axis] = 0
            return
        shape = [1] * len(extent)
        shape[axis] = place.block[axis]
        at = place.positions(axis).reshape(shape)
        # e^{-s/h}, e^{-t/h} and e^{-W/h}, or 0 of an end that is far away
        low = np.exp(-(at - first * spacing) / h) * ends[0]
        high = np.exp(-((stop - 1) * spacing - at) / h) * ends[1]
        whole = np.exp(-(stop - 1 - first) * spacing / h) * all(ends)
        moved = np.exp(u[axis] / h)
        u[axis] = h * np.log((low - whole + moved * (1 - low)) / (1 - high + moved * (high - whole)))

    def _slab(self, i: int, origin: int, depth: int) -> Slab:
        for first, stop in self.slabs[i]:
            if first <= origin and origin + depth <= stop:
                return first, stop
        raise InputError(
            f"patch: slices {origin} to {origin + depth - 1} along axis {self.slice_axis} lie in no slab of this split "
            f"({', '.join(f'{first} to {stop - 1}' for first, stop in self.slabs[i])}); ask for slices inside one"
        )

    def _deformed(self, crop: Crop, patch: tuple[int, ...]) -> Crop:
        if crop.subject % self.deformation.subjects == 0:
            return crop
        axes = len(crop.origin)
        block = patch if len(patch) == axes else (*patch[: self.slice_axis], 1, *patch[self.slice_axis :])
        u = self.displacement_mm(crop.subject, crop.origin, block)
        for axis, (origin, n, size) in enumerate(zip(crop.origin, block, self.spacing_mm, strict=True)):
            shape = [1] * axes
            shape[axis] = n
            # in voxels of the volume
            steps = np.rint(u[axis] * (1 / (size * _STEP)))
            u[axis] = steps * _STEP + (origin + np.arange(n)).reshape(shape)
        volume = self.volumes[self.ids.index(crop.subject)]
        return Crop(interpolated(volume, u).reshape(len(volume), *patch), crop.subject, crop.origin)


def interpolated(
    volume: Shaped[np.ndarray, "t *volume"], places: Float[np.ndarray, "axes *block"]
) -> Float[np.ndarray, "t *block"]:
    """Fractions at places between the voxels, linear along each axis; beyond the volume is background [1].

    They come in steps of 2^-15 whatever the steps of the volume, so that their sum is exact and never above 1.

    Args:
        volume: fractions in the steps of `as_fractions`.
        places: in voxels of the volume, 0 the middle of the first.
    """
    from scipy.ndimage import map_coordinates  # type: ignore[attr-defined]

    # only what lies around the places is read
    axes = tuple(range(1, places.ndim))
    low = np.floor(places.min(axis=axes)).astype(int)
    high = np.floor(places.max(axis=axes)).astype(int) + 2
    inside = [slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(low, high, volume.shape[1:], strict=True)]
    part = as_fractions(volume[(slice(None), *inside)])
    there = places - np.array([s.start for s in inside], dtype=float).reshape(-1, *(1,) * (places.ndim - 1))
    found = np.zeros((len(volume), *places.shape[1:]), dtype=np.float32)
    if part.size:
        for tissue, result in zip(part, found, strict=True):
            map_coordinates(tissue, there, output=result, order=1, mode="grid-constant", prefilter=False)
    return as_fractions(quantise(found, np.uint16))


@value
class Deformed:
    """Any other phantom with further anatomies of each subject, by smooth displacements that fold nothing.

    Of every subject there are `subjects` anatomies: number k = 0 is the subject itself, the others are deformed.
    `Crop.subject` is base * subjects + k, base being the number of the subject. A displacement depends on `seed`, base
    and k alone; it is computed where a patch is cut, and no deformed volume is held. Patches of one shape agree to the
    bit where they overlap, a slice and a block to rounding (2^-14).

    Train and test are those of the phantom: disjoint subjects stay disjoint. Where one subject is split into slabs,
    the displacement along the slice axis fades to 0 towards an end of a slab that is not an end of the volume (over
    about 3 `displacement_mm`), so that a slab is mapped onto itself and no slice shows what another split holds. Beyond
    the volume is background. Across a volume of a single slice nothing moves.

    Attributes:
        phantom: the subjects.
        subjects: anatomies of each.
        displacement_mm: SD d of the displacement along every axis, over draws and places; in a volume the length of
            the displacement has the root mean square sqrt(3) d [mm].
        length_mm: length l of its Gaussian covariance exp(-r^2 / 2 l^2); displacement_mm / length_mm is at most 0.15:
            above it the anatomy would begin to fold [mm].
        seed: of the displacements.
    """

    kind: Literal["deformed"] = "deformed"
    phantom: AnyAnatomy
    subjects: int = 8
    displacement_mm: float = 4.0
    length_mm: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subjects < 1:
            raise ValueError(f"subjects must be at least 1 (the subject itself), got {self.subjects}")
        for name, number in (("displacement_mm", self.displacement_mm), ("length_mm", self.length_mm)):
            if not (isfinite(number) and number > 0):
                raise ValueError(f"{name} must be above 0 mm, got {number}")
        if self.displacement_mm > LARGEST_RATIO * self.length_mm:
            raise ValueError(
                f"displacement_mm: {self.displacement_mm:g} mm over a length_mm of {self.length_mm:g} mm would fold "
                f"the anatomy; give at most {LARGEST_RATIO * self.length_mm:g} mm, or a length_mm of at least "
                f"{self.displacement_mm / LARGEST_RATIO:g} mm"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def load(self, split: Split, slice_axis: int) -> DeformedVolumes:
        """Read one split of the subjects; nothing is deformed yet.

        Raises: InputError naming what the phantom cannot give.
        """
        anatomy = self.phantom.load(split, slice_axis)
        if not isinstance(anatomy, VolumePhantom):
            raise InputError(f"phantom.phantom: {self.phantom.kind} has no volumes that could be deformed")
        return self.of(anatomy)

    def of(self, anatomy: VolumePhantom) -> DeformedVolumes:
        """Anatomies of subjects that were read already."""
        n = self.subjects
        return DeformedVolumes(
            tissues=anatomy.tissues,
            spacing_mm=anatomy.spacing_mm,
            volumes=tuple(volume for volume in anatomy.volumes for _ in range(n)),
            slabs=tuple(slabs for slabs in anatomy.slabs for _ in range(n)),
            slice_axis=anatomy.slice_axis,
            ids=tuple(base * n + k for base in anatomy.ids for k in range(n)),
            description=(
                f"{anatomy.description}; {n} anatomies of each subject, the first undeformed, the others by smooth "
                f"displacements of SD {self.displacement_mm:g} mm along each axis and length {self.length_mm:g} mm, "
                f"seed {self.seed}"
            ),
            affine=anatomy.affine,
            anatomy=anatomy,
            deformation=self,
        )


def _rng(seed: int, key: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
