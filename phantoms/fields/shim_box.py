"""A pencil-beam shim box: good fields inside it, worse ones the farther away."""

from collections.abc import Mapping, Sequence
from math import exp, isfinite
from typing import Literal

import numpy as np
from jaxtyping import Float

from phantoms.fields.base import Place, Ranges, Rows, drawn, to_maps
from phantoms.fields.smooth import Waves, check_field_strength, check_length, check_log_sd, check_sd, smooth_reach
from qsim.distributions import AnyDistribution, Constant, Uniform
from qsim.errors import InputError
from qsim.reach import TAIL_NORMAL, Range, reach
from qsim.values import value

Row = Literal["DELTA_B0", "REL_B1"]

# what is reached far from the box: B0 [Hz], SD of what is random on top [Hz], relative B1 [1], SD of its logarithm [1].
# Offset and B1: 5th to 95th percentile in livers (Roberts 2021, doi:10.1002/mrm.28549); the SDs are half of those of
# the same patients, to be sourced
_DEFAULTS: dict[float, tuple[AnyDistribution, AnyDistribution, AnyDistribution, AnyDistribution]] = {
    1.5: (Uniform(low=-14.5, high=81.3), Constant(value=14.5), Uniform(low=0.83, high=1.11), Constant(value=0.044)),
    3.0: (Uniform(low=-31.7, high=164.0), Constant(value=30.0), Uniform(low=0.59, high=1.13), Constant(value=0.1)),
}


