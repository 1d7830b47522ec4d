"""Recurrent inference machine: a learned optimiser that sees the current maps and the likelihood gradient.

sabidussi2021 sections 3 and 4.4.4. The number of images is nowhere in the network.

Two published versions of it differ: the text of the paper, and the package of its authors (EMCqMRI 1.1.17). In the
package the learned rows are the maps themselves in SI units, the gradient is that of a plain sum of squares,

    L = sum_n (|f_n(|kappa|)| - S_n)^2,    kappa <- |kappa + dx|

so a series of more images gives larger gradients, and an error of T2 (about .1 s) weighs little beside one of A.
"""

from dataclasses import replace
from math import log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from generators.config import Count
from qsim.information import jacobian, likelihood_gradient
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel
from qsim.values import value
from trainers.networks.blocks import ConvGRU, Padding, kaiming, torch_start
from trainers.networks.coordinates import Coordinates
from trainers.networks.posterior import damped_step, quadratic, weighted_mean

# SD of the prior that an untrained network holds, in learned coordinates
_PRIOR_SD = 0.5
# entries of the dictionary whose largest image is smaller are left out [units of A]
_LEAST_SIGNAL = 0.1
# the dictionary of the start: relaxation times over their physical range; one inversion depth, near that of imperfect
# pulses, because short series tell depth and time apart badly and a free depth would start most voxels at the ends
_DICTIONARY_TIMES = 40
_DICTIONARY_B = (1.85,)


def si_coordinates(parameters: tuple[Parameter, ...]) -> Coordinates:
    """Coordinates that are the maps themselves [SI]: nothing is scaled, no row starts at 0."""
    return Coordinates(tuple(replace(p, start=0.0, scale=1.0) for p in parameters), logarithmic=False)


def sum_of_squares_gradient(
    model: SignalModel, kappa: Float[Tensor, "q *space"], images: Float[Tensor, "n *space"]
) -> Float[Tensor, "q *space"]:
    """Gradient of the sum of squares of each voxel, as the authors' package takes it.

        d/dkappa sum_n (f_n(|kappa|) - S_n)^2 = 2 sign(kappa) sum_n (f_n - S_n) df_n/dkappa

    sign(0) is 0, and an image at the null of a magnitude adds nothing: the subgradient 0 of the modulus. At a
    relaxation time of 0 (the maps of the background) the derivative is 0 / 0: whatever is no number, or is infinite,
    becomes 0.

    Args:
        kappa: maps [SI].
        images: series S [units of A].
    """
    absolute = kappa.abs()
    signal = model(absolute)
    residual = signal - images
    if not getattr(model, "signed", False):
        residual = torch.where(signal == 0, 0.0, residual)
    slope = 2 * kappa.sign() * (residual * jacobian(model, absolute)).sum(1)
    return torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)


@value
class RIMNetwork:
    """The recurrent inference machine, as a config names it.

    The paper's is `update: additive, gradient: per_n, start: fixed`. That of its authors' package is `update: modulus,
    gradient: sum, start: seconds, activation: relu, weights: torch`.

    Attributes:
        features: channels of every hidden layer and memory state.
        steps: J, number of updates.
        gates: kernel size of the gates of the recurrent units; 1 as in the authors' package.
        update: what the network answers. `additive`: the update of Eq. 5; relaxation times may turn negative, where
            the likelihood gradient is taken at the shortest physical time (`Parameter.lower`), because the signal is
            not defined; the maps themselves are not clipped. `log`: the same for the logarithm of relaxation times.
            `posterior`: in those coordinates, where the neighbourhood expects the voxel to be and how surely: part of
            the way to a weighted mean of the voxels within `radius` (weights and part learned) plus a shift. The
            update is the Gauss-Newton step of the voxel's likelihood under that prior, so the physics is not learned,
            only what a voxel can expect of its neighbours. `modulus`: the maps in SI units, without any scaling, are
            the modulus of old value and answer: |kappa + dx|.
        gradient: `per_n`: d/du of the sum of squares / 2N, the authors' but for the N; the network does not see the
            noise level. `asinh`: asinh of the same per sigma^2: its size tells how sure the data are. `sum`: of the
            sum of squares itself, neither halved nor per image (`sum_of_squares_gradient`).
        start: `fixed`: A the maximum of the images, B = 2, T1 = 1 s, T2 = 0.1 s. `seconds`: the same, but every
            relaxation time is 1 s. `dictionary`: the best of 40 relaxation times at B = 1.85: the right side of the
            null of a magnitude, in most voxels.
        radius: of the square neighbourhood of a `posterior` [voxels].
        padding: what a 3 x 3 kernel sees beyond the border of the image.
        activation: of the convolutions; the paper says tanh, the authors' package has relu.
        weights: their start. `kaiming`: He et al. 2015, as the paper says, the last layer a tenth of it. `torch`: what
            PyTorch does unasked, in all layers.
    """

    kind: Literal["rim"] = "rim"
    features: Count = 36
    steps: Count = 6
    gates: Literal[1, 3] = 1
    update: Literal["posterior", "log", "additive", "modulus"] = "posterior"
    gradient: Literal["asinh", "per_n", "sum"] = "asinh"
    start: Literal["dictionary", "fixed", "seconds"] = "dictionary"
    radius: Count = 5
    padding: Padding = "zeros"
    activation: Literal["tanh", "relu"] = "tanh"
    weights: Literal["kaiming", "torch"] = "kaiming"

    def __post_init__(self) -> None:
        if self.update == "posterior" and self.gradient != "asinh":
            raise ValueError("gradient: update posterior weighs data by sigma, so it needs gradient asinh")

    @property
    def logarithmic(self) -> bool:
        """Whether relaxation times are learned by their logarithm."""
        return self.update in ("posterior", "log")

    @property
    def needs_sigma(self) -> bool:
        """Whether the noise level is an input."""
        return self.gradient == "asinh"

    @property
    def any_length(self) -> bool:
        """Whether one network serves series of every length."""
        return True

    def coordinates(self, parameters: tuple[Parameter, ...]) -> Coordinates:
        """Coordinates in which the network learns the rows `parameters`."""
        return si_coordinates(parameters) if self.update == "modulus" else Coordinates(parameters, self.logarithmic)

    def build(self, model: SignalModel, parameters: tuple[Parameter, ...], generator: torch.Generator) -> "RIM":
        """The network for series of `model`, with its starting weights; the weights do not depend on its times."""
        assert parameters == tuple(model.parameters), "the likelihood needs every row of the model"
        return RIM(self, model, generator)


