"""Artefacts so strong that numbers overflow: the artefact is at fault, not the file."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from qsim.errors import InputError
from qsim.kspace.artefacts.base import Artefact

Counted = TypeVar("Counted")


def computed(artefacts: Sequence[Artefact[Any]], run: Callable[[int], Counted]) -> Counted:
    """What a run of the first n artefacts gives, for all of them.

    Raises: InputError naming the first artefact whose numbers are too large to be computed with.
    """
    try:
        return _finite(run, len(artefacts))
    except ArithmeticError:
        culprit = len(artefacts) - 1
        for number in range(culprit):
            try:
                _finite(run, number + 1)
            except ArithmeticError:
                culprit = number
                break
        kind = artefacts[culprit].kind
        raise InputError(f"artefacts[{culprit}]: {kind} is too strong to be computed; lower its strength") from None


def _finite(run: Callable[[int], Counted], count: int) -> Counted:
    """A run in which numbers that become too large are an error.

    Raises: ArithmeticError.
    """
    try:
        with np.errstate(over="raise", invalid="raise"):
            return run(count)
    except InputError:
        raise
    except ValueError as error:
        # between two artefacts: the images are checked where the axes of the next are others
        raise OverflowError(str(error)) from None


def require_finite(values: Tensor) -> None:
    """Refuse what artefacts made larger than its precision holds.

    Raises: InputError.
    """
    if not bool(torch.isfinite(values).all()):
        precision = "single" if values.dtype in (torch.complex64, torch.float32) else "double"
        raise InputError(f"artefacts: what comes out is not finite in {precision} precision; lower their strengths")
