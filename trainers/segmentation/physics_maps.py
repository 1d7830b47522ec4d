"""What a series tells of its own tissue: an amplitude, a T1, and where anything is to be seen.

    series of an inversion recovery -> Look-Locker fit per voxel -> A, T1, body

No label and no mask goes in. Partial volume is not modelled: a voxel has one T1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.signals import LookLocker

# T1 beyond these is a failed fit, not tissue [s]
T1_RANGE = (0.1, 4.0)
# a voxel is of the body if its brightness is at least this share of the 99th percentile of the slice [1]
BODY_SHARE = 0.06
# the percentile that stands for the brightest tissue [1]
_BRIGHT = 0.99
# a fit outside has found no recovery that a Look-Locker readout makes; 2 is a perfect inversion [1]
_PLAUSIBLE_B = (1.5, 3.0)
_PERFECT_B = 2.0
# A, B, T1
_LEAST_IMAGES = 3


@dataclass(frozen=True, slots=True)
class Maps:
    """What is known of a slice.

    Attributes:
        a: amplitude of the recovery, 0 outside of the body; it holds the coil and the readout [units of the series].
        t1: as the readout of the series has it, between the ends of `T1_RANGE` [s].
        body: voxels that are bright enough.
    """

    a: Float[Tensor, "y x"]
    t1: Float[Tensor, "y x"]
    body: Bool[Tensor, "y x"]


def own_maps(series: Float[Tensor, "n y x"], times: Sequence[float] | None) -> Maps:
    """Maps of a series of an inversion recovery, read as a Look-Locker or MOLLI one.

        S(TI) = |A (1 - B exp(-TI (B - 1) / T1))|

    fitted per voxel. Where B comes out beyond 1.5 to 3 (fat, whose recovery is over before the second image) it is
    fitted again with B = 2, a perfect inversion. A voxel is of the body if its root mean square over the images, and
    that over its 3 x 3 neighbours too, is at least `BODY_SHARE` of the slice's 99th percentile. T1 beyond `T1_RANGE`
    becomes the median of its neighbours within, or where there is none the nearer end.

    Args:
        series: magnitudes, in any order of the times.
        times: inversion time of each image [s].
    Raises: InputError if there are no times, not one for each image, or fewer than three images.
    Assumes: full recovery before each inversion.   Not: the bias of a MOLLI (short T2, off-resonance), which T1 keeps.
    """
    ti = _checked(len(series), times)
    order = sorted(range(len(ti)), key=lambda i: ti[i])
    images = series[order].float()
    if not bool(images.isfinite().all()):
        raise InputError("series: NaN or infinity among its voxels; replace them by 0")
    body = _body(images)
    estimator = build_estimator("least-squares", LookLocker(ti=tuple(ti[i] for i in order)))
    a, b, t1 = estimator(images, mask=body).kappa.float()
    odd = body & ~((b >= _PLAUSIBLE_B[0]) & (b <= _PLAUSIBLE_B[1]))
    if bool(odd.any()):
        again = estimator(images, mask=odd, known={"B": torch.full_like(a, _PERFECT_B)})
        rows = {row.name: again.kappa[number].float() for number, row in enumerate(estimator.parameters)}
        a, t1 = torch.where(odd, rows["A"], a), torch.where(odd, rows["T1"], t1)
    fitted = body & a.isfinite() & t1.isfinite()
    inside = fitted & (t1 >= T1_RANGE[0]) & (t1 <= T1_RANGE[1])
    around = smoothed(t1, inside, fitted & ~inside)
    t1 = torch.where(around.isfinite(), around, t1)
    nowhere = torch.zeros_like(a)
    return Maps(torch.where(fitted, a, nowhere), torch.where(fitted, t1, nowhere + 1).clamp(*T1_RANGE), fitted)


def _checked(images: int, times: Sequence[float] | None) -> tuple[float, ...]:
    if times is None:
        raise InputError(
            "times: missing; physics needs the inversion time of each image [s]; give them, or leave it out"
        )
    if images < _LEAST_IMAGES:
        raise InputError(
            f"series: {images} image(s) hold no T1; physics needs a recovery of at least {_LEAST_IMAGES} images at "
            "known times; give the whole series, or leave physics out"
        )
    if len(times) != images:
        raise InputError(f"times: {len(times)} for {images} images; give one for each [s]")
    ti = tuple(float(time) for time in times)
    if not all(isfinite(time) and time >= 0 for time in ti):
        raise InputError(f"times: must be finite and not negative, got {ti}")
    if len(set(ti)) < _LEAST_IMAGES:
        raise InputError(f"times: {len(set(ti))} distinct inversion times, T1 needs {_LEAST_IMAGES}; got {ti}")
    try:
        LookLocker(ti=ti)
    except ValueError as error:
        raise InputError(f"times: {error}") from None
    return ti


def _body(images: Float[Tensor, "n y x"]) -> Bool[Tensor, "y x"]:
    power = images.square().mean(0)
    around = torch.nn.functional.avg_pool2d(power[None], 3, 1, 1, count_include_pad=False)[0]
    # quantile() of torch refuses more than 16 million numbers
    least = (BODY_SHARE * float(np.quantile(power.sqrt().numpy(), _BRIGHT))) ** 2
    return (power > 0) & (power >= least) & (around >= least)


def smoothed(t1: Float[Tensor, "y x"], known: Bool[Tensor, "y x"], where: Bool[Tensor, "y x"]) -> Float[Tensor, "y x"]:
    """T1, and in the voxels of `where` the median of what is known among 3 x 3 neighbours; NaN if nothing is [s]."""
    padded = torch.nn.functional.pad(torch.where(known, t1, torch.nan), (1, 1, 1, 1), value=torch.nan)
    y, x = t1.shape
    neighbours = torch.stack([padded[i : i + y, j : j + x] for i in range(3) for j in range(3)])
    return torch.where(where, neighbours.nanmedian(0).values, t1)


def between_knots(
    t1: Float[np.ndarray, "*n"], knots: Sequence[float], values: Sequence[float]
) -> Float[np.ndarray, "*n"]:
    """A relaxation time as a function of T1, a straight line in their logarithms from knot to knot [s].

        log T = log T_i + (log T_i+1 - log T_i) (log T1 - log k_i) / (log k_i+1 - log k_i)

    Before the first knot and after the last it is constant.

    Args:
        t1: [s].
        knots: values of T1, ascending [s].
        values: of the relaxation time at each knot [s].
    """
    return np.exp(np.interp(np.log(t1), np.log(np.asarray(knots)), np.log(np.asarray(values))))
