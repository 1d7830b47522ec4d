"""Extended phase graphs of a CPMG train: echoes and longitudinal magnetisation under imperfect refocusing.

Excitation about x, refocusing about y at esp / 2, 3 esp / 2, ...; each half-interval dephases the magnetisation by one
order k. In that frame the graph falls into two halves that never meet, and each of them is real:

    odd  k at a pulse: all that was excited;       F_k = F, Z_k = i zeta   ->  every echo
    even k at a pulse: what rests along z or recovers; F_k = i f, Z_k = -zeta  ->  the longitudinal magnetisation Z_0

so recovery adds nothing to an echo, and only one half is computed where only one is wanted. A pulse of angle a leaves
P = F_k + F_-k and turns Q = F_k - F_-k against the stored state, the same in both halves:

    Q' = cos(a) Q + 2 sin(a) zeta,    zeta' = cos(a) zeta - sin(a) Q / 2

Derivation: docs/physics/epg.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from qsim.errors import InputError

# numbers of one state of a block of voxels whose states fit the processor's second-level cache together
_BLOCK = 8192

# rates of one pulse and the interval after it: P, Q from Q, Q from zeta, zeta from zeta, zeta from Q
Turn = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
States = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Flip(Protocol):
    """What a pulse does where the transmit field is `rel_b1`; hashable."""

    def __call__(self, rel_b1: Float[Tensor, "*space"]) -> tuple[Float[Tensor, "*space"], Float[Tensor, "*space"]]:
        """Cosine and sine of the flip angle."""
        ...


@dataclass(frozen=True, slots=True)
class ScaledFlip:
    """A flip angle in proportion to the transmit field.

    Attributes:
        angle: at rel_b1 = 1 [rad].
    """

    angle: float

    def __call__(self, rel_b1: Float[Tensor, "*space"]) -> tuple[Float[Tensor, "*space"], Float[Tensor, "*space"]]:
        angle = self.angle * rel_b1
        return angle.cos(), angle.sin()


def epg_cpmg(
    t1: Float[Tensor, "*space"],
    t2: Float[Tensor, "*space"],
    rel_b1: Float[Tensor, "*space"],
    esp: float,
    n_echoes: int,
    refocusing_angle: float | tuple[float, ...] = pi,
    excitation_angle: float = pi / 2,
    mz0: float | Float[Tensor, "*space"] = 1.0,
) -> tuple[Float[Tensor, "e *space"], Float[Tensor, "*space"]]:
    """Echo amplitudes [M0], and Mz half an echo spacing after the last echo [M0].

    The echoes are proportional to `mz0` (no offset); Mz is affine in it.

    Args:
        t1, t2: relaxation times [s].
        rel_b1: actual over nominal transmit field; it scales every flip angle [1].
        esp: echo spacing [s].
        n_echoes: length of the train.
        refocusing_angle: nominal angle of every refocusing pulse, or one for each [rad].
        excitation_angle: nominal [rad].
        mz0: longitudinal magnetisation before the excitation [M0].
    Raises: InputError if the train has no echo or no duration, or its list of angles another length.
    Assumes: instantaneous pulses on the CPMG condition; crushers leave only what they refocus; no diffusion.
    Source: Hennig 1988, doi:10.1016/0022-2364(88)90128-X; Weigel 2015, doi:10.1002/jmri.24619.
    """
    flips = [ScaledFlip(angle) for angle in train_angles(n_echoes, refocusing_angle)]
    return cpmg_train(t1, t2, rel_b1, esp, flips, ScaledFlip(excitation_angle), mz0)


def cpmg_train(
    t1: Float[Tensor, "*space"],
    t2: Float[Tensor, "*space"],
    rel_b1: Float[Tensor, "*space"],
    esp: float,
    refocusing: Sequence[Flip],
    excitation: Flip,
    mz0: float | Float[Tensor, "*space"] = 1.0,
) -> tuple[Float[Tensor, "e *space"], Float[Tensor, "*space"]]:
    """`epg_cpmg` for any kind of pulse, as at one position of a slice.

    Args:
        t1, t2: relaxation times [s].
        rel_b1: actual over nominal transmit field [1].
        esp: echo spacing [s].
        refocusing: the pulse before each echo.
        excitation: the first pulse.
        mz0: longitudinal magnetisation before it [M0].
    """
    _check_spacing(esp)
    start = torch.as_tensor(mz0, dtype=t2.dtype, device=t2.device).expand(t2.shape)
    echoes, mz = [], []
    for b1, t1_, t2_, m in voxel_blocks(rel_b1, t1, t2, start):
        turns, half = train_turns(t1_, t2_, b1, esp, refocusing)
        cos, sin = excitation(b1)
        echoes.append(echoes_of(turns, m * sin))
        mz.append(mz_after(turns, half, m * cos))
    return torch.cat(echoes, -1).reshape(len(refocusing), *t2.shape), torch.cat(mz, -1).reshape(t2.shape)


def cpmg_echoes(
    t1: float | Float[Tensor, "*space"],
    t2: Float[Tensor, "*space"],
    rel_b1: Float[Tensor, "*space"],
    esp: float,
    refocusing: Sequence[Flip],
    excitation: Flip,
) -> Float[Tensor, "e *space"]:
    """The echoes of `cpmg_train` alone, from full magnetisation: half of the work [M0]."""
    _check_spacing(esp)
    t1 = torch.as_tensor(t1, dtype=t2.dtype, device=t2.device).expand(t2.shape)
    echoes = []
    for b1, t1_, t2_ in voxel_blocks(rel_b1, t1, t2):
        turns, _ = train_turns(t1_, t2_, b1, esp, refocusing)
        echoes.append(echoes_of(turns, excitation(b1)[1]))
    return torch.cat(echoes, -1).reshape(len(refocusing), *t2.shape)


def train_angles(n_echoes: int, refocusing_angle: float | tuple[float, ...]) -> tuple[float, ...]:
    """Nominal angle of each refocusing pulse [rad]; refuses what is no train."""
    if n_echoes < 1:
        raise InputError(f"n_echoes: must be at least 1, got {n_echoes}")
    angles = refocusing_angle if isinstance(refocusing_angle, tuple) else (refocusing_angle,) * n_echoes
    if len(angles) != n_echoes:
        raise InputError(f"refocusing_angle: {len(angles)} angles for {n_echoes} echoes; give one, or one for each")
    return angles


def _check_spacing(esp: float) -> None:
    if not (isfinite(esp) and esp > 0):
        raise InputError(f"esp: must be above 0 s, got {esp:g}")


def voxel_blocks(*maps: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The maps voxel by voxel, in blocks on a CPU; the voxels do not mix, so a block changes no number."""
    flat = [x.reshape(-1) for x in maps]
    size = _BLOCK if flat[0].device.type == "cpu" else max(1, flat[0].numel())
    return zip(*(x.split(size) for x in flat), strict=True)


