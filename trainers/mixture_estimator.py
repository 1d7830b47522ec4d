"""A mixture network as an estimator: B from all voxels together, then the posterior of T in each, then A.

    B, var B         shared-b over the mask (recoveries; decays have no B)
    u = log T        posterior of the network at that B: mean x, variance s^2
    T = exp(x),      A at its best at T
    covariance       var A e e'  +  s^2 a a'  +  var B c c'        in A, B, T1 or A, T2
        e = (1, 0, 0),   a = (dA/du, 0, T),   c = (dA/dB + dA/du du/dB, 1, T du/dB)

B moves T1 as freely as in a fit (du/dB of `likelihood`), which is an upper bound where neighbours hold it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Status, check_series, computable
from qsim.estimators.shared_b import SharedB
from qsim.parameters import B
from qsim.signals import InversionRecovery
from trainers.network_estimator import NetworkEstimator, nothing
from trainers.networks.mixture.families import family_of, likelihood_of
from trainers.networks.mixture.posterior import Mixture
from trainers.protocols import Protocols

# voxels that are mapped together: about 150 numbers for each at a time
_VOXELS = 1 << 18
# SD of B above which the series says nothing about it: a quarter of its range, as in shared-b [1]
_UNKNOWN = 0.75
# a time this much above the shortest of the grid is marked as on a bound
_AT_END = 1.02


@dataclass(frozen=True, slots=True)
class _Solved:
    """Maps of some slices.

    Attributes:
        kappa: A, B, T1 or A, T2; NaN far outside the mask, as what follows.
        covariance: of them.
        ends: quantiles of the relaxation time.
    """

    kappa: Float[Tensor, "b q y x"]
    covariance: Float[Tensor, "b q q y x"]
    ends: Float[Tensor, "b k y x"]


@dataclass(frozen=True, slots=True)
class MixtureEstimator(NetworkEstimator):
    """A mixture network as an `Estimator`, with the variance and covariance of its posterior.

    Voxels outside the mask count for nothing, neither in B nor as neighbours. The images may be in any unit (numbers
    between 1e-18 and 1e18). A relaxation time at the short end of the grid, .08 s for T1 and 4 ms for decays, is marked
    AT_BOUND: what is shorter comes to lie there.

    Attributes:
        contrast: as in the network's config.
        rician: whether the series are magnitudes with Rician noise, in the likelihood of T; B is pooled as if the noise
            were Gaussian. A voxel with a negative magnitude is not computed then.
        protocols: times of the training beside those of its data; None: none.
    """

    contrast: float = 1.0
    rician: bool = False
    protocols: Protocols | None = None

    @property
    def pools(self) -> tuple[str, ...]:
        """Rows that all voxels of a call share."""
        return ("B",) if isinstance(self.model, InversionRecovery) else ()

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Map a series of one slice (n, y, x) or a stack of slices (n, z, y, x).

        Args:
            images: the series [any unit; A is in the same].
            sigma: noise SD, a number or one per voxel [as images]; None: `noise_sd`.
            mask: voxels that share B, and to estimate; None: all.
            known: {"B": number}: B is not searched.
        Raises: InputError if the series does not fit the network.
        """
        valid = self._valid(images, mask, known)
        rows = [i for i, p in enumerate(self.answers) if p.name in self.targets]
        if not valid.any():
            empty = nothing(len(rows), images)
            shape = (len(rows), len(rows), *images.shape[1:])
            return replace(
                empty, variances={"noise": empty.kappa.clone()}, covariance=images.new_full(shape, torch.nan)
            )
        solved, variance = self._solve(images, sigma, valid, known, ())
        kappa, covariance = solved.kappa[:, rows].movedim(1, 0), solved.covariance.movedim(0, 2)
        space = images.shape[1:]
        kappa = kappa.reshape(-1, *space)
        covariance = covariance[rows][:, rows].reshape(len(rows), len(rows), *space)
        status = self._status(kappa, valid)
        # what is shorter than the grid comes to lie at its end, or just beyond
        short = (solved.kappa[:, -1].reshape(space) < _AT_END * family_of(self.model).shortest) & (status == Status.OK)
        status = torch.where(short, int(Status.AT_BOUND), status).to(torch.uint8)
        if variance > _UNKNOWN**2:
            status = torch.where(valid, int(Status.NOT_CONVERGED), status).to(torch.uint8)
        covariance = torch.where(valid, covariance, torch.nan).to(images.dtype)
        return Estimate(
            torch.where(valid, kappa, torch.nan).to(images.dtype),
            status,
            {"noise": torch.einsum("ii...->i...", covariance).contiguous()},
            covariance,
        )

    def quantiles(
        self,
        images: Float[Tensor, "n *space"],
        levels: Sequence[float],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "k *space"]:
        """Quantiles of the relaxation time: of the posterior, each class widened by the error of B.

            sum_m r_m N(p_m, v_m + (du/dB)^2 var B)

        Args:
            levels: between 0 and 1, as (.025, .975).
        Returns: [s]; NaN where not computed.
        """
        valid = self._valid(images, mask, known)
        if not all(0 < level < 1 for level in levels):
            raise InputError(f"levels: wanted numbers between 0 and 1, got {tuple(levels)}")
        space = images.shape[1:]
        if not valid.any():
            return images.new_full((len(levels), *space), torch.nan)
        solved, _ = self._solve(images, sigma, valid, known, tuple(levels))
        ends = solved.ends.movedim(1, 0).reshape(-1, *space)
        return torch.where(valid, ends, torch.nan).to(images.dtype)

    def _valid(
        self, images: Tensor, mask: Bool[Tensor, "*space"] | None, known: Mapping[str, Tensor] | None
    ) -> Bool[Tensor, "*space"]:
        """Voxels that are mapped.

        Raises: InputError if the series or `known` does not fit.
        """
        try:
            check_series(images, self.model)
        except ValueError as error:
            raise InputError(f"{error}; {self.name} was loaded for these times") from None
        if images.ndim not in (3, 4):
            raise InputError(f"images: a series of slices (n, y, x) or (n, z, y, x) is needed, got {images.ndim} axes")
        if known and not (set(known) == {"B"} and isinstance(self.model, InversionRecovery)):
            can = "B only" if isinstance(self.model, InversionRecovery) else "nothing"
            raise InputError(f"known: {', '.join(known)}: {self.name} can be told {can}")
        if known and torch.as_tensor(known["B"]).unique().numel() > 1:
            raise InputError(f"known: {self.name} takes one number for B, not a map")
        if mask is not None and mask.shape != images.shape[1:]:
            raise InputError(
                f"mask: has shape {tuple(mask.shape)}, the images {tuple(images.shape[1:])}; give one value per voxel"
            )
        valid = computable(images, mask)
        return valid & (images >= 0).all(0) if self.rician else valid

    def _solve(
        self,
        images: Tensor,
        sigma: float | Tensor | None,
        valid: Bool[Tensor, "*space"],
        known: Mapping[str, Tensor] | None,
        levels: tuple[float, ...],
    ) -> tuple[_Solved, float]:
        """Maps of all slices, and the variance of B."""
        space = images.shape[1:]
        series = torch.where(valid, images, 0.0).float()
        noise = self._sigma(series / self.images_unit, sigma, valid)
        assert noise is not None, "this network always needs sigma"
        noise = noise * self.images_unit
        b, variance = self._depth(series, noise, valid, known)
        slices = series.reshape(series.shape[0], -1, *space[-2:]).movedim(0, 1)
        masks = valid.reshape(-1, *space[-2:])
        # what lies outside the mask counts for nothing: only a window about it is computed
        window = _window(masks, _reach(self.net))
        slices, masks = slices[:, :, *window], masks[:, *window]
        if noise.shape[-2:] != (1, 1):
            noise = noise[:, *window]
        per_chunk = max(1, _VOXELS // masks[0].numel())
        parts = []
        for i in range(0, len(slices), per_chunk):
            rows = slice(i, i + per_chunk)
            levels_here = noise if noise.shape[0] == 1 else noise[rows]
            parts.append(self._posterior(slices[rows], masks[rows], levels_here, b, variance, levels))
        whole = []
        for name in ("kappa", "covariance", "ends"):
            maps = torch.cat([getattr(part, name) for part in parts])
            whole.append(maps.new_full((*maps.shape[:-2], *space[-2:]), torch.nan))
            whole[-1][..., *window] = maps
        return _Solved(*whole), variance

    def _depth(
        self,
        series: Float[Tensor, "n *space"],
        noise: Float[Tensor, "b_or_1 ys xs"],
        valid: Bool[Tensor, "*space"],
        known: Mapping[str, Tensor] | None,
    ) -> tuple[float | None, float]:
        """B of all voxels by its own method, and its variance; None and 0 of a model without B."""
        if not isinstance(self.model, InversionRecovery):
            return None, 0.0
        # a map of sigma has the shape of the images
        level = float(noise) if noise.numel() == 1 else noise.reshape(valid.shape)
        pooled = SharedB(self.model, covariance=True)(series, level, valid, known)
        first = valid.flatten().nonzero()[0, 0]
        # B lies between its bounds: no variance is larger than that of two values at the ends
        most = ((B.upper - B.lower) / 2) ** 2
        stated = float(pooled.variances["noise"][1].flatten()[first])
        return float(pooled.kappa[1].flatten()[first]), stated if stated < most else most

    def _posterior(
        self,
        slices: Float[Tensor, "b n y x"],
        mask: Bool[Tensor, "b y x"],
        sigma: Float[Tensor, "b_or_1 ys xs"],
        b: float | None,
        variance: float,
        levels: tuple[float, ...],
    ) -> _Solved:
        home = slices.device
        slices, mask, sigma = slices.to(self.device), mask.to(self.device), sigma.to(self.device)
        depth = None if b is None else slices.new_full((len(slices),), b)
        likelihood = likelihood_of(self.model, slices, sigma, mask, b=depth, rician=self.rician)
        with torch.inference_mode():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                answer = self.net(likelihood, mask, True, self.contrast)
            mixture = Mixture(*answer[:, 0].float().unbind(1))
            x, spread = mixture.centre, mixture.spread
            a = likelihood.local(x).amplitude
            slopes = likelihood.slopes(x, a)
            t, zero = x.exp(), torch.zeros_like(x)
            rows = [a, t] if b is None else [a, torch.full_like(a, b), t]
            along = [slopes.amplitude_by_u, t] if b is None else [slopes.amplitude_by_u, zero, t]
            of_u = torch.stack(along, 1)
            covariance = of_u[:, :, None] * of_u[:, None] * spread[:, None, None]
            by_b = zero
            if slopes.u_by_b is not None and slopes.amplitude_by_b is not None:
                by_b = slopes.u_by_b
                amplitude = slopes.amplitude_by_b + slopes.amplitude_by_u * by_b
                of_b = torch.stack((amplitude, torch.ones_like(x), t * by_b), 1)
                covariance += of_b[:, :, None] * of_b[:, None] * variance
            covariance[:, 0, 0] += slopes.amplitude_variance * sigma.square()
            wide = Mixture(mixture.share, mixture.mean, mixture.variance + (by_b.square() * variance)[:, None])
            ends = [x.new_zeros(len(x), 0, *x.shape[1:])]
            ends += [wide.quantile(level).exp()[:, None] for level in levels]
            kappa = torch.stack(rows, 1)
        return _Solved(kappa.to(home), covariance.to(home), torch.cat(ends, 1).to(home))


def _window(masks: Bool[Tensor, "b y x"], reach: int) -> tuple[slice, slice]:
    """Rows and columns that hold the masks of all slices, and `reach` more on each side as far as there are any."""
    there = masks.any(0)
    ends = [line.nonzero()[[0, -1], 0].tolist() for line in (there.any(1), there.any(0))]
    rows, columns = (slice(max(first - reach, 0), last + 1 + reach) for first, last in ends)
    return rows, columns


def _reach(net: nn.Module) -> int:
    """How far the layers of one step look [voxels].

    Their input is 0 outside the mask, but their biases give them answers there, which the next layer sees.
    """
    layers = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    return sum(layer.kernel_size[0] // 2 * layer.dilation[0] for layer in layers)
