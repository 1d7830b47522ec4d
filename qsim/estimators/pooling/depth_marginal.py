"""What every voxel of an inversion recovery says about its own B at high noise: T1 marginalised, not maximised.

    l_v(B) = log sum_k p_k exp(F_vk^2 / 2 sigma^2),   F_vk = max(0, S_v.d_k / |d_k|),   d_k = |1 - B exp(-TI / T1_k)|

p is the histogram of T1 over the mask, found by expectation maximisation. The best T1 of a noisy voxel follows its
noise, so that the maximum over T1 moves B away; the sum over T1 does not. The atoms lie .05 apart in log T1: the
likelihood must be no narrower than that.

The histogram is that of the whole mask. Where one tissue fills a region larger than B is smooth over, its own T1 are
not distributed like that, and B is drawn to one side there; at SNR 3 this exceeds what it gains.

Voxels whose B lies in one interval share its atoms; F is the cubic through its values and slopes at both ends.
"""

from math import ceil, log

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qsim.estimators.pooling.depth_profile import DepthProfile
from qsim.estimators.pooling.laplacian import Blocks
from qsim.estimators.pooling.smooth_climb import Local
from qsim.parameters import T1, B

SPACING = 0.05
# the longest and shortest T1 that tissue and fluids have, with room [s]
_SHORTEST = 0.05
# width of the intervals of B within which the atoms are interpolated
_B_WIDTH = 0.02
# of sums of 32-bit numbers over many voxels
_ROUNDING = 1e-9
_VOXELS = 4096
# voxels that the histogram is found from, and its steps
_SAMPLE = 4096
_EM_STEPS = 30
# an atom that holds less of the voxels than this is left out
_RARE = 1e-5
# voxels' worth of the mean curvature that a block is given
_SHARED = 20


class DepthMarginal:
    """The marginal likelihoods of the voxels of a profile.

    Args:
        profile: the voxels, and how T1 follows once B is known.
        sigma: noise SD, one or per voxel [units of the images].
        blocks: of the mask; the curvature is that of their voxels together.
    """

    def __init__(self, profile: DepthProfile, sigma: Float[Tensor, " v_or_1"], blocks: Blocks) -> None:
        self.profile, self.blocks = profile, blocks
        n = profile.y.shape[1]
        self.sigma = sigma.float().expand(n)
        device = profile.y.device
        steps = ceil(log(T1.upper / _SHORTEST) / SPACING)
        self.u = torch.linspace(log(_SHORTEST), log(T1.upper), steps, dtype=torch.float64, device=device)
        self.p = torch.full((steps,), 1 / steps, dtype=torch.float32, device=device)
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(n, generator=generator)[:_SAMPLE].sort().values
        self.sample = chosen.to(device)
        # in units of the noise
        self.few = profile.y.index_select(1, self.sample).float() / self.sigma[self.sample]

    def fit(self, b: float) -> None:
        """Find the histogram of T1 as if B were this everywhere."""
        atoms, _ = self._atoms(b, slice(None))
        self.p = self._climb(atoms @ self.few)

    def start(self, b: Float[np.ndarray, " v"]) -> Local:
        kept = torch.nonzero(self.p > _RARE)[:, 0]
        log_p = self.p[kept].log()[:, None]
        depth = torch.from_numpy(b).to(self.u.device)
        interval = (depth / _B_WIDTH).floor().clamp_max(round(B.upper / _B_WIDTH) - 1).long()
        order = interval.argsort(stable=True)
        slope = torch.empty_like(depth)
        total, start = 0.0, 0
        for number, count in enumerate(torch.bincount(interval).tolist()):
            if count == 0:
                continue
            ends = torch.cat([x for b in (number, number + 1) for x in self._atoms(b * _B_WIDTH, kept)])
            for chosen in order[start : start + count].split(_VOXELS):
                y = self.profile.y.index_select(1, chosen).float() / self.sigma[chosen]
                fit, rate = _hermite((ends @ y).chunk(4), (depth[chosen] / _B_WIDTH - number).float())
                power = torch.addcmul(log_p, fit.clamp_min_(0), fit, value=0.5)
                top = power.amax(0)
                likely = power.sub_(top).exp_()
                mass = likely.sum(0)
                slope[chosen] = (likely.mul_(fit).mul_(rate).sum(0) / mass).double()
                total += float((top + mass.log()).sum(dtype=torch.float64))
            start += count
        g = slope.cpu().numpy()
        mean = float(g @ g) / len(g)
        # the variance of the slope is the information; per block, since one voxel does not show its own
        d = (self.blocks.total(g * g) + _SHARED * mean) / (self.blocks.voxels + _SHARED)
        d = d if mean > 0 else np.ones_like(d)
        return Local(b, total, g, d[self.blocks.node], rounding=_ROUNDING * abs(total))

    def move(self, here: Local, b: Float[np.ndarray, " v"]) -> Local:  # noqa: ARG002  nothing has to follow
        return self.start(b)

    def _atoms(self, b: float, kept: Tensor | slice) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k n"]]:
        """Unit vectors of one B, and their derivative in B."""
        e = torch.exp(-self.profile.ti.T * torch.exp(-self.u[kept])[:, None])
        d = 1 - b * e
        turn = -e if self.profile.signed else -e * d.sign()
        d = d if self.profile.signed else d.abs()
        norm = d.norm(dim=1, keepdim=True).clamp_min(1e-6)
        atoms = d / norm
        turn = (turn - atoms * (atoms * turn).sum(1, keepdim=True)) / norm
        return atoms.float(), turn.float()

    def _climb(self, fit: Float[Tensor, "k s"]) -> Float[Tensor, " k"]:
        """Histogram of the sample, by expectation maximisation."""
        power = fit.clamp_min(0).square().mul_(0.5)
        likely = power.sub_(power.amax(0)).exp_()
        p = torch.full((len(likely),), 1 / len(likely), device=likely.device)
        for _ in range(_EM_STEPS):
            p = p * (likely @ (1 / (p @ likely))) / likely.shape[1]
        return p


def _hermite(
    ends: tuple[Float[Tensor, "k c"], ...], part: Float[Tensor, " c"]
) -> tuple[Float[Tensor, "k c"], Float[Tensor, "k c"]]:
    """Cubic from the values and slopes at both ends of an interval of B, and its derivative.

    Args:
        ends: value and slope at the lower end, then at the upper.
        part: of the interval, from its lower end.
    """
    low, rise, high, fall = ends
    other = 1 - part
    fit = low * (other * other * (1 + 2 * part))
    fit.addcmul_(high, part * part * (3 - 2 * part))
    fit.addcmul_(rise, part * other * other * _B_WIDTH).addcmul_(fall, part * part * other * -_B_WIDTH)
    rate = (high - low).mul_(6 * part * other / _B_WIDTH)
    rate.addcmul_(rise, other * (1 - 3 * part)).addcmul_(fall, part * (3 * part - 2))
    return fit, rate
