"""`value`: the decorator of every frozen type that a config can name.

A config *is* the constructor call: the same class is written in Python and in YAML. Physics does not
import pydantic; the class attribute below is all that pydantic needs to refuse unknown keys, NaN and infinity.
"""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def value(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, slotted, keyword-only dataclass whose config form refuses unknown keys, NaN and infinity."""
    frozen = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return frozen