@value
class ShimBox:
    """Homogeneous fields in one part of the slice, falling off smoothly beside it.

        DELTA_B0 += w(d) (b0 + b0_sd g(r)),   REL_B1 *= (b1 exp(b1_sd h(r)))^w(d),   w(d) = 1 - exp(-d^2 / 2 fall_mm^2)

    d is the distance to the box along `axis`, 0 inside it, where DELTA_B0 and REL_B1 stay what they were; g and h are
    smooth random functions as in `SmoothB0`. Positions are those of the subject's whole volume, not of the patch. As
    in huang2022: a box over the right lobe of the liver, the left half of the image.

    Attributes:
        field_strength: 1.5 or 3.0; chooses the defaults [T].
        side: `low`: the box begins at index 0 of the axis (left half of an image); `high`: it ends at the last index.
        share: of the volume's extent that the box takes [1].
        axis: of the volume, along which the box ends; None: the last axis that lies in the slice (x of y x).
        fall_mm: length over which the fields fall off; to be sourced [mm].
        length_mm: length of the covariance of g and h; to be sourced [mm].
        b0, b1: distributions over samples of the values far from the box; None: the defaults [Hz], [1].
        b0_sd, b1_sd: distributions of the SD of what is random on top; None: the defaults [Hz], [1].
        rows: what it changes; leave out the row that the model does not have.
    Source: Huang et al. 2022, "Uncertainty-aware self-supervised neural network for liver T1rho mapping with
        relaxation constraint", section 3.2 and Fig. 2, for the box; Roberts 2021, doi:10.1002/mrm.28549, for the
        default values.
    """

    kind: Literal["shim_box"] = "shim_box"
    field_strength: float = 3.0
    side: Literal["low", "high"] = "low"
    share: float = 0.5
    axis: Literal[0, 1, 2] | None = None
    fall_mm: float = 80.0
    length_mm: float = 60.0
    b0: AnyDistribution | None = None
    b0_sd: AnyDistribution | None = None
    b1: AnyDistribution | None = None
    b1_sd: AnyDistribution | None = None
    rows: tuple[Row, ...] = ("DELTA_B0", "REL_B1")

    def __post_init__(self) -> None:
        check_field_strength(self.field_strength)
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if not (isfinite(self.fall_mm) and self.fall_mm > 0):
            raise ValueError(f"fall_mm must be above 0 mm, got {self.fall_mm}")
        check_length(self.length_mm)
        check_sd(self.b0_sd, "b0_sd")
        check_log_sd(self.b1_sd, "b1_sd")
        if self.b1 is not None and not self.b1.support[0] > 0:
            raise ValueError(f"b1 must stay above 0, but its distribution reaches {self.b1.support[0]:g}; truncate it")
        if not self.rows or len(set(self.rows)) < len(self.rows):
            raise ValueError(
                f"rows must name DELTA_B0, REL_B1 or both, each once, got {', '.join(self.rows) or 'none'}"
            )

    @property
    def changes(self) -> tuple[str, ...]:
        return self.rows

    @property
    def uses(self) -> tuple[str, ...]:
        return ()

    @property
    def replaces(self) -> bool:
        return False

    def _distributions(self) -> tuple[AnyDistribution, AnyDistribution, AnyDistribution, AnyDistribution]:
        b0, b0_sd, b1, b1_sd = _DEFAULTS[self.field_strength]
        return self.b0 or b0, self.b0_sd or b0_sd, self.b1 or b1, self.b1_sd or b1_sd

    def ranges(self, ranges: Ranges) -> dict[str, Range]:
        b0, b0_sd, b1, b1_sd = self._distributions()
        after = dict(ranges)
        if "DELTA_B0" in self.rows:
            low, high = ranges["DELTA_B0"]
            least, most = smooth_reach(b0, b0_sd)
            after["DELTA_B0"] = (low + min(least, 0.0), high + max(most, 0.0))
        if "REL_B1" in self.rows:
            low, high = ranges["REL_B1"]
            factor = exp(reach(b1_sd)[1] * TAIL_NORMAL)
            least, most = reach(b1)
            after["REL_B1"] = (low * min(least / factor, 1.0), high * max(most * factor, 1.0))
        return after

    def drawn(self, rng: np.random.Generator) -> Mapping[str, float]:
        # always all four, so that B1 is the same with and without B0
        names = ("b0", "b0_sd", "b1", "b1_sd")
        of = {name: drawn(each, rng) for name, each in zip(names, self._distributions(), strict=True)}
        return {name: number for name, number in of.items() if self._row_of(name) in self.rows}

    @staticmethod
    def _row_of(name: str) -> str:
        return "DELTA_B0" if name.startswith("b0") else "REL_B1"

    def apply(self, rows: Rows, places: Sequence[Place], rngs: Sequence[np.random.Generator], ranges: Ranges) -> None:
        del ranges
        b0, log_b1 = [], []
        for place, rng in zip(places, rngs, strict=True):
            of = self.drawn(rng)
            g, h = (Waves.draw(rng, len(place.block), self.length_mm) for _ in range(2))
            weight = self.weight(place)
            if "DELTA_B0" in self.rows:
                b0.append(weight * (of["b0"] + of["b0_sd"] * g.at(place)))
            if "REL_B1" in self.rows:
                log_b1.append(weight * (np.log(of["b1"]) + of["b1_sd"] * h.at(place)))
        if b0:
            rows.add("DELTA_B0", to_maps(b0))
        if log_b1:
            rows.multiply("REL_B1", to_maps([np.exp(x) for x in log_b1]))

    def weight(self, place: Place) -> Float[np.ndarray, "*space"]:
        """w(d) on the voxels of a patch: 0 in the box, towards 1 away from it [1].

        Raises: InputError if the phantom does not tell the extent of its volumes, or the axis is not in the patch.
        """
        if place.extent is None:
            raise InputError(
                "shim_box lies in the whole slice, but this phantom does not tell the extent of its volumes; "
                "use kind: b0 and b1, or a phantom that is loaded as a volume"
            )
        axes = range(len(place.block))
        flat = place.slice_axis if len(place.patch) < len(place.block) else None
        axis = next(a for a in reversed(axes) if a != place.slice_axis) if self.axis is None else self.axis
        if axis not in axes or axis == flat:
            inside = ", ".join(str(a) for a in axes if a != flat)
            raise InputError(f"axis must lie in the patch (axis {inside} of the volume), got {axis}")
        # edges of voxels: the first begins half a voxel before position 0
        spacing, extent = place.spacing_mm[axis], place.extent[axis]
        x = place.positions(axis)
        if self.side == "low":
            beyond = x - (self.share * extent - 0.5) * spacing
        else:
            beyond = ((1 - self.share) * extent - 0.5) * spacing - x
        w = -np.expm1(-(np.maximum(beyond, 0.0) ** 2) / (2 * self.fall_mm**2))
        shape = [1] * len(place.block)
        shape[axis] = len(w)
        if flat is not None:
            del shape[flat]
        return np.broadcast_to(w.reshape(shape), place.patch)
