"""The Bloch equation by matrix exponentials and by an ODE solver, sharing no code with the package.

    dM/dt = M x w - Gamma M + R1 M0 z

with w from an independent reading of the convention: a field along x takes +z to +y.
"""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm

DEGREE = np.pi / 180
PHASES = {"x": 0.0, "y": 90.0, "-x": 180.0, "-y": 270.0}


@dataclass(frozen=True)
class Voxel:
    t1: float
    t2: float
    t1rho: float = 0.05
    t2rho: float | None = None
    delta_b0: float = 0.0
    rel_b1: float = 1.0


def cross_with(w):
    """Matrix of M -> M x w."""
    return np.array([np.cross(e, w) for e in np.eye(3)]).T


def relaxation(voxel, w, locked):
    """Gamma: that of the Bloch equation, plus what T1rho and T2rho differ from it along and across the field."""
    r1, r2 = 1 / voxel.t1, 1 / voxel.t2
    gamma = np.diag([r2, r2, r1])
    if locked:
        n = np.asarray(w) / np.linalg.norm(w)
        sin2, cos2 = n[0] ** 2 + n[1] ** 2, n[2] ** 2
        bloch_along = r1 * cos2 + r2 * sin2
        bloch_across = (2 * r2 + r1 - bloch_along) / 2
        along = r1 * cos2 + sin2 / voxel.t1rho
        across = bloch_across if voxel.t2rho is None else 1 / voxel.t2rho
        gamma = gamma + (along - bloch_along) * np.outer(n, n) + (across - bloch_across) * (np.eye(3) - np.outer(n, n))
    return gamma


def generator(voxel, w1=0.0, phase=0.0, locked=False):
    """4 x 4 matrix of d(M, 1)/dt; w1 [rad/s] actual, phase [rad]."""
    w = np.array([w1 * np.cos(phase), w1 * np.sin(phase), 2 * np.pi * voxel.delta_b0])
    g = np.zeros((4, 4))
    g[:3, :3] = cross_with(w) - relaxation(voxel, w, locked)
    g[2, 3] = 1 / voxel.t1
    return g


def pulse_matrix(voxel, degrees, axis, width=0.0):
    angle, phase = degrees * DEGREE * voxel.rel_b1, PHASES[axis] * DEGREE
    if width:
        return expm(generator(voxel, angle / width, phase) * width)
    g = np.zeros((4, 4))
    g[:3, :3] = cross_with(angle * np.array([np.cos(phase), np.sin(phase), 0]))
    return expm(g)


def lock_matrix(voxel, time, fsl, axis):
    return expm(generator(voxel, 2 * np.pi * fsl * voxel.rel_b1, PHASES[axis] * DEGREE, locked=True) * time)


def free_matrix(voxel, time):
    return expm(generator(voxel) * time)


def carry(matrices, m=(0.0, 0.0, 1.0)):
    state = np.array([*m, 1.0])
    for matrix in matrices:
        state = matrix @ state
    return state[:3]


def ode(voxel, field, duration, m, locked=False, points=None):
    """Integrate with a field (wx, wy, wz)(t) [rad/s]; rtol 1e-11."""

    def slope(t, state):
        w = np.asarray(field(t), dtype=float)
        g = cross_with(w) - relaxation(voxel, w, locked)
        return g @ state + np.array([0, 0, 1 / voxel.t1])

    done = solve_ivp(slope, (0, duration), m, method="DOP853", rtol=1e-11, atol=1e-13, max_step=duration / 20)
    assert done.success
    return done.y[:, -1]


# clusters as physics.md writes them: (angle, axis) or (share of TSL, axis)
CLUSTERS = {
    "SSL": "90x SLy 90-x",
    "RESL": "90x SLy/2 SL-y/2 90-x",
    "CSL": "90x SLy/2 180y SL-y/2 90x",
    "BSL": "90x SLy/4 180y SL-y/2 180-y SLy/4 90-x",
    "PSCSL": "90x SL-y/4 SLy/4 180y SL-y/4 SLy/4 90-x",
    "TRSL": "90x SLy/4 180y SL-y/4 180y SLy/4 180-y SL-y/4 90x",
}
SIGN = {"CSL": -1, "TRSL": -1}


def cluster_mz(name, voxel, tsl, fsl, pulse_b1=None):
    """Stored Mz of a cluster by matrix exponentials."""
    matrices = []
    for word in CLUSTERS[name].split():
        if word.startswith("SL"):
            axis, _, share = word[2:].partition("/")
            matrices.append(lock_matrix(voxel, tsl / float(share or 1), fsl, axis))
        else:
            digits = "".join(c for c in word if c.isdigit())
            degrees = float(digits)
            width = degrees * DEGREE / (2 * np.pi * pulse_b1) if pulse_b1 else 0.0
            matrices.append(pulse_matrix(voxel, degrees, word[len(digits) :], width))
    return SIGN.get(name, 1) * carry(matrices)[2]


def mlev_mz(voxel, te, signs, composite=False):
    """T2 preparation with hard pulses: 90x, refocusing about +-y, 90-x."""
    n = len(signs)
    matrices = [pulse_matrix(voxel, 90, "x"), free_matrix(voxel, te / (2 * n))]
    for i, sign in enumerate(signs):
        y, x = ("y", "x") if sign > 0 else ("-y", "-x")
        if composite:
            matrices += [pulse_matrix(voxel, 90, x), pulse_matrix(voxel, 180, y), pulse_matrix(voxel, 90, x)]
        else:
            matrices.append(pulse_matrix(voxel, 180, y))
        matrices.append(free_matrix(voxel, te / (n if i < n - 1 else 2 * n)))
    return carry([*matrices, pulse_matrix(voxel, 90, "-x")])[2]
