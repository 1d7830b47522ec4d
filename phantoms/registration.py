"""Rigid registration of a series through SimpleITK: every image is brought to one of them before a fit.

Contrast changes along a series, through nulls and into noise, but neighbours in time look alike. Images are placed one
after the other from the reference outwards, each against its neighbour that is placed already,

    place in image i of a point of the reference = T_i = A_ij T_j,     T_reference = 1

A_ij is the rigid motion of the largest mutual information of |image j| and |image i| (Mattes, 32 bins, all voxels, from
means of blocks to the images themselves, one thread: the same bytes on any machine with the same library). Against the
reference itself late echoes cannot be placed: of a brain at an echo time of 250 ms a turn of 1.7 degrees came back as
1.05, and as 1.71 against the neighbour. Each image is then interpolated once, at T_i, as it is: signed, where it is
signed. Voxels that come from outside of the image are NaN. An image that shares nothing with its neighbour (noise, or
one value everywhere) is put where that lies, said to be so, and no other image is placed by it.

The motion of an image is a rotation about the centre of the volume after which points are shifted, along the axes of
the voxels (x: columns, y: rows, z: slices): the way that the object has gone from the reference to this image.

Sources: Mattes et al. 2003, doi:10.1109/TMI.2003.809072; SimpleITK: Lowekamp et al. 2013, doi:10.3389/fninf.2013.00045;
order of the images: as neighbours, since contrast is then nearly the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from qsim.errors import InputError

# fewer slices than this are moved in their plane only
FEW = 5
_BINS = 32
# shorter side of the coarsest images [voxels], and voxels of the finest
_COARSE, _FINEST = 24, 1 << 19
_SMALLEST = 16
# steps, and the smallest step [voxels of the level]
_ITERATIONS, _LAST_STEP = 200, 1e-3
# of a step to the one before it, where the slope has turned back; longer steps come closer on round objects and stray
# further on slices
_RELAXATION = 0.5
# a gain of mutual information under this is none [nat]
_GAIN = 1e-4
# mutual information of independent noise, wherever it is moved, is below this by the number of voxels: 32 bins fit some
# of it, 123 to 147 as measured for 64^2 to 256^2 voxels [nat]
_NOISE = 200.0


@dataclass(frozen=True, slots=True)
class Motion:
    """How the object has moved from the reference to one image.

    Attributes:
        shift_mm: along x, y, z, of the centre of the volume [mm].
        rotation_deg: about x, y, z: a vector along the axis, as long as the angle [degrees].
        against: image that it was registered to, from 0; itself: the reference.
        before, after: mutual information with that image, without and with the motion between the two [nat].
    """

    shift_mm: tuple[float, float, float]
    rotation_deg: tuple[float, float, float]
    against: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A series at the place of one of its images.

    Attributes:
        reference: that image, from 0.
        volumes: single precision; the reference has the values it had.
        motions: one for each image.
        planar: whether only motion in the plane was looked for.
        outside: voxels that come from outside of some image.
        unplaced: images, from 0, that share nothing with their neighbour and were put where it lies.
        version: of SimpleITK.
    """

    reference: int
    volumes: tuple[Float[np.ndarray, "z y x"], ...]
    motions: tuple[Motion, ...]
    planar: bool
    outside: int
    unplaced: tuple[int, ...]
    version: str


