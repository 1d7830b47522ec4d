"""What no training image holds, put into the images of a cohort: more noise, a bright square, a new kind of lesion.

An honest uncertainty rises there (huang2022 Fig. 8 to 10). Each is a pure function of the cohort, the slices and a
seed: random numbers are those of `Streams(seed, number of the slice)`, so that a slice looks the same whatever others
are asked for, and the same draw is made for every level of noise.

    m = mean over the ROI of the slice of its first image, the one of the shortest times

is what noise and brightness are relative to. A slice without a ROI of at least 8 voxels has no m; it is left out, and
the result says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals.base import real_signal
from qsim.values import value
from trainers.relaxation.cohort import Cohort
from trainers.relaxation.contrasts import contrasts

# voxels of a ROI whose mean is one
_LEAST = 8
# points along each axis of a voxel that tell which share of it a disk covers
_POINTS = 16

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class Perturbed:
    """Slices of a cohort after a perturbation.

    Attributes:
        name: of the perturbation, for reports.
        slices: their numbers in the cohort.
        images: of these [units of A].
        where: voxels that were changed; all of them for noise.
        sigma: noise SD per real channel now; None: unknown [units of A].
        left_out: why others of the slices asked for are not here, by number.
    """

    name: str
    slices: tuple[int, ...]
    images: Float[Tensor, "k n y x"]
    where: Bool[Tensor, "k y x"]
    sigma: Float[Tensor, " k"] | None
    left_out: Mapping[int, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Which slices are left out, a sentence for each reason."""
        reasons = dict.fromkeys(self.left_out.values())
        numbers = {reason: [str(i) for i, own in self.left_out.items() if own == reason] for reason in reasons}
        return tuple(
            f"{self.name}: {len(found)} of {len(self.slices) + len(self.left_out)} slices are left out, {reason}: "
            f"{', '.join(found)}"
            for reason, found in numbers.items()
        )


@value
class AddedNoise:
    """White noise on every image, so that the noise in all has an SD of m / snr.

        sigma = m / snr,      added SD = sqrt(sigma^2 - sigma_0^2)

    Attributes:
        snr: m over the SD of the noise.
        noise: `gaussian`: on the magnitude, as in huang2022 Fig. 8; values below zero stay. `rician`: on both channels
            of a complex image, of which the magnitude is taken.
    Assumes: the images hold Rician noise of SD sigma_0, that of the cohort. With `rician` they then are exactly Rician
        of SD sigma, because the phase of the added noise is as good as any. With `gaussian` the SD is sigma where the
        signal is well above sigma_0; in air it is smaller, as that of Rician noise is. Where the cohort does not know
        sigma_0 (measured series), the noise that is there already is taken for none: the SNR is then at most `snr`.
    """

    kind: Literal["added_noise"] = "added_noise"
    snr: Positive
    noise: Literal["gaussian", "rician"] = "gaussian"

    def __post_init__(self) -> None:
        _positive({"snr": self.snr})

    @property
    def name(self) -> str:
        return f"SNR {self.snr:g}"

    def __call__(self, cohort: Cohort, slices: Sequence[int], seed: int) -> Perturbed:
        """Slices of a cohort with more noise.

        Raises: InputError if a slice has a lower SNR already, or none has a ROI.
        """
        means, left_out = _means(cohort, slices)
        had = {i: 0.0 if cohort.sigma is None else float(cohort.sigma[i]) for i in means}
        reached = {i: means[i] / had[i] for i in means if had[i] > 0}
        lowest = min(reached, key=lambda i: reached[i], default=None)
        if lowest is not None and reached[lowest] < self.snr:
            raise InputError(
                f"snr: got {self.snr:g}, slice {lowest} has {reached[lowest]:.4g} already; added noise only lowers it: "
                f"take at most {reached[lowest]:.4g}"
            )
        sigma = {i: mean / self.snr for i, mean in means.items()}
        found = []
        for i in means:
            added = max(sigma[i] ** 2 - had[i] ** 2, 0.0) ** 0.5
            first, second = added * _normals(cohort, i, seed, "perturbation.noise")
            images = cohort.images[i] + first
            found.append(images if self.noise == "gaussian" else torch.hypot(images, second))
        where = [torch.ones_like(cohort.roi[i]) for i in means]
        return _done(self.name, cohort, found, where, left_out, None if cohort.sigma is None else sigma, tuple(means))


