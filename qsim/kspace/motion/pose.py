"""Poses: where the content of a point goes, and the mean of many of them.

A pose maps a point x, counted from the centre of the image, along the axes in their order (z, y, x) or (y, x):

    x' = A x + t,    A = R(w) H diag(exp(s))

t translation, w rotation vector (Rodrigues; right-handed in x, y, z: a positive turn about z takes x towards y; of a
2D image the turn in its plane), H unit upper triangular of shears, s logarithms of the stretch. The parameters of a
pose are these numbers one after the other: 2 + 1 + 2 + 1 of a 2D image, 3 + 3 + 3 + 3 of a 3D one.

Poses are made in mm, where a turn is a turn. With voxels of S = diag(spacing) the same pose in voxel units is

    A_voxels = S^-1 A S,    t_voxels = S^-1 t

which is no turn any more where the voxels are no cubes.

The mean of poses is that of the group: the pose about which the logarithms of the others add up to zero,

    sum_i w_i log(Tbar^-1 T_i) = 0,    found by repeating  T_i <- Tbar^-1 T_i,  Tbar = exp(sum_i w_i log T_i / sum w_i)

One step suffices only where poses commute. Source: Pennec and Arsigny 2013, doi:10.1007/978-3-642-30232-9_7 (the
group mean); PMC7116018 (the step).
"""

from math import pi, sin, sqrt

import numpy as np
from jaxtyping import Float

# a mean of turns is ambiguous at half a revolution
_LARGEST_TURN = 3.0
# what rounding leaves of equal poses, in units of their largest entry
_ROUNDING = 1e-14


def turns_of(d: int) -> int:
    """Numbers of a rotation in d dimensions."""
    return d * (d - 1) // 2


def n_parameters(d: int) -> int:
    """Numbers of a pose in d dimensions."""
    return 2 * (d + turns_of(d))


def poses_of(parameters: Float[np.ndarray, "u p"], d: int) -> Float[np.ndarray, "u d1 d1"]:
    """Homogeneous matrices [mm or voxels] of parameters."""
    r = turns_of(d)
    t, w, s, h = np.split(parameters, [d, d + r, 2 * d + r], axis=1)
    if not parameters[:, d:].any():
        # only translated
        return _homogeneous(np.eye(d), t)
    upper = np.zeros((len(parameters), d, d))
    upper[:, np.arange(d), np.arange(d)] = 1
    rows, columns = np.triu_indices(d, 1)
    upper[:, rows, columns] = h
    linear = rotations(w, d) @ (upper * np.exp(s)[:, None, :])
    return _homogeneous(linear, t)


def parameters_of(poses: Float[np.ndarray, "u d1 d1"]) -> Float[np.ndarray, "u p"]:
    """Parameters of homogeneous matrices: the inverse of `poses_of`."""
    d = poses.shape[-1] - 1
    turn, upper = np.linalg.qr(poses[:, :d, :d])
    # the only factors with a positive diagonal
    sign = np.sign(np.diagonal(upper, axis1=1, axis2=2))
    turn, upper = turn * sign[:, None, :], upper * sign[:, :, None]
    stretch = np.diagonal(upper, axis1=1, axis2=2)
    rows, columns = np.triu_indices(d, 1)
    shear = (upper / stretch[:, None, :])[:, rows, columns]
    return np.concatenate((poses[:, :d, d], rotation_vectors(turn), np.log(stretch), shear), 1)


def in_voxels(poses: Float[np.ndarray, "*u d1 d1"], spacing: tuple[float, ...] | None) -> Float[np.ndarray, "*u d1 d1"]:
    """The same poses in voxel units; without a spacing they are so already."""
    if spacing is None:
        return poses
    size = np.array([*spacing, 1.0])
    return poses * size / size[:, None]


def rotations(w: Float[np.ndarray, "u r"], d: int) -> Float[np.ndarray, "u d d"]:
    """Rodrigues: R = I + sin(a) / a W + (1 - cos(a)) / a^2 W^2, a = |w|."""
    if d == 2:
        cos, sin = np.cos(w[:, 0]), np.sin(w[:, 0])
        return np.stack((np.stack((cos, sin), -1), np.stack((-sin, cos), -1)), 1)
    angle = np.linalg.norm(w, axis=1)[:, None, None]
    generator = _generator(w)
    # (1 - cos a) / a^2 = sinc(a / 2 pi)^2 / 2, with numpy's sinc; no division by 0
    return np.eye(3) + np.sinc(angle / pi) * generator + np.sinc(angle / (2 * pi)) ** 2 / 2 * generator @ generator


