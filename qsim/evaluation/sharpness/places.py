"""Where profiles across the boundary of two tissues lie: decided by the labels alone.

A place is kept where the boundary (see `boundaries`) is straight and both tissues are thick, and where a smoothing 1.5
times as wide finds the same normal: a boundary that is nearly along the voxels has a step here and there, which a
narrow smoothing takes for a turn. The direction is that of the wide one. The maps that are compared have no say in it:
a method that blurs, or a noisy one, is measured at the same places as its opponents.
"""

from dataclasses import dataclass, replace
from math import cos, isfinite, radians

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from qsim.evaluation.sharpness.boundaries import WIDER, Points, at, faces_between, normals, project, signed_distance
from qsim.evaluation.sharpness.profiles import Profile

# a boundary drawn through voxels is unsure by so much: labels nearer to it than this do not count [voxels]
_UNSURE = 0.75
# places nearer to the border of the image have no sure direction [SD of the second smoothing]
_BORDER = 2.0
# a distance to nothing [mm]
_NOWHERE = 1e9
# places looked at together, so that a whole brain stops when it has enough
_BATCH = 4096
# samples per smallest voxel size
_PER_VOXEL = 4

_REASONS = ("off the boundary", "too curved", "of no sure direction", "near the border of the image", "too thin")


@dataclass(frozen=True, slots=True)
class _Tissue:
    """What decides where a profile ends.

    Attributes:
        labels: of the image.
        sides: the labels inside and outside.
        third: distance to the nearest voxel of any other label [mm].
        clear_mm: least such distance of a sample [mm].
    """

    labels: UInt8[np.ndarray, "*space"]
    sides: tuple[int, int]
    third: Float[np.ndarray, "*space"]
    clear_mm: float


def place_profiles(
    labels: UInt8[np.ndarray, "*space"],
    inside: int,
    outside: int,
    n: int,
    length_mm: float,
    spacing_mm: tuple[float, ...],
    rng: np.random.Generator,
    *,
    apart_mm: float | None = None,
    least_radius_mm: float = 5.0,
    thick: float = 0.6,
    clear: float = 1.5,
    agree_deg: float = 2.0,
    smooth: float = 2.0,
) -> tuple[Profile, ...]:
    """Up to `n` profiles perpendicular to the boundary of two tissues, at random places that are fit for it.

    A profile ends where its tissue ends (half a voxel before it, so that no sample holds the next tissue) or a third
    one is near, at most half its length from the boundary. A place is fit where the longest line lies inside the image
    (and the place 6 voxels from its border, with `smooth` 2), the radius of curvature of the boundary is at least
    `least_radius_mm`, its direction is sure, and both sides reach over a share `thick` of half the length. Labels of
    1 mm know a direction to 0.4 degrees (median; 95 % within 1.9), which changes no width by 0.1 %.

    Args:
        labels: (y, x) or (z, y, x); profiles of a volume point in any direction: `place_in_slices` keeps them in the
            slices, as thick or few ones need.
        inside, outside: labels of the two tissues.
        n: wanted; the result is shorter where the boundary has fewer fit places.
        length_mm: of a profile that no third tissue cuts short [mm].
        spacing_mm: voxel size along each axis [mm].
        apart_mm: least distance between two centres [mm]; None: `length_mm`.
        least_radius_mm: of curvature [mm]; 0: any.
        thick: share of half the length that each tissue must fill [1].
        clear: a profile ends where the centre of a voxel of a third label is nearer than this, ahead or beside it, in
            units of the smallest voxel size [1]. Beside grey matter lies CSF, whose T1 is three times as long: seen
            through the blur of a map, it bends the upper level of the sigmoid.
        agree_deg: most that the normals of the two smoothings may differ [degrees].
        smooth: SD of the narrow Gaussian on the signed distance, in units of the voxel size along each axis [1].

    Raises: ValueError if there is no fit place, with the reasons and their numbers.
    """
    _check(
        labels, inside, outside, n, length_mm, spacing_mm, apart_mm, least_radius_mm, thick, clear, agree_deg, smooth
    )
    spacing = np.array(spacing_mm)
    step = float(spacing.min()) / _PER_VOXEL
    far = length_mm if apart_mm is None else apart_mm
    faces = faces_between(labels, inside, outside)
    if not len(faces):
        raise ValueError(f"labels: no voxel of label {inside} lies beside one of label {outside}")
    field = signed_distance(labels, inside, outside, spacing, smooth)
    tissue = _Tissue(labels, (inside, outside), _third(labels, inside, outside, spacing), clear * float(spacing.min()))
    found: list[Profile] = []
    centres = np.empty((0, labels.ndim))
    lost = dict.fromkeys(_REASONS, 0)
    order = rng.permutation(len(faces))
    for first in range(0, len(faces), _BATCH):
        places, narrow, near = project(field, faces[order[first : first + _BATCH]], spacing)
        directions = normals(field.wide, places)
        before, after, whole = _runs(tissue, places, directions, spacing, length_mm / 2, step)
        # the smoothing knows nothing of what the boundary does outside the image
        edge = np.minimum(places, np.array(labels.shape) - 1 - places)
        whole &= (edge >= _BORDER * WIDER * smooth)[:, np.array(labels.shape) > 1].all(axis=1)
        straight = at(field.curvature, places) * least_radius_mm <= 1
        sure = (narrow * directions).sum(axis=1) >= cos(radians(agree_deg)) - 1e-12
        reach = np.minimum(before, after) * step >= thick * length_mm / 2 * (1 - 1e-9)
        kept = np.ones(len(places), dtype=bool)
        for reason, passed in zip(_REASONS, (near, straight, sure, whole, reach), strict=True):
            lost[reason] += int((kept & ~passed).sum())
            kept &= passed
        for i in np.flatnonzero(kept):
            centre = places[i] * spacing
            if (((centres - centre) ** 2).sum(axis=1) < far**2).any():
                continue
            centres = np.concatenate([centres, centre[None]])
            found.append(
                Profile(
                    centre=tuple(float(v) for v in places[i]),
                    direction=tuple(float(v) for v in directions[i]),
                    spacing_mm=tuple(float(v) for v in spacing_mm),
                    step_mm=step,
                    before=int(before[i]),
                    after=int(after[i]),
                )
            )
            if len(found) == n:
                return tuple(found)
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items() if count)
        raise ValueError(
            f"labels: none of the {len(faces)} places between label {inside} and label {outside} is fit for a profile "
            f"of {length_mm:g} mm ({reasons}); take a shorter length_mm, a smaller thick or least_radius_mm"
        )
    return tuple(found)


