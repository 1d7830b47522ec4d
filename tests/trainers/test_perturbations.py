"""Perturbed images of a cohort against scipy's distributions, arithmetic written out and the areas of disks."""

from dataclasses import replace
from math import exp, pi

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy.stats import kstest, norm, rayleigh, rice

from qsim.errors import InputError
from qsim.signals import SpinLock, SpinLockT2Prep
from trainers.relaxation.cohort import Cohort
from trainers.relaxation.perturbations import AddedNoise, BrightSquare, Perturbation, UnseenLesion, disk

TSL = (0.0, 0.01, 0.03, 0.05)
SIGMA = 0.02
LIVER = 0.5
HEIGHT, WIDTH = 64, 70


def cohort(sigma=SIGMA, model=None, slices=3, **changes):
    """Air, and a liver of 0.5 exp(-t / 42 ms) in rows 10 to 49, columns 5 to 44; Rician noise of SD `sigma`."""
    model = SpinLock(tsl=TSL) if model is None else model
    roi = torch.zeros(slices, HEIGHT, WIDTH, dtype=torch.bool)
    roi[:, 10:50, 5:45] = True
    times = torch.tensor(model.times)
    clean = (LIVER * torch.exp(-times / 0.042))[None, :, None, None] * roi[:, None]
    images = clean
    if sigma:
        noise = sigma * torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(1))
        images = torch.hypot(clean + noise[0], noise[1])
    base = Cohort(
        name="test",
        images=images,
        model=model,
        subject=torch.arange(slices),
        roi=roi,
        body=roi,
        spacing_mm=(2.0, 1.5),
        digest="",
        sigma=torch.full((slices,), sigma) if sigma else None,
    )
    return replace(base, **changes)


# ------------------------------------------------------------------------------------------- noise


def test_added_rician_noise_makes_the_images_rician_of_the_noise_in_all():
    given = cohort()
    found = AddedNoise(snr=8.0, noise="rician")(given, (0, 1, 2), 5)
    for k in range(3):
        mean = float(given.images[k, 0, 10:50, 5:45].double().mean())
        sigma = mean / 8
        assert float(found.sigma[k]) == pytest.approx(sigma, rel=1e-6)
        for n in (0, 3):
            clean = LIVER * exp(-TSL[n] / 0.042)
            values = found.images[k, n, 10:50, 5:45].flatten().double().numpy()
            assert kstest(values, rice(clean / sigma, scale=sigma).cdf).pvalue > 1e-3
        air = found.images[k, 0, :, 45:].flatten().double().numpy()
        assert kstest(air, rayleigh(scale=sigma).cdf).pvalue > 1e-3
    assert bool(found.where.all())
    assert found.slices == (0, 1, 2)
    assert found.notes == ()


def test_gaussian_noise_adds_up_in_quadrature_and_stays_below_zero():
    given = cohort()
    found = AddedNoise(snr=6.0)(given, (1,), 5)
    mean = float(given.images[1, 0, 10:50, 5:45].double().mean())
    added = (found.images[0] - given.images[1]).flatten().double().numpy()
    wanted = ((mean / 6) ** 2 - SIGMA**2) ** 0.5
    assert kstest(added, norm(scale=wanted).cdf).pvalue > 1e-3
    liver = found.images[0, 0, 10:50, 5:45].double()
    # SD of an SD of 1600 values: 1 / sqrt(3200) of it, 1.8 %
    assert float(liver.std()) == pytest.approx(mean / 6, rel=0.06)
    assert float(found.images.min()) < 0
    # the images of a slice and the slices have noise of their own
    both = np.corrcoef(added.reshape(4, -1))
    assert np.abs(both - np.eye(4)).max() < 4 / (HEIGHT * WIDTH) ** 0.5


def test_without_a_known_sigma_all_of_the_noise_is_added():
    given = cohort(sigma=0)
    found = AddedNoise(snr=10.0)(given, (0,), 0)
    added = (found.images[0] - given.images[0]).flatten().double().numpy()
    assert kstest(added, norm(scale=LIVER / 10).cdf).pvalue > 1e-3
    assert found.sigma is None


