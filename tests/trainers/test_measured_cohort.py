"""A user's own series: written as NIfTI, read back as a cohort, and what cannot be one."""

import gzip
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

import trainers
from generators.reading import read_config
from qsim.errors import InputError
from qsim.signals import SpinLock, SpinLockT2Prep, T2Prep
from tests.trainers.test_cohort import generate
from trainers.config import TrainConfig
from trainers.fit import fit, open_source
from trainers.relaxation.cohort_config import CohortConfig, open_cohort
from trainers.relaxation.measured_cohort import SubjectScans, read_cohort
from trainers.studies.calibrate_run import calibrate_run
from trainers.studies.cohort_networks import _opened

ROOT = Path(__file__).parents[2]
TSL = [0.0, 0.01, 0.03, 0.05]
PLACE = np.diag([-1.5, 2.0, 7.0, 1.0])
SPACE = (22, 18)  # x, y


@dataclass
class Digital:
    """Three subjects of 2, 3 and 2 slices, and their files in a folder."""

    folder: Path
    images: list[np.ndarray]  # z n y x each
    roi: list[np.ndarray]
    body: list[np.ndarray]

    def entry(self, i, **changes):
        number = f"{i + 1:02d}"
        plain = {
            "id": number,
            "series": [str(self.folder / f"sub-{number}_T1rho.nii.gz")],
            "roi": str(self.folder / f"sub-{number}_roi.nii.gz"),
        }
        return plain | changes

    def entries(self, n=3, **changes):
        return tuple(SubjectScans.model_validate(self.entry(i, **changes)) for i in range(n))


def save(path, array, place=PLACE):
    """Axes z y x, or z n y x."""
    turned = array.transpose(2, 1, 0) if array.ndim == 3 else array.transpose(3, 2, 0, 1)
    nibabel.save(nibabel.Nifti1Image(turned, place), path)


def sidecar(path, **content):
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def digital(tmp_path):
    """An ellipse of tissue in noise of air, a liver in it that the last slice lacks."""
    rng = np.random.default_rng(2)
    width, height = SPACE
    y, x = np.mgrid[:height, :width]
    inside = ((y - 8.5) / 8) ** 2 + ((x - 10.5) / 10) ** 2 < 1
    found = Digital(tmp_path, [], [], [])
    for i, slices in enumerate((2, 3, 2)):
        body = np.broadcast_to(inside, (slices, height, width))
        roi = np.zeros_like(body)
        roi[:-1, 5:12, 6:12] = True
        decay = np.exp(-np.array(TSL) / (0.04 + 0.005 * i))
        clean = 300 * body[:, None] * decay[:, None, None]
        noise = rng.normal(0, 3, (2, *clean.shape))
        images = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
        path = tmp_path / f"sub-{i + 1:02d}_T1rho.nii.gz"
        save(path, images)
        sidecar(path, SpinLockTime=TSL)
        save(tmp_path / f"sub-{i + 1:02d}_roi.nii.gz", roi.astype(np.uint8))
        save(tmp_path / f"sub-{i + 1:02d}_body.nii.gz", body.astype(np.uint8))
        found.images.append(images)
        found.roi.append(roi)
        found.body.append(np.array(body))
    return found


def test_a_cohort_that_was_written_is_read_back(digital):
    found = read_cohort(digital.entries())
    assert np.array_equal(found.images.numpy(), np.concatenate(digital.images))
    assert np.array_equal(found.roi.numpy(), np.concatenate(digital.roi))
    # tissue of 300 in air of 3 is told apart without an error
    assert np.array_equal(found.body.numpy(), np.concatenate(digital.body))
    assert found.subject.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert found.model == SpinLock(tsl=tuple(TSL))
    assert found.spacing_mm == (2.0, 1.5)
    assert found.images.dtype == torch.float32
    assert (dict(found.truth), found.labels, found.sigma) == ({}, None, None)
    assert found.name == "measured series of 3 subjects, 7 slices"


def test_sigma_and_a_body_mask_are_taken_as_given(digital):
    entries = [
        SubjectScans.model_validate(
            digital.entry(i, sigma=2.0 + i, body=str(digital.folder / f"sub-{i + 1:02d}_roi.nii.gz"))
        )
        for i in range(2)
    ]
    found = read_cohort(entries)
    assert found.sigma.tolist() == [2.0, 2.0, 3.0, 3.0, 3.0]
    assert torch.equal(found.body, found.roi)


