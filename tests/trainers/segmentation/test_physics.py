"""Contrasts made from a series' own maps, against closed forms and the Bloch equation by matrix exponentials."""

from math import exp, log, pi, sqrt

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.kspace.order import Acquisition
from qsim.signals import (
    MOLLI,
    BalancedSSFP,
    Bloch,
    Ideal,
    SaturationRecovery,
    SpinLockPreparation,
    SpoiledGradientEcho,
)
from tests.bloch_oracle import Voxel, cluster_mz
from trainers.segmentation.physics import bank, one_image, synthesised
from trainers.segmentation.physics_config import Fat, Physics
from trainers.segmentation.physics_maps import BODY_SHARE, T1_RANGE, between_knots, own_maps

TIMES = (0.12, 1.12, 2.12, 3.12, 4.12, 0.2, 1.2, 2.2)
SPACING = (2.0, 2.0)
IDEAL = Ideal()
T1RHO, T2 = 0.05, 0.045
STILL = {
    "copies": 1,
    "t1_factor": (1.0, 1.0),
    "relations": {
        "a": [{"t1": 1.0, "low": 1.0, "high": 1.0}],
        "t2": [{"t1": 1.0, "low": T2, "high": T2}],
        "t1rho": [{"t1": 1.0, "low": T1RHO, "high": T1RHO}],
    },
    "variation": (0.0, 0.0),
    "fields": {
        "b0_mean": (0.0, 0.0),
        "b0_sd": (0.0, 0.0),
        "b1_median": (1.0, 1.0),
        "b1_sd": (0.0, 0.0),
    },
    "fat": None,
    "artefacts": (),
    "snr": (1e6, 1e6),
}


def recovery(t1, a=1.0, b=2.1, shape=(24, 20), edge=4):
    """A Look-Locker series of a rectangle, 0 around it, written out."""
    ti = np.array(TIMES)[:, None, None]
    inside = np.zeros(shape)
    inside[edge:-edge, edge:-edge] = 1
    series = np.abs(a * inside * (1 - b * np.exp(-ti * (b - 1) / (t1 * np.ones(shape)))))
    return torch.from_numpy(series).float(), torch.from_numpy(inside > 0)


def lock(tsl, cluster="SSL", fsl=400.0, readout=IDEAL, **more):
    return Bloch(preparation=SpinLockPreparation(cluster=cluster, tsl=(tsl,), fsl=fsl), readout=readout, **more)


def one(model, series, **changes):
    physics = Physics.model_validate({**STILL, **changes, "models": (model,)})
    return synthesised(series, TIMES, SPACING, physics, Streams(1, 0))[0]


# --- own maps ---------------------------------------------------------------------------------------------------------


def test_own_maps_find_a_known_t1():
    t1 = np.linspace(0.3, 1.9, 20)[None] * np.ones((24, 1))
    series, inside = recovery(t1, a=3.0)
    maps = own_maps(series, TIMES)
    assert torch.equal(maps.body, inside)
    np.testing.assert_allclose(maps.t1[inside], t1[inside.numpy()], rtol=0.01)
    np.testing.assert_allclose(maps.a[inside], 3.0, rtol=0.01)
    assert not maps.a[~inside].any()


def test_own_maps_take_images_in_any_order():
    series, _ = recovery(1.0)
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    again = own_maps(series[order], [TIMES[i] for i in order])
    assert torch.equal(again.t1, own_maps(series, TIMES).t1)


def test_own_maps_keep_the_bias_of_a_molli():
    """A MOLLI with balanced SSFP reads T1 too short, the more so the shorter T2: doi:10.1186/1532-429X-16-2."""
    readout = BalancedSSFP(flip_angle=35 * pi / 180, tr=0.0026, acquisition=Acquisition(lines=64))
    molli = MOLLI(ti_first=(0.12, 0.2), rr=1.0, readout=readout)
    bias = []
    for t1, t2 in ((1.05, 0.045), (1.5, 0.25)):
        rows = {"A": 1.0, "T1": t1, "T2": t2, "DELTA_B0": 0.0, "REL_B1": 1.0}
        kappa = torch.stack([torch.full((9, 9), rows[row.name]) for row in molli.parameters])
        bias.append(float(own_maps(molli(kappa), molli.times).t1[4, 4]) / t1 - 1)
    assert -0.2 < bias[0] < -0.05
    assert bias[0] < bias[1] < 0


def test_body_is_what_is_bright_enough_with_its_neighbours():
    bright = torch.ones(8, 30, 30)
    bright[:, :, 15:] = 0.5 * BODY_SHARE
    bright[:, 3, 22] = 2 * BODY_SHARE  # alone: its neighbourhood is too dark
    body = own_maps(bright, TIMES).body
    assert body[:, :15].all()
    assert not body[:, 15:].any()


