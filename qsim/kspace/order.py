"""The order in which a readout visits k-space, and what that does to an image.

A train of echoes measures the lines of k-space with a signal that changes from echo to echo. Line k of the spectrum
is the transform of what the image was at the echo that measured it:

    K(k, x) = sum_y S(echo(k), y, x) exp(-2 pi i (k - DC) y / N)
    image(y', x) = 1/N sum_k K(k, x) exp(2 pi i (k - DC) y' / N)

The phase axis y is the last but one; its rows stand for the field of view, lines are those of the centred spectrum,
DC is line N // 2. Two ways: exactly, a few lines for each distinct echo, then one inverse transform; or through a
temporal subspace, S(e) = sum_r basis(e, r) c_r, where each coefficient map has one circulant blur.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact, Int
from torch import Tensor

from qsim.values import value

# numbers of a temporary: larger ones leave the cache
_BLOCK = 262_144


@value
class Acquisition:
    """Which echo of a train measures which line of k-space.

    Attributes:
        lines: phase-encoding lines of one image [1].
        shots: trains that share them; lines / shots echoes a train [1].
        order: with the lines of the centred spectrum numbered from one end, line k is measured at echo
            `linear`: k // shots (shots interleaved); `centric`: its rank of distance from DC, the negative side first,
            // shots; `segmented`: k % (lines / shots), so that each shot measures a contiguous part.
        encoding: `centre`: every voxel has the contrast of the echo at DC, and no blur; `exact`: each line has that of
            its echo; `subspace`: the same, through `rank` temporal coefficients.
        rank: of the temporal subspace [1].
    """

    lines: int
    shots: int = 1
    order: Literal["linear", "centric", "segmented"] = "linear"
    encoding: Literal["centre", "exact", "subspace"] = "centre"
    rank: int = 4

    def __post_init__(self) -> None:
        if self.lines < 1:
            raise ValueError(f"lines must be at least 1, got {self.lines}")
        if self.shots < 1:
            raise ValueError(f"shots must be at least 1, got {self.shots}")
        if self.lines % self.shots:
            raise ValueError(f"lines must be a multiple of shots ({self.shots}), got {self.lines}")
        if self.order not in ("linear", "centric", "segmented"):
            raise ValueError(f"order must be linear, centric or segmented, got {self.order!r}")
        if self.encoding not in ("centre", "exact", "subspace"):
            raise ValueError(f"encoding must be centre, exact or subspace, got {self.encoding!r}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.encoding == "subspace" and self.rank > self.n_echoes:
            raise ValueError(f"rank must not exceed the {self.n_echoes} echoes of a train, got {self.rank}")

    @property
    def n_echoes(self) -> int:
        """Echoes of a train, lines / shots."""
        return self.lines // self.shots


def _schedule(acquisition: Acquisition) -> np.ndarray:
    """Echo of each of the acquisition's own lines."""
    k = np.arange(acquisition.lines)
    if acquisition.order == "linear":
        return k // acquisition.shots
    if acquisition.order == "segmented":
        return k % acquisition.n_echoes
    offset = k - acquisition.lines // 2
    # distance first, then the sign: the negative side leads a tie
    rank = np.empty_like(k)
    rank[np.lexsort((offset, np.abs(offset)))] = k
    return rank // acquisition.shots


