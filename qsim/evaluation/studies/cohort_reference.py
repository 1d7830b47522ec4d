"""What maps of a cohort are held against, what a method says of them, and the regions in which they are compared.

Maps are in seconds, (s, y, x) over all slices of all subjects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Against = Literal["truth", "fit"]
Region = Literal["roi", "body", "lesion", "left", "right", "inside", "outside"]

MS = 1e3


@dataclass(frozen=True, slots=True)
class Reference:
    """What maps are held against.

    Attributes:
        truth: None where nobody knows it [s].
        fit: of all images of the series; NaN where there is none [s].
        roi: drawn in the parenchyma before any fitting.
        body: everything that is judged.
        lesion: None if there is no such mask.
        subject: of every slice.
        noise_free: fit of all images without noise [s].
        bounds: lower and upper end of the range in which `fit` was sought; None: no voxel is at a bound [s].
    """

    truth: Float[np.ndarray, "s y x"] | None
    fit: Float[np.ndarray, "s y x"]
    roi: Bool[np.ndarray, "s y x"]
    body: Bool[np.ndarray, "s y x"]
    lesion: Bool[np.ndarray, "s y x"] | None
    subject: Int[np.ndarray, " s"]
    noise_free: Float[np.ndarray, "s y x"] | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("truth", "roi", "body", "lesion", "noise_free"):
            same_shape(name, getattr(self, name), self.fit)
        if self.subject.shape != self.fit.shape[:1]:
            raise ValueError(f"subject: {self.subject.shape} for {len(self.fit)} slices; give one number for each")
        if not self.roi.any():
            raise ValueError("roi: empty; draw one in at least one slice")

    @property
    def against(self) -> tuple[Against, ...]:
        """The references that there are."""
        return ("fit",) if self.truth is None else ("truth", "fit")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method says of the same slices.

    Attributes:
        estimate: NaN where there is none [s].
        aleatoric, epistemic: SD; None where the method states none [s].
        limited: voxels whose value was cut to a range.
    """

    estimate: Float[np.ndarray, "s y x"]
    aleatoric: Float[np.ndarray, "s y x"] | None = None
    epistemic: Float[np.ndarray, "s y x"] | None = None
    limited: Bool[np.ndarray, "s y x"] | None = None

    def __post_init__(self) -> None:
        for name in ("aleatoric", "epistemic", "limited"):
            same_shape(name, getattr(self, name), self.estimate)
            if name != "limited" and getattr(self, name) is not None and (getattr(self, name) < 0).any():
                raise ValueError(f"{name}: holds negative values; give standard deviations")

    @property
    def total(self) -> Float[np.ndarray, "s y x"] | None:
        """SD of both sources, or of the one that is stated [s]."""
        if self.aleatoric is None or self.epistemic is None:
            return self.epistemic if self.aleatoric is None else self.aleatoric
        return np.hypot(self.aleatoric, self.epistemic)


def same_shape(name: str, given: np.ndarray | None, like: np.ndarray) -> None:
    """Raises: ValueError if a map is of other slices."""
    if given is not None and given.shape != like.shape:
        raise ValueError(f"{name}: shape {given.shape} beside maps of {like.shape}; give the same slices")


def any_of(first: Bool[np.ndarray, "s y x"], *others: Bool[np.ndarray, "s y x"] | None) -> Bool[np.ndarray, "s y x"]:
    """Voxels of at least one of the masks that there are."""
    together = first.copy()
    for mask in others:
        if mask is not None:
            together |= mask
    return together


def regions(reference: Reference) -> Iterator[tuple[Region, Bool[np.ndarray, "s y x"]]]:
    """Masks of the regions; no lesion where the reference has no such mask."""
    width = reference.fit.shape[2]
    left = np.arange(width) < width // 2
    yield "roi", reference.roi
    yield "body", reference.body
    if reference.lesion is not None:
        yield "lesion", reference.lesion
    yield "left", reference.body & left
    yield "right", reference.body & ~left
    yield "inside", reference.roi
    yield "outside", reference.body & ~reference.roi


def map_of(reference: Reference, against: Against) -> Float[np.ndarray, "s y x"]:
    """Raises: ValueError if there is no truth."""
    if against == "fit":
        return reference.fit
    if reference.truth is None:
        raise ValueError("against: nobody knows the truth of these maps; use fit")
    return reference.truth


def error_of(
    answer: Answer, reference: Reference, against: Against
) -> tuple[Float[np.ndarray, "s y x"], Bool[np.ndarray, "s y x"]]:
    """Error [ms], and the voxels that count."""
    of = map_of(reference, against)
    same_shape("estimate", answer.estimate, of)
    # what is not finite stays so, and is left out: no warning of inf - inf
    known = np.isfinite(of) & np.isfinite(answer.estimate)
    error = np.full(of.shape, nan)
    np.subtract(answer.estimate, of, out=error, where=known, dtype=np.float64)
    if against == "fit" and reference.bounds is not None:
        low, high = reference.bounds
        # single precision may not hold a bound exactly
        known &= reference.roi | ((of > low * (1 + 1e-6)) & (of < high * (1 - 1e-6)))
    return MS * error, known


def with_sd(
    answer: Answer, reference: Reference, region: Region, against: Against
) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
    """Error and total SD of the voxels of a region that count [ms]."""
    if (total := answer.total) is None:
        raise ValueError("answer: it states no uncertainty; give aleatoric or epistemic")
    masks = dict(regions(reference))
    if region not in masks:
        raise ValueError(f"region: there is no {region}; use one of {', '.join(masks)}")
    error, used = error_of(answer, reference, against)
    here = masks[region] & used
    return error[here], MS * total[here].astype(np.float64)


def population_constant(training: Reference, of: Against = "fit") -> float:
    """The opponent that looks at no image: the median of the training subjects' ROIs [s]."""
    known = map_of(training, of)[training.roi]
    known = known[np.isfinite(known)]
    if not known.size:
        raise ValueError(f"{of}: not finite in the whole ROI; give a map with values there")
    return float(np.median(known.astype(np.float64)))
