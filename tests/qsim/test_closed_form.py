"""Closed-form signals: special values, derivatives, limits, refusals."""

import math

import numpy as np
import pytest
import torch

from qsim.information import likelihood_gradient, negative_log_likelihood
from qsim.signals import (
    MODELS as REGISTERED,
)
from qsim.signals import (
    BiExponential,
    ClosedForm,
    DifferentiableModel,
    GradientEcho,
    InversionRecovery,
    InversionRecovery2P,
    LookLocker,
    OffsetDecay,
    SaturationRecovery,
    SignalModel,
    SpinEcho,
    SpinLock,
    SpinLockT2Prep,
    T2Prep,
    VariableFlipAngle,
)
from qsim.signals.spoiled import spoiled_train
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
    InversionRecovery(ti=TI_31, tr=1.5),
    InversionRecovery(ti=TI_31, tr=1.5, signed=True),
    SaturationRecovery(ts=(0.1, 0.4, 1.0, 3.0)),
    SaturationRecovery(ts=(0.1, 0.4, 1.0, 3.0), signed=True),
    LookLocker(ti=TI_31),
    LookLocker(ti=TI_31, signed=True),
    GradientEcho(te=(0.002, 0.005, 0.01, 0.03)),
    BiExponential(te=TE_PREP),
    BiExponential(tsl=(0.0, 0.01, 0.03, 0.05)),
    VariableFlipAngle(flip_angles=(0.05, 0.1, 0.3), tr=0.008),
    SpinLockT2Prep(tsl=(0.0, 0.03, 0.05, 0.0, 0.0, 0.02), te_prep=(0.0, 0.0, 0.0, 0.02, 0.05, 0.02)),
)
RANGES = {
    "A": (0.2, 1.3),
    "B": (1.5, 2.0),
    "T1": (0.4, 4.0),
    "T2": (0.03, 0.2),
    "T2STAR": (0.01, 0.06),
    "T1RHO": (0.02, 0.1),
    "C": (-0.1, 0.3),
    "FRACTION": (0.1, 0.9),
    "T2_SHORT": (0.005, 0.02),
    "T1RHO_SHORT": (0.002, 0.01),
    "REL_B1": (0.8, 1.2),
}


def identify(model):
    finite = "tr" if getattr(model, "tr", None) else ""
    return "-".join([model.kind, str(getattr(model, "signed", "")), finite, model.parameters[1].name])


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
        (SaturationRecovery, "ts"),
        (LookLocker, "ti"),
        (GradientEcho, "te"),
        (BiExponential, "te"),
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


def test_every_closed_form_is_registered_and_tested():
    assert set(ClosedForm.__args__) <= set(REGISTERED)
    assert {type(model) for model in MODELS} == set(ClosedForm.__args__)


@pytest.mark.parametrize(("b", "t1", "tr"), [(2.0, 1.3, 1.5), (1.8, 4.0, 2.5), (1.95, 0.3, 2.0)])
def test_finite_tr_against_the_sequence_played_until_it_repeats(b, t1, tr):
    """Inversion Mz -> (1 - B) Mz, recovery over TI, a readout that leaves Mz = 0, recovery over TR - TI, again."""
    ti = (0.05, 0.4, 1.2)
    seen = []
    for time in ti:
        mz = 1.0
        for _ in range(3):
            mz = (1 - b) * mz
            mz = 1 + (mz - 1) * math.exp(-time / t1)
            at_readout, mz = mz, 0.0
            mz = 1 + (mz - 1) * math.exp(-(tr - time) / t1)
        seen.append(0.7 * at_readout)
    model = InversionRecovery(ti=ti, tr=tr, signed=True)
    np.testing.assert_allclose(model(double(0.7, b, t1)), seen, rtol=1e-13)


