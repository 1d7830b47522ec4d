"""Learning through the relaxation constraint: its losses by arithmetic, its pairs, and that it learns."""

import io
from dataclasses import replace
from itertools import permutations
from math import exp, log

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from qsim.errors import InputError
from qsim.parameters import T1RHO, T2
from qsim.signals import (
    BiExponential,
    Bloch,
    InversionRecovery,
    OffsetDecay,
    SpinLock,
    SpinLockPreparation,
    SpinLockT2Prep,
)
from trainers.checkpoint import load_tensors
from trainers.config import TrainConfig
from trainers.data import Batch
from trainers.fit import fit
from trainers.networks.relaxation.two_stream import TwoStreamNetwork
from trainers.networks.relaxation.unet import UNetNetwork
from trainers.relaxation.cohort import Cohort
from trainers.relaxation.contrasts import inputs, joint_scale
from trainers.relaxation.moving import Augmentation
from trainers.relaxation.source import cohort_source
from trainers.relaxation.task import RelaxationLearning
from trainers.relaxation.task_config import Corruption, SelfSupervisedTask

TSL = (0.0, 0.01, 0.03, 0.05)
LOCKED = SpinLock(tsl=TSL)
BOTH = SpinLockT2Prep(tsl=(*TSL, 0.0, 0.0, 0.0), te_prep=(0.0, 0.0, 0.0, 0.0, 0.01, 0.02, 0.04))
UNET = {"kind": "unet", "features": 4, "levels": 2, "up": "bilinear", "dropout": 0.0, "scale": "none"}


def circles(n=6, side=16, slices=1, model=LOCKED):
    """Subjects of a circle of 25 to 35 ms in a body of 80 to 100 ms, in air; without noise, A brighter from left to
    right.
    """
    y, x = np.indices((side, side)) - (side - 1) / 2
    generator = np.random.default_rng(7)
    subject = np.repeat(np.arange(n), slices)
    body = np.hypot(y, x) < 0.47 * side
    middle = np.hypot(y, x) < 0.25 * side
    truth = np.stack(
        [np.where(middle, 0.025 + 0.01 * generator.random(), 0.08 + 0.02 * generator.random()) * body for _ in subject]
    )
    kappa = torch.from_numpy(np.stack([np.broadcast_to(0.6 + 0.3 * x / side, truth.shape) * body, truth])).float()
    if isinstance(model, SpinLockT2Prep):
        kappa = torch.cat((kappa, 0.7 * kappa[1:]))
    times = torch.where(kappa == 0, 1.0, kappa)
    images = (model(times) * torch.from_numpy(body)).movedim(0, 1).contiguous()
    inside = torch.from_numpy(body).expand(len(subject), side, side)
    roi = torch.from_numpy(middle).expand(len(subject), side, side)
    rows = [row.name for row in model.parameters]
    return Cohort(
        name="circles",
        images=images,
        model=model,
        subject=torch.from_numpy(subject),
        roi=roi,
        body=inside,
        spacing_mm=(1.0, 1.0),
        digest="circles",
        truth=dict(zip(rows, kappa, strict=True)),
        sigma=torch.full((len(subject),), 0.01),
    )


def config(task=None, network=None, **changes):
    mapping = {
        "seed": 1,
        "data": {"cohort": {"store": "/somewhere/circles.zarr", "folds": 2, "validation": 1}},
        "task": {"kind": "self_supervised", "augment": None} | (task or {}),
        "network": UNET | (network or {}),
        "iterations": 60,
        "batch": 3,
        "lr": 0.02,
        "precision": "fp32",
        "validate_every": 1000,
    }
    return TrainConfig.model_validate(mapping | changes)


def train(folder, cfg, cohort, resume=False):
    source = cohort_source(cohort, cfg.data.cohort, cfg.task.supervision)
    fit(cfg, folder, device="cpu", console=Console(file=io.StringIO()), source=source, resume=resume)
    learning = RelaxationLearning(cfg.task, cfg.network, cohort.model, source.rows, cfg.seed)
    net = cfg.network.build(cohort.model, learning.parameters, torch.Generator())
    tensors, _ = load_tensors(folder / "model.safetensors")
    net.load_state_dict({name.removeprefix("net/"): each for name, each in tensors.items()})
    return net.requires_grad_(False).eval(), learning