@value
class BrightSquare:
    """A square in the liver, as bright in every image: no tissue looks like that (huang2022 Fig. 9).

        S_n = brightness m      in the square, for every n

    It lies wholly in the body, its middle voxel in the largest part of the ROI; of such places where most of it lies in
    the ROI, of these nearest to the centre of that part. A ROI that leaves out vessels may hold no square whole, but is
    amid the liver. Slices without such a place are left out.

    Attributes:
        side: of the square [voxels]. huang2022 has 20 in images of 256 voxels.
        brightness: of the square over m.
        place: of the square; `roi` as said above.
    Assumes: nothing, not even noise, is left of the images in the square.
    """

    kind: Literal["bright_square"] = "bright_square"
    side: Annotated[int, Field(strict=True, ge=1)] = 20
    brightness: Positive = 2.0
    place: Literal["roi"] = "roi"

    def __post_init__(self) -> None:
        _positive({"side": float(self.side), "brightness": self.brightness})

    @property
    def name(self) -> str:
        return "bright square"

    def __call__(self, cohort: Cohort, slices: Sequence[int], seed: int) -> Perturbed:
        """Slices of a cohort with a square in each.

        Raises: InputError if it has a place in none.
        """
        del seed
        square = torch.ones((self.side, self.side), dtype=torch.float64)

        def put(i: int, mean: float, share: Float[Tensor, "y x"]) -> Float[Tensor, "n y x"]:
            return torch.where(share > 0, self.brightness * mean, cohort.images[i])

        return _with_object(self.name, cohort, slices, square, put)


@value
class UnseenLesion:
    """A lesion of a relaxation time of its own: the disk that a slice cuts out of a sphere through its centre.

        L_n = A g_n(time),   A so that L_first = brightness m
        S  <- |(1 - f) S + f L + sigma sqrt(f (2 - f)) (n_1 + i n_2)|

    f is the share of the disk in a voxel, from 16 x 16 points in each: the edge is soft. The share 1 - f of the tissue
    keeps its noise, of SD (1 - f) sigma, and the rest is drawn anew, so that the SD is sigma everywhere: n_1 and n_2
    are normal numbers, for each voxel and image. Inside, where f = 1, the noise is exactly Rician. Where the cohort
    does not know sigma, the lesion has no noise but what is left of the tissue's.

    The disk lies where a `BrightSquare` would.

    Attributes:
        diameter_mm: of the sphere [mm].
        time: relaxation time of the lesion by row, for each of the series' [s].
        brightness: of the lesion in the first image over m.
    """

    kind: Literal["unseen_lesion"] = "unseen_lesion"
    diameter_mm: Positive
    time: Mapping[str, Positive]
    brightness: Positive = 1.0

    def __post_init__(self) -> None:
        _positive({"diameter_mm": self.diameter_mm, "brightness": self.brightness})
        _positive({f"time.{row}": time for row, time in self.time.items()})

    @property
    def name(self) -> str:
        return "unseen lesion"

    def __call__(self, cohort: Cohort, slices: Sequence[int], seed: int) -> Perturbed:
        """Slices of a cohort with a lesion in each.

        Raises: InputError if it has a place in none, or its times are not those of the series.
        """
        rows = [p.name for p in cohort.model.parameters]
        if set(self.time) != set(rows) - {"A"}:
            raise InputError(
                f"time: is given for {', '.join(sorted(self.time)) or 'no row'}, the series has "
                f"{', '.join(name for name in rows if name != 'A')}; give one of each"
            )
        kappa = torch.tensor([1.0 if name == "A" else self.time[name] for name in rows], dtype=torch.float64)
        decay = real_signal(cohort.model, cohort.model(kappa))
        decay = decay / decay[_first(cohort)]
        shape = disk(self.diameter_mm, cohort.spacing_mm)
        if not bool((shape > 0.5).any()):
            raise InputError(f"diameter_mm: {self.diameter_mm:g} mm fill no half of a voxel; take a larger one")

        def put(i: int, mean: float, share: Float[Tensor, "y x"]) -> Float[Tensor, "n y x"]:
            f = share.to(cohort.images)
            lesion = (self.brightness * mean * decay).to(cohort.images)[:, None, None]
            mixed = (1 - f) * cohort.images[i] + f * lesion
            if cohort.sigma is None:
                return mixed
            drawn = cohort.sigma[i] * (f * (2 - f)).sqrt() * _normals(cohort, i, seed, "perturbation.lesion")
            # outside of the lesion the images stay as they are, to the bit, those below zero too
            return torch.where(f > 0, torch.hypot(mixed + drawn[0], drawn[1]), cohort.images[i])

        return _with_object(self.name, cohort, slices, shape, put)


Perturbation = AddedNoise | BrightSquare | UnseenLesion


