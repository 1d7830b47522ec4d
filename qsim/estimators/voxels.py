"""From images to a list of voxels and back, and what can be said about each of them."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Status, check_series, computable
from qsim.estimators.noise_level import numbers
from qsim.information import fisher_information, invert_information
from qsim.parameters import PARAMETERS, Parameter
from qsim.signals.base import SignalModel

Known = Mapping[str, Tensor] | Mapping[str, float] | None


def gather(
    images: Float[Tensor, "n *space"], model: SignalModel, mask: Bool[Tensor, "*space"] | None
) -> tuple[Float[Tensor, "n v"], Bool[Tensor, "*space"]]:
    """The voxels that can be estimated, and where they are.

    Raises: InputError if the series or the mask does not fit, or is not of real numbers and of truth values.
    """
    if not images.dtype.is_floating_point:
        remedy = "give their modulus, .abs()" if images.dtype.is_complex else "convert with .float()"
        raise InputError(f"images: must be real floating point, got {images.dtype}; {remedy}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
        raise InputError(f"mask: must be boolean, got {getattr(mask, 'dtype', type(mask).__name__)}")
    try:
        check_series(images, model)
    except ValueError as error:
        raise InputError(str(error)) from None
    if mask is not None and mask.shape != images.shape[1:]:
        raise InputError(
            f"mask: has shape {tuple(mask.shape)}, the images {tuple(images.shape[1:])}; give one value per voxel"
        )
    where = computable(images, mask)
    # all voxels in: a view, without the copy that indexing makes
    series = images.reshape(len(images), where.numel())
    return (series if bool(where.all()) else series[:, where.flatten()]), where


def scatter(values: Float[Tensor, "q v"], where: Bool[Tensor, "*space"]) -> Float[Tensor, "q *space"]:
    """Put voxel values back in place; NaN elsewhere."""
    maps = values.new_full((values.shape[0], where.numel()), torch.nan)
    maps[:, where.flatten()] = values
    return maps.reshape(len(maps), *where.shape)


def statuses(
    kappa: Float[Tensor, "q v"],
    parameters: Sequence[Parameter],
    converged: Bool[Tensor, " v"],
    where: Bool[Tensor, "*space"],
    fixed: Sequence[str] = (),
) -> UInt8[Tensor, "*space"]:
    """Status per voxel: at bound if an estimated row lies on an end of its range (to 1e-6 of it).

    Args:
        fixed: rows that were known, whose bounds say nothing.
    """
    at_bound = torch.zeros_like(converged)
    for row, parameter in zip(kappa, parameters, strict=True):
        if parameter.name in fixed:
            continue
        # float32 maps: seven digits
        at_bound |= row <= parameter.lower + 1e-6 * abs(parameter.lower)
        at_bound |= row >= parameter.upper * (1 - 1e-6)
    status = torch.full(where.shape, int(Status.NOT_COMPUTED), dtype=torch.uint8, device=where.device)
    found = torch.where(at_bound, int(Status.AT_BOUND), int(Status.OK))
    status[where] = torch.where(converged, found, int(Status.NOT_CONVERGED)).to(torch.uint8)
    return status


def known_map(
    known: Known,
    name: str,
    where: Bool[Tensor, "*space"],
    allowed: Sequence[str],
    parameters: Sequence[Parameter] = tuple(PARAMETERS.values()),
) -> Float[Tensor, " v_or_1"] | None:
    """The known values of one parameter at the voxels, or None.

    Args:
        parameters: holds the range of this one, ends included; a row that is not among them has none.
    Raises: InputError if `known` holds something that the method cannot use, its shape does not fit, or a voxel that is
        estimated has a value that is not finite or out of range.
    """
    if known is None:
        return None
    for given in known:
        if given not in allowed:
            remedy = f"it can use {', '.join(allowed)}" if allowed else "it cannot use any"
            raise InputError(f"known.{given}: this method cannot use a known {given} with this model; {remedy}")
    if name not in known:
        return None
    value = numbers(known[name], f"known.{name}", where.device)
    if value.ndim == 0:
        value = value.reshape(1)
    elif value.shape == where.shape:
        value = value[where]
    else:
        raise InputError(f"known.{name}: has shape {tuple(value.shape)}, the images {tuple(where.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise InputError(
            f"known.{name}: holds values that are not finite; give numbers, or leave those voxels out by the mask"
        )
    for parameter in parameters:
        if parameter.name == name:
            _check_range(value, parameter)
    return value


def _check_range(value: Float[Tensor, " v_or_1"], parameter: Parameter) -> None:
    """Raises: InputError."""
    lower, upper = parameter.lower, parameter.upper
    # an end of the range that was once written in float32
    low, high = lower - 1e-7 * abs(lower), upper + 1e-7 * abs(upper)
    if bool(((value < low) | (value > high)).any()):
        unit = "" if parameter.unit == "1" else f" {parameter.unit}"
        raise InputError(
            f"known.{parameter.name}: must lie from {lower:g} to {upper:g}{unit} in every voxel that is estimated; "
            "leave others out by the mask"
        )


def noise_covariance(
    model: SignalModel, kappa: Float[Tensor, "q v"], sigma: Float[Tensor, " v_or_1"], fixed: Sequence[str]
) -> Float[Tensor, "q q v"]:
    """Inverse Fisher information at the estimate; 0 for rows that were known, inf where not identifiable [SI^2]."""
    information = fisher_information(model, kappa, sigma)
    free = [i for i, p in enumerate(model.parameters) if p.name not in fixed]
    covariance = torch.zeros_like(information)
    inverse = invert_information(information[free][:, free])
    for i, row in enumerate(free):
        for j, column in enumerate(free):
            covariance[row, column] = inverse[i, j]
    return covariance