def place_in_slices(
    labels: UInt8[np.ndarray, "z y x"],
    inside: int,
    outside: int,
    n: int,
    length_mm: float,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    apart_mm: float | None = None,
    least_radius_mm: float = 5.0,
    thick: float = 0.6,
    clear: float = 1.5,
    agree_deg: float = 2.0,
    smooth: float = 2.0,
) -> tuple[Profile, ...]:
    """Up to `n` profiles of a volume that lie in its slices, as those of the paper, over all slices at random.

    Each slice is an image of its own for `place_profiles`, whose arguments these are; `apart_mm` holds between slices
    too. A boundary that is oblique to a thick slice is blurred by it, for every method alike.

    Raises: ValueError if no slice has a fit place.
    """
    _check(
        labels, inside, outside, n, length_mm, spacing_mm, apart_mm, least_radius_mm, thick, clear, agree_deg, smooth
    )
    far = length_mm if apart_mm is None else apart_mm
    pool: list[Profile] = []
    for z, image in enumerate(labels):
        if not ((image == inside).any() and (image == outside).any()):
            continue
        try:
            found = place_profiles(
                image,
                inside,
                outside,
                n,
                length_mm,
                spacing_mm[1:],
                rng,
                apart_mm=far,
                least_radius_mm=least_radius_mm,
                thick=thick,
                clear=clear,
                agree_deg=agree_deg,
                smooth=smooth,
            )
        except ValueError:
            # no fit place in this slice: others may have some
            continue
        pool += [
            replace(p, centre=(float(z), *p.centre), direction=(0.0, *p.direction), spacing_mm=spacing_mm)
            for p in found
        ]
    if not pool:
        raise ValueError(
            f"labels: no slice has a fit place between label {inside} and label {outside} for a profile of "
            f"{length_mm:g} mm; take a shorter length_mm, a smaller thick or least_radius_mm"
        )
    kept: list[Profile] = []
    centres = np.empty((0, 3))
    for i in rng.permutation(len(pool)):
        centre = np.array(pool[i].centre) * np.array(spacing_mm)
        if not (((centres - centre) ** 2).sum(axis=1) < far**2).any():
            kept.append(pool[i])
            centres = np.concatenate([centres, centre[None]])
        if len(kept) == n:
            break
    return tuple(kept)


