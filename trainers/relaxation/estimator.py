"""A network that learned from the relaxation constraint, as an estimator: relaxation times and how sure they are.

The series holds one image common to all contrasts and a later one of each; every slice is divided by its own
`joint_scale`, which leaves the quotients as they are, so that the unit of the images does not matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite, lcm
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from qsim.errors import InputError
from qsim.estimators.base import Estimate, Status, check_series, computable
from qsim.evaluation.calibration import Factor, SdCalibration
from qsim.parameters import Parameter
from qsim.signals import SpinLock
from qsim.signals.base import SignalModel
from qsim.signals.constraint import RelaxationConstraint
from trainers.network_estimator import nothing
from trainers.relaxation.contrasts import contrasts, inputs, intervals, joint_scale
from trainers.relaxation.uncertainty import Sampled, delta_scale, has_dropout, sample

CPU = torch.device("cpu")
# a time this close to a bound of the network lies on it: it only comes near to one [share of the bound]
_NEAR = 1e-3
# intervals up to this much outside those of the training are still mapped [share]
_BEYOND = 0.2


@dataclass(frozen=True, slots=True)
class RelaxationEstimator:
    """Networks that map relaxation times from two or three images, as an `Estimator`.

    Every voxel of the image is mapped, and its neighbours serve as context whether inside the mask or not. A side that
    the network cannot halve often enough is continued by reflection and cropped again.

    `variances` holds "epistemic", between all networks and samples (left out of a single pass), and "aleatoric", from
    the Laplace scale (left out of networks that tell none; NaN in rows that are no contrast's relaxation time).
    `delta`: 2 b_T^2 by the delta method on the mono-exponential constraint between the first image and the later one;
    where these say nothing of T, as in air, its SD is limited to the width of the bounds, before the calibration.
    `literal`: b^2 as huang2022 Eq. 9 has it, in squares of the normalised signal and no variance of a time; only for
    comparison.

    Attributes:
        name: as in tables.
        nets: one network, or an ensemble; their attribute `multiple` is what the sides must be multiples of.
        model: signal model of the images at hand: one common image, and one later one of each contrast.
        rows: of the network's answer.
        samples: passes of Monte Carlo dropout of each network; 0: one pass without dropout.
        units: of the aleatoric variance.
        calibration: factor of the SD by row, one for all voxels or by their total SD; it multiplies both variances by
            its square; 1 where a row is missing.
        seed: of the dropout.
        device: where the networks are.
        bf16: multiply in bfloat16.
        trained_intervals: shortest and longest time between the common and the later image in the training, for each
            contrast of the model [s]; None: unknown.
        bounds: of the network's answers by row [SI]; those of the parameter where a row is missing.
        first_slice: number of the first slice of a series. A slice that is mapped alone has the same dropout as in its
            stack if it is given its number there.
    """

    name: str
    nets: tuple[nn.Module, ...]
    model: SignalModel
    rows: tuple[Parameter, ...]
    samples: int = 20
    units: Literal["delta", "literal"] = "delta"
    calibration: Mapping[str, Factor] = field(default_factory=dict)
    seed: int = 0
    device: torch.device = CPU
    bf16: bool = False
    trained_intervals: tuple[tuple[float, float], ...] | None = None
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    first_slice: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be mapped.

        Raises: InputError, or ValueError, with the field.
        """
        if not self.nets:
            raise InputError("nets: none was given; give at least one network")
        if self.samples < 0 or self.seed < 0 or self.first_slice < 0:
            name = next(each for each in ("samples", "seed", "first_slice") if getattr(self, each) < 0)
            raise InputError(f"{name}: must not be negative, got {getattr(self, name)}; give 0 or more")
        if self.units not in ("delta", "literal"):
            raise InputError(f"units: wanted delta or literal, got {self.units!r}; take delta")
        if self.samples > 0 and not all(has_dropout(net) for net in self.nets):
            raise InputError(f"samples: {self.name} has no dropout to draw from; give samples=0")
        names = [row.name for row in self.rows]
        for what, given in (("calibration", self.calibration), ("bounds", self.bounds)):
            for name in given:
                if name not in names:
                    raise InputError(f"{what}.{name}: {self.name} has no such row, it has {', '.join(names)}")
        for name, factor in self.calibration.items():
            if not isinstance(factor, SdCalibration) and not (isfinite(factor) and factor > 0):
                raise InputError(f"calibration.{name}: must be finite and positive, got {factor}; 1 changes nothing")
        for name, (low, high) in self.bounds.items():
            if not low < high:
                raise InputError(f"bounds.{name}: the lower one must be below the upper one, got {low:g} and {high:g}")
        found = inputs(self.model)
        if len(found) != 1 or len(found[0]) != self.model.n_images:
            raise InputError(
                f"model: its {self.model.n_images} images make {len(found)} inputs; {self.name} takes one common image "
                "and one later one of each contrast, so choose these"
            )
        self._check_intervals()

    def _check_intervals(self) -> None:
        if self.trained_intervals is None:
            return
        joined = contrasts(self.model)
        if len(self.trained_intervals) != len(joined):
            raise InputError(
                f"trained_intervals: {len(self.trained_intervals)} of {len(joined)} contrasts; give one range for each"
            )
        here = intervals(inputs(self.model)[0], joined)
        for each, time, (low, high) in zip(joined, here, self.trained_intervals, strict=True):
            if not low * (1 - _BEYOND) <= time <= high * (1 + _BEYOND):
                raise InputError(
                    f"times: {1e3 * time:g} ms lie between the two images of {each.row.name}; {self.name} was trained "
                    f"on {1e3 * low:g} to {1e3 * high:g} ms; take images that far apart, or train on these times"
                )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.rows

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,  # noqa: ARG002 - part of the protocol
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Map a series of one slice (n, y, x) or a stack of slices (n, z, y, x).

        Args:
            images: the series [any unit].
            sigma: not needed: the network judges the noise by the images.
            mask: voxels to estimate; None: all.
            known: not supported by networks.
        Raises: InputError if the series does not fit the network.
        """
        try:
            check_series(images, self.model)
        except ValueError as error:
            raise InputError(f"{error}; {self.name} was loaded for these times") from None
        if not images.is_floating_point():
            raise InputError(f"images: real floating-point numbers are needed, got {images.dtype}; convert them")
        if images.ndim not in (3, 4):
            raise InputError(f"images: a series of slices (n, y, x) or (n, z, y, x) is needed, got {images.ndim} axes")
        if known:
            raise InputError(f"known: {', '.join(known)} cannot be used by {self.name}, which learned without it")
        space = images.shape[1:]
        if 0 in space:
            raise InputError(f"images: hold no voxel, their shape is {tuple(images.shape)}; give at least one")
        if mask is not None and mask.shape != space:
            raise InputError(f"mask: has shape {tuple(mask.shape)}, the images {tuple(space)}; give one per voxel")
        valid = computable(images, mask)
        series = torch.where(torch.isfinite(images), images, 0.0)[list(inputs(self.model)[0])]
        slices = series.reshape(series.shape[0], -1, *space[-2:]).movedim(0, 1)
        scale = joint_scale(slices)
        # a slice whose 99th percentile is 0 has no brightness to be normalised by, and joint_scale leaves it as it is
        dark = (scale == 1) & (joint_scale(2 * slices) == 1)
        valid = valid & ~dark[:, 0].expand(-1, *space[-2:]).reshape(space)
        if not valid.any():
            return nothing(len(self.rows), images)
        maps = self._map((slices / scale).float())
        kappa, *variances = (
            None if each is None else each.movedim(1, 0).reshape(-1, *space).to(images.device)
            for each in (maps.mean, maps.aleatoric, maps.epistemic)
        )
        assert kappa is not None
        factors = self._factors(kappa, [each for each in variances if each is not None])
        return Estimate(
            torch.where(valid, kappa, torch.nan).to(images.dtype),
            self._status(kappa, valid),
            {
                name: torch.where(valid, each * factors, torch.nan).to(images.dtype)
                for name, each in zip(("aleatoric", "epistemic"), variances, strict=True)
                if each is not None
            },
        )

    def _factors(self, kappa: Float[Tensor, "q *space"], variances: Sequence[Tensor]) -> Float[Tensor, "q *space"]:
        """What the variances of each row are multiplied by."""
        found = []
        for i, row in enumerate(self.rows):
            factor = self.calibration.get(row.name, 1.0)
            if isinstance(factor, SdCalibration) and variances:
                total = torch.stack([each[i].double() for each in variances]).sum(0).sqrt()
                of_voxel = torch.from_numpy(factor(total.cpu().numpy())).to(kappa)
            else:
                of_voxel = torch.full_like(kappa[i], 1.0 if isinstance(factor, SdCalibration) else factor)
            found.append(of_voxel.square())
        return torch.stack(found)

    def _map(self, slices: Float[Tensor, "b k y x"]) -> Sampled:
        """The passes over slices that are normalised."""
        height, width = slices.shape[-2:]
        multiple = lcm(*(int(getattr(net, "multiple", 1)) for net in self.nets))
        padded = slices[..., _reflected(height, multiple), :][..., _reflected(width, multiple)]
        times = intervals(inputs(self.model)[0], contrasts(self.model))
        found = sample(
            self.nets,
            padded.to(self.device),
            torch.tensor(times, dtype=torch.float32, device=self.device).expand(len(slices), -1),
            self.samples,
            self.seed,
            range(self.first_slice, self.first_slice + len(slices)),
            self._variance,
            self.bf16,
        )
        if found.mean.shape[1] != len(self.rows):
            raise InputError(
                f"rows: the network answers {found.mean.shape[1]} rows, {len(self.rows)} were named; name each of them"
            )
        cropped = (
            None if each is None else each[..., :height, :width]
            for each in (found.mean, found.epistemic, found.aleatoric)
        )
        return Sampled(*cropped)  # type: ignore[arg-type]

    def _variance(
        self, images: Float[Tensor, "k y x"], rows: Float[Tensor, "q y x"], log_scale: Float[Tensor, "r y x"]
    ) -> Float[Tensor, "q y x"]:
        """Aleatoric variance of one pass over one slice: of the contrasts' rows; NaN in others."""
        variance = torch.full_like(rows, torch.nan)
        joined = {each.row.name: (place, each) for place, each in enumerate(contrasts(self.model), start=1)}
        learned = [i for i, row in enumerate(self.rows) if row.name in joined]
        for i, log_b in zip(learned, log_scale, strict=True):
            place, contrast = joined[self.rows[i].name]
            if self.units == "literal":
                variance[i] = torch.exp(2 * log_b)
                continue
            low, high = self._bounds(self.rows[i])
            b = delta_scale(
                _decay(contrast.times), ((1, 0),), images[[0, place]], rows[i : i + 1], log_b, (high - low,)
            )
            variance[i] = 2 * b[0].square()
        return variance

    def _bounds(self, row: Parameter) -> tuple[float, float]:
        return self.bounds.get(row.name, (row.lower, row.upper))

    def _status(self, kappa: Float[Tensor, "q *space"], valid: Bool[Tensor, "*space"]) -> UInt8[Tensor, "*space"]:
        at_bound = torch.zeros_like(valid)
        for values, row in zip(kappa, self.rows, strict=True):
            low, high = self._bounds(row)
            at_bound |= (values <= low + _NEAR * abs(low)) | (values >= high - _NEAR * abs(high))
        status = torch.where(at_bound, int(Status.AT_BOUND), int(Status.OK))
        # no comparison with NaN is true: a network that diverged must not pass for in range
        return torch.where(valid & torch.isfinite(kappa).all(0), status, int(Status.NOT_COMPUTED)).to(torch.uint8)


@lru_cache(maxsize=64)
def _decay(times: tuple[float, ...]) -> RelaxationConstraint:
    """The mono-exponential constraint on images of these times [s]: one formula, whatever the time constant's name."""
    return RelaxationConstraint(SpinLock(tsl=times))


def _reflected(size: int, multiple: int) -> Int64[Tensor, " p"]:
    """Which sample stands at each place of an axis that is continued by reflection up to the next multiple."""
    period = max(1, 2 * (size - 1))
    place = torch.arange(-(-size // multiple) * multiple) % period
    return torch.where(place < size, place, period - place)