def batch_of(cohort, numbers=None, positions=None):
    """Slices of a cohort as training examples."""
    chosen = list(range(len(cohort.images)) if numbers is None else numbers)
    return Batch(
        images=cohort.images[chosen],
        kappa=torch.stack([row[chosen] for row in cohort.truth.values()], 1),
        labels=cohort.body[chosen].to(torch.uint8),
        purity=cohort.body[chosen].float(),
        sigma=cohort.sigma[chosen],
        positions=torch.tensor(chosen if positions is None else positions),
    )


class Said(nn.Module):
    """A network that says what it is given, and remembers what it saw."""

    def __init__(self, rows, log_scale=None):
        super().__init__()
        self.rows = rows
        self.log_scale = None if log_scale is None else nn.Parameter(torch.tensor(log_scale))
        self.seen = []

    def forward(self, images, intervals):
        self.seen.append((images, intervals))
        b, _, height, width = images.shape
        found = {"rows": self.rows.expand(b, -1, height, width)}
        if self.log_scale is not None:
            found["log_scale"] = self.log_scale[None, :, None, None].expand(b, -1, height, width)
        return found


# ------------------------------------------------------------------------------------------- losses by hand

# 2 x 2 voxels of 3 images at 0, 10 and 30 ms, and the T1rho that a network says [ms]
FOUR = np.array([[[1.0, 0.8], [0.5, 0.9]], [[0.7, 0.6], [0.4, 0.5]], [[0.3, 0.3], [0.2, 0.4]]])
SAYS = np.array([[30.0, 40.0], [50.0, 20.0]]) / 1e3
THREE = SpinLock(tsl=TSL[:3])


def four(model=THREE, images=FOUR):
    held = torch.from_numpy(images).float()[None]
    ones = torch.ones(1, 2, 2)
    return Batch(
        images=held,
        kappa=torch.zeros(1, 0, 2, 2),
        labels=ones.to(torch.uint8),
        purity=ones,
        sigma=torch.zeros(1),
        positions=torch.tensor([0]),
    )


def learning(model, maps=(), network=None, seed=0, **task):
    return RelaxationLearning(
        SelfSupervisedTask(**{"augment": None} | task), network or UNetNetwork(), model, maps, seed
    )


def error_by_hand(images, says, times, pairs, scale):
    """Mean over pairs of |I_m - I_n exp((t_n - t_m) / T)| of each voxel."""
    return sum(np.abs(images[m] - images[n] * np.exp((times[n] - times[m]) / says)) for m, n in pairs) / (
        len(pairs) * scale
    )


SIX = list(permutations(range(3), 2))
# the 99th percentile of the first image: linear between the third and the fourth of the sorted values
TOP = np.quantile(FOUR[0], 0.99)


def test_equation_4_of_the_task_by_hand():
    net = Said(torch.from_numpy(SAYS).float()[None, None])
    found = learning(THREE).loss(net, four())["total"]
    wanted = error_by_hand(FOUR, SAYS, TSL, SIX, TOP).mean()
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    # the network saw the first two images over one number, and 10 ms
    ((seen, interval),) = net.seen
    np.testing.assert_allclose(seen[0].numpy(), FOUR[:2] / TOP, rtol=1e-6)
    assert interval.tolist() == [pytest.approx([0.01])]


def test_equation_8_of_the_task_by_hand():
    net = Said(torch.from_numpy(SAYS).float()[None, None], [-1.2])
    found = learning(THREE, order="decaying").loss(net, four())["total"].detach()
    error = error_by_hand(FOUR, SAYS, TSL, [(1, 0), (2, 0), (2, 1)], TOP)
    assert float(found) == pytest.approx(float((error / exp(-1.2) - 1.2).mean()), rel=1e-5)


