"""The order in which a readout visits k-space, and what that does to an image.

A train of echoes measures the lines of k-space with a signal that changes from echo to echo. Line k of the spectrum
is the transform of what the image was at the echo that measured it:

    K(k, x) = sum_y S(echo(k), y, x) exp(-2 pi i (k - DC) y / N)
    image(y', x) = 1/N sum_k K(k, x) exp(2 pi i (k - DC) y' / N)

The phase axis y is the last but one; its rows stand for the field of view, lines are those of the centred spectrum,
DC is line N // 2. Two ways: exactly, a few lines for each distinct echo, then one inverse transform; or through a
temporal subspace, S(e) = sum_r basis(e, r) c_r, where each coefficient map has one circulant blur.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import pi
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact, Int
from torch import Tensor

from qsim.values import value

# numbers of a temporary: larger ones leave the cache
_BLOCK = 262_144
# columns of a panel come in multiples of 64 bytes of float32
_ALIGNED = 16


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
        rows: cos and -sin rows of the transform, one above the other.
    """

    echoes: tuple[int, ...]
    rows: Float[Tensor, "e two_l y"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Groups of lines, and the inverse transform: from their joined real numbers to the rows of Re, then Im."""

    groups: tuple[_Lines, ...]
    inverse: Float[Tensor, "two_y two_y"]


@lru_cache(maxsize=32)
def _plan(echoes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Plan:
    rows = len(echoes)
    line = np.arange(rows)
    # phases as whole numbers modulo the rows: exact for any size
    angle = 2 * pi * (np.outer(line - rows // 2, line) % rows) / rows
    cos, sin = np.cos(angle), np.sin(angle)
    measured = {echo: np.flatnonzero(np.array(echoes) == echo) for echo in sorted(set(echoes))}
    groups, inverse = [], []
    for length in sorted({len(lines) for lines in measured.values()}):
        group = tuple(echo for echo, lines in measured.items() if len(lines) == length)
        chosen = np.stack([measured[echo] for echo in group])
        forward = torch.tensor(np.concatenate((cos[chosen], -sin[chosen]), 1), dtype=dtype, device=device)
        groups.append(_Lines(group, forward))
        for k in chosen:
            # Re of a line, then Im: K exp(i angle) / N
            inverse += [*np.concatenate((cos[k], sin[k]), 1), *np.concatenate((-sin[k], cos[k]), 1)]
    return _Plan(tuple(groups), torch.tensor(np.stack(inverse, 1) / rows, dtype=dtype, device=device))


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
    images = [_encoded(plan, partial(_range_or_list, one), one[0].numel()) for one in _images(signal)]
    return _joined(images, signal.shape[1:], signal.is_complex())


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

    pairs = list(zip(_images(gain), _images(offset), strict=True))
    images = []
    for i, image in enumerate(_images(mz[None])):
        scale, shift = pairs[i % len(pairs)]

        def signal(echoes: tuple[int, ...], scale: Tensor = scale, shift: Tensor = shift, m: Tensor = image) -> Tensor:
            return torch.addcmul(_range_or_list(shift, echoes), _range_or_list(scale, echoes), m[0])

        images.append(_encoded(plan, signal, image.numel()))
    return _joined(images, mz.shape, gain.is_complex() or mz.is_complex())


# Products of matrices and transforms of numbers round by the shape and the place in memory of all that they are given,
# so that a batch in one call would not have the bits that each image has alone: images go one by one, from panels of
# one layout, and only as real numbers.


def _images(maps: Inexact[Tensor, "c *lead y x"]) -> Sequence[Inexact[Tensor, "c y x"]]:
    return (maps[:, None] if maps.ndim == 3 else maps.flatten(1, -3)).unbind(1)


def _encoded(plan: _Plan, at: Callable[[tuple[int, ...]], Tensor], voxels: int) -> Float[Tensor, "two_y wide"]:
    """One image, the rows of Re above those of Im, from its signal at some echoes, a few echoes at a time."""
    pieces, size = [], max(1, _BLOCK // voxels)
    for lines in plan.groups:
        for low in range(0, len(lines.echoes), size):
            part = slice(low, low + size)
            pieces.append(torch.bmm(lines.rows[part], _panel(at(lines.echoes[part]))).flatten(0, 1))
    return plan.inverse @ torch.cat(pieces)


def _panel(image: Inexact[Tensor, "c y x"]) -> Float[Tensor, "c y wide"]:
    """Real columns, then imaginary ones, then zeros, so that each row starts at a multiple of 64 bytes."""
    if image.is_complex():
        image = torch.cat((image.real, image.imag), -1)
    columns = image.shape[-1]
    wide = -(-columns // _ALIGNED) * _ALIGNED
    if wide == columns and image.is_contiguous() and not image.data_ptr() % 64:
        return image
    panel = image.new_zeros(*image.shape[:-1], wide)
    panel[..., :columns] = image
    return panel


def _joined(
    images: Sequence[Float[Tensor, "two_y wide"]], shape: torch.Size, is_complex: bool
) -> Complex[Tensor, "*lead y x"]:
    """The images in their shape; those of a complex signal have columns of Re, then of Im."""
    *lead, _, columns = shape
    real, imaginary = torch.stack(list(images)).chunk(2, 1)
    if is_complex:
        # of Re the transform is (real, imaginary), of Im it is (-imaginary, real)
        second = slice(columns, 2 * columns)
        image = torch.complex(
            real[..., :columns] - imaginary[..., second], imaginary[..., :columns] + real[..., second]
        )
    else:
        image = torch.complex(real[..., :columns], imaginary[..., :columns])
    return image.unflatten(0, lead) if lead else image[0]


def _range_or_list(signal: Tensor, echoes: tuple[int, ...]) -> Tensor:
    """The signal at the echoes; a view where they follow one another."""
    low, high = echoes[0], echoes[-1]
    if high - low == len(echoes) - 1:
        return signal[low : high + 1]
    return signal.index_select(0, torch.tensor(echoes, device=signal.device))


# --- through a temporal subspace --------------------------------------------------------------------------------------


# compared and hashed as the object that it is, for the cache of its operators
@dataclass(frozen=True, eq=False)
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
        """c = basis^H S

        Echo by echo: a product of matrices would give a voxel other bits beside other voxels; so would one of complex
        numbers, hence

            c = sum_e Re(basis) S - i sum_e Im(basis) S
        """
        values = torch.view_as_real(signal.resolve_conj()) if signal.is_complex() else signal
        total = _weighted(self.basis.real, values)
        if not self.basis.is_complex():
            return torch.view_as_complex(total) if signal.is_complex() else total
        crossed = _weighted(self.basis.imag, values)
        if not signal.is_complex():
            return torch.complex(total, -crossed)
        return torch.complex(total[..., 0] + crossed[..., 1], total[..., 1] - crossed[..., 0])

    def signal(self, coefficients: Inexact[Tensor, "r *space"]) -> Inexact[Tensor, "e *space"]:
        """S = basis c"""
        return torch.tensordot(_like(self.basis, coefficients), coefficients, 1)

    def left_out(self, signal: Inexact[Tensor, "e *space"]) -> Float[Tensor, "*space"]:
        """Norm of what the subspace leaves out of each train, over that of the train; 0 where there is none [1]."""
        rest, size = signal - self.signal(self.coefficients(signal)), signal.abs().square().sum(0)
        return (rest.abs().square().sum(0) / torch.where(size > 0, size, 1.0)).sqrt()

    def encode(
        self, coefficients: Inexact[Tensor, "r *lead y x"], echo_of_line: Int[Tensor, " y"]
    ) -> Complex[Tensor, "*lead y x"]:
        """`encode_exact` of the signal that the coefficients stand for: one blur for each of them.

        image = sum_r F^-1 diag(basis(echo(k), r)) F c_r
        """
        operator = _operator(self, _listed(echo_of_line), _real_dtype(coefficients), coefficients.device)
        images = [operator @ _panel(image).flatten(0, 1) for image in _images(coefficients)]
        return _joined(images, coefficients.shape[1:], coefficients.is_complex())

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


@lru_cache(maxsize=8)
def _operator(
    space: Subspace, echoes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "two_y ry"]:
    """From the rows of all coefficient maps to those of Re, then Im of the image.

    The blur of a coefficient is circulant, of first column F^-1 basis(echo(k), r).
    """
    rows = len(echoes)
    # of each frequency of the uncentred spectrum
    weights = space.basis.cpu()[list(echoes)].roll(-(rows // 2), 0)
    spread = torch.fft.ifft(weights.mT)
    y = torch.arange(rows)
    blur = spread[:, (y[:, None] - y) % rows].movedim(0, 1).flatten(1)
    return torch.cat((blur.real, blur.imag)).to(device=device, dtype=dtype)


def _weighted(weights: Float[Tensor, "e r"], values: Float[Tensor, "e *space"]) -> Float[Tensor, "r *space"]:
    """sum_e weights(e, r) values(e)"""
    weights = weights.to(values).reshape(*weights.shape, *(1,) * (values.ndim - 1))
    total = values.new_zeros(weights.shape[1], *values.shape[1:])
    for weight, value_ in zip(weights, values, strict=True):
        total.addcmul_(weight, value_)
    return total


def _like(basis: Tensor, signal: Tensor) -> Tensor:
    """The basis on the device and in the precision of a signal; complex if either is."""
    dtype = _real_dtype(signal)
    if basis.is_complex() or signal.is_complex():
        dtype = dtype.to_complex()
    return basis.to(device=signal.device, dtype=dtype)