def train_turns(
    t1: Tensor, t2: Tensor, rel_b1: Tensor, esp: float, flips: Sequence[Flip]
) -> tuple[list[Turn], Float[Tensor, " v"]]:
    """Rates of each pulse and the interval after it, and exp(-esp / 2 T1).

    Transverse states are kept as they are half an interval before the pulse, so that F_-1 after it is the echo:

        (P, Q / 2, zeta) -> (E2 P, E2 cos Q / 2 + h2 sin zeta, E1 cos zeta - E1 h2 sin Q / 2),    h2 = exp(-esp / 2 T2)
    """
    h1, h2 = (-esp / 2 / t1).exp(), (-esp / 2 / t2).exp()
    e1, e2 = h1**2, h2**2
    known: dict[Flip, Turn] = {}
    for flip in flips:
        if flip not in known:
            c, s = flip(rel_b1)
            known[flip] = e2 / 2, c * e2 / 2, s * h2, c * e1, -s * e1 * h2 / 2
    return [known[flip] for flip in flips], h1


def _pulse(states: States, turn: Turn) -> States:
    """F_k, F_-k and the stored states (order, voxel) after a pulse and the decay of the interval that follows it."""
    plus, minus, stored = states
    p, qq, qz, zz, zq = turn
    kept, q = (plus + minus) * p, plus - minus
    turned = torch.addcmul(q * qq, stored, qz)
    return kept + turned, kept - turned, torch.addcmul(stored * zz, q, zq)


def echoes_of(turns: Sequence[Turn], excited: Float[Tensor, " v"]) -> Float[Tensor, "e v"]:
    """The odd half, orders 1, 3, 5, ...: F_-1 passes through the echo and arrives at the next pulse as F_1."""
    plus = excited[None]
    states = (plus, torch.zeros_like(plus), torch.zeros_like(plus))
    echoes = []
    for i, turn in enumerate(turns, 1):
        plus, minus, stored = _pulse(states, turn)
        echoes.append(minus[0])
        # i orders have been reached; the last one kept is back in time for the last echo
        size = min(i + 1, len(turns) - i)
        states = torch.cat((minus[:1], plus))[:size], _resized(minus[1:], size), _resized(stored, size)
    return torch.stack(echoes)


def mz_after(turns: Sequence[Turn], half: Float[Tensor, " v"], mz: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """The even half, orders 0, 2, 4, ..., with zeta = -Z: F_-2 arrives as F_0, which is its own mirror image.

    Args:
        half: exp(-esp / 2 T1).
        mz: longitudinal magnetisation after the excitation [M0].
    """
    stored = -(1 + half * (mz - 1))[None]
    states = (torch.zeros_like(stored), torch.zeros_like(stored), stored)
    gained = (1 - half**2)[None]
    for i, turn in enumerate(turns, 1):
        plus, minus, stored = _pulse(states, turn)
        size = max(1, min(i + 1, len(turns) - i))
        minus = _resized(minus[1:], size)
        stored = _resized(torch.cat((stored[:1] - gained, stored[1:])), size)
        states = torch.cat((-minus[:1], plus))[:size], minus, stored
    return -states[2][0]


def _resized(states: Float[Tensor, "j v"], size: int) -> Float[Tensor, "size v"]:
    """The first `size` orders; those not reached yet are 0."""
    missing = size - states.shape[0]
    return pad(states, (0, 0, 0, missing)) if missing > 0 else states[:size]
