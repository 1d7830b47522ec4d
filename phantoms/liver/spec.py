"""The liver's cohort as a config names it."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from phantoms.base import Split, VolumePhantom, check_slice_axis, slice_first
from phantoms.drawn.cohort import Cohort, check_cohort, image_affine, subject_rng
from phantoms.drawn.painting import Canvas, frame_of, grid
from phantoms.drawn.painting import planes as planes_of
from phantoms.liver.anatomy import paint_plane
from phantoms.liver.lesions import Lesion, draw_lesion
from phantoms.liver.plane import Plane
from phantoms.liver.subject import KIND, draw_subject
from qsim.distributions import AnyDistribution, HalfNormal, Truncated, draw
from qsim.errors import InputError
from qsim.values import value

TISSUES = (
    "liver",
    "fibrotic_liver",
    "lesion",
    "liver_fat",
    "liver_vessel",
    "bile",
    "stomach",
    "stomach_fluid",
    "spleen",
    "kidney",
    "muscle",
    "fat",
    "marrow",
    "csf",
    "aorta",
)
# middles of the lesions, from the middle slice at most [mm]: near enough for the default slices to meet all of them
_LESIONS_WITHIN_MM = 10.0
# how far the region of interest stays away from edges: the larger of both
_ROI_MM, _ROI_VOXELS = 3.0, 2.0
_LARGEST_LESION_MM = 50.0


@dataclass(frozen=True, slots=True)
class LiverVolumes(VolumePhantom):
    """A split of the cohort, with what its geometry knows.

    Attributes:
        fibrotic: numbers of the subjects of this split whose liver is fibrotic.
        rois: of each subject, in the order of `ids`.
    """

    fibrotic: tuple[int, ...] = ()
    rois: tuple[Bool[np.ndarray, "y x z"], ...] = ()

    @property
    def region_names(self) -> tuple[str, ...]:
        """What region 1 is."""
        return ("parenchyma of the right lobe",)

    def regions(self, subject: int) -> UInt8[np.ndarray, "*space"]:
        """Region of interest of a subject, as `roi` has it: 1, elsewhere 0.

        Args:
            subject: as in `Crop`.
        Raises: as `roi`.
        """
        return self._of(subject).astype(np.uint8)

    def _of(self, subject: int) -> Bool[np.ndarray, "y x z"]:
        if subject not in self.ids:
            raise ValueError(f"subject: {subject} is not of this split, which has {self.ids[0]} to {self.ids[-1]}")
        whole = self.rois[self.ids.index(subject)]
        if not whole.any():
            in_plane = [s for a, s in enumerate(self.spacing_mm) if a != 2]
            raise InputError(
                f"phantom.voxel_mm: subject {subject} has no voxel of the right lobe that lies "
                f"{_roi_mm((in_plane[0], in_plane[1])):.3g} mm from everything else, so that its region of interest is "
                "empty; ask for smaller voxels, fewer or smaller lesions, or slices that meet the liver"
            )
        return whole

    def roi(self, subject: int, origin: tuple[int, ...], patch: tuple[int, ...]) -> Bool[np.ndarray, "*space"]:
        """Parenchyma of the right lobe, away from its edge, vessels, ducts and lesions; set by the geometry alone.

        Args:
            subject, origin: as a `Crop`, and the arrays of a data set, have them.
            patch: extent in voxels; two numbers for a slice.
        Raises: ValueError if the split has no such subject or the patch does not lie in its volume; InputError if the
            subject has no such voxel at all.
        """
        whole = self._of(subject)
        block = patch
        if len(patch) == len(origin) - 1:
            block = (*patch[: self.slice_axis], 1, *patch[self.slice_axis :])
        if len(origin) != 3 or len(block) != 3:
            raise ValueError(f"patch: got {patch} at {origin}; wanted two or three numbers at three")
        if not all(o >= 0 and n >= 1 and o + n <= size for o, n, size in zip(origin, block, whole.shape, strict=True)):
            raise ValueError(f"patch: {patch} at {origin} does not lie in a volume of {whole.shape}")
        here = whole[tuple(slice(o, o + n) for o, n in zip(origin, block, strict=True))]
        return here.reshape(patch).copy()


@value
class Liver:
    """Axial slices of the upper abdomen of drawn subjects, at the level of the liver's hilum.

    Axes of a volume: 0 from front to back, 1 from the patient's right to the left (as an image is looked at: the liver
    on the low side), 2 from the lower to the upper slices. The middle of the slices lies in the middle of the volume;
    the share of a tissue is the mean over planes through the thickness. What a subject looks like depends on the seed
    and its number alone, not on the number of subjects, slices or voxels; which subjects are fibrotic depends on the
    numbers of subjects too, for their share is exact. The last `test_subjects` subjects are the test split.

    Attributes:
        subjects: how many.
        slices: of each subject.
        test_subjects: how many are held out; 13 of 52 are a fold of four.
        seed: of all draws.
        matrix: voxels along y and x.
        voxel_mm: their size [mm].
        slice_thickness_mm: [mm].
        gap_mm: between slices; 3 makes 10 mm from slice to slice, which the paper does not state [mm].
        fibrosis_share: share of the subjects whose whole liver is of fibrotic_liver: round(share subjects) of them,
            spread over train and test as evenly as whole numbers allow [1].
        lesions: least and most focal lesions per subject; all numbers between are as likely. Their middles lie within
            10 mm of the middle slice and within the stack; one without room for its diameter is made smaller, or left
            out where the least has none: the description says how many.
        lesion_diameter_mm: shortest and longest mean diameter [mm].
        fat_fraction: share of fat in the parenchyma of a subject. The default starts at the 5 % that make a liver
            fatty and has a median of 8.4 %: 68 % of the subjects stay below 10 %, 95 % below 15 % [1].
        variation: of the anatomy, relative to that of `phantoms.liver.numbers`; 0: all subjects are alike [1].
        planes: drawn through the thickness of a slice.
    Source: subjects, slices, voxels, thickness: huang2022, section 3.1. Share of fibrosis: assumed. Fat: above 5.56 %
        is steatosis, Szczepaniak et al. 2005, doi:10.1152/ajpendo.00064.2004, from memory; its spread here is assumed.
    """

    kind: Literal["liver"] = "liver"
    subjects: int = 52
    slices: int = 3
    test_subjects: int = 13
    seed: int = 0
    matrix: tuple[int, int] = (256, 256)
    voxel_mm: tuple[float, float] = (1.5, 1.5)
    slice_thickness_mm: float = 7.0
    gap_mm: float = 3.0
    fibrosis_share: float = 0.2
    lesions: tuple[int, int] = (0, 2)
    lesion_diameter_mm: tuple[float, float] = (10.0, 30.0)
    fat_fraction: AnyDistribution = Truncated(of=HalfNormal(scale=0.05, origin=0.05), high=0.25)
    variation: float = 1.0
    planes: int = 3

    def __post_init__(self) -> None:
        check_cohort(self.subjects, self.test_subjects, self.seed)
        for name, least in (("slices", self.slices), ("planes", self.planes), ("matrix", min(self.matrix))):
            if least < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, lengths in (
            ("voxel_mm", self.voxel_mm),
            ("slice_thickness_mm", (self.slice_thickness_mm,)),
            ("lesion_diameter_mm", self.lesion_diameter_mm),
        ):
            if not all(isfinite(length) and length > 0 for length in lengths):
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not (isfinite(self.gap_mm) and self.gap_mm >= 0):
            raise ValueError(f"gap_mm must be at least 0 and finite, got {self.gap_mm}")
        if not 0 <= self.fibrosis_share <= 1:
            raise ValueError(f"fibrosis_share must lie between 0 and 1, got {self.fibrosis_share}")
        if not 0 <= self.lesions[0] <= self.lesions[1]:
            raise ValueError(f"lesions: the least and the most per subject, both at least 0, got {self.lesions}")
        short, long = self.lesion_diameter_mm
        if not short <= long <= _LARGEST_LESION_MM:
            raise ValueError(
                f"lesion_diameter_mm: the shortest and the longest, at most {_LARGEST_LESION_MM:g}, got "
                f"{self.lesion_diameter_mm}"
            )
        low, high = self.fat_fraction.support
        if not 0 <= low <= high < 1:
            raise ValueError(
                f"fat_fraction must stay within 0 and below 1, but its distribution reaches {low:g} to {high:g}; "
                "truncate it: {kind: truncated, of: {...}, low: ..., high: ...}"
            )
        # beyond, outlines of the drawn organs could cross themselves
        if not 0 <= self.variation <= 1.5:
            raise ValueError(f"variation must lie between 0 and 1.5, got {self.variation}")

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues."""
        return TISSUES

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along y and x, and from slice to slice [mm]."""
        return float(self.voxel_mm[0]), float(self.voxel_mm[1]), float(self.slice_thickness_mm + self.gap_mm)

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index to the patient's right, front and head, from the middle of the volume [mm]."""
        return image_affine((*self.matrix, self.slices), self.spacing_mm)

    @property
    def fibrotic(self) -> tuple[int, ...]:
        """Numbers of the subjects whose liver is fibrotic."""
        cohort = self.cohort
        wanted = round(float(self.fibrosis_share) * self.subjects)
        test = cohort.ids("test")
        in_test = round(wanted * len(test) / self.subjects)
        rng = subject_rng(KIND, self.seed, 0, "fibrosis")
        chosen = [
            rng.permutation(ids)[:count]
            for ids, count in ((cohort.ids("train"), wanted - in_test), (test, in_test))
            if count
        ]
        return tuple(sorted(int(i) for i in np.concatenate([[], *chosen])))

    def fat(self, subject: int) -> float:
        """Share of fat in the parenchyma of a subject [1]."""
        return float(draw(self.fat_fraction, subject_rng(KIND, self.seed, subject, "fat fraction"), 1)[0])

    def describe(self) -> str:
        """What this is and how train and test are kept apart, for reports."""
        return self.cohort.describe()

    def load(self, split: Split, slice_axis: int = 2) -> LiverVolumes:
        """Draw one split.

        Raises: InputError if no subject belongs to it, or the axis does not exist.
        """
        check_slice_axis(slice_axis, 3)
        return _load(self, split, slice_axis)

    def drawn(self, subject: int) -> tuple[Float[np.ndarray, "t y x z"], Bool[np.ndarray, "y x z"]]:
        """Shares of the tissues of one subject, single precision [1], and its region of interest."""
        cast = draw_subject(self.seed, subject, float(self.variation))
        level = cast.numbers["place.z"]
        fat = self.fat(subject)
        name = "fibrotic_liver" if subject in self.fibrotic else "liver"
        parenchyma = ((name, 1 - fat), ("liver_fat", fat))
        lesions = self.lesions_of(subject)
        voxel_mm = float(self.voxel_mm[0]), float(self.voxel_mm[1])
        frame = frame_of(*grid(self.matrix, voxel_mm), voxel_mm)
        shares = np.empty((self.slices, len(TISSUES), *self.matrix), dtype=np.float32)
        rois = np.empty((self.slices, *self.matrix), dtype=bool)
        for k in range(self.slices):
            middle = (k - (self.slices - 1) / 2) * self.spacing_mm[2]
            canvas = Canvas(TISSUES, self.matrix, self.planes)
            lobe = np.zeros(self.matrix)
            for z in planes_of(middle, float(self.slice_thickness_mm), self.planes):
                lobe += paint_plane(canvas, frame, Plane(cast, level + float(z)), parenchyma, lesions) / self.planes
            shares[k], rois[k] = canvas.shares, _away(lobe, self.voxel_mm)
        return np.moveaxis(shares, 0, -1), np.moveaxis(rois, 0, -1)

    def lesions_of(self, subject: int) -> tuple[Lesion, ...]:
        """Focal lesions of a subject, in the image; z is the level in the subject [mm].

        One that has no room at the diameter drawn is as large as there is room for; one without room at the least
        diameter is left out.
        """
        return tuple(lesion for lesion in self._tried(subject) if lesion is not None)

    def lesions_left_out(self, subject: int) -> int:
        """How many lesions of a subject found no room."""
        return sum(lesion is None for lesion in self._tried(subject))

    @property
    def lesions_within_mm(self) -> float:
        """How far the middles of lesions lie from the middle slice at most: 10 mm, less in a thinner stack [mm]."""
        half = ((self.slices - 1) * self.spacing_mm[2] + float(self.slice_thickness_mm)) / 2
        return min(_LESIONS_WITHIN_MM, half)

    def _tried(self, subject: int) -> list[Lesion | None]:
        rng = subject_rng(KIND, self.seed, subject, "lesions")
        count = int(rng.integers(self.lesions[0], self.lesions[1] + 1))
        cast = draw_subject(self.seed, subject, float(self.variation))
        low, high = self.lesion_diameter_mm
        return [draw_lesion(cast, rng, self.lesions_within_mm, (low / 2, high / 2)) for _ in range(count)]

    @property
    def cohort(self) -> Cohort:
        """The subjects and how train and test are kept apart."""
        rows, columns = self.matrix
        return Cohort(
            subjects=self.subjects,
            test_subjects=self.test_subjects,
            tissues=TISSUES,
            spacing_mm=self.spacing_mm,
            affine=self.affine,
            what=(
                f"parametric livers, {self.slices} slices of {rows} x {columns} voxels and "
                f"{self.slice_thickness_mm:g} mm, gaps of {self.gap_mm:g} mm, "
                f"{round(float(self.fibrosis_share) * self.subjects)} of {self.subjects} fibrotic, seed {self.seed}"
            ),
            render=lambda subject: self.drawn(subject)[0],
        )


