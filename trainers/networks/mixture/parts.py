"""What mixture networks share: their configs, how features are scaled, means over neighbours, a safe convolution."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from qsim.parameters import Parameter
from qsim.signals.base import SignalModel
from trainers.networks.mixture.families import times_of
from trainers.networks.mixture.start import Start

# SD of log T within a tissue that the networks are scaled to [1]
WITHIN = 0.05


class PosteriorNetwork:
    """What a config of a mixture network has in common with every other: its likelihood brings the physics."""

    __slots__ = ()

    @property
    def logarithmic(self) -> bool:
        """Whether relaxation times are learned by their logarithm."""
        return True

    @property
    def needs_sigma(self) -> bool:
        """Whether the noise level is an input."""
        return True

    @property
    def any_length(self) -> bool:
        """Whether one network serves series of every length."""
        return True

    @staticmethod
    def check(model: SignalModel, parameters: tuple[Parameter, ...]) -> None:
        """Raises: InputError if the model is neither an inversion recovery with free B nor a decay with one time."""
        times_of(model)
        assert parameters == tuple(model.parameters), "the likelihood needs every row of the model"


class SafeConv(nn.Conv2d):
    """A convolution that keeps the channels of a voxel together in memory (channels-last), unless it is dilated.

    Dilated bf16 convolutions in that layout gave gradients that are no number, or ended in a memory error, for many
    numbers of channels (torch 2.13 on CPU).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name of torch
        layout = torch.channels_last if self.dilation == (1, 1) else torch.contiguous_format
        return functional.conv2d(
            input.contiguous(memory_format=layout),
            self.weight.contiguous(memory_format=layout),
            self.bias,
            padding=self.padding,
            dilation=self.dilation,
        )


def squash(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """sign(x) log(1 + |x|): as asinh, at a sixth of its time."""
    return torch.sign(x) * torch.log1p(x.abs())


def log_sd(sd: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The logarithm of an SD, brought to about 1 in size."""
    return sd.log().clamp(-6, 1) / 2 + 1


def box(maps: Float[Tensor, "b c y x"], radius: int) -> Float[Tensor, "b c y x"]:
    """Sum over a square; beyond the border nothing counts."""
    size = 2 * radius + 1
    rows = functional.avg_pool2d(maps, (size, 1), 1, (radius, 0))
    return functional.avg_pool2d(rows, (1, size), 1, (0, radius)) * size**2


@torch.no_grad()
def alike(
    observed: Float[Tensor, "b y x"],
    noise: Float[Tensor, "b y x"],
    x: Float[Tensor, "b y x"],
    s: Float[Tensor, "b y x"],
    begun: Start,
    mask: Bool[Tensor, "b y x"],
    radius: int,
) -> tuple[Float[Tensor, "b y x"], Float[Tensor, "b y x"]]:
    """Mean of u* over the neighbours that look alike, in T1 and in brightness q, and its precision.

    k_vn = exp(-((x_n - x_v)^2 / (s_n^2 + s_v^2 + .08^2) + (q_n - q_v)^2 / (2 noise^2 + (.1 q_v)^2)) / 2)
    mean = sum_n k_vn u*_n / (d_n^2 + .05^2) / sum_n k_vn / (d_n^2 + .05^2)

    Args:
        observed, noise: u* and d^2.
    """
    height, width = x.shape[1:]
    variance, q = s.square(), begun.brightness
    weight = mask / (noise + WITHIN**2)
    padded = [functional.pad(m[:, None], (radius,) * 4)[:, 0] for m in (observed, variance, x, q, weight)]
    expected = 2 * begun.noise.square() + (0.1 * q).square()
    total, summed = torch.zeros_like(x), torch.zeros_like(x)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            u_n, v_n, x_n, q_n, w_n = (m[:, dy : dy + height, dx : dx + width] for m in padded)
            apart = (x_n - x).square().div_(v_n + variance + 0.08**2).add_((q_n - q).square().div_(expected))
            k = torch.exp(apart.mul_(-0.5)).mul_(w_n)
            total += k
            summed += k * u_n
    total = total.clamp_min(1e-6)
    return summed / total, total
