"""Plain numbers in the fields of a frozen value: a field holds what its annotation names, and nothing like it.

Numbers of numpy become those of Python, whole numbers become floats where floats are asked for, lists become tuples:
one value has one form, and one digest. `True` is not 1, "2" is not 2, and 1.5 is not a whole number.
"""

from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

import numpy as np

_NUMBERS = frozenset({bool, int, float})


@lru_cache(maxsize=256)
def field_kinds(cls: type) -> dict[str, frozenset[type]]:
    """Of each field of a dataclass all types that its annotation names."""
    return {field.name: _kinds(field.type) for field in fields(cls)}


def settle(value: Any) -> None:
    """Bring all fields of a frozen value to plain Python; the first line of its `__post_init__`.

    Raises: ValueError, starting with the name of the field.
    """
    for name, kinds in field_kinds(value.__class__).items():
        given = getattr(value, name)
        settled = plain(name, given, kinds)
        if settled is not given:
            object.__setattr__(value, name, settled)


def plain(name: str, given: Any, kinds: frozenset[type]) -> Any:
    """What was given, as one of the types of a field.

    Raises: ValueError, starting with the name, if a number, a whole number or a truth is wanted and another thing came.
    """
    if isinstance(given, bool | np.bool_):
        right = bool in kinds
        settled: Any = bool(given)
    elif isinstance(given, Real):
        right = float in kinds or (int in kinds and isinstance(given, Integral))
        settled = float(given) if float in kinds or not isinstance(given, Integral) else int(given)
    elif isinstance(given, list | tuple):
        right = tuple in kinds
        # a pair holds numbers, no distributions and no pairs
        inner = frozenset(kinds & {*_NUMBERS, str})
        settled = tuple(plain(name, each, inner) for each in given) if right and inner else given
    else:
        right = isinstance(given, tuple(kinds))
        settled = given
    if not right and kinds & _NUMBERS:
        raise ValueError(f"{name} must be {_wanted(kinds)}, got {given!r}{_remedy(given)}")
    return settled


def _kinds(annotation: Any) -> frozenset[type]:
    if get_origin(annotation) is Literal:
        return frozenset(type(each) for each in get_args(annotation))
    inner = frozenset(kind for each in get_args(annotation) for kind in _kinds(each))
    if get_origin(annotation) is tuple:
        return inner | {tuple}
    if annotation is None:
        return frozenset({type(None)})
    return inner | {annotation} if isinstance(annotation, type) else inner


def _wanted(kinds: frozenset[type]) -> str:
    if not kinds & {int, float}:
        return "true or false"
    number = "a finite number" if float in kinds else "a whole number"
    return f"{number} or a pair of them" if tuple in kinds else number


def _remedy(given: Any) -> str:
    if isinstance(given, str) and "e" in given.lower() and given[:1].isdigit():
        return " (YAML takes an exponent without a point for a text: write 1.0e-3)"
    return ""
