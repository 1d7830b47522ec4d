"""Receive coils: sensitivities, noise covariance, combination, SENSE."""
