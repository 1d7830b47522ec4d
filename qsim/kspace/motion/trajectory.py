"""Kinds of trajectories, as configs name them; each draws a path (`paths.py`), the pose as a function of time.

Translations in voxels, or in mm where the artefact has `spacing_mm`; rotations in rad about the centre of the image
N // 2; scaling and shear without unit. Sizes are drawn for a random direction, or along one named axis; of rotations
the direction is that of the axis of the turn. Several events of a trajectory add up in the parameters.

Source: Lujan et al. 1999, doi:10.1118/1.598577 (breathing); shaw2021 and PMC7116018 (sudden poses).
"""

from math import isfinite, pi
from typing import Literal

import numpy as np
from jaxtyping import Float

from qsim.kspace.artefacts.amounts import Amount, check_amount, draw_amount, reach
from qsim.kspace.artefacts.plain import settle
from qsim.kspace.motion.paths import BreathingPath, DriftPath, RandomWalkPath, RecordedPath, SuddenPath
from qsim.kspace.motion.pose import n_parameters, turns_of
from qsim.values import value


@value
class Sudden:
    """Events at random times, each a step to another pose.

    Attributes:
        events: how many; a pair is a range, both ends included; times are uniform over the acquisition.
        translation: length of each step [voxels or mm].
        rotation: angle of each step [rad].
        scaling: logarithm of the stretch along each axis, from -1 to 1: .1 makes the object 1.105 times as long [1].
        shear: in each pair of axes, from -1 to 1 [1].
        hold: how long a step lasts before the object goes back [s]; None: for good.
        axis: of translation, rotation and scaling (-1 is x); None: a random direction, every axis scaled. In 2D a
            rotation is always that in the plane.
    """

    kind: Literal["sudden"] = "sudden"
    events: int | tuple[int, int] = 1
    translation: Amount = 0
    rotation: Amount = 0
    scaling: Amount = 0
    shear: Amount = 0
    hold: Amount | None = None
    axis: int | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("events", self.events, low=0)
        _check_sizes(self)
        if self.hold is not None:
            check_amount("hold", self.hold, low=0)

    def draw(self, d: int, duration: float, rng: np.random.Generator) -> SuddenPath:
        low, high = self.events if isinstance(self.events, tuple) else (self.events, self.events)
        n = int(rng.integers(low, high + 1))
        times = tuple(sorted(float(time) for time in rng.uniform(0, duration, n)))
        steps = tuple(_drawn_sizes(self, d, rng) for _ in range(n))
        holds = tuple(None if self.hold is None else draw_amount(self.hold, rng) for _ in range(n))
        return SuddenPath(times, steps, holds, n_parameters(d))


@value
class Drift:
    """A slow change from nothing at the start to an amount at the end of the acquisition.

    Attributes:
        translation, rotation, scaling, shear, axis: at the end; see `Sudden`.
        smooth: with a slow start and end (half a cosine) instead of a straight line.
    """

    kind: Literal["drift"] = "drift"
    translation: Amount = 0
    rotation: Amount = 0
    scaling: Amount = 0
    shear: Amount = 0
    smooth: bool = False
    axis: int | None = None

    def __post_init__(self) -> None:
        settle(self)
        _check_sizes(self)

    def draw(self, d: int, duration: float, rng: np.random.Generator) -> DriftPath:
        return DriftPath(_drawn_sizes(self, d, rng), duration, self.smooth)


@value
class Breathing:
    """Periodic motion that rests at exhalation; the phase at the start is random.

    Attributes:
        period: mean length of a cycle [s].
        translation, rotation, scaling, shear, axis: at full inhalation; see `Sudden`.
        power: n of sin^(2n); the larger, the longer the rest at exhalation.
        depth_jitter, period_jitter: SD of the logarithm of depth and period from cycle to cycle [1].
    Source: Lujan et al. 1999, doi:10.1118/1.598577, whose x0 - b cos^(2n)(pi t / tau - phi) this is, with a cycle
    counted from exhalation to exhalation (n = 3 as there), so that neither jitter makes a jump.
    """

    kind: Literal["breathing"] = "breathing"
    period: Amount
    translation: Amount = 0
    rotation: Amount = 0
    scaling: Amount = 0
    shear: Amount = 0
    power: int = 3
    depth_jitter: float = 0.0
    period_jitter: float = 0.0
    axis: int | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_amount("period", self.period, low=0.05)
        _check_sizes(self)
        if self.power < 1:
            raise ValueError(f"power must be at least 1, got {self.power}")
        for name, jitter in (("depth_jitter", self.depth_jitter), ("period_jitter", self.period_jitter)):
            if not 0 <= jitter <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {jitter}")

    def draw(self, d: int, duration: float, rng: np.random.Generator) -> BreathingPath:
        period = draw_amount(self.period, rng)
        inhaled = _drawn_sizes(self, d, rng)
        phase = float(rng.random())
        starts: list[float] = []
        depths: list[float] = []
        while not starts or starts[-1] <= duration:
            depth, length = np.exp(rng.standard_normal(2) * (self.depth_jitter, self.period_jitter))
            if not starts:
                starts.append(-phase * period * float(length))
            depths.append(float(depth))
            starts.append(starts[-1] + period * float(length))
        return BreathingPath(tuple(starts), tuple(depths), inhaled, self.power)


