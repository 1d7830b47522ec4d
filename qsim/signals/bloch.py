"""The Bloch engine: magnetisation on maps, carried through a list of events.

Convention, stated here once for every sequence:

    dM/dt = M x w - Gamma M + R1 M0 z,    w = (w1 cos phi, w1 sin phi, dw),    dw = 2 pi delta_b0

so that a pulse of +90 degrees about x takes +z to +y, and M is in units of M0. While a field w1 is on, Gamma is

    Gamma = diag(R2, R2, R1) + (R1rho - R1rho_B) n n' + (R2rho - R2rho_B) (1 - n n'),    n = w / |w|

with R1rho_B = R1 cos^2 + R2 sin^2 of the angle between n and z, and R2rho_B = (2 R2 + R1 - R1rho_B) / 2: T1rho acts
along the effective field, T2rho across it, and tissue whose T1rho equals T2 follows the Bloch equation exactly.

Each event solves its equation in closed form: one real mode along the effective field, one pair that turns about it
(`Modes`). What does not depend on the image of the series (pulses, changes of frame) is merged into one affine map per
voxel before it meets the series, in float64; the series itself is carried in the dtype of the maps.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qsim.signals.affine import Affine, Entry, Vector, cast, dot, minus, times
from qsim.signals.events import (
    Crusher,
    Delay,
    Event,
    Exchange,
    FixedEvent,
    FreePrecession,
    HardPulse,
    Lock,
    RectangularPulse,
    ShapedPulse,
    TimedEvent,
    rotating_frame_rates,
    rotation,
)
from qsim.signals.modes import Factors, Modes, driven_modes, free_modes
from qsim.signals.spins import Spins, spins

__all__ = [
    "Course",
    "Crusher",
    "Delay",
    "Event",
    "Exchange",
    "FixedEvent",
    "FreePrecession",
    "HardPulse",
    "Lock",
    "Modes",
    "RectangularPulse",
    "ShapedPulse",
    "Spins",
    "TimedEvent",
    "compile_longitudinal",
    "driven_modes",
    "free_modes",
    "longitudinal",
    "magnetisation",
    "play",
    "rotating_frame_rates",
    "rotation",
    "solve",
    "spins",
]

# numbers of a block whose magnetisation fits the processor's second-level cache
_BLOCK = 100_000


def magnetisation(
    events: Sequence[Event], spin: Spins, mz0: Float[Tensor, "*space"] | float = 1.0
) -> Float[Tensor, "3 n *space"]:
    """(Mx, My, Mz) after the events [M0]; n is 1 if no event has a duration per image.

    Args:
        events: in time order.
        spin: tissue and fields.
        mz0: longitudinal magnetisation before them; no transverse one [M0].
    """
    return _in_blocks(events, spin, mz0, (0, 1, 2))


def longitudinal(
    events: Sequence[Event], spin: Spins, mz0: Float[Tensor, "*space"] | float = 1.0
) -> Float[Tensor, "n *space"]:
    """Mz after the events, as `magnetisation` [M0]."""
    return _in_blocks(events, spin, mz0, (2,))[0]


def compile_longitudinal(events: Sequence[Event]) -> Callable[[Spins, Tensor], Tensor]:
    """`longitudinal` of one sequence as two fused loops: a function of the spins and Mz before, maps of one shape.

    Worth it for many maps of one size: compiling takes half a minute and needs a C++ compiler (Triton on CUDA). The
    result agrees with `longitudinal` to rounding, not to the bit, so data sets are never made with it.

    Assumes: no gradient is asked for.
    """
    solved = torch.compile(lambda spin, mz0: solve(events, spin, mz0))
    played = torch.compile(lambda course: play(course, 2))
    n = _n_images(events)

    def run(spin: Spins, mz0: Tensor) -> Tensor:
        with torch.no_grad():
            mz = played(solved(spin, mz0))
        assert isinstance(mz, Tensor)
        return mz.expand(n, *spin.t1.shape)

    return run


def _n_images(events: Sequence[Event]) -> int:
    lengths = {len(e.duration) for e in events if isinstance(e, TimedEvent) and isinstance(e.duration, tuple)}
    if len(lengths) > 1:
        raise ValueError(f"events have durations for {', '.join(map(str, sorted(lengths)))} images; give one length")
    return lengths.pop() if lengths else 1


@dataclass(frozen=True, slots=True)
class Step:
    """One event whose duration differs between the images, after everything fixed before it was merged.

    Attributes:
        into: from where the step before left the coordinates to this one's modes (dtype of the maps).
        along, across, turn: rates of the modes [1/s, 1/s, rad/s].
        durations: column of the series [s].
        twice: number of an earlier step of the same rates that lasts half as long, or as long.
        ratio: 1 or 2, the duration over that step's.
    """

    into: Affine
    along: Tensor
    across: Tensor
    turn: Tensor
    durations: Tensor
    twice: int | None
    ratio: int


@dataclass(frozen=True, slots=True)
class Course:
    """A sequence solved for its voxels: what remains is to play the series.

    Attributes:
        start: M at the first step that differs between images (float64 until then, now the dtype of the maps).
        steps: in time order.
        final: from the last step's modes to M.
    """

    start: Vector
    steps: tuple[Step, ...]
    final: Affine


def solve(events: Sequence[Event], spin: Spins, mz0: Tensor) -> Course:
    """Merge what is the same in every image into one affine map per voxel between the steps that are not (float64)."""
    dtype, ndim = spin.t1.dtype, spin.t1.ndim
    exact = spin.map(lambda x: x.double())
    solved: dict[tuple[Hashable, float | None], Modes] = {}
    turns: dict[float, tuple[Tensor, Tensor]] = {}
    lasted: list[tuple[Hashable, tuple[float, ...]]] = []
    steps: list[Step] = []
    m: Vector = (0.0, 0.0, mz0.double())
    pending = Affine()
    for event in events:
        if isinstance(event, ShapedPulse) and not steps:
            # a quarter of the work of its affine map
            m = event.apply(exact, m)
            continue
        whole = _whole(event, exact, solved, turns)
        if whole is not None:
            m, pending = (m, whole.after(pending)) if steps else (whole(m), pending)
            continue
        assert isinstance(event, TimedEvent)
        assert isinstance(event.duration, tuple)
        modes = _solved(event, exact, solved)
        if not steps:
            m = modes.into(m)
        source, ratio = _met_before(lasted, event.medium, event.duration)
        steps.append(
            Step(
                into=modes.into.after(pending).to(dtype) if steps else Affine(),
                along=modes.along.to(dtype),
                across=modes.across.to(dtype),
                turn=modes.turn.to(dtype),
                durations=torch.tensor(event.duration, dtype=dtype, device=spin.t1.device).reshape(-1, *(1,) * ndim),
                twice=source,
                ratio=ratio,
            )
        )
        lasted.append((event.medium, event.duration))
        pending = modes.back
    return Course(cast(m, dtype), tuple(steps), pending.to(dtype))


def _whole(
    event: Event,
    spin: Spins,
    known: dict[tuple[Hashable, float | None], Modes],
    turns: dict[float, tuple[Tensor, Tensor]],
) -> Affine | None:
    """The event as one affine map; None if its duration differs between the images."""
    if isinstance(event, HardPulse):
        if event.flip not in turns:
            turns[event.flip] = event.cos_sin(spin)
        return event.turning(*turns[event.flip])
    if isinstance(event, FixedEvent):
        return event.affine(spin)
    return _solved(event, spin, known).after(event.duration) if isinstance(event.duration, float) else None


def _solved(event: TimedEvent, spin: Spins, known: dict[tuple[Hashable, float | None], Modes]) -> Modes:
    """Modes of an event; solved once for a medium, turned once for a phase."""
    if (event.medium, event.phase) not in known:
        if (event.medium, None) not in known:
            known[event.medium, None] = event.modes(spin)
        known[event.medium, event.phase] = known[event.medium, None].turned(event.phase)
    return known[event.medium, event.phase]


def _met_before(
    lasted: Sequence[tuple[Hashable, tuple[float, ...]]], medium: Hashable, duration: tuple[float, ...]
) -> tuple[int | None, int]:
    """An earlier step of the same medium that lasted as long, or half as long: its exponentials serve again."""
    for ratio in (1, 2):
        earlier = (medium, tuple(t / ratio for t in duration))
        if earlier in lasted:
            return lasted.index(earlier), ratio
    return None, 1


def play(course: Course, row: int) -> Entry:
    """One component of M at the end of a course, over the series (n, *space) [M0].

    Element-wise throughout: `torch.compile` makes one loop of it.
    """
    m = course.start
    met: list[Factors] = []
    for step in course.steps:
        factors = _factors(step, met)
        met.append(factors)
        e, c, s = factors
        p, u, v = step.into(m)
        m = times(p, e), minus(u, c, v, s), dot((u, v, 0.0), (s, c, 0.0))
    return dot(course.final.matrix[row], m, course.final.offset[row])


def _factors(step: Step, met: Sequence[Factors]) -> Factors:
    """exp(-along t), exp(-across t) cos(turn t), exp(-across t) sin(turn t)."""
    if step.twice is None:
        angle = step.durations * step.turn
        decay = (-step.durations * step.across).exp()
        return (-step.durations * step.along).exp(), angle.cos() * decay, angle.sin() * decay
    e, c, s = met[step.twice]
    if step.ratio == 1:
        return e, c, s
    # twice the time is the square
    return e * e, torch.addcmul(c * c, s, s, value=-1), 2 * c * s


def _in_blocks(
    events: Sequence[Event], spin: Spins, mz0: Tensor | float, rows: tuple[int, ...]
) -> Float[Tensor, "r n *space"]:
    """Voxels are carried in blocks that fit the cache; they do not mix."""
    n = _n_images(events)
    start: Tensor = torch.as_tensor(mz0, dtype=spin.t1.dtype, device=spin.t1.device)
    shape = np.broadcast_shapes(spin.t1.shape, start.shape)
    start, spin = start.expand(shape), spin.map(lambda x: x.expand(shape))
    voxels = prod(shape)
    if spin.t1.device.type != "cpu" or n * voxels <= 2 * _BLOCK:
        return _carry(events, spin, start, n, rows)
    flat = spin.map(lambda x: x.reshape(-1))
    start = start.reshape(-1)
    size = max(1, _BLOCK // n)
    parts = []
    for low in range(0, voxels, size):
        part = slice(low, low + size)
        parts.append(_carry(events, flat.map(lambda x, part=part: x[part]), start[part], n, rows))
    return torch.cat(parts, -1).reshape(len(rows), n, *shape)


def _carry(
    events: Sequence[Event], spin: Spins, mz0: Tensor, n: int, rows: tuple[int, ...]
) -> Float[Tensor, "r n *space"]:
    """One block."""
    course = solve(events, spin, mz0)
    shape = (n, *spin.t1.shape)
    results = []
    for row in rows:
        entry = play(course, row)
        whole = entry if isinstance(entry, Tensor) else torch.full_like(spin.t1, entry)
        results.append(whole.to(spin.t1.dtype).expand(shape))
    return torch.stack(results)