def disk(diameter_mm: float, spacing_mm: tuple[float, float]) -> Float[Tensor, "h w"]:
    """Share of a disk in each voxel around its centre, which is the centre of the middle voxel [1].

    Args:
        spacing_mm: of the voxels (y, x).
    """
    radius = diameter_mm / 2
    squares = []
    for spacing in spacing_mm:
        # half a voxel of the middle is on either side of it
        reach = int(np.ceil(radius / spacing - 0.5).clip(min=0))
        points = (np.arange((2 * reach + 1) * _POINTS) + 0.5) / _POINTS - 0.5 - reach
        squares.append(np.square(points * spacing))
    inside = torch.from_numpy(squares[0][:, None] + squares[1] <= radius**2)
    height, width = (len(each) // _POINTS for each in squares)
    return inside.double().reshape(height, _POINTS, width, _POINTS).mean((1, 3))


def _positive(fields: Mapping[str, float]) -> None:
    for name, number in fields.items():
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be a positive number, got {number}")


def _first(cohort: Cohort) -> int:
    """Number of the image of the shortest times."""
    return contrasts(cohort.model)[0].images[0]


def _means(cohort: Cohort, slices: Sequence[int]) -> tuple[dict[int, float], dict[int, str]]:
    """m of every slice that has one, and why others have none."""
    means: dict[int, float] = {}
    left_out: dict[int, str] = {}
    for i in map(int, slices):
        roi = cohort.roi[i]
        if int(roi.sum()) < _LEAST:
            left_out[i] = f"whose ROI has fewer than {_LEAST} voxels"
            continue
        mean = float(cohort.images[i, _first(cohort)][roi].double().mean())
        if mean > 0:
            means[i] = mean
        else:
            left_out[i] = "whose ROI is dark"
    return means, left_out


def _normals(cohort: Cohort, number: int, seed: int, stage: str) -> Float[Tensor, "2 n y x"]:
    """Normal numbers for both channels of a slice; drawn on the CPU, so that they are the same on every device."""
    generator = Streams(seed, number).torch_generator(stage)
    return torch.randn((2, *cohort.images.shape[1:]), generator=generator).to(cohort.images)


def _with_object(
    name: str,
    cohort: Cohort,
    slices: Sequence[int],
    shape: Float[Tensor, "h w"],
    put: Callable[[int, float, Tensor], Tensor],
) -> Perturbed:
    """An object in each slice where it has a place.

    Args:
        shape: share of the object in each voxel [1].
        put: the images of a slice with the object, from its number, m and the shares over the slice.
    """
    means, left_out = _means(cohort, slices)
    found, where, kept = [], [], []
    for i, mean in means.items():
        corner = _corner(cohort.roi[i], cohort.body[i], shape > 0.5)
        if corner is None:
            left_out[i] = f"where the {name} around the ROI leaves the body"
            continue
        share = torch.zeros(cohort.roi[i].shape, dtype=torch.float64)
        (y, x), (height, width) = corner, shape.shape
        share[y : y + height, x : x + width] = shape
        share = share.to(cohort.images.device)
        found.append(put(i, mean, share))
        where.append(share > 0.5)
        kept.append(i)
    sigma = None if cohort.sigma is None else {i: float(cohort.sigma[i]) for i in kept}
    return _done(name, cohort, found, where, dict(sorted(left_out.items())), sigma, tuple(kept))


def _corner(roi: Bool[Tensor, "y x"], body: Bool[Tensor, "y x"], shape: Bool[Tensor, "h w"]) -> tuple[int, int] | None:
    """First row and column of an object, at the place that `BrightSquare` describes; None: there is none."""
    from scipy.ndimage import label  # type: ignore[attr-defined]  # slow to import

    if any(own > size for own, size in zip(shape.shape, roi.shape, strict=True)):
        return None
    drawn = roi.cpu().numpy()
    parts, _ = label(drawn)
    part = parts == int(np.bincount(parts[drawn]).argmax())
    # voxels of the ROI, and of the body, in the object at every place; sums of whole numbers are exact
    images = torch.stack((roi.cpu(), body.cpu())).double()[:, None]
    held, inside = functional.conv2d(images, shape.double()[None, None])[:, 0].numpy()
    top, left = (size // 2 for size in shape.shape)
    allowed = part[top : top + held.shape[0], left : left + held.shape[1]] & (inside == float(shape.sum()))
    if not allowed.any():
        return None
    best = allowed & (held == held[allowed].max())
    rows, columns = (
        np.arange(n) + (size - 1) / 2 - middle
        for n, size, middle in zip(held.shape, shape.shape, np.argwhere(part).mean(0), strict=True)
    )
    away = np.where(best, rows[:, None] ** 2 + columns**2, np.inf)
    y, x = np.unravel_index(int(away.argmin()), held.shape)
    return int(y), int(x)


def _done(
    name: str,
    cohort: Cohort,
    images: Sequence[Tensor],
    where: Sequence[Tensor],
    left_out: Mapping[int, str],
    sigma: Mapping[int, float] | None,
    slices: tuple[int, ...],
) -> Perturbed:
    """Raises: InputError if no slice is left."""
    if not slices:
        reasons = ", or ".join(dict.fromkeys(left_out.values())) or "because none was asked for"
        raise InputError(f"{name}: has a place in no slice, {reasons}; take other slices, or a smaller object")
    level = None if sigma is None else torch.tensor([sigma[i] for i in slices]).to(cohort.images)
    return Perturbed(name, slices, torch.stack(list(images)), torch.stack(list(where)), level, left_out)
