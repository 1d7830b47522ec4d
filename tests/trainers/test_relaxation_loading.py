"""Trained relaxation networks where networks are taken: loading, `qsim map`, studies, and giving one away.

The networks average images over squares and take the two-point time t / log(I_first / I_later), so that they answer the
truth wherever it is constant and without noise, however little they were trained.
"""

import io
import json
import sys

import nibabel
import numpy as np
import pytest
import torch
from rich.console import Console

import trainers
from phantoms.files.map_files import read_map
from qsim.errors import InputError
from qsim.estimators.base import Estimator, Status
from qsim.signals import GradientEcho, SpinEcho, SpinLock, SpinLockT2Prep, T2Prep
from trainers import cli
from trainers.checkpoint import load_tensors, save_tensors
from trainers.config import TrainConfig
from trainers.fit import fit
from trainers.registry import registries
from trainers.relaxation import shipping
from trainers.relaxation.cohort import Cohort
from trainers.relaxation.shipping import calibrate, ship
from trainers.relaxation.source import cohort_source
from trainers.studies.calibrate_run import calibrate_run
from trainers.studies.methods import ModelEntry, check_shapes, choose

LOCKED = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
BOTH = SpinLockT2Prep(tsl=(0.0, 0.01, 0.03, 0.0, 0.0), te_prep=(0.0, 0.0, 0.0, 0.02, 0.04))
PAIR = SpinLock(tsl=(0.0, 0.03))
FEW = {"features": 2, "levels": 2, "up": "bilinear"}
NETS = {
    "mean": (LOCKED, {**FEW, "inputs": "two_point", "answer": "averaging", "sizes": [1, 3]}),
    "plain": (LOCKED, {**FEW, "inputs": "images", "scale": "none", "dropout": 0.0}),
    "both": (BOTH, {**FEW, "inputs": "two_point", "answer": "averaging", "sizes": [1, 3]}),
    "pairs": (BOTH, {**FEW, "inputs": "images"}),
}


def cohort(model):
    """Six subjects of random maps, 24 x 24."""
    generator = torch.Generator().manual_seed(4)
    blocks = torch.rand(len(model.parameters), 6, 4, 4, generator=generator).repeat_interleave(6, 2)
    kappa = (0.03 + 0.03 * blocks).repeat_interleave(6, 3)
    kappa[0] = 1.0
    images = model(kappa).movedim(0, 1)
    inside = torch.ones(6, 24, 24, dtype=torch.bool)
    return Cohort("six", images.contiguous(), model, torch.arange(6), inside, inside, (1.0, 1.0), digest="0")


def train(folder, name, seed=1):
    model, network = NETS[name]
    config = TrainConfig.model_validate(
        {
            "seed": seed,
            "data": {"cohort": {"store": "/somewhere/else/six.zarr", "folds": 3, "validation": 1}},
            "task": {"kind": "self_supervised", "augment": None},
            "network": {"kind": "unet", **network},
            "iterations": 2,
            "batch": 2,
            "lr": 0.01,
            "precision": "fp32",
        }
    )
    source = cohort_source(cohort(model), config.data.cohort, "constraint")
    fit(config, folder, device="cpu", console=Console(file=io.StringIO()), source=source)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relaxation")
    for name in NETS:
        train(folder / name, name)
    train(folder / "other", "mean", seed=2)
    return folder


def constant(model, *times, shape=(11, 9), brightness=1.0):
    """A series of one tissue, of any matrix."""
    kappa = [torch.full(shape, brightness), *(torch.full(shape, time) for time in times)]
    return model(torch.stack(kappa))


def noisy(model, *times, shape=(11, 9)):
    noise = torch.randn(model.n_images, *shape, generator=torch.Generator().manual_seed(2))
    return (constant(model, *times, shape=shape) + 0.03 * noise).abs()


def header_of(run):
    return load_tensors(run / "model.safetensors")


