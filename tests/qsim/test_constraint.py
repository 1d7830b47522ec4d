"""The relaxation constraint against formulas written out, finite differences and matrix exponentials."""

from dataclasses import dataclass
from math import exp, sin

import numpy as np
import pytest
import torch

from qsim.kspace.order import Acquisition
from qsim.parameters import T2, A
from qsim.signals import (
    BiExponential,
    Bloch,
    GradientEcho,
    InversionRecovery,
    OffsetDecay,
    SpinEcho,
    SpinLock,
    SpinLockPreparation,
    SpinLockT2Prep,
    T2Prep,
    TurboSpinEcho,
    VariableFlipAngle,
)
from qsim.signals.constraint import RelaxationConstraint, constraint_pairs
from tests.bloch_oracle import Voxel, cluster_mz

TSL = (0.0, 0.01, 0.03, 0.05)
ALL = constraint_pairs((0, 1, 2, 3))
LOCK = Bloch(preparation=SpinLockPreparation(cluster="BSL", tsl=TSL, fsl=400.0))
# T1, T2, T1RHO, DELTA_B0, REL_B1: none of them on resonance
OFF_RESONANCE = [[0.8, 0.9, 0.7], [0.03, 0.04, 0.06], [0.04, 0.05, 0.08], [80.0, -45.0, 130.0], [0.85, 1.1, 0.95]]
TIMES = [0.02, 0.045, 0.11]
AMPLITUDE = torch.tensor([0.7, 1.3, 240.0], dtype=torch.float64)

CASES = {
    "spin_lock": (SpinLock(tsl=TSL), [TIMES], lambda t, k: np.exp(-t / k[0])),
    "t2_prep": (T2Prep(te_prep=TSL), [TIMES], lambda t, k: np.exp(-t / k[0])),
    "spin_echo": (SpinEcho(te=TSL), [TIMES], lambda t, k: np.exp(-t / k[0])),
    "gradient_echo": (GradientEcho(te=TSL), [TIMES], lambda t, k: np.exp(-t / k[0])),
    "offset": (OffsetDecay(tsl=TSL), [TIMES, [0.1, -0.01, 0.3]], lambda t, k: np.exp(-t / k[0]) + k[1]),
    "two_decays": (
        BiExponential(te=TSL),
        [[0.2, 0.5, 0.35], [0.01, 0.015, 0.02], [0.05, 0.09, 0.13]],
        lambda t, k: k[0] * np.exp(-t / k[1]) + (1 - k[0]) * np.exp(-t / k[2]),
    ),
    "recovery": (
        InversionRecovery(ti=(0.05, 0.4, 0.9, 2.0)),
        [[1.9, 2.0, 1.8], [0.5, 0.9, 1.4]],
        lambda t, k: np.abs(1 - k[0] * np.exp(-t / k[1])),
    ),
    "flip_angles": (
        VariableFlipAngle(flip_angles=(0.05, 0.1, 0.2, 0.3), tr=0.02),
        [[0.5, 0.9, 1.4], [0.9, 1.0, 1.1]],
        lambda t, k: np.sin(t * k[1]) * (1 - np.exp(-0.02 / k[0])) / (1 - np.cos(t * k[1]) * np.exp(-0.02 / k[0])),
    ),
}


def maps(rows):
    return torch.tensor(rows, dtype=torch.float64)


def times_of(model):
    return model.flip_angles if isinstance(model, VariableFlipAngle) else model.times


def differences(constraint, images, kappa, pairs, relative=1e-5):
    """Central differences of the residual in each row."""
    rows = []
    for number in range(len(kappa)):
        step = torch.zeros_like(kappa)
        step[number] = relative * kappa[number].abs()
        up, down = (constraint.residual(images, kappa + sign * step, pairs) for sign in (1, -1))
        rows.append((up - down) / (2 * step[number]))
    return torch.stack(rows)


def test_pairs():
    assert constraint_pairs((0, 2, 5), "decaying") == ((2, 0), (5, 0), (5, 2))
    assert constraint_pairs((0, 2, 5)) == ((0, 2), (0, 5), (2, 0), (2, 5), (5, 0), (5, 2))
    # in the order of their times, whatever their numbers
    assert constraint_pairs((3, 1), "decaying") == ((1, 3),)
    for images in ((0,), (), (1, 1)):
        with pytest.raises(ValueError, match=r"images: .* at least two different"):
            constraint_pairs(images)


