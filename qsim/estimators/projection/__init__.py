"""Variable projection: amplitudes in closed form, times by a search to the global minimum."""