def test_equation_5_sums_both_contrasts_with_their_weights():
    model = SpinLockT2Prep(tsl=(0.0, 0.01, 0.03, 0.0, 0.0), te_prep=(0.0, 0.0, 0.0, 0.02, 0.04))
    images = np.concatenate((FOUR, FOUR[1:] * 0.8))
    says = np.stack((SAYS, 0.6 * SAYS))
    net = Said(torch.from_numpy(says).float()[None], [-1.0, -2.0])
    found = learning(model, weights={"T2": 0.25}).loss(net, four(model, images))["total"].detach()
    locked = error_by_hand(images, SAYS, TSL, SIX, TOP)
    prepared = error_by_hand(images[[0, 3, 4]], 0.6 * SAYS, (0.0, 0.02, 0.04), SIX, TOP)
    wanted = (locked / exp(-1) - 1).mean() + 0.25 * (prepared / exp(-2) - 2).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert net.seen[0][1].tolist() == [pytest.approx([0.01, 0.02])]


def test_homou_ends_at_the_mean_absolute_residual_and_can_begin_there():
    batch, task = four(), learning(THREE)
    wanted = error_by_hand(FOUR, SAYS, TSL, SIX, TOP).mean()
    net = Said(torch.from_numpy(SAYS).float()[None, None], [-3.5])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(90):
        optimiser.zero_grad()
        task.loss(net, batch)["total"].backward()
        optimiser.step()
    assert float(net.log_scale.detach().exp()) == pytest.approx(wanted, rel=1e-2)
    other = Said(torch.from_numpy(SAYS).float()[None, None], [5.0])
    task.begin(other, batch)
    assert float(other.log_scale.detach().exp()) == pytest.approx(wanted, rel=1e-5)
    assert other.training


def test_a_contrast_that_is_scaled_in_the_loss_is_seen_as_it_is():
    says = torch.from_numpy(SAYS).float()[None, None]
    plain, worse = Said(says, [0.0]), Said(says, [0.0])
    first = learning(THREE).loss(plain, four())["total"].detach()
    then = learning(THREE, corrupt=Corruption(row="T1RHO", scale=1e4)).loss(worse, four())["total"].detach()
    assert float(then) == pytest.approx(1e4 * float(first), rel=1e-4)
    assert torch.equal(plain.seen[0][0], worse.seen[0][0])


# ------------------------------------------------------------------------------------------- what is shown


def test_one_number_for_all_images_keeps_the_decay_and_one_for_each_would_not():
    images = torch.from_numpy(FOUR).float()[None]
    scale = joint_scale(images[:, :2])
    assert scale.flatten().tolist() == pytest.approx([TOP])
    scaled = images / scale
    ratio = torch.log(scaled[:, 0] / scaled[:, 1])
    torch.testing.assert_close(ratio, torch.log(images[:, 0] / images[:, 1]))
    apart = images / images.flatten(2).amax(2)[..., None, None]
    # 1 / 0.7 is lost: all of the decay of the brightest voxel
    assert float(torch.log(apart[:, 0] / apart[:, 1])[0, 0, 0]) == pytest.approx(0.0)
    assert float(ratio[0, 0, 0]) == pytest.approx(log(1 / 0.7))
    assert joint_scale(torch.zeros(1, 2, 3, 3)).item() == 1.0


@pytest.mark.parametrize(("model", "wanted"), [(LOCKED, 3), (BOTH, 3)])
def test_every_batch_of_a_training_holds_all_inputs(model, wanted, tmp_path, monkeypatch):
    held = []
    given = RelaxationLearning.shown

    def shown(self, batch, training):
        found = given(self, batch, training)
        if training:
            held.append({tuple(each) for each in found[3].tolist()})
        return found

    monkeypatch.setattr(RelaxationLearning, "shown", shown)
    train(tmp_path / "run", config(iterations=5, batch=4), circles(n=12, model=model))
    assert len(held) == 5
    assert {len(each) for each in held} == {wanted}


