"""The one random stream of a process that torch's dropout draws from: whoever seeds it holds it while it draws."""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

GLOBAL_STREAM = RLock()

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def holding_the_stream(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """The function, for one thread at a time."""

    @wraps(function)
    def held(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with GLOBAL_STREAM:
            return function(*args, **kwargs)

    return held
