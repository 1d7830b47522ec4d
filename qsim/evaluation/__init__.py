"""Monte Carlo studies of estimators: metrics, the study itself, its table and its report."""
