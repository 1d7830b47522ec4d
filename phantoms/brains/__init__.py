"""Brains: the MNI template, and label and membership models from files."""