def simpleitk() -> Any:
    """The library, which has no types.

    Raises: InputError if it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise InputError("--register: needs SimpleITK, which is not installed; pip install 'qsim[register]'") from None
    return SimpleITK


def register(
    volumes: Sequence[Shaped[np.ndarray, "z y x"]], times: Sequence[float], spacing_mm: Sequence[float]
) -> Registered:
    """Bring all images of a series to that of the highest signal.

    Args:
        times: of the images; they are placed in this order.
        spacing_mm: of z, y, x [mm].
    Raises: InputError if the images are too small, or SimpleITK is not there.
    """
    itk = simpleitk()
    threads = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # sums over several threads differ in their last bits from call to call; filters take the number when they are made
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        return _register(itk, volumes, times, spacing_mm)
    finally:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _register(
    itk: Any,
    volumes: Sequence[Shaped[np.ndarray, "z y x"]],
    times: Sequence[float],
    spacing_mm: Sequence[float],
) -> Registered:
    depth, *plane = volumes[0].shape
    if min(plane) < _SMALLEST:
        raise InputError(f"--register: images of {plane[0]} x {plane[1]} voxels are too small, wanted {_SMALLEST}")
    planar = depth < FEW
    strengths = [np.abs(_finite(volume)) for volume in volumes]
    reference = int(np.argmax([float(np.square(each, dtype=np.float64).mean()) for each in strengths]))
    rank = np.argsort(np.argsort(times, kind="stable"), kind="stable")
    order = sorted(range(len(volumes)), key=lambda i: (abs(int(rank[i]) - int(rank[reference])), i))
    poses = {reference: np.eye(4)}
    motions: dict[int, Motion] = {}
    unplaced: list[int] = []
    for i in order[1:]:
        near = min(set(poses) - set(unplaced), key=lambda j: (abs(int(rank[i]) - int(rank[j])), j))
        pose, before, after, shared = _between(itk, strengths[near], strengths[i], spacing_mm, planar)
        poses[i] = pose @ poses[near]
        motions[i] = _motion(poses[i], near, before, after)
        if not shared:
            unplaced.append(i)
    own = _information(itk, strengths[reference], strengths[reference], spacing_mm)
    motions[reference] = Motion((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), reference, own, own)
    moved = tuple(
        np.asarray(volume, dtype=np.float32) if i == reference else moved_to(volume, poses[i], spacing_mm)
        for i, volume in enumerate(volumes)
    )
    broken = np.logical_or.reduce([~np.isfinite(volume) for volume in volumes])
    lost = np.logical_or.reduce([np.isnan(volume) for volume in moved]) & ~broken
    told = tuple(motions[i] for i in range(len(volumes)))
    return Registered(
        reference, moved, told, planar, int(lost.sum()), tuple(sorted(unplaced)), str(itk.Version.VersionString())
    )


def moved_to(
    volume: Shaped[np.ndarray, "z y x"], pose: Float[np.ndarray, "4 4"], spacing_mm: Sequence[float]
) -> Float[np.ndarray, "z y x"]:
    """Values of an image at T x for every voxel x, interpolated linearly; NaN outside, and where a neighbour is.

    Args:
        pose: T, for x y z about the centre [mm].
    """
    itk = simpleitk()
    shape = volume.shape
    broken = ~np.isfinite(volume)
    values = _interpolated(itk, _finite(volume), pose, spacing_mm)
    if broken.any():
        values[_interpolated(itk, broken.astype(np.float32), pose, spacing_mm) > 0] = np.nan
    assert values.shape == shape
    return values


def _interpolated(
    itk: Any, values: Float[np.ndarray, "z y x"], pose: Float[np.ndarray, "4 4"], spacing_mm: Sequence[float]
) -> Float[np.ndarray, "z y x"]:
    flat = values.shape[0] == 1
    image = _image(itk, values, spacing_mm)
    size = 2 if flat else 3
    transform = itk.AffineTransform(size)
    transform.SetMatrix(pose[:size, :size].reshape(-1).tolist())
    transform.SetTranslation(pose[:size, 3].tolist())
    resample = itk.ResampleImageFilter()
    resample.SetReferenceImage(image)
    resample.SetTransform(transform)
    resample.SetInterpolator(itk.sitkLinear)
    resample.SetDefaultPixelValue(float("nan"))
    resample.SetNumberOfThreads(1)
    found = np.asarray(itk.GetArrayFromImage(resample.Execute(image)), dtype=np.float32)
    return found.reshape(values.shape)


def _finite(volume: Shaped[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y x"]:
    values = np.asarray(volume, dtype=np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


def _image(itk: Any, values: Float[np.ndarray, "z y x"], spacing_mm: Sequence[float]) -> Any:
    """An image about the origin; a single slice has two axes."""
    flat = values.shape[0] == 1
    image = itk.GetImageFromArray(np.ascontiguousarray(values[0] if flat else values, dtype=np.float32))
    sizes = [float(each) for each in spacing_mm[::-1]][: 2 if flat else 3]
    image.SetSpacing(sizes)
    image.SetOrigin([-(count - 1) / 2 * size for count, size in zip(image.GetSize(), sizes, strict=True)])
    return image


def _levels(shape: Sequence[int]) -> list[int]:
    """Blocks in the plane, the largest first."""
    side, total = min(shape[1:]), int(np.prod(shape))
    coarse = 1
    while side // (2 * coarse) >= _COARSE:
        coarse *= 2
    levels: list[int] = []
    while coarse >= 1:
        if not levels or total // coarse**2 <= _FINEST:
            levels.append(coarse)
        coarse //= 2
    return levels


def _reduced(
    itk: Any, values: Float[np.ndarray, "z y x"], block: int, spacing_mm: Sequence[float]
) -> tuple[Any, float]:
    """Means of blocks, in the place of their voxels, and their size in the plane [mm]."""
    depth, *plane = values.shape
    # slices are put together where they are thinner than blocks are wide
    along = max(1, min(int(block * min(spacing_mm[-2:]) / spacing_mm[0]), depth // FEW))
    blocks = (along, block, block)
    counts = [size // each for size, each in zip((depth, *plane), blocks, strict=True)]
    part = values[tuple(slice(count * each) for count, each in zip(counts, blocks, strict=True))]
    split = [each for pair in zip(counts, blocks, strict=True) for each in pair]
    means = part.reshape(split).mean((1, 3, 5), dtype=np.float64).astype(np.float32)
    sizes = [float(size) * each for size, each in zip(spacing_mm, blocks, strict=True)]
    image = _image(itk, means, sizes)
    # what the blocks leave over at the far ends moves their centre
    left = [
        (size - count * each) / 2 * float(mm)
        for size, count, each, mm in zip(values.shape, counts, blocks, spacing_mm, strict=True)
    ][::-1]
    image.SetOrigin([at - shift for at, shift in zip(image.GetOrigin(), left, strict=False)])
    return image, min(sizes[-2:])


def _metric(itk: Any) -> Any:
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(itk.sitkLinear)
    # central differences: the usual gradient is blurred by the longest side of a voxel, and slices are thick
    method.SetMetricUseFixedImageGradientFilter(False)
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetNumberOfThreads(1)
    return method


def _between(
    itk: Any,
    fixed: Float[np.ndarray, "z y x"],
    moving: Float[np.ndarray, "z y x"],
    spacing_mm: Sequence[float],
    planar: bool,
) -> tuple[Float[np.ndarray, "4 4"], float, float, bool]:
    """The rigid motion from one image to another, their mutual information without and with it, and whether any."""
    if _even(fixed) or _even(moving):
        return np.eye(4), 0.0, 0.0, False
    flat = fixed.shape[0] == 1
    transform = itk.Euler2DTransform() if flat else itk.Euler3DTransform()
    before = after = 0.0
    for block in _levels(fixed.shape):
        (one, size), (other, _) = (_reduced(itk, values, block, spacing_mm) for values in (fixed, moving))
        method = _metric(itk)
        identity = itk.Euler2DTransform() if flat else itk.Euler3DTransform()
        method.SetInitialTransform(identity, True)
        before = -float(method.MetricEvaluate(one, other))
        method = _metric(itk)
        method.SetInitialTransform(transform, True)
        method.SetOptimizerAsRegularStepGradientDescent(
            size, _LAST_STEP * size, _ITERATIONS, relaxationFactor=_RELAXATION, gradientMagnitudeTolerance=1e-10
        )
        method.SetOptimizerScales([_spread(fixed, spacing_mm)] * (1 if flat else 3) + [1.0] * (2 if flat else 3))
        if planar and not flat:
            method.SetOptimizerWeights([0, 0, 1, 1, 1, 0])
        after = _climb(itk, method, transform, one, other)
    pose = np.eye(4)
    shared = after >= _NOISE / one.GetNumberOfPixels()
    if after - before < _GAIN or not shared:
        return pose, before, before, shared
    dimension = 2 if flat else 3
    pose[:dimension, :dimension] = np.array(transform.GetMatrix()).reshape(dimension, dimension)
    pose[:dimension, 3] = transform.GetTranslation()
    return pose, before, after, True


def _spread(values: Float[np.ndarray, "z y x"], spacing_mm: Sequence[float]) -> float:
    """Mean square of the distance from the centre of the volume along an axis, weighted by the values [mm^2].

    As much as one radian counts against one mm. Of corners of the volume, as the library takes them, turns count too
    much: they are far outside of a round object, and turns are then stepped too little.
    """
    axes = [axis for axis in range(3) if values.shape[axis] > 1]
    total = float(values.sum(dtype=np.float64))
    square = 0.0
    for axis in axes:
        along = values.sum(tuple(each for each in range(3) if each != axis), dtype=np.float64)
        place = (np.arange(len(along)) - (len(along) - 1) / 2) * float(spacing_mm[axis])
        square += float((along * place**2).sum()) / total
    # never less than a voxel
    return max(square / len(axes), float(min(spacing_mm)) ** 2)


def _climb(itk: Any, method: Any, transform: Any, one: Any, other: Any) -> float:
    """Move the transform to the best place on the way of the optimiser, start included: mutual information [nat]."""
    places = [tuple(transform.GetParameters())]
    values: list[float] = []

    def step() -> None:
        # told after the step: the value is that of the place before it
        values.append(-float(method.GetMetricValue()))
        places.append(tuple(method.GetOptimizerPosition()))

    method.AddCommand(itk.sitkIterationEvent, step)
    method.Execute(one, other)
    method.RemoveAllCommands()
    final = _metric(itk)
    final.SetInitialTransform(transform, True)
    places[-1] = tuple(transform.GetParameters())
    values.append(-float(final.MetricEvaluate(one, other)))
    best = int(np.argmax(values))
    transform.SetParameters(places[best])
    return values[best]


def _even(values: Float[np.ndarray, "z y x"]) -> bool:
    """Whether all voxels have one value, of which there is no histogram."""
    return bool((values == values.flat[0]).all())


def _information(
    itk: Any, one: Float[np.ndarray, "z y x"], other: Float[np.ndarray, "z y x"], spacing_mm: Sequence[float]
) -> float:
    """Mutual information of two images as they lie, at the finest level [nat]."""
    if _even(one):
        return 0.0
    block = _levels(one.shape)[-1]
    (a, _), (b, _) = (_reduced(itk, values, block, spacing_mm) for values in (one, other))
    method = _metric(itk)
    method.SetInitialTransform(itk.Euler2DTransform() if one.shape[0] == 1 else itk.Euler3DTransform(), True)
    return -float(method.MetricEvaluate(a, b))


def _motion(pose: Float[np.ndarray, "4 4"], against: int, before: float, after: float) -> Motion:
    from scipy.spatial.transform import Rotation

    x, y, z = (float(each) for each in pose[:3, 3])
    a, b, c = (float(each) for each in np.degrees(Rotation.from_matrix(pose[:3, :3]).as_rotvec()))
    return Motion((x, y, z), (a, b, c), against, before, after)
