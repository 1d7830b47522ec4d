"""Newton steps off the grid of a dictionary, with the amplitude in closed form.

    minimise sum_n (A s_n(theta) - S_n)^2,   A = s.S / s.s, not negative

Source: variable projection: Golub and Pereyra 1973, doi:10.1137/0710036; without the part of the derivatives that the
residual makes: Kaufman 1975, doi:10.1007/BF01932995.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qsim.estimators.projection.decay_search import total

# at most this many steps; the first are Gauss-Newton's, which come further from afar
_STEPS = 40
_PLAIN = 5
# a step that gains less than this part of the sum of squares is the last: 3e-4 sqrt(N - Q) standard errors
_GAIN = 1e-7
# added to the diagonal, as a part of its largest entry
_DAMPING = 1e-12

# A, the objective, the next step (of Newton, if wanted) and its gain at some places of some voxels
Here = tuple[Tensor, Tensor, Tensor, Tensor]
At = Callable[[Tensor, Tensor, bool], Here]


def projected(
    s: Float[Tensor, "n v"],
    rows: Float[Tensor, "p n v"],
    bends: list[Tensor],
    y: Float[Tensor, "n v"],
    place: Float[Tensor, "p v"],
    last: Int[Tensor, " p"],
) -> Here:
    """A in closed form, the objective, the step from here, and what it should gain.

    Half the second derivative of the objective, A following, is a^2 J'J (J without its part along s) plus

        -a r.H_ij + a (s.J_i r.J_j + s.J_j r.J_i) / q - r.J_i r.J_j / q,    q = s.s
    """
    q = total(s * s).clamp_min(1e-300)
    a = (total(s * y) / q).clamp_min(0)
    r = y - a * s
    along = [total(row * s) / q for row in rows]
    inner = [row - s * part for row, part in zip(rows, along, strict=True)]
    curvature = []
    if bends:
        pull = [total(row * r) for row in rows]
        for bend, (i, j) in zip(bends, combinations_with_replacement(range(len(rows)), 2), strict=True):
            cross = a * (along[i] * pull[j] + along[j] * pull[i]) - pull[i] * pull[j] / q
            curvature.append(cross - a * total(r * bend))
    return a, total(r * r), *_step(a, inner, r, place, last, curvature)


def descend(
    at: At, start: Float[Tensor, "p v"], last: Int[Tensor, " p"], small: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton steps: places, A, the objective, and whether they ended by themselves."""
    place = start.clone()
    active = torch.arange(start.shape[1], device=start.device)
    a, objective, step, gain = at(place, active, False)
    converged, share = torch.zeros_like(a, dtype=torch.bool), torch.ones_like(a)
    for number in range(_STEPS):
        here = place[:, active]
        trial = torch.minimum((here + share[active] * step[:, active]).clamp_min(0), last[:, None].double())
        moved = (trial - here).abs().amax(0)
        ended = (moved <= small) | (gain[active] <= _GAIN * objective[active])
        new_a, new, new_step, new_gain = at(trial, active, number >= _PLAIN)
        better = new <= objective[active]
        took = active[better]
        place[:, took], a[took], objective[took] = trial[:, better], new_a[better], new[better]
        step[:, took], gain[took], share[took] = new_step[:, better], new_gain[better], (2 * share[took]).clamp_max(1)
        # beyond the reach of the derivatives, or where the expansions of two cells meet and differ a little
        share[active[~better]] /= 4
        converged[active[ended]] = True
        active = active[~ended]
        if active.numel() == 0:
            break
    return place, a, objective, converged


def _step(
    a: Float[Tensor, " v"],
    rows: list[Tensor],
    r: Float[Tensor, "n v"],
    place: Float[Tensor, "p v"],
    last: Int[Tensor, " p"],
    curvature: list[Tensor],
) -> tuple[Float[Tensor, "p v"], Float[Tensor, " v"]]:
    """The step, at most two cells long, and its gain; a row that presses against its end rests.

    Args:
        curvature: what makes the Gauss-Newton matrix that of Newton, by pairs of rows; used where the sum is definite.
    """
    push = torch.stack([a * total(row * r) for row in rows])
    resting = ((place <= 0) & (push < 0)) | ((place >= last[:, None]) & (push > 0))
    push = torch.where(resting, 0.0, push)
    pairs = list(combinations_with_replacement(range(len(rows)), 2))
    plain = [a * a * total(rows[i] * rows[j]) for i, j in pairs]
    if curvature and len(rows) <= 2:
        full = [x + y for x, y in zip(plain, curvature, strict=True)]
        # far from singular, or the plain one is the safer
        definite = full[0] > 0.1 * plain[0]
        if len(rows) == 2:
            definite &= full[0] * full[2] - full[1] ** 2 > 0.1 * (plain[0] * plain[2] - plain[1] ** 2)
            definite &= full[2] > 0
        plain = [torch.where(definite, x, y) for x, y in zip(full, plain, strict=True)]
    matrix = dict(zip(pairs, plain, strict=True))
    for (i, j), entry in matrix.items():
        if i != j:
            matrix[i, j] = torch.where(resting[i] | resting[j], 0.0, entry)
    # relative to the largest entry, so that the determinant of a dark voxel is not lost below the smallest number
    largest = torch.stack([matrix[i, i] for i in range(len(rows))]).amax(0)
    # A = 0, or no slope at all: nothing pushes, and the step is 0
    largest = torch.where(largest > 0, largest, 1.0)
    matrix = {pair: entry / largest for pair, entry in matrix.items()}
    gradient, push = push, push / largest
    # a row that the series says nothing about does not move
    for i in range(len(rows)):
        matrix[i, i] = matrix[i, i] + _DAMPING
    if len(rows) == 1:
        step = push / matrix[0, 0]
    elif len(rows) == 2:
        aa, bb, ab = matrix[0, 0], matrix[1, 1], matrix[0, 1]
        step = torch.stack((bb * push[0] - ab * push[1], aa * push[1] - ab * push[0])) / (aa * bb - ab * ab)
    else:
        both = torch.stack(
            [torch.stack([matrix[min(i, j), max(i, j)] for j in range(len(rows))]) for i in range(len(rows))]
        )
        step = torch.linalg.solve(both.movedim(-1, 0), push.T).T
    return step.clamp(-2, 2), total(gradient * step)