def rotation_vectors(turn: Float[np.ndarray, "u d d"]) -> Float[np.ndarray, "u r"]:
    """The inverse of `rotations`, for turns below half a revolution."""
    if turn.shape[-1] == 2:
        return np.arctan2(turn[:, 0, 1] - turn[:, 1, 0], turn[:, 0, 0] + turn[:, 1, 1])[:, None]
    # the quaternion from its largest entry: keeps its digits at any angle (Shepperd 1978)
    trace = np.trace(turn, axis1=1, axis2=2)
    odd = np.stack([turn[:, 1, 2] - turn[:, 2, 1], turn[:, 2, 0] - turn[:, 0, 2], turn[:, 0, 1] - turn[:, 1, 0]], 1)
    products = np.empty((len(turn), 4, 4))
    products[:, 0, 0] = 1 + trace
    products[:, 0, 1:] = products[:, 1:, 0] = odd
    products[:, 1:, 1:] = turn + turn.swapaxes(1, 2) + (1 - trace)[:, None, None] * np.eye(3)
    largest = np.argmax(np.diagonal(products, axis1=1, axis2=2), 1)
    quaternion = products[np.arange(len(turn)), largest]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
    quaternion = quaternion * np.where(quaternion[:, :1] < 0, -1, 1)
    axis = quaternion[:, 1:]
    half_sine = np.linalg.norm(axis, axis=1)
    angle = 2 * np.arctan2(half_sine, quaternion[:, 0])
    return axis * np.where(half_sine > 0, angle / np.where(half_sine > 0, half_sine, 1), 2)[:, None]


def logarithms(poses: Float[np.ndarray, "u d1 d1"]) -> Float[np.ndarray, "u d1 d1"]:
    """Matrix logarithms: in closed form for rigid poses, by roots and a Pade fraction for others.

    Raises: ValueError for turns so large that a mean of them is ambiguous.
    """
    d = poses.shape[-1] - 1
    linear = poses[:, :d, :d]
    if _only_translated(poses):
        return poses - np.eye(d + 1)
    if np.abs(linear.swapaxes(1, 2) @ linear - np.eye(d)).max() < 1e-12:
        return _rigid_logarithms(poses)
    return _general_logarithms(poses)


def about_mean(
    poses: Float[np.ndarray, "u d1 d1"], weights: Float[np.ndarray, " u"]
) -> tuple[Float[np.ndarray, "u d1 d1"], Float[np.ndarray, "d1 d1"]]:
    """Poses about their weighted mean, and that mean.

    Raises: ValueError for turns so large that their mean is ambiguous.
    """
    d1 = poses.shape[-1]
    size = max(1.0, float(np.abs(poses).max()))
    if np.ptp(poses, axis=0).max() <= _ROUNDING * size:
        # all alike: exactly no motion about the mean
        return np.broadcast_to(np.eye(d1), poses.shape).copy(), poses[0]
    share = weights / weights.sum()
    moved, mean = poses, np.eye(d1)
    if _only_translated(poses):
        mean[:-1, -1] = share @ poses[:, :-1, -1]
        moved = poses.copy()
        moved[:, :-1, -1] -= mean[:-1, -1]
        return moved, mean
    left = np.inf
    for _ in range(100):
        step = np.tensordot(share, logarithms(moved), 1)
        now = float(np.abs(step).max())
        # rounding ends the progress
        if now <= _ROUNDING * size and now >= left / 2:
            break
        if now == 0:
            break
        left = now
        mean = mean @ _exponential(step)
        # from the given poses each time, so that rounding does not pile up
        moved = np.einsum("ij,ujk->uik", np.linalg.inv(mean), poses)
    return moved, mean


def _exponential(step: Float[np.ndarray, "d1 d1"]) -> Float[np.ndarray, "d1 d1"]:
    """Matrix exponential; of a rigid motion in closed form.

    exp(W) = 1 + sin(a) / a W + (1 - cos(a)) / a^2 W^2
    translation: (1 + (1 - cos(a)) / a^2 W + (a - sin(a)) / a^3 W^2) v
    """
    d = len(step) - 1
    turn, shift = step[:d, :d], step[:d, d]
    if np.abs(turn + turn.T).max() > _ROUNDING:
        from scipy.linalg import expm

        return expm(step)  # type: ignore[no-untyped-call]
    angle = float(np.linalg.norm(turn)) / sqrt(2)
    # sin(a) / a, (1 - cos(a)) / a^2, (a - sin(a)) / a^3; by their series where they would cancel
    first, second, third = 1 - angle**2 / 6, 1 / 2 - angle**2 / 24, 1 / 6 - angle**2 / 120
    if angle > 1e-3:
        first, second = sin(angle) / angle, 2 * (sin(angle / 2) / angle) ** 2
        third = (1 - first) / angle**2
    square = turn @ turn
    whole = np.eye(d + 1)
    whole[:d, :d] += first * turn + second * square
    whole[:d, d] = shift + second * turn @ shift + third * square @ shift
    return whole


