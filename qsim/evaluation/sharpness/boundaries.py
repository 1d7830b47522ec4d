"""The boundary of two tissues in labels: its place, direction and curvature, between the voxels.

The signed distance of the boundary between the tissues I (inside) and O (outside),

    phi(x) = dist(x, I) - dist(x, O)     [mm], below 0 in I, above 0 in O,

knows nothing of a third tissue nearby. Smoothed by a Gaussian, so that the steps of the voxels vanish, it gives the
boundary (phi = 0), its normal n = grad phi / |grad phi| and, from the derivative of the normal along the boundary, its
curvature.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

# the smoothed boundary lies this near to the faces of the voxels that it was found at [voxels]
_FARTHEST = 1.0
# of the second smoothing to the first [1]
WIDER = 1.5
_NEWTON_STEPS = 6

Points = Float[np.ndarray, "p axis"]


@dataclass(frozen=True, slots=True)
class Field:
    """The smoothed signed distance on the grid [mm], and what follows from it.

    Attributes:
        slope: its gradient [1].
        wide: the gradient under the wider smoothing [1].
        curvature: root of the sum of the squared principal curvatures [1/mm].
    """

    phi: Float[np.ndarray, "*space"]
    slope: Float[np.ndarray, "axis *space"]
    wide: Float[np.ndarray, "axis *space"]
    curvature: Float[np.ndarray, "*space"]


def faces_between(labels: UInt8[np.ndarray, "*space"], inside: int, outside: int) -> Points:
    """Middles of the faces between voxels of the two labels [voxels]."""
    found = []
    for axis in range(labels.ndim):
        one, other = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        meet = ((one == inside) & (other == outside)) | ((one == outside) & (other == inside))
        half = 0.5 * (np.arange(labels.ndim) == axis)
        found.append(np.argwhere(np.moveaxis(meet, 0, axis)) + half)
    return np.concatenate(found)


def signed_distance(
    labels: UInt8[np.ndarray, "*space"], inside: int, outside: int, spacing: Float[np.ndarray, " axis"], smooth: float
) -> Field:
    """phi, its gradients and the curvature of the boundary.

    Args:
        spacing: voxel size along each axis [mm].
        smooth: SD of the narrow Gaussian, in voxels along each axis [1].
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter  # type: ignore[attr-defined]

    step = [float(h) for h in spacing]
    phi = distance_transform_edt(labels != inside, sampling=step) - distance_transform_edt(
        labels != outside, sampling=step
    )
    broad = gaussian_filter(phi, WIDER * smooth, mode="nearest")
    phi = gaussian_filter(phi, smooth, mode="nearest")
    slope, wide = (np.stack([_slope(each, axis, h) for axis, h in enumerate(step)]) for each in (phi, broad))
    size = np.sqrt((slope**2).sum(axis=0))
    normal = np.divide(slope, size, out=np.zeros_like(slope), where=size > 0)
    # what the normal changes by along the boundary: J (1 - n n^T), J_ij = d n_i / d x_j
    squares = np.zeros_like(phi)
    for component in normal:
        turn = np.stack([_slope(component, axis, h) for axis, h in enumerate(step)])
        squares += (turn**2).sum(axis=0) - (turn * normal).sum(axis=0) ** 2
    return Field(phi, slope, wide, np.sqrt(np.maximum(squares, 0)))


def _slope(values: Float[np.ndarray, "*space"], axis: int, step: float) -> Float[np.ndarray, "*space"]:
    # one voxel along an axis has no slope along it
    return np.gradient(values, step, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)


def at(values: Float[np.ndarray, "*space"], places: Points) -> Float[np.ndarray, " p"]:
    """Values at places [voxels], linearly interpolated."""
    from scipy.ndimage import map_coordinates  # type: ignore[attr-defined]

    return map_coordinates(values, places.T, order=1, mode="nearest")


def normals(slope: Float[np.ndarray, "axis *space"], places: Points) -> Points:
    """Unit vectors along a gradient, at places [voxels]."""
    found = np.stack([at(part, places) for part in slope], axis=1)
    return found / np.maximum(np.sqrt((found**2).sum(axis=1, keepdims=True)), 1e-12)


def project(
    field: Field, faces: Points, spacing: Float[np.ndarray, " axis"]
) -> tuple[Points, Points, Bool[np.ndarray, " p"]]:
    """Newton's steps from the faces of voxels to phi = 0: x <- x - phi grad phi / |grad phi|^2.

    Returns places [voxels], unit normals in lengths [1], and which of them are sound.
    """
    places = faces.copy()
    for _ in range(_NEWTON_STEPS + 1):
        slope = np.stack([at(part, places) for part in field.slope], axis=1)
        square = np.maximum((slope**2).sum(axis=1, keepdims=True), 1e-12)
        phi = at(field.phi, places)[:, None]
        move = -phi * slope / square / spacing
        # no farther than a voxel at once: where the slope is weak the step would leave the image
        move /= np.maximum(np.abs(move).max(axis=1, keepdims=True), 1)
        places = places + move
    near = np.sqrt(((places - faces) ** 2).sum(axis=1)) <= _FARTHEST
    settled = np.abs(move).max(axis=1) < 1e-3
    return places, slope / np.sqrt(square), near & settled & (square[:, 0] > 0.25)