def test_roi_is_body_even_where_it_is_as_dark_as_air(digital):
    roi = digital.roi[0].copy()
    roi[0, 0, 0] = True
    save(digital.folder / "sub-01_roi.nii.gz", roi.astype(np.uint8))
    found = read_cohort(digital.entries(1))
    assert np.array_equal(found.body.numpy(), digital.body[0] | roi)


def test_one_file_for_each_image_gives_the_same_cohort(digital):
    paths = []
    for n, time in enumerate(TSL):
        path = digital.folder / f"one_{n}.nii.gz"
        save(path, digital.images[0][:, n])
        sidecar(path, SpinLockTime=time)
        paths.append(str(path))
    first = SubjectScans.model_validate(digital.entry(0, series=paths))
    found = read_cohort((first, *digital.entries()[1:]))
    assert np.array_equal(found.images.numpy(), np.concatenate(digital.images))
    assert found.model == SpinLock(tsl=tuple(TSL))
    with pytest.raises(InputError, match=r"^cohort\.scans\[0\]\.series: .*sub-02.*: holds 4 images; several files"):
        read_cohort((SubjectScans.model_validate(digital.entry(0, series=[*paths, digital.entry(1)["series"][0]])),))


def test_times_in_the_config_and_the_other_preparations(digital):
    for path in digital.folder.glob("*_T1rho.json"):
        path.unlink()
    times = tuple(TSL)
    assert read_cohort(digital.entries(times=times, key="T2PrepTime")).model == T2Prep(te_prep=times)
    with pytest.raises(ValidationError, match="key: missing; with times say what they are"):
        SubjectScans.model_validate(digital.entry(0, times=times))
    both = {"SpinLockTime": [0.0, 0.02, 0.04, 0.0], "T2PrepTime": [0.0, 0.0, 0.0, 0.03]}
    for i in range(3):
        sidecar(digital.folder / f"sub-{i + 1:02d}_T1rho.nii.gz", **both)
    wanted = SpinLockT2Prep(tsl=(0.0, 0.02, 0.04, 0.0), te_prep=(0.0, 0.0, 0.0, 0.03))
    assert read_cohort(digital.entries()).model == wanted
    sidecar(digital.folder / "sub-01_T1rho.nii.gz", EchoTime=TSL)
    with pytest.raises(InputError, match=r"^cohort\.scans\[0\]\.series: .*sub-01_T1rho.nii.gz comes with EchoTime"):
        read_cohort(digital.entries())


def test_digest_is_of_the_contents_wherever_they_lie(digital, tmp_path_factory):
    first = read_cohort(digital.entries()).digest
    assert read_cohort(digital.entries()).digest == first
    elsewhere = tmp_path_factory.mktemp("other")
    shutil.copytree(digital.folder, elsewhere, dirs_exist_ok=True)
    moved = Digital(elsewhere, digital.images, digital.roi, digital.body)
    assert read_cohort(moved.entries()).digest == first
    assert read_cohort(moved.entries(2)).digest != first
    assert read_cohort(moved.entries(sigma=3.0)).digest != first
    assert read_cohort(moved.entries()[::-1]).digest != first
    sidecar(elsewhere / "sub-01_T1rho.nii.gz", SpinLockTime=[*TSL[:3], 0.05 + 5e-7])
    assert read_cohort(moved.entries()).digest != first
    sidecar(elsewhere / "sub-01_T1rho.nii.gz", SpinLockTime=TSL)
    digital.roi[0][0, 5, 5] = True
    save(elsewhere / "sub-01_roi.nii.gz", digital.roi[0].astype(np.uint8))
    assert read_cohort(moved.entries()).digest != first


# ------------------------------------------------------------------------------------------- refusals


def _missing(d):
    (d.folder / "sub-02_T1rho.nii.gz").unlink()


def _no_roi_file(d):
    (d.folder / "sub-02_roi.nii.gz").unlink()


def _cropped_roi(d):
    save(d.folder / "sub-02_roi.nii.gz", d.roi[1][:, 1:].astype(np.uint8))


def _moved_roi(d):
    save(d.folder / "sub-02_roi.nii.gz", d.roi[1].astype(np.uint8), np.diag([-1.5, 2.0, 8.0, 1.0]))


def _empty_roi(d):
    save(d.folder / "sub-02_roi.nii.gz", 0 * d.roi[1].astype(np.uint8))


def _labels(d):
    save(d.folder / "sub-02_roi.nii.gz", d.roi[1].astype(np.uint8) + d.body[1])


def _times(d):
    sidecar(d.folder / "sub-02_T1rho.nii.gz", SpinLockTime=[0.0, 0.01, 0.0301, 0.05])


