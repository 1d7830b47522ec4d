"""Receive coils: sensitivities, noise covariance, combination, SENSE.

from qsim.kspace.coils import Acceleration, CoilArray, receive
sensitivities = CoilArray(coils=8).sensitivities((128, 128))
received = receive(images, sensitivities, 0.01, generator, combination="sense", acceleration=Acceleration(factors=(2,)))
"""

from qsim.kspace.coils.combination import Adaptive, adaptive, matched, root_sum_of_squares
from qsim.kspace.coils.covariance import (
    COIL_NOISES,
    AnyCoilNoise,
    CoilNoise,
    NeighbourCoilNoise,
    SampleCoilNoise,
    WhiteCoilNoise,
    coil_noise,
    covariance_of,
    whiten,
)
from qsim.kspace.coils.field import Loop, loop_field, loop_potential
from qsim.kspace.coils.receiver import Coils, Combination, Received, Receiver, receive
from qsim.kspace.coils.sense import Acceleration, Sense, Unfolding, sense, undersample, unfolding
from qsim.kspace.coils.sensitivities import CoilArray, CoilsDrawn, loop_sensitivities

__all__ = [
    "COIL_NOISES",
    "Acceleration",
    "Adaptive",
    "AnyCoilNoise",
    "CoilArray",
    "CoilNoise",
    "Coils",
    "CoilsDrawn",
    "Combination",
    "Loop",
    "NeighbourCoilNoise",
    "Received",
    "Receiver",
    "SampleCoilNoise",
    "Sense",
    "Unfolding",
    "WhiteCoilNoise",
    "adaptive",
    "coil_noise",
    "covariance_of",
    "loop_field",
    "loop_potential",
    "loop_sensitivities",
    "matched",
    "receive",
    "root_sum_of_squares",
    "sense",
    "undersample",
    "unfolding",
    "whiten",
]