def test_noise_is_a_pure_function_of_seed_and_slice_and_one_draw_for_all_levels():
    given = cohort()
    alone, among = AddedNoise(snr=8.0)(given, (2,), 7), AddedNoise(snr=8.0)(given, (0, 2), 7)
    assert torch.equal(alone.images[0], among.images[1])
    assert not torch.equal(alone.images, AddedNoise(snr=8.0)(given, (2,), 8).images)
    clean = cohort(sigma=0)
    one, two = (AddedNoise(snr=snr)(clean, (0,), 7).images[0] - clean.images[0] for snr in (5.0, 10.0))
    assert torch.allclose(one, 2 * two, atol=1e-6)
    before = given.images.clone()
    for each in (AddedNoise(snr=4.0), BrightSquare(side=9), UnseenLesion(diameter_mm=20.0, time={"T1RHO": 0.08})):
        each(given, (0, 1), 0)
    assert torch.equal(given.images, before)


def test_more_snr_than_there_is_is_refused_with_what_there_is():
    given = cohort(sigma=0.05)
    mean = float(given.images[1, 0, 10:50, 5:45].double().mean())
    with pytest.raises(InputError, match=rf"^snr: got 30, slice 1 has {mean / 0.05:.4g} already.*take at most"):
        AddedNoise(snr=30.0)(given, (1,), 0)


# ------------------------------------------------------------------------------------------- square


def test_square_lies_in_the_middle_of_the_liver_and_is_constant_over_the_times():
    given = cohort()
    found = BrightSquare(side=20, brightness=3.0)(given, (0, 2), 0)
    wanted = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    # rows 10 to 49 and columns 5 to 44 are centred on 29.5 and 24.5, as rows 20 to 39 and columns 15 to 34 are
    wanted[20:40, 15:35] = True
    for k, i in enumerate((0, 2)):
        assert torch.equal(found.where[k], wanted)
        level = 3 * given.images[i, 0, 10:50, 5:45].double().mean()
        inside = found.images[k][:, wanted]
        assert inside.unique().numel() == 1
        assert float(inside[0, 0]) == pytest.approx(float(level), rel=1e-6)
        assert torch.equal(found.images[k][:, ~wanted], given.images[i][:, ~wanted])
    assert torch.equal(found.sigma, given.sigma[:2])


def test_square_goes_where_it_fits_nearest_to_the_centre_of_the_largest_part():
    given = cohort(slices=2)
    roi = torch.zeros_like(given.roi)
    # an L, whose centre of mass lies outside of it; and a smaller part elsewhere
    roi[0, 5:45, 5:15] = True
    roi[0, 35:45, 5:60] = True
    middle = np.argwhere(roi[0].numpy()).mean(0)
    assert not roi[0][tuple(middle.round().astype(int))]
    roi[0, 5:20, 40:60] = True
    everywhere = torch.ones_like(roi)
    found = BrightSquare(side=10)(replace(given, roi=roi, body=everywhere), (0, 1), 0)
    rows, columns = np.nonzero(found.where[0].numpy())
    assert found.where[0].sum() == 100
    assert bool(roi[0][found.where[0]].all())
    # by hand: a square of 10 can stand at every row of the stem and every column of the bar
    places = [(y, 5) for y in range(5, 36)] + [(35, x) for x in range(5, 51)]
    best = min(places, key=lambda at: (at[0] + 4.5 - middle[0]) ** 2 + (at[1] + 4.5 - middle[1]) ** 2)
    assert (rows.min(), columns.min()) == best
    # the second slice has no ROI
    assert found.slices == (0,)
    assert found.left_out == {1: "whose ROI has fewer than 8 voxels"}
    assert found.notes == ("bright square: 1 of 2 slices are left out, whose ROI has fewer than 8 voxels: 1",)