def _fewer(d):
    save(d.folder / "sub-02_T1rho.nii.gz", d.images[1][:, :3])
    sidecar(d.folder / "sub-02_T1rho.nii.gz", SpinLockTime=TSL[:3])


def _prepared(d):
    sidecar(d.folder / "sub-02_T1rho.nii.gz", T2PrepTime=TSL)


def _matrix(d):
    save(d.folder / "sub-02_T1rho.nii.gz", d.images[1][:, :, :-1])
    save(d.folder / "sub-02_roi.nii.gz", d.roi[1][:, :-1].astype(np.uint8))


def _voxels(d):
    place = np.diag([-1.6, 2.0, 7.0, 1.0])
    save(d.folder / "sub-02_T1rho.nii.gz", d.images[1], place)
    save(d.folder / "sub-02_roi.nii.gz", d.roi[1].astype(np.uint8), place)


def _nan(d):
    images = d.images[1].copy()
    images[0, 0, 0, :2] = np.nan
    save(d.folder / "sub-02_T1rho.nii.gz", images)


def _no_sidecar(d):
    (d.folder / "sub-02_T1rho.json").unlink()


def _dark(d):
    save(d.folder / "sub-02_T1rho.nii.gz", np.zeros_like(d.images[1]))


def _no_nifti(d):
    (d.folder / "sub-02_roi.nii.gz").write_bytes(gzip.compress(b"no image"))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_missing, r"series: .*sub-02_T1rho.nii.gz: no such file"),
        (_no_roi_file, r"roi: .*sub-02_roi.nii.gz: no such file"),
        (_no_nifti, r"roi: .*sub-02_roi.nii.gz"),
        (_cropped_roi, r"roi: .*sub-02_roi.nii.gz has shape \(22, 17, 3\), the images of .*resample it to their grid"),
        (_moved_roi, r"roi: .*sub-02_roi.nii.gz and the series lie in different places.*resample it first"),
        (_empty_roi, r"roi: .*sub-02_roi.nii.gz holds no voxel"),
        (_labels, r"roi: .*sub-02_roi.nii.gz holds more than 0 and one other number"),
        (_times, r"series: .*sub-02.*: image 2 is at 30.1 ms, that of .*sub-01_T1rho.nii.gz at 30 ms; .*same times"),
        (_fewer, r"series: .*sub-02.* is spin_lock of 3 images, .*sub-01.* is spin_lock of 4 images"),
        (_prepared, r"series: .*sub-02.* is t2_prep of 4 images, .*sub-01.* is spin_lock of 4 images"),
        (_matrix, r"series: .*sub-02.* has the matrix 22 x 17, .*sub-01.* 22 x 18 \(x, y\); resample"),
        (_voxels, r"series: .*sub-02.* has voxels of 1.6 x 2 mm, .*sub-01.* of 1.5 x 2 mm \(x, y\); resample"),
        (_nan, r"series: .*sub-02.* holds NaN or infinity in 2 voxels.*write 0"),
        (_dark, r"series: .*sub-02.* holds no value above 0.*; leave 02 out"),
        (_no_sidecar, r"series: .*sub-02_T1rho.nii.gz: has no sidecar"),
    ],
)
def test_what_cannot_be_a_subject_is_refused_in_one_line_naming_its_file(digital, spoil, text):
    spoil(digital)
    with pytest.raises(InputError, match=rf"^cohort\.scans\[1\]\.{text}") as refused:
        read_cohort(digital.entries())
    assert "\n" not in str(refused.value)


def test_times_within_a_microsecond_are_the_same(digital):
    sidecar(digital.folder / "sub-02_T1rho.nii.gz", SpinLockTime=[0.0, 0.01, 0.03 + 9e-7, 0.05])
    assert read_cohort(digital.entries()).model == SpinLock(tsl=tuple(TSL))


def test_a_body_that_leaves_out_part_of_the_roi_is_refused(digital):
    body = digital.body[0].copy()
    body[0, 5, 6:9] = False
    save(digital.folder / "sub-01_body.nii.gz", body.astype(np.uint8))
    entry = digital.entry(0, body=str(digital.folder / "sub-01_body.nii.gz"))
    with pytest.raises(InputError, match=r"^cohort\.scans\[0\]\.body: .*sub-01_body.nii.gz leaves out 3 voxels"):
        read_cohort((SubjectScans.model_validate(entry),))


