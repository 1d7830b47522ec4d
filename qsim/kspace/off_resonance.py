"""Gradient-echo readouts off resonance: displacement, pile-up, phase and dropout, for a measured field map too.

Along the axis that is read, sample k of the centred k-space is acquired at t(k) = TE + p k / (N BW), with BW the
bandwidth [Hz per voxel] and p = +-1 the polarity. Precession is clockwise, dM/dt = M x w (docs/conventions.md):

    s(k) = 1 / sqrt(N) sum_x m(x) D(x) exp(-2 pi i delta_b0(x) t(k)) exp(-2 pi i k (x - c) / N)
         = 1 / sqrt(N) sum_x m(x) D(x) exp(-2 pi i delta_b0(x) TE) exp(-2 pi i k (x + p delta_b0(x) / BW - c) / N)

So a voxel of positive offset lands delta_b0 / BW voxels towards larger x under polarity +1, with the phase
-2 pi delta_b0 TE. Where voxels crowd they pile up; the sum over x, s(0), is kept. The same formula is that of an echo
planar image, whose axis is the phase encoding: BW is then 1 / (echo spacing N). D is what dephases within a voxel:

    D(x) = product over the axes of sinc(TE g),    g: difference of delta_b0 across the voxel [Hz]

sinc(u) = sin(pi u) / (pi u), a field that is linear within the voxel.
Source: Jezzard and Balaban 1995, doi:10.1002/mrm.1910340111 (displacement); Haacke et al. 1999, Magnetic Resonance
Imaging, chapter 20 (dropout).
"""

from collections.abc import Sequence
from functools import reduce
from math import isfinite, pi

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qsim.kspace.acquired import Acquired, require_detached
from qsim.kspace.artefacts.base import check_axis
from qsim.kspace.nonuniform import moved_transform

# a gradient echo later than this has no signal left: milliseconds were meant [s]
_LATEST = 1.0
# voxels at a time: what is made of them stays in the cache
_CHUNK = 1 << 17


def distort(
    images: Complex[Tensor, "*lead_and_space"],
    delta_b0: Float[Tensor, "*space"],
    bandwidth: float | int,
    axis: int = -1,
    te: float | int | Sequence[float | int] = 0.0,
    polarity: int = 1,
    phase: bool = True,
) -> Complex[Tensor, "*lead_and_space"]:
    """Images as a gradient-echo readout in this field shows them.

    Args:
        images: the axes before space count images (the first) and coils; all lie in the same field.
        delta_b0: off-resonance, 2D or 3D; 0 where it is not known [Hz]. Of a phase that was measured in the sense of
            this module it is -(step of the phase) / (2 pi step of TE).
        bandwidth: along the axis [Hz per voxel].
        axis: that is read; counted from the last (-1 is x) or from the first of space.
        te: echo time, one or one for each image [s]. It sets phase and dropout; 0 for a spin echo, or for images that
            have both already.
        polarity: +1, or -1 for k-space read backwards.
        phase: False if the images have their phase at the echo time already; the dropout is still made.
    Raises: ValueError if something does not fit, starting with its name.
    Assumes: no decay during the readout.   Not: gradients across a slice of a 2D image; the shift of the echo in
        k-space by a gradient within the voxel.
    """
    if not delta_b0.is_floating_point():
        raise ValueError(f"delta_b0 must be real and of floating point [Hz], got {delta_b0.dtype}")
    require_detached("delta_b0", delta_b0)
    if delta_b0.ndim not in (2, 3):
        raise ValueError(f"delta_b0 must have 2 or 3 axes of space, got {tuple(delta_b0.shape)}")
    acquired = Acquired.of(images, delta_b0.ndim)
    return off_resonance(acquired, delta_b0, bandwidth, axis, te, polarity, phase).images()


def dropout(delta_b0: Float[Tensor, "*space"], te: float | int) -> Float[Tensor, "*space"]:
    """Share of the signal of a voxel that is in phase at the echo time [1]; negative beyond a whole turn.

        D = product over the axes of sinc(TE g)

    Args:
        delta_b0: [Hz].
        te: [s].
    Assumes: the field is linear within the voxel; g are central differences, one-sided at the border.
    """
    check_echo_times("te", (te,))
    return _dephased(_differences(delta_b0, slice(0, len(delta_b0))), float(te), delta_b0)


def off_resonance(
    acquired: Acquired,
    delta_b0: Float[Tensor, "*space"],
    bandwidth: float | int,
    axis: int,
    te: float | int | Sequence[float | int],
    polarity: int,
    phase: bool,
) -> Acquired:
    """`distort` inside a chain; the axis that is read is left in k-space."""
    times = echo_times(te, acquired.count)
    check_readout(bandwidth, polarity)
    at = check_readout_axis(axis, acquired.space)
    if tuple(delta_b0.shape) != acquired.space:
        raise ValueError(f"delta_b0 of {tuple(delta_b0.shape)} voxels does not fit images of {acquired.space}")
    if not isfinite(float(delta_b0.double().sum())):
        raise ValueError("delta_b0 must be finite, got NaN or infinity; set voxels without a field to 0")
    images = acquired.brought(image=range(len(acquired.space)))
    field = delta_b0.to(images.values.device, torch.float64)
    if not bool(field.any()):
        return acquired
    values = _at_the_echo(images.values, field, times, phase)
    moved = field * (polarity / bandwidth)
    kspace = moved_transform(values.flatten(0, 1), moved, at).reshape(values.shape)
    return Acquired(kspace, frozenset({at}), acquired.lead, acquired.facts)


