"""Random streams and the distributions that configs can name.

Every draw goes through the inverse distribution function of one uniform number, so that a truncated
distribution is drawn exactly, without rejection and with a fixed number of random numbers.
"""

import zlib
from dataclasses import dataclass
from math import inf, isfinite, log
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from qsim.values import value


@dataclass(frozen=True)
class Streams:
    """The random streams of one sample: a pure function of (seed, index, stage).

    Small draws come from numpy's Philox, bulk normals from a torch generator seeded by that stream, so that
    neither the order of the stages nor the batch, worker or scheduler changes a number.

    Attributes:
        seed: seed of the data set.
        index: number of the sample.
    """

    seed: int
    index: int

    def _sequence(self, stage: str) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(stage.encode()), self.index))

    def rng(self, stage: str) -> np.random.Generator:
        """Generator of the small draws of one stage."""
        return np.random.Generator(np.random.Philox(self._sequence(stage)))

    def torch_generator(self, stage: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Generator of the bulk normals of one stage."""
        seed = int(self._sequence(stage).generate_state(1, np.uint64)[0])
        return torch.Generator(device=device).manual_seed(seed)


@runtime_checkable
class Distribution(Protocol):
    """A distribution of one real number."""

    @property
    def support(self) -> tuple[float, float]:
        """Smallest interval that holds every draw."""
        ...

    def cdf(self, x: float) -> float:
        """P(X <= x)."""
        ...

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Inverse of `cdf`."""
        ...


def _finite(**fields: float) -> None:
    for name, number in fields.items():
        if not isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {number}")


def _ordered(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low must be below high, got low {low} and high {high}")


@value
class Constant:
    """Always the same value."""

    kind: Literal["constant"] = "constant"
    value: float

    def __post_init__(self) -> None:
        _finite(value=self.value)

    @property
    def support(self) -> tuple[float, float]:
        return self.value, self.value

    def cdf(self, x: float) -> float:
        return float(x >= self.value)

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        return np.full_like(u, self.value)


@value
class Uniform:
    """Uniform on [low, high]."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        _finite(low=self.low, high=self.high)
        _ordered(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def cdf(self, x: float) -> float:
        return min(max((x - self.low) / (self.high - self.low), 0.0), 1.0)

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        return self.low + (self.high - self.low) * u


@value
class LogUniform:
    """Uniform in the logarithm on [low, high], 0 < low."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        _finite(low=self.low, high=self.high)
        if self.low <= 0:
            raise ValueError(f"low must be positive in a log-uniform distribution, got {self.low}")
        _ordered(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def cdf(self, x: float) -> float:
        if x <= self.low:
            return 0.0
        return min(log(x / self.low) / log(self.high / self.low), 1.0)

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        return self.low * np.exp(u * log(self.high / self.low))


@value
class Normal:
    """Normal with a mean and a standard deviation; its support is the real line."""

    kind: Literal["normal"] = "normal"
    mean: float
    sd: float

    def __post_init__(self) -> None:
        _finite(mean=self.mean, sd=self.sd)
        if self.sd <= 0:
            raise ValueError(f"sd must be positive, got {self.sd}; use kind: constant for a fixed value")

    @property
    def support(self) -> tuple[float, float]:
        return -inf, inf

    def cdf(self, x: float) -> float:
        return float(ndtr((x - self.mean) / self.sd))

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        return self.mean + self.sd * ndtri(u)


@value
class HalfNormal:
    """`origin` + |z| `scale`, or `origin` - |z| `scale` with `below: true`; z standard normal.

    `scale` is the standard deviation of the normal before folding; that of the half-normal itself is
    scale sqrt(1 - 2 / pi). Source: Leone et al. 1961.
    """

    kind: Literal["half_normal"] = "half_normal"
    scale: float
    origin: float = 0.0
    below: bool = False

    def __post_init__(self) -> None:
        _finite(scale=self.scale, origin=self.origin)
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}; use kind: constant for a fixed value")

    @property
    def support(self) -> tuple[float, float]:
        return (-inf, self.origin) if self.below else (self.origin, inf)

    def cdf(self, x: float) -> float:
        z = (self.origin - x if self.below else x - self.origin) / self.scale
        folded = 2 * float(ndtr(z)) - 1 if z > 0 else 0.0
        return 1 - folded if self.below else folded

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        # |z| by the lower tail, which keeps its digits where u is near 0
        return self.origin + self.scale * (ndtri(u / 2) if self.below else -ndtri((1 - u) / 2))


@value
class Truncated:
    """Another distribution, conditioned on [low, high]: cut, not clipped, so nothing piles up at the ends."""

    kind: Literal["truncated"] = "truncated"
    of: Normal | HalfNormal | LogUniform | Uniform
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("low, high: give at least one of them")
        if self.low is not None and self.high is not None:
            _ordered(self.low, self.high)
        below, above = self._ends()
        if above - below < 1e-6:
            raise ValueError(f"low, high: [{self.low}, {self.high}] holds less than 1e-6 of the distribution it cuts")

    def _ends(self) -> tuple[float, float]:
        below = 0.0 if self.low is None else self.of.cdf(self.low)
        above = 1.0 if self.high is None else self.of.cdf(self.high)
        return below, above

    @property
    def support(self) -> tuple[float, float]:
        low, high = self.of.support
        return (low if self.low is None else max(low, self.low)), (high if self.high is None else min(high, self.high))

    def cdf(self, x: float) -> float:
        below, above = self._ends()
        return min(max((self.of.cdf(x) - below) / (above - below), 0.0), 1.0)

    def ppf(self, u: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        below, above = self._ends()
        low, high = self.support
        # rounding of the inverse may leave the interval by one unit in the last place
        return np.minimum(np.maximum(self.of.ppf(below + u * (above - below)), low), high)


DISTRIBUTIONS = (Constant, Uniform, LogUniform, Normal, HalfNormal, Truncated)
AnyDistribution = Constant | Uniform | LogUniform | Normal | HalfNormal | Truncated


def draw(distribution: Distribution, rng: np.random.Generator, n: int) -> Float[np.ndarray, " n"]:
    """Draw `n` values."""
    # open interval: ppf(0) of an unbounded distribution is minus infinity
    u = rng.uniform(np.finfo(float).tiny, 1.0, n)
    return np.asarray(distribution.ppf(u), dtype=np.float64)


def mean(distribution: Distribution) -> float:
    """Expected value, by 400-point Gauss-Legendre quadrature of the inverse distribution function."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    return float(np.sum(weights * distribution.ppf((nodes + 1) / 2)) / 2)


def require_positive(distribution: Distribution, field: str) -> None:
    """Refuse a distribution that can reach 0.

    Raises: ValueError, naming `field` and the remedy.
    """
    low, _ = distribution.support
    if not low > 0:
        raise ValueError(
            f"{field} must stay positive, but its distribution reaches {low:g}; "
            "truncate it: {kind: truncated, of: {...}, low: ...}"
        )
