"""Segmentation that tells what spoils it: decoupled sources of uncertainty (shaw2021)."""
