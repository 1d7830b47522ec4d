"""Relaxation times with their uncertainty, from stand-in networks whose answers are known in closed form."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from torch import nn

from qsim.errors import InputError
from qsim.estimators.base import Estimator, Status
from qsim.parameters import T1RHO, T2, C
from qsim.signals import SpinLock
from qsim.signals.constraint import RelaxationConstraint
from qsim.signals.joint_decay import SpinLockT2Prep
from trainers.relaxation.estimator import RelaxationEstimator, _reflected
from trainers.relaxation.uncertainty import delta_scale, dropout_active, sample

MODEL = SpinLock(tsl=(0.0, 0.03))


class TwoPoint(nn.Module):
    """T = t / log(I_first / I_later) of each contrast, a share of it through dropout; and one Laplace scale."""

    def __init__(self, drop=0.0, log_scale=None, multiple=1, shift=0.0, share=1.0):
        super().__init__()
        self.share = share
        self.drop, self.log_scale, self.multiple, self.shift = nn.Dropout(drop), log_scale, multiple, shift

    def forward(self, images, intervals):
        assert images.shape[-2] % self.multiple == 0
        assert images.shape[-1] % self.multiple == 0
        first, later = images[:, :1].clamp(min=1e-6), images[:, 1:].clamp(min=1e-6)
        times = intervals[:, :, None, None] / torch.log(first / later).clamp(min=1e-6)
        times = times.clamp(0.005, 0.5)
        answer = {"rows": self.drop(self.share * times) + (1 - self.share) * times + self.shift}
        if self.log_scale is not None:
            answer["log_scale"] = torch.full_like(times, self.log_scale)
        return answer


class Constant(nn.Module):
    """The same answer everywhere."""

    def __init__(self, time, b=None):
        super().__init__()
        self.time, self.b = time, b

    def forward(self, images, intervals):
        shape = (len(images), 1, *images.shape[-2:])
        answer = {"rows": torch.full(shape, self.time)}
        return answer if self.b is None else answer | {"log_scale": torch.full(shape, log(self.b))}


def series(times, a=1.0, shape=(12, 10), model=MODEL):
    """Images without noise; `times` a number or a map [s]."""
    t = torch.as_tensor(times, dtype=torch.float32).expand(shape)
    return model(torch.stack((torch.as_tensor(a).float().expand(shape), t)))


def estimator(*nets, **changes):
    options = {"model": MODEL, "rows": (T1RHO,), "samples": 0} | changes
    bounds = {row.name: (0.005, 0.5) for row in options["rows"] if row is not C}
    options = {"bounds": bounds} | options
    return RelaxationEstimator("standin", nets, **options)


def of_signal(images, rows, log_scale):
    return 2 * torch.exp(2 * log_scale)


def speckled(shape, seed=0):
    return 0.03 + 0.03 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------- dropout


def test_only_dropout_layers_are_put_into_train_mode_and_all_modes_come_back():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout2d(0.5), nn.Sequential(nn.AlphaDropout(0.2), nn.InstanceNorm2d(1)))
    net[2].train(False)
    before = [layer.training for layer in net.modules()]
    with dropout_active(net):
        assert [type(layer).__name__ for layer in net.modules() if layer.training] == ["Dropout2d", "AlphaDropout"]
    assert [layer.training for layer in net.modules()] == before
    with dropout_active(net, False):
        assert not any(layer.training for layer in net.modules())
    with pytest.raises(ValueError, match="4D"), dropout_active(net):
        net(torch.zeros(2))
    assert [layer.training for layer in net.modules()] == before


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(2), nn.Dropout(0.5)

    def forward(self, images, intervals):
        return {"rows": self.drop(self.norm(images))[:, :1]}


def test_sampling_leaves_the_running_statistics_of_batch_normalisation_alone():
    net = Normalised()
    net.norm.running_mean.fill_(0.25)
    net.norm.running_var.fill_(4.0)
    images = torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    found = sample((net,), images, torch.full((1, 1), 0.03), 400, 0, (0,), of_signal)
    assert net.norm.running_mean.tolist() == [0.25, 0.25]
    assert net.norm.running_var.tolist() == [4.0, 4.0]
    assert int(net.norm.num_batches_tracked) == 0
    # and it normalises by them, not by the batch: (x - 1/4) / 2
    expected = (images[:, :1] - 0.25) / 2
    assert abs(float((found.mean - expected).mean())) < 0.005
    assert float((found.mean - expected).abs().max()) < 5 * 0.375 / 400**0.5


@pytest.mark.parametrize(("p", "samples"), [(0.25, 20), (0.1, 5)])
def test_variance_of_dropout_is_that_of_its_mask(p, samples):
    # y = T m / (1 - p), m = 0 or 1: var p / (1 - p) T^2; of K samples about their own mean (K - 1) / K of it
    t = 0.05
    found = estimator(TwoPoint(drop=p), samples=samples)(series(t, shape=(128, 128)))
    assert set(found.variances) == {"epistemic"}
    expected = (samples - 1) / samples * p / (1 - p) * t**2
    assert float(found.variances["epistemic"].mean()) == pytest.approx(expected, rel=0.02)
    assert float(found.kappa.mean()) == pytest.approx(t, rel=0.01)
    assert float(found.kappa.var()) == pytest.approx(p / (1 - p) * t**2 / samples, rel=0.1)


def test_without_samples_it_is_one_plain_pass():
    found = estimator(TwoPoint(drop=0.5).train())(series(0.05))
    assert found.variances == {}
    torch.testing.assert_close(found.kappa, torch.full_like(found.kappa, 0.05), rtol=1e-4, atol=0)


def test_draws_depend_on_seed_and_slice_and_leave_the_global_state_alone():
    stack = series(0.05, shape=(3, 12, 10))
    mapped = estimator(TwoPoint(drop=0.3), samples=4)
    state = torch.random.get_rng_state()
    first = mapped(stack)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(mapped(stack).kappa, first.kappa)
    assert not torch.equal(first.kappa[:, 0], first.kappa[:, 1])
    assert not torch.equal(replace(mapped, seed=1)(stack).kappa, first.kappa)


def test_the_same_answer_whether_slices_come_together_or_one_by_one():
    stack = series(speckled((4, 13, 11)), shape=(4, 13, 11))
    mapped = estimator(TwoPoint(drop=0.3, log_scale=-4.0, multiple=4, share=0.5), samples=3)
    together = mapped(stack)
    halves = [replace(mapped, first_slice=i)(stack[:, i : i + 2]) for i in (0, 2)]
    single = [replace(mapped, first_slice=i)(stack[:, i]) for i in range(4)]
    for name in ("aleatoric", "epistemic"):
        assert torch.equal(together.variances[name], torch.cat([each.variances[name] for each in halves], 1))
        assert torch.equal(together.variances[name], torch.stack([each.variances[name] for each in single], 1))
    assert torch.equal(together.kappa, torch.cat([each.kappa for each in halves], 1))
    assert torch.equal(together.kappa, torch.stack([each.kappa for each in single], 1))


# ------------------------------------------------------------------------------------------ ensembles


def test_an_ensemble_by_arithmetic():
    nets = (Constant(0.03, 0.01), Constant(0.04, 0.02), Constant(0.08, 0.03))
    found = sample(nets, torch.ones(2, 2, 3, 3), torch.full((2, 1), 0.03), 0, 0, (0, 1), of_signal)
    # mean 50 ms; squares of -20, -10 and 30 ms; 2 (1 + 4 + 9) / 3 1e-4
    torch.testing.assert_close(found.mean, torch.full((2, 1, 3, 3), 0.05))
    torch.testing.assert_close(found.epistemic, torch.full((2, 1, 3, 3), 1400e-6 / 3))
    torch.testing.assert_close(found.aleatoric, torch.full((2, 1, 3, 3), 28e-4 / 3))


def test_an_ensemble_of_dropout_networks_adds_both_spreads():
    # T m / (1 - p) with p = .2 at T = 50 ms, shifted by 0 and 20 ms: .25 T^2 within, 10 ms^2 between, over all 2 K
    samples, t = 50, 0.05
    nets = (TwoPoint(drop=0.2), TwoPoint(drop=0.2, shift=0.02))
    found = estimator(*nets, samples=samples)(series(t, shape=(64, 64)))
    expected = 0.25 * t**2 * (1 - 1 / (2 * samples)) + 0.01**2
    assert float(found.variances["epistemic"].mean()) == pytest.approx(expected, rel=0.01)
    assert float(found.kappa.mean()) == pytest.approx(t + 0.01, rel=0.005)


def test_networks_of_an_ensemble_draw_apart():
    same = estimator(TwoPoint(drop=0.5), TwoPoint(drop=0.5), samples=1)(series(0.05, shape=(64, 64)))
    # two draws of 0 or 2 T: variance T^2 where they differ, in half of the voxels
    assert float(same.variances["epistemic"].mean()) == pytest.approx(0.5 * 0.05**2, rel=0.05)


def test_some_with_a_scale_and_some_without_are_refused():
    with pytest.raises(InputError, match=r"^nets: some tell a scale"):
        estimator(Constant(0.03, 0.01), Constant(0.04))(series(0.05))


# --------------------------------------------------------------------------------------- delta method


def laplace(shape, b, seed):
    return torch.from_numpy(np.random.default_rng(seed).laplace(scale=b, size=shape)).float()


@pytest.mark.parametrize("gap", [0.01, 0.05])
def test_stated_sd_is_that_of_many_noisy_two_point_estimates(gap):
    b, t, model = 0.001, 0.045, SpinLock(tsl=(0.0, gap))
    images = series(t, shape=(200, 200), model=model)
    # half as bright on the left: the same noise makes twice the error
    images[..., :100] *= 0.5
    images[1] += laplace((200, 200), b, 3)
    found = estimator(TwoPoint(log_scale=log(b)), model=model)(images)
    sides = []
    for half in (slice(0, 100), slice(100, None)):
        measured = float(found.kappa[0, :, half].double().std())
        stated = float(found.variances["aleatoric"][0, :, half].double().mean().sqrt())
        assert stated == pytest.approx(measured, rel=0.05)
        sides.append(stated)
    assert sides[0] / sides[1] == pytest.approx(2, rel=0.05)


def test_delta_scale_of_one_pair_is_the_closed_form():
    t, later, first, b = 0.04, 0.03, 0.8, 0.01
    images = torch.tensor([[first], [first * exp(-later / t)]], dtype=torch.float64)
    found = delta_scale(
        RelaxationConstraint(SpinLock(tsl=(0.0, later))),
        ((1, 0),),
        images,
        torch.tensor([[t]], dtype=torch.float64),
        torch.tensor([log(b)], dtype=torch.float64),
        (0.495,),
    )
    # |dr/dT| = I_0 t exp(-t / T) / T^2
    assert float(found) == pytest.approx(b * t**2 / (first * later * exp(-later / t)), rel=1e-12)


def test_delta_scale_of_several_pairs_takes_their_root_mean_square():
    t, times, b = 0.04, (0.0, 0.01, 0.03), 0.02
    images = torch.tensor([[exp(-time / t)] for time in times], dtype=torch.float64)
    slopes = [exp(-time / t) * time / t**2 for time in times[1:]]
    found = delta_scale(
        RelaxationConstraint(SpinLock(tsl=times)),
        ((1, 0), (2, 0)),
        images,
        torch.tensor([[t]], dtype=torch.float64),
        torch.tensor([log(b)], dtype=torch.float64),
        (0.495,),
    )
    assert float(found) == pytest.approx(b / ((slopes[0] ** 2 + slopes[1] ** 2) / 2) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("log_scale", [-1000.0, -3.5, 1000.0])
def test_where_the_images_say_nothing_the_sd_is_the_width_of_the_range(log_scale):
    constraint = RelaxationConstraint(SpinLock(tsl=(0.0, 0.03)))
    found = delta_scale(
        constraint, ((1, 0),), torch.zeros(2, 1), torch.tensor([[0.04]]), torch.tensor([log_scale]), (0.495,)
    )
    assert 2**0.5 * float(found) == pytest.approx(0.495, rel=1e-6)


def test_air_has_a_finite_sd_in_the_map():
    images = series(0.05, shape=(20, 20))
    images[:, :, 10:] = 0.0
    images[1, :, 10:] = 1e-9
    found = estimator(TwoPoint(log_scale=-3.0))(images)
    sd = found.variances["aleatoric"][0].sqrt()
    torch.testing.assert_close(sd[:, 10:], torch.full((20, 10), 0.495))
    assert float(sd[:, :10].max()) < 0.2


def test_literal_is_equation_9_in_signal_units():
    found = estimator(TwoPoint(log_scale=-3.0), units="literal")(series(0.05))
    torch.testing.assert_close(found.variances["aleatoric"], torch.full((1, 12, 10), exp(-6.0)))


def test_calibration_multiplies_both_sds():
    plain = estimator(TwoPoint(drop=0.2, log_scale=-4.0, share=0.5), samples=4)
    images = series(0.05)
    before, after = plain(images), replace(plain, calibration={"T1RHO": 1.5})(images)
    assert torch.equal(before.kappa, after.kappa)
    for name in ("aleatoric", "epistemic"):
        torch.testing.assert_close(after.variances[name], 2.25 * before.variances[name])


# ------------------------------------------------------------------------------------------ the series


def test_it_is_an_estimator_and_maps_slices_and_stacks():
    mapped = estimator(TwoPoint())
    assert isinstance(mapped, Estimator)
    assert mapped.parameters == (T1RHO,)
    truth = speckled((3, 14, 9))
    found = mapped(series(truth, shape=(3, 14, 9)), 0.01)
    torch.testing.assert_close(found.kappa[0], truth, rtol=1e-4, atol=0)
    assert (found.status == Status.OK).all()
    assert found.kappa.dtype == torch.float32
    assert mapped(series(truth[0], shape=(14, 9)).double()).kappa.dtype == torch.float64


@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_the_unit_of_the_images_does_not_matter(factor):
    images = series(speckled((2, 16, 16)), shape=(2, 16, 16), a=speckled((2, 16, 16), 4) * 20)
    images += laplace(images.shape, 0.01, 1)
    images[1, :, :2] = 0.0
    mapped = estimator(TwoPoint(drop=0.2, log_scale=-4.0, share=0.5), samples=5)
    once, other = mapped(images), mapped(images * factor)
    assert torch.equal(once.status, other.status)
    torch.testing.assert_close(other.kappa, once.kappa, rtol=1e-3, atol=0)
    for name in ("aleatoric", "epistemic"):
        torch.testing.assert_close(other.variances[name], once.variances[name], rtol=5e-3, atol=1e-12)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_sides_are_continued_by_reflection(size, multiple):
    more = -size % multiple
    np.testing.assert_array_equal(_reflected(size, multiple).numpy(), np.pad(np.arange(size), (0, more), "reflect"))


@pytest.mark.parametrize("shape", [(13, 9), (2, 3, 21), (5, 16, 8)])
def test_any_size_is_padded_and_cropped(shape):
    truth = speckled(shape)
    found = estimator(TwoPoint(multiple=8))(series(truth, shape=shape))
    torch.testing.assert_close(found.kappa[0], truth, rtol=1e-4, atol=0)


def test_images_in_another_order_are_put_right():
    truth = speckled((8, 8))
    swapped = SpinLock(tsl=(0.03, 0.0))
    found = estimator(TwoPoint(), model=swapped)(series(truth, shape=(8, 8), model=swapped))
    torch.testing.assert_close(found.kappa[0], truth, rtol=1e-4, atol=0)


def test_status_of_voxels():
    images = series(speckled((10, 10)), shape=(10, 10))
    images[:, 0, 0] = 0.0
    images[1, 0, 1] = torch.nan
    images[1, 0, 2] = images[0, 0, 2]
    images[1, 0, 3] = images[0, 0, 3] * exp(-0.03 / 0.004)
    mask = torch.ones(10, 10, dtype=torch.bool)
    mask[0, 4] = False
    found = estimator(TwoPoint(log_scale=-4.0))(images, mask=mask)
    wanted = [Status.NOT_COMPUTED, Status.NOT_COMPUTED, Status.AT_BOUND, Status.AT_BOUND, Status.NOT_COMPUTED]
    assert found.status[0, :5].tolist() == wanted
    assert (found.status.flatten()[5:] == Status.OK).all()
    missing = found.status == Status.NOT_COMPUTED
    assert torch.equal(found.kappa[0].isnan(), missing)
    assert torch.equal(found.variances["aleatoric"][0].isnan(), missing)


def test_at_bound_is_within_a_thousandth():
    for time, status in ((0.0050049, Status.AT_BOUND), (0.005006, Status.OK), (0.4996, Status.AT_BOUND)):
        assert (estimator(Constant(time))(series(0.05)).status == status).all()


def test_a_network_that_diverged_has_computed_nothing():
    found = estimator(Constant(float("nan")))(series(0.05))
    assert (found.status == Status.NOT_COMPUTED).all()


def test_a_slice_too_dark_to_be_normalised_is_not_computed():
    stack = series(0.05, shape=(2, 20, 20))
    stack[:, 1] = 0.0
    stack[:, 1, 3, 3] = 1.0
    found = estimator(TwoPoint())(stack)
    assert (found.status[0] == Status.OK).all()
    assert (found.status[1] == Status.NOT_COMPUTED).all()
    assert (estimator(TwoPoint())(stack[:, 1]).status == Status.NOT_COMPUTED).all()


def test_two_contrasts_have_each_their_own_time_slope_and_scale():
    t1rho, t2, model = 0.045, 0.035, SpinLockT2Prep(tsl=(0.0, 0.03, 0.0), te_prep=(0.0, 0.0, 0.0346))

    class Both(TwoPoint):
        def forward(self, images, intervals):
            answer = super().forward(images, intervals)
            answer["log_scale"] = torch.stack([torch.full_like(images[:, 0], log(b)) for b in (0.001, 0.002)], 1)
            return answer

    later = torch.tensor([1.0, exp(-0.03 / t1rho), exp(-0.0346 / t2)])
    images = later[:, None, None].expand(-1, 8, 8).contiguous()
    found = estimator(Both(), model=model, rows=(T1RHO, T2))(images)
    for row, (t, b, gap) in enumerate(((t1rho, 0.001, 0.03), (t2, 0.002, 0.0346))):
        assert float(found.kappa[row].mean()) == pytest.approx(t, rel=1e-4)
        expected = 2 * (b * t**2 / (gap * exp(-gap / t))) ** 2
        assert float(found.variances["aleatoric"][row].mean()) == pytest.approx(expected, rel=1e-3)

    class Second(Both):
        def forward(self, images, intervals):
            return {name: maps[:, 1:] for name, maps in super().forward(images, intervals).items()}

    # a network that learned T2 alone from these three images tells the scale of that contrast alone
    alone = estimator(Second(), model=model, rows=(T2,))(images)
    torch.testing.assert_close(alone.variances["aleatoric"][0], found.variances["aleatoric"][1])


def test_a_row_that_is_no_relaxation_time_has_no_aleatoric_variance():
    class WithConstant(TwoPoint):
        def forward(self, images, intervals):
            answer = super().forward(images, intervals)
            return answer | {"rows": torch.cat((answer["rows"], 0 * answer["rows"]), 1)}

    found = estimator(WithConstant(log_scale=-4.0), rows=(T1RHO, C))(series(0.05))
    assert torch.isfinite(found.variances["aleatoric"][0]).all()
    assert found.variances["aleatoric"][1].isnan().all()
    assert (found.status == Status.OK).all()


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": -1}, r"^samples: must not be negative, got -1; give 0 or more"),
        ({"samples": 20}, r"^samples: standin has no dropout to draw from; give samples=0"),
        ({"seed": -1}, r"^seed: must not be negative"),
        ({"units": "ms"}, r"^units: wanted delta or literal, got 'ms'"),
        ({"calibration": {"T2": 1.0}}, r"^calibration\.T2: standin has no such row, it has T1RHO"),
        ({"calibration": {"T1RHO": 0.0}}, r"^calibration\.T1RHO: must be finite and positive"),
        ({"bounds": {"T1RHO": (0.5, 0.005)}}, r"^bounds\.T1RHO: the lower one must be below"),
        ({"model": SpinLock(tsl=(0.0, 0.01, 0.03))}, r"^model: its 3 images make 2 inputs"),
        ({"trained_intervals": ()}, r"^trained_intervals: 0 of 1 contrasts"),
    ],
)
def test_what_cannot_be_mapped_is_refused(unchecked, changes, message):
    with pytest.raises(InputError, match=message):
        estimator(TwoPoint(), **changes)


def test_no_network_is_refused():
    with pytest.raises(InputError, match=r"^nets: none was given"):
        estimator()


@pytest.mark.parametrize(("later", "fits"), [(0.0079, False), (0.0081, True), (0.0599, True), (0.0601, False)])
def test_an_interval_outside_the_training_is_refused(later, fits):
    options = {"model": SpinLock(tsl=(0.0, later)), "trained_intervals": ((0.01, 0.05),)}
    if fits:
        estimator(TwoPoint(), **options)
        return
    with pytest.raises(InputError, match=r"^times: .* of T1RHO; standin was trained on 10 to 50 ms; take images"):
        estimator(TwoPoint(), **options)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.ones(3, 8, 8), {}, r"^images: the series holds 3 images"),
        (torch.ones(2, 8), {}, r"^images: a series of slices"),
        (
            torch.ones(2, 8, 8, dtype=torch.int16),
            {},
            r"^images: real floating-point .*, got torch.int16",
        ),
        (torch.ones(2, 8, 8), {"known": {"B": torch.tensor(1.0)}}, r"^known: B cannot be used by standin"),
        (torch.ones(2, 8, 8), {"mask": torch.ones(8, 7, dtype=torch.bool)}, r"^mask: has shape \(8, 7\)"),
    ],
)
def test_a_series_that_does_not_fit_is_refused(unchecked, images, options, message):
    with pytest.raises(InputError, match=message):
        estimator(TwoPoint())(images, **options)


def test_rows_that_the_network_does_not_answer_are_refused():
    with pytest.raises(InputError, match=r"^rows: the network answers 1 rows, 2 were named"):
        estimator(TwoPoint(), rows=(T1RHO, T2))(series(0.05))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch finds none here")
def test_on_a_device_the_map_is_that_of_the_cpu_and_repeats():
    images = series(speckled((2, 13, 9)), shape=(2, 13, 9))
    there = estimator(TwoPoint(drop=0.3, log_scale=-4.0, multiple=4, share=0.5), device=torch.device("cuda"))
    here = replace(there, device=torch.device("cpu"))(images)
    torch.testing.assert_close(there(images).kappa, here.kappa, rtol=1e-4, atol=0)
    torch.testing.assert_close(there(images.cuda()).kappa.cpu(), here.kappa, rtol=1e-4, atol=0)
    sampled = replace(there, samples=4)
    assert torch.equal(sampled(images).kappa, sampled(images).kappa)
    assert torch.equal(sampled(images).kappa[:, 1], replace(sampled, first_slice=1)(images[:, 1]).kappa)
