"""A measured series with spin-locked and T2-prepared images: opened, its model chosen, mapped by the command."""

import json
import re
import sys
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest

from phantoms.files.map_files import read_map
from phantoms.series import key_for, model_and_notes, model_for, open_series
from qsim.errors import InputError
from qsim.signals import SpinLock, SpinLockT2Prep, T2Prep
from trainers import cli

TSL = [0.0, 0.01, 0.03, 0.05, 0.0, 0.0, 0.0]
TE = [0.0, 0.0, 0.0, 0.0, 0.0182, 0.0346, 0.051]
PAIRS = list(zip(TSL, TE, strict=True))
BOTH = {"SpinLockTime": TSL, "T2PrepTime": TE, "SpinLockFrequency": 400}
MODEL = SpinLockT2Prep(tsl=tuple(TSL), te_prep=tuple(TE))
SHAPE = (12, 10, 2)


def truth():
    """A disc: A [units of the scanner], T1rho and T2 [s], and where it is, over x, y, z."""
    x, y, z = np.indices(SHAPE)
    inside = (x - 6) ** 2 + (y - 5) ** 2 < 16
    return 600.0 + 20 * x, 0.035 + 0.002 * y + 0.001 * z, 0.02 + 0.003 * x, inside


def images():
    a, t1rho, t2, inside = truth()
    return [np.where(inside, a * np.exp(-tsl / t1rho - te / t2), 0).astype(np.float32) for tsl, te in PAIRS]


def save(folder: Path, content: dict[str, object], name: str = "liver") -> Path:
    file = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack(images(), -1), np.diag([1.5, 1.5, 7.0, 1.0])), file)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return file


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        open_series(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_two_lists_that_differ_are_one_model(tmp_path):
    series = open_series(save(tmp_path, BOTH))
    assert (series.key, series.times, series.te_prep) == ("SpinLockTime", tuple(TSL), tuple(TE))
    assert series.protocol == {"SpinLockFrequency": 400}
    assert model_for(series) == MODEL
    # images with different T2 preparations are no repeats, and nothing was left out
    assert not any("repeats" in note or "left out" in note for note in series.notes)


@pytest.mark.parametrize("suffix", ["T1rhow", "T2prepw"])
def test_the_suffix_of_one_contrast_does_not_hide_the_other(tmp_path, suffix):
    assert model_for(open_series(save(tmp_path, BOTH, f"sub-1_{suffix}"))) == MODEL


def test_repeats_are_images_in_which_both_are_the_same(tmp_path):
    content = {"SpinLockTime": [*TSL[:6], 0.0], "T2PrepTime": [*TE[:6], 0.0346]}
    notes = open_series(save(tmp_path, content)).notes
    assert any("SpinLockTime and T2PrepTime 0 with 0.0346 occurs more than once" in note for note in notes)


@pytest.mark.parametrize("constant", [0.0, 0.02, [0.02] * 7, [0.02]])
def test_where_only_one_differs_the_model_is_the_old_one(tmp_path, constant):
    times = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    locked = open_series(save(tmp_path, {"SpinLockTime": times, "T2PrepTime": constant}, "one"))
    assert (model_for(locked), locked.te_prep) == (SpinLock(tsl=tuple(times)), ())
    prepared = open_series(save(tmp_path, {"SpinLockTime": constant, "T2PrepTime": times}, "two"))
    assert (model_for(prepared), prepared.te_prep) == (T2Prep(te_prep=tuple(times)), ())


def test_a_signal_of_one_contrast_says_what_it_leaves_out(tmp_path):
    file = save(tmp_path, BOTH)
    model, notes = model_and_notes((open_series(file, key=key_for("spin_lock")),), "spin_lock")
    assert model == SpinLock(tsl=tuple(TSL))
    assert any("T2PrepTime differs between the images and is no part of spin_lock" in note for note in notes)
    prepared = open_series(file, key=key_for("t2_prep"))
    assert model_for(prepared, "t2_prep") == T2Prep(te_prep=tuple(TE))
    assert any("SpinLockTime differs between the images and was left out" in note for note in prepared.notes)
    both = open_series(file, key=key_for("spin_lock_t2_prep"))
    assert model_for(both, "spin_lock_t2_prep") == MODEL


def test_what_cannot_be_meant(tmp_path):
    refused(save(tmp_path, BOTH | {"T2PrepTime": TE[:6]}), "liver.json: T2PrepTime holds 6 times for 7 images")
    refused(save(tmp_path, BOTH | {"SpinLockTime": TSL[:6]}), "liver.json: SpinLockTime holds 6 times for 7 images")
    refused(save(tmp_path, BOTH | {"T2PrepTime": [1000 * te for te in TE]}), "T2PrepTime must be in seconds", "1000")
    refused(save(tmp_path, BOTH | {"EchoTime": TSL}), "liver.json: ", "all hold a list", "--signal")
    alike = open_series(save(tmp_path, {"SpinLockTime": TSL, "T2PrepTime": [2 * tsl for tsl in TSL]}))
    with pytest.raises(InputError, match=r"liver.nii.gz: tsl and te_prep: .*rank 2, wanted 3"):
        model_for(alike)
    plain = open_series(save(tmp_path, {}), times=TSL, key="SpinLockTime")
    with pytest.raises(InputError, match=r"spin_lock_t2_prep needs SpinLockTime and T2PrepTime .*--times gives one"):
        model_for(plain, "spin_lock_t2_prep")


def each_a_file(folder: Path) -> Path:
    for n, (volume, (tsl, te)) in enumerate(zip(images(), PAIRS, strict=True)):
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.5, 1.5, 7.0, 1.0])), folder / f"image_{n}.nii")
        (folder / f"image_{n}.json").write_text(json.dumps({"SpinLockTime": tsl, "T2PrepTime": te}))
    return folder / "image_*.nii"


def test_one_number_in_each_of_several_files(tmp_path):
    pattern = each_a_file(tmp_path)
    series = open_series(pattern)
    assert (series.times, series.te_prep, model_for(series)) == (tuple(TSL), tuple(TE), MODEL)
    (tmp_path / "image_2.json").write_text(json.dumps({"SpinLockTime": 0.03}))
    refused(pattern, "image_2.json: has no T2PrepTime, which other images have; write 0")


@pytest.mark.parametrize("method", ["least-squares", "log-linear", "two-point"])
def test_the_command_writes_both_maps(tmp_path, monkeypatch, capsys, unchecked, method):
    file, out = save(tmp_path, BOTH, "sub-07_T1rhow"), tmp_path / "maps"
    words = ["map", str(file), "--method", method, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["qsim", *words])
    with suppress(SystemExit):
        cli.main()
    assert re.search(r"T1rho +median .*\n *T2map +median", capsys.readouterr().out)
    a, t1rho, t2, inside = (each.T for each in truth())
    folder = out / "sub-07" / "anat"
    for suffix, wanted in (("T1rho", t1rho), ("T2map", t2), ("S0map", a)):
        found = read_map(folder / f"sub-07_{suffix}.nii.gz")
        np.testing.assert_allclose(found[inside], wanted[inside], rtol=3e-5)
        said = json.loads((folder / f"sub-07_{suffix}.json").read_text())
        assert (said["SpinLockTime"], said["T2PrepTime"]) == (TSL, TE)
        assert said["SignalModel"] == {"kind": "spin_lock_t2_prep", "tsl": TSL, "te_prep": TE}
        assert said["Units"] == ("arbitrary" if suffix == "S0map" else "s")
    status = read_map(folder / "sub-07_desc-status_T1rho.nii.gz")
    assert (status[inside] == 0).all()
    assert (status[~inside] == 3).all()
