"""Decay under a spin-lock and under a T2 preparation in one series: T1rho and T2 on one amplitude.

    log S = log A - TSL / T1rho - TE / T2

is linear in (log A, 1 / T1rho, 1 / T2), so that a series tells the three apart exactly where its design
[1, TSL, TE] has three independent columns.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qsim.parameters import T1RHO, T2, A, Parameter
from qsim.signals.base import check_times, may_overwrite, time_axis
from qsim.values import value

# columns of the design, each at most 1, that are no more independent than this are one
_INDEPENDENT = 1e-6


@value
class SpinLockT2Prep:
    """Images after a spin-lock, after a T2 preparation, after neither or both: A exp(-TSL / T1rho - TE / T2).

        S_n = A exp(-TSL_n / T1rho - TE_n / T2)

    No modulus is taken: with A >= 0 the signal keeps its sign.

    Attributes:
        tsl: spin-lock time of each image; 0: without one [s].
        te_prep: duration of the T2 preparation of each image; 0: without one [s].
    Assumes: both preparations act on the magnetisation along the same path, so that their decays multiply.
    Source: huang2023 (images with a spin-lock, with a T2 preparation, and one without either).
    """

    kind: Literal["spin_lock_t2_prep"] = "spin_lock_t2_prep"
    tsl: tuple[float, ...]
    te_prep: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("tsl", self.tsl)
        check_times("te_prep", self.te_prep)
        if len(self.tsl) != len(self.te_prep):
            raise ValueError(
                f"tsl and te_prep: hold {len(self.tsl)} and {len(self.te_prep)} times; give one of each for every "
                "image (0: without that preparation)"
            )
        rank = _rank(self.tsl, self.te_prep)
        if rank < 3:
            raise ValueError(
                "tsl and te_prep: these times cannot tell A, T1rho and T2 apart (1, tsl and te_prep over the images "
                f"have rank {rank}, wanted 3); give at least three images in which tsl and te_prep differ independently"
            )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return A, T1RHO, T2

    @property
    def n_images(self) -> int:
        return len(self.tsl)

    @property
    def times(self) -> tuple[float, ...]:
        """Time of preparation of each image, spin-lock and T2 preparation together [s]."""
        return tuple(tsl + te for tsl, te in zip(self.tsl, self.te_prep, strict=True))

    def __call__(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        a, t1rho, t2 = kappa
        e = self._decay(t1rho, t2)
        return e.mul_(a) if may_overwrite(e, a) else a * e

    def coherent(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "n *space"]:
        """The same: no modulus is taken [units of A]."""
        return self(kappa)

    def jacobian(self, kappa: Float[Tensor, "q *space"]) -> Float[Tensor, "q n *space"]:
        """(dS/dA, dS/dT1rho, dS/dT2) = (E, A TSL E / T1rho^2, A TE E / T2^2) with E = exp(-TSL / T1rho - TE / T2)."""
        a, t1rho, t2 = kappa
        e = self._decay(t1rho, t2)
        locked, prepared = time_axis(self.tsl, t1rho), time_axis(self.te_prep, t2)
        return torch.stack((e, a / t1rho**2 * locked * e, a / t2**2 * prepared * e))

    def _decay(self, t1rho: Float[Tensor, "*space"], t2: Float[Tensor, "*space"]) -> Float[Tensor, "n *space"]:
        return torch.exp(-time_axis(self.tsl, t1rho) / t1rho - time_axis(self.te_prep, t2) / t2)


def _rank(tsl: tuple[float, ...], te_prep: tuple[float, ...]) -> int:
    """Rank of the design [1, TSL, TE]."""
    columns = np.array([[1.0] * len(tsl), tsl, te_prep])
    largest = columns.max(axis=1, keepdims=True)
    return int(np.linalg.matrix_rank(columns / np.where(largest > 0, largest, 1.0), tol=_INDEPENDENT))
