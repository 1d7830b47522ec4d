"""`task: {kind: self_supervised}`: relaxation times from two or three images, learned without maps.

    I_m = I_n g_m(kappa) / g_n(kappa)        for pairs (m, n) of all images of the slice
    loss  |I_m - I_n g_m / g_n|                                        huang2022 Eq. 4
          |I_m - I_n g_m / g_n| / s + log s                            huang2022 Eq. 8, huang2023 Eq. 5

The network sees one input of a slice, the loss every image of it. The examples of a batch take the inputs in turn, so
that each batch holds all times: batch normalisation trained on one time at a time is of no use for the others.

A pair that holds an image of the input has its noise in common with what the network sees, and is fulfilled best by a
map that follows the noise. `constraints: independent` leaves such pairs out: what is then learned is what the input
says of images that it does not hold, as in Noise2Noise (Lehtinen et al. 2018, arXiv:1803.04189).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qsim.errors import InputError
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals.base import SignalModel
from qsim.signals.constraint import Pair, RelaxationConstraint, constraint_pairs
from trainers.data import Batch
from trainers.networks.relaxation.answers import range_of
from trainers.networks.relaxation.two_stream import TwoStreamNetwork
from trainers.networks.relaxation.unet import UNetNetwork
from trainers.relaxation.cohort import FITTED
from trainers.relaxation.contrasts import Contrast, Input, check_input, contrasts, inputs, intervals, joint_scale
from trainers.relaxation.losses import laplace, reconstruction
from trainers.relaxation.moving import draws, moved
from trainers.relaxation.task_config import Corruption, SelfSupervisedTask
from trainers.variety import Variety

# share of a moved voxel's neighbours that must have had a value [1]
_WHOLE = 0.999


@dataclass(frozen=True, slots=True)
class RelaxationLearning:
    """The task, matched to the series of a cohort.

    Attributes:
        spec: the task as the config names it.
        network: the network as the config names it.
        model: ideal decay of the series.
        maps: rows of `Batch.kappa`.
        seed: of the moves.
    """

    spec: SelfSupervisedTask
    network: UNetNetwork | TwoStreamNetwork
    model: SignalModel
    maps: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        spec, names = self.spec, [each.row.name for each in self.joined]
        for where, asked in (("rows", spec.rows), ("weights", tuple(spec.weights))):
            unknown = [name for name in asked if name not in names]
            if unknown:
                raise InputError(f"task.{where}: {', '.join(unknown)} is no contrast of the data: {', '.join(names)}")
        self._check_weights()
        if spec.corrupt is not None and spec.corrupt.row not in self.targets:
            raise InputError(f"task.corrupt.row: {spec.corrupt.row} is not learned; {', '.join(self.targets)} is")
        for i, chosen in enumerate(spec.inputs):
            check_input(chosen, self.model)
            if chosen in spec.inputs[:i]:
                raise InputError(f"task.inputs[{i}]: {list(chosen)} is given twice; give it once")
        if isinstance(self.network, TwoStreamNetwork) and spec.supervision == "constraint":
            try:
                spec.without_pairs("two_stream learns by synthesis")
            except ValueError as error:
                raise InputError(f"task.{error}") from None
        if spec.relaxation is not None:
            if isinstance(self.network, TwoStreamNetwork):
                raise InputError("task.relaxation: two_stream synthesises the ideal decay; take a unet")
            try:
                theirs = contrasts(self.constraint.model)
            except ValueError as error:
                raise InputError(f"task.relaxation: {str(error).removeprefix('model: ')}; take a decay") from None
            if [each.times for each in theirs] != [each.times for each in self.joined]:
                raise InputError("task.relaxation: its times are not those of the series")
        for chosen in self.inputs if self.of_pairs else ():
            if not all(any(row) for row in self.counted[self.inputs.index(chosen)]):
                raise InputError(
                    f"task.constraints: {spec.constraints} leaves no pair for the input {list(chosen)}; "
                    "take all, or more images"
                )

    def _check_weights(self) -> None:
        """Refuse weights that act on nothing, and a scale that nothing teaches.

        Raises: InputError.
        """
        weights = self.spec.weights
        idle = [name for name in weights if name not in self.targets]
        if idle:
            raise InputError(
                f"task.weights: {', '.join(idle)} is not learned, {', '.join(self.targets)} is; leave it out"
            )
        if not any(weights.get(name, 1.0) > 0 for name in self.targets):
            raise InputError("task.weights: all are 0, so that nothing is learned; give one above 0")
        if not isinstance(self.network, UNetNetwork):
            return
        if self.network.scale != "none" and self.spec.supervision != "constraint":
            raise InputError(
                f"network.scale: {self.network.scale} learns nothing with supervision: {self.spec.supervision}, and "
                "would be taken for the uncertainty of the map; set it to none"
            )
        if self.spec.beta and self.network.scale == "none":
            raise InputError("task.beta: weighs by the Laplace scale, and network.scale is none; leave one of them out")

    def check_batch(self, batch: int, devices: int) -> None:
        """Refuse batches in which a device sees one input only.

        Raises: InputError.
        """
        n = len(self.inputs)
        if n > 1 and (batch // devices < 2 or devices % n == 0):
            raise InputError(
                f"batch: {batch} on {devices} device(s) shows a device one of the {n} inputs only, and batch "
                f"normalisation trained on one input is of no use for others; take at least {2 * devices}, and a "
                f"number of devices that is no multiple of {n}"
            )

    def _check_shifts(self, batch: Batch) -> None:
        """Refuse shifts that leave nothing of an image.

        Raises: InputError.
        """
        y, x = batch.series.shape[-2:]
        longest = max(self.spec.augment.shifts, default=0) if self.spec.augment is not None else 0
        if longest >= min(y, x):
            raise InputError(
                f"task.augment.shifts: {longest} voxels move an image of {y} x {x} out of sight; give smaller ones"
            )

    @property
    def variety(self) -> Variety:
        return Variety()

    @property
    def joined(self) -> tuple[Contrast, ...]:
        """Contrasts of the series."""
        return contrasts(self.model)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Inputs that are learned from."""
        return self.spec.inputs or inputs(self.model)

    @property
    def targets(self) -> tuple[str, ...]:
        """Relaxation times of the learned contrasts."""
        return tuple(each.row.name for each in self.joined if not self.spec.rows or each.row.name in self.spec.rows)

    @property
    def constraint(self) -> RelaxationConstraint:
        """What relaxation says of the images."""
        return RelaxationConstraint(self.model if self.spec.relaxation is None else self.spec.relaxation)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Rows of the network's answer."""
        if self.spec.relaxation is None:
            return tuple(each.row for each in self.joined if each.row.name in self.targets)
        return tuple(row for row in self.constraint.rows if row.name not in self.maps or row.name in self.targets)

    @property
    def of_pairs(self) -> bool:
        """Whether the loss is one of constraint pairs."""
        return self.spec.supervision == "constraint" and not isinstance(self.network, TwoStreamNetwork)

    @property
    def pairs(self) -> tuple[tuple[Pair, ...], ...]:
        """Constraint pairs of each learned contrast."""
        learned = [each for each in self.joined if each.row.name in self.targets]
        return tuple(constraint_pairs(each.images, self.spec.order) for each in learned)

    @property
    def counted(self) -> tuple[tuple[tuple[bool, ...], ...], ...]:
        """Of each input and learned contrast: which pairs are in the loss."""
        least = {"all": 3, "without_inputs": 2, "independent": 1}[self.spec.constraints]
        return tuple(
            tuple(tuple(len({*pair} & {*chosen}) < least for pair in of_contrast) for of_contrast in self.pairs)
            for chosen in self.inputs
        )

    def shown(
        self, batch: Batch, training: bool
    ) -> tuple[
        Float[Tensor, "b n y x"], Float[Tensor, "b q y x"], Float[Tensor, "b k y x"], Float[Tensor, "b r"], list[int]
    ]:
        """Series and maps after the move, the input, its intervals, and the number of each example's input."""
        device, positions = batch.series.device, batch.positions.cpu()
        self._check_shifts(batch)
        maps = draws(self.spec.augment if training else None, self.seed, positions)
        # a time that was moved between voxels with one and voxels without is none
        times = [i for i, name in enumerate(self.maps) if name.removeprefix(FITTED) in RELAXATION_TIMES]
        known = (batch.kappa[:, times] > 0).float()
        parts = (batch.series.float(), batch.kappa.float(), known)
        series, kappa, known = moved(torch.cat(parts, 1), maps).split([each.shape[1] for each in parts], 1)
        kappa = kappa.clone()
        kappa[:, times] = torch.where((known > _WHOLE) | (known == 0), kappa[:, times], torch.nan)
        numbers = [int(position) % len(self.inputs) for position in positions]
        rows = torch.arange(len(numbers), device=device)[:, None]
        seen = series[rows, torch.tensor([self.inputs[i] for i in numbers], device=device)]
        scale = joint_scale(seen)
        spans = torch.tensor([intervals(each, self.joined) for each in self.inputs], device=device, dtype=torch.float32)
        return series / scale, kappa, seen / scale, spans[numbers], numbers

    def updates(self, net: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """The losses of a batch, one for each update of the weights."""
        training = net.training
        series, kappa, seen, spans, numbers = self.shown(batch, training)
        if self.spec.backward == "together" or not self.of_pairs:
            yield self._loss(net(seen, spans), series, kappa, numbers, batch, None)
            return
        for number in range(sum(len(each) for each in self.pairs)):
            weights = self._weights(numbers, number, series.device)
            if any(bool(each.any()) for each in weights):
                yield self._loss(net(seen, spans), series, kappa, numbers, batch, number)

    def loss(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The loss of all pairs together, as `total`."""
        series, kappa, seen, spans, numbers = self.shown(batch, net.training)
        return {"total": self._loss(net(seen, spans), series, kappa, numbers, batch, None)}

    def _weights(self, numbers: Sequence[int], only: int | None, device: torch.device) -> list[Float[Tensor, "b p"]]:
        """Of each pair of each learned contrast in the loss of each example; `only`: one pair of all."""
        first, found = 0, []
        for place, of_contrast in enumerate(self.pairs):
            counts = np.array([self.counted[number][place] for number in numbers], dtype=np.float32)
            if only is not None:
                counts *= np.arange(first, first + len(of_contrast)) == only
            found.append(torch.from_numpy(counts).to(device))
            first += len(of_contrast)
        return found

    def _loss(
        self,
        found: Mapping[str, Tensor],
        series: Float[Tensor, "b n y x"],
        kappa: Float[Tensor, "b q y x"],
        numbers: Sequence[int],
        batch: Batch,
        only: int | None,
    ) -> Tensor:
        # where a moved series holds nothing every map fits, and the likelihood has no bound
        everywhere = (series != 0).any(1)
        if self.spec.supervision != "constraint":
            return self._by_maps(found["rows"], kappa, everywhere)
        residuals = self.residuals(found, series, kappa, batch)
        if isinstance(self.network, TwoStreamNetwork):
            return reconstruction(residuals[0], torch.ones_like(residuals[0][:, :, 0, 0]), everywhere).mean()
        total = series.new_zeros(())
        for place, each in enumerate(residuals):
            weights = self._weights(numbers, only, series.device)[place]
            if "log_scale" in found:
                term = laplace(each, found["log_scale"][:, place], weights, everywhere, self.spec.beta)
            else:
                term = reconstruction(each, weights, everywhere)
            total = total + self.spec.weights.get(self.targets[place], 1.0) * term.mean()
        return total

    def residuals(
        self,
        found: Mapping[str, Tensor],
        series: Float[Tensor, "b n y x"],
        kappa: Float[Tensor, "b q y x"],
        batch: Batch,
    ) -> list[Float[Tensor, "b p y x"]]:
        """Of each learned contrast [normalised signal]; of two streams: of every image."""
        if "s0" in found:
            times = series.new_tensor(self.joined[0].times)[None, :, None, None]
            images = series[:, list(self.joined[0].images)]
            return [images - found["s0"] * torch.exp(-times / found["rows"])]
        constraint = self.constraint
        rows = self._rows(found["rows"], kappa, constraint.rows)
        result = []
        for name, pairs in zip(self.targets, self.pairs, strict=True):
            images, worse = series, self.spec.corrupt
            if worse is not None and worse.row == name:
                images = self._moved_apart(worse, name, series, batch) * worse.scale
            result.append(constraint.residual(images.movedim(1, 0), rows, pairs).movedim(0, 1))
        return result

    def _rows(
        self, answered: Float[Tensor, "b q y x"], kappa: Float[Tensor, "b m y x"], wanted: Sequence[Parameter]
    ) -> Float[Tensor, "k b y x"]:
        """All rows of the constraint: learned ones, those that the data know, and 1 s for a time not learned."""
        names = [row.name for row in self.parameters]
        found = []
        for row in wanted:
            if row.name in names:
                found.append(answered[:, names.index(row.name)])
            elif self.spec.relaxation is not None and row.name in self.maps:
                known = kappa[:, self.maps.index(row.name)]
                # outside of the body a stored time is 0, at its moved edge NaN
                found.append(torch.where(known > 0, known, row.start) if row.unit == "s" else known)
            else:
                # no pair of a learned contrast depends on it
                found.append(torch.ones_like(answered[:, 0]))
        return torch.stack(found)

    def _moved_apart(
        self, worse: Corruption, name: str, series: Float[Tensor, "b n y x"], batch: Batch
    ) -> Float[Tensor, "b n y x"]:
        if worse.motion is None:
            return series
        contrast = next(each for each in self.joined if each.row.name == name)
        later = contrast.images[1:]
        maps = [worse.motion.draw(self.seed, int(position), len(later)) for position in batch.positions.cpu()]
        result = series.clone()
        for place, image in enumerate(later):
            result[:, image] = moved(series[:, image : image + 1], [each[place] for each in maps])[:, 0]
        return result

    def _by_maps(
        self,
        rows: Float[Tensor, "b q y x"],
        kappa: Float[Tensor, "b m y x"],
        everywhere: Bool[Tensor, "b y x"],
    ) -> Tensor:
        """Mean absolute error over the typical size of each row (huang2022 section 4.3, supervised)."""
        prefix = FITTED if self.spec.supervision == "fit" else ""
        total = rows.new_zeros(())
        for place, row in enumerate(self.parameters):
            wanted = kappa[:, self.maps.index(prefix + row.name)]
            within = range_of(row, self.network.shortest, self.network.longest)
            # air and moved borders hold no truth; what a fit says beyond the network's bounds is told as the bound
            counted = torch.isfinite(wanted) & (wanted > 0) & everywhere
            error = (rows[:, place] - wanted.clamp(within.low, within.high)).abs() / row.scale
            total = total + torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)
        return total

    @torch.no_grad()
    def begin(self, net: nn.Module, batch: Batch) -> None:
        """Start the log of the Laplace scale of each contrast at that of the residuals, whatever the unit they have."""
        plain = getattr(net, "log_scale", None)
        if not isinstance(plain, Tensor) or not self.of_pairs:
            return
        series, kappa, seen, spans, _ = self.shown(batch, training=False)
        was = net.training
        net.eval()
        found = self.residuals(net(seen, spans), series, kappa, batch)
        net.train(was)
        plain.copy_(torch.stack([each.abs().mean().clamp(min=1e-6).log() for each in found]))

    @torch.no_grad()
    def metrics(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums over a validation batch of the absolute residual of images that the input does not hold, in the body."""
        series, kappa, seen, spans, numbers = self.shown(batch, training=False)
        found = net(seen, spans)
        inside = batch.labels > 0
        sums = {"count": inside.sum().double()}
        constraint = self.constraint
        rows = self._rows(found["rows"], kappa, constraint.rows)
        for place, (name, pairs) in enumerate(zip(self.targets, self.pairs, strict=True)):
            residual = constraint.residual(series.movedim(1, 0), rows, pairs).movedim(0, 1).abs()
            apart = [[len({*pair} & {*self.inputs[i]}) == 0 for pair in self.pairs[place]] for i in numbers]
            weights = torch.tensor(apart, dtype=torch.float32, device=series.device)
            if not weights.any(1).all():
                weights = torch.ones_like(weights)
            counted = torch.where(weights[:, :, None, None] > 0, residual, 0.0)
            mean = counted.sum(1) / weights.sum(1)[:, None, None]
            sums[f"residual_{name}"] = torch.where(inside, mean, 0.0).double().sum()
        return sums
