"""A fit of your own, with scipy, in every study: qsim study CONFIG --out OUT --estimator my_curve_fit:build"""

import numpy as np
from scipy.optimize import curve_fit

from qsim.estimators.adapters import VoxelByVoxel


def build(model):
    """The T1 of a magnitude inversion recovery, A |1 - B exp(-TI / T1)|, voxel by voxel."""

    def signal(ti, a, b, t1):
        return np.abs(a * (1 - b * np.exp(-ti / t1)))

    def fit(series):
        start, bounds = (series.max(), 2.0, 1.0), ((0, 0, 0.01), (np.inf, 3, 6))
        return curve_fit(signal, model.times, series, start, bounds=bounds)[0]

    return VoxelByVoxel("curve_fit", model, fit)
