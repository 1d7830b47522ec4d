"""Readouts: what a train of echoes makes of the magnetisation it finds, and the image that comes of it.

A readout is affine in Mz (`Train`), so a series of n magnetisations costs one train. Its images come in two steps,
because the first adds up within a voxel (shares of tissues) and the second lets voxels mix along the phase axis:

    components = what each voxel contributes        (c, n, *space): its signal at the echo at DC, at every echo, or in
                                                    the coordinates of a temporal subspace
    assembled  = the image of the components        (n, *space)

`read` does both at once, in parts that fit the cache. Derivation: docs/physics/readout.md and kspace_order.md.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import log10
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from qsim.errors import InputError
from qsim.kspace.order import Acquisition, Subspace, echo_of_centre, echo_of_line, encode_exact, encode_exact_affine
from qsim.signals.spins import Spins, spins
from qsim.signals.spoiled import SpoiledGradientEcho
from qsim.signals.ssfp import BalancedSSFP
from qsim.signals.train import Readout, Train
from qsim.signals.turbo import TurboSpinEcho
from qsim.values import value

# numbers of a train, voxels x echoes, computed at a time: fewer make more steps, more leave the cache
_BLOCK = 524_288
# the ensemble that a temporal subspace is made for: T1 and T2 [s], rel_b1 [1]
_ENSEMBLE_T1 = (0.3, 4.0)
_ENSEMBLE_T2 = (0.02, 2.0)
_ENSEMBLE_B1 = (0.7, 1.3)
# a subspace that leaves out more of its ensemble is no model of the readout [1]
_LARGEST_LOSS = 0.05
# a train outside the ranges of T1, T2 and rel_b1 may lose this, or so many times what the ensemble loses [1]
_LOSS_OUTSIDE, _TIMES_LOSS = 1e-3, 10.0


@value
class Ideal:
    """The signal is Mz, all of which it takes; no time passes."""

    kind: Literal["ideal"] = "ideal"

    @property
    def n_echoes(self) -> int:
        return 1

    @property
    def duration(self) -> float:
        return 0.0

    @property
    def time_of_centre(self) -> float:
        return 0.0

    @property
    def acquisition(self) -> Acquisition:
        return Acquisition(lines=1)

    def train(self, spins: Spins) -> Train:
        """Gain 1, offset 0, and no Mz afterwards: a pulse of 90 degrees."""
        one, zero = torch.ones_like(spins.t1), torch.zeros_like(spins.t1)
        return Train(one[None], zero[None], zero, zero)


READOUTS = (Ideal, SpoiledGradientEcho, BalancedSSFP, TurboSpinEcho)
AnyReadout = Ideal | SpoiledGradientEcho | BalancedSSFP | TurboSpinEcho


def mixes_voxels(readout: Readout) -> bool:
    """Whether its image of one voxel depends on others."""
    return readout.acquisition.encoding != "centre"


def n_components(readout: Readout) -> int:
    """Length of the first axis of `components`."""
    acquisition = readout.acquisition
    return {"centre": 1, "exact": readout.n_echoes, "subspace": acquisition.rank}[acquisition.encoding]


def components(readout: Readout, spin: Spins, mz: Inexact[Tensor, "n *space"]) -> Inexact[Tensor, "c n *space"]:
    """What each voxel contributes to the images, before voxels mix; shares of tissues add up [M0].

    Args:
        spin: tissue and fields.
        mz: longitudinal magnetisation before the train in each image [M0].
    """
    gain, offset = _compressed(readout, spin)
    return offset[:, None] + gain[:, None] * mz


def assembled(readout: Readout, parts: Inexact[Tensor, "c n *space"]) -> Inexact[Tensor, "n *space"]:
    """The images of `components`: complex where voxels mix, else real or complex as the train is."""
    if not mixes_voxels(readout):
        return parts[0]
    table = _table(readout, parts)
    if readout.acquisition.encoding == "exact":
        return encode_exact(parts, table)
    return subspace(readout).encode(parts, table)


def read(
    readout: Readout, spin: Spins, mz: Inexact[Tensor, "n *space"], a: Float[Tensor, "*space"] | float = 1.0
) -> Inexact[Tensor, "n *space"]:
    """The images that a readout makes of n magnetisations [units of A].

    Args:
        spin: tissue and fields; where the readout mixes voxels the last two axes are the phase axis and another.
        mz: longitudinal magnetisation before the train in each image [M0].
        a: M0 of each voxel in the units of the images [units of A].
    """
    if not mixes_voxels(readout):
        return assembled(readout, a * components(readout, spin, mz))
    table = _table(readout, mz)
    if readout.acquisition.encoding == "subspace":
        gain, offset = _compressed(readout, spin)
        return subspace(readout).encode_affine(a * gain, a * offset, mz, table)
    if mz.device.type != "cpu":
        train = readout.train(spin)
        return encode_exact_affine(train.gain, a * train.offset, a * mz, table)
    return _exact_in_parts(readout, spin, mz, torch.as_tensor(a, dtype=spin.t1.dtype).expand(spin.t1.shape), table)


def aftermath(readout: Readout, spin: Spins) -> tuple[Float[Tensor, "*space"], Float[Tensor, "*space"]]:
    """`mz_gain` and `mz_offset` of the train, without its echoes in memory: Mz after it = mz_gain Mz + mz_offset."""
    if spin.t1.device.type != "cpu":
        train = readout.train(spin)
        return train.mz_gain, train.mz_offset
    blocks = [(train.mz_gain, train.mz_offset) for train in _trains(readout, spin)]
    gain, offset = (torch.cat(part).reshape(spin.t1.shape) for part in zip(*blocks, strict=True))
    return gain, offset


def _exact_in_parts(readout: Readout, spin: Spins, mz: Tensor, a: Tensor, table: Tensor) -> Tensor:
    """Sample by sample, a few columns at a time: columns do not mix, and a sample is the same in any batch."""
    n, *lead, rows, columns = mz.shape
    width = max(1, _BLOCK // (readout.n_echoes * rows))
    flat = spin.map(lambda x: x.reshape(-1, rows, columns))
    images = []
    amplitudes = a.reshape(-1, rows, columns)
    for i, series in enumerate((a * mz).reshape(n, -1, rows, columns).unbind(1)):
        parts = []
        for part in _slices(columns, width):
            train = readout.train(flat.map(lambda x, i=i, part=part: x[i, :, part]))
            parts.append(
                encode_exact_affine(train.gain, amplitudes[i, :, part] * train.offset, series[..., part], table)
            )
        images.append(torch.cat(parts, -1))
    return torch.stack(images, 1).reshape(n, *lead, rows, columns)


def _table(readout: Readout, maps: Tensor) -> Tensor:
    if maps.ndim < 3:
        raise InputError(
            f"acquisition.encoding: {readout.acquisition.encoding} transforms along the last axis but one of maps with "
            f"at least 2; these have {maps.ndim - 1}; give them both, or use encoding: centre"
        )
    return echo_of_line(readout.acquisition, maps.shape[-2])


# --- what is kept of a train ------------------------------------------------------------------------------------------


def _compressed(readout: Readout, spin: Spins) -> tuple[Inexact[Tensor, "c *space"], Inexact[Tensor, "c *space"]]:
    """Gain and offset of the components, computed in blocks of voxels."""
    shape = spin.t1.shape
    if readout.acquisition.encoding == "subspace":
        _check_held(readout, spin)
    if spin.t1.device.type != "cpu":
        return _kept(readout, readout.train(spin))
    blocks = [_kept(readout, train) for train in _trains(readout, spin)]
    gain, offset = (torch.cat(part, -1).reshape(-1, *shape) for part in zip(*blocks, strict=True))
    return gain, offset


def _trains(readout: Readout, spin: Spins) -> Iterator[Train]:
    """Of one block of voxels after the other: they do not mix."""
    flat = spin.map(lambda x: x.reshape(-1))
    for part in _slices(flat.t1.numel(), max(1, _BLOCK // readout.n_echoes)):
        yield readout.train(flat.map(lambda x, part=part: x[part]))


def _kept(readout: Readout, train: Train) -> tuple[Tensor, Tensor]:
    acquisition = readout.acquisition
    if acquisition.encoding == "exact":
        return train.gain, train.offset
    if acquisition.encoding == "subspace":
        space = subspace(readout)
        return space.coefficients(train.gain), space.coefficients(train.offset)
    centre = echo_of_centre(acquisition)
    return train.gain[centre : centre + 1], train.offset[centre : centre + 1]


def _slices(total: int, size: int) -> Iterator[slice]:
    for low in range(0, total, size):
        yield slice(low, min(low + size, total))


@lru_cache(maxsize=32)
def subspace(readout: Readout) -> Subspace:
    """The temporal subspace of a readout, of the rank of its acquisition.

    Made once for an ensemble that no image enters, so that a sample does not depend on its neighbours: gains and
    offsets over T1 0.3 to 4 s, T2 20 ms to 2 s (no longer than T1), rel_b1 0.7 to 1.3 and, for balanced SSFP,
    off-resonance in the middle half of the band between two dark ones.

    Raises: InputError if the rank leaves out more than 5 % of the trains; `Subspace.loss` is what it does leave out.
    """
    band = _band(readout)
    # n echoes TR apart turn by n / 2 cycles from one edge of the band to the other: two points a cycle, or half a cycle
    # between two points would be left out unseen; tissue changes a balanced train less
    n, n_b0 = (5, readout.n_echoes + 1) if band else (9, 1)
    t1, t2 = (_geometric(*ends, n) for ends in (_ENSEMBLE_T1, _ENSEMBLE_T2))
    b1 = torch.linspace(*_ENSEMBLE_B1, n, dtype=torch.float64)
    b0 = torch.linspace(-(band or 0.0), band or 0.0, n_b0, dtype=torch.float64)
    grid = [x.reshape(-1) for x in torch.meshgrid(t1, t2, b1, b0, indexing="ij")]
    ensemble = spins(t1=grid[0], t2=torch.minimum(grid[1], grid[0]), rel_b1=grid[2], delta_b0=grid[3])
    train = readout.train(ensemble)
    space = Subspace.of(torch.cat((train.gain, train.offset), 1), readout.acquisition.rank)
    if space.loss > _LARGEST_LOSS:
        raise InputError(
            f"acquisition.rank: {space.rank} temporal coefficients leave out {100 * space.loss:.1f} % of a "
            f"{readout.kind} train of {readout.n_echoes} echoes; give a higher rank, or encoding: exact"
        )
    return space


def _band(readout: Readout) -> float | None:
    """Largest off-resonance that a subspace is made for [Hz]; None: the echoes do not depend on it."""
    return 0.25 / readout.tr if isinstance(readout, BalancedSSFP) else None


@torch.no_grad()
def _check_held(readout: Readout, spin: Spins) -> None:
    """Refuse voxels whose trains the temporal subspace does not hold.

    Raises: InputError if off-resonance lies beyond the ensemble of a balanced train, or T1, T2 or rel_b1 lie outside
        theirs and the subspace leaves out of such a train more than ten times what it leaves out of the ensemble
        (at least 0.1 %, at most 5 %).
    """
    band, space = _band(readout), subspace(readout)
    # in the precision of the maps
    if band is not None and bool((spin.delta_b0.abs() > spin.delta_b0.new_tensor(band)).any()):
        raise InputError(
            f"delta_b0: {float(spin.delta_b0.abs().max()):g} Hz is beyond the {band:g} Hz, 1 / (4 tr), that a temporal "
            "subspace of a balanced train is made for; use encoding: exact"
        )
    ranges = {"t1": (spin.t1, _ENSEMBLE_T1), "t2": (spin.t2, _ENSEMBLE_T2), "rel_b1": (spin.rel_b1, _ENSEMBLE_B1)}
    if not spin.t1.numel() or all(
        low <= float(least) and float(most) <= high
        for (least, most), (low, high) in ((values.aminmax(), ends) for values, ends in ranges.values())
    ):
        return
    outside = torch.zeros_like(spin.t1, dtype=torch.bool)
    for values, (low, high) in ranges.values():
        outside |= (values < low) | (values > high)
    limit = min(max(_LOSS_OUTSIDE, _TIMES_LOSS * space.loss), _LARGEST_LOSS)
    chosen = outside.reshape(-1).nonzero()[:, 0]
    for part in _slices(len(chosen), max(1, _BLOCK // readout.n_echoes)):
        voxels = spin.map(lambda x, part=part: x.reshape(-1).index_select(0, chosen[part]))
        train = readout.train(voxels)
        lost = torch.maximum(space.left_out(train.gain), space.left_out(train.gain + train.offset))
        worst = int(lost.argmax())
        if float(lost[worst]) <= limit:
            continue
        here = {name: (float(getattr(voxels, name)[worst]), *ends) for name, (_, ends) in ranges.items()}
        # of several, the one that is outside by the largest factor
        name = max(here, key=lambda name: max(here[name][1] / (here[name][0] + 1e-9), here[name][0] / here[name][2]))
        given, low, high = here[name]
        raise InputError(
            f"{name}: {given:g} is outside the {low:g} to {high:g} that a temporal subspace is made for, whose rank "
            f"{space.rank} leaves out {100 * float(lost[worst]):.2g} % of the train there; use encoding: exact"
        )


def _geometric(low: float, high: float, n: int) -> Tensor:
    return torch.logspace(log10(low), log10(high), n, dtype=torch.float64)
