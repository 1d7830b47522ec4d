"""Dictionary matching for models without a closed form: Bloch sequences, Look-Locker trains, MOLLI, extended phase
graphs.

Which rows are searched and which must be known is a rule, not a guess:

-   A is found in closed form: the signal must be proportional to it.
-   A sequence with a preparation is searched for what it prepares: T1RHO after a spin-lock, T2 after a T2 preparation,
    T1 after an inversion (look_locker_train and molli too). Its other rows, T1, T2, T2RHO, DELTA_B0 and REL_B1, must
    be given in `known`, each as a number or a map: the series does not hold them, and a silent value would be a bias.
-   multi_echo_spin_echo is searched for T2 and REL_B1.
-   Any other model is searched for every row but A, save DELTA_B0 and REL_B1, which must be given.
-   Whatever is given in `known` is not searched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, pi

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.matching.dictionary_table import Axis, Matched, Space, axis, match, slices
from qsim.estimators.noise_level import noise_level
from qsim.estimators.projection.separable import units
from qsim.estimators.voxels import gather, known_map, noise_covariance, scatter, statuses
from qsim.parameters import RELAXATION_TIMES, Parameter
from qsim.signals import MOLLI, Bloch, ClosedForm, LookLockerTrain, MultiEchoSpinEcho
from qsim.signals.base import SignalModel, SpatialModel

_FIELDS = ("DELTA_B0", "REL_B1")
_PREPARED = {"spin_lock": "T1RHO", "t2_prep": "T2", "inversion": "T1"}
# nodes of a relaxation time, by how many rows are searched, and of any other row
_NODES = {1: 128, 2: 64, 3: 32}
_OTHER_NODES = 33
_FEWEST = 16
# rows of a closed form that are searched: least-squares finds the global minimum of those with more
_MOST = 2


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Matching with simulated signals, refined between them: least squares without a call of the model per voxel.

    The signals and their derivatives are simulated on a grid once per call (and per slice of the known maps), so the
    grid is not the resolution: what is left of it is the third order of half a step. A readout that mixes voxels is
    taken at the contrast of the centre of k-space (`pointwise`).

    Of REL_B1 and 2 pi / (refocusing angle) - REL_B1, which refocus (nearly) alike, the smaller is returned for
    multi_echo_spin_echo; where the field exceeds that middle, give `known.REL_B1`.

    Attributes:
        model: any whose signal is proportional to A.
        covariance: also return the inverse Fisher information at the estimate, with `sigma`, or where that is None
            with the noise of the background or of the residuals. What is known adds no variance.
        size: nodes of each relaxation time, at least 16; 0: 128, 64 or 32 where one, two or three rows are searched.
    Assumes: real Gaussian noise of one sigma per voxel. The minimum is the lowest of up to three valleys, which for
        more than one row and low SNR need not be the global one: at SNR 20 one in 300 recoveries with B and T1 searched
        is left more than 1 % above it, so least-squares is the better choice for a closed form.
        Not: Rician noise, whose mean is raised.
    """

    model: SignalModel
    covariance: bool = False
    size: int = 0

    def __post_init__(self) -> None:
        if self.size != 0 and self.size < _FEWEST:
            raise InputError(f"estimators: dictionary: size: got {self.size}, needs at least {_FEWEST} nodes, or 0")
        rows = self.parameters
        if rows[0].name != "A":
            raise InputError(f"estimators: dictionary needs a model with A as its first row, got {rows[0].name}")
        for parameter in rows[1:]:
            if not (isfinite(parameter.lower) and isfinite(parameter.upper)):
                raise InputError(
                    f"estimators: dictionary cannot search {parameter.name}, which has no bounds; use least-squares"
                )
        point = torch.tensor([[p.start, p.start] for p in rows], dtype=torch.float64)
        point[0, 1] *= 2
        once, twice = self.base(point).unbind(1)
        if not torch.allclose(2 * once, twice, rtol=1e-9, atol=1e-12):
            raise InputError("estimators: dictionary needs a model whose signal is proportional to A")

    @property
    def name(self) -> str:
        return "dictionary"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    @property
    def base(self) -> SignalModel:
        """The model, voxel by voxel."""
        model = self.model
        return model.pointwise if isinstance(model, SpatialModel) and model.mixes_voxels else model

    @property
    def searched(self) -> tuple[str, ...]:
        """Rows that are searched unless they are known."""
        model = self.model
        if isinstance(model, Bloch):
            return (_PREPARED[model.preparation.kind],)
        if isinstance(model, LookLockerTrain | MOLLI):
            return ("T1",)
        if isinstance(model, MultiEchoSpinEcho):
            return ("T2", "REL_B1")
        return tuple(p.name for p in self.parameters[1:] if p.name not in _FIELDS)

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Match every voxel.

        Args:
            images: the series [units of A].
            sigma: noise SD, used for the covariance only [units of A].
            mask: voxels to match; None: all.
            known: rows by name, numbers or maps [SI]; see the module for which are needed.
        Raises: InputError if the series, the mask, sigma or `known` does not fit the model.
        """
        y, where = gather(images, self.model, mask)
        given = self._given(known, where)
        fixed = tuple(given)
        free = [p.name for p in self.parameters[1:] if p.name not in given]
        if not free:
            raise InputError("known: holds every row but A; leave out what is to be found")
        if self.model.n_images < len(free) + 1:
            raise InputError(
                f"images: {self.model.n_images} images cannot determine {len(free) + 1} rows (A, {', '.join(free)})"
            )
        if isinstance(self.model, ClosedForm) and len(free) > _MOST:
            raise InputError(
                f"estimators: dictionary would often miss the minimum of {self.model.kind} with {len(free)} searched "
                f"rows ({', '.join(free)}); use least-squares, or give one of them in known"
            )
        series = y.double()
        if series.shape[1] == 0:
            empty = y.new_zeros(len(self.parameters), 0)
            return Estimate(scatter(empty, where), statuses(empty, self.parameters, where[where], where, fixed))
        space, places = self._space(free, given, series)
        # neither the unit of the images nor other voxels change what is found
        unit = units(series)
        found = match(space, series / unit, places)
        kappa = self._kappa(space, found, given, unit)
        status = statuses(kappa, self.parameters, found.converged, where, fixed)
        maps = scatter(kappa.to(images.dtype), where)

        def residual() -> tuple[Float[Tensor, " v"], int]:
            return found.objective * unit**2, self.model.n_images - len(free) - 1

        level = noise_level(images, sigma, where, residual) if self.covariance or sigma is not None else None
        if level is None or not self.covariance:
            return Estimate(maps, status, noise_level=level)
        covariance = noise_covariance(self.base, kappa, level.at(where), fixed).to(images.dtype)
        q = len(kappa)
        variances = scatter(torch.einsum("iiv->iv", covariance), where)
        full = scatter(covariance.reshape(q * q, -1), where).reshape(q, q, *where.shape)
        return Estimate(maps, status, {"noise": variances}, full, level)

    def _given(
        self, known: Mapping[str, Tensor] | Mapping[str, float] | None, where: Bool[Tensor, "*space"]
    ) -> dict[str, Tensor]:
        """What is known at the voxels, by row.

        Raises: InputError if a row that must be known is not, or a value is out of its range.
        """
        allowed = tuple(p.name for p in self.parameters[1:])
        given: dict[str, Tensor] = {}
        for parameter in self.parameters[1:]:
            name = parameter.name
            value = known_map(known, name, where, allowed)
            if value is None:
                if name not in self.searched:
                    raise InputError(
                        f"known.{name}: dictionary needs it with this model: the series does not hold it; give a "
                        f"number or a map [{parameter.unit}]"
                        + (" (0 if there is no off-resonance)" if name == "DELTA_B0" else "")
                        + (" (1 if the transmit field is nominal)" if name == "REL_B1" else "")
                    )
                continue
            if bool((value < parameter.lower).any()) or bool((value > parameter.upper).any()):
                raise InputError(
                    f"known.{name}: must lie from {parameter.lower:g} to {parameter.upper:g} {parameter.unit} in every "
                    "voxel that is estimated; leave others out by the mask"
                )
            given[name] = value
        return given

    def _space(
        self, free: list[str], given: Mapping[str, Tensor], y: Float[Tensor, "n v"]
    ) -> tuple[Space, Float[Tensor, "m v"]]:
        """The signals, and the places of the known maps among their slices."""
        nodes = self.size or _NODES.get(len(free), 16)
        rows = {p.name: p for p in self.parameters}
        searched = tuple(
            axis(rows[n], rows[n].lower, self._upper(rows[n]), nodes if n in RELAXATION_TIMES else _OTHER_NODES)
            for n in free
        )
        constants = {"A": 1.0, **{n: float(v.median()) for n, v in given.items() if v.numel() > 0}}
        modulus = not getattr(self.model, "signed", False) and hasattr(self.base, "coherent")
        space = Space(self.base, searched, (), constants, modulus)
        maps: dict[str, tuple[Axis, Tensor]] = {}
        for name, value in given.items():
            if value.numel() > 1:
                own = slices(space, name, value, constants)
                maps[name] = own, own.theta(value)
        mapped = tuple(own for own, _ in maps.values())
        places = torch.stack([place for _, place in maps.values()]) if maps else y.new_zeros(0, y.shape[1])
        return Space(self.base, searched, mapped, constants, modulus), places

    def _upper(self, parameter: Parameter) -> float:
        """End of the range: that of the parameter, or the middle about which a train is the same on both sides."""
        model = self.model
        if parameter.name == "REL_B1" and isinstance(model, MultiEchoSpinEcho):
            angles = model.refocusing_angle if isinstance(model.refocusing_angle, tuple) else (model.refocusing_angle,)
            if len(set(angles)) == 1:
                return min(parameter.upper, pi / angles[0])
        return parameter.upper

    def _kappa(
        self, space: Space, found: Matched, given: Mapping[str, Tensor], unit: Float[Tensor, " v"]
    ) -> Float[Tensor, "q v"]:
        """Rows of the estimate; on an end of the range exactly that."""
        rows = {"A": found.a * unit, **{n: v.expand_as(found.a) for n, v in given.items()}}
        for own, place in zip(space.searched, found.place, strict=True):
            parameter = next(p for p in self.parameters if p.name == own.name)
            value = torch.where(place <= 0, parameter.lower, own.value(place))
            rows[own.name] = torch.where(place >= own.count - 1, self._upper(parameter), value)
        return torch.stack([rows[p.name] for p in self.parameters])