def _away(right: Float[np.ndarray, "y x"], voxel_mm: tuple[float, float]) -> Bool[np.ndarray, "y x"]:
    """Voxels that are wholly parenchyma of the right lobe, and far enough from any that is not."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[attr-defined]

    whole = np.pad(right >= 1 - 1e-9, 1)
    # distances run to the middles of voxels: half a voxel further than to the edge
    away = distance_transform_edt(whole, sampling=voxel_mm)[1:-1, 1:-1]
    return np.asarray(away >= _roi_mm(voxel_mm) + max(voxel_mm) / 2)


def _roi_mm(voxel_mm: tuple[float, float]) -> float:
    """How far the region of interest stays away from all else [mm]."""
    return float(max(_ROI_MM, _ROI_VOXELS * max(voxel_mm)))


@lru_cache(maxsize=4)
def _load(spec: Liver, split: Split, slice_axis: int) -> LiverVolumes:
    cohort = spec.cohort
    rois: list[Bool[np.ndarray, "y x z"]] = []

    def render(subject: int) -> Float[np.ndarray, "t y x z"]:
        shares, roi = spec.drawn(subject)
        rois.append(slice_first(roi[None], slice_axis)[0])
        return shares

    loaded = replace(cohort, render=render).load(split, slice_axis, LiverVolumes)
    left_out = sum(spec.lesions_left_out(subject) for subject in loaded.ids)
    said = f"; {left_out} lesions found no room and were left out" if left_out else ""
    return replace(
        loaded,
        description=loaded.description + said,
        fibrotic=tuple(i for i in spec.fibrotic if i in loaded.ids),
        rois=tuple(rois),
    )
