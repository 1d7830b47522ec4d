"""Physics and statistics of quantitative MRI: signal models, noise, estimators, bounds, evaluation."""

__version__ = "0.1.0"