# ------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("constraints", "order", "wanted"),
    [
        ("all", "both", set(permutations(range(4), 2))),
        ("all", "decaying", {(m, n) for m in range(4) for n in range(m)}),
        ("without_inputs", "both", set(permutations(range(4), 2)) - {(0, 2), (2, 0)}),
        ("independent", "both", {(1, 3), (3, 1)}),
        ("independent", "decaying", {(3, 1)}),
    ],
)
def test_which_pairs_are_in_the_loss_of_the_input_0_2(constraints, order, wanted):
    task = learning(LOCKED, constraints=constraints, order=order)
    assert task.inputs == inputs(LOCKED) == ((0, 1), (0, 2), (0, 3))
    (pairs,), (counted,) = task.pairs, task.counted[1]
    assert {pair for pair, said in zip(pairs, counted, strict=True) if said} == wanted


def test_pairs_of_two_contrasts_leave_out_what_the_input_holds_of_each():
    task = learning(BOTH, constraints="independent", order="decaying")
    assert task.inputs == ((0, 1, 4), (0, 2, 5), (0, 3, 6))
    found = [
        {pair for pair, said in zip(pairs, counted, strict=True) if said}
        for pairs, counted in zip(task.pairs, task.counted[0], strict=True)
    ]
    assert found == [{(3, 2)}, {(6, 5)}]


@pytest.mark.parametrize(("constraints", "images"), [("independent", 2), ("independent", 3), ("without_inputs", 2)])
def test_where_no_pair_is_left(constraints, images):
    with pytest.raises(InputError, match=r"^task\.constraints: .*take all, or more images$"):
        learning(SpinLock(tsl=TSL[:images]), constraints=constraints)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"rows": ("T2",)}, "rows"),
        ({"weights": {"T2": 1.0}}, "weights"),
        ({"weights": {"T1RHO": 0.0}}, "weights: all are 0"),
        ({"relaxation": InversionRecovery(ti=(0.0, 0.01, 0.03, 0.05))}, "relaxation: InversionRecovery is no decay"),
        ({"corrupt": Corruption(row="T2")}, r"corrupt\.row"),
        ({"inputs": ((0, 0),)}, "inputs"),
        ({"inputs": ((1, 0),)}, "inputs"),
        ({"inputs": ((0, 1, 2),)}, "inputs"),
        ({"relaxation": OffsetDecay(tsl=(0.0, 0.02, 0.03, 0.05))}, "relaxation"),
    ],
)
def test_what_the_series_does_not_have(task, field):
    with pytest.raises(InputError, match=rf"^task\.{field}"):
        learning(LOCKED, **task)


def test_a_weight_or_a_scale_that_acts_on_nothing():
    with pytest.raises(InputError, match=r"^task\.weights: T2 is not learned, T1RHO is"):
        learning(BOTH, rows=("T1RHO",), weights={"T2": 2.0})
    with pytest.raises(InputError, match=r"^task\.beta: .* network\.scale is none"):
        learning(LOCKED, network=UNetNetwork(scale="none"), beta=1.0)
    for supervision in ("fit", "truth"):
        with pytest.raises(InputError, match=rf"^network\.scale: head learns nothing with supervision: {supervision}"):
            learning(LOCKED, supervision=supervision)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ((0.02,), r"^model: 1 image\(s\) at 20 ms alone tell no T1RHO"),
        ((0.02, 0.02), r"^model: 2 image\(s\) at 20 ms alone tell no T1RHO"),
        ((0.02, 0.0, 0.0), r"^model: images 1 and 2 are both at 0 ms.*give task\.inputs"),
    ],
)
def test_images_of_one_time_make_no_input(times, said):
    with pytest.raises(InputError, match=said):
        learning(SpinLock(tsl=times))


def test_inputs_of_a_series_with_one_time_twice():
    model = SpinLock(tsl=(0.02, 0.0, 0.0))
    assert learning(model, inputs=((1, 0), (2, 0))).inputs == ((1, 0), (2, 0))


def test_a_shift_out_of_sight_is_refused():
    cohort = circles()
    task = learning(LOCKED, augment=Augmentation(shifts=(2, 16)))
    with pytest.raises(InputError, match=r"task.augment.shifts: 16 voxels move an image of 16 x 16 out of sight"):
        task.shown(batch_of(cohort), training=True)