def _only_translated(poses: Float[np.ndarray, "u d1 d1"]) -> bool:
    linear = poses[:, :-1, :-1]
    return np.array_equal(linear, np.broadcast_to(np.eye(linear.shape[-1]), linear.shape))


def _homogeneous(linear: Float[np.ndarray, "*u d d"], t: Float[np.ndarray, "u d"]) -> Float[np.ndarray, "u d1 d1"]:
    d = t.shape[1]
    poses = np.zeros((len(t), d + 1, d + 1))
    poses[:, :d, :d] = linear
    poses[:, :d, d] = t
    poses[:, d, d] = 1
    return poses


def _generator(w: Float[np.ndarray, "u 3"]) -> Float[np.ndarray, "u 3 3"]:
    """W with R = exp(W); axes stand as z, y, x, so that its signs are those of -[w]x."""
    generator = np.zeros((len(w), 3, 3))
    generator[:, 0, 1], generator[:, 1, 0] = w[:, 2], -w[:, 2]
    generator[:, 1, 2], generator[:, 2, 1] = w[:, 0], -w[:, 0]
    generator[:, 2, 0], generator[:, 0, 2] = w[:, 1], -w[:, 1]
    return generator


def _rigid_logarithms(poses: Float[np.ndarray, "u d1 d1"]) -> Float[np.ndarray, "u d1 d1"]:
    """(W, V^-1 t; 0, 0),  V^-1 = I - W / 2 + (1 - (a / 2) cot(a / 2)) / a^2 W^2."""
    d = poses.shape[-1] - 1
    w = rotation_vectors(poses[:, :d, :d])
    if d == 3:
        generator = _generator(w)
        angle = np.linalg.norm(w, axis=1)[:, None, None]
    else:
        generator = w[:, :, None] * np.array([[0.0, 1.0], [-1.0, 0.0]])
        angle = np.abs(w)[:, :, None]
    _check_turn(float(angle.max()))
    safe = np.where(angle > 1e-2, angle, 1.0)
    # the series where the closed form loses its digits: the next term is below 1e-17
    series = 1 / 12 + angle**2 / 720 + angle**4 / 30240 + angle**6 / 1209600
    factor = np.where(angle > 1e-2, (1 - safe / 2 / np.tan(safe / 2)) / safe**2, series)
    inverse = np.eye(d) - generator / 2 + factor * generator @ generator
    logs = np.zeros_like(poses)
    logs[:, :d, :d] = generator
    logs[:, :d, d:] = inverse @ poses[:, :d, d:]
    return logs


def _general_logarithms(poses: Float[np.ndarray, "u d1 d1"]) -> Float[np.ndarray, "u d1 d1"]:
    """log(M) = 2^k log(M^(1/2^k)),  log(I + X) = sum_j w_j X (I + x_j X)^-1 (Gauss-Legendre on [0, 1], 12 nodes).

    Source: Higham 2008, Functions of Matrices, chapters 6 and 11.
    """
    d = poses.shape[-1] - 1
    one = np.eye(d + 1)
    _check_turn(float(np.abs(np.angle(np.linalg.eigvals(poses[:, :d, :d]))).max()))
    linear, roots = poses, 0
    # only the linear part decides: a translation enters the logarithm linearly
    while np.abs(linear[:, :d, :d] - np.eye(d)).sum(1).max() > 0.25:
        linear, roots = _square_roots(linear), roots + 1
    nodes, shares = np.polynomial.legendre.leggauss(12)
    x = linear - one
    logs = np.zeros_like(poses)
    for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        logs += share * np.linalg.solve(one + node * x, x)
    return 2**roots * logs


def _square_roots(matrices: Float[np.ndarray, "u d1 d1"]) -> Float[np.ndarray, "u d1 d1"]:
    """Denman and Beavers 1976: X <- (X + Y^-1) / 2, Y <- (Y + X^-1) / 2."""
    root, inverse = matrices, np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape)
    for _ in range(50):
        following = (root + np.linalg.inv(inverse)) / 2
        inverse = (inverse + np.linalg.inv(root)) / 2
        change = float(np.abs(following - root).max())
        root = following
        # it converges quadratically: the next change would be below rounding
        if change < 1e-9 * max(1.0, float(np.abs(root).max())):
            break
    return root


def _check_turn(angle: float) -> None:
    if angle > _LARGEST_TURN:
        raise ValueError(
            f"trajectory: turns by {angle:.3g} rad; a mean pose needs turns below {_LARGEST_TURN:g} rad: "
            "make them smaller or set weights: none"
        )