class RIM(nn.Module):
    """conv 3x3 - GRU - conv 3x3 - conv 3x3 - GRU - conv 1x1, applied J times with two memory states."""

    def __init__(self, spec: RIMNetwork, model: SignalModel, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        self.model = model
        self.coordinates = spec.coordinates(tuple(model.parameters))
        q, f = len(model.parameters), spec.features
        posterior = spec.update == "posterior"
        # maps and gradient; of a posterior also the precisions after the last step
        self.into = nn.Conv2d((3 if posterior else 2) * q, f, 3, padding=1, padding_mode=spec.padding)
        self.first = ConvGRU(f, spec.gates, spec.padding)
        self.middle = nn.ModuleList(nn.Conv2d(f, f, 3, padding=1, padding_mode=spec.padding) for _ in range(2))
        self.second = ConvGRU(f, spec.gates, spec.padding)
        self.out = nn.Conv2d(f, (4 if posterior else 1) * q, 1)
        if spec.weights == "torch":
            torch_start(self, generator)
            return
        kaiming(self, generator)
        with torch.no_grad():
            # the first updates are small: training starts at the start values, not at a random walk away from them
            self.out.weight.mul_(0.1)

    def start(self, images: Float[Tensor, "b n y x"]) -> Float[Tensor, "b q y x"]:
        """Coordinates of the start."""
        return self._dictionary(images) if self.spec.start == "dictionary" else self._fixed(images)

    def _fixed(self, images: Float[Tensor, "b n y x"]) -> Float[Tensor, "b q y x"]:
        """A or M0 = maximum over the images, every other row `Parameter.start`, or relaxation times of 1 s."""
        b, _, *space = images.shape
        seconds = self.spec.start == "seconds"
        values = [1.0 if seconds and p.name in RELAXATION_TIMES else p.start for p in self.model.parameters]
        # in float64: a row that starts at its `Parameter.start` is exactly 0 in coordinates that are 0 there
        encoded = self.coordinates.encode(torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)).flatten()
        rows = [
            (images.amax(1) - p.start) / p.scale if p.name in ("A", "M0") else images.new_full((b, *space), float(u))
            for p, u in zip(self.coordinates.parameters, encoded, strict=True)
        ]
        return torch.stack(rows, 1)

    def _dictionary(self, images: Float[Tensor, "b n y x"]) -> Float[Tensor, "b q y x"]:
        """The entry with the largest d_k' S / |d_k|, the best fit of a series with A > 0; A = d_k' S / |d_k|^2."""
        entries = self._entries().to(images)
        signals = self.model(entries)
        # what has decayed before the first image explains noise only, with an enormous A
        seen = signals.abs().amax(0) > _LEAST_SIGNAL
        entries, signals = entries[:, seen], signals[:, seen]
        energy = signals.square().sum(0)
        with torch.autocast(images.device.type, enabled=False):
            # (voxel, entry): the maximum runs over neighbours in memory
            match, best = (images.movedim(1, -1) @ (signals * energy.rsqrt())).max(-1)
        amplitude = match * energy.rsqrt()[best]
        rows = [
            amplitude if p.name in ("A", "M0") else row[best]
            for p, row in zip(self.coordinates.parameters, entries, strict=True)
        ]
        return self.coordinates.encode(torch.stack(rows, 1))

    def _entries(self) -> Float[Tensor, "q k"]:
        """Maps of the dictionary: A = 1, relaxation times over their range, B of the dictionary; other rows: start."""
        axes = []
        for p in self.model.parameters:
            if p.name in RELAXATION_TIMES:
                axes.append(torch.linspace(log(p.lower), log(p.upper), _DICTIONARY_TIMES).exp())
            elif p.name == "B":
                axes.append(torch.tensor(_DICTIONARY_B))
            else:
                axes.append(torch.tensor([p.start]))
        return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])

    def gradient(
        self, kappa: Float[Tensor, "b q y x"], series: Float[Tensor, "n b y x"], sigma: Float[Tensor, "b ys xs"] | None
    ) -> Float[Tensor, "b q y x"]:
        """Likelihood gradient d L / d u at the maps `kappa`, a constant for the training (first order)."""
        if self.spec.gradient == "sum":
            slope = sum_of_squares_gradient(self.model, kappa.movedim(1, 0), series).movedim(0, 1)
            return slope * self.coordinates.derivative(kappa)
        if not self.spec.logarithmic:
            # exp(-TI / T1) overflows on the way through T1 = 0, and one such voxel makes the whole loss NaN
            rows = zip(self.coordinates.parameters, kappa.unbind(1), strict=True)
            kappa = torch.stack([r.clamp_min(p.lower) if p.name in RELAXATION_TIMES else r for p, r in rows], 1)
        scaled = self.spec.needs_sigma
        slope = likelihood_gradient(
            self.model, kappa.movedim(1, 0), series, sigma if scaled else None, per_sigma2=scaled
        )
        slope = slope.movedim(0, 1) * self.coordinates.derivative(kappa)
        return torch.asinh(slope) if scaled else slope

    def forward(
        self,
        images: Float[Tensor, "b n y x"],
        sigma: Float[Tensor, "b ys xs"] | None,
        last_only: bool = False,
    ) -> Float[Tensor, "b j q y x"]:
        """Coordinates of the maps after each update.

        Args:
            images: series [units of A].
            sigma: noise SD per sample or voxel [units of A]; not used by `per_n` and `sum`.
            last_only: keep only the last update (j = 1).
        """
        series = images.movedim(1, 0).contiguous()
        u = self.start(images)
        states: tuple[Tensor | None, Tensor | None] = (None, None)
        sure = torch.zeros_like(u)
        updates = []
        for _ in range(self.spec.steps):
            if self.spec.update == "posterior":
                assert sigma is not None, "a posterior weighs the data by sigma"
                u, sure, states = self._posterior(u.detach(), sure, series, sigma, states)
            else:
                with torch.no_grad():
                    slope = self.gradient(self.coordinates.decode(u.detach()), series, sigma)
                answer, states = self._cell(torch.cat((u, slope), 1), states)
                u = (u + answer).abs() if self.spec.update == "modulus" else u + answer
            updates.append(u)
        return u[:, None] if last_only else torch.stack(updates, 1)

    def _cell(
        self, x: Float[Tensor, "b c y x"], states: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Float[Tensor, "b r y x"], tuple[Tensor, Tensor]]:
        """The network of one step: its answer and the two memory states."""
        act = torch.tanh if self.spec.activation == "tanh" else torch.relu
        x = act(self.into(x.contiguous(memory_format=torch.channels_last)))
        first = self.first(x, states[0])
        x = first
        for conv in self.middle:
            x = act(conv(x))
        second = self.second(x, states[1])
        return self.out(second).float(), (first, second)

    def _posterior(
        self,
        u: Float[Tensor, "b q y x"],
        sure: Float[Tensor, "b q y x"],
        series: Float[Tensor, "n b y x"],
        sigma: Float[Tensor, "b ys xs"],
        states: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Float[Tensor, "b q y x"], Float[Tensor, "b q y x"], tuple[Tensor, Tensor]]:
        """One Gauss-Newton step from u under the prior that the network answers, and the log-precisions after it."""
        q = u.shape[1]
        with torch.no_grad():
            kappa = self.coordinates.decode(u)
            slope, curvature = quadratic(self.model, kappa, self.coordinates.derivative(kappa), series, sigma)
            seen = torch.asinh(slope / series.shape[0])
        answer, states_now = self._cell(torch.cat((u, seen, sure), 1), states)
        with torch.autocast(u.device.type, enabled=False):
            shift, log_precision, log_weight, gate = answer.split(q, 1)
            # a voxel counts by how well its own data and prior hold it, unless the network says otherwise
            neighbours = weighted_mean(u, torch.exp(4 * (log_weight + sure)), self.spec.radius)
            prior = torch.exp(4 * log_precision) / _PRIOR_SD**2
            # training starts without neighbours: their mean is biased until the voxels have left their start
            towards = torch.tanh(4 * gate) * (neighbours - u) + shift
            step, variances = damped_step(slope, curvature, towards, prior)
            # a Gauss-Newton step is not to be trusted beyond a factor of e
            return u + torch.tanh(step), -0.25 * variances.log(), states_now
