"""Probabilities that hold a predicted variance, their entropy, and the variance the paper reads from it.

Classes come first: (k, *space). Entropies are in nats.
"""

from math import e, pi

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import entr

from qsim.errors import InputError

# probabilities from a half-precision network do not add up to 1 any better
_SUM = 4e-3


def scaled_probabilities(
    logits: Float[np.ndarray, "k *space"], variance: Float[np.ndarray, "*space"]
) -> Float[np.ndarray, "k *space"]:
    """p(y | f, sigma) = softmax(f / sigma^2): the larger the variance, the closer to 1 / k.

    Args:
        logits: f.
        variance: sigma^2, above 0; in the decoupled model the sum over all sources [1].
    Returns: in the precision of the arguments, at least float32.
    Raises: InputError if the shapes do not match, a logit is not finite, or a variance not finite and above 0.
    Source: shaw2021 section 3, above Eq. 1.
    """
    if logits.shape[1:] != variance.shape:
        raise InputError(f"variance: shape {variance.shape}, the logits have {logits.shape[1:]} after the classes")
    if not np.all(np.isfinite(logits)):
        raise InputError("logits: NaN or infinity among them; mask the voxels the network was not asked for")
    if not (np.all(np.isfinite(variance)) and np.all(variance > 0)):
        raise InputError("variance: must be finite and above 0; give exp of the log variance")
    kind = np.result_type(logits, variance, np.float32)
    # the largest is taken off before the division, so that it stays 0 and no exponential overflows
    shifted = logits.astype(kind) - logits.max(axis=0).astype(kind)
    with np.errstate(over="ignore"):
        weights = np.exp(shifted / variance.astype(kind))
    weights /= weights.sum(axis=0)
    return np.asarray(weights)


def entropy(probabilities: Float[np.ndarray, "k *space"]) -> Float[np.ndarray, "*space"]:
    """H = -sum_c p_c log p_c over the classes, 0 log 0 = 0 [nats]; log k at most.

    Raises: InputError if they are not probabilities, or do not add up to 1 over the first axis.
    Source: shaw2021 section 7, above Eq. 8.
    """
    if not np.all((probabilities >= 0) & (probabilities <= 1 + _SUM)):
        raise InputError("probabilities: must lie from 0 to 1; give the softmax of the logits")
    total = probabilities.sum(axis=0, dtype=np.float64)
    if not np.all(np.abs(total - 1) <= _SUM):
        raise InputError("probabilities: do not add up to 1 over the first axis; give one array per class, all classes")
    return np.asarray(entr(probabilities).sum(axis=0))


def mean_entropy(probabilities: Float[np.ndarray, "k *space"], mask: Bool[np.ndarray, "*space"] | None = None) -> float:
    """Mean of the entropy over an image [nats].

    Args:
        mask: voxels that count; None: all.
    Raises: InputError as `entropy`, or if the mask is empty or has another shape.
    """
    h = entropy(probabilities)
    if mask is None:
        return float(h.mean(dtype=np.float64))
    if mask.shape != h.shape or not mask.any():
        raise InputError(f"mask: shape {mask.shape} with {int(mask.sum())} voxels; give one of shape {h.shape}")
    return float(h[mask].mean(dtype=np.float64))


def entropic_variance(h: Float[np.ndarray, "*space"] | float) -> Float[np.ndarray, "*space"]:
    """Variance of the Gaussian that has this entropy, exp(2 h) / (2 pi e) [1].

    A certain voxel (h = 0) has 1 / (2 pi e) = 0.0585, not 0, and one of two equal classes 0.234, where p (1 - p) is 0
    and 0.25: sums over an image are led by the voxels that are certain, and grow with the image.

    Args:
        h: [nats].
    Source: shaw2021 Eq. 8.
    """
    return np.asarray(np.exp(2 * np.asarray(h)) / (2 * pi * e))
