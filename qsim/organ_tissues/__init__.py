"""Tissues by organ: abdomen of huang2022 and huang2023, chest of jacobs2025, head of T1-weighted images."""

from qsim.organ_tissues.head import HeadT1w
from qsim.organ_tissues.heart import Jacobs2025
from qsim.organ_tissues.liver import Huang2022

__all__ = ["HeadT1w", "Huang2022", "Jacobs2025"]
