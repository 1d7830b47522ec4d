"""Everything that turns images into maps."""

from qsim.estimators.base import Estimate, Estimator, Status

__all__ = ["Estimate", "Estimator", "Status"]
