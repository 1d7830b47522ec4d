"""Maximum likelihood of a ratio and of a scale that is a power law, together.

    true = g predicted + scale error,    log scale = x c,    error Gaussian or Laplace of scale 1

Minus the log-likelihood is, but for a constant, the sum over images of x c + |error / exp(x c)|^q / q, q = 2 or 1.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from qsim.errors import InputError
from qsim.evaluation.uncertainty import Law


def fit_power_law(
    design: Float[np.ndarray, "i c"],
    predicted: Float[np.ndarray, " i"],
    true: Float[np.ndarray, " i"],
    law: Law,
    bias: bool = True,
    start: Float[np.ndarray, " c"] | None = None,
) -> tuple[Float[np.ndarray, " c"], float]:
    """Coefficients c and ratio g, each in turn until the ratio stays: every step lowers one and the same loss.

    Args:
        design: x, ones in the first column.
        predicted: above 0.
        law: of the errors: the scale is the SD, or b of a Laplace distribution.
        bias: False: g = 1.
        start: of c.
    Raises: InputError if a column is the same in all images or follows from the others, or the errors are 0.
    """
    power: Literal[1, 2] = 2 if law == "gaussian" else 1
    centre, width = design[:, 1:].mean(axis=0), design[:, 1:].std(axis=0)
    if np.any(width < 1e-6) or np.linalg.matrix_rank(design) < design.shape[1]:
        raise InputError("spread: it (or mean_variance) is the same in all images, or one follows from the other")
    x = np.column_stack([np.ones(len(design)), (design[:, 1:] - centre) / width])
    ratio = float(np.median(true / predicted)) if bias else 1.0
    unit = float(np.mean(np.abs(true - ratio * predicted)))
    if unit <= 1e-12 * float(np.mean(np.abs(true))):
        raise InputError("predicted: is the truth in all images (times one number); give held-out images")
    theta = np.zeros(x.shape[1])
    if start is not None:
        theta = np.array([start[0] + start[1:] @ centre - np.log(unit), *(start[1:] * width)])
    for _ in range(100):
        theta = _scale(x, np.abs(true - ratio * predicted) / unit, power, theta)
        if not bias:
            break
        last, ratio = ratio, _ratio(predicted, true, np.exp(x @ theta), power)
        if abs(ratio - last) <= 1e-9 * abs(ratio):
            break
    slopes = theta[1:] / width
    return np.array([theta[0] + np.log(unit) - slopes @ centre, *slopes]), ratio


def _scale(
    x: Float[np.ndarray, "i c"], error: Float[np.ndarray, " i"], power: Literal[1, 2], start: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " c"]:
    """theta with the least sum of x theta + |error / exp(x theta)|^power / power: convex, one minimum."""
    theta = start
    log_scale = x @ theta
    u = (error * np.exp(-log_scale)) ** power
    for _ in range(200):
        gradient = x.T @ (1 - u) / len(x)
        if float(np.max(np.abs(gradient))) <= 1e-9:
            return theta
        step = np.linalg.lstsq(power * (x.T * u) @ x / len(x), gradient, rcond=None)[0]
        loss, fall = float(np.mean(log_scale + u / power)), float(gradient @ step)
        # Newton's step, halved until the loss falls by a part of what its slope promises (Armijo),
        # or does so within its rounding: near the minimum the gradient is the finer of the two
        for halvings in range(60):
            trial = theta - 0.5**halvings * step
            log_scale = x @ trial
            # too long a step may overflow: its loss is then no smaller
            with np.errstate(over="ignore", invalid="ignore"):
                u = (error * np.exp(-log_scale)) ** power
            if float(np.mean(log_scale + u / power)) <= loss - 1e-4 * 0.5**halvings * fall + 1e-12:
                break
        theta = trial
    raise InputError("spread: no power law fits the errors; too many of them are 0, give other held-out images")


def _ratio(
    predicted: Float[np.ndarray, " i"],
    true: Float[np.ndarray, " i"],
    scale: Float[np.ndarray, " i"],
    power: Literal[1, 2],
) -> float:
    """g with the least sum of |(true - g predicted) / scale|^power."""
    if power == 2:
        weight = predicted / scale**2
        return float(np.sum(weight * true) / np.sum(weight * predicted))
    of = true / predicted
    order = np.argsort(of, kind="stable")
    total = np.cumsum((predicted / scale)[order])
    return float(of[order][np.searchsorted(total, total[-1] / 2)])
