"""The relaxation constraint: two images of a series say of each other what the relaxation times say of both.

A signal that is linear in A, S = A g(kappa), leaves A out of the quotient of two images:

    I_m = I_n g_m(kappa) / g_n(kappa)

so that relaxation times are learned from images alone, without A and without a map (huang2022 Eq. 3). Decays with one
time, and with one for each of two preparations, have the quotient in closed form, which neither overflows nor
underflows where a single signal would:

    g_m / g_n = exp(sum_j (t_nj - t_mj) / T_j)

Every other model takes the quotient of its own signals: an offset, two decays side by side, a Bloch model with its
fields as rows. All of it is differentiable in kappa.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import T1RHO, T2, C, Parameter
from qsim.signals.base import DifferentiableModel, SignalModel, time_axis
from qsim.signals.decays import MonoExponential
from qsim.signals.joint_decay import SpinLockT2Prep

Pair = tuple[int, int]
Order = Literal["both", "decaying"]


def constraint_pairs(images: tuple[int, ...], order: Order = "both") -> tuple[Pair, ...]:
    """Pairs (m, n) of images that one relaxation time joins: I_m is said by I_n.

    Args:
        images: their numbers in the series, in the order of their times.
        order: both: every ordered pair, as huang2022; decaying: only m later than n, whose quotient of a decay is at
            most 1, so that no noise is magnified.
    Raises: ValueError if there are fewer than two images, or one twice.
    """
    if order not in ("both", "decaying"):
        raise ValueError(f"order: got {order!r}; choose both or decaying")
    if len(images) < 2 or len(set(images)) < len(images):
        raise ValueError(f"images: got {images}; give the numbers of at least two different images")
    places = range(len(images))
    return tuple((images[i], images[j]) for i in places for j in places if i > j or (order == "both" and i < j))


@dataclass(frozen=True, slots=True)
class RelaxationConstraint:
    """What each image of a series says of the others, given all rows of a model but A.

    A constant C counts in units of A: the signal at A = 1 is g + C, and C A is the constant in units of the images.

    Attributes:
        model: its signal is linear in A (and C), voxel by voxel.
    Raises: ValueError if it is not, or has no A.
    """

    model: SignalModel

    def __post_init__(self) -> None:
        if "A" not in (parameter.name for parameter in self.model.parameters):
            raise ValueError("model: has no row A that a quotient of images could leave out; choose one that has")
        if getattr(self.model, "mixes_voxels", False):
            raise ValueError("model: its readout mixes voxels, so A stays in the quotient; set encoding to centre")
        if not _linear(self.model):
            raise ValueError("model: its signal is not linear in A, so A stays in the quotient; choose one that is")

    @property
    def rows(self) -> tuple[Parameter, ...]:
        """Rows of kappa: the model's without A; C in units of A."""
        return tuple(parameter for parameter in self.model.parameters if parameter.name != "A")

    def signals(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """g, the signal at A = 1 [1].

        Args:
            kappa: maps of `rows` [SI; C in units of A].
        """
        return self.model(self._whole(kappa))

    def residual(
        self, images: Float[Tensor, "n *space"], kappa: Float[Tensor, "q *space"], pairs: Sequence[Pair]
    ) -> Float[Tensor, "p *space"]:
        """I_m - I_n g_m / g_n of every pair (m, n) [unit of the images].

        Where g_n is 0 nothing follows from I_n, and the residual is not finite.

        Args:
            images: all of the series.
            kappa: maps of `rows` [SI; C in units of A].
            pairs: numbers of images.
        Raises: ValueError if rows, images and pairs are not those of the model.
        Source: huang2022 Eq. 3; huang2023 Eq. 3, 4.
        """
        later, earlier = self._numbers(images, pairs)
        _check_space(images, kappa)
        return torch.addcmul(_at(images, later), _at(images, earlier), self._quotient(kappa, later, earlier), value=-1)

    def slopes(
        self, images: Float[Tensor, "n *space"], kappa: Float[Tensor, "q *space"], pairs: Sequence[Pair]
    ) -> Float[Tensor, "q p *space"]:
        """Derivative of the residuals with respect to each row [unit of the images per unit of the row].

            d residual / d kappa = -I_n (g_m' - g_m / g_n g_n') / g_n,
            of a decay              -I_n g_m / g_n (t_m - t_n) / T^2

        Args:
            images, kappa, pairs: as `residual`.
        Raises: as `residual`.
        """
        later, earlier = self._numbers(images, pairs)
        _check_space(images, kappa)
        said = _at(images, earlier)
        quotient = self._quotient(kappa, later, earlier)
        decays = _decay_times(self.model)
        if decays is not None:
            gaps = [_gaps(decays[row.name], later, earlier) for row in self.rows]
            return torch.stack([said * quotient * time_axis(g, t) / t**2 for g, t in zip(gaps, kappa, strict=True)])
        g, slope = self.signals(kappa), self._jacobian(kappa)
        to_later, to_earlier = (_at(slope.movedim(1, 0), numbers).movedim(0, 1) for numbers in (later, earlier))
        return -said * (to_later - quotient * to_earlier) / _at(g, earlier)

    def _quotient(
        self, kappa: Float[Tensor, "q *space"], later: list[int], earlier: list[int]
    ) -> Float[Tensor, "p *space"]:
        """g_m / g_n [1]."""
        decays = _decay_times(self.model)
        if decays is None:
            g = self.signals(kappa)
            return _at(g, later) / _at(g, earlier)
        self._check_rows(kappa)
        exponent: Tensor | None = None
        for row, t in zip(self.rows, kappa, strict=True):
            gaps = _gaps(decays[row.name], later, earlier)
            # pairs of one contrast leave the other time out
            if any(gaps) or exponent is None:
                term = time_axis(gaps, t) / t
                exponent = term if exponent is None else exponent + term
        assert exponent is not None
        return exponent.exp()

    def _whole(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q_and_one *space"]:
        """The model's kappa at A = 1."""
        self._check_rows(kappa)
        place = self._place
        return torch.cat((kappa[:place], torch.ones_like(kappa[:1]), kappa[place:]))

    @property
    def _place(self) -> int:
        """Which row of the model A is."""
        return [parameter.name for parameter in self.model.parameters].index("A")

    def _jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """d g / d kappa, in closed form if the model has one, else by forward-mode differentiation."""
        if isinstance(self.model, DifferentiableModel):
            slope = self.model.jacobian(self._whole(kappa))
            return torch.cat((slope[: self._place], slope[self._place + 1 :]))
        slopes = []
        for number in range(len(self.rows)):
            # voxels do not mix: one tangent serves them all
            tangent = torch.zeros_like(kappa)
            tangent[number] = 1
            slopes.append(torch.func.jvp(self.signals, (kappa,), (tangent,))[1])
        return torch.stack(slopes)

    def _check_rows(self, kappa: Tensor) -> None:
        if kappa.shape[0] != len(self.rows):
            names = ", ".join(row.name for row in self.rows)
            raise ValueError(f"kappa: has {kappa.shape[0]} rows; give {names} (all rows of the model but A)")

    def _numbers(self, images: Tensor, pairs: Sequence[Pair]) -> tuple[list[int], list[int]]:
        """m and n of every pair."""
        n = self.model.n_images
        if images.shape[0] != n:
            raise ValueError(f"images: got {images.shape[0]}, the model has {n} times; give one image for each")
        if not pairs:
            raise ValueError("pairs: there is none; give at least one pair of images")
        for pair in pairs:
            if len(pair) != 2 or len({*pair}) != 2 or any(not isinstance(i, int) or not 0 <= i < n for i in pair):
                raise ValueError(f"pairs: got {pair}; give two different images from 0 to {n - 1}")
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _check_space(images: Tensor, kappa: Tensor) -> None:
    """Raises: ValueError unless images and kappa have the same voxels."""
    if images.shape[1:] != kappa.shape[1:]:
        raise ValueError(
            f"kappa: has voxels of shape {tuple(kappa.shape[1:])}, the images {tuple(images.shape[1:])}; give one "
            "value of each row for every voxel"
        )


def _decay_times(model: SignalModel) -> dict[str, tuple[float, ...]] | None:
    """Times that each relaxation time acts for in a pure decay [s]; None for any other model."""
    if isinstance(model, MonoExponential):
        return {parameter.name: model.times for parameter in model.parameters if parameter.name != "A"}
    if isinstance(model, SpinLockT2Prep):
        return {T1RHO.name: model.tsl, T2.name: model.te_prep}
    return None


def _at(series: Tensor, numbers: list[int]) -> Tensor:
    """Images of these numbers: their gradient is a sum of whole images, which is faster than that of an index."""
    images = series.unbind()
    return torch.stack([images[number] for number in numbers])


def _gaps(times: tuple[float, ...], later: list[int], earlier: list[int]) -> tuple[float, ...]:
    """t_n - t_m of every pair [s]."""
    return tuple(times[n] - times[m] for m, n in zip(later, earlier, strict=True))


def _linear(model: SignalModel) -> bool:
    """Whether twice A (and C) makes twice the signal, where searches start and at a second tissue."""
    start = [1.0 if parameter.name == "A" else parameter.start for parameter in model.parameters]
    kappa = torch.tensor([start, [0.7 * x for x in start]], dtype=torch.float64).T
    kappa[[parameter.name == C.name for parameter in model.parameters]] = 0.25
    scaled = torch.tensor([parameter.name in ("A", "C") for parameter in model.parameters])
    once, twice = model(kappa), model(torch.where(scaled[:, None], 2 * kappa, kappa))
    return torch.allclose(twice, 2 * once, rtol=1e-9, atol=1e-12)