def test_t1_stays_within_its_range_under_noise():
    series, inside = recovery(1.0)
    noisy = (series + 0.3 * torch.randn(series.shape, generator=torch.Generator().manual_seed(1))).abs()
    maps = own_maps(noisy, TIMES)
    # noise of .3 an image, eight images
    assert abs(float(maps.a[inside].median()) - 1) < 0.3
    assert float(maps.t1.min()) >= T1_RANGE[0]
    assert float(maps.t1.max()) <= T1_RANGE[1]


@pytest.mark.parametrize(
    ("count", "times", "said"),
    [
        (1, (0.1,), "give the whole series"),
        (8, None, "times: missing"),
        (8, TIMES[:5], "times: 5 for 8 images"),
        (4, (0.1, 0.1, 0.1, 2.0), "2 distinct"),
        (3, (100.0, 1000.0, 3000.0), "millisecond"),
        (3, (0.1, float("nan"), 3.0), "finite"),
    ],
)
def test_series_without_t1_are_refused(count, times, said):
    with pytest.raises(InputError, match=said):
        own_maps(torch.ones(count, 5, 5), times)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_spin_lock_decays_with_t1rho():
    series, inside = recovery(1.0, a=2.0)
    first, last = (one(lock(tsl), series) for tsl in (0.01, 0.05))
    ratio = (last / first)[inside]
    np.testing.assert_allclose(ratio, exp(-0.04 / T1RHO), rtol=1e-3)
    np.testing.assert_allclose(first[inside], 2 * exp(-0.01 / T1RHO), rtol=1e-3)


def test_a_readout_shows_what_the_lock_left():
    series, inside = recovery(1.0)
    readout = SpoiledGradientEcho(
        flip_angle=0.1, tr=0.003, acquisition=Acquisition(lines=16, order="centric", encoding="centre")
    )
    shown = one(lock(0.02, readout=readout), series)[inside]
    # the centre of k-space is measured by the first pulse
    np.testing.assert_allclose(shown, np.sin(0.1) * exp(-0.02 / T1RHO), rtol=2e-3)


@pytest.mark.parametrize("cluster", ["SSL", "BSL"])
def test_bands_are_where_the_bloch_equation_has_them(cluster):
    series, inside = recovery(1.0)
    seen, wanted = [], []
    for offset in (0.0, 60.0, 130.0, 260.0, 400.0):
        image = one(lock(0.03, cluster), series, fields=STILL["fields"] | {"b0_mean": (offset, offset)})
        seen.append(float(image[inside].mean()))
        voxel = Voxel(t1=1.0, t2=T2, t1rho=T1RHO, delta_b0=offset)
        wanted.append(abs(cluster_mz(cluster, voxel, 0.03, 400.0)))
    np.testing.assert_allclose(seen, wanted, atol=2e-3)
    # far off resonance the plain cluster is another image
    assert cluster == "BSL" or max(abs(each / wanted[0] - 1) for each in wanted) > 0.2


def test_transmit_field_acts():
    series, inside = recovery(1.0)
    image = one(lock(0.03), series, fields=STILL["fields"] | {"b1_median": (0.8, 0.8)})
    wanted = abs(cluster_mz("SSL", Voxel(t1=1.0, t2=T2, t1rho=T1RHO, rel_b1=0.8), 0.03, 400.0))
    np.testing.assert_allclose(image[inside], wanted, atol=2e-3)


def test_saturation_is_perfect_and_t1_is_that_of_another_field():
    series, inside = recovery(1.0)
    image = one(SaturationRecovery(ts=(0.5,)), series, t1_factor=(1.4, 1.4))
    np.testing.assert_allclose(image[inside], 1 - exp(-0.5 / 1.4), rtol=5e-3)


def test_one_image_is_that_of_its_series():
    generator = torch.Generator().manual_seed(2)
    for model in Physics().sequences:
        kappa = torch.stack(
            [
                {"A": 1.0, "B": 1.0, "T1": 1.1, "T2": 0.05, "T1RHO": 0.06, "DELTA_B0": 30.0, "REL_B1": 0.9}[row.name]
                * (1 + 0.1 * torch.rand(3, 4, generator=generator))
                for row in model.parameters
            ]
        )
        whole = model(kappa)
        for image in range(model.n_images):
            alone, number = one_image(model, (image + 0.5) / model.n_images)
            torch.testing.assert_close(alone(kappa)[number], whole[image], rtol=1e-5, atol=1e-6)


