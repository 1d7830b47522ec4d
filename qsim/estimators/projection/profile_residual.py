"""The smallest sum of squares that is left at one relaxation time, amplitudes and B re-optimised in closed form; and
where this profile crosses a height.

At one T every model here is linear in its amplitudes, S = x1 + x2 E with E = exp(-t / T), and the modulus of a recovery
has one sign pattern for each image after which it turns positive. With prefix sums of y and y E all patterns m follow
at once:

    explained_m = N mean_m^2 + p_m^2 / q
    mean_m = sum(s_m y) / N,   p_m = sum(s_m y (E - mean(E))),   q = sum((E - mean(E))^2)

of which only those count whose solution has its zero crossing there and A, B within their bounds; or the minimum lies
on an edge: a zero exactly at a time, B at its upper bound, or B = 0 (`recovery_search` says why).
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.projection.separable import log_grid
from qsim.parameters import Parameter
from qsim.signals import InversionRecovery, InversionRecovery2P, OffsetDecay, SaturationRecovery
from qsim.signals.base import SignalModel
from qsim.signals.decays import MonoExponential

# (series (n, v), log T (v or 1), B (v or 1)) -> sum of squares (v)
Residual = Callable[[Tensor, Tensor, Tensor], Tensor]
# log T: grid, and voxels of one chunk, whose work stays in the cache
_GRID = 64
_VOXELS = 1024
# golden sections of two steps of the grid
_SECTIONS = 24
_GOLDEN = (5**0.5 - 1) / 2
# steps to an end, at most, and where it is found: this part of an SD of the signed root, or of log T
_STEPS = 40
_ROOT = 1e-4
_CLOSE = 1e-10
# what a decay that is over before the second image leaves to divide by
_SMALLEST = 1e-200


def residual_of(model: SignalModel, known_b: bool) -> tuple[Residual, Parameter]:
    """The function of that model, and its relaxation time.

    Args:
        known_b: B is given, not re-optimised.
    Raises: InputError if the amplitudes of the model have no closed form here.
    """
    match model:
        case MonoExponential():
            return _Ray(model.times, 0.0, False, None), model.parameters[1]
        case OffsetDecay():
            return _Plane(model.times), model.parameters[1]
        case InversionRecovery2P():
            return _Ray(model.ti, 1.0, not model.signed, None), model.parameters[1]
        case InversionRecovery() if known_b:
            return _Ray(model.ti, 1.0, not model.signed, model.tr), model.parameters[2]
        case InversionRecovery():
            return _Cone(model.ti, model.signed, model.tr, model.parameters[1].upper), model.parameters[2]
        case SaturationRecovery() if known_b:
            return _Ray(model.ts, 1.0, not model.signed, None), model.parameters[2]
        case SaturationRecovery():
            return _Cone(model.ts, model.signed, None, model.parameters[1].upper), model.parameters[2]
        case _:
            raise InputError(
                "intervals: profile exists for mono-exponential decays, offset_decay, inversion_recovery, "
                f"inversion_recovery_2p and saturation_recovery, got {type(model).__name__}; use log_wald"
            )


class _Ray:
    """One amplitude: A |c - b E + (b - 1) R|, the modulus if `rectify`; R = exp(-TR / T) or 0."""

    def __init__(self, times: tuple[float, ...], constant: float, rectify: bool, tr: float | None) -> None:
        self.times, self.constant, self.rectify, self.tr = times, constant, rectify, tr

    def __call__(
        self, y: Float[Tensor, "n v"], u: Float[Tensor, " v_or_1"], b: Float[Tensor, " depths"]
    ) -> Float[Tensor, " v"]:
        rate = torch.exp(-u)
        d = self.constant - b * torch.exp(-y.new_tensor(self.times)[:, None] * rate)
        if self.tr is not None:
            d = d + (b - 1) * torch.exp(-self.tr * rate)
        return y.square().sum(0) - _explained(y, d.abs() if self.rectify else d)


class _Plane:
    """A E + C with A >= 0."""

    def __init__(self, times: tuple[float, ...]) -> None:
        self.times = times

    def __call__(
        self,
        y: Float[Tensor, "n v"],
        u: Float[Tensor, " v_or_1"],
        b: Float[Tensor, " depths"],  # noqa: ARG002
    ) -> Float[Tensor, " v"]:
        e = torch.exp(-y.new_tensor(self.times)[:, None] * torch.exp(-u))
        z = y - y.mean(0)
        return z.square().sum(0) - _explained(z, e - e.mean(0))


class _Cone:
    """A |1 - B E + (B - 1) R| with A >= 0 and B in [0, deepest], without the modulus if `signed`."""

    def __init__(self, times: tuple[float, ...], signed: bool, tr: float | None, deepest: float) -> None:
        self.order = sorted(range(len(times)), key=times.__getitem__)
        self.times = [times[i] for i in self.order]
        self.signed, self.tr, self.deepest = signed, tr, deepest

    def __call__(
        self,
        y: Float[Tensor, "n v"],
        u: Float[Tensor, " v_or_1"],
        b: Float[Tensor, " depths"],  # noqa: ARG002
    ) -> Float[Tensor, " v"]:
        n = len(self.times)
        y = y if self.order == list(range(n)) else y[self.order]
        rate = torch.exp(-u)
        e = torch.exp(-y.new_tensor(self.times)[:, None] * rate)
        rest = torch.exp(-self.tr * rate) if self.tr is not None else torch.zeros_like(rate)
        centre = e.mean(0)
        q = (e - centre).square().sum(0).clamp_min(_SMALLEST)

        # sums over the signs of each pattern: the first m images negative
        sums, sums_e = y.sum(0, keepdim=True), (y * e).sum(0, keepdim=True)
        if not self.signed:
            start = torch.zeros_like(sums)
            sums = sums - 2 * torch.cat((start, y.cumsum(0)))
            sums_e = sums_e - 2 * torch.cat((start, (y * e).cumsum(0)))
        p = sums_e - centre * sums
        x2 = p / q
        x1 = sums / n - x2 * centre
        a = (x1 + x2 * rest) / (1 - rest)
        inside = (a >= 0) & (x2 <= 0) & (-x2 <= self.deepest * a)
        if not self.signed:
            # the last negative image and the first positive one of a rising signal
            inside[1:] &= x1[1:] + x2[1:] * e <= 0
            inside[:-1] &= x1[:-1] + x2[:-1] * e >= 0
        best = torch.where(inside, sums.square() / n + p.square() / q, 0.0).amax(0)

        # edges: B = 0, B at its upper end, and a zero of the signal at a time
        best = torch.maximum(best, y.mean(0).clamp_min(0).square() * n)
        deep = 1 - self.deepest * e + (self.deepest - 1) * rest
        best = torch.maximum(best, _explained(y, deep if self.signed else deep.abs()))
        if not self.signed:
            # |E_k - E|: the images before k turned over
            dot = e * sums[1:] - sums_e[1:]
            norm = (n * e.square() - 2 * n * centre * e + e.square().sum(0)).clamp_min(_SMALLEST)
            reached = 1 - rest <= self.deepest * (e - rest)
            # a kink can only be a minimum where the image is not positive
            edge = torch.where(reached & (y <= 0), dot.clamp_min(0).square() / norm, 0.0)
            best = torch.maximum(best, edge.amax(0))
        return y.square().sum(0) - best


def _explained(y: Float[Tensor, "n v"], d: Float[Tensor, "n v_or_1"]) -> Float[Tensor, " v"]:
    """What a d of positive a explains of y: (y.d)^2 / d.d where y.d > 0."""
    return (y * d).sum(0).clamp_min(0).square() / d.square().sum(0).clamp_min(_SMALLEST)


class TimeProfiles:
    """Profiles of all voxels, in chunks.

    Args:
        left: sum of squares at one T.
        y: series.
        start: log T of the estimate.
        b: depth of the recovery, if it is known.
        time: the relaxation time; its range is searched.
    """

    def __init__(
        self,
        left: Residual,
        y: Float[Tensor, "n v"],
        start: Float[Tensor, " v"],
        b: Float[Tensor, " v_or_1"],
        time: Parameter,
    ) -> None:
        self.left, self.y, self.start, self.b = left, y, start, b
        self.grid = log_grid(time, _GRID).to(y.device)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for at in range(0, self.start.numel(), _VOXELS):
            piece = slice(at, at + _VOXELS)
            yield self.y[:, piece].double(), self.start[piece], self.b if self.b.numel() == 1 else self.b[piece]

    def least(self) -> Float[Tensor, " v"]:
        """The smallest sum of squares of each voxel."""
        found = [self._minimum(*chunk)[1] for chunk in self._chunks()]
        return torch.cat(found) if found else self.start

    def _minimum(
        self, y: Float[Tensor, "n c"], start: Float[Tensor, " c"], b: Float[Tensor, " depths"]
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, "g c"]]:
        """log T of the minimum, the minimum, and the sums of squares on the grid."""
        values = torch.stack([self.left(y, u[None], b) for u in self.grid])
        least, node = values.min(0)
        best = self.grid[node]

        def take(u: Tensor, value: Tensor) -> None:
            better = value < least
            best[better], least[better] = u[better], value[better]

        take(start, self.left(y, start, b))
        step = self.grid[1] - self.grid[0]
        low, high = (best - step).clamp_min(self.grid[0]), (best + step).clamp_max(self.grid[-1])
        inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_inner, at_outer = self.left(y, inner, b), self.left(y, outer, b)
        for _ in range(_SECTIONS):
            down = at_inner < at_outer
            low, high = torch.where(down, low, inner), torch.where(down, outer, high)
            new = torch.where(down, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
            value = self.left(y, new, b)
            inner, outer = torch.where(down, new, outer), torch.where(down, inner, new)
            at_inner, at_outer = torch.where(down, value, at_outer), torch.where(down, at_inner, value)
        take(inner, at_inner)
        take(outer, at_outer)
        return best, least, values

    def ends(self, threshold: Float[Tensor, " v_or_1"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ends of the region where the root of what the sum of squares grows by is at most `threshold`.

        Returns: log T of the lower and the upper end, and whether each is the end of the range.
        """
        found = []
        limits = threshold.expand_as(self.start).split(_VOXELS)
        for (y, start, b), limit in zip(self._chunks(), limits, strict=False):
            best, least, values = self._minimum(y, start, b)
            inside = values - least <= limit.square()
            sides = [self._end(y, b, best, least, limit, inside, upwards) for upwards in (False, True)]
            found.append((sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
        if not found:
            none = torch.zeros_like(self.start, dtype=torch.bool)
            return self.start, self.start, none, none
        lower, upper, below, above = (torch.cat(column) for column in zip(*found, strict=True))
        return lower, upper, below, above

    def _end(
        self,
        y: Float[Tensor, "n c"],
        b: Float[Tensor, " depths"],
        best: Float[Tensor, " c"],
        least: Float[Tensor, " c"],
        limit: Float[Tensor, " c"],
        inside: Bool[Tensor, "g c"],
        upwards: bool,
    ) -> tuple[Float[Tensor, " c"], Bool[Tensor, " c"]]:
        """The outermost end on one side, between the last grid point inside (or the minimum) and the next one."""
        last = len(self.grid) - 1
        nodes = torch.arange(last + 1, device=best.device)[:, None]
        if upwards:
            node = torch.where(inside, nodes, -1).amax(0)
            near = torch.maximum(best, self.grid[node.clamp_min(0)])
            beyond = torch.searchsorted(self.grid, near, right=True)
        else:
            node = torch.where(inside, nodes, last + 1).amin(0)
            near = torch.minimum(best, self.grid[node.clamp_max(last)])
            beyond = torch.searchsorted(self.grid, near) - 1
        opened = (beyond < 0) | (beyond > last)
        far = self.grid[beyond.clamp(0, last)]

        def height(u: Tensor) -> Tensor:
            return (self.left(y, u, b) - least).clamp_min(0).sqrt() / limit - 1

        at_near, at_far = height(near), height(far)
        end = near
        done, before = opened.clone(), torch.zeros_like(opened)
        # the root is nearly straight in log T: false position, an end that stays twice weighs half (Illinois)
        for step in range(_STEPS):
            secant = near - at_near * (far - near) / (at_far - at_near)
            middle = (near + far) / 2
            new = torch.where((step % 6 == 5) | ~torch.isfinite(secant), middle, secant)
            value = height(new)
            end = torch.where(done, end, new)
            done |= (value.abs() < _ROOT) | ((far - near).abs() < _CLOSE)
            if bool(done.all()):
                break
            within = value <= 0
            again = (within == before) if step else torch.zeros_like(within)
            at_far = torch.where(within, torch.where(again, at_far / 2, at_far), value)
            at_near = torch.where(within, value, torch.where(again, at_near / 2, at_near))
            near, far = torch.where(within, new, near), torch.where(within, far, new)
            before = within
        return torch.where(opened, self.grid[last if upwards else 0], end), opened
