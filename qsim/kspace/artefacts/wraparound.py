"""Wrap: lines of k-space are left out, and the image folds over itself.

    regular, every R-th line kept, R dividing N:    m(y) -> 1 / R sum_j m(y - j N / R) exp(2 pi i j o / R)
    random:    K(k) -> (1 - strength) K(k) on some lines: noise-like copies of the whole image along the axis

Lines with (k - o) mod R = 0 are kept; o = 0 keeps k = 0, other offsets turn the phase of each copy and lose the mean of
the image, and after a narrow low-pass perhaps all of it. A random pattern never removes k = 0. R need not divide N: the
copies then stand between voxels and are interpolated by the Fourier series. A partial `strength` leaves some of the
lines that are lost, so that the copies fade in:

    m -> (1 - strength) m + strength wrapped(m)

Source: physics of undersampling; e.g. Heidemann et al. 2003, A brief review of parallel magnetic resonance imaging.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Complex
from torch import Tensor

from qsim.kspace.acquired import Acquired
from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, reach, whole_pair
from qsim.kspace.artefacts.base import Ndim, Stage, applied, check_axis, check_common, check_space, drawn_for
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.artefacts.sampling import along_axes, centre, drawn_axis, lines_with, weighted
from qsim.kspace.fourier import line_numbers
from qsim.values import value

Pattern = Literal["regular", "random"]


@dataclass(frozen=True, slots=True)
class WraparoundDrawn:
    """What was drawn.

    Attributes:
        space: extent [voxels].
        axis: along which it folds, counted from 0.
        removed: k of the lines that are removed, centred [cycles per field of view].
        strength: share of these lines that is lost [1].
        factor, offset: of a regular pattern.
    """

    space: tuple[int, ...]
    axis: int
    removed: tuple[int, ...]
    strength: float
    factor: int | None = None
    offset: int | None = None

    @property
    def severity(self) -> float:
        """Share of the lines that is removed, times strength [1]."""
        return self.strength * len(self.removed) / self.space[self.axis]


@value
class Wraparound:
    """Wrap from lines of k-space that are left out; in 3D a line is the plane of all samples with its k.

    Attributes:
        pattern: `regular`: every `factor`-th line is kept, copies stand at equal distances; `random`: the `omitted`
            ones are spread at random, and the copies are noise-like.
        factor: R of a regular pattern, a pair is a range, both ends included; None: 2.
        offset: o of a regular pattern, k of one line that is kept, below every R, a pair is a range, both ends
            included; None: 0, which keeps k = 0.
        omitted: share of the lines that a random pattern removes, in [0, 1), rounded; k = 0 always stays [1]; None:
            drawn from 0.1 to 0.5.
        centre: share of the lines, around k = 0, that are kept in any case [1].
        strength: share of the lines removed that is lost, in [0, 1] [1].
        axis: -1 is x, -2 y, -3 z; None: drawn among those that are long enough.
        probability, ndim: see `Artefact`.
    Severity: share of the lines that is removed, times strength.
    Not: parallel imaging, which unfolds the copies with several coils; see `qsim.kspace.coils`.
    """

    stage: ClassVar[Stage] = Stage.SAMPLING
    kind: Literal["wraparound"] = "wraparound"
    pattern: Pattern = "regular"
    factor: int | tuple[int, int] | None = None
    offset: int | tuple[int, int] | None = None
    omitted: Amount | None = None
    centre: Amount = 0
    strength: Amount = 1
    axis: int | None = None
    probability: float = 1.0
    ndim: Ndim | None = None

    def __post_init__(self) -> None:
        settle(self)
        if self.pattern not in ("regular", "random"):
            raise ValueError(f"pattern must be regular or random, got {self.pattern!r}")
        check_amount("factor", self._factor, low=2)
        check_amount("omitted", self._omitted, low=0, high=1)
        check_amount("centre", self.centre, low=0, high=1)
        check_amount("strength", self.strength, low=0, high=1)
        check_common(self.probability, self.ndim)
        if self.pattern == "random":
            for name, given in (("factor", self.factor), ("offset", self.offset)):
                if given is not None:
                    raise ValueError(f"{name} is for the regular pattern, got {given} for the random one")
            most = reach(self._omitted)[1]
            if most == 1 or most + reach(self.centre)[1] > 1:
                raise ValueError(
                    f"omitted must stay below 1 and leave the centre ({reach(self.centre)[1]:g}), got up to {most:g}"
                )
            return
        if self.omitted is not None:
            raise ValueError(f"omitted is for the random pattern, got {self.omitted} for the regular one")
        check_amount("offset", self._offset)
        if not 0 <= reach(self._offset)[0] <= reach(self._offset)[1] < reach(self._factor)[0]:
            raise ValueError(f"offset must be at least 0 and below every factor, got {self.offset}")

    @property
    def _factor(self) -> int | tuple[int, int]:
        return 2 if self.factor is None else self.factor

    @property
    def _offset(self) -> int | tuple[int, int]:
        return 0 if self.offset is None else self.offset

    @property
    def _omitted(self) -> Amount:
        return (0.1, 0.5) if self.omitted is None else self.omitted

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> WraparoundDrawn:
        """Axis, strength and lines.

        Raises: ValueError if no axis, or not the one that is named, has as many lines as the largest factor.
        """
        _, space = drawn_for(shape, self.ndim)
        strength = draw_amount(self.strength, rng)
        share = draw_amount(self.centre, rng)
        if self.pattern == "random":
            omitted = draw_amount(self._omitted, rng)
            axis = drawn_axis(self.axis, space, rng)
            n = space[axis]
            # without k = 0 an image has no mean
            outside = sorted(set(line_numbers(n).tolist()) - set(centre(n, share)) - {0})
            removed = rng.choice(outside, min(round(omitted * n), len(outside)), replace=False)
            return WraparoundDrawn(space, axis, tuple(sorted(int(k) for k in removed)), strength)
        low, high = whole_pair(self._factor)
        # the largest factor decides, so that every draw refuses, or none
        longest = max(space) if self.axis is None else space[check_axis("axis", self.axis, space)]
        if longest < high:
            raise ValueError(f"factor: every {high}th line cannot be kept of an axis of {longest}")
        factor = int(rng.integers(low, high + 1))
        first, last = whole_pair(self._offset)
        offset = first if first == last else int(rng.integers(first, last + 1))
        axis = drawn_axis(self.axis, space, rng, shortest=factor)
        n = space[axis]
        always = centre(n, share)
        removed_lines = [k for k in line_numbers(n).tolist() if (k - offset) % factor and k not in always]
        return WraparoundDrawn(space, axis, tuple(removed_lines), strength, factor, offset)

    def act(self, acquired: Acquired, drawn: WraparoundDrawn) -> Acquired:
        check_space(acquired, drawn.space)
        if drawn.severity == 0:
            return acquired
        weights = lines_with(drawn.space[drawn.axis], drawn.removed, 1 - drawn.strength, 1)
        return weighted(acquired, [drawn.axis], along_axes(acquired, {drawn.axis: weights}))

    def apply(
        self, images: Complex[Tensor, "*lead_and_space"], drawn: WraparoundDrawn
    ) -> Complex[Tensor, "*lead_and_space"]:
        return applied(self, images, drawn)
