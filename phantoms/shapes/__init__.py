"""Analytic shapes, and structures put into any anatomy."""