def test_square_lies_on_a_ragged_roi_with_most_of_it_inside_and_never_in_air():
    given = cohort(slices=1)
    # stripes of 2 rows, 4 columns wide but the one at row 20, which has 12; the body begins at column 5
    roi = torch.zeros_like(given.roi)
    for row in range(14, 44, 6):
        roi[0, row : row + 2, 5 : 17 if row == 20 else 9] = True
    found = BrightSquare(side=8)(replace(given, roi=roi), (0,), 0)
    rows, columns = np.nonzero(found.where[0].numpy())
    # its middle voxel, 4 below and right of its corner, lies in rows 20 and 21: its corner in rows 16 and 17, where no
    # other stripe is inside; in columns 5 to 9, where 16 voxels are. The centre is at row 20.5, column 10.5
    assert int(found.where.sum()) == 64
    assert (rows.min(), columns.min()) == (17, 7)
    assert int((found.where[0] & roi[0]).sum()) == 16


def test_a_slice_without_a_place_for_the_square_is_left_out_or_refused():
    given = cohort(slices=2)
    narrow = given.body.clone()
    narrow[1, 29:] = False  # 19 rows of the body are left
    found = BrightSquare(side=20)(replace(given, body=narrow), (0, 1), 0)
    assert found.left_out == {1: "where the bright square around the ROI leaves the body"}
    with pytest.raises(InputError, match=r"^bright square: has a place in no slice, where the bright square around"):
        BrightSquare(side=20)(replace(given, body=narrow), (1,), 0)
    narrow[1, 29] = True
    assert BrightSquare(side=20)(replace(given, body=narrow), (1,), 0).slices == (1,)
    with pytest.raises(InputError, match="smaller object"):
        BrightSquare(side=65)(given, (0,), 0)
    with pytest.raises(InputError, match="none was asked for"):
        BrightSquare(side=20)(given, (), 0)
    with pytest.raises(InputError, match="whose ROI is dark"):
        AddedNoise(snr=3.0)(replace(given, images=torch.zeros_like(given.images)), (0,), 0)


# ------------------------------------------------------------------------------------------- lesion


@pytest.mark.parametrize(("diameter", "spacing"), [(30.0, (2.0, 1.5)), (17.3, (1.0, 1.0)), (8.0, (4.0, 4.0))])
def test_disk_has_its_area_and_its_extent(diameter, spacing):
    share = disk(diameter, spacing)
    assert float(share.sum()) * spacing[0] * spacing[1] == pytest.approx(pi * diameter**2 / 4, rel=0.01)
    assert torch.equal(share, share.flip(0))
    assert torch.equal(share, share.flip(1))
    assert float(share.max()) == 1.0
    # an outer row or column is there only if the disk reaches it
    for axis, step in enumerate(spacing):
        assert diameter / step - 1e-9 <= share.shape[axis] < diameter / step + 2


def test_lesion_replaces_the_tissue_by_its_own_decay():
    given = cohort(sigma=0)
    found = UnseenLesion(diameter_mm=24.0, time={"T1RHO": 0.09}, brightness=1.4)(given, (0,), 3)
    share = disk(24.0, (2.0, 1.5))
    f = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
    # the middle voxel lies at row 29 or 30, column 24 or 25: centre 29.5, 24.5, the first in reading order
    top, left = 29 - share.shape[0] // 2, 24 - share.shape[1] // 2
    f[top : top + share.shape[0], left : left + share.shape[1]] = share
    for n, time in enumerate(TSL):
        tissue = LIVER * exp(-time / 0.042) * given.roi[0]
        lesion = 1.4 * LIVER * exp(-time / 0.09)
        assert torch.allclose(found.images[0, n].double(), (1 - f) * tissue + f * lesion, atol=1e-6)
    assert torch.equal(found.where[0], f > 0.5)
    assert int(((f > 0) & (f < 1)).sum()) > 20