def test_a_training_that_cannot_begin_leaves_no_folder(tmp_path):
    cohort = circles()
    dark = replace(cohort, body=torch.zeros_like(cohort.body))
    with pytest.raises(InputError, match="background only"):
        train(tmp_path / "run", config(iterations=2), dark)
    assert not (tmp_path / "run").exists()
    train(tmp_path / "run", config(iterations=2), cohort)


def test_each_pair_by_itself_is_an_update_of_its_own(tmp_path):
    cohort = circles()
    net = Said(torch.full((1, 1, 1, 1), 0.05))
    for constraints, order, wanted in (("all", "both", 12), ("all", "decaying", 6), ("independent", "both", 6)):
        task = learning(LOCKED, constraints=constraints, order=order, backward="separate")
        losses = [float(each) for each in task.updates(net, batch_of(cohort))]
        # every input leaves one pair of the other two images, and together these are all three pairs, both ways
        assert len(losses) == wanted
    together = learning(LOCKED)
    apart = [float(each) for each in learning(LOCKED, backward="separate").updates(net, batch_of(cohort))]
    assert np.mean(apart) == pytest.approx(float(next(together.updates(net, batch_of(cohort)))), rel=1e-5)
    train(tmp_path / "run", config({"backward": "separate"}, iterations=2), cohort)
    state, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    steps = {float(each) for name, each in state.items() if name.startswith("adam/step/")}
    # 12 pairs of four images, in each of 2 iterations
    assert steps == {24.0}


# ------------------------------------------------------------------------------------------- learning


def errors(net, learning, cohort):
    """Mean absolute error in the body over all inputs [ms]; training mode first."""
    found = []
    # what is looked at are the images: no map, whatever the task learned from
    learning, batch = replace(learning, maps=()), batch_of(cohort)
    batch = replace(batch, kappa=batch.kappa[:, :0])
    inside = cohort.body
    for training in (True, False):
        net.train(training)
        with torch.no_grad():
            _, _, seen, spans, _ = learning.shown(batch, training=False)
            rows = net(seen, spans)["rows"][:, 0]
        found.append(1e3 * float((rows - cohort.truth["T1RHO"])[inside].abs().mean()))
    return found


@pytest.mark.parametrize("supervision", ["constraint", "fit", "truth"])
def test_a_network_learns(supervision, tmp_path):
    """Times of 25 to 100 ms from a start of 50 ms everywhere, which is 37 ms wrong on average."""
    cohort = circles(n=9)
    net, task = train(tmp_path / "run", config({"supervision": supervision}), cohort)
    start = config().network.build(LOCKED, (T1RHO,), torch.Generator()).eval()
    assert errors(start, task, cohort)[1] > 25
    trained, used = errors(net, task, cohort)
    assert used < 12
    # one batch of all inputs is normalised as the running mean of many such batches
    assert trained == pytest.approx(used, abs=5)


def test_two_streams_learn_by_synthesis(tmp_path):
    cohort = circles(n=9)
    network = {"kind": "two_stream", "features": 4, "levels": 2, "up": "bilinear"}
    cfg = config()
    cfg = TrainConfig.model_validate(cfg.model_dump(mode="json") | {"network": network, "iterations": 60})
    net, task = train(tmp_path / "run", cfg, cohort)
    assert isinstance(cfg.network, TwoStreamNetwork)
    assert errors(net, task, cohort)[1] < 15


def test_batches_of_one_time_at_a_time_ruin_what_the_network_says_in_use():
    """The pitfall: each batch is normalised by its own statistics in training, by those of all in use."""
    cohort, cfg = circles(n=9), config()
    task = learning(LOCKED, network=cfg.network)
    gaps = {}
    for mixed in (True, False):
        net = cfg.network.build(LOCKED, (T1RHO,), torch.Generator().manual_seed(1))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
        rng = np.random.default_rng(0)
        for i in range(60):
            numbers = rng.permutation(9)[:6].tolist()
            positions = list(range(6)) if mixed else [i] * 6
            optimiser.zero_grad()
            task.loss(net, batch_of(cohort, numbers, positions))["total"].backward()
            optimiser.step()
        apart = []
        for k in range(3):
            batch = batch_of(cohort, range(9), list(range(9)) if mixed else [k] * 9)
            _, _, seen, spans, _ = task.shown(batch, training=False)
            with torch.no_grad():
                said = [net.train(training)(seen, spans)["rows"][:, 0] for training in (True, False)]
            apart.append(1e3 * float((said[0] - said[1])[cohort.body].abs().mean()))
        gaps[mixed] = max(apart)
    assert gaps[True] < 5
    assert gaps[False] > 3 * gaps[True]


