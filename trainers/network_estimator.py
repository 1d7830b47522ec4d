"""A trained network as an estimator, and the noise level it is told."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from generators.config import GeneratorConfig
from qsim.errors import InputError
from qsim.estimators.base import Estimate, Status, check_series, computable
from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from trainers.networks.coordinates import Coordinates

# voxels that are mapped together: about 36 channels of three layers in 0.5 GB
_VOXELS = 1 << 20
# images up to this factor outside the range of the training are still mapped
_SCALE_MARGIN = 4.0
CPU = torch.device("cpu")


def noise_sd(images: Float[Tensor, "n *space"], voxels: Bool[Tensor, "*space"], n_parameters: int) -> float:
    """Noise SD of a series from what no smooth family of signals explains [units of A].

    The second-moment matrix of the series over the voxels has a few eigenvalues of signal and a floor of noise. The
    mean of the lower half of the floor, over what it is for white noise of SD 1 in as many images and voxels, is
    sigma^2. A series of a few images leaves some signal there and overestimates sigma a little; within-tissue
    contrast does not enter, other than in estimates from the image plane.

    Args:
        images: series [units of A].
        voxels: what to use.
        n_parameters: rows of the signal model.
    Raises: InputError if the series is too short or holds too few voxels.
    Source: eigenvalues of white noise: Marchenko and Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994.
    """
    n = images.shape[0]
    chosen = images[:, voxels].double()
    if n < n_parameters + 2 or chosen.shape[1] < 10 * n:
        raise InputError(
            f"sigma: cannot be estimated from {n} images of {chosen.shape[1]} voxels "
            f"(needs {n_parameters + 2} images and {10 * n} voxels); give it"
        )
    eigenvalues = torch.linalg.eigvalsh(chosen @ chosen.T / chosen.shape[1])
    n_noise = n - n_parameters
    n_lower = max(1, n_noise // 2)
    white = _lowest_eigenvalues(n_noise / chosen.shape[1], n_lower / n_noise)
    return float((eigenvalues[:n_lower].mean() / white).clamp(min=0).sqrt())


def _lowest_eigenvalues(ratio: float, share: float) -> float:
    """Mean of the lowest `share` of the eigenvalues of the second moments of white noise of SD 1.

        density of x = 1 + r - 2 sqrt(r) cos(t), 0 <= t <= pi:   sin(t)^2 / x dt

    Args:
        ratio: r, images over voxels, below 1.
    """
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) * torch.pi / 1000
    x = 1 + ratio - 2 * ratio**0.5 * torch.cos(t)
    density = torch.sin(t) ** 2 / x
    lowest = density.cumsum(0) <= share * density.sum()
    return float((density * x)[lowest].sum() / density[lowest].sum())


@dataclass(frozen=True, slots=True)
class NetworkEstimator:
    """A trained network as an `Estimator`.

    Every voxel of the image is mapped, and its neighbours serve as context whether inside the mask or not. Nothing is
    clipped: a voxel whose estimate lies outside the physical range of a parameter is marked AT_BOUND.

    Attributes:
        name: as in tables.
        net: the network, in inference mode.
        model: signal model of the series.
        answers: rows of the network's answer.
        targets: names of the rows of the estimate.
        coordinates: in which the network answers.
        needs_sigma: whether the noise level is an input of the network.
        device: where it runs.
        bf16: multiply in bfloat16.
        scale: lowest and highest 99th percentile of the maximum image in the training [units of A]; None: unknown.
        images_unit: the images are divided by this number before, and A multiplied by it after the network.
        trained_on: data of the training; None: unknown.
    """

    name: str
    net: nn.Module
    model: SignalModel
    answers: tuple[Parameter, ...]
    targets: tuple[str, ...]
    coordinates: Coordinates
    needs_sigma: bool
    device: torch.device = CPU
    bf16: bool = False
    scale: tuple[float, float] | None = None
    images_unit: float = 1.0
    trained_on: GeneratorConfig | None = None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.answers if p.name in self.targets)

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Map a series of one slice (n, y, x) or a stack of slices (n, z, y, x).

        Args:
            images: the series [units of A of the training, times `images_unit`].
            sigma: noise SD, a number or one per voxel [as images]; None: `noise_sd` where the network needs it.
            mask: voxels to estimate; None: all.
            known: not supported by networks.
        Raises: InputError if the series does not fit the network.
        """
        try:
            check_series(images, self.model)
        except ValueError as error:
            raise InputError(f"{error}; {self.name} was loaded for these times") from None
        if images.ndim not in (3, 4):
            raise InputError(f"images: a series of slices (n, y, x) or (n, z, y, x) is needed, got {images.ndim} axes")
        if known:
            raise InputError(f"known: {', '.join(known)} cannot be used by {self.name}, which learned without it")
        space = images.shape[1:]
        valid = computable(images, mask)
        if not valid.any():
            return nothing(len(self.parameters), images)
        series = torch.where(torch.isfinite(images), images, 0.0).float() / self.images_unit
        self._check_scale(series, valid)
        levels = self._sigma(series, sigma, valid)
        slices = series.reshape(series.shape[0], -1, *space[-2:]).movedim(0, 1)
        per_chunk = max(1, _VOXELS // (space[-2] * space[-1]))
        chunks = [
            self._map(slices[i : i + per_chunk], levels, slice(i, i + per_chunk))
            for i in range(0, len(slices), per_chunk)
        ]
        kappa = torch.cat(chunks).movedim(1, 0).reshape(-1, *space)
        for row, parameter in enumerate(self.parameters):
            if parameter.name in ("A", "M0", "C"):
                kappa[row] *= self.images_unit
        return Estimate(torch.where(valid, kappa, torch.nan).to(images.dtype), self._status(kappa, valid))

    def _map(
        self, slices: Float[Tensor, "b n y x"], levels: Float[Tensor, "b_or_1 ys xs"] | None, rows: slice
    ) -> Float[Tensor, "b q y x"]:
        if levels is not None:
            levels = (levels if levels.shape[0] == 1 else levels[rows]).to(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            u = self.net(slices.to(self.device), levels, True)[:, -1].float()
        kappa = self.coordinates.decode(u).cpu()
        return kappa[:, [i for i, p in enumerate(self.answers) if p.name in self.targets]]

    def _sigma(
        self, series: Float[Tensor, "n *space"], sigma: float | Tensor | None, valid: Bool[Tensor, "*space"]
    ) -> Float[Tensor, "b ys xs"] | None:
        """Noise SD as slices, or one number for all of them; None where the network does not see it."""
        if not self.needs_sigma:
            return None
        if sigma is None:
            found = noise_sd(series, valid, len(self.model.parameters))
            if found == 0:
                raise InputError("sigma: the series holds no noise; give the SD that the network shall assume")
            return torch.full((1, 1, 1), found)
        level = torch.as_tensor(sigma, dtype=torch.float32) / self.images_unit
        if not (torch.isfinite(level) & (level > 0)).all():
            raise InputError("sigma: must be finite and positive everywhere")
        if level.ndim == 0:
            return level.reshape(1, 1, 1)
        try:
            return level.expand(series.shape[1:]).reshape(-1, *series.shape[-2:])
        except RuntimeError:
            raise InputError(
                f"sigma: has shape {tuple(level.shape)}, the images {tuple(series.shape[1:])}; "
                "give one number, or a map of that shape"
            ) from None

    def _check_scale(self, series: Float[Tensor, "n *space"], valid: Bool[Tensor, "*space"]) -> None:
        if self.scale is None:
            return
        top = float(torch.quantile(series.amax(0)[valid][: 1 << 24], 0.99))
        low, high = self.scale
        if not low / _SCALE_MARGIN <= top <= high * _SCALE_MARGIN:
            unit = top * self.images_unit / high
            raise InputError(
                f"images: the 99th percentile of their maximum is {top:.3g}, "
                f"{self.name} was trained on {low:.2g} to {high:.2g}; "
                f"load it with images_unit={unit:.3g}, or divide the series by that"
            )

    def _status(self, kappa: Float[Tensor, "q *space"], valid: Bool[Tensor, "*space"]) -> UInt8[Tensor, "*space"]:
        outside = torch.zeros_like(valid)
        for row, parameter in zip(kappa, self.parameters, strict=True):
            outside |= (row < parameter.lower) | (row > parameter.upper)
        status = torch.where(outside, int(Status.AT_BOUND), int(Status.OK))
        # no comparison with NaN is true: a network that diverged must not pass for in range
        return torch.where(valid & torch.isfinite(kappa).all(0), status, int(Status.NOT_COMPUTED)).to(torch.uint8)


def nothing(n_rows: int, images: Float[Tensor, "n *space"]) -> Estimate:
    """What is returned where no voxel can be computed."""
    space = images.shape[1:]
    status = torch.full(space, int(Status.NOT_COMPUTED), dtype=torch.uint8)
    return Estimate(images.new_full((n_rows, *space), torch.nan), status)