def test_pairs_refuse_an_unknown_order(unchecked):
    with pytest.raises(ValueError, match=r"order: .* choose both or decaying"):
        constraint_pairs((0, 1), "growing")


@pytest.mark.parametrize("name", CASES)
def test_images_without_noise_leave_no_residual(name):
    model, rows, formula = CASES[name]
    constraint, kappa = RelaxationConstraint(model), maps(rows)
    assert [row.name for row in constraint.rows] == [p.name for p in model.parameters if p.name != "A"]
    g = maps([formula(t, np.array(rows)).tolist() for t in times_of(model)])
    images = AMPLITUDE * g
    torch.testing.assert_close(constraint.signals(kappa), g, rtol=1e-12, atol=0)
    largest = (g[:, None] / g).abs().amax((0, 1))
    assert (constraint.residual(images, kappa, ALL).abs() <= 1e-13 * AMPLITUDE * largest).all()


@pytest.mark.parametrize("name", CASES)
def test_residual_and_slopes_of_wrong_maps(name):
    model, rows, formula = CASES[name]
    constraint, kappa = RelaxationConstraint(model), maps(rows)
    images = AMPLITUDE * torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = maps([formula(t, np.array(rows)).tolist() for t in times_of(model)])
    wanted = torch.stack([images[m] - images[n] * g[m] / g[n] for m, n in ALL])
    torch.testing.assert_close(constraint.residual(images, kappa, ALL), wanted, rtol=1e-11, atol=1e-11)
    slopes = constraint.slopes(images, kappa, ALL)
    numeric = differences(constraint, images, kappa, ALL)
    torch.testing.assert_close(slopes, numeric, rtol=2e-6, atol=2e-6 * float(numeric.abs().max()) * 1e-2)


def test_one_pair_by_hand():
    # I = (5, 2, 1, 3) and T = 20 ms: image 2 (30 ms) from image 1 (10 ms)
    constraint = RelaxationConstraint(SpinLock(tsl=TSL))
    images, kappa = maps([[5.0], [2.0], [1.0], [3.0]]), maps([[0.02]])
    assert constraint.residual(images, kappa, ((2, 1),)).item() == pytest.approx(1 - 2 * exp(-1), rel=1e-14)
    # d/dT of -2 exp(-.02 / T)
    assert constraint.slopes(images, kappa, ((2, 1),)).item() == pytest.approx(-2 * exp(-1) * 0.02 / 4e-4, rel=1e-14)


def test_single_precision_carries_large_quotients():
    """exp(50 / 5) of times that bounds allow, and quotients of signals that single precision cannot hold."""
    constraint = RelaxationConstraint(SpinLock(tsl=TSL))
    images = torch.tensor([[[[1.0]]], [[[0.5]]], [[[0.2]]], [[[0.1]]]])
    residual = constraint.residual(images, torch.full((1, 1, 1, 1), 0.005), ((0, 3),))
    assert residual.dtype == torch.float32
    assert residual.item() == pytest.approx(1 - 0.1 * exp(10), rel=1e-5)
    far = RelaxationConstraint(SpinLock(tsl=(1.0, 1.05)))
    # each signal is exp(-200) or less, which is 0 in single precision
    assert far.residual(torch.ones(2, 1), torch.full((1, 1), 0.005), ((1, 0),)).item() == pytest.approx(1 - exp(-10))