# ------------------------------------------------------------------------------------------- other constraints


def other_model(model, kappa):
    """A cohort of the ideal decay's times whose images follow another model, without noise."""
    images = model(kappa).movedim(0, 1)
    rows = dict(zip([row.name for row in model.parameters], kappa, strict=True))
    cohort = circles(n=len(images), side=images.shape[-1])
    everywhere = torch.ones_like(cohort.body)
    return replace(cohort, images=images.contiguous(), truth=rows, body=everywhere)


def maps(*ends):
    """Rows (q, 2, 8, 8) that rise across the image from one end to the other."""
    ramp = torch.linspace(0, 1, 64).reshape(8, 8)
    return torch.stack([(low + (high - low) * ramp).expand(2, 8, 8) for low, high in ends])


@pytest.mark.parametrize(
    ("model", "kappa", "known", "rows"),
    [
        # A, T1rho, C: what the network says of C is in units of A, which is 1
        (OffsetDecay(tsl=TSL), maps((1, 1), (0.02, 0.08), (0.1, 0.2)), (), ["T1RHO", "C"]),
        (
            BiExponential(tsl=TSL),
            maps((0.5, 1), (0.1, 0.4), (0.008, 0.015), (0.05, 0.1)),
            (),
            ["FRACTION", "T1RHO_SHORT", "T1RHO"],
        ),
        (
            Bloch(preparation=SpinLockPreparation(cluster="SSL", tsl=TSL, fsl=400.0)),
            # A, T1, T2, T1rho, offset [Hz], relative B1
            maps((0.5, 1), (0.8, 0.9), (0.03, 0.04), (0.03, 0.08), (-60, 90), (0.85, 1.1)),
            ("A", "T1", "T2", "DELTA_B0", "REL_B1"),
            ["T1RHO"],
        ),
    ],
    ids=["offset", "two times", "off resonance"],
)
def test_another_model_of_the_constraint_is_fulfilled_by_the_truth_alone(model, kappa, known, rows):
    cohort = other_model(model, kappa)
    cohort = replace(cohort, truth={name: cohort.truth[name] for name in known})
    task = learning(LOCKED, known, relaxation=model, order="decaying")
    assert [row.name for row in task.parameters] == rows
    names = [row.name for row in model.parameters]
    says = torch.stack([kappa[names.index(name)] for name in rows], 1)
    batch = batch_of(cohort) if known else replace(batch_of(replace(cohort, truth={"A": kappa[0]})))
    truth = float(task.loss(Said(says), batch)["total"])
    wrong = float(task.loss(Said(says * 1.2), batch)["total"])
    assert truth < 1e-5
    assert wrong > 5e-3
    # the ideal decay is not
    ideal = learning(LOCKED, order="decaying").loss(Said(says[:, [rows.index("T1RHO")]]), batch)["total"]
    assert float(ideal) > 5e-3
    net = UNetNetwork(features=2, levels=2, up="bilinear").build(LOCKED, task.parameters, torch.Generator())
    found = net(torch.rand(2, 2, 8, 8), torch.tensor([[0.01], [0.03]]))
    assert found["rows"].shape == (2, len(rows), 8, 8)
    assert found["log_scale"].shape == (2, 1, 8, 8)


def test_rows_to_be_learned():
    assert [row.name for row in learning(BOTH).parameters] == [T1RHO.name, T2.name]
    assert [row.name for row in learning(BOTH, rows=("T2",)).parameters] == [T2.name]
