"""Smooth random fields: B0, B1 and the efficiency of an inversion, as functions of position over the whole subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Literal

import numpy as np
from jaxtyping import Float

from phantoms.fields.base import Place, Ranges, Rows, drawn, to_maps
from qsim.distributions import AnyDistribution, Constant
from qsim.reach import TAIL_NORMAL, Range, reach
from qsim.values import value

# plane waves of one field: its values are normal up to an excess kurtosis of -3 / (2 _WAVES)
_WAVES = 64
# factors of the waves are rounded to this step: their products and sums are then exact in float64 (2 x 21 bits and
# 128 terms), so that the bytes do not depend on how a matrix product orders them
_STEP = 2.0**-21
# SD of the logarithm of B1 beyond which a factor was not meant: +-1 SD is then a factor of 55
_LARGEST_LOG_SD = 2.0
# shift of the logit beyond which an efficiency is 0 or 1 to float32
_LARGEST_SHIFT = 50.0

Region = Literal["liver", "heart", "brain"]
ROBERTS = "Roberts 2021, doi:10.1002/mrm.28549: 5th and 95th percentile over patients and segments, as a normal"
KELLMAN = "Kellman 2013, doi:10.1186/1532-429X-15-63: range over the heart after local shimming, as 4 SD"
KRISHNAMURTHY = "Krishnamurthy 2013, doi:10.1186/1532-429X-15-68: mean and SD over the heart, quadrature drive"
TO_BE_SOURCED = "to be sourced"

# mean and SD of B0 [Hz] by region and field strength [T], and where they come from
DEFAULT_B0: dict[tuple[Region, float], tuple[float, float, str]] = {
    ("liver", 1.5): (33.4, 29.1, ROBERTS),
    ("liver", 3.0): (66.2, 59.5, ROBERTS),
    ("heart", 1.5): (0.0, 15.5, KELLMAN),
    ("heart", 3.0): (0.0, 31.3, KELLMAN),
    ("brain", 1.5): (0.0, 12.5, TO_BE_SOURCED),
    ("brain", 3.0): (0.0, 25.0, TO_BE_SOURCED),
}
# median of the relative B1 [1] and SD of its logarithm [1]
DEFAULT_B1: dict[tuple[Region, float], tuple[float, float, str]] = {
    ("liver", 1.5): (0.960, 0.088, ROBERTS),
    ("liver", 3.0): (0.817, 0.198, ROBERTS),
    ("heart", 1.5): (0.95, 0.06, TO_BE_SOURCED),
    ("heart", 3.0): (0.80, 0.163, KRISHNAMURTHY),
    ("brain", 1.5): (1.0, 0.04, TO_BE_SOURCED),
    ("brain", 3.0): (1.0, 0.10, TO_BE_SOURCED),
}


@dataclass(frozen=True, slots=True)
class Waves:
    """A smooth random function of position with mean 0 and SD 1.

        g(r) = sqrt(2 / K) sum_k cos(w_k . r + phi_k),   w_k normal with SD 1 / l,   phi_k uniform

    Over draws its covariance is exp(-|r - r'|^2 / 2 l^2).
    Source: Rahimi and Recht 2007, Random Features for Large-Scale Kernel Machines, section 3.

    Attributes:
        frequency: of each wave along every axis of the volume [rad/mm].
        phase: of each wave at the volume's first voxel [rad].
    """

    frequency: Float[np.ndarray, "k axes"]
    phase: Float[np.ndarray, " k"]

    @classmethod
    def draw(cls, rng: np.random.Generator, axes: int, length_mm: float) -> "Waves":
        """Waves over a volume of so many axes."""
        frequency = rng.standard_normal((_WAVES, axes)) / length_mm
        return cls(frequency, rng.random(_WAVES) * 2 * np.pi)

    def at(self, place: Place) -> Float[np.ndarray, "*space"]:
        """Values on the voxels of a patch [1].

        The waves part into factors, cos(a + b) = cos a cos b - sin a sin b with b along the last axis, so that a slice
        costs one matrix product.
        """
        # axes of one voxel (the slice axis) only shift the phases
        long = [axis for axis, n in enumerate(place.block) if n > 1] or [0]
        above = self.phase
        for axis in set(range(len(place.block))) - set(long):
            above = above + self.frequency[:, axis] * place.positions(axis)
        for axis in long[:-1]:
            above = above[..., None, :] + np.multiply.outer(place.positions(axis), self.frequency[:, axis])
        along = np.multiply.outer(self.frequency[:, long[-1]], place.positions(long[-1]))
        left = _rounded(np.concatenate([np.cos(above), np.sin(above)], axis=-1))
        right = _rounded(np.concatenate([np.cos(along), -np.sin(along)]))
        waves: Float[np.ndarray, "..."] = (left.reshape(-1, len(right)) @ right).reshape(place.patch)
        return waves * (2 / len(self.phase)) ** 0.5


def _rounded(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    x *= 1 / _STEP
    np.rint(x, out=x)
    x *= _STEP
    return x


def check_length(length_mm: float) -> None:
    """Refuse a length scale that is not one."""
    if not (isfinite(length_mm) and length_mm > 0):
        raise ValueError(f"length_mm must be above 0 mm, got {length_mm}")


def check_sd(sd: AnyDistribution | None, name: str = "sd") -> None:
    """Refuse a standard deviation that can be negative."""
    if sd is not None and sd.support[0] < 0:
        raise ValueError(f"{name} must not be negative, but its distribution reaches {sd.support[0]:g}; truncate it")


def check_log_sd(sd: AnyDistribution | None, name: str = "sd") -> None:
    """Refuse a standard deviation of the logarithm of B1 that no field has."""
    check_sd(sd, name)
    if sd is not None and not reach(sd)[1] <= _LARGEST_LOG_SD:
        raise ValueError(
            f"{name} must be at most {_LARGEST_LOG_SD:g}, but its distribution reaches {reach(sd)[1]:.3g}; it is the "
            "SD of the logarithm of B1, as in .1 for 10 %"
        )


def check_field_strength(field_strength: float) -> None:
    """Refuse a field strength for which no defaults are known."""
    if field_strength not in (1.5, 3.0):
        raise ValueError(
            f"field_strength must be 1.5 or 3.0 T, got {field_strength:g}; "
            "its defaults are known there only: give 3.0 and every number yourself"
        )


@value
class SmoothB0:
    """Smooth off-resonance: adds to DELTA_B0.

        DELTA_B0 += mean + sd g(r)

    Attributes:
        field_strength: 1.5 or 3.0; chooses the defaults [T].
        region: liver, heart or brain; chooses the defaults (`DEFAULT_B0`, with their sources).
        mean: distribution over samples of the mean; None: the default, constant [Hz].
        sd: distribution over samples of the SD; None: the default, constant [Hz].
        length_mm: length l of the Gaussian covariance exp(-d^2 / 2 l^2); to be sourced [mm].
    """

    kind: Literal["b0"] = "b0"
    field_strength: float = 3.0
    region: Region = "liver"
    mean: AnyDistribution | None = None
    sd: AnyDistribution | None = None
    length_mm: float = 60.0

    def __post_init__(self) -> None:
        check_field_strength(self.field_strength)
        check_sd(self.sd)
        check_length(self.length_mm)

    @property
    def changes(self) -> tuple[str, ...]:
        return ("DELTA_B0",)

    @property
    def uses(self) -> tuple[str, ...]:
        return ()

    @property
    def replaces(self) -> bool:
        return False

    @property
    def source(self) -> str:
        """Where the default numbers come from."""
        return DEFAULT_B0[self.region, self.field_strength][2]

    def _distributions(self) -> tuple[AnyDistribution, AnyDistribution]:
        mean, sd, _ = DEFAULT_B0[self.region, self.field_strength]
        return self.mean or Constant(value=mean), self.sd or Constant(value=sd)

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        low, high = ranges["DELTA_B0"]
        least, most = smooth_reach(*self._distributions())
        return {**ranges, "DELTA_B0": (low + least, high + most)}

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        mean, sd = self._distributions()
        return {"mean": drawn(mean, rng), "sd": drawn(sd, rng)}

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        del ranges
        fields = []
        for place, rng in zip(places, rngs, strict=True):
            of = self.drawn(rng)
            fields.append(of["mean"] + of["sd"] * Waves.draw(rng, len(place.block), self.length_mm).at(place))
        rows.add("DELTA_B0", to_maps(fields))


@value
class SmoothB1:
    """Smooth transmit field: multiplies REL_B1. The exponential keeps it above 0; nothing is clipped.

        REL_B1 *= mean exp(sd g(r))

    Attributes:
        field_strength: 1.5 or 3.0; chooses the defaults [T].
        region: liver, heart or brain; chooses the defaults (`DEFAULT_B1`, with their sources).
        mean: distribution over samples of the median over positions, above 0; None: the default, constant [1].
        sd: distribution over samples of the SD of the logarithm; None: the default, constant [1].
        length_mm: length l of the Gaussian covariance exp(-d^2 / 2 l^2) of the logarithm; to be sourced [mm].
    """

    kind: Literal["b1"] = "b1"
    field_strength: float = 3.0
    region: Region = "liver"
    mean: AnyDistribution | None = None
    sd: AnyDistribution | None = None
    length_mm: float = 60.0

    def __post_init__(self) -> None:
        check_field_strength(self.field_strength)
        if self.mean is not None and not self.mean.support[0] > 0:
            raise ValueError(
                f"mean must stay above 0, but its distribution reaches {self.mean.support[0]:g}; truncate it"
            )
        check_log_sd(self.sd)
        check_length(self.length_mm)

    @property
    def changes(self) -> tuple[str, ...]:
        return ("REL_B1",)

    @property
    def uses(self) -> tuple[str, ...]:
        return ()

    @property
    def replaces(self) -> bool:
        return False

    @property
    def source(self) -> str:
        """Where the default numbers come from."""
        return DEFAULT_B1[self.region, self.field_strength][2]

    def _distributions(self) -> tuple[AnyDistribution, AnyDistribution]:
        mean, sd, _ = DEFAULT_B1[self.region, self.field_strength]
        return self.mean or Constant(value=mean), self.sd or Constant(value=sd)

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        low, high = ranges["REL_B1"]
        mean, sd = self._distributions()
        _, most = smooth_reach(Constant(value=0.0), sd)
        least_mean, most_mean = reach(mean)
        return {**ranges, "REL_B1": (low * least_mean * exp(-most), high * most_mean * exp(most))}

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        mean, sd = self._distributions()
        return {"mean": drawn(mean, rng), "sd": drawn(sd, rng)}

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        del ranges
        fields = []
        for place, rng in zip(places, rngs, strict=True):
            of = self.drawn(rng)
            waves = Waves.draw(rng, len(place.block), self.length_mm).at(place)
            fields.append(of["mean"] * np.exp(of["sd"] * waves))
        rows.multiply("REL_B1", to_maps(fields))


@value
class SmoothInversionEfficiency:
    """Smooth variation of the inversion efficiency eta = B - 1 around that of the tissue table. B stays in [1, 2].

        logit(eta) += mean + sd g(r),   logit(eta) = ln(eta / (1 - eta))

    So a perfect inversion (B = 2) stays perfect; eta .95 with sd .5 varies between .921 and .969 (+-1 SD). All defaults
    are to be sourced.

    Attributes:
        mean: distribution over samples of the mean shift [1].
        sd: distribution over samples of the SD [1].
        length_mm: length l of the Gaussian covariance exp(-d^2 / 2 l^2) [mm].
    """

    kind: Literal["inversion_efficiency"] = "inversion_efficiency"
    mean: AnyDistribution = Constant(value=0.0)
    sd: AnyDistribution = Constant(value=0.5)
    length_mm: float = 60.0

    def __post_init__(self) -> None:
        check_sd(self.sd)
        check_length(self.length_mm)
        shift = max(map(abs, smooth_reach(self.mean, self.sd)))
        if not shift <= _LARGEST_SHIFT:
            raise ValueError(
                f"sd and mean shift the logit of the efficiency by up to {shift:.3g}, more than {_LARGEST_SHIFT:g}, "
                "and leave 0 or 1 of it; lower them"
            )

    @property
    def changes(self) -> tuple[str, ...]:
        return ("B",)

    @property
    def uses(self) -> tuple[str, ...]:
        return ()

    @property
    def replaces(self) -> bool:
        return False

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        low, high = ranges["B"]
        if low < 1 or high > 2:
            raise ValueError(
                f"B must lie between 1 and 2 to have an efficiency B - 1, but it reaches {low:g} to {high:g}; "
                "truncate it in the tissue table and let it not vary within a tissue"
            )
        least, most = smooth_reach(self.mean, self.sd)
        return {**ranges, "B": (1 + _shifted(low - 1, least), 1 + _shifted(high - 1, most))}

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        return {"mean": drawn(self.mean, rng), "sd": drawn(self.sd, rng)}

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        del ranges
        fields = []
        for place, rng in zip(places, rngs, strict=True):
            of = self.drawn(rng)
            waves = Waves.draw(rng, len(place.block), self.length_mm).at(place)
            fields.append(np.exp(of["mean"] + of["sd"] * waves))
        odds = to_maps(fields)
        for b, of_voxel in ((rows.maps["B"], odds), (rows.minor["B"], rows.at_minor(odds))):
            # the logistic function of the shifted logit, exact at eta = 0 and 1
            eta = b.double() - 1
            b.copy_(1 + eta * of_voxel / (1 - eta + eta * of_voxel))


def _shifted(eta: float, shift: float) -> float:
    if eta in (0.0, 1.0):
        return eta
    return 1 / (1 + exp(-(log(eta / (1 - eta)) + shift)))


def smooth_reach(mean: AnyDistribution, sd: AnyDistribution) -> Range:
    """Interval that holds mean + sd g in all but about one voxel of a million."""
    low, high = reach(mean)
    widest = reach(sd)[1] * TAIL_NORMAL
    return low - widest, high + widest
