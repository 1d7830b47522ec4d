"""Voxels of three tissues whose means are drawn as in Table 1 of sabidussi2021, in no order, with one B."""

import numpy as np
import torch
from torch import Tensor

from qsim.signals import InversionRecovery
from tests.published import TI_31

IR = InversionRecovery(ti=TI_31)
# T1 mean and SD [s], mean of A, share of the slice
_TISSUES = ((3.5, 0.30, 1.00, 0.15), (1.4, 0.30, 0.85, 0.45), (0.78, 0.25, 0.65, 0.40))


def brain_like(seed: int, n: int, b: float | None = None, between: float = 1.0) -> tuple[Tensor, Tensor]:
    """True maps (A, B, T1) and the tissue of each voxel, 5 % white variation within a tissue.

    Args:
        b: None: 2 - half-normal(.2), cut at 1.
        between: part of the spread between subjects that is drawn.
    """
    rng = np.random.default_rng(seed)

    def cut() -> float:
        return float(np.clip(rng.standard_normal(), -2, 2)) * between

    means = np.array([(t1 + sd * cut(), a + 0.3 * cut()) for t1, sd, a, _ in _TISSUES])
    label = rng.choice(3, size=n, p=[row[3] for row in _TISSUES])
    drawn = max(1.0, 2 - abs(0.2 * rng.standard_normal()))
    rows = means[label].T * (1 + 0.05 * rng.standard_normal((2, n)))
    depth = np.full(n, drawn if b is None else b)
    return torch.tensor(np.stack((rows[1], depth, rows[0]))), torch.tensor(label)


def noisy_images(kappa: Tensor, sigma: float, seed: int, model: InversionRecovery = IR) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    clean = model(kappa)
    return (clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).float()
