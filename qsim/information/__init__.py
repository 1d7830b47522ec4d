"""Likelihood and its analytic gradient, Fisher information, and the Cramér-Rao bound: free, shared, known.

Gaussian noise: real, of one sigma, after the modulus or on the signed signal. Everything but the likelihood of the
networks runs in float64: the Fisher matrix of a short inversion recovery is nearly singular.
"""

from qsim.information.bound import Bound, crb
from qsim.information.fisher import fisher_information, invert_information, jacobian
from qsim.information.likelihood import likelihood_gradient, negative_log_likelihood

__all__ = [
    "Bound",
    "crb",
    "fisher_information",
    "invert_information",
    "jacobian",
    "likelihood_gradient",
    "negative_log_likelihood",
]
