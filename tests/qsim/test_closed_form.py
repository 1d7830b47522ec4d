"""Closed-form signals: special values, derivatives, limits, refusals."""

import math

import numpy as np
import pytest
import torch

from qsim.signals import (
    DifferentiableModel,
    InversionRecovery,
    InversionRecovery2P,
    OffsetDecay,
    SignalModel,
    SpinEcho,
    SpinLock,
    T2Prep,
)
from tests.published import TE_PREP, TI_31

MODELS = (
    InversionRecovery(ti=TI_31),
    InversionRecovery(ti=TI_31, signed=True),
    InversionRecovery2P(ti=TI_31),
    InversionRecovery2P(ti=TI_31, signed=True),
    T2Prep(te_prep=TE_PREP),
    SpinLock(tsl=(0.0, 0.01, 0.03, 0.05)),
    SpinEcho(te=(0.16, 0.01, 0.08)),
    OffsetDecay(te=TE_PREP),
    OffsetDecay(tsl=(0.0, 0.01, 0.03, 0.05)),
)
RANGES = {"A": (0.2, 1.3), "B": (1.5, 2.0), "T1": (0.4, 4.0), "T2": (0.03, 0.2), "T1RHO": (0.02, 0.1), "C": (-0.1, 0.3)}


def identify(model):
    return "-".join([model.kind, str(getattr(model, "signed", "")), model.parameters[1].name])


def random_maps(model, shape, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.uniform(*RANGES[p.name], shape) for p in model.parameters]))


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_recovery_at_special_times():
    """Zero time: A (1 - B). The null: T1 log B. One T1 with a perfect inversion: A (1 - 2 / e)."""
    t1 = 0.9
    model = InversionRecovery(ti=(0.0, t1 * math.log(1.8), t1, 30.0), signed=True)
    signal = model(double(0.7, 1.8, t1))
    np.testing.assert_allclose(signal, [0.7 * -0.8, 0.0, 0.7 * (1 - 1.8 / math.e), 0.7], atol=1e-12)
    magnitude = InversionRecovery(ti=model.ti)(double(0.7, 1.8, t1))
    np.testing.assert_allclose(magnitude, signal.abs())


def test_two_parameters_are_three_with_b_2():
    two = InversionRecovery2P(ti=TI_31)(double(0.8, 1.1))
    np.testing.assert_allclose(two, InversionRecovery(ti=TI_31)(double(0.8, 2.0, 1.1)))


@pytest.mark.parametrize(
    "model", [T2Prep(te_prep=(0.0, 0.08)), SpinLock(tsl=(0.0, 0.08)), SpinEcho(te=(0.0, 0.08))], ids=identify
)
def test_decay_at_special_times(model):
    np.testing.assert_allclose(model(double(0.6, 0.08)), [0.6, 0.6 / math.e])


def test_decay_on_a_constant():
    """By hand: A + C at time 0, A / e + C at T, C long after; te fits T2, tsl T1rho; C may be negative."""
    model = OffsetDecay(te=(0.0, 0.08, 5.0))
    np.testing.assert_allclose(model(double(0.6, 0.08, -0.1)), [0.5, 0.6 / math.e - 0.1, -0.1])
    assert [p.name for p in model.parameters] == ["A", "T2", "C"]
    assert [p.name for p in OffsetDecay(tsl=(0.0,)).parameters] == ["A", "T1RHO", "C"]


def test_decay_on_a_constant_takes_one_list_of_times():
    for times, given in (({}, "neither"), ({"te": (0.01,), "tsl": (0.01,)}, "both")):
        with pytest.raises(ValueError, match=f"^te and tsl: wanted exactly one .* got {given}"):
            OffsetDecay(**times)
    with pytest.raises(ValueError, match=r"^tsl must be in seconds, got 50; divide by 1000"):
        OffsetDecay(tsl=(0.0, 50.0))


