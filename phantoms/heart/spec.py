"""Hearts as a config names them, and the numbers of the two domains: all of them are in this module."""

from functools import lru_cache
from math import isfinite, pi
from typing import Literal

import numpy as np
from jaxtyping import Float

from phantoms.base import Split
from phantoms.drawn.cohort import Cohort, check_cohort, image_affine
from phantoms.heart.maps import HeartMaps, label_files
from phantoms.heart.mask import HeartVolumes
from phantoms.heart.render import render
from phantoms.heart.subject import TISSUES, Numbers, Subject, draw_subject
from qsim.distributions import AnyDistribution, Constant, Normal, Truncated, Uniform
from qsim.values import value


def _about(mean: float, sd: float, low: float, high: float) -> Truncated:
    return Truncated(of=Normal(mean=mean, sd=sd), low=low, high=high)


# fields that must stay above 0; those that may be 0; and those that may be anything
_POSITIVE = (
    *("lv_radius_mm", "wall_mm", "apex_mm", "papillary_mm", "rv_size_mm", "rv_wall_mm", "rv_span"),
    *("thorax_y_mm", "thorax_x_mm", "chest_wall_mm", "aorta_mm", "scar_transmural", "scar_angle"),
)
_NOT_NEGATIVE = (
    *("wall_unevenness", "eccentricity", "moderator_band_mm", "epicardial_fat_mm"),
    *("fat_mm", "chest_gap_mm", "diaphragm_mm"),
)
_FREE = ("level_mm", "rv_angle", "centre_y_mm", "centre_x_mm", "thorax_shift_mm", "thorax_tilt")
# largest value that leaves a drawing whole: where outlines would cross, or an angle would meet itself
_LARGEST = {
    "wall_unevenness": 0.4,
    "eccentricity": 0.3,
    "rv_span": 1.5,
    "scar_transmural": 1.0,
    "scar_angle": 2 * pi,
}
# of the endocardium's half axis that slices may reach, from mid-ventricle towards the apex [1]
_REACH = 0.9


