"""Likelihood and its analytic gradient, Fisher information, and the Cramér-Rao bound: free, shared, known.

Gaussian noise (real, after the modulus or on the signed signal); the information also under Rician and non-central chi
noise. Everything but the likelihood of the networks runs in float64: the Fisher matrix of a short inversion recovery is
nearly singular. `qsim.information.design` chooses the times of a protocol by these bounds.
"""

from qsim.information.bound import Bound, crb, crb_of_equal_voxels
from qsim.information.fisher import fisher_information, invert_information, jacobian
from qsim.information.likelihood import likelihood_gradient, negative_log_likelihood
from qsim.information.rician_bound import information_factor

__all__ = [
    "Bound",
    "crb",
    "crb_of_equal_voxels",
    "fisher_information",
    "information_factor",
    "invert_information",
    "jacobian",
    "likelihood_gradient",
    "negative_log_likelihood",
]