def test_signal_of_white_matter():
    """By hand: A .65, B 1.9, T1 780 ms at TI 139 and 937 ms; A .65, T2 80 ms at 160 ms."""
    signal = InversionRecovery(ti=(0.139, 0.937))(double(0.65, 1.9, 0.78))
    np.testing.assert_allclose(signal, [0.383412, 0.278502], atol=1e-6)
    np.testing.assert_allclose(T2Prep(te_prep=(0.16,))(double(0.65, 0.08)), [0.0879679], atol=1e-7)


@pytest.mark.parametrize("model", MODELS, ids=identify)
def test_protocols(model):
    assert isinstance(model, SignalModel)
    assert isinstance(model, DifferentiableModel)
    assert model(random_maps(model, (2, 3))).shape == (model.n_images, 2, 3)


@pytest.mark.parametrize("model", MODELS, ids=identify)
def test_jacobian_against_central_differences(model):
    kappa = random_maps(model, (3, 5))
    found = model.jacobian(kappa)
    for row in range(len(kappa)):
        h = torch.zeros_like(kappa)
        h[row] = 1e-6 * kappa[row]
        numeric = (model(kappa + h) - model(kappa - h)) / (2 * h[row])
        # second-order differences of relative step 1e-6 in float64
        torch.testing.assert_close(found[row], numeric, rtol=1e-6, atol=1e-8 * float(numeric.abs().max()))


@pytest.mark.parametrize("model", MODELS, ids=identify)
def test_jacobian_against_autograd(model):
    kappa = random_maps(model, (4,))
    full = torch.func.jacrev(model)(kappa)
    torch.testing.assert_close(model.jacobian(kappa), torch.einsum("nvqv->qnv", full), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", MODELS, ids=identify)
def test_voxels_do_not_mix(model):
    kappa = random_maps(model, (6,))
    one_by_one = torch.stack([model(voxel) for voxel in kappa.unbind(1)], 1)
    torch.testing.assert_close(model(kappa), one_by_one, rtol=0, atol=0)
    lifted = torch.vmap(model, in_dims=1, out_dims=1)(kappa)
    torch.testing.assert_close(lifted, one_by_one, rtol=1e-14, atol=0)


@pytest.mark.parametrize("model", MODELS, ids=identify)
def test_float32_against_float64(model):
    kappa = random_maps(model, (20,))
    # float32 has 1.2e-7; a recovery near its null loses what A is larger
    torch.testing.assert_close(model(kappa.float()).double(), model(kappa), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (InversionRecovery, "ti"),
        (InversionRecovery2P, "ti"),
        (T2Prep, "te_prep"),
        (SpinLock, "tsl"),
        (SpinEcho, "te"),
        (OffsetDecay, "te"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
class TestRefusals:
    def test_milliseconds(self, cls, field):
        with pytest.raises(ValueError, match=f"{field} must be in seconds, got 320; divide by 1000"):
            cls(**{field: (10.0, 80.0, 320.0)})

    @pytest.mark.parametrize(
        ("times", "message"),
        [((), "is empty"), ((0.1, math.nan), "finite"), ((math.inf,), "finite"), ((-0.1, 0.2), "not be negative")],
    )
    def test_nonsense(self, cls, field, times, message):
        with pytest.raises(ValueError, match=f"^{field} .*{message}"):
            cls(**{field: times})


def test_median_decides_for_inversion_times():
    """One long delay is a plateau; many are milliseconds."""
    InversionRecovery(ti=(0.1, 1.0, 15.0))
    with pytest.raises(ValueError, match="milliseconds"):
        InversionRecovery(ti=(0.1, 15.0, 15.0))


@pytest.mark.parametrize("model", MODELS, ids=identify)
def test_what_is_written_in_place_changes_nothing(model):
    """Without gradients the images are written in place: the same bits, also under function transforms."""
    kappa = random_maps(model, (4, 5)).float()
    recorded = model(kappa)
    with torch.no_grad():
        assert torch.equal(model(kappa), recorded)
        _, slope = torch.func.jvp(model, (kappa,), (torch.ones_like(kappa),))
        batched = torch.func.vmap(model, in_dims=1)(kappa)
    assert torch.equal(batched.movedim(0, 1), recorded)
    expected = model.jacobian(kappa).sum(0)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