# ------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("model", "brightness"),
    [(PAIR, 1.0), (PAIR, 1e-4), (PAIR, 3e4), (SpinLock(tsl=(0.03, 0.0)), 1.0), (SpinLock(tsl=(0.002, 0.022)), 1.0)],
)
def test_two_images_of_any_brightness_order_and_matrix_give_the_time(runs, model, brightness):
    estimator = trainers.load(runs / "mean", model)
    assert isinstance(estimator, Estimator)
    assert (estimator.name, [p.name for p in estimator.parameters]) == ("self_supervised", ["T1RHO"])
    found = estimator(constant(model, 0.045, brightness=brightness))
    torch.testing.assert_close(found.kappa, torch.full((1, 11, 9), 0.045), rtol=1e-3, atol=0.0)
    assert set(found.variances) == {"aleatoric", "epistemic"}
    assert (found.status == int(Status.OK)).all()


def test_three_images_give_both_times(runs):
    model = SpinLockT2Prep(tsl=(0.0, 0.02, 0.0), te_prep=(0.0, 0.0, 0.03))
    estimator = trainers.load(runs / "both", model)
    found = estimator(constant(model, 0.045, 0.06)).kappa
    assert [p.name for p in estimator.parameters] == ["T1RHO", "T2"]
    torch.testing.assert_close(found[0], torch.full((11, 9), 0.045), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(found[1], torch.full((11, 9), 0.06), rtol=1e-3, atol=0.0)


def test_chosen_images_of_a_longer_series(runs):
    series = noisy(LOCKED, 0.045)
    whole, pair = trainers.load(runs / "mean", LOCKED, images=(0, 2)), trainers.load(runs / "mean", PAIR)
    assert torch.equal(whole(series).kappa, pair(series[[0, 2]]).kappa)
    # what is not shown may be anything
    series[1] = torch.nan
    assert torch.equal(whole(series).variances["epistemic"], pair(series[[0, 2]]).variances["epistemic"])
    with pytest.raises(InputError, match="holds 2 images, the model has 4 times"):
        whole(series[:2])
    # the spin-locked images of a joint series are a spin-lock series
    alone = trainers.load(runs / "mean", BOTH, images=(0, 2))
    assert torch.equal(alone(noisy(BOTH, 0.045, 0.06)).kappa, pair(noisy(BOTH, 0.045, 0.06)[[0, 2]]).kappa)


def test_options_of_the_answer(runs):
    series = noisy(PAIR, 0.045)
    once = trainers.load(runs / "mean", PAIR, samples=0)(series)
    assert set(once.variances) == {"aleatoric"}
    assert trainers.load(runs / "mean", PAIR).estimator.samples == 20
    # without dropout there is nothing to draw, without a scale nothing to tell
    plain = trainers.load(runs / "plain", PAIR)
    assert (plain.estimator.samples, plain(series).variances) == (0, {})
    # b = exp(-3.5) as it starts, and hardly learned; its square is no time
    literal = trainers.load(runs / "mean", PAIR, samples=0, units="literal")
    assert any(note.startswith("units: literal") for note in literal.notes)
    assert not torch.equal(literal(series).variances["aleatoric"], once.variances["aleatoric"])


def test_several_runs_are_an_ensemble(runs):
    """The mean of their maps; their spread is the variance between them."""
    series = noisy(PAIR, 0.045)
    one, two = (trainers.load(runs / name, PAIR, samples=0)(series).kappa for name in ("mean", "other"))
    together = trainers.load((runs / "mean", runs / "other"), PAIR, samples=0)(series)
    torch.testing.assert_close(together.kappa, (one + two) / 2, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(together.variances["epistemic"], ((one - two) / 2) ** 2, rtol=1e-2, atol=1e-12)
    assert float((one - two).abs().max()) > 0


def test_times_of_the_training_alone_where_the_network_is_not_told_them(runs):
    for tsl in ((0.0, 0.03), (0.0, 0.0302), (0.001, 0.0311)):
        trainers.load(runs / "plain", SpinLock(tsl=tsl))
    with pytest.raises(InputError, match=r"^times: 31 ms lie .* was trained on 10 ms, 30 ms, 50 ms alone; "):
        trainers.load(runs / "plain", SpinLock(tsl=(0.0, 0.031)))
    # pairs of times count together: 10 with 20 ms and 30 with 40 ms were shown
    trainers.load(runs / "pairs", BOTH, images=(0, 1, 3))
    with pytest.raises(InputError, match=r"^times: 10 and 40 ms .* 10 and 20 ms, 30 and 40 ms alone; .*images=0,1,3"):
        trainers.load(runs / "pairs", BOTH, images=(0, 1, 4))


@pytest.mark.parametrize(
    ("run", "model", "options", "said"),
    [
        ("mean", LOCKED, {}, "images: self_supervised maps T1RHO from 2 images, and the series holds 4; .*images=0,1 "),
        ("mean", LOCKED, {"images": (0, 4)}, "images: got 0,4; wanted 2 different ones of the series, 0 to 3"),
        ("mean", LOCKED, {"images": (0, 0)}, "images: got 0,0; wanted 2 different"),
        ("mean", LOCKED, {"images": (0, 1, 2)}, "images: got 0,1,2; wanted 2 different"),
        ("mean", SpinLock(tsl=(0.0, 0.0, 0.03)), {"images": (0, 1)}, "images: 0,1 are not one image that .*images=0,2"),
        # 50 ms and 20 % beyond
        ("mean", SpinLock(tsl=(0.0, 0.061)), {}, "times: 61 ms lie between the images, .* trained on 10 to 50 ms; "),
        ("mean", SpinLock(tsl=(0.0, 0.0079)), {}, "times: 7.9 ms lie"),
        ("mean", T2Prep(te_prep=(0.0, 0.03)), {}, "model: self_supervised learned T1RHO, and these images tell T2; "),
        ("mean", GradientEcho(te=(0.01, 0.03)), {}, "model: .* tell T2STAR; these are not the same property of tissue"),
        ("mean", SpinEcho(te=(0.01, 0.03)), {}, "model: .* tell T2; "),
        ("mean", BOTH, {}, "images: .* and the series holds 5; .*images=0,1 "),
        ("mean", BOTH, {"images": (0, 3)}, "model: self_supervised learned T1RHO, and these images tell T2; "),
        ("both", PAIR, {}, "model: self_supervised learned T1RHO and T2, and these images tell T1RHO; "),
        ("both", BOTH, {"images": (1, 2, 3)}, "images: 1,2,3 are not one image that all contrasts share"),
        ("mean", None, {}, "model: self_supervised was trained on 10 to 50 ms between the images; give the signal"),
        ("mean", PAIR, {"contrast": 2.0}, "contrast: a unet has no such option; it has samples, units, images"),
        ("mean", PAIR, {"noise": "rician"}, "noise: a unet has no such option"),
        ("mean", PAIR, {"images_unit": 3.0}, "images_unit: a unet divides each slice by its own brightness"),
        ("plain", PAIR, {"samples": 5}, "samples: self_supervised has no dropout to draw from; give samples=0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(runs, run, model, options, said):
    with pytest.raises(InputError, match=f"^{said}") as refused:
        trainers.load(runs / run, model, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_number(runs):
    for options, said in (
        ({"images": (0.0, 2.0)}, r"^images: wanted numbers of images"),
        ({"images": "02"}, r"^images: wanted numbers of images"),
        ({"images": (0, 2), "samples": 2.5}, r"^samples: wanted a whole number, got 2\.5"),
        ({"images": (0, 2), "device": "abacus"}, r"^device: wanted cpu or cuda, got 'abacus'"),
    ):
        with pytest.raises(InputError, match=said):
            trainers.load(runs / "mean", LOCKED, **options)
    with pytest.raises(InputError, match=r"^images: hold no voxel"):
        trainers.load(runs / "mean", PAIR)(torch.ones(2, 0, 8))


def test_a_network_does_not_differ_from_itself(runs):
    with pytest.raises(InputError, match=r"^ensemble: .*mean.* is given twice"):
        trainers.load((runs / "mean", runs / "other", runs / "mean" / "model.safetensors"), PAIR)


def test_networks_that_do_not_go_together(runs):
    with pytest.raises(InputError, match=r"plain.* differs from .*mean.* in network; take networks as an ensemble"):
        trainers.load((runs / "mean", runs / "plain"), PAIR)
    with pytest.raises(InputError, match=r"differs from .* in rows, times; "):
        trainers.load((runs / "mean", runs / "both"), PAIR)
    with pytest.raises(InputError, match=r"differs from .* in network"):
        trainers.load((runs / "mean", "rim-t1"), PAIR)
    with pytest.raises(InputError, match=r"^ensemble: a local_mixture is mapped with alone"):
        trainers.load(("rim-t1", runs / "mean"))
    with pytest.raises(InputError, match=r"^samples: a local_mixture has no such option"):
        trainers.load("rim-t1", samples=3)
    with pytest.raises(InputError, match=r"^run: none was given"):
        trainers.load(())


def test_a_file_says_its_times_and_its_calibration(runs, tmp_path):
    tensors, header = header_of(runs / "mean")
    assert header["times"] == {"kind": "spin_lock", "tsl": [0.0, 0.01, 0.03, 0.05]}
    file = tmp_path / "model.safetensors"
    series = noisy(PAIR, 0.045)
    plain = trainers.load(runs / "mean", PAIR)
    assert plain.notes == ("the standard deviations of T1RHO are not calibrated",)
    save_tensors(file, tensors, header)
    calibrate(file, {"T1RHO": 3.0})
    larger = trainers.load(file, PAIR)
    assert larger.notes == ()
    for source, variance in plain(series).variances.items():
        torch.testing.assert_close(larger(series).variances[source], 9 * variance)
    # the factors are of one network, and of times
    assert not trainers.load((file, runs / "other"), PAIR).estimator.calibration
    assert not trainers.load(file, PAIR, units="literal").estimator.calibration
    for wrong, said in (
        ({"T2": 2.0}, "calibration.T2 is no row of the network, which has T1RHO"),
        ({"T1RHO": -1.0}, "calibration.T1RHO: wanted a positive number"),
        ([2.0], "calibration must hold a factor for each row"),
    ):
        save_tensors(file, tensors, {**header, "calibration": wrong})
        with pytest.raises(InputError, match=said):
            trainers.load(file, PAIR)
    for times, said in ((None, "does not say the times"), ({"kind": "spin_lock"}, "cannot be read")):
        changed = {**header, "times": times} if times else {k: v for k, v in header.items() if k != "times"}
        save_tensors(file, tensors, changed)
        with pytest.raises(InputError, match=said):
            trainers.load(file, PAIR)


# ------------------------------------------------------------------------------------------- studies


def test_studies_take_them(runs):
    run = str(runs / "mean")
    entries = check_shapes([{"model": run, "options": {"images": "0,2", "samples": 3}}])
    entries += [ModelEntry(model=run, options={"images": "0,2", "ensemble": str(runs / "other")})]
    one, two = choose(entries, (), LOCKED)
    assert one.name == "self_supervised, images 0,2, samples 3"
    series = noisy(LOCKED, 0.045)
    wanted = trainers.load(run, LOCKED, images=(0, 2), samples=3)(series)
    assert torch.equal(one.estimator(series).kappa, wanted.kappa)
    assert len(one.weights.sha256) == 1
    assert list(two.weights.sha256) == [run, str(runs / "other")]
    for options, said in (
        ({}, r"options\.images: self_supervised maps T1RHO from 2 images"),
        ({"images": "a"}, r"options\.images: wanted numbers of images, counted from 0, .* got 'a'"),
        ({"images": 1.5}, r"options\.images: wanted numbers"),
        ({"ensemble": "a,,b"}, r"options\.ensemble: wanted runs separated by commas"),
        ({"samples": 1.5}, r"options\.samples: wanted a whole number, 0 or more, got 1.5"),
        ({"units": "ms"}, r"options\.units: wanted delta or literal, got 'ms'"),
    ):
        with pytest.raises(InputError, match=rf"^estimators\[0\]\.{said}"):
            choose([ModelEntry(model=run, options=options)], (), LOCKED)


# ------------------------------------------------------------------------------------------- qsim map


def save(folder, name, model, sidecar):
    """Two slices of an odd matrix in the units of a scanner: y, x, z, n in the file."""
    series = 700 * torch.stack([noisy(model, 0.045), noisy(model, 0.06)], 1)
    nibabel.save(nibabel.Nifti1Image(series.numpy().T, np.eye(4)), folder / f"{name}.nii.gz")
    (folder / f"{name}.json").write_text(json.dumps(sidecar))
    return series


def qsim(monkeypatch, capsys, *arguments):
    """Exit code, and what was printed on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["qsim", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_writes_the_map_and_both_parts_of_its_sd(runs, tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    series = save(tmp_path, "a", LOCKED, {"SpinLockTime": LOCKED.tsl})
    words = ("--option", "images=0,2", "--option", "samples=4", "--std", "--device", "cpu")
    code, printed, wrong = qsim(monkeypatch, capsys, "map", "a.nii.gz", "--model", runs / "mean", "--out", "o", *words)
    assert (code, wrong) == (0, "")
    assert "note: the standard deviations of T1RHO are not calibrated" in printed
    anat = tmp_path / "o/sub-a/anat"
    estimator = trainers.load(runs / "mean", LOCKED, images=(0, 2), samples=4)
    parts = {
        word: read_map(anat / f"sub-a{word and '_desc-' + word}_T1rho.nii.gz")
        for word in ("", "std", "aleatoric", "epistemic")
    }
    for z in range(2):
        found = estimator(series[:, z])
        np.testing.assert_array_equal(parts[""][z], found.kappa[0])
        np.testing.assert_allclose(parts["epistemic"][z], found.variances["epistemic"][0].sqrt(), rtol=1e-6)
    np.testing.assert_allclose(parts["std"] ** 2, parts["aleatoric"] ** 2 + parts["epistemic"] ** 2, rtol=1e-5)
    said = json.loads((anat / "sub-a_T1rho.json").read_text())
    assert said["MethodOptions"] == {"images": [0, 2], "samples": 4, "units": "delta"}
    assert (said["Calibration"], said["Network"]["File"]) == ({}, "model.safetensors")


def test_the_command_with_an_ensemble(runs, tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "a", PAIR, {"SpinLockTime": PAIR.tsl})
    words = ("--option", f"ensemble={runs / 'other'}", "--option", "samples=0", "--json", "--device", "cpu")
    code, printed, wrong = qsim(monkeypatch, capsys, "map", "a.nii.gz", "--model", runs / "mean", "--out", "o", *words)
    assert (code, wrong) == (0, "")
    assert json.loads(printed)["method"] == "self_supervised"
    network = json.loads((tmp_path / "o/sub-a/anat/sub-a_T1rho.json").read_text())["Network"]
    assert len({each["SHA256"] for each in network}) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--option images: self_supervised maps T1RHO from 2 images, and the series holds 4; choose the common"),
        (("--option", "images=0,9"), "--option images: got 0,9; wanted 2 different ones of the series, 0 to 3"),
        (("--option", "images=first"), "--option images: wanted numbers of images, counted from 0"),
        (("--option", "images=0,2", "--option", "samples=-1"), "--option samples: wanted a whole number, 0 or more"),
        (("--option", "images=0,2", "--option", "units=ms"), "--option units: wanted delta or literal, got 'ms'"),
        (("--option", "images=0,2", "--option", "ensemble=nowhere"), "--model: nowhere: neither a run of qsim train"),
        (("--option", "images=0,2", "--option", "images_unit=700"), "--option images_unit: is no option of self_super"),
        (("--option", "images=0,2", "--option", "contrast=2"), "--option contrast: a unet has no such option"),
        (("--option", "images=0,2", "--known", "T1RHO=0.04"), "--known T1RHO: cannot be used by self_supervised"),
        (("--signal", "t2_prep", "--times", "0,.01,.03,.05"), "--model: self_supervised learned T1RHO, and these"),
        (("--times", "0,.1,.2,.3", "--option", "images=0,1"), "--model: times: 100 ms lie between the images"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(runs, tmp_path, monkeypatch, capsys, unchecked, words, said):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "a", LOCKED, {"SpinLockTime": LOCKED.tsl})
    code, printed, wrong = qsim(monkeypatch, capsys, "map", "a.nii.gz", "--model", runs / "mean", "--out", "o", *words)
    assert (code, printed) == (2, ""), wrong
    assert wrong.startswith(f"qsim: {said}"), wrong
    assert len(wrong.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


# ------------------------------------------------------------------------------------------- shipping


def test_a_shipped_network_maps_the_same_and_tells_no_folder(runs, tmp_path):
    file, card = ship(
        runs / "mean", "t1rho-six", tmp_path, made_by="configs/six.yaml", calibration={"T1RHO": 2.0}, results="| a |"
    )
    series = noisy(PAIR, 0.045)
    there, here = trainers.load(file, PAIR)(series), trainers.load(runs / "mean", PAIR)(series)
    assert torch.equal(there.kappa, here.kappa)
    torch.testing.assert_close(there.variances["aleatoric"], 4 * here.variances["aleatoric"])
    header = json.dumps(load_tensors(file)[1])
    assert "six.zarr" in header
    assert "/somewhere" not in header
    text = card.read_text()
    for words in (
        "T1rho from 2 images of one series",
        'trainers.load("t1rho-six", model=SpinLock(tsl=(0.0, 0.03)))',
        "3 subjects trained on, 1 subjects validated on, 2 subjects left out",
        "10 to 50 ms",
        "`qsim train configs/six.yaml`: 2 iterations of 2 slices, fp32",
        "Factors of the standard deviations: T1rho 2.",
        "| a |",
        "T1rho from 5 to 500 ms",
    ):
        assert words in text, words
    _, card = ship(runs / "both", "both-six", tmp_path, made_by="configs/six.yaml")
    assert "model=SpinLockT2Prep(tsl=(0.0, 0.03, 0.0), te_prep=(0.0, 0.0, 0.04))" in card.read_text()
    assert "not calibrated" in card.read_text()
    assert "--option images=0,1,3" in card.read_text()
    for change, said in (
        ({"name": "t1rho-six"}, "exists already"),
        ({"name": "T1rho liver"}, "^name: wanted lower-case words"),
        ({"run": "rim-t1"}, "is a local_mixture; wanted task.kind self_supervised"),
        ({"folder": tmp_path / "no"}, "is no folder"),
    ):
        given = {"run": runs / "mean", "name": "c", "folder": tmp_path} | change
        with pytest.raises(InputError, match=said):
            ship(given["run"], given["name"], given["folder"], made_by="configs/six.yaml")


@pytest.mark.usefixtures("unchecked")
def test_what_a_calibration_cannot_be_asked(runs):
    for change, said in (
        ({"against": "turth"}, "^against: wanted truth or fit"),
        ({"samples": -1}, "^samples: wanted"),
    ):
        with pytest.raises(InputError, match=said):
            calibrate_run(runs / "mean", **change)
    with pytest.raises(InputError, match=r"calibration\.T1RHO: wanted a number or an SdCalibration, got '1'"):
        calibrate(runs / "mean", {"T1RHO": "1"})


def test_a_card_that_cannot_be_written_leaves_no_network(runs, tmp_path, monkeypatch):
    def broken(*_):
        raise InputError("results: cannot be told")

    monkeypatch.setattr(shipping, "_card", broken)
    with pytest.raises(InputError, match=r"^results"):
        ship(runs / "mean", "six", tmp_path, made_by="configs/six.yaml")
    assert not list(tmp_path.iterdir())


def test_measured_subjects_keep_their_names_to_themselves(runs, tmp_path):
    tensors, header = header_of(runs / "mean")
    scans = [{"id": "Doe", "series": ["in/Doe_T1rho.nii.gz"], "roi": "in/Doe_roi.nii.gz", "body": None}]
    cohort = {**header["cohort"], "store": None, "scans": scans}
    config = {**header["config"], "data": {**header["config"]["data"], "cohort": cohort}, "initial": "runs/Doe"}
    (tmp_path / "run").mkdir()
    changed = {**header, "cohort": cohort, "config": config}
    save_tensors(tmp_path / "run/model.safetensors", tensors, changed)
    file, card = ship(tmp_path / "run", "measured", tmp_path, made_by="configs/six.yaml")
    said = load_tensors(file)[1]
    assert "in/" not in json.dumps(said)
    assert json.dumps(said).count("Doe") == 1
    assert said["config"]["initial"] == "Doe"
    assert "Measured series: 3 subjects trained on" in card.read_text()
    assert trainers.load(file, PAIR).trained_on is None


def test_shipped_networks_are_listed():
    assert registries()["shipped"]["rim-t1"].startswith("T1, A and B of a magnitude inversion recovery")
