"""Maximum likelihood with one B for all voxels: the fair opponent where B is constant over a patch or a mask.

    minimise sum_v sum_n (|A_v (1 - B exp(-TI_n / T1_v))| - S_vn)^2   over one B, and A_v >= 0, T1_v of every voxel

For one B each voxel is a fit with one amplitude and one time: with d(T1) = |1 - B exp(-TI / T1)|, A = S.d / d.d, and
what is explained, phi = (S.d)^2 / d.d, is maximised over T1 by a dictionary and a Newton step (`profile`). The sum of
phi over the voxels is the profile likelihood of B; it is searched on a grid with some voxels, then climbed by scoring
steps with all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qsim.errors import InputError
from qsim.estimators.base import Estimate
from qsim.estimators.profile import Profile
from qsim.estimators.voxels import gather, known_map, scatter, statuses
from qsim.parameters import T1, Parameter
from qsim.signals import InversionRecovery
from qsim.signals.base import SignalModel


@dataclass(frozen=True, slots=True)
class SharedB:
    """Least squares with one B for the whole mask (Gaussian maximum likelihood).

    At low SNR (below about 4 with 31 times up to 0.94 s) the likelihood of B itself is flat and skew, and B may end at
    its bound: then every voxel is reported as at bound.

    Attributes:
        model: an inversion recovery with free B.
    """

    model: SignalModel

    def __post_init__(self) -> None:
        if not isinstance(self.model, InversionRecovery):
            raise InputError(
                f"estimators: shared-b needs a model with B and inversion times (inversion_recovery), got "
                f"{type(self.model).__name__}; use least-squares"
            )

    @property
    def name(self) -> str:
        return "shared-b"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.model.parameters

    def __call__(
        self,
        images: Float[Tensor, "n *space"],
        sigma: float | Tensor | None = None,  # noqa: ARG002  the estimate does not depend on it
        mask: Bool[Tensor, "*space"] | None = None,
        known: Mapping[str, Tensor] | Mapping[str, float] | None = None,
    ) -> Estimate:
        """Fit all voxels together.

        Args:
            images: the series [units of A].
            sigma: not used; one sigma is assumed for all voxels.
            mask: voxels that share B; None: all.
            known: {"B": number}: B is not searched.
        Raises: InputError if the series, the mask or `known` does not fit.
        """
        y, where = gather(images, self.model, mask)
        given = known_map(known, "B", where, ("B",))
        if given is not None and given.numel() > 1:
            raise InputError("known.B: shared-b takes one number; for a map of B use least-squares")
        if y.shape[1] == 0:
            empty = y.new_zeros(len(self.parameters), 0)
            return Estimate(scatter(empty, where), statuses(empty, self.parameters, where[where], where))
        profile = Profile(self.model.ti, self.model.signed, y)  # type: ignore[attr-defined]
        if given is not None:
            found, converged = profile.at(float(given)), True
        else:
            found, converged = profile.maximise()
        t1 = found.u.exp().clamp(T1.lower, T1.upper)
        kappa = torch.stack((found.a, torch.full_like(t1, found.b), t1))
        fixed = ("B",) if given is not None else ()
        ended = torch.full_like(where[where], converged)
        status = statuses(kappa, self.parameters, ended, where, fixed)
        return Estimate(scatter(kappa.to(images.dtype), where), status)