@lru_cache(maxsize=64)
def _echo_of_line(acquisition: Acquisition, rows: int) -> tuple[int, ...]:
    lines = acquisition.lines
    k = np.arange(rows) - rows // 2
    # nearest in k / rows against K / lines, in whole numbers; of two equally near the one towards the centre
    nearest = np.sign(k) * -((rows - 2 * np.abs(k) * lines) // (2 * rows))
    nearest = np.clip(nearest, -(lines // 2), lines - 1 - lines // 2)
    return tuple(_schedule(acquisition)[nearest + lines // 2].tolist())


def echo_of_line(acquisition: Acquisition, rows: int) -> Int[Tensor, " rows"]:
    """The echo that measures each line of the centred spectrum of an image of `rows` rows.

    A patch of other rows than `acquisition.lines` stands for the same field of view: each of its lines takes the echo
    of the scheduled line nearest in spatial frequency, k / rows against K / lines [cycles per row].
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    return torch.tensor(_echo_of_line(acquisition, rows))


def echo_of_centre(acquisition: Acquisition) -> int:
    """The echo that measures the centre of k-space, line lines // 2."""
    return int(_schedule(acquisition)[acquisition.lines // 2])


# --- exact ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Lines:
    """Lines that a group of echoes measures, equally many for each.

    Attributes:
        echoes: the echoes of the group.
        real: cos and -sin rows of the transform, one above the other.
        transform: the same rows, complex.
    """

    echoes: tuple[int, ...]
    real: Float[Tensor, "e two_l y"]
    transform: Complex[Tensor, "e l y"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Groups of lines, and where in their joined list each line of the uncentred spectrum is."""

    groups: tuple[_Lines, ...]
    place: Int[Tensor, " rows"]


@lru_cache(maxsize=32)
def _plan(echoes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Plan:
    rows = len(echoes)
    line = np.arange(rows)
    # uncentred: line k is frequency k - DC modulo the rows, which is where the inverse transform expects it
    frequency = (line - rows // 2) % rows
    # phases as whole numbers modulo the rows: exact for any size
    angle = 2 * pi * (np.outer(frequency, line) % rows) / rows
    measured = {echo: np.flatnonzero(np.array(echoes) == echo) for echo in sorted(set(echoes))}
    groups, joined = [], []
    for length in sorted({len(lines) for lines in measured.values()}):
        group = tuple(echo for echo, lines in measured.items() if len(lines) == length)
        chosen = np.stack([measured[echo] for echo in group])
        cos, sin = (torch.tensor(f(angle[chosen]), dtype=dtype, device=device) for f in (np.cos, np.sin))
        groups.append(_Lines(group, torch.cat((cos, -sin), 1), torch.complex(cos, -sin)))
        joined.append(frequency[chosen].reshape(-1))
    place = np.empty(rows, np.int64)
    place[np.concatenate(joined)] = line
    return _Plan(tuple(groups), torch.tensor(place, device=device))


def _listed(echo_of_line: Int[Tensor, " rows"]) -> tuple[int, ...]:
    return tuple(echo_of_line.tolist())


def _real_dtype(like: Tensor) -> torch.dtype:
    return like.real.dtype if like.is_complex() else like.dtype


def encode_exact(
    signal: Inexact[Tensor, "e *lead y x"], echo_of_line: Int[Tensor, " y"]
) -> Complex[Tensor, "*lead y x"]:
    """The image of a train: every line transformed from the signal of its own echo.

    Args:
        signal: at each echo of the train [units of A].
        echo_of_line: echo that measures each line of the centred spectrum.
    """
    plan = _plan(_listed(echo_of_line), _real_dtype(signal), signal.device)
    pieces = []
    for lines, part in _parts(plan, max(1, _BLOCK // signal[0].numel())):
        chosen = _range_or_list(signal, lines.echoes[part])
        pieces.append(_transformed(lines, part, chosen))
    return _image(pieces, plan.place)


def encode_exact_affine(
    gain: Inexact[Tensor, "e *lead y x"],
    offset: Inexact[Tensor, "e *lead y x"],
    mz: Inexact[Tensor, "n *lead y x"],
    echo_of_line: Int[Tensor, " y"],
) -> Complex[Tensor, "n *lead y x"]:
    """The images of a train that read n magnetisations: `encode_exact` of gain_e Mz + offset_e, a few echoes at a time.

    Args:
        gain, offset: of the train, at each echo [1].
        mz: longitudinal magnetisation before the train in each image [units of A].
        echo_of_line: echo that measures each line of the centred spectrum.
    """
    plan = _plan(_listed(echo_of_line), _real_dtype(gain), gain.device)
    pieces = []
    for lines, part in _parts(plan, max(1, _BLOCK // mz.numel())):
        echoes = lines.echoes[part]
        scale, shift = (_range_or_list(x, echoes)[:, None] for x in (gain, offset))
        pieces.append(_transformed(lines, part, torch.addcmul(shift, scale, mz)))
    return _image(pieces, plan.place)


def _parts(plan: _Plan, size: int) -> Iterator[tuple[_Lines, slice]]:
    for lines in plan.groups:
        for low in range(0, len(lines.echoes), size):
            yield lines, slice(low, low + size)


def _range_or_list(signal: Tensor, echoes: tuple[int, ...]) -> Tensor:
    """The signal at the echoes; a view where they follow one another."""
    low, high = echoes[0], echoes[-1]
    if high - low == len(echoes) - 1:
        return signal[low : high + 1]
    return signal.index_select(0, torch.tensor(echoes, device=signal.device))


def _transformed(lines: _Lines, part: slice, signal: Tensor) -> Complex[Tensor, "*lead l x"]:
    """The lines of a few echoes, joined along the line axis."""
    lead = (1,) * (signal.ndim - 3)
    if signal.is_complex():
        rows = lines.transform[part]
        piece = rows.reshape(len(rows), *lead, *rows.shape[1:]) @ signal
    else:
        rows = lines.real[part]
        real, imaginary = (rows.reshape(len(rows), *lead, *rows.shape[1:]) @ signal).chunk(2, -2)
        piece = torch.complex(real, imaginary)
    return piece.movedim(0, -3).flatten(-3, -2)


def _image(pieces: list[Tensor], place: Int[Tensor, " rows"]) -> Complex[Tensor, "*lead y x"]:
    return torch.fft.ifft(torch.cat(pieces, -2).index_select(-2, place), dim=-2)


# --- through a temporal subspace --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subspace:
    """A few temporal shapes that the signals of a train are made of: S(e) = sum_r basis(e, r) c_r.

    Attributes:
        basis: orthonormal columns, float64 or complex128.
        loss: norm of what they leave out of the ensemble, over that of the ensemble [1].
    """

    basis: Inexact[Tensor, "e rank"]
    loss: float

    @classmethod
    def of(cls, trains: Inexact[Tensor, "e m"], rank: int) -> "Subspace":
        """The best subspace of a rank for an ensemble of trains: the first singular vectors.

        Raises: ValueError if the rank exceeds the echoes or the trains.
        """
        if not 1 <= rank <= min(trains.shape):
            raise ValueError(f"rank must lie in [1, {min(trains.shape)}] for these trains, got {rank}")
        trains = trains.to(torch.promote_types(trains.dtype, torch.float64))
        # the trains themselves: the eigenvectors of their Gram matrix would lose half of the digits
        u, sizes, _ = torch.linalg.svd(trains, full_matrices=False)
        loss = sizes[rank:].norm() / sizes.norm()
        return cls(u[:, :rank].contiguous(), float(loss))

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def coefficients(self, signal: Inexact[Tensor, "e *space"]) -> Inexact[Tensor, "r *space"]:
        """c = basis^H S"""
        basis = _like(self.basis, signal)
        return (basis.mH @ signal.flatten(1)).unflatten(1, signal.shape[1:]) if signal.ndim > 1 else basis.mH @ signal

    def signal(self, coefficients: Inexact[Tensor, "r *space"]) -> Inexact[Tensor, "e *space"]:
        """S = basis c"""
        return torch.tensordot(_like(self.basis, coefficients), coefficients, 1)

    def encode(
        self, coefficients: Inexact[Tensor, "r *lead y x"], echo_of_line: Int[Tensor, " y"]
    ) -> Complex[Tensor, "*lead y x"]:
        """`encode_exact` of the signal that the coefficients stand for: one blur for each of them.

        image = sum_r F^-1 diag(basis(echo(k), r)) F c_r
        """
        weights = self._weights(coefficients, echo_of_line)
        rank, *lead, y, x = coefficients.shape
        if coefficients[0].numel() <= _BLOCK:
            return _blurred(coefficients, weights)
        # one image after the other: the spectra then stay in the cache
        images = coefficients.reshape(rank, -1, y, x).unbind(1)
        return torch.stack([_blurred(image, weights) for image in images]).reshape(*lead, y, x)

    def encode_affine(
        self,
        gain: Inexact[Tensor, "r *lead y x"],
        offset: Inexact[Tensor, "r *lead y x"],
        mz: Inexact[Tensor, "n *lead y x"],
        echo_of_line: Int[Tensor, " y"],
    ) -> Complex[Tensor, "n *lead y x"]:
        """The images of a train that reads n magnetisations, one after the other.

        Args:
            gain, offset: coefficients of those of the train [1].
            mz: longitudinal magnetisation before the train in each image [units of A].
            echo_of_line: echo that measures each line of the centred spectrum.
        """
        return torch.stack([self.encode(torch.addcmul(offset, gain, image), echo_of_line) for image in mz])

    def _weights(self, like: Tensor, echo_of_line: Tensor) -> Inexact[Tensor, "r y ones"]:
        """Of each frequency of the uncentred spectrum."""
        dc = len(echo_of_line) // 2
        rows = self.basis.index_select(0, echo_of_line.roll(-dc).to(self.basis.device))
        return _like(rows.mT.contiguous(), like)[..., None]


def _blurred(coefficients: Tensor, weights: Tensor) -> Complex[Tensor, "*lead y x"]:
    lead = (1,) * (coefficients.ndim - 3)
    spectrum = torch.zeros((), dtype=coefficients.dtype, device=coefficients.device)
    for image, weight in zip(coefficients, weights, strict=True):
        spectrum = spectrum + torch.fft.fft(image, dim=-2) * weight.reshape(*lead, -1, 1)
    return torch.fft.ifft(spectrum, dim=-2)


def _like(basis: Tensor, signal: Tensor) -> Tensor:
    """The basis on the device and in the precision of a signal; complex if either is."""
    dtype = _real_dtype(signal)
    if basis.is_complex() or signal.is_complex():
        dtype = dtype.to_complex()
    return basis.to(device=signal.device, dtype=dtype)
