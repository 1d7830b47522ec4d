"""What studies say of networks that were trained on random times, and of scans without a mask."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

import trainers
from qsim.signals import InversionRecovery
from trainers.protocols import Protocols
from trainers.studies.measured import Scans, read_scans
from trainers.studies.measured_maps import fit_methods, said_loudly
from trainers.studies.methods import Chosen, ModelEntry, Renamed, choose
from trainers.studies.phantom_plan import trained_times

TI = (0.1, 0.2, 0.4, 0.7, 1.1, 1.6, 2.2)
MODEL = InversionRecovery(ti=TI)


def test_times_of_the_training_are_those_of_the_data_and_the_random_ones():
    network = trainers.load("rim-t1", MODEL)
    data = network.trained_on.signal_model.ti

    def spans(*protocols):
        return trained_times(
            tuple(Chosen(replace(network, name=str(i), protocols=each)) for i, each in enumerate(protocols))
        )

    assert spans(None) == (min(data), max(data))
    wide = Protocols(first=0.05, last=3.0)
    assert spans(wide) == (0.05, 3.0)
    late = Protocols(first=0.5, last=3.0)
    assert spans(late) == (min(data), 3.0)
    # a training that saw nothing but its random times
    assert spans(replace(late, share=1.0)) == (0.5, 3.0)
    # of several networks: what all of them have seen
    assert spans(wide, None, replace(late, share=1.0)) == (0.5, max(data))
    renamed = Chosen(Renamed("mine", replace(network, protocols=wide)))
    assert trained_times((renamed,)) == (0.05, 3.0)
    assert trained_times(tuple(choose(["shared-b"], (), MODEL))) is None


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """An object of 300 voxels in air, Rician noise: a file of images, and one of its mask."""
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(3)
    y, x = np.indices((30, 28))
    inside = (y - 15) ** 2 + (x - 14) ** 2 < 95
    t1 = 0.7 + 0.4 * rng.random(inside.shape)
    images = [np.where(inside, 500 * np.abs(1 - 1.9 * np.exp(-ti / t1)), 0) for ti in TI]
    noise = 10 * rng.standard_normal((2, len(TI), 30, 28))
    volume = np.hypot(np.stack(images) + noise[0], noise[1]).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume.T[:, :, None], np.eye(4)), folder / "scan.nii.gz")
    (folder / "scan.json").write_text(json.dumps({"InversionTime": TI}))
    nibabel.save(nibabel.Nifti1Image(inside.T[:, :, None].astype(np.uint8), np.eye(4)), folder / "mask.nii.gz")
    # the same with a background of zeros, as of an extracted brain
    nibabel.save(nibabel.Nifti1Image((volume * inside).T[:, :, None], np.eye(4)), folder / "bare.nii.gz")
    (folder / "bare.json").write_text(json.dumps({"InversionTime": TI}))
    return folder, int((~inside).sum())


def warned(folder, name, mask, methods):
    measured = read_scans(Scans(series=(str(folder / name),), mask=mask, sigma=10.0), "data.scans")
    return measured, said_loudly(fit_methods(choose(methods, (), measured.model), measured)[1])


def test_air_in_what_is_common_to_all_voxels_is_said(scan):
    folder, air = scan
    methods = ["least-squares", "shared-b", ModelEntry(model="rim-t1", name="net")]
    measured, said = warned(folder, "scan.nii.gz", None, methods)
    # Otsu's threshold may put a few voxels on the other side
    assert measured.air == pytest.approx(air, abs=12)
    assert said == [
        f"shared-b, net: B is found from every voxel, {measured.air} of them outside of the object, where air would "
        "shift it; mask: auto, or the file of a mask, in data.scans leaves them out"
    ]
    assert warned(folder, "scan.nii.gz", None, ["least-squares"])[1] == []
    for mask in ("auto", str(folder / "mask.nii.gz")):
        measured, said = warned(folder, "scan.nii.gz", mask, methods)
        assert (measured.air, said) == (0, [])
    # zeros are not computed anyway
    measured, said = warned(folder, "bare.nii.gz", None, methods)
    assert (measured.air, said) == (0, [])