def test_a_readout_that_mixes_voxels_is_taken():
    series, inside = recovery(1.0)
    readout = SpoiledGradientEcho(flip_angle=0.2, tr=0.005, acquisition=Acquisition(lines=24, encoding="exact"))
    image = one(lock(0.02, readout=readout), series)
    assert float(image[inside].mean()) > 10 * float(image[:2].mean())


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_knots_are_met_and_joined_by_straight_lines_of_logarithms():
    knots, values = (0.35, 0.8, 1.8), (0.07, 0.05, 0.25)
    np.testing.assert_allclose(between_knots(np.array(knots), knots, values), values, rtol=1e-12)
    middle = sqrt(0.8 * 1.8)
    np.testing.assert_allclose(between_knots(np.array([middle]), knots, values), sqrt(0.05 * 0.25), rtol=1e-12)
    np.testing.assert_allclose(between_knots(np.array([0.1, 4.0]), knots, values), (0.07, 0.25), rtol=1e-12)
    many = between_knots(np.linspace(0.8, 1.8, 99), knots, values)
    assert (np.diff(many) > 0).all()


def test_drawn_t1rho_is_log_uniform_between_the_ends_of_its_knot():
    series, inside = recovery(1.0, shape=(9, 9), edge=2)
    relations = {
        "a": STILL["relations"]["a"],
        "t2": [{"t1": 1.0, "low": 0.001, "high": 0.001}],
        "t1rho": [{"t1": 1.0, "low": 0.02, "high": 0.2}],
    }
    physics = Physics.model_validate(
        {**STILL, "copies": 200, "relations": relations, "models": ({"kind": "spin_lock", "tsl": (0.05,)},)}
    )
    images = synthesised(series, TIMES, SPACING, physics, Streams(1, 0))
    t1rho = -0.05 / torch.log(images[:, 4, 4])
    assert bool(inside[4, 4])
    place = torch.log(t1rho / 0.02) / log(10)
    assert -1e-3 < float(place.min()) < 0.05
    assert 0.95 < float(place.max()) < 1.001
    # the mean of 200 uniform numbers, 4 SD
    assert abs(float(place.mean()) - 0.5) < 4 / sqrt(12 * 200)


def test_the_factor_of_a_scales_the_image():
    """A of a voxel times the factor at its T1, which the knots give."""
    series, inside = recovery(1.0)
    model = lock(0.02)
    knots = [{"t1": 0.5, "low": 0.2, "high": 0.2}, {"t1": 2.0, "low": 0.8, "high": 0.8}]
    half = one(model, series, relations={**STILL["relations"], "a": knots})
    whole = one(model, series)
    # T1 of 1 s lies half way between the logarithms of the knots: sqrt(.2 .8)
    np.testing.assert_allclose(half[inside] / whole[inside], 0.4, rtol=5e-3)


def test_t2_stays_below_t1rho_and_t1rho_below_t1():
    series, inside = recovery(0.5)
    relations = {"t2": [{"t1": 1.0, "low": 3.0, "high": 3.0}], "t1rho": [{"t1": 1.0, "low": 2.0, "high": 2.0}]}
    relations |= {"a": STILL["relations"]["a"]}
    for model in ({"kind": "spin_lock", "tsl": (0.1,)}, {"kind": "t2_prep", "te_prep": (0.1,)}):
        image = one(model, series, relations=relations)
        np.testing.assert_allclose(image[inside], exp(-0.1 / 0.5), rtol=1e-2)


def test_background_holds_the_noise_that_is_stated():
    series, inside = recovery(1.0, shape=(96, 96), edge=30)
    image = one(lock(0.02), series, snr=(20.0, 20.0))
    sigma = exp(-0.02 / T1RHO) / 20
    background = image[:28]
    assert not inside[:28].any()
    np.testing.assert_allclose(float(background.std()), sigma * sqrt(2 - pi / 2), rtol=0.05)
    np.testing.assert_allclose(float(background.mean()), sigma * sqrt(pi / 2), rtol=0.03)


def test_fat_is_shifted_by_its_ppm_of_the_field():
    assert Fat(ppm=-3.5, field_strength=3.0).shift == pytest.approx(-3.5e-6 * 42.577478518e6 * 3.0, rel=1e-9)
    series, inside = recovery(0.35)
    fat = {"ppm": -3.5, "field_strength": 1.5, "below": 0.4}
    image = one(lock(0.03), series, fat=fat)
    voxel = Voxel(t1=0.35, t2=T2, t1rho=T1RHO, delta_b0=-3.5 * 63.866217777)
    np.testing.assert_allclose(image[inside], abs(cluster_mz("SSL", voxel, 0.03, 400.0)), atol=3e-3)
    longer = one(lock(0.03), series, fat={**fat, "below": 0.3})
    np.testing.assert_allclose(longer[inside], exp(-0.03 / T1RHO), rtol=2e-3)


