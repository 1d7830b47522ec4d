"""Tissues of the organ cohorts: abdomen of huang2022 and huang2023, chest of jacobs2025."""

from qsim.organ_tissues.heart import Jacobs2025
from qsim.organ_tissues.liver import Huang2022

__all__ = ["Huang2022", "Jacobs2025"]
