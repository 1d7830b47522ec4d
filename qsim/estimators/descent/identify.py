"""Whether a series can determine the rows of a model, and which of them must be known."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from qsim.errors import InputError
from qsim.information import crb, fisher_information, invert_information
from qsim.parameters import RELAXATION_TIMES
from qsim.signals.base import SignalModel

FIELDS = ("DELTA_B0", "REL_B1")
# off-resonance and transmit field of a point that no symmetry makes special
TYPICAL = {"DELTA_B0": 40.0, "REL_B1": 0.9, "C": 0.1}


def check_free(model: SignalModel, fixed: Mapping[str, Tensor], prior: Float[Tensor, " q"] | None = None) -> None:
    """Refuse a fit whose rows the series cannot tell apart, naming what must be known.

    At typical points (relaxation times of a third, once and three times their usual value) and an SNR of 100 the
    Cramér-Rao bound must be under the size of the row (REL_B1: 0.3; DELTA_B0: 100 Hz) at one of them at least.

    Args:
        fixed: known rows.
        prior: information that a prior adds, by row, in units of 1 / row^2; None: none [1].
    Raises: InputError.
    """
    names = [p.name for p in model.parameters]
    free = [n for n in names if n not in fixed]
    with_prior = 0 if prior is None else int(sum(float(prior[names.index(n)]) > 0 for n in free))
    if model.n_images + with_prior < len(free):
        raise InputError(
            f"images: {model.n_images} images cannot determine {len(free)} rows ({', '.join(free)}); give more images, "
            "or known rows"
        )
    missing: list[str] = []
    while free:
        lost = _unidentified(model, fixed, [n for n in names if n not in free], prior)
        if not lost:
            break
        fields = [n for n in FIELDS if n in free]
        # a field that is free spoils the others: asked for first, together
        chosen = fields or [max(lost, key=lambda n: lost[n])]
        missing += chosen
        free = [n for n in free if n not in chosen]
    if missing:
        given_too = f" beside {', '.join(fixed)}" if fixed else ""
        rows = ", ".join(missing)
        raise InputError(
            f"known.{missing[0]}: this series cannot determine {rows} together with the rest of "
            f"{', '.join(n for n in names if n not in fixed)}; give known {rows} (a number or a map each){given_too}"
        )


def _unidentified(
    model: SignalModel, fixed: Mapping[str, Tensor], known: list[str], prior: Tensor | None
) -> dict[str, float]:
    """Rows whose bound is too large at every typical point: the smallest of their bounds over what is allowed."""
    names = [p.name for p in model.parameters]
    best: dict[str, float] = {}
    for factor in (1 / 3, 1.0, 3.0):
        point = []
        for p in model.parameters:
            value = 1.0 if p.name in ("A", "M0") else TYPICAL.get(p.name, p.start)
            if p.name in RELAXATION_TIMES:
                value = min(max(value * factor, p.lower), p.upper)
            if p.name == "B":
                value = 1.9
            if p.name in fixed and fixed[p.name].numel():
                value = float(fixed[p.name].median())
            point.append(value)
        kappa = torch.tensor(point, dtype=torch.float64)[:, None]
        sd = _bound(model, kappa, known, prior)
        allowed = [
            0.3 if n == "REL_B1" else 100.0 if n == "DELTA_B0" else max(abs(v), 0.1)
            for n, v in zip(names, point, strict=True)
        ]
        lost = {
            n: float(sd[i]) / allowed[i]
            for i, n in enumerate(names)
            if n not in known and not float(sd[i]) < allowed[i]
        }
        if not lost:
            return {}
        if not best or max(lost.values()) < max(best.values()):
            best = lost
    return best


def _bound(
    model: SignalModel, kappa: Float[Tensor, "q 1"], known: list[str], prior: Tensor | None
) -> Float[Tensor, " q"]:
    """Smallest SD of each row at SNR 100, with the information of the prior."""
    level = 0.01 * float(model(kappa).abs().max().clamp_min(1e-12))
    if prior is None:
        return crb(model, kappa, level, known=known).sd[:, 0]
    information = fisher_information(model, kappa, level)[..., 0]
    information = information + torch.diag(prior / kappa[:, 0].square().clamp_min(1e-12))
    free = [i for i, p in enumerate(model.parameters) if p.name not in known]
    sd = torch.zeros(kappa.shape[0], dtype=torch.float64)
    sd[free] = invert_information(information[free][:, free]).diagonal().sqrt()
    return sd