def test_fields_vary_over_the_slice():
    series, inside = recovery(1.0, shape=(64, 64))
    image = one(lock(0.03), series, fields=STILL["fields"] | {"b0_sd": (150.0, 150.0), "b0_length_mm": (20.0, 20.0)})
    assert float(image[inside].std() / image[inside].mean()) > 0.1


# --- sameness ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hearts():
    return [recovery(t1, shape=shape)[0] for t1, shape in ((1.0, (40, 32)), (1.4, (32, 44)))]


def test_a_copy_depends_neither_on_how_many_there_are_nor_on_other_series(hearts):
    times, spacing = [TIMES, TIMES], [SPACING, SPACING]
    done = []
    torch.manual_seed(0)
    state = torch.get_rng_state()
    few = bank(hearts, times, spacing, Physics(copies=3), 4, progress=done.append)
    many = bank(hearts, times, spacing, Physics(copies=6), 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert done == [1, 2]
    for series, some, all_ in zip(hearts, few, many, strict=True):
        assert some.shape == (3, *series.shape[1:])
        assert torch.equal(some, all_[:3])
        assert float(some.min()) >= 0
        # every copy shows something
        assert 0 < float(some.flatten(1).amax(1).min()) <= float(some.max()) < 1e3 * float(series.max())
    assert torch.equal(bank(hearts[:1], times[:1], spacing[:1], Physics(copies=3), 4)[0], few[0])
    assert not torch.equal(many[0][0], many[0][1])
    other = bank(hearts[:1], times[:1], spacing[:1], Physics(copies=1), 5)[0]
    assert not torch.equal(other[0], few[0][0])


def test_bank_names_the_series_at_fault(hearts):
    with pytest.raises(InputError, match=r"^series 1: times: missing"):
        bank(hearts, [TIMES, None], [SPACING, SPACING], Physics(copies=1), 4)
    with pytest.raises(InputError, match=r"^second: times: missing"):
        bank(hearts, [TIMES, None], [SPACING, SPACING], Physics(copies=1), 4, names=("first", "second"))


def test_empty_series_are_refused():
    with pytest.raises(InputError, match=r"^series: no voxel"):
        synthesised(torch.zeros(8, 9, 9), TIMES, SPACING, Physics(copies=1), Streams(1, 0))


# --- config -----------------------------------------------------------------------------------------------------------


def test_the_default_is_what_its_own_dump_says():
    assert Physics.model_validate(Physics().model_dump(mode="json")) == Physics()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": [{"kind": "gradient_echo", "te": [0.01]}]}, r"models\[0\]: gradient_echo needs T2STAR"),
        (
            {
                "models": [
                    {"kind": "saturation_recovery", "ts": [0.5]},
                    {
                        "kind": "bloch",
                        "preparation": {"kind": "spin_lock", "cluster": "SSL", "tsl": [0.01], "fsl": 400},
                        "t2rho": True,
                    },
                ]
            },
            r"models\[1\]: bloch needs T2RHO",
        ),
        ({"models": []}, "models"),
        ({"snr": (30.0, 10.0)}, r"snr\n.*30 is more than 10"),
        ({"t1_factor": (0.0, 1.0)}, "t1_factor"),
        ({"fields": {"b0_sd": (60.0, 15.0)}}, r"fields\.b0_sd"),
        ({"relations": {"t2": [{"t1": 1.0, "low": 0.2, "high": 0.1}]}}, r"relations\.t2\.0\n.*low"),
        (
            {"relations": {"t1rho": [{"t1": 1.0, "low": 0.1, "high": 0.2}, {"t1": 0.5, "low": 0.1, "high": 0.2}]}},
            r"relations\.t1rho\n.*ascend",
        ),
        ({"fat": {"ppm": 1000.0}}, r"fat\n.*ppm must lie"),
        ({"artefacts": [{"kind": "gibbs"}, {"kind": "bias_field", "strength": 0.1}]}, r"artefacts\[1\]"),
        ({"artefacts": [{"kind": "gibbs", "ndim": 3}]}, r"artefacts\[0\]\.ndim"),
        ({"copies": 0}, "copies"),
        ({"share": 1.5}, "share"),
        ({"shares": 0.5}, "shares"),
    ],
)
def test_config_errors_name_the_field(changes, said):
    with pytest.raises(ValidationError, match=said):
        Physics.model_validate(changes)
