"""Cohorts: who is trained on and who is not, both series as one, and fits against scipy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import binary_dilation
from scipy.optimize import curve_fit

from qsim.errors import InputError
from qsim.evaluation.studies.cohort_reference import Reference
from qsim.signals import SpinLock, SpinLockT2Prep, T2Prep
from tests.trainers.test_relaxation_task import BOTH, TSL, circles, config, train
from trainers.checkpoint import load_tensors
from trainers.fit import DivergedError
from trainers.relaxation.cohort import fit, folds
from trainers.relaxation.cohort_config import CohortConfig, joined, open_cohort
from trainers.relaxation.contrasts import contrasts
from trainers.relaxation.source import cohort_source, training_subjects
from trainers.studies.cohort_opponents import alone, bounds, constant, limited_two_point

PREPARED = {"kind": "t2_prep", "refocusing": "MLEV4", "te": [0.0, 0.01, 0.02, 0.04]}


def generate(**changes):
    """Six livers of one slice."""
    return {
        "seed": 5,
        "samples": 6,
        "sampling": "slices",
        "patch": [64, 64],
        "phantom": {
            "kind": "liver",
            "subjects": 6,
            "slices": 1,
            "test_subjects": 0,
            "seed": 0,
            "matrix": [64, 64],
            "voxel_mm": [4.0, 4.0],
            "slice_thickness_mm": 7.0,
            "gap_mm": 3.0,
            "fibrosis_share": 0.2,
            "lesions": [0, 0],
        },
        "tissues": {"kind": "huang2022"},
        "model": {
            "kind": "bloch",
            "preparation": {"kind": "spin_lock", "cluster": "BSL", "tsl": list(TSL), "fsl": 400.0},
        },
        "targets": ["A", "T1RHO"],
        "noise": {"kind": "rician", "sigma": {"kind": "constant", "value": 0.01}},
    } | changes


def where(**changes):
    return CohortConfig.model_validate({"store": "/nowhere.zarr", "folds": 3, "validation": 1} | changes)


# ------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize(("subjects", "n"), [(52, 4), (51, 3), (7, 3)])
def test_folds_are_disjoint_complete_and_the_same_every_time(subjects, n):
    ids = tuple(range(10, 10 + subjects))
    found = folds(ids, n, seed=3)
    assert sorted(each for group in found for each in group) == list(ids)
    assert {len(group) for group in found} <= {subjects // n, subjects // n + 1}
    assert found == folds(ids, n, seed=3)
    assert found != folds(ids, n, seed=4)


@pytest.mark.parametrize("n", [1, 8])
def test_groups_too_few_or_too_many(n):
    with pytest.raises(InputError, match=r"^folds: got"):
        folds(tuple(range(7)), n, 0)


def test_slices_of_a_subject_are_never_apart():
    cohort = circles(n=9, slices=3)
    for fold in (0, 1, 2, None):
        train_on, validate_on, left_out = training_subjects(cohort, where(fold=fold))
        assert sorted((*train_on, *validate_on, *left_out)) == list(range(9))
        assert (len(train_on), len(validate_on), len(left_out)) == ((5, 1, 3) if fold is not None else (8, 1, 0))
        source = cohort_source(cohort, where(fold=fold), "constraint")
        assert source.held_out == source.validation(0.5) == 3
        subjects = [int(cohort.subject[i]) for i in source.slices]
        assert set(subjects[:-3]) == set(train_on)
        assert set(subjects[-3:]) == set(validate_on)
    with pytest.raises(InputError, match=r"^data\.cohort\.validation: 6 of 6 subjects leave none"):
        training_subjects(cohort, where(validation=6))


def test_a_training_never_sees_who_is_left_out(tmp_path):
    """Whoever is left out has images of no numbers; one such image in a batch ends a training."""
    cohort, cfg = circles(n=6, slices=2), config(iterations=6, validate_every=2, keep="best")
    train_on, _, left_out = training_subjects(cohort, cfg.data.cohort)
    train(tmp_path / "clean", cfg, cohort)
    for name, subjects in (("out", left_out), ("in", train_on[:1])):
        images = cohort.images.clone()
        images[cohort.slices_of(subjects)] = torch.nan
        spoilt = replace(cohort, images=images)
        if name == "in":
            with pytest.raises((DivergedError, InputError, ValueError)):
                train(tmp_path / name, cfg, spoilt)
        else:
            train(tmp_path / name, cfg, spoilt)
    clean, out = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("clean", "out"))
    assert all(torch.equal(clean[name], out[name]) for name in clean)


# ------------------------------------------------------------------------------------------- a digital cohort


@pytest.fixture(scope="module")
def pair():
    return open_cohort(CohortConfig.model_validate({"generate": generate(), "second": PREPARED, "folds": 3}))


def test_the_second_series_shares_the_image_at_0(pair):
    one = open_cohort(CohortConfig.model_validate({"generate": generate(), "folds": 3}))
    assert pair.model == SpinLockT2Prep(tsl=(*TSL, 0.0, 0.0, 0.0), te_prep=(0.0, 0.0, 0.0, 0.0, 0.01, 0.02, 0.04))
    assert pair.images.shape == (6, 7, 64, 64)
    assert torch.equal(pair.images[:, :4], one.images)
    assert {"A", "T1RHO", "T2"} <= set(pair.truth)
    # air: noise alone, Rician; two series are two measurements
    far = ~binary_dilation(pair.body.numpy(), np.ones((1, 7, 7), dtype=bool))
    air = pair.images.movedim(1, 0)[:, torch.from_numpy(far)].double().numpy()
    correlation = np.corrcoef(air) - np.eye(7)
    assert np.abs(correlation).max() < 5 / air.shape[1] ** 0.5


def test_the_region_of_interest_lies_in_the_liver(pair):
    assert bool(pair.roi.flatten(1).any(1).all())
    assert not bool((pair.roi & ~pair.body).any())
    times = pair.truth["T1RHO"][pair.roi]
    # huang2022: 44.9 +- 2.8 ms, fibrosis 52.6 +- 6.8 ms
    assert 0.03 < float(times.min()) < float(times.max()) < 0.08
    assert float(pair.truth["T1RHO"][~pair.body].abs().max()) == 0.0


def test_series_that_cannot_be_one():
    with pytest.raises(InputError, match=r"^cohort: the first series must be spin-locked"):
        joined(T2Prep(te_prep=(0.0, 0.02)), SpinLock(tsl=(0.0, 0.02)))
    with pytest.raises(InputError, match=r"^cohort: both series must begin at 0 s"):
        joined(SpinLock(tsl=(0.01, 0.02)), T2Prep(te_prep=(0.0, 0.02)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate": generate()}, "give one of generate"),
        ({"store": None}, "give one of generate"),
        ({"second": PREPARED}, "second: goes with generate"),
        ({"store": None, "generate": generate(), "second_store": "x"}, "second_store: goes with store"),
        ({"fold": 3}, "fold: counts from 0"),
        ({"store": None, "generate": generate(sampling="patches")}, "sampling: must be slices"),
    ],
)
def test_what_is_no_cohort(changes, message):
    with pytest.raises(ValidationError, match=message):
        where(**changes)


# ------------------------------------------------------------------------------------------- opponents


def test_the_fit_of_all_images_is_that_of_scipy():
    cohort = circles(n=2, model=BOTH)
    generator = torch.Generator().manual_seed(0)
    images = cohort.images + 0.01 * torch.randn(cohort.images.shape, generator=generator)
    found = fit(images, BOTH)
    for contrast in contrasts(BOTH):
        times = np.array(contrast.times)
        for s, y, x in ((0, 8, 8), (1, 3, 9), (1, 12, 6)):
            signal = images[s, list(contrast.images), y, x].double().numpy()
            (_, wanted), _ = curve_fit(lambda t, a, tau: a * np.exp(-t / tau), times, signal, (1.0, 0.05))
            assert float(found[contrast.row.name][s, y, x]) == pytest.approx(wanted, rel=1e-3)


def test_two_point_times_by_hand():
    """T = t / log(I_first / I_later) within 5 to 200 ms; what lies outside is counted."""
    first = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, -1.0]
    later = [np.exp(-0.75), 1.0, 1.2, 0.0, np.exp(-10.0), 0.5, 0.0, 0.5]
    images = torch.ones(1, 4, 1, 8)
    images[0, 0, 0], images[0, 2, 0] = torch.tensor(first), torch.tensor(later)
    (contrast,) = contrasts(SpinLock(tsl=TSL))
    found = limited_two_point(images, contrast, (0, 2), (0.005, 0.2))
    assert found.estimate[0, 0].tolist() == pytest.approx([0.04, 0.2, 0.2, 0.005, 0.005, 0.2, 0.2, 0.2], rel=1e-6)
    assert found.limited[0, 0].tolist() == [False, *[True] * 7]
    square = torch.ones(1, 4, 5, 5)
    square[0, 2] = 0.5
    square[0, 2, 2, 2] = 0.5 + 0.9
    near = alone("averaged-3", square, contrast, (0, 2), (0.005, 0.2), None)
    assert near.estimate[0, 2, 2] == pytest.approx(0.03 / np.log(1 / 0.6), rel=1e-5)


def test_voxels_that_look_alike_by_hand():
    """A square of 3 across an edge: weights exp(-300 d) of the 3 x 3 means in both images of the input."""
    (contrast,) = contrasts(SpinLock(tsl=TSL))
    images = torch.ones(1, 4, 6, 6)
    images[0, 2] = 0.4
    images[0, 2, :, 3:] = 0.5
    images[0, 1] = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))  # not of the input
    found = alone("bilateral-3", images, contrast, (0, 2), (0.005, 0.2), None).estimate[0]
    # 3 x 3 means of columns 1 to 4: 0.4, 0.4 + 0.1 / 3, 0.4 + 0.2 / 3, 0.5: neighbours of column 2 differ by 0.1 / 3
    weight = np.exp(-300 * (0.1 / 3) ** 2)
    later = (0.4 * (1 + weight) + 0.5 * weight) / (1 + 2 * weight)
    assert found[2, 2] == pytest.approx(0.03 / np.log(1 / later), rel=1e-4)
    assert found[2, 0] == pytest.approx(0.03 / np.log(1 / 0.4), rel=1e-4)


def test_one_value_for_all_and_the_bound():
    cohort = circles(n=3)
    values = cohort.truth["T1RHO"].double().numpy()
    given = Reference(None, values, cohort.roi.numpy(), cohort.body.numpy(), None, cohort.subject.numpy())
    said = constant(given, given).estimate
    assert np.unique(said).tolist() == [pytest.approx(np.median(values[cohort.roi.numpy()]))]
    # two images: SD(T) = sigma T^2 / (t A) sqrt(1 + e^(2 t / T)), A from the first image
    found = bounds(cohort, (0, 1, 2), (0, 2), (0.005, 0.2))["T1RHO"]
    t, a = cohort.truth["T1RHO"][cohort.roi].double(), cohort.images[:, 0][cohort.roi].double()
    wanted = 0.01 * t**2 / (0.03 * a) * torch.sqrt(1 + torch.exp(0.06 / t))
    assert found == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert bounds(replace(cohort, truth={}), (0,), (0, 2), (0.005, 0.2)) == {}