def _at_the_echo(
    values: Complex[Tensor, "n c *space"], delta_b0: Float[Tensor, "*space"], times: tuple[float, ...], phase: bool
) -> Complex[Tensor, "n c *space"]:
    """m D exp(-2 pi i delta_b0 TE) of every image."""
    if not any(times):
        return values
    result = torch.empty_like(values)
    rows = len(delta_b0)
    slab = max(1, _CHUNK * rows // delta_b0.numel()) if values.device.type == "cpu" else rows
    for low in range(0, rows, slab):
        here = slice(low, min(low + slab, rows))
        across = [difference.to(values.real.dtype) for difference in _differences(delta_b0, here)]
        for number, te in enumerate(times):
            share = _dephased(across, te, values.real[0, 0, here])
            if phase:
                # whole turns are taken off in double precision
                turns = delta_b0[here] * te
                angle = (-2 * pi * (turns - turns.round())).to(share.dtype)
                share = torch.complex(share * torch.cos(angle), share * torch.sin(angle))
            torch.mul(values[number, :, here], share, out=result[number, :, here])
    return result


def _dephased(
    differences: Sequence[Float[Tensor, "*space"]], te: float, like: Float[Tensor, "*space"]
) -> Float[Tensor, "*space"]:
    """Product of sinc(TE g)."""
    # the smallest number instead of 0: sin(x) / x is 1 there, and no other value changes; torch.sinc is slower
    angles = ((pi * te) * difference + torch.finfo(like.dtype).tiny for difference in differences)
    return reduce(torch.mul, (torch.sin(angle) / angle for angle in angles), torch.ones_like(like))


def _differences(delta_b0: Float[Tensor, "*space"], rows: slice) -> list[Float[Tensor, "*rows_of_space"]]:
    """Difference of the field across a voxel along each axis that has more than one, for some rows of the first [Hz].

    Central differences, one-sided at the border.
    """
    # one row more on either side, where there is one
    before = min(1, rows.start)
    wider = delta_b0[rows.start - before : rows.stop + 1]
    found = []
    for axis in range(delta_b0.ndim):
        if delta_b0.shape[axis] > 1:
            step = wider.diff(dim=axis)
            first, last, n = step.narrow(axis, 0, 1), step.narrow(axis, -1, 1), step.shape[axis]
            central = (step.narrow(axis, 0, n - 1) + step.narrow(axis, 1, n - 1)) / 2
            found.append(torch.cat([first, central, last], axis)[before : before + rows.stop - rows.start])
    return found


def echo_times(te: float | int | Sequence[float | int], count: int) -> tuple[float, ...]:
    """One echo time for each image.

    Raises: ValueError, starting with `te`, if there are neither one nor as many as images, or they cannot be seconds.
    """
    times = (te,) if isinstance(te, int | float) else tuple(te)
    check_echo_times("te", times)
    if len(times) not in (1, count):
        raise ValueError(f"te must be one, or one for each of the {count} images, got {len(times)}")
    return tuple(float(time) for time in times) * (count if len(times) == 1 else 1)


def check_echo_times(name: str, times: Sequence[float | int]) -> None:
    """Refuse echo times of a gradient echo that cannot be seconds.

    Raises: ValueError, starting with the name of the field.
    """
    if len(times) == 0:
        raise ValueError(f"{name} is empty; give at least one time in seconds")
    for time in times:
        if not isfinite(time) or time < 0:
            raise ValueError(f"{name} must be at least 0 and finite [s], got {time}")
        if time > _LATEST:
            raise ValueError(f"{name} must be in seconds, got {time:g}; divide by 1000 if these are milliseconds")


def check_readout(bandwidth: float | int, polarity: int) -> None:
    """Refuse a bandwidth that is not positive and a polarity other than 1 and -1.

    Raises: ValueError, starting with the name of the field.
    """
    if not (isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth must be positive and finite [Hz per voxel], got {bandwidth}")
    if polarity not in (1, -1):
        raise ValueError(f"polarity must be 1 or -1, got {polarity}")


def check_readout_axis(axis: int, space: tuple[int, ...]) -> int:
    """The axis counted from 0.

    Raises: ValueError if there is no such axis, or it has one voxel: nothing is encoded along it.
    """
    at = check_axis("axis", axis, space)
    if space[at] == 1:
        raise ValueError(f"axis: axis {axis} of {space} has one voxel, which no readout can encode; choose another")
    return at
