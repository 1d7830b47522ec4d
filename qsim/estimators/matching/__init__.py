"""Dictionaries of simulated signals, and the step from their atoms to the estimate."""
