"""The boundary of two tissues in the maps of a `test_retest` study: profiles in one slice, sigmoids, paired tests.

Profiles are placed by the labels alone, in the slice that shows most of the two tissues, and are the same for every
method. Fits of all draws are tested together: each profile is a pair.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan, sqrt

import numpy as np
from jaxtyping import Float, UInt8

from qsim.evaluation.metrics import Interval
from qsim.evaluation.sharpness.fits import EdgeFit, PairedTest, Quantity, Sharpness, compare, holm, measure_sharpness
from qsim.evaluation.sharpness.places import place_profiles
from qsim.evaluation.sharpness.profiles import Profile
from qsim.evaluation.studies.test_retest_table import Repeats
from qsim.evaluation.table import ALL, Row

TRUTH = "truth"
# noise over step above which widths read low, and ratio of two methods' from which that tells them apart [1]
NOISY, UNLIKE = 0.1, 1.25
# of the noise of voxels, in residuals of samples: a cubic spline averages; measured 0.72 along 8 voxels, 0.8 along 16
_SAMPLED = 0.75


@dataclass(frozen=True, slots=True)
class Labelled:
    """Tissues of one object.

    Attributes:
        labels: number of the tissue of every voxel.
        numbers: tissues by name.
        spacing_mm: voxel size along each axis [mm].
    """

    labels: UInt8[np.ndarray, "*space"]
    numbers: Mapping[str, int]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """Profiles of one object.

    Attributes:
        at: the slice; None: the object is one slice.
        profiles: in it.
        inside, outside: labels of the two tissues.
        labels: of the slice.
        spacing_mm: voxel size along its two axes [mm].
    """

    at: int | None
    profiles: tuple[Profile, ...]
    inside: int
    outside: int
    labels: UInt8[np.ndarray, "y x"]
    spacing_mm: tuple[float, float]

    def cut(self, values: Float[np.ndarray, "*space"]) -> Float[np.ndarray, "y x"]:
        """The slice of a map."""
        return values if self.at is None else values[self.at]


@dataclass(frozen=True, slots=True)
class Sharp:
    """What the profiles showed at one SNR.

    Attributes:
        snr: NaN of scans [1].
        placed: of the first draw.
        first: of the first draw.
        together: of all draws; `TRUTH` is the last of the methods where it is known.
        tests: on the logarithm of the width, Holm's correction over them.
        slopes: on the slope, as in the paper.
        offered: profiles placed in all draws.
    """

    snr: float
    placed: Placed
    first: Sharpness
    together: Sharpness
    tests: tuple[PairedTest, ...]
    slopes: tuple[PairedTest, ...]
    offered: int

    @property
    def fits(self) -> Mapping[str, tuple[EdgeFit, ...]]:
        """Of all draws, by method."""
        return self.together.fits

    def widths(self, method: str) -> Float[np.ndarray, " p"]:
        """From 10 to 90 % of the step, of the sensible fits [mm]."""
        return np.array([fit.width_mm for fit in self.fits[method] if fit.ok])

    def slope_values(self, method: str) -> Float[np.ndarray, " p"]:
        """Slopes of the sensible fits, as in the paper [1/mm]."""
        return np.array([fit.slope for fit in self.fits[method] if fit.ok])

    def noise(self, method: str) -> float:
        """Noise over step along a profile, median over the sensible fits; NaN of none [1].

            rms of the residuals sqrt(n / (n - 4)) / 0.75 / |outside - inside|,   n voxels along the profile

        Four parameters are fitted, and samples hold about 0.75 of the noise of voxels. What is no sigmoid counts too.
        """
        found = []
        for profile, fit in zip(self.together.profiles, self.fits[method], strict=True):
            n = float(profile.positions[-1] - profile.positions[0]) / profile.voxel_mm + 1
            if fit.ok and n > 4:
                found.append(fit.rms * sqrt(n / (n - 4)) / _SAMPLED / abs(fit.outside - fit.inside))
        return float(np.median(found)) if found else nan

    @property
    def unlike(self) -> list[tuple[str, str]]:
        """Pairs of methods whose comparison noise decides: it differs between them, and is large in one."""
        found = []
        for test in self.tests:
            low, high = sorted((self.noise(test.first), self.noise(test.second)))
            if high > NOISY and high > UNLIKE * low:
                found.append((test.first, test.second))
        return found


def place(
    objects: Sequence[Labelled], boundary: tuple[str, str], n: int, length_mm: float, seed: int
) -> tuple[Placed, ...]:
    """Profiles of every object.

    Args:
        boundary: tissues, from inside to outside.
        n: of each object.
        length_mm: of a profile [mm].
    Raises: ValueError, one line, if an object has none of a tissue, or no place for a profile.
    """
    found = []
    for draw, thing in enumerate(objects):
        missing = [name for name in boundary if name not in thing.numbers]
        if missing:
            there = f"the tissues are {', '.join(thing.numbers)}" if thing.numbers else "no labels are given"
            raise ValueError(f"there is no tissue {missing[0]!r}: {there}")
        inside, outside = (thing.numbers[name] for name in boundary)
        labels, spacing, at = thing.labels, thing.spacing_mm, None
        if labels.ndim == 3:
            counts = [min(int((cut == inside).sum()), int((cut == outside).sum())) for cut in labels]
            at = int(np.argmax(counts))
            labels, spacing = labels[at], spacing[1:]
        rng = np.random.default_rng([seed, draw])
        profiles = place_profiles(np.ascontiguousarray(labels), inside, outside, n, length_mm, spacing, rng)
        found.append(Placed(at, profiles, inside, outside, labels, (float(spacing[0]), float(spacing[1]))))
    return tuple(found)


def sharpness(
    places: Sequence[Placed], settings: Sequence[Repeats], pairs: Sequence[tuple[str, str]], reference: str
) -> list[Sharp]:
    """Fit the profiles in the first repeat of every method, at every SNR.

    Whether the value rises from inside to outside is told by the medians of the truth where it is known, else of the
    reference's map. Where a tissue has no value in it, or both the same, fits of either direction count.

    Raises: ValueError if no profile can be read in the maps of any draw.
    """
    found = []
    for snr in dict.fromkeys(f"{s.snr:g}" for s in settings):
        draws = [s for s in settings if f"{s.snr:g}" == snr]
        each = [_measured(places[s.draw], s, reference) for s in draws]
        together = _joined(each)
        found.append(
            Sharp(
                snr=draws[0].snr,
                placed=places[draws[0].draw],
                first=each[0],
                together=together,
                tests=_tests(together.fits, pairs, "log width"),
                slopes=_tests(together.fits, pairs, "slope"),
                offered=sum(len(places[s.draw].profiles) for s in draws),
            )
        )
    return found


def rows(study: str, parameter: str, boundary: tuple[str, str], found: Sequence[Sharp]) -> Iterator[Row]:
    """Medians over the profiles of all draws, and the tests."""
    where = f"{boundary[0]}/{boundary[1]}"
    for sharp in found:

        def row(who: str, metric: str, value: Interval, n: int) -> Row:
            about = study, who, where, parameter, sharp.snr, nan, ALL  # noqa: B023  used before the next SNR
            return Row(*about, metric, value.value, value.low, value.high, n)

        for who in sharp.fits:
            for metric, values in (("width_mm", sharp.widths(who)), ("slope_per_mm", sharp.slope_values(who))):
                quartiles = np.percentile(values, (50, 25, 75)) if values.size else (nan, nan, nan)
                # the ends are quartiles of the profiles
                yield row(who, metric, Interval(*(float(q) for q in quartiles)), int(values.size))
        for test in sharp.tests:
            ratio = Interval(*(float(np.exp(v)) for v in (test.difference, test.low, test.high)))
            yield row(f"{test.first} / {test.second}", "width_ratio", ratio, test.n)
            yield row(f"{test.first} / {test.second}", "width_p", Interval(test.p, nan, nan), test.n)
            yield row(f"{test.first} / {test.second}", "width_p_holm", Interval(test.p_holm, nan, nan), test.n)
        for test in sharp.slopes:
            difference = Interval(test.difference, test.low, test.high)
            yield row(f"{test.first} - {test.second}", "slope_difference_per_mm", difference, test.n)
            yield row(f"{test.first} - {test.second}", "slope_p", Interval(test.p, nan, nan), test.n)


def _measured(placed: Placed, setting: Repeats, reference: str) -> Sharpness:
    maps = {name: placed.cut(setting.placed(values[0].astype(np.float64))) for name, values in setting.maps.items()}
    if setting.truth is not None:
        maps[TRUTH] = placed.cut(setting.placed(setting.truth.astype(np.float64)))
    judge = maps[TRUTH if setting.truth is not None else reference]
    inside, outside = (_level(judge[placed.labels == k]) for k in (placed.inside, placed.outside))
    rising = None if isnan(inside) or isnan(outside) or inside == outside else outside > inside
    return measure_sharpness(maps, placed.profiles, rising=rising)


def _level(values: Float[np.ndarray, " v"]) -> float:
    """Median of what has a value, NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else nan


def _joined(each: Sequence[Sharpness]) -> Sharpness:
    names = list(each[0].fits)
    return Sharpness(
        profiles=tuple(p for one in each for p in one.profiles),
        values={name: tuple(v for one in each for v in one.values[name]) for name in names},
        fits={name: tuple(fit for one in each for fit in one.fits[name]) for name in names},
        dropped=sum(one.dropped for one in each),
    )


def _tests(
    fits: Mapping[str, tuple[EdgeFit, ...]], pairs: Sequence[tuple[str, str]], quantity: Quantity
) -> tuple[PairedTest, ...]:
    found: list[PairedTest] = []
    for one, other in pairs:
        own = {one: fits[one], other: fits[other]}
        found += compare(own, quantity)
    return tuple(replace(test, p_holm=p) for test, p in zip(found, holm([t.p for t in found]), strict=True))
