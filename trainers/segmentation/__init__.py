"""Segmentation of the left ventricle that shall hold on images of another kind (jacobs2025)."""
