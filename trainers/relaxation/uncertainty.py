"""How uncertain a map of relaxation times is: what the network does not know, and what the images do not say.

Epistemic: K networks are drawn by leaving dropout on (Monte Carlo dropout), or several were trained (a deep ensemble);
the map is their mean and the variance is that between them, over all networks and samples alike.

    mu = 1/K sum_k T_k                 Sigma = 1/K sum_k (T_k - mu)^2

Aleatoric: the network also tells the Laplace scale b_S of the residual I_m - I_n exp(-(t_m - t_n) / T), whose variance
is 2 b_S^2. It is a signal, not a time. What error of T makes a residual of that size follows from its slope,

    b_T = b_S / rms over pairs of |d residual / d T|,        variance 2 b_T^2,

in each sample at its own T, then averaged over samples as huang2022 Eq. 9 does with b_S^2.

Source: huang2022 Eq. 5, 6 and 9; Gal and Ghahramani 2016, arXiv:1506.02142; ensembles: Lakshminarayanan et al. 2017,
arXiv:1612.01474.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qsim.errors import InputError
from qsim.signals.constraint import RelaxationConstraint
from trainers.global_stream import GLOBAL_STREAM

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# variance [SI^2] (q, y, x) of the images (k, y, x), the rows (q, y, x) and the log of the Laplace scale (r, y, x)
Variance = Callable[[Tensor, Tensor, Tensor], Tensor]


def has_dropout(net: nn.Module) -> bool:
    """Whether Monte Carlo dropout can draw anything from the network."""
    return any(isinstance(layer, _DROPOUT) and layer.p > 0 for layer in net.modules())


@contextmanager
def dropout_active(net: nn.Module, active: bool = True) -> Iterator[None]:
    """Leave values out as in training, while all else works as in use: batch normalisation by its running statistics.

    Args:
        active: False: dropout too works as in use.
    Every layer is in its former mode afterwards.
    """
    before = [(layer, layer.training) for layer in net.modules()]
    try:
        net.eval()
        for layer, _ in before:
            if isinstance(layer, _DROPOUT):
                layer.train(active)
        yield
    finally:
        for layer, mode in before:
            layer.training = mode


@contextmanager
def _draws(device: torch.device, seed: int, net: int, number: int, sample: int) -> Iterator[None]:
    """Dropout draws from a stream of its own for (seed, network, slice, sample); the global state stays as it was."""
    key = (zlib.crc32(b"dropout"), net, number, sample)
    drawn = int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
    if device.type != "cuda":
        with GLOBAL_STREAM, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(drawn)
            yield
        return
    place = torch.cuda.current_device() if device.index is None else device.index
    with GLOBAL_STREAM, torch.random.fork_rng(devices=[place]):
        torch.cuda.default_generators[place].manual_seed(drawn)
        yield


@dataclass(frozen=True, slots=True)
class Sampled:
    """What several passes say together.

    Attributes:
        mean: of the rows [SI].
        epistemic: variance between the passes, 1/K; None of a single pass [SI^2].
        aleatoric: mean over the passes; None of networks that tell no scale [SI^2].
    """

    mean: Float[Tensor, "b q y x"]
    epistemic: Float[Tensor, "b q y x"] | None
    aleatoric: Float[Tensor, "b q y x"] | None


def sample(
    nets: Sequence[nn.Module],
    images: Float[Tensor, "b k y x"],
    intervals: Float[Tensor, "b r"],
    samples: int,
    seed: int,
    slices: Sequence[int],
    variance: Variance,
    bf16: bool = False,
) -> Sampled:
    """Mean and variances over all networks and samples.

    Each slice passes alone, and its dropout is drawn from a stream that (seed, network, number of the slice, sample)
    name. The answer of a slice is therefore the same, to the bit, whatever other slices are mapped with it. CUDA draws
    other numbers than a CPU.

    Args:
        nets: one network, or an ensemble.
        images: normalised [1].
        intervals: from the first image to that of each contrast [s].
        samples: passes of Monte Carlo dropout of each network; 0: one pass without dropout.
        slices: number of each slice.
        variance: aleatoric variance of one pass.
        bf16: multiply in bfloat16.
    Raises: InputError if some networks tell a scale and others do not.
    Source: huang2022 Eq. 5, 6, 9; the running mean is Welford 1962, doi:10.1080/00401706.1962.10490022.
    """
    parts = [
        _sample(nets, images[i : i + 1], intervals[i : i + 1], samples, seed, number, variance, bf16)
        for i, number in enumerate(slices)
    ]
    return Sampled(
        torch.stack([part.mean for part in parts]), *(_stacked(parts, name) for name in ("epistemic", "aleatoric"))
    )


@dataclass(frozen=True, slots=True)
class _OfSlice:
    """As `Sampled`, of one slice."""

    mean: Float[Tensor, "q y x"]
    epistemic: Float[Tensor, "q y x"] | None
    aleatoric: Float[Tensor, "q y x"] | None


def _stacked(parts: Sequence[_OfSlice], name: str) -> Float[Tensor, "b q y x"] | None:
    maps = [getattr(part, name) for part in parts]
    return None if maps[0] is None else torch.stack(maps)


@torch.no_grad()
def _sample(
    nets: Sequence[nn.Module],
    images: Float[Tensor, "1 k y x"],
    intervals: Float[Tensor, "1 r"],
    samples: int,
    seed: int,
    number: int,
    variance: Variance,
    bf16: bool,
) -> _OfSlice:
    # running sums only, so that K maps need not be held at once
    mean = torch.zeros(())
    squares = torch.zeros(())
    spread = torch.zeros(())
    passes = told = 0
    for which, net in enumerate(nets):
        for turn in range(max(1, samples)):
            with (
                dropout_active(net, samples > 0),
                _draws(images.device, seed, which, number, turn),
                torch.autocast(images.device.type, torch.bfloat16, enabled=bf16),
            ):
                answer = net(images, intervals)
            rows = answer["rows"][0].float()
            passes += 1
            off = rows - mean.to(rows.device)
            mean = mean.to(rows.device) + off / passes
            squares = squares.to(rows.device) + off * (rows - mean)
            if answer.get("log_scale") is not None:
                told += 1
                spread = spread.to(rows.device) + variance(images[0], rows, answer["log_scale"][0].float())
    if told not in (0, passes):
        raise InputError("nets: some tell a scale and others do not; take networks that were trained alike")
    return _OfSlice(mean, squares / passes if passes > 1 else None, spread / passes if told else None)


def delta_scale(
    constraint: RelaxationConstraint,
    pairs: Sequence[tuple[int, int]],
    images: Float[Tensor, "n *space"],
    rows: Float[Tensor, "q *space"],
    log_scale: Float[Tensor, "*space"],
    widths: Sequence[float],
) -> Float[Tensor, "q *space"]:
    """Laplace scale of the rows from that of the residuals (delta method, each row by itself).

        b_T = b_S / rms over pairs of |d residual / d T|

    Where the images say nothing of T the slope vanishes, as in air: the SD, sqrt(2) b_T, is limited to the width of the
    range that T is bounded to.

    Args:
        constraint: of the images.
        pairs: of their numbers.
        images: in the units of b_S.
        rows: of the constraint [SI].
        log_scale: log b_S.
        widths: largest SD of each row [SI].
    Returns: b_T [SI].
    """
    slope = constraint.slopes(images, rows, tuple(pairs)).square().mean(1).sqrt()
    # the log of no slope is -inf and its scale inf: a quotient of two numbers could be 0/0
    scale = torch.exp(log_scale - slope.log())
    return torch.stack([each.clamp(max=width / 2**0.5) for each, width in zip(scale, widths, strict=True)])
