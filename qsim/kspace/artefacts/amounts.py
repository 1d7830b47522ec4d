"""How strong: a number is fixed, a pair is a uniform range, a distribution is full control."""

from math import isfinite

import numpy as np

from qsim.distributions import AnyDistribution, Constant, Uniform

Amount = float | int | tuple[float | int, float | int] | AnyDistribution


def reach(amount: Amount) -> tuple[float, float]:
    """Smallest and largest value that can be drawn."""
    if isinstance(amount, tuple):
        return float(amount[0]), float(amount[1])
    if isinstance(amount, int | float):
        return float(amount), float(amount)
    return amount.support


def check_amount(name: str, amount: Amount, low: float | int = -np.inf, high: float | int = np.inf) -> None:
    """Refuse an amount that is not finite, whose range is upside down, or that can leave [low, high].

    Raises: ValueError, starting with the name of the field.
    """
    lowest, highest = reach(amount)
    plain = isinstance(amount, int | float | tuple)
    if isinstance(amount, bool) or (plain and not (isfinite(lowest) and isfinite(highest))):
        raise ValueError(f"{name} must be a finite number or a pair of them, got {amount}")
    if lowest > highest:
        raise ValueError(f"{name} must go from low to high, got {_shown(amount, lowest, highest)}")
    if lowest < low or highest > high:
        within = f"lie in [{low:g}, {high:g}]"
        if np.isinf(high):
            within = f"be at least {low:g}"
        elif np.isinf(low):
            within = f"be at most {high:g}"
        raise ValueError(f"{name} must {within}, got {_shown(amount, lowest, highest)}")


def draw_amount(amount: Amount, rng: np.random.Generator) -> float:
    """One value; always one uniform number of the generator, so that what is drawn next does not depend on the kind."""
    # random() can return 0, where an unbounded distribution has no finite value
    u = np.array([max(rng.random(), np.finfo(float).tiny)])
    low, high = reach(amount)
    if isinstance(amount, int | float | tuple):
        chosen = Constant(value=low) if low == high else Uniform(low=low, high=high)
        return float(chosen.ppf(u)[0])
    return float(amount.ppf(u)[0])


def _shown(amount: Amount, low: float, high: float) -> str:
    if isinstance(amount, tuple):
        return str(list(amount))
    return str(amount) if isinstance(amount, int | float) else f"a distribution from {low:g} to {high:g}"
