"""Drawn trajectories: how the parameters of a pose (`pose.py`) change with time.

    sudden        p(t) = sum over events of p_e for t_e <= t (< t_e + hold)
    drift         p(t) = p_end t / T,  or smoothly  p_end (1 - cos(pi t / T)) / 2
    breathing     p(t) = a_c p_in sin^(2n)(pi (t - t_c) / tau_c)  in cycle c, from exhalation to exhalation
    random walk   p(t) = SD times Brownian motion, W(0) = 0
    recorded      straight lines between what was measured

All are plain numbers, and the whole of what is random. Source: Lujan et al. 1999, doi:10.1118/1.598577 (breathing).
"""

from dataclasses import dataclass
from math import pi, sqrt
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Path(Protocol):
    """A drawn trajectory: plain numbers that say where the object is at any time."""

    def parameters(self, t: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t p"]:
        """Of the poses [voxels or mm, rad, 1] at times [s]."""
        ...


@dataclass(frozen=True, slots=True)
class SuddenPath:
    """Attributes: times: of the events [s]; steps: parameters each adds; hold: how long [s], None: for good."""

    times: tuple[float, ...]
    steps: tuple[tuple[float, ...], ...]
    holds: tuple[float | None, ...]
    n_parameters: int

    def parameters(self, t: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t p"]:
        total = np.zeros((len(t), self.n_parameters))
        for start, step, hold in zip(self.times, self.steps, self.holds, strict=True):
            during = t >= start
            if hold is not None:
                during = during & (t < start + hold)
            total[during] += step
        return total


@dataclass(frozen=True, slots=True)
class DriftPath:
    """Attributes: end: parameters at the end; duration: when that is [s]; smooth: with a slow start and end."""

    end: tuple[float, ...]
    duration: float
    smooth: bool

    def parameters(self, t: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t p"]:
        part = t / self.duration
        if self.smooth:
            part = (1 - np.cos(pi * part)) / 2
        return np.outer(part, self.end)


@dataclass(frozen=True, slots=True)
class BreathingPath:
    """Attributes: starts: of the cycles, and the end of the last [s]; depths: of each; inhaled: parameters; power."""

    starts: tuple[float, ...]
    depths: tuple[float, ...]
    inhaled: tuple[float, ...]
    power: int

    def parameters(self, t: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t p"]:
        starts = np.array(self.starts)
        cycle = np.searchsorted(starts, t, side="right") - 1
        phase = (t - starts[cycle]) / (starts[cycle + 1] - starts[cycle])
        depth = np.array(self.depths)[cycle] * np.sin(pi * phase) ** (2 * self.power)
        return np.outer(depth, self.inhaled)


@dataclass(frozen=True, slots=True)
class RandomWalkPath:
    """Attributes: seed: of the steps; steps: how many; duration [s]; sd: of each parameter after one second."""

    seed: int
    steps: int
    duration: float
    sd: tuple[float, ...]

    def parameters(self, t: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t p"]:
        normals = np.random.Generator(np.random.Philox(self.seed)).standard_normal((self.steps, len(self.sd)))
        walk = np.concatenate((np.zeros((1, len(self.sd))), np.cumsum(normals, 0))) * sqrt(self.duration / self.steps)
        return _between(t, np.linspace(0, self.duration, self.steps + 1), walk * np.array(self.sd))


@dataclass(frozen=True, slots=True)
class RecordedPath:
    """Attributes: times [s]; values: parameters at each."""

    times: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    def parameters(self, t: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t p"]:
        return _between(t, np.array(self.times), np.array(self.values))


AnyPath = SuddenPath | DriftPath | BreathingPath | RandomWalkPath | RecordedPath


def _between(
    t: Float[np.ndarray, " t"], times: Float[np.ndarray, " k"], values: Float[np.ndarray, "k p"]
) -> Float[np.ndarray, "t p"]:
    return np.stack([np.interp(t, times, column) for column in values.T], 1)
