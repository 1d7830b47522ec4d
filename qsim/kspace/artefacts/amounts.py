"""How strong: a number is fixed, a pair is a uniform range, a distribution is full control."""

from math import isfinite
from numbers import Real

import numpy as np

from qsim.distributions import AnyDistribution, Constant, Distribution, Uniform

Amount = float | int | tuple[float | int, float | int] | AnyDistribution


def reach(amount: Amount) -> tuple[float, float]:
    """Smallest and largest value that can be drawn."""
    if isinstance(amount, Distribution):
        return amount.support
    low, high = amount if isinstance(amount, tuple | list) else (amount, amount)
    return float(low), float(high)


def check_amount(name: str, amount: Amount, low: float | int = -np.inf, high: float | int = np.inf) -> None:
    """Refuse an amount that is not finite, whose range is upside down, or that can leave [low, high].

    Raises: ValueError, starting with the name of the field.
    """
    if not _is_amount(amount):
        raise ValueError(f"{name} must be a finite number or a pair of them, or a distribution, got {amount!r}")
    lowest, highest = reach(amount)
    spread = isinstance(amount, Distribution)
    if not spread and not (isfinite(lowest) and isfinite(highest)):
        raise ValueError(f"{name} must be a finite number or a pair of them, got {amount}")
    if lowest > highest:
        raise ValueError(f"{name} must go from low to high, got {_shown(amount, lowest, highest)}")
    if lowest < low or highest > high:
        within = f"lie in [{low:g}, {high:g}]"
        if np.isinf(high):
            within = f"be at least {low:g}"
        elif np.isinf(low):
            within = f"be at most {high:g}"
        remedy = "; truncate it: {kind: truncated, of: {...}, low: ..., high: ...}" if spread else ""
        raise ValueError(f"{name} must {within}, got {_shown(amount, lowest, highest)}{remedy}")


def draw_amount(amount: Amount, rng: np.random.Generator) -> float:
    """One value; always one uniform number of the generator, so that what is drawn next does not depend on the kind."""
    # random() can return 0, where an unbounded distribution has no finite value
    u = np.array([max(rng.random(), np.finfo(float).tiny)])
    if isinstance(amount, Distribution):
        return float(amount.ppf(u)[0])
    low, high = reach(amount)
    chosen = Constant(value=low) if low == high else Uniform(low=low, high=high)
    return float(chosen.ppf(u)[0])


def whole_pair(count: int | tuple[int, int]) -> tuple[int, int]:
    """Smallest and largest of a whole number that may be a range, both ends included."""
    return count if isinstance(count, tuple) else (count, count)


def _is_amount(amount: object) -> bool:
    if isinstance(amount, tuple | list):
        return len(amount) == 2 and all(isinstance(end, Real) and not isinstance(end, bool) for end in amount)
    return isinstance(amount, Real | Distribution) and not isinstance(amount, bool)


def _shown(amount: Amount, low: float, high: float) -> str:
    if isinstance(amount, tuple | list):
        return str(list(amount))
    return f"a distribution from {low:g} to {high:g}" if isinstance(amount, Distribution) else str(amount)
