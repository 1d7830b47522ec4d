"""Error bars of a volume that hold: fitted to images whose truth is known, none of them seen in training.

With u = sum p (1 - p) / sum p and, where asked for, the artefact variance m = sum v / sum p, the model is

    V_true = g V_pred + error,    scale of the error = V_pred exp(c0 + c1 log u + c2 log(m + m0))

Both are numbers per voxel of the predicted tissue, so the error of a volume is a part of it, whatever the size of the
image and the air around: what blocks have told holds for whole heads. (Errors of voxels on their own would shrink with
the number of voxels; those of a segmentation go together.)

g, c by maximum likelihood, Gaussian (scale: SD) or Laplace (scale: b). The half width is the scale times a factor: the
k-th smallest of |error| / scale, k = ceil((n + 1) level), of images that were left out of the fit in turn, ten parts,
an anatomy whole in one of them (images of one anatomy err alike).

Source: split conformal prediction with a scale: Lei et al. 2018, doi:10.1080/01621459.2017.1307116, section 5.2; with
parts left out in turn: Barber et al. 2021, doi:10.1214/20-AOS1965; errors learnt instead of summed: Eaton-Rosen et al.
2019 (as shaw2021 section 7 names it).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import get_args

import numpy as np
from jaxtyping import Float, Int

from qsim.errors import InputError
from qsim.evaluation.segmentation.power_law import fit_power_law
from qsim.evaluation.uncertainty import Law, half_width

_LEAST = 20
_PARTS = 10
_LEAST_ANATOMIES = 3
# of V, u and m of images; a number for one image
Numbers = Float[np.ndarray, " i"] | float
_FIELDS = ("ratio", "coefficients", "offset", "factor", "level", "law", "images", "anatomies", "spread_range")


@dataclass(frozen=True, slots=True)
class VolumeCalibration:
    """What `fit_volume_error` found, for one model at one voxel size.

    Attributes:
        ratio: g [1].
        coefficients: c0, c1, and c2 where there is an offset [1].
        offset: m0 [1]; None: the variance has no part.
        factor: half width over scale [1].
        level: of the interval [1].
        law: of the residuals.
        images, anatomies: it was fitted to.
        spread_range: smallest and largest u among them; beyond, the power law is a guess [1].
    """

    ratio: float
    coefficients: tuple[float, ...]
    offset: float | None
    factor: float
    level: float
    law: Law
    images: int
    anatomies: int
    spread_range: tuple[float, float]

    def __post_init__(self) -> None:
        wanted = 2 if self.offset is None else 3
        if len(self.coefficients) != wanted:
            raise InputError(f"coefficients: wanted {wanted} (offset: {self.offset}), got {len(self.coefficients)}")
        numbers = (self.ratio, self.factor, *self.spread_range)
        if not all(isfinite(each) and each > 0 for each in numbers) or not all(map(isfinite, self.coefficients)):
            raise InputError("ratio, factor, spread_range: must be finite and above 0; fit the calibration again")
        if not 0 < self.level < 1:
            raise InputError(f"level: must lie between 0 and 1, got {self.level:g}")

    def half_width(
        self, predicted: Numbers, spread: Numbers, variance: Numbers | None = None
    ) -> Float[np.ndarray, "*s"]:
        """Half the interval [mm^3].

        Args:
            predicted: V_pred [mm^3].
            spread: u, above 0 [1].
            variance: m, where the calibration has an offset [1].
        Raises: InputError if a number is missing, superfluous or out of its range.
        """
        design = _design(spread, variance, self.offset)
        return np.asarray(self.factor * np.asarray(predicted) * np.exp(design @ np.array(self.coefficients)))

    def sd(self, predicted: Numbers, spread: Numbers, variance: Numbers | None = None) -> Float[np.ndarray, "*s"]:
        """SD of the Gaussian whose interval of that level is as wide: half width / 1.96 at 95 % [mm^3]."""
        return np.asarray(self.half_width(predicted, spread, variance) / half_width(1.0, self.level))

    def interval(
        self, predicted: Numbers, spread: Numbers, variance: Numbers | None = None
    ) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
        """Ends of the interval, g V_pred -+ half width [mm^3]; the lower may be negative."""
        half = self.half_width(predicted, spread, variance)
        centre = self.ratio * np.asarray(predicted)
        return np.asarray(centre - half), np.asarray(centre + half)

    def knows(self, spread: float) -> bool:
        """Whether images of such a spread were among those it was fitted to."""
        return self.spread_range[0] <= spread <= self.spread_range[1]

    def to_json(self) -> dict[str, object]:
        """As `from_json` reads it."""
        found: dict[str, object] = {name: getattr(self, name) for name in _FIELDS}
        return found | {"coefficients": list(self.coefficients), "spread_range": list(self.spread_range)}

    @staticmethod
    def from_json(given: Mapping[str, object]) -> "VolumeCalibration":
        """A calibration as a file has it.

        Raises: InputError if a field is missing, unknown or of the wrong kind.
        """
        if {*given} != {*_FIELDS}:
            raise InputError(f"volume calibration: fields {sorted(given)}; wanted {sorted(_FIELDS)}")
        if given["law"] not in get_args(Law):
            raise InputError(f"law: {given['law']!r}; one of {', '.join(get_args(Law))}")
        law: Law = "gaussian" if given["law"] == "gaussian" else "laplace"
        lowest, highest = _numbers(given, "spread_range", 2)
        return VolumeCalibration(
            ratio=_numbers(given, "ratio", 1)[0],
            coefficients=tuple(_numbers(given, "coefficients")),
            offset=None if given["offset"] is None else _numbers(given, "offset", 1)[0],
            factor=_numbers(given, "factor", 1)[0],
            level=_numbers(given, "level", 1)[0],
            law=law,
            images=int(_numbers(given, "images", 1)[0]),
            anatomies=int(_numbers(given, "anatomies", 1)[0]),
            spread_range=(lowest, highest),
        )


def fit_volume_error(
    predicted: Float[np.ndarray, " i"],
    true: Float[np.ndarray, " i"],
    spread: Float[np.ndarray, " i"],
    variance: Float[np.ndarray, " i"] | None = None,
    *,
    anatomy: Int[np.ndarray, " i"] | None = None,
    level: float = 0.95,
    law: Law = "gaussian",
    bias: bool = True,
    offset: float = 0.1,
) -> VolumeCalibration:
    """Fit the error bar of a volume to images that took no part in training.

    Args:
        predicted, true: volumes [mm^3], the predicted above 0.
        spread: u of each image, above 0 (`relative_spread`) [1].
        variance: m, artefact variance per voxel of the tissue (`per_target`) of each image, at least 0; given: the
            width may depend on it [1].
        anatomy: number of the subject an image shows; None: each image shows another. The interval then holds for
            images of other anatomies.
        level: of the interval.
        law: of the residuals; "laplace" is less led by the few worst images.
        bias: fit the ratio g; False: g = 1.
        offset: m0: below it, m no longer tells images apart [1].
    Raises: InputError if there are fewer than 20 images or 3 anatomies, or too few for the level; if a number is out
        of its range; if the spread (or m) is the same in all images, so that its power cannot be found, or no image
        has an error.
    """
    n = predicted.size
    for name, given in (("true", true), ("spread", spread), ("variance", variance), ("anatomy", anatomy)):
        if given is not None and given.shape != (n,):
            raise InputError(f"{name}: {given.size} numbers for {n} predicted volumes; give one for each image")
    if n < _LEAST:
        raise InputError(f"predicted: {n} images; a calibration needs at least {_LEAST}")
    if not 0 < level < 1:
        raise InputError(f"level: must lie between 0 and 1, got {level:g}; 0.95 is usual")
    k = ceil((n + 1) * level - 1e-9)
    if k > n:
        raise InputError(f"level: {level:g} needs at least {ceil(level / (1 - level) - 1e-9)} images, got {n}")
    if not (np.all(np.isfinite(predicted)) and np.all(predicted > 0) and np.all(np.isfinite(true))):
        raise InputError("predicted: volumes must be finite and those predicted above 0; leave such images out")
    if not (isfinite(offset) and offset > 0):
        raise InputError(f"offset: must be finite and above 0, got {offset:g}")
    names, subject = np.unique(np.arange(n) if anatomy is None else anatomy, return_inverse=True)
    if names.size < _LEAST_ANATOMIES:
        raise InputError(f"anatomy: {names.size} of them; a calibration needs at least {_LEAST_ANATOMIES}")
    m0 = None if variance is None else offset
    design = _design(spread, variance, m0)
    # both sides over V_pred: the scale is a part of it
    one, part_of = np.ones(n), true / predicted
    coefficients, ratio = fit_power_law(design, one, part_of, law, bias, None)
    # each anatomy is judged by a fit that did not see it
    part = subject % min(_PARTS, names.size)
    scaled = np.empty(n)
    for out in np.unique(part):
        of, rest = part == out, part != out
        c, g = fit_power_law(design[rest], one[rest], part_of[rest], law, bias, coefficients)
        scaled[of] = np.abs(part_of[of] - g) / np.exp(design[of] @ c)
    return VolumeCalibration(
        ratio=ratio,
        coefficients=tuple(float(each) for each in coefficients),
        offset=m0,
        factor=float(np.partition(scaled, k - 1)[k - 1]),
        level=level,
        law=law,
        images=n,
        anatomies=int(names.size),
        spread_range=(float(spread.min()), float(spread.max())),
    )


def _design(spread: Numbers, variance: Numbers | None, offset: float | None) -> Float[np.ndarray, "*s c"]:
    """1, log u, log(m + m0)."""
    s = np.asarray(spread, dtype=np.float64)
    if not (np.all(np.isfinite(s)) and np.all(s > 0)):
        raise InputError("spread: must be finite and above 0; give `relative_spread` of the probabilities")
    columns = [np.ones(s.shape), np.log(s)]
    if (variance is None) != (offset is None):
        state = (
            "has no part in this calibration" if offset is None else "is missing: the calibration was fitted with it"
        )
        raise InputError(f"variance: {state}; give the numbers it was fitted to")
    if variance is not None and offset is not None:
        m = np.asarray(variance, dtype=np.float64)
        if m.shape != s.shape:
            raise InputError(f"variance: {m.size} numbers for {s.size} spreads; give one for each image")
        if not (np.all(np.isfinite(m)) and np.all(m >= 0)):
            raise InputError("variance: must be finite and at least 0; give `per_target` of the variance map")
        columns.append(np.log(m + offset))
    return np.stack(columns, axis=-1)


def _numbers(given: Mapping[str, object], name: str, count: int | None = None) -> list[float]:
    found = given[name]
    several: list[float] = []
    for each in found if isinstance(found, list | tuple) else [found]:
        if not isinstance(each, int | float) or isinstance(each, bool):
            raise InputError(f"{name}: wanted numbers, got {found!r}")
        several.append(float(each))
    if count is not None and len(several) != count:
        raise InputError(f"{name}: wanted {count} numbers, got {len(several)}")
    return several