def test_long_tr_is_none():
    kappa = random_maps(MODELS[0], (5,))
    # exp(-60 / 4) = 3e-7 of A
    torch.testing.assert_close(InversionRecovery(ti=TI_31, tr=60.0)(kappa), MODELS[0](kappa), rtol=0, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_likelihood_gradient_with_finite_tr(signed):
    """The networks' gradient has a shortcut for full recovery, which must not be taken here."""
    model = InversionRecovery(ti=TI_31, tr=1.2, signed=signed)
    kappa = random_maps(model, (6,))
    images = model(kappa) + 0.05
    kappa = kappa.requires_grad_()
    (expected,) = torch.autograd.grad(negative_log_likelihood(model, kappa, images, 0.1).sum(), kappa)
    with torch.no_grad():
        torch.testing.assert_close(likelihood_gradient(model, kappa, images, 0.1), expected, rtol=1e-10, atol=1e-12)


def test_refusals_of_tr():
    with pytest.raises(ValueError, match=r"^tr must be longer than the longest ti, 0.9 s, got 0.9"):
        InversionRecovery(ti=(0.1, 0.9), tr=0.9)
    with pytest.raises(ValueError, match=r"^tr must be in seconds, got 3000; divide by 1000"):
        InversionRecovery(ti=(0.1, 0.9), tr=3000.0)
    with pytest.raises(ValueError, match=r"^tr must hold finite times"):
        InversionRecovery(ti=(0.1, 0.9), tr=math.nan)


def test_saturation_recovery_by_hand():
    """A perfect saturation: 0 at once, A (1 - 1/e) after T1. Too large an angle (B 1.2) starts negative."""
    model = SaturationRecovery(ts=(0.0, 0.9))
    np.testing.assert_allclose(model(double(0.7, 1.0, 0.9)), [0.0, 0.7 * (1 - 1 / math.e)], atol=1e-15)
    np.testing.assert_allclose(model(double(0.7, 1.2, 0.9))[0], 0.7 * 0.2)
    assert float(SaturationRecovery(ts=(0.0,), signed=True)(double(0.7, 1.2, 0.9))[0]) == pytest.approx(-0.14)


def test_look_locker_of_oracle_g():
    """T1* 358.519 ms, M0* .300228 (T1 1200 ms, TR 5 ms, 8 degrees), a perfect inversion: T1* (B - 1) is 1194.2 ms."""
    steady, apparent = 0.300228, 0.358519
    b = 1 + 1 / steady
    t1 = apparent * (b - 1)
    assert 1e3 * t1 == pytest.approx(1194.2, abs=0.05)
    times = np.array([0.0, 0.1, 0.5, 2.0])
    signal = LookLocker(ti=tuple(times.tolist()), signed=True)(double(steady, b, t1))
    np.testing.assert_allclose(signal, steady - (1 + steady) * np.exp(-times / apparent), rtol=1e-12)


def test_two_decays_by_hand():
    """A at time 0; the long one alone long after the short one; fractions 0 and 1 are single decays."""
    model = BiExponential(te=(0.0, 0.5))
    signal = model(double(0.8, 0.3, 0.01, 0.1))
    np.testing.assert_allclose(signal, [0.8, 0.8 * 0.7 * math.exp(-5)], rtol=1e-12)
    both = BiExponential(te=TE_PREP)
    for fraction, t2 in ((0.0, 0.1), (1.0, 0.01)):
        np.testing.assert_allclose(both(double(0.8, fraction, 0.01, 0.1)), SpinEcho(te=TE_PREP)(double(0.8, t2)))
    assert [p.name for p in both.parameters] == ["A", "FRACTION", "T2_SHORT", "T2"]
    assert [p.name for p in BiExponential(tsl=(0.0,)).parameters] == ["A", "FRACTION", "T1RHO_SHORT", "T1RHO"]
    with pytest.raises(ValueError, match=r"^te and tsl: wanted exactly one .* got both"):
        BiExponential(te=(0.01,), tsl=(0.01,))


@pytest.mark.parametrize("rel_b1", [0.8, 1.0, 1.15])
def test_flip_angles_against_the_train_played_to_its_steady_state(rel_b1):
    """Pulses one by one, by hand: what is left along z recovers, what is turned is seen and spoiled."""
    model = VariableFlipAngle(flip_angles=(0.05, 0.2, 0.6), tr=0.008)
    for i, angle in enumerate(model.flip_angles):
        mz, e = 1.0, math.exp(-0.008 / 1.1)
        for _ in range(8000):
            seen = 0.7 * mz * math.sin(rel_b1 * angle)
            mz = 1 + (mz * math.cos(rel_b1 * angle) - 1) * e
        assert float(model(double(0.7, 1.1, rel_b1))[i]) == pytest.approx(seen, rel=1e-9)


def test_flip_angles_against_the_readout_of_the_engine():
    model = VariableFlipAngle(flip_angles=(0.05, 0.2, 0.6), tr=0.008)
    t1, rel_b1 = double(0.3, 1.1, 4.0), double(0.9, 1.0, 1.1)
    for i, angle in enumerate(model.flip_angles):
        train = spoiled_train(t1, torch.cos(angle * rel_b1), torch.sin(angle * rel_b1), 0.008, 40_000, 1)
        found = model(torch.stack((torch.ones_like(t1), t1, rel_b1)))[i]
        torch.testing.assert_close(found, (train.gain + train.offset)[0], rtol=1e-9, atol=0)


def test_the_largest_signal_lies_at_the_ernst_angle():
    e = math.exp(-0.02 / 0.9)
    ernst_angle = math.acos(e)
    model = VariableFlipAngle(flip_angles=(0.98 * ernst_angle, ernst_angle, 1.02 * ernst_angle), tr=0.02)
    signal = model(double(1.0, 0.9, 1.0))
    assert int(signal.argmax()) == 1
    # Ernst: tan(alpha / 2)
    assert float(signal[1]) == pytest.approx(math.tan(ernst_angle / 2), rel=1e-12)


def test_refusals_of_flip_angles():
    with pytest.raises(ValueError, match=r"^flip_angles must lie in \(0, pi / 2\] rad, got 15; 15 degrees are 0.2618"):
        VariableFlipAngle(flip_angles=(0.1, 15.0), tr=0.01)
    # few degrees, read as rad
    with pytest.raises(ValueError, match=r"got 2; 2 degrees are 0.03491 rad"):
        VariableFlipAngle(flip_angles=(2.0, 3.0), tr=0.01)
    for angles, message in (((), "is empty"), ((0.0,), "above 0"), ((math.nan,), "above 0"), ((math.inf,), "above 0")):
        with pytest.raises(ValueError, match=f"^flip_angles .*{message}"):
            VariableFlipAngle(flip_angles=angles, tr=0.01)
    with pytest.raises(ValueError, match=r"^tr must be in seconds, got 5"):
        VariableFlipAngle(flip_angles=(0.1,), tr=5.0)
