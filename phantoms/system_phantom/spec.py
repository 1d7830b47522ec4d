"""The system phantom as a config names it."""

from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, isfinite
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from phantoms.base import Slab, Split, VolumePhantom, as_fractions, check_slice_axis, quantise, slice_first, tissue_mask
from phantoms.system_phantom.geometry import (
    ARRAYS,
    BODY_RADIUS_MM,
    PLANE_MM,
    Edges,
    Sphere,
    ball_share,
    spheres,
    wholly_inside,
)
from qsim.errors import InputError
from qsim.system_phantom import WATER, Array
from qsim.values import value

Arrays = Literal["t1", "t2", "pd", "all"]


@value
class SystemPhantom:
    """The spheres of the ISMRM/NIST system phantom in water, on a stack of slices parallel to its plates.

    Axes of the volume: 0 and 1 in the plane of the plates (sphere 1 at the top of axis 1, 2 to 10 towards the end of
    axis 0), 2 through them, from the T1 to the PD array. World coordinates count from the middle of the body. Partial
    volume at the edges is exact, over the thickness of each slice; the walls of the spheres are dark. The values are
    those of `tissues: {kind: system_phantom}`, which knows serial number, field strength and temperature.

    There is one such object and nothing to hold out but its parts: the slices that hold a sphere are the test split,
    the water on both sides of them is train. So nothing that is measured on a sphere can have been trained on.

    Attributes:
        array: which spheres are there: t1 (NiCl2), t2 (MnCl2), pd, or all. The others are left out: water.
        matrix: voxels in the plane.
        voxel_mm: their size in the plane [mm].
        slices: how many; None: 15 for one array, for all enough to reach 22.5 mm beyond the outer planes.
        slice_thickness_mm: [mm].
        gap_mm: between slices [mm].
        centre_mm: of the middle slice along axis 2, from the middle of the body; None: the plane of the array, for all
            the middle one [mm].
        inner_diameter_mm: of the solution in a sphere; approximate [mm].
        outer_diameter_mm: of its wall; the inner one leaves the wall out [mm].
        gap: slices left out between test and train.
    Source: `phantoms.system_phantom.geometry`; matrix, voxels and slices: sabidussi2021, Table 2.
    """

    kind: Literal["system_phantom"] = "system_phantom"
    array: Arrays = "t1"
    matrix: tuple[int, int] = (210, 210)
    voxel_mm: tuple[float, float] = (0.82, 0.82)
    slices: int | None = None
    slice_thickness_mm: float = 1.5
    gap_mm: float = 1.5
    centre_mm: float | None = None
    inner_diameter_mm: float = 15.0
    outer_diameter_mm: float = 20.0
    gap: int = 1

    def __post_init__(self) -> None:
        if min(self.matrix) < 1:
            raise ValueError(f"matrix must be at least 1 along both axes, got {list(self.matrix)}")
        for name, lengths in (
            ("voxel_mm", self.voxel_mm),
            ("slice_thickness_mm", (self.slice_thickness_mm,)),
            ("inner_diameter_mm", (self.inner_diameter_mm,)),
        ):
            if not all(0 < length < float("inf") for length in lengths):
                raise ValueError(f"{name} must be above 0 and finite, got {', '.join(f'{x:g}' for x in lengths)}")
        if self.slices is not None and self.slices < 1:
            raise ValueError(f"slices must be at least 1, got {self.slices}")
        if not 0 <= self.gap_mm < float("inf"):
            raise ValueError(f"gap_mm must be at least 0 and finite, got {self.gap_mm:g}")
        if self.centre_mm is not None and not isfinite(self.centre_mm):
            raise ValueError(f"centre_mm must be finite, got {self.centre_mm}")
        # a sphere of the inner square and its neighbour on the ring are 22.5 mm apart
        if not self.inner_diameter_mm <= self.outer_diameter_mm <= 22:
            raise ValueError(
                f"outer_diameter_mm must lie between the inner one ({self.inner_diameter_mm:g}) and 22, where spheres "
                f"would touch, got {self.outer_diameter_mm:g}"
            )
        if self.gap < 0:
            raise ValueError(f"gap must be at least 0 slices, got {self.gap}")

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that are there."""
        return ARRAYS if self.array == "all" else (self.array,)

    @property
    def spheres(self) -> tuple[Sphere, ...]:
        """The spheres that are there, in the order of the tissues."""
        return spheres(self.arrays)

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the spheres, then water."""
        return (*(sphere.name for sphere in self.spheres), WATER)

    @property
    def step_mm(self) -> float:
        """From the middle of a slice to that of the next [mm]."""
        return float(self.slice_thickness_mm + self.gap_mm)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        slices = self.slices
        if slices is None:
            slices = 15 if self.array != "all" else ceil((PLANE_MM["pd"] - PLANE_MM["t1"] + 45) / self.step_mm)
        return (*self.matrix, slices)

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index to the frame of the phantom [mm]."""
        size = (*self.voxel_mm, self.step_mm)
        first = [-(n - 1) / 2 * s for n, s in zip(self.shape, size, strict=True)]
        affine = np.diag([*size, 1.0])
        affine[:3, 3] = np.add(first, (0, 0, self._middle_mm))
        return affine

    def describe(self, slice_axis: int) -> str:
        """What this is and how train and test are kept apart, for reports."""
        slabs = self.slabs(slice_axis)
        ((first, end),) = slabs["test"]
        left_out = f"{self.gap} slice{'' if self.gap == 1 else 's'}"
        train = " and ".join(f"{start} to {stop - 1}" for start, stop in slabs["train"]) or "none"
        return (
            f"ISMRM/NIST system phantom, {self.array} array{'s' if self.array == 'all' else ''} in water, "
            f"{' x '.join(map(str, self.shape))} voxels, slices of {self.slice_thickness_mm:g} mm, gaps of "
            f"{self.gap_mm:g} mm; one object, split along axis {slice_axis} (first slice is 0): test {first} to "
            f"{end - 1}, which hold the spheres, train {train}, water alone, {left_out} left out on either side"
        )

    def slabs(self, slice_axis: int) -> dict[Split, tuple[Slab, ...]]:
        """First slice and the one after the last of every slab, by split; train may have none."""
        check_slice_axis(slice_axis, 3)
        middles = [sphere.centre_mm[slice_axis] for sphere in self.spheres]
        radius = self.outer_diameter_mm / 2
        edges = self._edges()[slice_axis]
        low, high = (edges[::2], edges[1::2]) if slice_axis == 2 else (edges[:-1], edges[1:])
        held = np.flatnonzero((low < max(middles) + radius) & (high > min(middles) - radius))
        if len(held) == 0:
            raise InputError(f"phantom.centre_mm: no slice along axis {slice_axis} holds a sphere; move or add slices")
        first, end = int(held[0]), int(held[-1]) + 1
        slabs = ((0, first - self.gap), (end + self.gap, len(low)))
        others = tuple(axis for axis in range(3) if axis != slice_axis)
        body = np.asarray(np.any(tissue_mask(_volume(self, slice_axis)), axis=others))
        train = tuple((start, stop) for start, stop in slabs if start < stop and body[start:stop].any())
        return {"train": train, "test": ((first, end),)}

    def load(self, split: Split, slice_axis: int) -> VolumePhantom:
        """Compute one split.

        Raises: InputError if the slices miss a sphere, or leave no water for train.
        """
        return _load(self, split, slice_axis)

    def fractions(self) -> Float[np.ndarray, "t u v w"]:
        """Share of each voxel that each sphere and the water fill; the rest is plastic or air [1]."""
        return _filled(self, self._edges())

    def rois(self, share: float = 0.7) -> UInt8[np.ndarray, "u v w"]:
        """A region in every sphere: 1 + index in `tissues`; 0 elsewhere.

        A region holds the voxels that lie wholly in the inner part of a sphere, so that nothing of its edge is in them.
        It is set by the geometry alone, before anything is fitted.

        Args:
            share: of the inner radius [1].
        Raises: ValueError if a sphere has no such voxel.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        edges = self._edges()
        regions = np.zeros(self.shape, dtype=np.uint8)
        for t, sphere in enumerate(self.spheres):
            inside = wholly_inside(edges, sphere.centre_mm, share * self.inner_diameter_mm / 2)
            if not inside.any():
                raise ValueError(
                    f"share: no voxel lies wholly in the inner {share:g} of {sphere.name}; take smaller voxels, "
                    "thinner slices or more of them, or a larger share"
                )
            regions[inside] = 1 + t
        return regions

    @property
    def _middle_mm(self) -> float:
        if self.centre_mm is not None:
            return float(self.centre_mm)
        return PLANE_MM["t2" if self.array == "all" else self.array]

    def _edges(self) -> Edges:
        in_plane = ((np.arange(n + 1) - n / 2) * s for n, s in zip(self.matrix, self.voxel_mm, strict=True))
        middles = self._middle_mm + (np.arange(self.shape[2]) - (self.shape[2] - 1) / 2) * self.step_mm
        half = self.slice_thickness_mm / 2
        return (*in_plane, np.stack((middles - half, middles + half), axis=1).ravel())