def test_noise_of_the_lesion_is_rician_of_the_slice_inside_and_of_the_same_sd_at_the_edge():
    given = cohort(slices=40)
    lesion = UnseenLesion(diameter_mm=30.0, time={"T1RHO": 0.01}, brightness=0.8)
    found = lesion(given, range(40), 3)
    quiet = lesion(replace(given, sigma=None), (0,), 3)
    assert torch.equal(quiet.where[0], found.where[0])
    share = disk(30.0, (2.0, 1.5))
    top, left = 29 - share.shape[0] // 2, 24 - share.shape[1] // 2
    f = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
    f[top : top + share.shape[0], left : left + share.shape[1]] = share
    whole, edge = f == 1, (f > 0.2) & (f < 0.8)
    # m is the mean of each slice's ROI: 0.5 + sigma^2 / 2 / 0.5 to first order, the same within 1e-3
    m = float(given.images[:, 0][given.roi].double().mean())
    for n in (0, 3):  # at 50 ms the lesion is exp(-5) of 0.4: hardly more than noise, and not normal
        clean = 0.8 * m * exp(-TSL[n] / 0.01)
        values = found.images[:, n][:, whole].flatten().double().numpy()[::7]
        assert kstest(values, rice(clean / SIGMA, scale=SIGMA).cdf).pvalue > 1e-3
    values = found.images[:, 0][:, edge].double()
    assert values.shape[1] > 15
    # SD over 40 slices, mean over the voxels of the edge: 1 / sqrt(80) / sqrt(v), 3 % at most
    assert float(values.var(0).mean() ** 0.5) == pytest.approx(SIGMA, rel=0.08)
    outside = f == 0
    assert torch.equal(found.images[:, :, outside], given.images[:, :, outside])


def test_lesion_in_a_series_of_both_preparations_takes_both_times():
    model = SpinLockT2Prep(tsl=(0.0, 0.02, 0.0), te_prep=(0.0, 0.0, 0.03))
    given = cohort(sigma=0, model=model)
    found = UnseenLesion(diameter_mm=24.0, time={"T1RHO": 0.08, "T2": 0.06})(given, (0,), 0)
    middle = found.images[0, :, 29, 24].double()
    assert middle.tolist() == pytest.approx([LIVER, LIVER * exp(-0.02 / 0.08), LIVER * exp(-0.03 / 0.06)], rel=1e-5)
    with pytest.raises(InputError, match=r"^time: is given for T1RHO, the series has T1RHO, T2; give one of each"):
        UnseenLesion(diameter_mm=24.0, time={"T1RHO": 0.08})(given, (0,), 0)
    with pytest.raises(InputError, match=r"^diameter_mm: 1 mm fill no half of a voxel"):
        UnseenLesion(diameter_mm=1.0, time={"T1RHO": 0.08, "T2": 0.06})(given, (0,), 0)


# ------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("cls", "given", "text"),
    [
        (AddedNoise, {"snr": 0.0}, "snr"),
        (AddedNoise, {"snr": float("inf")}, "snr"),
        (BrightSquare, {"side": 0}, "side"),
        (BrightSquare, {"brightness": -1.0}, "brightness"),
        (UnseenLesion, {"diameter_mm": 0.0, "time": {"T1RHO": 0.1}}, "diameter_mm"),
        (UnseenLesion, {"diameter_mm": 20.0, "time": {"T1RHO": -0.1}}, r"time\.T1RHO"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(cls, given, text):
    with pytest.raises(ValueError, match=text):
        cls(**given)
    with pytest.raises(ValidationError):
        TypeAdapter(cls).validate_python(given)


def test_configs_can_name_them():
    read = TypeAdapter(Perturbation).validate_python
    assert read({"kind": "added_noise", "snr": 12, "noise": "rician"}) == AddedNoise(snr=12.0, noise="rician")
    assert read({"kind": "bright_square", "side": 8}) == BrightSquare(side=8)
    lesion = read({"kind": "unseen_lesion", "diameter_mm": 20, "time": {"T1RHO": 0.08}})
    assert lesion == UnseenLesion(diameter_mm=20.0, time={"T1RHO": 0.08})
    with pytest.raises(ValidationError):
        read({"kind": "bright_square", "sides": 8})
