"""Organs that move between the images of a series: the stomach, the bowel, the heart between two breath-holds.

Image k sees the anatomy f moved by the displacement u_k, which carries the organ along and falls off around it:

    f_k(r) = f(r - u_k(r)),   u_k(r) = w(r - u_k(r)) d_k,   w(r) = exp(-D(r)^2 / 2 fall_mm^2),

D the distance from the organ (0 inside it), d_k normal along every axis, cut at +-2.5 SD. w is that of the place which
tissue comes from, so that the organ moves as one; u_k is found by repeating its equation. The first image is not moved:
labels, maps and whatever is fitted refer to it. Shares are interpolated linearly, so that edges blur by up to half a
voxel where they move. Variation within a tissue stays where it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

import numpy as np
from jaxtyping import Float

from qsim.distributions import Normal, Truncated
from qsim.errors import InputError
from qsim.values import value

_CUT = 2.5
# of the equation of u: every one brings it closer by the slope of w times the shift, .9 at most
_REPEATS = 6
# of shares [1]
_STEP = 2.0**-7
# the steepest slope of w, at D = fall_mm, times fall_mm
_STEEPEST = 0.6066


@dataclass(frozen=True, slots=True)
class Moved:
    """What was drawn for one sample.

    Attributes:
        shifts_mm: of the organ in every image, along the axes of the patch [mm].
    """

    shifts_mm: Float[np.ndarray, "n axis"]

    def as_json(self) -> Mapping[str, object]:
        """As JSON holds it."""
        return {"kind": "organ_motion", "shifts_mm": self.shifts_mm.tolist()}


@value
class OrganMotion:
    """Some tissues lie elsewhere in every image but the first.

    Attributes:
        tissues: of the organ; it moves as one.
        sd_mm: SD of its shift along each axis of the patch [mm].
        fall_mm: length over which the motion falls off around it; at least 3 SD, or neighbours would fold over [mm].
    Source: huang2022, section 3.1: motion of the stomach. The SD is to be sourced.
    """

    kind: Literal["organ_motion"] = "organ_motion"
    tissues: tuple[str, ...]
    sd_mm: float
    fall_mm: float = 20.0

    def __post_init__(self) -> None:
        if not self.tissues:
            raise ValueError("tissues is empty; name those that move")
        if len(set(self.tissues)) < len(self.tissues):
            raise ValueError(f"tissues: a name occurs twice in {', '.join(self.tissues)}")
        if not (isfinite(self.sd_mm) and self.sd_mm >= 0):
            raise ValueError(f"sd_mm must be at least 0 mm, got {self.sd_mm}")
        if not (isfinite(self.fall_mm) and self.fall_mm > 0):
            raise ValueError(f"fall_mm must be above 0 mm, got {self.fall_mm}")
        least = _STEEPEST * _CUT * sqrt(3) * self.sd_mm
        if not self.fall_mm >= least:
            raise ValueError(
                f"fall_mm must be at least {least:.3g} mm, or tissue moved by {_CUT:g} SD of {self.sd_mm:g} mm would "
                f"fold over its neighbours; got {self.fall_mm:g}"
            )

    def check(self, tissues: tuple[str, ...]) -> None:
        """Refuse an anatomy that has none of the tissues, or not all.

        Raises: InputError.
        """
        unknown = [name for name in self.tissues if name not in tissues]
        if unknown:
            raise InputError(f"motion.tissues: the phantom has no {', '.join(unknown)}; it has {', '.join(tissues)}")

    def draw(self, n: int, axes: int, rng: np.random.Generator) -> Moved:
        """Shift of every image; the first is 0.

        Args:
            n: images of the series.
            axes: of the patch.
            rng: the sample's own generator.
        """
        shifts = np.zeros((n, axes))
        if self.sd_mm > 0:
            normal = Truncated(of=Normal(mean=0.0, sd=self.sd_mm), low=-_CUT * self.sd_mm, high=_CUT * self.sd_mm)
            u = np.maximum(rng.random((n - 1, axes)), np.finfo(float).tiny)
            shifts[1:] = normal.ppf(u)
        return Moved(shifts)

    def weight(
        self,
        fractions: Float[np.ndarray, "t *space"],
        tissues: tuple[str, ...],
        spacing_mm: tuple[float, ...],
    ) -> Float[np.ndarray, "*space"] | None:
        """How far each voxel is carried along [1]; None if less than half of every voxel is of the organ."""
        from scipy.ndimage import distance_transform_edt  # type: ignore[attr-defined]

        organ = fractions[[tissues.index(name) for name in self.tissues]].sum(0) >= 0.5
        if not organ.any():
            return None
        distance = distance_transform_edt(~organ, sampling=spacing_mm)
        return np.exp(-(distance**2) / (2 * self.fall_mm**2))

    def move(
        self,
        fractions: Float[np.ndarray, "t *space"],
        weight: Float[np.ndarray, "*space"],
        shift_mm: Float[np.ndarray, " axis"],
        spacing_mm: tuple[float, ...],
    ) -> Float[np.ndarray, "t *space"]:
        """The anatomy as one image sees it; beyond the patch it goes on as at its edge [1]."""
        from scipy.ndimage import map_coordinates  # type: ignore[attr-defined]

        here = np.indices(weight.shape, dtype=np.float64)
        step = (np.asarray(shift_mm) / np.asarray(spacing_mm)).reshape(-1, *(1,) * weight.ndim)
        carried = weight
        for _ in range(_REPEATS):
            carried = map_coordinates(weight, here - carried * step, order=1, mode="nearest")
        there = here - carried * step
        moved = np.zeros_like(fractions)
        for tissue, share in zip(moved, fractions, strict=True):
            if share.any():
                map_coordinates(share, there, output=tissue, order=1, mode="nearest")
        # shares of one voxel are averages of shares; their rounding alone can lift the sum above 1
        total = moved.sum(0, dtype=np.float64)
        moved *= ((1 - 1e-6) / np.maximum(total, 1 - 1e-6)).astype(np.float32)
        # what changes by less than the step in which shares are stored has not changed
        same = (np.abs(moved - fractions) < _STEP).all(0)
        return np.where(same, fractions, moved)