def test_batches_and_gradients():
    """Axes (n, b, y, x); the gradient of a loss through autograd is the slopes' sum."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 2, 3, 5, generator=generator, dtype=torch.float64)
    kappa = 0.02 + 0.1 * torch.rand(1, 2, 3, 5, generator=generator, dtype=torch.float64)
    constraint, leaf = RelaxationConstraint(SpinLock(tsl=TSL)), kappa.clone().requires_grad_()
    residual = constraint.residual(images, leaf, ALL)
    assert residual.shape == (12, 2, 3, 5)
    residual.abs().sum().backward()
    wanted = (constraint.slopes(images, kappa, ALL) * residual.detach().sign()).sum(1)
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-12, atol=0)
    # voxel by voxel, as though it stood alone
    alone = constraint.residual(images[:, 1, 2, 4], kappa[:, 1, 2, 4], ALL)
    assert torch.equal(residual[:, 1, 2, 4].detach(), alone)


class TestTwoContrasts:
    """T1rho and T2 of one series: images 0, 1, 2 are joined by T1rho, images 0, 3, 4 by T2, image 5 has both."""

    model = SpinLockT2Prep(tsl=(0.0, 0.01, 0.05, 0.0, 0.0, 0.03), te_prep=(0.0, 0.0, 0.0, 0.02, 0.045, 0.02))
    t1rho, t2 = 0.048, 0.032
    images = tuple(3.0 * exp(-tsl / 0.048 - te / 0.032) for tsl, te in zip(model.tsl, model.te_prep, strict=True))

    def test_rows_and_residuals(self):
        constraint = RelaxationConstraint(self.model)
        assert [row.name for row in constraint.rows] == ["T1RHO", "T2"]
        images, kappa = maps([self.images]).T, maps([[self.t1rho], [self.t2]])
        torch.testing.assert_close(3 * constraint.signals(kappa), images, rtol=1e-14, atol=0)
        every = constraint_pairs(tuple(range(6)))
        assert float(constraint.residual(images, kappa, every).abs().max()) < 1e-13
        # wrong times: I_5 from I_1, which differ in both
        wrong = constraint.residual(images, maps([[0.06], [0.05]]), ((5, 1),))
        wanted = self.images[5] - self.images[1] * exp(-0.02 / 0.06 - 0.02 / 0.05)
        assert wrong.item() == pytest.approx(wanted, rel=1e-13)
        slopes = constraint.slopes(images, kappa, every)
        torch.testing.assert_close(slopes, differences(constraint, images, kappa, every), rtol=1e-7, atol=1e-7)

    def test_pairs_of_one_contrast_say_nothing_of_the_other_time(self):
        constraint = RelaxationConstraint(self.model)
        images = maps([self.images]).T
        for row, joined in enumerate(((0, 1, 2), (0, 3, 4))):
            leaf = maps([[0.06], [0.05]]).requires_grad_()
            pairs = constraint_pairs(joined)
            constraint.residual(images, leaf, pairs).abs().sum().backward()
            assert leaf.grad[row] != 0
            assert leaf.grad[1 - row] == 0
            slopes = constraint.slopes(images, leaf.detach(), pairs)
            assert (slopes[row] != 0).all()
            assert (slopes[1 - row] == 0).all()


class TestSpinLockOffResonance:
    """A Bloch model with its fields and relaxation times as rows."""

    def exact(self, number):
        t1, t2, t1rho, delta_b0, rel_b1 = (row[number] for row in OFF_RESONANCE)
        voxel = Voxel(t1=t1, t2=t2, t1rho=t1rho, delta_b0=delta_b0, rel_b1=rel_b1)
        return [abs(cluster_mz("BSL", voxel, tsl, 400.0)) for tsl in TSL]

    def test_quotients_are_those_of_matrix_exponentials(self):
        constraint = RelaxationConstraint(LOCK)
        assert [row.name for row in constraint.rows] == ["T1", "T2", "T1RHO", "DELTA_B0", "REL_B1"]
        images = AMPLITUDE * maps([self.exact(number) for number in range(3)]).T
        residual = constraint.residual(images, maps(OFF_RESONANCE), ALL)
        assert float((residual / AMPLITUDE).abs().max()) < 1e-11
        # the closed form of the resonance does not explain them
        plain = RelaxationConstraint(SpinLock(tsl=TSL)).residual(images, maps(OFF_RESONANCE)[2:3], ALL)
        assert float((plain / AMPLITUDE).abs().amax(0).min()) > 0.005

    @pytest.mark.parametrize("cluster", ["SSL", "TRSL"])
    def test_gradients_reach_every_row(self, cluster):
        model = Bloch(preparation=SpinLockPreparation(cluster=cluster, tsl=TSL, fsl=400.0, pulse_b1=500.0), tr=2.0)
        self.check_gradients(RelaxationConstraint(model), maps(OFF_RESONANCE))

    def test_gradients_of_hard_pulses_and_of_t2rho(self):
        self.check_gradients(RelaxationConstraint(LOCK), maps(OFF_RESONANCE))
        rows = [*OFF_RESONANCE[:3], [0.035, 0.05, 0.07], *OFF_RESONANCE[3:]]
        locked = Bloch(preparation=LOCK.preparation, t2rho=True)
        self.check_gradients(RelaxationConstraint(locked), maps(rows))

    def check_gradients(self, constraint, kappa):
        images = torch.rand(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        numeric = differences(constraint, images, kappa, ALL, 1e-6)
        largest = float(numeric.abs().amax())
        with torch.no_grad():
            slopes = constraint.slopes(images, kappa, ALL)
        # rows differ in their units: each against its own size, down to rounding of the differences
        for slope, wanted in zip(slopes, numeric, strict=True):
            size = float(wanted.abs().max())
            torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-5 * size + 1e-9 * largest)
        leaf = kappa.clone().requires_grad_()
        residual = constraint.residual(images, leaf, ALL)
        residual.sum().backward()
        torch.testing.assert_close(leaf.grad, slopes.sum(1), rtol=1e-9, atol=1e-9 * largest)

    def test_gradients_are_finite_on_resonance(self):
        """In single precision too, and with the first lock without duration."""
        kappa = torch.tensor([0.8, 0.04, 0.05, 0.0, 1.0])[:, None].requires_grad_()
        RelaxationConstraint(LOCK).residual(torch.ones(4, 1), kappa, ALL).abs().sum().backward()
        assert torch.isfinite(kappa.grad).all()
        # a lock along the field: d/dT1rho of exp(-TSL / T1rho) as the closed form has it
        plain = torch.tensor([[0.05]]).requires_grad_()
        RelaxationConstraint(SpinLock(tsl=TSL)).residual(torch.ones(4, 1), plain, ALL).abs().sum().backward()
        assert kappa.grad[2].item() == pytest.approx(plain.grad.item(), rel=1e-2)


@dataclass(frozen=True)
class Stub:
    """A model made of the function it is given."""

    function: object
    parameters: tuple = (A, T2)
    n_images: int = 2

    def __call__(self, kappa):
        return self.function(*kappa)


class TestRefusals:
    def test_models(self):
        with pytest.raises(ValueError, match="model: has no row A"):
            RelaxationConstraint(Stub(lambda t: torch.stack((t, t)), (T2,)))
        for function in (
            lambda a, t: torch.stack((a / t, a**2)),
            lambda a, t: torch.stack((a / t, a + 1)),
            lambda a, t: torch.stack((a / t, sin(1) + 0 * a)),
            lambda a, t: torch.stack((a / t, a * float("nan"))),
        ):
            with pytest.raises(ValueError, match="model: its signal is not linear in A") as caught:
                RelaxationConstraint(Stub(function))
            assert "\n" not in str(caught.value)
        acquisition = Acquisition(lines=8, encoding="exact")
        readout = TurboSpinEcho(esp=0.005, acquisition=acquisition)
        with pytest.raises(ValueError, match="model: its readout mixes voxels"):
            RelaxationConstraint(Bloch(preparation=LOCK.preparation, readout=readout))

    def test_shapes_and_pairs(self):
        constraint = RelaxationConstraint(SpinLock(tsl=TSL))
        images, kappa = torch.ones(4, 2), torch.full((1, 2), 0.05)
        with pytest.raises(ValueError, match="images: got 3, the model has 4"):
            constraint.residual(images[:3], kappa, ALL)
        with pytest.raises(ValueError, match="kappa: has 2 rows; give T1RHO"):
            constraint.residual(images, kappa.expand(2, 2), ALL)
        with pytest.raises(ValueError, match="kappa: has 2 rows; give T1RHO"):
            constraint.slopes(images, kappa.expand(2, 2), ALL)
        with pytest.raises(ValueError, match="pairs: there is none"):
            constraint.residual(images, kappa, ())
        for pair in ((0, 4), (-1, 0), (2, 2)):
            with pytest.raises(ValueError, match=r"pairs: got .* two different images from 0 to 3"):
                constraint.residual(images, kappa, (pair,))

    def test_wrong_pairs_and_voxels(self, unchecked):
        constraint = RelaxationConstraint(SpinLock(tsl=TSL))
        images, kappa = torch.ones(4, 2), torch.full((1, 2), 0.05)
        for wrong in (constraint.residual, constraint.slopes):
            with pytest.raises(ValueError, match=r"^kappa: has voxels of shape \(3,\), the images \(2,\); give"):
                wrong(images, torch.full((1, 3), 0.05), ALL)
            for pair in ((0, 1, 2), (0.0, 1.0), (1,)):
                with pytest.raises(ValueError, match=r"^pairs: got .* two different images from 0 to 3"):
                    wrong(images, kappa, (pair,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    images, kappa = torch.rand(4, 2, 3, 5), torch.full((1, 2, 3, 5), 0.05)
    constraint = RelaxationConstraint(SpinLock(tsl=TSL))
    there = constraint.residual(images.cuda(), kappa.cuda(), ALL)
    torch.testing.assert_close(there.cpu(), constraint.residual(images, kappa, ALL))