@value
class Heart:
    """Short-axis slices of hearts with their surroundings; the fields are the domain.

    Axes (y, x, slice), as the image is looked at: up is the first row, slices go from base to apex. Every number below
    is drawn for each subject from its own stream. The defaults are the domain of `clinical_t1`; another domain is other
    numbers. Every quantity is a distribution; {kind: constant} gives all subjects the same.

    With `labels`, the outlines of both ventricles come from label maps, 1 LV blood, 2 RV blood, 3 LV myocardium, 4 RV
    myocardium; the maps then stand in for lv_radius_mm, wall_mm, wall_unevenness, eccentricity, level_mm, apex_mm,
    rv_size_mm, rv_wall_mm and rv_span. Subject i takes file i mod n, turned to its own rv_angle, and the n_slices of
    the map around its middle one; slices of a map are taken as they are, not interpolated.

    Attributes:
        subjects: how many.
        slices: of each, from base to apex.
        test_subjects: how many of the subjects, the last ones, are held out.
        seed: of the subjects.
        matrix: voxels along y and x.
        voxel_mm: [mm].
        slice_thickness_mm: [mm].
        gap_mm: between slices [mm].
        planes: drawn and averaged across the thickness of a slice.
        labels: a file, folder or pattern of label maps.
        lv_radius_mm: mean radius of the endocardium at mid-ventricle [mm].
        wall_mm: mean thickness of the left wall at mid-ventricle, along rays from the middle of the cavity [mm].
        wall_unevenness: its change around the ring, relative [1].
        eccentricity: (a - b) / (a + b) of the endocardium's half axes [1].
        level_mm: of the middle slice from mid-ventricle, towards the apex [mm].
        apex_mm: from mid-ventricle to the tip of the cavity [mm].
        papillary_muscles: how many.
        papillary_mm: their half width [mm].
        rv_size_mm: of the right cavity, septum to free wall at mid-ventricle [mm].
        rv_wall_mm: its wall [mm].
        rv_angle: direction from the left to the right ventricle, from x towards y (downwards); pi: to the left [rad].
        rv_span: half the angle under which the right ventricle clasps the left [rad].
        moderator_band_mm: thickness of the band across the right cavity; 0: none is seen [mm].
        epicardial_fat_mm: mean thickness [mm].
        centre_y_mm, centre_x_mm: middle of the left cavity from the middle of the image [mm].
        thorax_y_mm, thorax_x_mm: half axes of the inside of the chest [mm].
        chest_gap_mm: from the heart to the chest wall in front of it [mm].
        thorax_shift_mm: middle of the chest from that of the left cavity, across the line from sternum to spine: down
            for human, to the right for swine surroundings [mm].
        thorax_tilt: of the chest, from x towards y [rad].
        chest_wall_mm: muscle and ribs, around it [mm].
        fat_mm: subcutaneous, around them [mm].
        diaphragm_mm: from the lowest point of the left ventricle down to the diaphragm [mm].
        aorta_mm: radius of the descending aorta [mm].
        surroundings: how the organs are arranged: human (an oblique slice: sternum at the left, spine at the right,
            liver and stomach below), or swine (on its back: keeled sternum up, spine down, liver at the left below).
        scar_share: share of the subjects with a scar; of n subjects floor(n share + 1/2) have one [1].
        scar_transmural: share of the wall that it takes, from the endocardium, at its middle [1].
        scar_angle: that it spans [rad].
        variation: of all shapes that have no field of their own; 0: none, 1: as drawn after pictures [1].
    Source: jacobs2025 (66 series; 13 of them test, a fifth, as in its five folds); of the numbers: beside them.
    """

    kind: Literal["heart"] = "heart"
    subjects: int = 66
    slices: int = 1
    test_subjects: int = 13
    seed: int = 0
    # MOLLI: 360 mm over 256 voxels is a usual field of view; to be sourced
    matrix: tuple[int, int] = (256, 256)
    voxel_mm: tuple[float, float] = (1.4, 1.4)
    slice_thickness_mm: float = 8.0
    gap_mm: float = 0.0
    planes: int = 3
    labels: str | None = None
    # diameter 45.0 +- 3.6 mm (women), 50.2 +- 4.1 mm (men): Lang et al. 2015, doi:10.1016/j.echo.2014.10.003
    lv_radius_mm: AnyDistribution = _about(23.8, 2.3, 18.5, 29.5)
    # 5.3 +- 0.9 mm (women), 6.3 +- 1.1 mm (men), largest 7 and 8 mm, in the healthy: Kawel et al. 2012,
    # doi:10.1161/CIRCIMAGING.112.973560; 1 mm more for a clinical cohort: to be sourced
    wall_mm: AnyDistribution = _about(6.8, 1.2, 4.6, 10.5)
    wall_unevenness: AnyDistribution = Uniform(low=0.05, high=0.22)
    eccentricity: AnyDistribution = _about(0.04, 0.025, 0.0, 0.1)
    # the slices of jacobs2025 are "short-axis", not said to be the middle one; range to be sourced
    level_mm: AnyDistribution = Uniform(low=-12.0, high=16.0)
    apex_mm: AnyDistribution = _about(52.0, 4.0, 42.0, 62.0)
    papillary_muscles: int = 2
    papillary_mm: AnyDistribution = _about(4.0, 0.7, 2.5, 5.5)
    # below 35 mm in the healthy, wall below 5 mm: Lang et al. 2015
    rv_size_mm: AnyDistribution = _about(23.0, 3.5, 15.0, 33.0)
    rv_wall_mm: AnyDistribution = _about(3.2, 0.5, 2.2, 4.8)
    # to be sourced from here on, unless a source is named
    rv_angle: AnyDistribution = _about(3.40, 0.20, 2.9, 3.9)
    rv_span: AnyDistribution = _about(1.22, 0.07, 1.05, 1.4)
    moderator_band_mm: AnyDistribution = Constant(value=0.0)
    epicardial_fat_mm: AnyDistribution = _about(4.5, 1.5, 1.0, 9.0)
    centre_y_mm: AnyDistribution = _about(6.0, 9.0, -16.0, 28.0)
    centre_x_mm: AnyDistribution = _about(2.0, 9.0, -20.0, 24.0)
    thorax_y_mm: AnyDistribution = _about(134.0, 8.0, 115.0, 155.0)
    thorax_x_mm: AnyDistribution = _about(106.0, 6.0, 92.0, 120.0)
    chest_gap_mm: AnyDistribution = _about(8.0, 4.0, 1.0, 20.0)
    thorax_shift_mm: AnyDistribution = _about(-12.0, 8.0, -30.0, 8.0)
    thorax_tilt: AnyDistribution = _about(-0.12, 0.08, -0.3, 0.08)
    chest_wall_mm: AnyDistribution = _about(16.0, 2.5, 11.0, 22.0)
    fat_mm: AnyDistribution = _about(16.0, 6.0, 5.0, 34.0)
    diaphragm_mm: AnyDistribution = _about(6.0, 3.0, 1.0, 15.0)
    aorta_mm: AnyDistribution = _about(11.8, 1.3, 8.5, 15.5)
    surroundings: Literal["human", "swine"] = "human"
    scar_share: float = 0.25
    scar_transmural: AnyDistribution = Uniform(low=0.35, high=1.0)
    scar_angle: AnyDistribution = Uniform(low=0.6, high=1.7)
    variation: float = 1.0

    def __post_init__(self) -> None:
        check_cohort(self.subjects, self.test_subjects, self.seed)
        if min(self.matrix) < 1:
            raise ValueError(f"matrix must be at least 1 along both axes, got {list(self.matrix)}")
        for name, lengths in (("voxel_mm", self.voxel_mm), ("slice_thickness_mm", (self.slice_thickness_mm,))):
            if not all(isfinite(length) and length > 0 for length in lengths):
                raise ValueError(f"{name} must be above 0 and finite, got {', '.join(f'{x:g}' for x in lengths)}")
        for name, count, least in (
            ("slices", self.slices, 1),
            ("planes", self.planes, 1),
            ("papillary_muscles", self.papillary_muscles, 0),
        ):
            if count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        if self.papillary_muscles > 4:
            raise ValueError(f"papillary_muscles must be at most 4, got {self.papillary_muscles}")
        if not (isfinite(self.gap_mm) and self.gap_mm >= 0):
            raise ValueError(f"gap_mm must be at least 0 and finite, got {self.gap_mm:g}")
        if not 0 <= self.scar_share <= 1:
            raise ValueError(f"scar_share must lie between 0 and 1, got {self.scar_share:g}")
        if not 0 <= self.variation <= 2:
            raise ValueError(f"variation must lie between 0 and 2, got {self.variation:g}")
        if self.labels == "":
            raise ValueError("labels is empty; name a file, a folder or a pattern, or leave it out")
        self._check_quantities()

    def _check_quantities(self) -> None:
        for name in (*_POSITIVE, *_NOT_NEGATIVE, *_FREE):
            low, high = getattr(self, name).support
            if name in _POSITIVE and not low > 0:
                raise ValueError(f"{name} must stay above 0, but its distribution reaches {low:g}; truncate it")
            if name in _NOT_NEGATIVE and not low >= 0:
                raise ValueError(f"{name} must not fall below 0, but its distribution reaches {low:g}; truncate it")
            if not (isfinite(low) and isfinite(high)):
                raise ValueError(f"{name} must have ends, but its distribution has none; truncate it")
            if high > _LARGEST.get(name, high):
                raise ValueError(f"{name} must be at most {_LARGEST[name]:.3g}, but its distribution reaches {high:g}")
        ends = {name: getattr(self, name).support for name in (*_POSITIVE, *_NOT_NEGATIVE, "level_mm")}
        if self.labels is None:
            half = ((self.slices - 1) * self.step_mm + self.slice_thickness_mm) / 2
            lowest, reach = ends["level_mm"][1] + half, _REACH * ends["apex_mm"][0]
            if lowest > reach:
                raise ValueError(
                    f"slices reach {lowest:.3g} mm below mid-ventricle, and the cavity may end at "
                    f"{reach / _REACH:.3g} mm (apex_mm); ask for fewer or thinner ones, or a lower level_mm, to stay "
                    f"above {reach:.3g} mm"
                )
            highest, base = half - ends["level_mm"][0], 1.2 * ends["apex_mm"][0]
            if highest > base:
                raise ValueError(
                    f"slices reach {highest:.3g} mm above mid-ventricle, beyond the valves; ask for fewer or thinner "
                    f"slices, or a higher level_mm, to stay below {base:.3g} mm"
                )
            if self.papillary_muscles and ends["papillary_mm"][1] > 0.4 * ends["lv_radius_mm"][0]:
                raise ValueError(
                    f"papillary_mm must be at most 0.4 of the smallest lv_radius_mm ({ends['lv_radius_mm'][0]:g}), but "
                    f"its distribution reaches {ends['papillary_mm'][1]:g}"
                )

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the tissues."""
        return TISSUES

    @property
    def step_mm(self) -> float:
        """From the middle of a slice to that of the next [mm]."""
        return float(self.slice_thickness_mm + self.gap_mm)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size [mm]."""
        return float(self.voxel_mm[0]), float(self.voxel_mm[1]), self.step_mm

    def has_scar(self, subject: int) -> bool:
        """Whether a subject has a scar: spread evenly, so that the first n subjects hold floor(n share + 1/2)."""
        before, after = (np.floor(n * self.scar_share + 0.5) for n in (subject, subject + 1))
        return bool(after > before)

    def subject(self, subject: int) -> Subject:
        """What is drawn for a subject."""
        numbers: Numbers = {name: getattr(self, name) for name in (*_POSITIVE, *_NOT_NEGATIVE, *_FREE)}
        return draw_subject(self.seed, subject, numbers, self.papillary_muscles, float(self.variation))

    def fractions(self, subject: int) -> Float[np.ndarray, "t y x z"]:
        """Fractions of one subject, in double precision [1].

        Raises: InputError naming a label map at fault.
        """
        return self._render(subject, None if self.labels is None else label_files(self.labels))

    def _render(self, subject: int, maps: HeartMaps | None) -> Float[np.ndarray, "t y x z"]:
        return render(
            self.subject(subject),
            subject,
            scarred=self.has_scar(subject),
            surroundings=self.surroundings,
            matrix=self.matrix,
            voxel_mm=(float(self.voxel_mm[0]), float(self.voxel_mm[1])),
            slices=self.slices,
            step_mm=self.step_mm,
            thickness_mm=float(self.slice_thickness_mm),
            n_planes=self.planes,
            maps=maps,
        )

    def cohort(self) -> Cohort:
        """The subjects, and which are train and test.

        Raises: InputError naming a label map at fault.
        """
        maps = None if self.labels is None else label_files(self.labels)
        size = self.spacing_mm
        scars = int(np.floor(self.subjects * self.scar_share + 0.5))
        outlines = "drawn" if maps is None else f"from {len(maps.files)} label maps, each turned"
        return Cohort(
            subjects=self.subjects,
            test_subjects=self.test_subjects,
            tissues=self.tissues,
            spacing_mm=size,
            affine=image_affine((*self.matrix, self.slices), size),
            what=(
                f"{self.subjects} hearts in short axis, {outlines}, {self.surroundings} surroundings, {scars} with a "
                f"scar, {self.slices} slice{'s' if self.slices > 1 else ''} of {' x '.join(map(str, self.matrix))} "
                f"voxels"
            ),
            render=lambda subject: self._render(subject, maps),
        )

    def load(self, split: Split, slice_axis: int) -> HeartVolumes:
        """Draw one split.

        Raises: InputError if no subject belongs to it, or a label map is at fault.
        """
        return _load(self, split, slice_axis)


