"""Closed forms for a decay under two preparations, from the logarithms of its images.

    log S = log A - TSL R_1 - TE R_2,   R = 1 / T1rho, 1 / T2

is a plane over (TSL, TE): three images give it exactly, more by weighted linear least squares (`log_linear` says which
weights, and why twice). With the weighted means taken off, h_ij = sum w t_i t_j and g_i = -sum w t_i log S, the rates
solve h R = g; where they leave their bounds, the best point of the four edges is the minimum, since this is a parabola.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.information import invert_information
from qsim.parameters import T1RHO, T2
from qsim.signals import SpinLockT2Prep

# least weight, as a part of the largest: images under a thousandth of the largest are noise in any case
_LEAST = 1e-6
_VOXELS = 8192
_ROWS = (T1RHO, T2)


def three_images(model: SpinLockT2Prep) -> tuple[int, int, int]:
    """Numbers of the common image and of the last one of each contrast: spin-lock, T2 preparation.

    Raises: InputError if there is no image common to both, or none that differs from it in one preparation alone.
    """
    numbers = range(model.n_images)
    shortest = min(model.tsl), min(model.te_prep)
    common = [i for i in numbers if (model.tsl[i], model.te_prep[i]) == shortest]
    locked = [i for i in numbers if model.te_prep[i] == shortest[1] and model.tsl[i] > shortest[0]]
    prepared = [i for i in numbers if model.tsl[i] == shortest[0] and model.te_prep[i] > shortest[1]]
    if not (common and locked and prepared):
        raise InputError(
            "estimators: two-point needs an image with the shortest tsl and te_prep, one with a longer tsl alone and "
            "one with a longer te_prep alone; use log-linear or least-squares"
        )
    return common[0], max(locked, key=model.tsl.__getitem__), max(prepared, key=model.te_prep.__getitem__)


def from_three(y: Float[Tensor, "3 v"], tsl: tuple[float, ...], te_prep: tuple[float, ...]) -> Float[Tensor, "3 v"]:
    """A, T1rho and T2 from the common image and one of each contrast, all positive.

        T1rho = (TSL_2 - TSL_1) / log(S_1 / S_2),   T2 = (TE_3 - TE_1) / log(S_1 / S_3)

    Times are limited to their ranges, to the upper end where there is no decay; A is the least-squares amplitude of the
    three images, which is exact where no time is limited.

    Args:
        tsl, te_prep: of these three images [s].
    """
    steps = tsl[1] - tsl[0], te_prep[2] - te_prep[0]
    found = []
    for row, step, later in zip(_ROWS, steps, (y[1], y[2]), strict=True):
        t = step / torch.log(y[0] / later)
        found.append(torch.where(t > 0, t, torch.inf).clamp(row.lower, row.upper))
    # from the common image on, which decays least
    e = torch.stack((torch.ones_like(y[0]), torch.exp(-steps[0] / found[0]), torch.exp(-steps[1] / found[1])))
    a = (e * y).sum(0) / (e * e).sum(0) * torch.exp(tsl[0] / found[0] + te_prep[0] / found[1])
    return torch.stack((a, *found))


def plane(
    y: Float[Tensor, "n v"],
    tsl: tuple[float, ...],
    te_prep: tuple[float, ...],
    weighted: bool,
) -> Float[Tensor, "3 v"]:
    """A, T1rho and T2 by weighted linear least squares of the logarithms of positive images."""
    times = torch.tensor([tsl, te_prep], dtype=torch.float64, device=y.device)[..., None]
    pieces = [_plane(part.double(), times, weighted) for part in y.split(_VOXELS, 1)]
    return torch.cat(pieces, 1).to(y.dtype)


def _plane(y: Float[Tensor, "n v"], times: Float[Tensor, "2 n 1"], weighted: bool) -> Float[Tensor, "3 v"]:
    # squares as parts of the largest, whatever the unit
    largest = y.amax(0)
    share = y / largest
    log_s = share.log()
    w = share.square().clamp_min(_LEAST) if weighted else torch.ones_like(share)
    height, rate = _slopes(log_s, w, times)
    if weighted:
        tau = (times * rate[:, None]).sum(0)
        w = torch.exp(-2 * (tau - tau.amin(0))).clamp_min(_LEAST)
        height, rate = _slopes(log_s, w, times)
    t = torch.stack([(1 / one).clamp(row.lower, row.upper) for one, row in zip(rate, _ROWS, strict=True)])
    return torch.cat(((height.exp() * largest)[None], t))


def _slopes(
    log_s: Float[Tensor, "n v"], w: Float[Tensor, "n v"], times: Float[Tensor, "2 n 1"]
) -> tuple[Float[Tensor, " v"], Float[Tensor, "2 v"]]:
    """log A, and both rates within their bounds."""
    total = w.sum(0)
    one, two = times - (w * times).sum(1, keepdim=True) / total
    g1, g2 = -(w * one * log_s).sum(0), -(w * two * log_s).sum(0)
    h11, h12, h22 = (w * one * one).sum(0), (w * one * two).sum(0), (w * two * two).sum(0)
    (low1, high1), (low2, high2) = ((1 / row.upper, 1 / row.lower) for row in _ROWS)

    def first(r2: Tensor) -> Tensor:
        return ((g1 - h12 * r2) / h11).clamp(low1, high1)

    def second(r1: Tensor) -> Tensor:
        return ((g2 - h12 * r1) / h22).clamp(low2, high2)

    below = h11 * h22 - h12 * h12
    free = torch.stack((h22 * g1 - h12 * g2, h11 * g2 - h12 * g1)) / below
    best = free
    inside = (free[0] >= low1) & (free[0] <= high1) & (free[1] >= low2) & (free[1] <= high2)
    if not bool(inside.all()):
        edges = [torch.stack((r1, second(r1))) for r1 in (torch.full_like(g1, end) for end in (low1, high1))]
        edges += [torch.stack((first(r2), r2)) for r2 in (torch.full_like(g2, end) for end in (low2, high2))]
        each = torch.stack(edges)
        x1, x2 = each[:, 0], each[:, 1]
        cost = x1 * (h11 * x1 / 2 + h12 * x2 - g1) + x2 * (h22 * x2 / 2 - g2)
        chosen = each.gather(0, cost.argmin(0).expand(1, 2, -1))[0]
        best = torch.where(inside, free, chosen)
    return (w * (log_s + (times * best[:, None]).sum(0))).sum(0) / total, best


def plane_covariance(
    kappa: Float[Tensor, "3 v"], tsl: tuple[float, ...], te_prep: tuple[float, ...], weighted: bool
) -> Float[Tensor, "3 3 v"]:
    """Covariance of (A, T1rho, T2) of the plane through log S, for a sigma of 1, by the delta method [SI^2].

        x = (log A, R_1, R_2),   log S_n = X_n x + noise of SD sigma / S_n,   C = H (sum w^2 / S^2 X X') H

    with X = (1, -TSL, -TE), H the inverse of sum w X X', w = S^2 or 1, and S the signal of the estimate itself.
    """
    a, t1rho, t2 = kappa.double()
    locked, prepared = (torch.tensor(times, dtype=torch.float64, device=a.device)[:, None] for times in (tsl, te_prep))
    tau = locked / t1rho + prepared / t2
    least = tau.amin(0)
    # squares of the signal, as parts of the largest
    s2 = torch.exp(-2 * (tau - least))
    design = torch.stack((torch.ones_like(tau), -locked.expand_as(tau), -prepared.expand_as(tau)))
    w = s2 if weighted else torch.ones_like(s2)
    h = invert_information(torch.einsum("inv,jnv,nv->ijv", design, design, w))
    if weighted:
        unit = h
    else:
        spread = torch.einsum("inv,jnv,nv->ijv", design, design, 1 / s2)
        unit = torch.einsum("ikv,klv,ljv->ijv", h, spread, h)
    # dA = A d log A, dT = -T^2 dR; the signal is A exp(-least) times the root of what was used
    turn = torch.stack((torch.exp(least), -t1rho.square() * torch.exp(least) / a, -t2.square() * torch.exp(least) / a))
    return unit * turn[:, None] * turn[None]