def _filled(spec: SystemPhantom, edges: Edges) -> Float[np.ndarray, "t u v w"]:
    """Share of every tissue: the balls of solution, and the body less the outer balls."""
    water = ball_share(edges, (0.0, 0.0, 0.0), BODY_RADIUS_MM)
    filled = np.zeros((len(spec.tissues), *water.shape))
    for t, sphere in enumerate(spec.spheres):
        filled[t] = ball_share(edges, sphere.centre_mm, spec.inner_diameter_mm / 2)
        water -= ball_share(edges, sphere.centre_mm, spec.outer_diameter_mm / 2)
    # rounding of the integrals alone can leave -1e-10 where a sphere fills a voxel
    filled[-1] = np.maximum(water, 0)
    return filled


@lru_cache(maxsize=2)
def _volume(spec: SystemPhantom, slice_axis: int) -> np.ndarray:
    """Fractions, laid out for one slice axis; train and test share it."""
    u, v, w = spec._edges()
    # slice by slice: forty tissues in double precision would fill a small computer
    slices = (quantise(_filled(spec, (u, v, w[2 * k : 2 * k + 2])), np.uint16) for k in range(w.size // 2))
    volume = np.concatenate(list(slices), axis=3)
    half = as_fractions(volume.max(axis=(1, 2, 3))) >= 0.5
    for sphere, seen in zip(spec.spheres, half[:-1], strict=True):
        if not seen:
            raise InputError(
                f"phantom.slices: no voxel is at least half {sphere.name}, at {_millimetres(sphere)}; ask for more "
                "slices or a larger matrix, smaller voxels, or another centre_mm"
            )
    return slice_first(volume, slice_axis)


@dataclass(frozen=True, slots=True)
class SystemPhantomVolume(VolumePhantom):
    """The phantom with its regions of interest.

    Attributes:
        spec: what it was made from.
    """

    spec: SystemPhantom = field(default_factory=SystemPhantom)

    @property
    def region_names(self) -> tuple[str, ...]:
        """Names of the spheres."""
        return self.tissues[:-1]

    def regions(self, subject: int) -> UInt8[np.ndarray, "*space"]:
        """The inner .7 of every sphere, see `SystemPhantom.rois`.

        Raises: ValueError if a sphere has no voxel wholly inside.
        """
        assert subject == 0
        return self.spec.rois()


@lru_cache(maxsize=4)
def _load(spec: SystemPhantom, split: Split, slice_axis: int) -> VolumePhantom:
    slabs = spec.slabs(slice_axis)
    if not slabs[split]:
        raise InputError(
            f"phantom.gap: the slices along axis {slice_axis} hold no water beyond the spheres to train on; ask for "
            "split: test, a smaller gap, or more slices"
        )
    return SystemPhantomVolume(
        tissues=spec.tissues,
        spacing_mm=(float(spec.voxel_mm[0]), float(spec.voxel_mm[1]), spec.step_mm),
        volumes=(_volume(spec, slice_axis),),
        slabs=(slabs[split],),
        slice_axis=slice_axis,
        ids=(0,),
        description=spec.describe(slice_axis),
        affine=spec.affine,
        spec=spec,
    )


def _millimetres(sphere: Sphere) -> str:
    return f"({', '.join(f'{x:g}' for x in np.round(sphere.centre_mm, 1))}) mm"