@value
class RandomWalk:
    """Brownian motion of every translation and rotation.

    Attributes:
        translation: SD along each axis after one second [voxels or mm per sqrt(s)].
        rotation: SD about each axis after one second [rad per sqrt(s)].
        steps: of the walk over the acquisition; straight lines between them.
    """

    kind: Literal["random_walk"] = "random_walk"
    translation: Amount = 0
    rotation: Amount = 0
    steps: int = 256

    def __post_init__(self) -> None:
        settle(self)
        check_amount("translation", self.translation, low=0)
        check_amount("rotation", self.rotation, low=0)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def draw(self, d: int, duration: float, rng: np.random.Generator) -> RandomWalkPath:
        translation, rotation = draw_amount(self.translation, rng), draw_amount(self.rotation, rng)
        sd = (translation,) * d + (rotation,) * turns_of(d) + (0.0,) * (d + turns_of(d))
        return RandomWalkPath(int(rng.integers(2**53)), self.steps, duration, sd)


@value
class Recorded:
    """A trajectory that was measured.

    Attributes:
        times: from the start of the acquisition, rising [s].
        parameters: at each time: translations along the axes in their order (z, y, x) or (y, x) [voxels or mm], then
            rotations about them, right-handed in x, y, z [rad]: 6 numbers, or 3 of a 2D image; then, if the poses are
            affine, logarithms of the stretch along each axis and shears: 12 numbers, or 6.
    """

    kind: Literal["recorded"] = "recorded"
    times: tuple[float | int, ...]
    parameters: tuple[tuple[float | int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.times) < 1:
            raise ValueError("times must hold at least one time")
        if not all(isfinite(time) for time in self.times):
            raise ValueError("times must be finite")
        if any(after <= before for before, after in zip(self.times, self.times[1:], strict=False)):
            raise ValueError("times must rise")
        if len(self.parameters) != len(self.times):
            raise ValueError(f"parameters must be as many as times ({len(self.times)}), got {len(self.parameters)}")
        if len({len(pose) for pose in self.parameters}) > 1:
            raise ValueError("parameters must be equally many at every time")
        if len(self.parameters[0]) not in (3, 6, 12):
            raise ValueError(
                f"parameters must be 3 or 6 (2D), 6 or 12 (3D) at each time, got {len(self.parameters[0])}"
            )
        if not all(isfinite(number) for pose in self.parameters for number in pose):
            raise ValueError("parameters must be finite")

    def draw(self, d: int, duration: float, rng: np.random.Generator) -> RecordedPath:  # noqa: ARG002
        """As it was measured: nothing is random.

        Raises: ValueError if it is of another dimension.
        """
        wanted = n_parameters(d)
        given = len(self.parameters[0])
        if given not in (wanted, wanted // 2):
            raise ValueError(
                f"trajectory: recorded with {given} parameters at each time; images of {d} axes need "
                f"{wanted // 2} (rigid) or {wanted} (affine)"
            )
        rest = (0.0,) * (wanted - given)
        values = tuple(tuple(float(number) for number in pose) + rest for pose in self.parameters)
        return RecordedPath(tuple(float(time) for time in self.times), values)

    def require(self, last: float) -> None:
        """Refuse a trajectory that does not hold the time of every line, from 0 to `last` [s].

        Raises: ValueError with both times.
        """
        if self.times[0] > 0 or self.times[-1] < last:
            raise ValueError(
                f"trajectory: recorded from {self.times[0]:g} to {self.times[-1]:g} s, shorter than the lines, "
                f"measured from 0 to {last:g} s; record longer, or check line_time, shot_time and pause"
            )


TRAJECTORIES = (Sudden, Drift, Breathing, RandomWalk, Recorded)
AnyTrajectory = Sudden | Drift | Breathing | RandomWalk | Recorded


def _check_sizes(kind: Sudden | Drift | Breathing) -> None:
    if kind.axis is not None and kind.axis >= 0:
        raise ValueError(f"axis: got {kind.axis}; axes count from the end: -1 is x, -2 y, -3 z")
    for name in ("translation", "rotation"):
        check_amount(name, getattr(kind, name))
    # beyond these tissue is torn, and the mean pose is none
    for name in ("scaling", "shear"):
        check_amount(name, getattr(kind, name), low=-1, high=1)
    if isinstance(kind.rotation, int | float | tuple) and max(map(abs, reach(kind.rotation))) > pi:
        raise ValueError(f"rotation must be in rad, from -pi to pi, got {kind.rotation}; 180 degrees are pi")


def _drawn_sizes(kind: Sudden | Drift | Breathing, d: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Parameters of one pose: sizes from their amounts, directions random or along the named axis."""
    r = turns_of(d)
    if kind.axis is not None and kind.axis < -d:
        raise ValueError(f"trajectory: axis {kind.axis} does not exist; space has {d} axes, -1 (x) to -{d}")
    along = None if kind.axis is None else np.eye(d)[kind.axis]
    # the turn in the plane has one direction and its opposite
    about = along if d == 3 else None if along is None else np.ones(1)
    translation = draw_amount(kind.translation, rng) * _direction(d, along, rng)
    rotation = draw_amount(kind.rotation, rng) * _direction(r, about, rng)
    stretch = np.array([draw_amount(kind.scaling, rng) for _ in range(d)]) * (1 if along is None else along)
    shear = np.array([draw_amount(kind.shear, rng) for _ in range(r)])
    return tuple(float(number) for number in np.concatenate((translation, rotation, stretch, shear)))


def _direction(d: int, given: np.ndarray | None, rng: np.random.Generator) -> Float[np.ndarray, " d"]:
    """A unit vector; the same count of random numbers whether it is given or not."""
    normal = rng.standard_normal(d)
    return normal / np.linalg.norm(normal) if given is None else given