def test_two_subjects_with_the_same_series_are_refused(digital):
    again = digital.entry(1, series=digital.entry(0)["series"], roi=digital.entry(0)["roi"])
    with pytest.raises(InputError, match=r"^cohort\.scans\[1\]\.series: .*sub-01.* is the series of 01 too"):
        read_cohort((digital.entries(1)[0], SubjectScans.model_validate(again)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scans": None}, "give one of generate"),
        ({"store": "x.zarr"}, "give one of generate"),
        ({"scans": []}, "scans: is empty"),
        ({"second_store": "x.zarr"}, "second_store: goes with store"),
    ],
)
def test_configs_hold_one_source(digital, changes, text):
    plain = {"scans": [digital.entry(i) for i in range(3)]} | changes
    with pytest.raises(ValidationError, match=text):
        CohortConfig.model_validate(plain)


def test_a_second_series_needs_a_sequence_with_another_preparation():
    second = {"kind": "t2_prep", "refocusing": "MLEV4", "te": [0.0, 0.02]}
    given = generate(model={"kind": "spin_lock", "tsl": TSL})
    with pytest.raises(ValidationError, match=r"second: is another preparation.*set generate\.model\.kind: bloch"):
        CohortConfig.model_validate({"generate": given, "second": second, "folds": 3})


def test_configs_name_every_subject_once_and_sigma_of_all_or_none(digital):
    with pytest.raises(ValidationError, match="id 01 occurs twice"):
        CohortConfig.model_validate({"scans": [digital.entry(0), digital.entry(1, id="01")]})
    with pytest.raises(ValidationError, match="sigma is given for 02 and not for 01"):
        CohortConfig.model_validate({"scans": [digital.entry(0), digital.entry(1, sigma=2.0)]})
    with pytest.raises(ValidationError, match="sigmas"):
        CohortConfig.model_validate({"scans": [digital.entry(0, sigmas=2.0)]})


# ------------------------------------------------------------------------------------------- training


def _training(digital, **cohort):
    plain = {"scans": [digital.entry(i) for i in range(3)], "folds": 3, "validation": 1} | cohort
    return TrainConfig.model_validate(
        {
            "seed": 1,
            "data": {"cohort": plain},
            "task": {"kind": "self_supervised"},
            "network": {"kind": "unet", "levels": 2, "features": 4},
            "iterations": 2,
            "batch": 2,
            "lr": 0.001,
        }
    )


def test_a_training_takes_the_cohort_by_subject(digital):
    source = open_source(_training(digital))
    assert isinstance(_training(digital).data.cohort, CohortConfig)
    record = source.record["subjects"]
    assert sorted(subject for group in record.values() for subject in group) == [0, 1, 2]
    assert [len(record[name]) for name in ("trained_on", "validated_on", "left_out")] == [1, 1, 1]
    batch = source.take([0])
    first = record["trained_on"][0]
    assert np.array_equal(batch.images[0].numpy(), digital.images[first][0])
    assert source.digest == open_cohort(_training(digital).data.cohort).digest


def test_intervals_are_calibrated_on_the_data_of_the_training_alone(digital, tmp_path):
    run = tmp_path / "run"
    fit(_training(digital), run, device="cpu", console=Console(file=io.StringIO()))
    with pytest.raises(InputError, match=r"^against: the truth is known of simulated cohorts only; take fit"):
        calibrate_run(run)
    series = torch.from_numpy(digital.images[0].swapaxes(0, 1)).float()
    model = SpinLock(tsl=tuple(TSL))
    plain = trainers.load(run, model, images=(0, 1), samples=2)(series).variances
    (factor,) = calibrate_run(run, "fit", samples=2).values()
    scaled = trainers.load(run, model, images=(0, 1), samples=2)(series).variances
    before, after = (sum(each.values())[0].double().sqrt().numpy() for each in (plain, scaled))
    # the SD stated, times what the file now holds for an SD of that size
    assert after == pytest.approx(before * factor(before), rel=1e-4)
    assert not np.allclose(after, before)
    save(digital.folder / "sub-02_T1rho.nii.gz", 2 * digital.images[1])
    # the cohort of a config is read once in a process
    _opened.cache_clear()
    with pytest.raises(InputError, match=r"data\.cohort: holds other data than those of the training"):
        calibrate_run(run, "fit", samples=2)


def test_fewer_subjects_than_folds_are_refused(digital):
    with pytest.raises(InputError, match=r"^folds: got 4 groups for 3 subjects; wanted 2 to 3"):
        open_source(_training(digital, folds=4))


def test_the_example_config_asks_for_files_that_are_not_there(tmp_path, monkeypatch):
    config = read_config(ROOT / "configs" / "huang2022" / "train_own_series.yaml", TrainConfig)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^cohort\.scans\[0\]\.series: sub-01_T1rho.nii.gz: no such file$"):
        open_source(config)
