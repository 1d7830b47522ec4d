"""One image from those of several coils.

    root of sum of squares    m = sqrt(sum_j |a_j|^2)                  real: the noise adds up in it
    matched filter            m = s^H Psi^-1 a / (s^H Psi^-1 s)        sensitivities known
    adaptive                  m = v^H L^-1 a,   |v| = 1,   v the dominant eigenvector of sum_block (L^-1 a)(L^-1 a)^H

with Psi = L L^H. The matched filter has the best SNR of all linear combinations and brightness 1; its noise has the SD
sigma / sqrt(s^H Psi^-1 s) per real channel. The adaptive one finds the direction of s in the images themselves: its
noise has the SD sigma, its brightness is that of the root of sum of squares of whitened images. Where there is no
signal its weights follow the noise, whose SD then is up to about (1 + sqrt(c / b)) sigma, b the voxels x images of a
block.

Images of coils are (n, c, *space), sensitivities (c, *space). Squares are taken of numbers over 2^k, the power of two
above the largest of them: exact, and the same whatever the units are; only what lies 19 orders of magnitude below the
largest is lost in single precision.
Source: Roemer et al. 1990, doi:10.1002/mrm.1910160203; Walsh et al. 2000,
doi:10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp, prod

import torch
from jaxtyping import Bool, Complex, Float, Inexact
from torch import Tensor

from qsim.kspace.coils.covariance import Factor
from qsim.kspace.fourier import require_complex

# M^256: an eigenvalue 6 % below the largest is gone in single precision, one 12 % below in double
_SQUARINGS = 8
# matrices at once: larger pieces leave the cache
_VOXELS = 2048
# covariances of a block of slices: complex numbers at once
_AT_ONCE = 16_777_216


@dataclass(frozen=True, slots=True)
class Adaptive:
    """An adaptive combination.

    Attributes:
        images: combined; the phase is that of the object plus that of the reference coil [units of the images].
        sensitivities: relative ones, s = L v, the reference coil's real; s^H Psi^-1 s = 1; 0 where there is no signal.
    """

    images: Complex[Tensor, "n *space"]
    sensitivities: Complex[Tensor, "c *space"]


def root_sum_of_squares(images: Complex[Tensor, "n c *space"]) -> Float[Tensor, "n *space"]:
    """sqrt(sum_j |a_j|^2): with white noise of SD sigma per real channel, non-central chi with 2 c degrees of freedom.

    Raises: ValueError if the images are not complex.
    """
    require_complex(images)
    scale = _power_of_two(images)
    total = torch.zeros_like(images[:, 0].real, memory_format=torch.contiguous_format)
    for coil in range(images.shape[1]):
        one = images[:, coil] * (1 / scale)
        total.addcmul_(one.real, one.real).addcmul_(one.imag, one.imag)
    return total.sqrt_().mul_(scale)


def matched(
    images: Complex[Tensor, "n c *space"],
    sensitivities: Complex[Tensor, "c *space"],
    psi: Inexact[Tensor, "c c"] | None = None,
    mask: Bool[Tensor, "*space"] | None = None,
) -> Complex[Tensor, "n *space"]:
    """s^H Psi^-1 a / (s^H Psi^-1 s); 0 outside the mask.

    Args:
        psi: covariance of the noise; None: white.
        mask: voxels to combine; None: all.
    Raises: ValueError if a voxel is seen by no coil, or shapes differ.
    """
    require_complex(images)
    check_sensitivities(sensitivities, images.shape[1], tuple(images.shape[2:]))
    scale = _power_of_two(sensitivities)
    patterns = sensitivities * (1 / scale)
    weights = patterns
    if psi is not None:
        # the strength of Psi cancels: only then it may be taken out
        factor = Factor.of(psi, len(patterns)).of_unit_strength()
        weights = factor.solve(patterns.flatten(1)).reshape(patterns.shape)
    size = (patterns.conj() * weights).real.sum(0)
    where = torch.ones_like(size, dtype=torch.bool) if mask is None else mask
    blind = where & ~(size > 0)
    if bool(blind.any()):
        raise ValueError(
            f"sensitivities: {int(blind.sum())} voxels are seen by no coil; leave them out by a mask of the object"
        )
    weights = torch.where(where, weights / torch.where(where, size, 1) * (1 / scale), 0)
    return weighted(weights.conj(), images)


def adaptive(
    images: Complex[Tensor, "n c *space"],
    psi: Inexact[Tensor, "c c"] | None = None,
    block: int = 5,
    reference: int | None = None,
) -> Adaptive:
    """Combination with the direction of the sensitivities that a block around each voxel shows.

    All images of the series go into one covariance, so that one set of weights serves all and ratios between images
    are kept. At the border the block is what lies inside.

    Args:
        psi: covariance of the noise; None: white.
        block: voxels along each axis, odd.
        reference: coil whose phase is taken as 0; None: the one with the most energy.
    Raises: ValueError for real images, an even block, or a coil that does not exist.
    """
    require_complex(images)
    coils, space = images.shape[1], tuple(images.shape[2:])
    if block < 1 or block % 2 == 0:
        raise ValueError(f"block must be odd and at least 1, so that a voxel is its middle, got {block}")
    if reference is not None and not 0 <= reference < coils:
        raise ValueError(f"reference: there is no coil {reference}, only 0 to {coils - 1}")
    factor = None if psi is None else Factor.of(psi, coils)
    white = images if factor is None else factor.white(images.flatten(2)).reshape(images.shape)
    if reference is None:
        scale = _power_of_two(images)
        reference = int(torch.stack([_size(images[:, coil] * (1 / scale)) for coil in range(coils)]).argmax())
    pieces = (piece for slices in _block_covariances(white, block) for piece in slices.split(_VOXELS))
    vectors = torch.cat([_dominant(piece) for piece in pieces]).T.contiguous()
    direction = vectors if factor is None else factor.colour(vectors)
    phase = torch.sgn(direction[reference])
    # a voxel the reference does not hear keeps the phase it has
    phase = torch.where(phase == 0, 1, phase).conj()
    vectors, direction = vectors * phase, (direction * phase).reshape(coils, *space)
    return Adaptive(weighted(vectors.conj().reshape(coils, *space), white), direction)


def weighted(
    weights: Complex[Tensor, "c *space"], images: Complex[Tensor, "n c *space"]
) -> Complex[Tensor, "n *space"]:
    """sum_j w_j a_j, in the precision of the images."""
    weights = weights.to(images.dtype)
    total = images[:, 0] * weights[0]
    for coil in range(1, len(weights)):
        # in place: coil by coil nothing larger than the result is made
        total.addcmul_(images[:, coil], weights[coil].expand_as(total))
    return total


def check_sensitivities(sensitivities: Tensor, coils: int, space: tuple[int, ...]) -> None:
    """Refuse sensitivities that do not belong to images of these coils and this extent."""
    if not sensitivities.is_complex():
        raise ValueError(f"sensitivities must be complex, got {sensitivities.dtype}")
    if tuple(sensitivities.shape) != (coils, *space):
        raise ValueError(
            f"sensitivities have shape {tuple(sensitivities.shape)}, the images {coils} coils of {space} voxels"
        )
    if not bool(torch.isfinite(sensitivities).all()):
        raise ValueError("sensitivities must be finite, got NaN or infinity")


def _block_covariances(images: Complex[Tensor, "n c *space"], block: int) -> Iterator[Complex[Tensor, "v c c"]]:
    """sum over the series and a block of a a^H, for some slices after one another."""
    _, coils, length, *rest = images.shape
    scale = _power_of_two(images)
    half = block // 2
    step = max(1, _AT_ONCE // (prod(rest) * coils * coils))
    for start in range(0, length, step):
        low, high = max(0, start - half), min(length, start + step + half)
        part = images[:, :, low:high] * (1 / scale)
        columns = part.flatten(2).permute(2, 1, 0).contiguous()
        covariance = (columns @ columns.mH).reshape(high - low, *rest, coils, coils)
        for axis in range(1 + len(rest)):
            covariance = _box_sum(covariance, axis, half)
        middle = covariance[start - low : min(start + step, length) - low]
        yield middle.reshape(-1, coils, coils)


def _box_sum(values: Complex[Tensor, "*s"], axis: int, half: int) -> Complex[Tensor, "*s"]:
    """Sum of the 2 half + 1 neighbours along an axis, those inside."""
    length = values.shape[axis]
    total = values.clone()
    for shift in range(1, min(half, length - 1) + 1):
        total.narrow(axis, shift, length - shift).add_(values.narrow(axis, 0, length - shift))
        total.narrow(axis, 0, length - shift).add_(values.narrow(axis, shift, length - shift))
    return total


def _dominant(matrices: Complex[Tensor, "v c c"]) -> Complex[Tensor, "v c"]:
    """Unit eigenvector of the largest eigenvalue; 0 for a matrix of zeros.

    The matrix is squared again and again, P = M^(2^k) / trace, until only that eigenvector is left in it; a matrix
    whose two largest eigenvalues are too near for that is decomposed.
    """
    power = _shares(matrices)
    for _ in range(_SQUARINGS):
        power = _shares(power @ power)
    heard = power.diagonal(dim1=1, dim2=2).real
    # |P|^2 = sum of squares of shares that add up to 1: 1 for one eigenvector alone, 0 for a matrix of zeros
    squares = torch.view_as_real(power).square().sum((1, 2, 3))
    mixed = (squares > 0) & (squares < 1 - 50 * torch.finfo(squares.dtype).eps)
    vectors = power[torch.arange(len(power), device=power.device), :, heard.argmax(1)]
    length = torch.view_as_real(vectors).square().sum((1, 2)).sqrt()
    vectors = vectors / torch.where(length > 0, length, 1)[:, None]
    if bool(mixed.any()):
        vectors[mixed] = torch.linalg.eigh(matrices[mixed])[1][:, :, -1]
    return vectors


def _shares(matrices: Complex[Tensor, "v c c"]) -> Complex[Tensor, "v c c"]:
    """Over their trace, so that the eigenvalues add up to 1."""
    trace = matrices.diagonal(dim1=1, dim2=2).real.sum(1)
    # divided, not multiplied by the reciprocal: that of the smallest numbers is infinite
    return torch.view_as_complex(torch.view_as_real(matrices) / torch.where(trace > 0, trace, 1)[:, None, None, None])


def _size(values: Complex[Tensor, "*s"]) -> Float[Tensor, ""]:
    """Root of the sum of squares; through the real view, which is many times faster."""
    return torch.linalg.vector_norm(torch.view_as_real(values.resolve_conj()))


def _power_of_two(values: Complex[Tensor, "*s"]) -> float:
    """2^k that brings the largest real or imaginary part to [1/2, 1); 1 for zeros.

    Kept so that it and its reciprocal are normal numbers of the precision: multiplying by them is exact.
    """
    if values.numel() == 0:
        return 1.0
    low, high = torch.view_as_real(values.resolve_conj()).aminmax()
    largest = max(-float(low), float(high))
    most = -frexp(torch.finfo(values.dtype).tiny)[1]
    return 2.0 ** min(max(frexp(largest)[1], -most), most)
