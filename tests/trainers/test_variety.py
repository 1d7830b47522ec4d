"""What a training draws anew for every sample: tissues of other relaxation times, small structures, times, scenes."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from scipy import stats

from generators.config import GeneratorConfig
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.signals import BiExponential, InversionRecovery, T2Prep, VariableFlipAngle
from tests.conftest import DISCS
from trainers.config import TrainConfig
from trainers.data import Generated, simulate
from trainers.networks.mixture.start import start
from trainers.protocols import Protocols
from trainers.tasks import supervised
from trainers.variety import Lesions, Recolour, Variety

TI = (0.15, 0.22, 0.31, 0.43, 0.55, 0.68, 0.8, 0.93)
MODEL = InversionRecovery(ti=TI)
DATA = {
    "seed": 3,
    "samples": 30,
    "patch": [12, 11],
    "phantom": DISCS,
    "tissues": {"kind": "sabidussi2021"},
    "model": {"kind": "inversion_recovery", "ti": list(TI)},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.15}},
    "partial_volume": False,
    "store": "maps",
}
LESIONS = {"shortest": 0.3, "longest": 3.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rng(index):
    return Streams(5, index).rng("test")


def anatomy():
    """Relaxation times of two tissues in a background of 0, none of them like another, and their labels."""
    labels = torch.zeros(14, 13, dtype=torch.uint8)
    labels[2:12, 2:6], labels[2:12, 6:11] = 1, 4
    times = 0.8 + 0.2 * torch.rand(14, 13, generator=generator(1)) + 0.6 * (labels == 4)
    return times * (labels > 0), labels


def learning(task=None, data=DATA):
    cfg = TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"generate": data},
            "task": {"kind": "local_mixture"} | (task or {}),
            "network": {"kind": "local_mixture", "features": 4, "classes": 2, "steps": 2},
            "iterations": 2,
            "batch": 6,
            "lr": 0.003,
        }
    )
    generate = cfg.data.generate
    learned = supervised(cfg.mapping_task, cfg.mapping_network, generate.signal_model, (), generate.noise.kind)
    return cfg, learned


def batch_of(cfg, learned, n=6):
    data = cfg.data.generate
    batch = replace(Generated(data).take(range(n)), positions=torch.arange(50, 50 + n))
    return simulate(batch, data, 1, learned.variety)


# --- tissues ---


def test_a_recoloured_tissue_has_another_mean_and_keeps_what_varies_within_it():
    maps, labels = anatomy()
    recolour = Recolour(share=0.6, shortest=0.2, longest=4.0)
    means, changed = {1: [], 4: []}, 0
    for i in range(500):
        found = recolour.apply(maps, labels, rng(i))
        if torch.equal(found, maps):
            continue
        changed += 1
        assert (found[labels == 0] == 0).all()
        for label, own in means.items():
            before, after = (each[labels == label].double().log() for each in (maps, found))
            own.append(float(after.mean()))
            # float32 rounds a relaxation time to 6e-8
            torch.testing.assert_close(after - after.mean(), before - before.mean(), rtol=0.0, atol=5e-7)
    # binomial: SD 11
    assert 300 - 44 < changed < 300 + 44
    for own in means.values():
        assert stats.kstest(own, stats.uniform(log(0.2), log(4.0) - log(0.2)).cdf).pvalue > 0.01
    # tissues do not follow each other: SD .06
    assert abs(np.corrcoef(means[1], means[4])[0, 1]) < 0.2


# --- small structures ---


def test_small_structures_lie_in_the_object_and_are_marked():
    maps, labels = anatomy()
    lesions = Lesions(share=0.7, most=4, **LESIONS)
    some = 0
    for i in range(300):
        found, mark = lesions.apply(maps, labels > 0, rng(i))
        assert torch.equal(mark, found != maps)
        assert not mark[labels == 0].any()
        some += bool(mark.any())
    # some of them lie outside of the object altogether, never all of 300
    assert 100 < some < 0.7 * 300 + 32


def test_factors_values_sizes_and_share_of_small_structures():
    """One structure on a field that is all object: which of the three kinds it is, its factor or value, its size."""
    inside = torch.ones(40, 40, dtype=torch.bool)
    maps = 0.8 + 0.4 * torch.rand(40, 40, generator=generator(2)).double()
    lesions = Lesions(share=0.75, most=1, **LESIONS)
    kinds, some, points, sizes = {"brighter": [], "darker": [], "value": []}, 0, 0, []
    for i in range(800):
        found, mark = lesions.apply(maps, inside, rng(i))
        some += bool(mark.any())
        points += int(mark.sum()) == 1
        sizes.append(int(mark.sum()))
        if mark.sum() < 2:
            continue
        factor, value = found[mark] / maps[mark], found[mark]
        if value.max() - value.min() < 1e-12:
            kinds["value"].append(float(value[0]))
        else:
            assert float(factor.max() - factor.min()) < 1e-12
            kinds["brighter" if factor[0] > 1 else "darker"].append(float(factor[0]))
    # binomial: SD 12
    assert 600 - 49 < some < 600 + 49
    # a quarter are points, and those that the border cuts off; an ellipse of semi-axes 5 covers at most 81 voxels
    assert 0.25 - 0.07 < points / some < 0.25 + 0.11
    assert max(sizes) <= 81
    total = sum(len(each) for each in kinds.values())
    for name, share in (("brighter", 0.4), ("darker", 0.2), ("value", 0.4)):
        # SD .023 at most
        assert len(kinds[name]) / total == pytest.approx(share, abs=0.09)
    assert stats.kstest(kinds["brighter"], stats.uniform(1.2, 0.6).cdf).pvalue > 0.01
    assert stats.kstest(kinds["darker"], stats.uniform(0.5, 0.35).cdf).pvalue > 0.01
    assert stats.kstest(np.log(kinds["value"]), stats.uniform(log(0.3), log(10)).cdf).pvalue > 0.01


def test_voxels_of_small_structures_weigh_as_said():
    """With S the sum over plain voxels and L over those of structures, the loss is (S + w L) / (n_S + w n_L)."""
    cfg, learned = learning({"lesions": LESIONS | {"share": 1.0}})
    batch = batch_of(cfg, learned)
    net = learned.network.build(MODEL, learned.parameters, generator()).requires_grad_(False)

    def loss(weight, marked=batch.lesions):
        lesions = replace(learned.spec.lesions, weight=weight)
        task = replace(learned, spec=replace(learned.spec, lesions=lesions))
        return float(task.loss(net, replace(batch, lesions=marked))["total"])

    inside = (batch.labels > 0) & (batch.purity >= 0.9)
    special = int((inside & batch.lesions).sum())
    plain = int(inside.sum()) - special
    assert special > 20
    rows = np.array([[1 / (plain + w * special), w / (plain + w * special)] for w in (1.0, 4.0)])
    ordinary, within = np.linalg.solve(rows, [loss(1.0), loss(4.0)])
    assert loss(10.0) == pytest.approx((ordinary + 10 * within) / (plain + 10 * special), rel=1e-4)
    # and the two sums are those of the voxels alone
    assert loss(1e9) == pytest.approx(within / special, rel=1e-4)
    assert loss(10.0, None) == pytest.approx(loss(1.0), rel=1e-6)


def test_what_varies_depends_on_the_position_only():
    variety = {"recolour": {"share": 0.7, "shortest": 0.2, "longest": 4.0}, "lesions": LESIONS}
    cfg, learned = learning(variety)
    whole = batch_of(cfg, learned)
    data = cfg.data.generate
    few = replace(Generated(data).take([4, 1]), positions=torch.tensor([54, 51]))
    few = simulate(few, data, 1, learned.variety)
    for name in ("kappa", "lesions", "images"):
        assert torch.equal(getattr(few, name), getattr(whole, name)[[4, 1]]), name
    moved = simulate(replace(Generated(data).take([4]), positions=torch.tensor([7])), data, 1, learned.variety)
    assert not torch.equal(moved.kappa[0], whole.kappa[4])
    # A and B are those of the data
    assert torch.equal(whole.kappa[:, :2], Generated(data).take(range(6)).kappa[:, :2])


# --- what cannot be ---


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("protocols", Protocols()),
        ("recolour", Recolour(share=0.5, shortest=0.2, longest=4.0)),
        ("lesions", Lesions(**LESIONS)),
    ],
)
def test_refusals_of_data_and_models(name, what):
    variety = Variety(**{name: what})
    assert variety
    assert not Variety()
    variety.check(MODEL, "maps")
    with pytest.raises(InputError, match=rf"^task\.{name}: the data hold images already; set store: maps"):
        variety.check(MODEL, "images")
    if name == "protocols":
        angles = VariableFlipAngle(flip_angles=(0.05, 0.2, 0.4), tr=0.02)
        with pytest.raises(InputError, match=r"^task\.protocols: the model spoiled_gradient_echo has no list of times"):
            variety.check(angles, "maps")
    else:
        two = BiExponential(te=(0.01, 0.03, 0.06, 0.1, 0.15))
        with pytest.raises(InputError, match=rf"^task\.{name}: needs a model of one relaxation time, which BiExp"):
            variety.check(two, "maps")


def test_ranges_that_are_none():
    with pytest.raises(ValueError, match="recolour: shortest must be below longest, got 2 and 2 s"):
        Recolour(share=1.0, shortest=2.0, longest=2.0)
    with pytest.raises(ValueError, match=r"lesions: shortest must be below longest, got 3 and 0\.3 s"):
        Lesions(shortest=3.0, longest=0.3)


# --- times ---


def test_logarithmic_times_of_a_decay():
    """Pooled over samples they are independent and uniform in their logarithm; the signal is A exp(-TE / T2)."""
    protocols = Protocols(least=4, most=8, first=0.008, last=0.4, share=1.0, spacing="log")
    own = (0.01, 0.05, 0.2)
    drawn = [protocols.draw(rng(i), own) for i in range(400)]
    pooled = np.log(np.concatenate(drawn))
    assert stats.kstest(pooled, stats.uniform(log(0.008), log(50)).cdf).pvalue > 0.01
    counts = np.bincount([len(each) for each in drawn], minlength=9)[4:]
    assert stats.chisquare(counts).pvalue > 0.01
    assert all(list(each) == sorted(each) for each in drawn)
    plain = replace(protocols, spacing="uniform")
    pooled = np.concatenate([plain.draw(rng(i), own) for i in range(400)])
    assert stats.kstest(pooled, stats.uniform(0.008, 0.392).cdf).pvalue > 0.01
    maps = torch.stack((torch.full((3, 2, 2), 0.7), 0.05 + 0.1 * torch.rand(3, 2, 2, generator=generator())))
    signal, times, counted = protocols.signals(T2Prep(te_prep=own), maps, [Streams(1, i) for i in range(3)])
    assert signal.shape == (3, 8, 2, 2)
    for i in range(3):
        n = int(counted[i].sum())
        assert counted[i, :n].all()
        assert 4 <= n <= 8
        expected = 0.7 * np.exp(-times[i, :n, None, None].numpy() / maps[1, i].numpy())
        np.testing.assert_allclose(signal[i, :n].numpy(), expected, rtol=1e-5)
        assert (signal[i, n:] == 0).all()


# --- further voxels for the histogram ---


def scenes(count, n=6, take=slice(None), data=DATA):
    cfg, learned = learning({"scene": count}, data)
    return learned._pose(batch_of(cfg, learned, n).apply(lambda t: t[take]))


def test_a_scene_brings_the_histogram_to_that_of_more_voxels():
    """SNR 10, patches of up to 132 voxels: with further voxels the start is nearer to the truth, and its SD is true.

    The histogram of few voxels follows their noise, so that its SD is too small: errors are 1.26 times as large.
    """
    data = DATA | {"noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.065}}}
    error, surprise, x = {}, {}, {}
    for count in (0, 400, 4000, 8000):
        posed = scenes(count, 24, data=data)
        found = start(posed.likelihood, posed.mask, posed.scene)
        away = (found.x - posed.u)[posed.mask]
        error[count] = float(away.abs().median())
        surprise[count] = float((away / found.s[posed.mask]).square().mean().sqrt())
        x[count] = found.x[posed.mask]
    assert error[4000] < 0.93 * error[0]
    assert surprise[0] > 1.15
    assert surprise[4000] == pytest.approx(1, abs=0.06)
    apart = {count: float((x[count] - x[8000]).abs().mean()) for count in (0, 400, 4000)}
    assert apart[4000] < apart[400] < apart[0]


def test_a_scene_holds_the_series_of_voxels_of_the_sample():
    """Without noise each series is that of a voxel of the patch, at the sample's times."""
    quiet = DATA | {"noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 1e-7}}}
    cfg, learned = learning({"scene": 60, "jitter": 0.0}, quiet)
    batch = batch_of(cfg, learned, 3)
    posed = learned._pose(batch)
    for i in range(3):
        own = batch.series[i][:, posed.mask[i]]
        found = posed.scene.series[i, :, 0]
        nearest = torch.cdist(found.T, own.T, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert float(nearest.values.max()) < 1e-5
        # drawn with replacement from all of them
        assert len(nearest.indices.unique()) > 0.3 * min(60, own.shape[1])


def test_a_scene_and_the_error_of_b_depend_on_the_position_only():
    whole, few = scenes(50), scenes(50, take=[4, 1])
    torch.testing.assert_close(few.scene.series, whole.scene.series[[4, 1]], rtol=1e-6, atol=1e-7)
    assert torch.equal(few.likelihood.b, whole.likelihood.b[[4, 1]])


def test_the_scene_of_magnitudes_is_rician():
    """Squares of magnitudes of a voxel have the mean S^2 + 2 sigma^2."""
    noise = {"kind": "rician", "sigma": {"kind": "constant", "value": 0.2}}
    cfg, learned = learning({"scene": 6000, "jitter": 0.0}, DATA | {"noise": noise})
    batch = batch_of(cfg, learned, 2)
    posed = learned._pose(batch)
    signal = MODEL(batch.kappa.movedim(0, 1).where(posed.mask, 1.0)).movedim(0, 1)
    for i in range(2):
        expected = signal[i][:, posed.mask[i]].square().mean(1) + 2 * 0.2**2
        found = posed.scene.series[i, :, 0].square().mean(1)
        # 6000 voxels: 1 to 2 %, and which voxels were drawn
        torch.testing.assert_close(found, expected, rtol=0.08, atol=0.0)
        assert (posed.scene.series[i] >= 0).all()


def test_samples_without_times_of_their_own_have_those_of_the_data():
    """One in a hundred has its own; filled up to as many as the longest list of either."""
    data = GeneratorConfig.model_validate(DATA)
    batch = replace(Generated(data).take(range(4)), positions=torch.arange(4))
    done = simulate(batch, data, 1, Variety(protocols=Protocols(least=5, most=6, share=0.01)))
    assert done.counted.sum(1).tolist() == [8, 8, 8, 8]
    torch.testing.assert_close(done.times, torch.tensor(TI).expand(4, -1))