@lru_cache(maxsize=4)
def _load(spec: Heart, split: Split, slice_axis: int) -> HeartVolumes:
    return spec.cohort().load(split, slice_axis, HeartVolumes)


def clinical_t1() -> Heart:
    """Domain of the clinical T1 series of jacobs2025: humans, 66 series; the defaults of `Heart`."""
    return Heart()


def preclinical_t1rho() -> Heart:
    """Domain of the pre-clinical T1rho images of jacobs2025: 15 subjects, mid-short-axis, all for testing.

    The paper does not name the species; swine are taken, as in cardiac T1rho of infarcts (Witschey et al. 2012,
    doi:10.1186/1532-429X-14-37: Yorkshire swine, infarcts of the apex or the posterolateral wall). Numbers are scaled
    to 40 kg by the cube root of weight where measured at another.
    """
    return Heart(
        subjects=15,
        test_subjects=15,
        # a field of view of 260 mm; to be sourced
        matrix=(192, 192),
        voxel_mm=(1.35, 1.35),
        # diameter 50.5 +- 4.4 mm at 60.9 kg, 43.9 at 40 kg: Meissner et al. 2024, doi:10.1038/s41598-024-52376-x;
        # 45.0 +- 4.9 mm in small-eared pigs: PMC6825397
        lv_radius_mm=_about(21.5, 2.0, 17.0, 26.0),
        # septum 8.5 +- 0.9, anterior 8.4 +- 1.3, posterior wall 7.8 +- 1.2 mm: PMC6825397
        wall_mm=_about(8.3, 0.9, 6.3, 11.0),
        wall_unevenness=Uniform(low=0.03, high=0.14),
        eccentricity=_about(0.03, 0.02, 0.0, 0.08),
        # "mid-short-axis": jacobs2025
        level_mm=Uniform(low=-4.0, high=4.0),
        apex_mm=_about(44.0, 3.0, 38.0, 52.0),
        # coarse trabeculae and a prominent moderator band: Crick et al. 1998, doi:10.1046/j.1469-7580.1998.19310105.x
        papillary_mm=_about(4.6, 0.6, 3.2, 6.0),
        moderator_band_mm=Uniform(low=2.0, high=4.5),
        # to be sourced from here on, unless a source is named
        rv_size_mm=_about(19.0, 3.0, 12.0, 27.0),
        rv_wall_mm=_about(3.6, 0.5, 2.5, 5.0),
        rv_angle=_about(4.15, 0.28, 3.5, 4.8),
        rv_span=_about(1.10, 0.06, 0.95, 1.25),
        epicardial_fat_mm=_about(2.0, 0.7, 0.5, 4.0),
        centre_y_mm=_about(-24.0, 7.0, -42.0, -8.0),
        centre_x_mm=_about(2.0, 8.0, -18.0, 20.0),
        thorax_y_mm=_about(94.0, 5.0, 82.0, 106.0),
        thorax_x_mm=_about(78.0, 5.0, 68.0, 90.0),
        chest_gap_mm=_about(6.0, 3.0, 1.0, 14.0),
        thorax_shift_mm=_about(-8.0, 5.0, -20.0, 4.0),
        thorax_tilt=_about(0.0, 0.1, -0.25, 0.25),
        chest_wall_mm=_about(16.0, 2.5, 11.0, 22.0),
        fat_mm=_about(7.0, 2.0, 3.0, 12.0),
        diaphragm_mm=_about(24.0, 6.0, 8.0, 38.0),
        # diameter 16.2 +- 1.4 mm at 60.9 kg, 14.1 at 40 kg: Meissner et al. 2024
        aorta_mm=_about(7.0, 0.6, 5.5, 8.5),
        surroundings="swine",
        scar_share=0.6,
    )
