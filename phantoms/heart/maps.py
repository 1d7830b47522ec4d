"""Edges of both ventricles from label maps.

A label map is a staircase. The signed distance is measured, on a grid twice as fine, from the level 1/2 of the
region smoothed by a Gaussian of one voxel, which moves a border of radius R inwards by 1 / (2 R) voxels only: 0.02 at
R = 25. Regions are nested (LV blood; LV; RV blood; RV), so that thin walls are not smoothed away.

Which way the x axis of a map runs is unknown to these files: an image may be the mirror image of the patient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from phantoms.brains.label_files import find_files, read_labels
from phantoms.heart.subject import Subject
from phantoms.heart.ventricles import ANGLES, Edges, Plane
from qsim.errors import InputError

FIELD = "phantom.labels"
_REGIONS = ((1,), (1, 3), (2,), (2, 4))
_FINER = 2
# kept around the heart, so that distances are true where the wall's fat is drawn [mm]
_MARGIN_MM = 24.0


@dataclass(frozen=True, slots=True)
class MapSlice:
    """One slice of a label map.

    Attributes:
        distances: signed, from the edges of LV blood, LV, RV blood and RV, on the finer grid [mm].
        centre: of the LV blood on that grid [voxels].
        step_mm: voxel size of that grid along y and x [mm].
        angle: direction from the left to the right ventricle; None: there is no right one [rad].
        outer_mm: radius of a disc of the area of the LV [mm].
    """

    distances: tuple[Plane, ...]
    centre: tuple[float, float]
    step_mm: tuple[float, float]
    angle: float | None
    outer_mm: float


@dataclass(frozen=True, slots=True)
class HeartMaps:
    """Files of label maps; subject i takes file i mod n.

    Attributes:
        files: their paths.
    """

    files: tuple[Path, ...]

    def edges(
        self, subject: Subject, number: int, slices: int, step_mm: float
    ) -> tuple[Callable[[int, int, Plane, Plane], Edges], float]:
        """Edges on points (y, x) [mm] of a slice by its number (that of a plane tells nothing); radius in the middle.

        The middle slice says where the heart's middle is and how it is turned, for all of them.

        Raises: InputError naming the file.
        """
        file = self.files[number % len(self.files)]
        spacing, held = _held(file)
        if slices > 1 and abs(step_mm - spacing) > 0.05 * spacing:
            raise InputError(
                f"phantom.gap_mm: slices lie {step_mm:g} mm apart, those of {file} {spacing:g} mm; "
                f"let slice_thickness_mm + gap_mm be {spacing:g}"
            )
        first = (len(held) - slices + 1) // 2
        if slices > len(held):
            raise InputError(
                f"phantom.slices: {slices} are asked for, and {file} has {len(held)} with LV blood and myocardium"
            )

        middle = _slice(file, held[first + slices // 2])
        if middle.angle is None:
            raise InputError(
                f"{FIELD}: slice {held[first + slices // 2]} of {file} has no RV blood (2), which tells how the heart "
                "is turned"
            )
        turn = subject["rv_angle"] - middle.angle

        def at(k: int, _: int, y: Plane, x: Plane) -> Edges:
            return _on(_slice(file, held[first + k]), middle.centre, turn, subject, y, x)

        return at, middle.outer_mm


def label_files(labels: str) -> HeartMaps:
    """Find the label maps.

    Raises: InputError if there is none.
    """
    return HeartMaps(find_files((labels,), FIELD))


@lru_cache(maxsize=32)
def _held(file: Path) -> tuple[float, tuple[int, ...]]:
    """From slice to slice [mm]; slices that hold LV blood and myocardium."""
    labels, spacing, _ = _read(file)
    held = tuple(k for k in range(labels.shape[2]) if all((labels[..., k] == wanted).any() for wanted in (1, 3)))
    if not held:
        raise InputError(f"{FIELD}: {file} has no slice with both LV blood (1) and LV myocardium (3)")
    return float(spacing[2]), held


def _read(file: Path) -> tuple[Shaped[np.ndarray, "x y z"], tuple[float, ...], Float[np.ndarray, "4 4"]]:
    labels, spacing, affine = read_labels(file, field=FIELD)
    highest = int(labels.max())
    if highest > 4:
        raise InputError(
            f"{FIELD}: {file} holds label {highest}; wanted 1 LV blood, 2 RV blood, 3 LV myocardium, 4 RV myocardium"
        )
    return labels, spacing, affine


@lru_cache(maxsize=128)
def _slice(file: Path, k: int) -> MapSlice:
    from scipy.ndimage import distance_transform_edt, gaussian_filter, zoom  # type: ignore[attr-defined]

    labels, spacing, _ = _read(file)
    # rows of an image are y
    plane, size = labels[..., k].T, (spacing[1], spacing[0])
    # one box for all slices: their grids are one
    pad = [int(np.ceil(_MARGIN_MM / s)) for s in size]
    shadow = np.asarray((labels > 0).any(axis=2)).T
    rows, columns = (np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0))
    box = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = np.pad(box, [(pad[0], pad[0]), (pad[1], pad[1])])
    fine = (size[0] / _FINER, size[1] / _FINER)
    distances = []
    for region in _REGIONS:
        smooth = gaussian_filter(np.isin(box, region).astype(float), 1.0)
        finer = zoom(smooth, _FINER, order=1, mode="nearest", grid_mode=True) > 0.5
        if not finer.any():
            if 3 in region or region == (1,):
                raise InputError(f"{FIELD}: slice {k} of {file} has too few voxels of LV blood (1)")
            # no right ventricle in this slice
            distances.append(np.full(finer.shape, _MARGIN_MM))
            continue
        # from middle to middle of voxels: the edge lies half a voxel off both
        half = 0.5 * np.sqrt(fine[0] * fine[1])
        outside, inside = (distance_transform_edt(where, sampling=fine) for where in (~finer, finer))
        distances.append(np.where(finer, half - inside, outside - half))
    blood, left, right, _ = (np.argwhere(d < 0) for d in distances)
    centre = blood.mean(axis=0)
    towards = (right.mean(axis=0) - centre) * fine if len(right) else None
    return MapSlice(
        distances=tuple(distances),
        centre=(float(centre[0]), float(centre[1])),
        step_mm=fine,
        angle=None if towards is None else float(np.arctan2(towards[0], towards[1])),
        outer_mm=float(np.sqrt(len(left) * fine[0] * fine[1] / np.pi)),
    )


def _on(held: MapSlice, centre: tuple[float, float], turn: float, subject: Subject, y: Plane, x: Plane) -> Edges:
    """Edges of a slice, turned about a point of its grid, which comes to lie where the subject has its heart."""
    from scipy.ndimage import map_coordinates  # type: ignore[attr-defined]

    cos, sin = np.cos(turn), np.sin(turn)

    def look_up(distance: Plane, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        at = [
            centre[0] + (cos * y - sin * x) / held.step_mm[0],
            centre[1] + (sin * y + cos * x) / held.step_mm[1],
        ]
        found: np.ndarray = map_coordinates(distance, at, order=1, mode="nearest")
        return found

    dy, dx = y - subject["centre_y_mm"], x - subject["centre_x_mm"]
    inner, outer, right, right_wall = (look_up(distance, dy, dx) for distance in held.distances)
    # the first crossing along each ray
    r = np.arange(0.0, 80.0, 0.5)
    along = look_up(held.distances[0], r * np.sin(ANGLES)[:, None], r * np.cos(ANGLES)[:, None])
    return Edges(
        endocardium=inner,
        epicardium=outer,
        right=right,
        right_wall=right_wall,
        radius_mm=r[np.argmax(along > 0, axis=1)],
        outer_mm=held.outer_mm,
    )