def _check(
    labels: UInt8[np.ndarray, "*space"],
    inside: int,
    outside: int,
    n: int,
    length_mm: float,
    spacing_mm: tuple[float, ...],
    apart_mm: float | None,
    least_radius_mm: float,
    thick: float,
    clear: float,
    agree_deg: float,
    smooth: float,
) -> None:
    if labels.dtype != np.uint8:
        raise ValueError(f"labels must be uint8, got {labels.dtype}")
    if labels.ndim not in (2, 3):
        raise ValueError(f"labels must be (y, x) or (z, y, x), got {labels.ndim} axes")
    if len(spacing_mm) != labels.ndim or not all(isfinite(h) and h > 0 for h in spacing_mm):
        raise ValueError(f"spacing_mm must hold {labels.ndim} positive lengths, one per axis, got {spacing_mm}")
    if inside == outside:
        raise ValueError(f"outside must be another label than inside, both are {inside}")
    for name, label in (("inside", inside), ("outside", outside)):
        if not (labels == label).any():
            raise ValueError(f"{name}: labels holds no voxel of label {label}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not (isfinite(length_mm) and length_mm >= 4 * min(spacing_mm)):
        raise ValueError(f"length_mm must be at least 4 voxels ({4 * min(spacing_mm):g} mm), got {length_mm}")
    if not 0 < thick <= 1:
        raise ValueError(f"thick must lie above 0 and not above 1, got {thick}")
    for name, number in (("apart_mm", apart_mm), ("least_radius_mm", least_radius_mm), ("clear", clear)):
        if number is not None and not (isfinite(number) and number >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {number}")
    if not 0 < agree_deg <= 180:
        raise ValueError(f"agree_deg must lie above 0 and not above 180, got {agree_deg}")
    if not (isfinite(smooth) and smooth > 0):
        raise ValueError(f"smooth must be finite and above 0, got {smooth}")


def _third(
    labels: UInt8[np.ndarray, "*space"], inside: int, outside: int, spacing: Float[np.ndarray, " axis"]
) -> Float[np.ndarray, "*space"]:
    """Distance to the nearest voxel of neither label [mm]; infinite (as a large number) if there is none."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[attr-defined]

    pair = (labels == inside) | (labels == outside)
    if pair.all():
        return np.full(labels.shape, _NOWHERE)
    return distance_transform_edt(pair, sampling=[float(h) for h in spacing])


def _runs(
    tissue: _Tissue,
    places: Points,
    directions: Points,
    spacing: Float[np.ndarray, " axis"],
    half: float,
    step: float,
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Bool[np.ndarray, " p"]]:
    """Samples on either side before the tissue ends, and whether the longest line stays in the image."""
    voxel = np.sqrt(((directions * spacing) ** 2).sum(axis=1))
    last = np.array(tissue.labels.shape) - 1
    most = int(half / step * (1 + 1e-9))
    # half a voxel more, at which a label beyond the end would still weigh in the last sample
    beyond = int(np.ceil((half + spacing.max() / 2) / step))
    distances = step * np.arange(1, beyond + 1)
    whole = np.ones(len(places), dtype=bool)
    runs = []
    for sign, label in zip((-1, 1), tissue.sides, strict=True):
        where = places[:, None] + sign * directions[:, None] / spacing * distances[:, None]
        ends = where[:, most - 1]
        whole &= ((ends >= 0) & (ends <= last)).all(axis=1)
        # outside the image: as the voxel at its edge
        nearest = np.minimum(np.maximum(np.rint(where).astype(int), 0), last)
        good = tissue.labels[tuple(np.moveaxis(nearest, -1, 0))] == label
        good |= distances < _UNSURE * voxel[:, None]
        third = at(tissue.third, where.reshape(-1, where.shape[-1])).reshape(good.shape)
        own = np.floor((_first_bad(good) * step - voxel / 2) / step * (1 + 1e-9)).astype(int)
        clear = _first_bad(third >= tissue.clear_mm * (1 - 1e-9))
        runs.append(np.minimum(np.maximum(np.minimum(own, clear), 0), most))
    return runs[0], runs[1], whole


def _first_bad(good: Bool[np.ndarray, "p s"]) -> Int[np.ndarray, " p"]:
    """Samples before the first that is not good."""
    return np.where(good.all(axis=1), good.shape[1], np.argmin(good, axis=1))
