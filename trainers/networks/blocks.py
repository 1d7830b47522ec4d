"""Layers that several networks share. None of them looks further than its kernel: no statistics over batch or image."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Padding = Literal["zeros", "replicate"]


class ConvGRU(nn.Module):
    """Gated recurrent unit with convolutional gates.

        r = sigmoid(W_r * x + U_r * h)
        z = sigmoid(W_z * x + U_z * h)
        n = tanh(W_n * x + r (U_n * h))
        h' = n + z (h - n)

    Source: Cho et al. 2014, arXiv:1406.1078, in the form of torch.nn.GRU; sabidussi2021's package has kernel 1.
    """

    def __init__(self, features: int, kernel: int, padding: Padding) -> None:
        super().__init__()
        self.of_input = nn.Conv2d(features, 3 * features, kernel, padding=kernel // 2, padding_mode=padding)
        self.of_state = nn.Conv2d(features, 3 * features, kernel, padding=kernel // 2, padding_mode=padding)

    def forward(self, x: Float[Tensor, "b f y x"], h: Float[Tensor, "b f y x"] | None) -> Float[Tensor, "b f y x"]:
        """The next state; `h` None is a state of zeros."""
        x_r, x_z, x_n = self.of_input(x).chunk(3, 1)
        if h is None:
            bias = self.of_state.bias
            assert bias is not None
            h_r, h_z, h_n = bias.to(x_r.dtype).reshape(1, -1, 1, 1).chunk(3, 1)
        else:
            h_r, h_z, h_n = self.of_state(h).chunk(3, 1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        # not torch.lerp: it refuses mixed dtypes under CPU autocast
        return n - z * n if h is None else n + z * (h - n)


class ChannelNorm(nn.Module):
    """Normalisation over the channels of each voxel by itself.

    A voxel's result depends on no other voxel and no other image, so one image alone equals the same image in a batch,
    training equals inference, and the share of background in an image changes nothing.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Float[Tensor, "b f y x"]) -> Float[Tensor, "b f y x"]:
        voxels = x.permute(0, 2, 3, 1)
        return functional.layer_norm(voxels, voxels.shape[-1:], self.weight, self.bias).permute(0, 3, 1, 2)


def kaiming(net: nn.Module, generator: torch.Generator, gain: float = 2**0.5) -> None:
    """Kaiming start of every convolution in the order of the modules; biases 0.

    Source: He et al. 2015, arXiv:1502.01852.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0.0, gain / fan_in**0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def torch_start(net: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's own start of every convolution in the order of the modules, drawn from `generator`.

        weights and biases uniform in +-1 / sqrt(fan-in)

    Of a recurrent unit with 1 x 1 gates this is also the start of `torch.nn.GRU`: its fan-in is its number of features.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
