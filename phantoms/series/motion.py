"""How far the images of a series have moved from each other, told without registering them: cheap, and with a doubt.

Images are taken in the order of their times, from the brightest outwards. At the right place an image is, voxel by
voxel, nearly a function of those that are placed already: a curve of the brightest, and a weighted sum of the others,
since signals of few parameters lie in few dimensions,

    m(R x + t) = f(r(x)) + sum_j w_j m_j(x) + rest

with f piecewise linear. The motion is that of the smallest rest. Gauss-Newton: with J the derivative of m(R x + t) to
shifts and rotations, and P the projection that takes f and w out of whatever it is applied to,

    d = -(J' P J)^-1 J' P m,     C = (J' P J)^-1 (sum over tiles of g g') (J' P J)^-1,     g = J' P m of a tile

C, the covariance of d, takes the rest of neighbouring voxels as correlated: it is large where edges are few or the rest
is structure, and then nothing is said, as where the others explain less than 30 % of the variance of an image: noise.
Nothing here asks what the contrast is: signs, nulls and decays do not matter.

A displacement is the root mean square over the object of how far a point has gone. Two slices or more count as volume
from `FEW` on; fewer are moved in their plane only.

Source: Friston et al. 1995, doi:10.1002/hbm.460030303 (linearised rigid motion with a function of intensity); White
1980, doi:10.2307/1912934 (the covariance).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

# fewer slices than this say too little of motion through them
FEW = 5
# reduced images: about as many voxels along their shorter side, at least as many, and in all
_SIDE, _LEAST, _MOST = 96, 12, 20_000
_STEPS = 8
_KNOTS = 10
# tiles whose rest is taken as independent [voxels of the reduced images]
_TILE = 8
# the object: root mean square over the images above this share of its 98th percentile, and two voxels around it
_LEVEL, _RIM = 0.15, 2
# share of its variance that the others must explain of an image
_EXPLAINED = 0.3
# what stays hidden behind standard errors, chosen on seven series as they are: no independent rate [voxels]
_FLOOR = 0.1
# a displacement that is worth a word [voxels]
_LIMIT = 0.5

Vector = Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class Movement:
    """Displacements against the image that agrees best with all others.

    Attributes:
        reference: that image, from 0.
        displacement_mm: root mean square over the object, of each image [mm].
        uncertainty_mm: standard error, at least a tenth of a voxel; infinite: nothing can be told [mm].
        voxel_mm: the smaller side of a voxel in the plane [mm].
    """

    reference: int
    displacement_mm: tuple[float, ...]
    uncertainty_mm: tuple[float, ...]
    voxel_mm: float

    @property
    def unknown(self) -> tuple[int, ...]:
        """Images of which nothing can be told: half a voxel is less than two standard errors."""
        return tuple(i for i, each in enumerate(self.uncertainty_mm) if not 2 * each <= _LIMIT * self.voxel_mm)

    @property
    def moved(self) -> tuple[int, ...]:
        """Images that have moved by more than half a voxel, by more than two standard errors."""
        pairs = enumerate(zip(self.displacement_mm, self.uncertainty_mm, strict=True))
        found = tuple(i for i, (far, doubt) in pairs if far - 2 * doubt > _LIMIT * self.voxel_mm)
        # a large motion is told with a large standard error
        return tuple(i for i in found if np.isfinite(self.displacement_mm[i]))


@dataclass(frozen=True, slots=True)
class _Frame:
    """Voxels of the reduced images that are looked at.

    Attributes:
        places: z, y, x about the centre [mm].
        shape, step: of the reduced images [voxels; mm].
        tiles: number of the tile of each voxel.
        free: which of shifts z y x and rotations about z y x are looked for.
    """

    chosen: Bool[np.ndarray, "z y x"]
    places: Float[np.ndarray, "3 v"]
    shape: tuple[int, ...]
    step: Float[np.ndarray, " 3"]
    tiles: Int[np.ndarray, " v"]
    free: Int[np.ndarray, " p"]


def movement(
    volumes: Sequence[Shaped[np.ndarray, "z y x"]], times: Sequence[float], spacing_mm: Sequence[float]
) -> Movement | None:
    """How far images have moved; None: they are too small, too few or too empty to tell.

    Args:
        times: of the images; neighbours in time look alike.
        spacing_mm: of z, y, x [mm].
    """
    held = _reduced(volumes, spacing_mm)
    if held is None or len(volumes) < 2:
        return None
    images, step = held
    frame = _frame(images, step)
    if frame is None:
        return None
    count = len(images)
    power = [float(np.square(image).mean()) for image in images]
    brightest = int(np.argmax(power))
    rank = np.argsort(np.argsort(times, kind="stable"), kind="stable")
    order = sorted((i for i in range(count) if i != brightest), key=lambda i: (abs(rank[i] - rank[brightest]), i))
    poses = [np.eye(4)] * count
    doubts: list[Vector] = [np.zeros((len(frame.free), len(frame.free)))] * count
    curve = _hats(np.abs(images[brightest][frame.chosen]))
    placed: list[Vector] = []
    for i in order:
        known = np.stack([*curve, *placed], axis=1)
        scale = np.abs(known).max(0)
        basis = np.linalg.qr(known[:, scale > 0] / scale[scale > 0])[0]
        poses[i], doubts[i] = _placed(images[i], basis, frame)
        if np.isfinite(doubts[i]).all():
            placed.append(_at(images[i], poses[i], frame))
    voxel = float(min(spacing_mm[-2:]))
    return _about_best(poses, doubts, frame, brightest, voxel)


def _about_best(
    poses: Sequence[Vector], doubts: Sequence[Vector], frame: _Frame, brightest: int, voxel: float
) -> Movement:
    """Displacements against the image of the smallest sum of them, so that one moved reference does not move all."""
    ends = [pose[:3, :3] @ frame.places + pose[:3, 3:] for pose in poses]
    far = np.array([[np.sqrt(np.square(a - b).sum(0).mean()) for b in ends] for a in ends])
    told = np.array([bool(np.isfinite(each).all()) for each in doubts])
    doubt = np.array([_spread(each, frame) for each in doubts])
    total = np.where(told, far[:, told].sum(1), np.inf)
    total[brightest] -= 1e-6 * voxel
    # of two images either may have moved
    best = brightest if told.sum() < 3 else int(np.argmin(total))
    errors = np.hypot(doubt, doubt[best])
    errors = np.where(told, np.maximum(errors, _FLOOR * voxel), np.inf)
    errors[best] = _FLOOR * voxel
    distances = np.where(told, far[best], np.nan)
    return Movement(best, tuple(distances.tolist()), tuple(errors.tolist()), voxel)


def _spread(covariance: Vector, frame: _Frame) -> float:
    """Root mean square over the object of the standard error of a displacement [mm]."""
    if not np.isfinite(covariance).all():
        return float("inf")
    turned = _turned(frame.places)[frame.free]
    return float(np.sqrt(max(np.einsum("pcv,pq,qcv->", turned, covariance, turned) / turned.shape[2], 0.0)))


def _turned(places: Float[np.ndarray, "3 v"]) -> Float[np.ndarray, "6 3 v"]:
    """How places go with shifts along z y x, and rotations about z y x: e x place."""
    z, y, x = places
    one, none = np.ones_like(z), np.zeros_like(z)
    shifts = [(one, none, none), (none, one, none), (none, none, one)]
    # components in the order z y x, right-handed in x y z
    turns = [(none, x, -y), (-x, none, z), (y, -z, none)]
    return np.array([*shifts, *turns])


def _reduced(
    volumes: Sequence[Shaped[np.ndarray, "z y x"]], spacing_mm: Sequence[float]
) -> tuple[list[Float[np.ndarray, "c b a"]], Float[np.ndarray, " 3"]] | None:
    """Means of blocks, and their size [mm]."""
    depth, *plane = volumes[0].shape
    factor = max(1, min(plane) // _SIDE)
    if min(plane) // factor < _LEAST:
        return None
    along = max(1, min(round(factor * min(spacing_mm[-2:]) / spacing_mm[0]), depth // FEW))
    blocks = (along, factor, factor)
    images = [_blocks(volume, blocks) for volume in volumes]
    return images, np.asarray(spacing_mm, dtype=np.float64) * blocks


def _blocks(volume: Shaped[np.ndarray, "z y x"], blocks: tuple[int, ...]) -> Float[np.ndarray, "c b a"]:
    sizes = [size // block for size, block in zip(volume.shape, blocks, strict=True)]
    part = volume[tuple(slice(size * block) for size, block in zip(sizes, blocks, strict=True))]
    split = [each for pair in zip(sizes, blocks, strict=True) for each in pair]
    values = np.where(np.isfinite(part), part, 0).astype(np.float64)
    means: Float[np.ndarray, "c b a"] = values.reshape(split).mean((1, 3, 5))
    return means


def _frame(images: Sequence[Float[np.ndarray, "z y x"]], step: Float[np.ndarray, " 3"]) -> _Frame | None:
    from scipy.ndimage import binary_dilation  # type: ignore[attr-defined]

    level = np.sqrt(sum(np.square(image) for image in images) / len(images))
    seen = level > _LEVEL * np.quantile(level, 0.98)
    around = np.zeros((3, 3, 3), dtype=bool)
    around[1, 1, :] = around[1, :, 1] = True
    chosen = binary_dilation(seen, around, iterations=_RIM)
    if int(seen.sum()) < _LEAST**2:
        return None
    flat = np.flatnonzero(chosen)
    keep = flat[:: -(-len(flat) // _MOST)]
    chosen = np.zeros_like(chosen)
    chosen.reshape(-1)[keep] = True
    index = np.array(np.nonzero(chosen))
    centre = (np.array(level.shape, dtype=np.float64)[:, None] - 1) / 2
    _, tiles = np.unique((index // _TILE).T, axis=0, return_inverse=True)
    free = np.arange(6) if level.shape[0] >= FEW else np.array([1, 2, 3])
    return _Frame(chosen, (index - centre) * step[:, None], level.shape, step, tiles.reshape(-1), free)


def _hats(values: Float[np.ndarray, " v"]) -> list[Float[np.ndarray, " v"]]:
    """Piecewise linear curves of a brightness: hats about equally spaced knots, those that hold a voxel."""
    top = float(np.quantile(values, 0.995)) or 1.0
    place = np.clip(values / top, 0, 1) * (_KNOTS - 1)
    hats = [np.maximum(0, 1 - np.abs(place - knot)) for knot in range(_KNOTS)]
    return [hat for hat in hats if hat.sum() > 3]


def _at(image: Float[np.ndarray, "z y x"], pose: Float[np.ndarray, "4 4"], frame: _Frame) -> Float[np.ndarray, " v"]:
    """Values of an image at the places of the frame as they have moved."""
    from scipy.ndimage import map_coordinates  # type: ignore[attr-defined]

    centre = (np.array(frame.shape, dtype=np.float64)[:, None] - 1) / 2
    index = (pose[:3, :3] @ frame.places + pose[:3, 3:]) / frame.step[:, None] + centre
    if frame.shape[0] == 1:
        return np.asarray(map_coordinates(image[0], index[1:], order=1, mode="nearest"))
    return np.asarray(map_coordinates(image, index, order=1, mode="nearest"))


def _placed(
    image: Float[np.ndarray, "z y x"], basis: Float[np.ndarray, "v k"], frame: _Frame
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "p p"]]:
    """Where an image lies, and the covariance of that; infinite where it cannot be found."""
    pose = np.eye(4)
    lost = np.full((len(frame.free), len(frame.free)), np.inf)
    levels = [image]
    slopes_of = []
    # a blurred copy first: steps are as long as its edges are wide
    levels.insert(0, _blurred(image, 2.0))
    slopes = np.zeros((0, 0))
    values = rest = np.zeros(0)
    for level in levels:
        slopes_of = [
            np.gradient(level, frame.step[axis], axis=axis) if level.shape[axis] > 1 else np.zeros_like(level)
            for axis in range(3)
        ]
        for _ in range(_STEPS):
            ends = pose[:3, :3] @ frame.places + pose[:3, 3:]
            values = _at(level, pose, frame)
            around = np.stack([_at(slope, pose, frame) for slope in slopes_of])
            motion = _turned(ends)[frame.free]
            slopes = np.einsum("pcv,cv->vp", motion, around)
            slopes -= basis @ (basis.T @ slopes)
            rest = values - basis @ (basis.T @ values)
            try:
                change = -np.linalg.solve(slopes.T @ slopes, slopes.T @ rest)
            except np.linalg.LinAlgError:
                return np.eye(4), lost
            whole = np.zeros(6)
            whole[frame.free] = change
            pose = _rigid(whole) @ pose
            if np.abs(whole[:3]).max() < 0.02 * frame.step[2] and np.abs(whole[3:]).max() < 5e-4:
                break
    spread = float(np.square(values - values.mean()).sum())
    if not np.isfinite(pose).all() or float(np.square(rest).sum()) > (1 - _EXPLAINED) * spread:
        # noise follows its own edges, and its standard errors say nothing
        return np.eye(4), lost
    scores = np.stack([np.bincount(frame.tiles, slope * rest) for slope in slopes.T], axis=1)
    inverse = np.linalg.pinv(slopes.T @ slopes)
    return pose, inverse @ (scores.T @ scores) @ inverse


def _blurred(image: Float[np.ndarray, "z y x"], width: float) -> Float[np.ndarray, "z y x"]:
    from scipy.ndimage import gaussian_filter  # type: ignore[attr-defined]

    return np.asarray(gaussian_filter(image, (0 if image.shape[0] < FEW else width / 2, width, width), truncate=3))


def _rigid(change: Float[np.ndarray, " 6"]) -> Float[np.ndarray, "4 4"]:
    """Shift along z y x [mm] after a rotation about z y x [rad], in the order z y x of components."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(change[:2:-1]).as_matrix()
    pose = np.eye(4)
    pose[:3, :3] = turn[::-1, ::-1]
    pose[:3, 3] = change[:3]
    return pose
