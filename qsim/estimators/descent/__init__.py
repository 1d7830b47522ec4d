"""Descents for any signal model and likelihood: starts, Levenberg-Marquardt, curvature at the end."""
