"""`qsim corrupt`: what comes out of a file is what the library makes of it, and bad input leaves nothing behind."""

import hashlib
import json
import subprocess
import sys
from math import prod
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from generators import cli
from generators.before_after import _largest, picture
from generators.build import build
from generators.corrupt_config import CorruptConfig
from qsim.distributions import Streams
from qsim.errors import InputError
from qsim.evaluation.pages.summary import headline
from qsim.kspace import RFSpike, apply_chain, draw_chain, to_kspace
from tests.generators.test_sample import config as data_set
from tests.qsim.test_summary import SNRS, subject

SPIKE = {"kind": "rf_spike", "amplitude": 0.5}
NOISE = {"kind": "k_space_noise", "snr_db": 10}
NOTHING = [{"kind": "rf_spike", "amplitude": 0}, {"kind": "rf_spike", "probability": 0}]
AFFINE = np.diag([1.5, 2.0, 3.0, 1.0])


app = typer.Typer()
app.command("corrupt")(cli.corrupt)
# with a second command typer reads the name of the first
app.command("verify")(cli.verify)
app.command("inspect")(cli.inspect)


class Qsim:
    """The commands in this process: exit status, and what is printed, as the console script has it."""

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, InputError):
            return 2, result.stdout, f"qsim: {result.exception}"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    def good(self, *arguments: object, picture: bool = False) -> str:
        """What a command prints that goes well; pictures take most of the time."""
        code, out, err = self(*arguments, *(() if picture else ("--no-picture",)))
        assert (code, err) == (0, ""), err
        return out


@pytest.fixture
def qsim() -> Qsim:
    return Qsim()


def config(folder: Path, *artefacts: dict, name: str = "a.yaml", **keys: object) -> Path:
    (folder / name).write_text(yaml.safe_dump({"artefacts": list(artefacts), **keys}))
    return folder / name


def brain(*shape: int, seed: int = 1) -> np.ndarray:
    """A bright ball of many values."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(1.8 * (np.arange(n) - (n - 1) / 2) / n for n in shape), indexing="ij")
    ball = sum(x**2 for x in grid) < 0.6
    return (ball * rng.uniform(0.5, 1.5, shape)).astype(np.float32)


def nifti(path: Path, array: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_volume_is_what_the_library_makes_of_it(qsim, tmp_path):
    image = brain(13, 10, 7)
    nifti(tmp_path / "in.nii.gz", image)
    out = qsim.good(
        *("corrupt", tmp_path / "in.nii.gz", "--config", config(tmp_path, SPIKE), "--seed", 7),
        *("--out", tmp_path / "out.nii.gz"),
        picture=True,
    )
    assert "out.nii.gz: magnitude, float32; severity rf_spike 0.5; magnitude changed by" in out
    assert "note: a magnitude holds no phase: it is taken as zero everywhere" in out
    # x y z of the file are the last, the middle and the first axis here
    given = torch.from_numpy(np.ascontiguousarray(image.T)).to(torch.complex64)[None]
    artefact = RFSpike(amplitude=0.5)
    drawn = draw_chain([artefact], tuple(given.shape), Streams(7, 0).rng)
    expected = apply_chain(given, [artefact], drawn).images.abs()[0].numpy().T
    np.testing.assert_allclose(read(tmp_path / "out.nii.gz"), expected, rtol=0, atol=1e-5)

    told = json.loads((tmp_path / "out_corrupt.json").read_text())
    assert told["seed"] == 7
    assert told["severity"] == [0.5]
    assert told["drawn"][0]["spikes"][0]["k"] == list(drawn[0].spikes[0].k)
    assert told["artefacts"] == [
        {"kind": "rf_spike", "amplitude": 0.5, "spikes": 1, "per_image": False, "probability": 1.0, "ndim": 3}
    ]
    assert told["input"]["sha256"] == hashlib.sha256((tmp_path / "in.nii.gz").read_bytes()).hexdigest()
    assert told["output"]["sha256"] == hashlib.sha256((tmp_path / "out.nii.gz").read_bytes()).hexdigest()
    assert told["input"]["spacing_mm"] == [3.0, 2.0, 1.5]
    change = np.sqrt(((expected - image) ** 2).sum() / (image**2).sum())
    assert told["change"] == pytest.approx(change, rel=1e-5)
    assert (tmp_path / "out_corrupt.png").read_bytes().startswith(b"\x89PNG")


def test_a_spike_has_its_height_and_its_stripes_run_along_the_axes_of_the_file(qsim, tmp_path):
    # one voxel bright: k-space is flat, its maximum 1 / sqrt(N)
    image = np.zeros((13, 10, 7), np.complex64)
    image[6, 5, 3] = 1
    nifti(tmp_path / "in.nii", image)
    qsim.good(
        *("corrupt", tmp_path / "in.nii", "--config", config(tmp_path, SPIKE, seed=3), "--out", tmp_path / "out.nii")
    )
    wave = read(tmp_path / "out.nii") - image
    n = prod(image.shape)
    np.testing.assert_allclose(np.abs(wave), 0.5 / n, rtol=1e-3)
    told = json.loads((tmp_path / "out_corrupt.json").read_text())
    k = told["drawn"][0]["spikes"][0]["k"]
    # k is (z, y, x): from one voxel to the next along the file's axes the phase turns by 2 pi k / N
    for axis, (turns, size) in enumerate(zip(reversed(k), image.shape, strict=True)):
        step = np.take(wave, 1, axis) / np.take(wave, 0, axis)
        np.testing.assert_allclose(step, np.exp(2j * np.pi * turns / size), atol=2e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(qsim, tmp_path):
    nifti(tmp_path / "in.nii.gz", brain(9, 8, 7, 3))
    chosen = config(tmp_path, SPIKE, NOISE)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out.nii.gz"
        qsim.good("corrupt", tmp_path / "in.nii.gz", "--config", chosen, "--seed", seed, "--out", out, picture=True)
    for file in ("out.nii.gz", "out_corrupt.json", "out_corrupt.png"):
        first, second, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == second
        assert first != other


def test_the_seed_of_the_command_goes_before_that_of_the_config(qsim, tmp_path):
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    chosen = config(tmp_path, SPIKE, seed=5)
    for name, options in (("a", ()), ("b", ("--seed", 5)), ("c", ("--seed", 6))):
        out = tmp_path / f"{name}.nii"
        qsim.good("corrupt", tmp_path / "in.nii", "--config", chosen, "--out", out, *options)
    assert np.array_equal(read(tmp_path / "a.nii"), read(tmp_path / "b.nii"))
    assert not np.array_equal(read(tmp_path / "a.nii"), read(tmp_path / "c.nii"))
    assert not list(tmp_path.glob("*.png"))


def test_images_of_a_series_share_the_draw_unless_it_is_per_image(qsim, tmp_path):
    image = np.repeat(brain(9, 8, 7)[..., None], 3, axis=3)
    nifti(tmp_path / "in.nii", image)
    for shared in (True, False):
        chosen = config(tmp_path, {**SPIKE, "per_image": not shared}, seed=2)
        out = ("--out", tmp_path / "out.nii", "--overwrite")
        qsim.good("corrupt", tmp_path / "in.nii", "--config", chosen, *out)
        first, second = (read(tmp_path / "out.nii")[..., i] for i in (0, 1))
        assert np.array_equal(first, second) == shared


def test_slices_are_corrupted_one_by_one(qsim, tmp_path):
    image = brain(9, 8, 5).astype(np.complex64)
    nifti(tmp_path / "in.nii", image)
    chosen = config(tmp_path, {**SPIKE, "per_image": True}, seed=2)
    out = ("--out", tmp_path / "out.nii", "--slices")
    qsim.good("corrupt", tmp_path / "in.nii", "--config", chosen, *out)
    drawn = json.loads((tmp_path / "out_corrupt.json").read_text())["drawn"][0]
    assert drawn["space"] == [8, 9]
    assert [spike["image"] for spike in drawn["spikes"]] == [0, 1, 2, 3, 4]
    # one sample of the k-space of each slice changed
    change = np.abs(np.fft.fftn(read(tmp_path / "out.nii") - image, axes=(0, 1)))
    for z, spike in enumerate(drawn["spikes"]):
        ky, kx = spike["k"]
        assert np.unravel_index(change[:, :, z].argmax(), (9, 8)) == (kx % 9, ky % 8)
        assert np.sort(change[:, :, z].ravel())[-2] < 1e-4 * change[:, :, z].max()


def test_slices_of_a_series_share_the_draw_of_their_image(qsim, tmp_path):
    nifti(tmp_path / "in.nii", brain(9, 8, 5, 3))
    chosen = config(tmp_path, {**SPIKE, "per_image": True}, seed=2)
    qsim.good("corrupt", tmp_path / "in.nii", "--config", chosen, "--out", tmp_path / "out.nii", "--slices")
    drawn = json.loads((tmp_path / "out_corrupt.json").read_text())["drawn"][0]
    assert [spike["image"] for spike in drawn["spikes"]] == [0, 1, 2]
    assert read(tmp_path / "out.nii").shape == (9, 8, 5, 3)


def test_lengths_are_in_mm_where_the_file_has_a_voxel_size(qsim, tmp_path):
    path = {"kind": "sudden", "events": 1, "translation": 3.0, "axis": -1}
    moving = {"kind": "motion", "trajectory": path, "line_time": 0.01, "weights": "none"}
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    for axes, spacing in (((), [3.0, 2.0, 1.5]), (("--slices",), [2.0, 1.5])):
        chosen = config(tmp_path, moving, seed=2)
        options = ("--out", tmp_path / "out.nii", "--overwrite", *axes)
        qsim.good("corrupt", tmp_path / "in.nii", "--config", chosen, *options)
        assert json.loads((tmp_path / "out_corrupt.json").read_text())["artefacts"][0]["spacing_mm"] == spacing


def test_a_single_sample_of_a_large_kspace_is_still_seen():
    spectrum = np.zeros((7, 10), np.float32)
    spectrum[6, 4] = 5
    seen = _largest(spectrum, 3)
    assert seen.shape == (3, 4)
    assert (np.argwhere(seen == 5).tolist(), np.count_nonzero(seen)) == ([[2, 1]], 1)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 1, 7), (9, 8, 1, 4)])
def test_a_single_slice_is_2d(qsim, tmp_path, shape):
    nifti(tmp_path / "in.nii", brain(*shape))
    qsim.good("corrupt", tmp_path / "in.nii", "--config", config(tmp_path, SPIKE, seed=2), "--out", tmp_path / "o.nii")
    assert read(tmp_path / "o.nii").shape == shape
    told = json.loads((tmp_path / "o_corrupt.json").read_text())
    assert told["artefacts"][0]["ndim"] == 2
    assert len(told["drawn"][0]["space"]) == 2


def everything(folder: Path) -> dict[str, tuple[Path, tuple[object, ...]]]:
    """A file of every kind, and the options that it needs."""
    rng = np.random.default_rng(4)
    kspace = (rng.normal(size=(2, 3, 9, 8)) + 1j * rng.normal(size=(2, 3, 9, 8))).astype(np.complex64)
    nifti(folder / "magnitude.nii.gz", brain(9, 8, 7))
    nifti(folder / "whole.nii", (100 * brain(9, 8, 7)).astype(np.int16))
    nifti(folder / "complex.nii", brain(9, 8, 7, 2).astype(np.complex128) * np.exp(0.7j))
    np.save(folder / "image.npy", kspace[0, 0])
    np.save(folder / "real.npy", brain(9, 8).astype(np.float64))
    np.save(folder / "kspace.npy", kspace)
    np.savez(folder / "archive.npz", kspace)
    with h5py.File(folder / "fastmri.h5", "w") as file:
        file["kspace"], file["ismrmrd_header"] = kspace, "<a/>"
    return {
        "magnitude.nii.gz": (),
        "whole.nii": (),
        "complex.nii": (),
        "image.npy": (),
        "real.npy": (),
        "kspace.npy": ("--kspace", "--axes", "ncyx"),
        "archive.npz": ("--kspace", "--axes", "ncyx"),
        "fastmri.h5": (),
    }


def values(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["arr_0"]
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file["kspace"][()]
    return read(path)


def test_no_strength_leaves_every_kind_of_file_as_it_is(qsim, tmp_path):
    chosen = config(tmp_path, *NOTHING, seed=1)
    for name, options in everything(tmp_path).items():
        out = tmp_path / f"out_{name}"
        qsim.good("corrupt", tmp_path / name, "--config", chosen, "--out", out, *options)
        assert np.array_equal(values(out), values(tmp_path / name)), name


def test_every_kind_of_file_keeps_its_kind(qsim, tmp_path):
    chosen = config(tmp_path, SPIKE, NOISE, seed=1)
    for name, options in everything(tmp_path).items():
        out = tmp_path / f"out_{name}"
        told = json.loads(qsim.good("corrupt", tmp_path / name, "--config", chosen, "--out", out, *options, "--json"))
        before, after = values(tmp_path / name), values(out)
        assert after.shape == before.shape
        expected = np.dtype(np.float32) if before.dtype == np.int16 else before.dtype
        assert after.dtype == expected
        assert told["output"]["dtype"] == str(expected)
        if before.dtype.kind != "c":
            # a magnitude, never a real part
            assert (after >= 0).all()
        assert told["change"] > 0.05


def test_kspace_and_its_image_give_the_same(qsim, tmp_path):
    rng = np.random.default_rng(4)
    image = rng.normal(size=(9, 8)) + 1j * rng.normal(size=(9, 8))
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "kspace.npy", to_kspace(torch.from_numpy(image), (0, 1)).numpy())
    chosen = config(tmp_path, SPIKE, NOISE, seed=1)
    for name, options in (("image", ()), ("kspace", ("--kspace",))):
        qsim.good(
            *("corrupt", tmp_path / f"{name}.npy", "--config", chosen, "--out", tmp_path / f"{name}_o.npy"), *options
        )
    there = to_kspace(torch.from_numpy(np.load(tmp_path / "image_o.npy")), (0, 1)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "kspace_o.npy"), there, atol=1e-12)


def test_ismrmrd_spike_is_one_sample_of_the_file(qsim, tmp_path, data_folder):
    source = data_folder / "kspace" / "brain_sim_ismrmrd.h5"
    qsim.good("corrupt", source, "--config", config(tmp_path, SPIKE, seed=8), "--out", tmp_path / "out.h5")
    with h5py.File(source) as before, h5py.File(tmp_path / "out.h5") as after:
        lines = [np.stack(file["dataset/data"][()]["data"]).view(np.complex64) for file in (before, after)]
    spike = json.loads((tmp_path / "out_corrupt.json").read_text())["drawn"][0]["spikes"][0]
    change = np.abs(lines[1] - lines[0])
    place = tuple(k + 128 for k in spike["k"])
    assert np.unravel_index(change.argmax(), change.shape) == place
    assert change[place] == pytest.approx(0.5 * np.abs(lines[0]).max(), rel=1e-5)
    change[place] = 0
    # bit by bit
    assert not change.any()


def test_what_was_not_measured_stays_zero(qsim, tmp_path, data_folder):
    source = data_folder / "kspace" / "brain_8ch_poisson8x_ksp.npy"
    options = ("--kspace", "--axes", "cyx", "--out", tmp_path / "out.npy")
    out = qsim.good("corrupt", source, "--config", config(tmp_path, NOISE, seed=8), *options)
    assert "samples of k-space were not measured (0 in every coil): they stay 0" in out
    before, after = np.load(source), np.load(tmp_path / "out.npy")
    measured = (before != 0).any(axis=0)
    assert (after[:, ~measured] == 0).all()
    # noise of the sigma that is told on what was measured
    sigma = json.loads((tmp_path / "out_corrupt.json").read_text())["facts"][0]["sigma"]
    noise = (after - before)[:, measured]
    n = noise.size
    assert noise.real.std() == pytest.approx(sigma, rel=3 / np.sqrt(2 * n) + 1e-4)
    assert noise.imag.std() == pytest.approx(sigma, rel=3 / np.sqrt(2 * n) + 1e-4)


def test_measured_kspace_of_a_matlab_file(qsim, tmp_path, data_folder):
    scipy_io = pytest.importorskip("scipy.io")
    data = scipy_io.loadmat(data_folder / "kspace" / "brain_sag_se_ksp.mat")["data"]
    np.save(tmp_path / "in.npy", data)
    options = ("--kspace", "--out", tmp_path / "out.npy", "--json")
    chosen = config(tmp_path, {"kind": "low_pass", "factor": 4, "axes": [-1]}, seed=8)
    told = json.loads(qsim.good("corrupt", tmp_path / "in.npy", "--config", chosen, *options))
    after = np.load(tmp_path / "out.npy")
    columns = np.abs(after).sum(axis=0) > 1e-9 * np.abs(data).max()
    # a quarter of the columns is left, and those are as they were
    assert columns.sum() == pytest.approx(64, abs=1)
    np.testing.assert_allclose(after[:, columns], data[:, columns], atol=1e-9 * np.abs(data).max())
    assert told["severity"][0] == pytest.approx(0.75, abs=0.01)


def test_phase_reaches_the_artefacts(qsim, tmp_path):
    magnitude = brain(9, 8, 7)
    phase = np.random.default_rng(2).uniform(-np.pi, np.pi, magnitude.shape).astype(np.float32)
    nifti(tmp_path / "m.nii", magnitude)
    nifti(tmp_path / "p.nii", phase)
    nifti(tmp_path / "c.nii", (magnitude * np.exp(1j * phase)).astype(np.complex64))
    chosen = config(tmp_path, SPIKE, NOISE, seed=8)
    qsim.good(
        "corrupt", tmp_path / "m.nii", "--phase", tmp_path / "p.nii", "--config", chosen, "--out", tmp_path / "a.nii"
    )
    options = ("--magnitude", "--out", tmp_path / "b.nii")
    qsim.good("corrupt", tmp_path / "c.nii", *options, "--config", chosen)
    np.testing.assert_allclose(read(tmp_path / "a.nii"), read(tmp_path / "b.nii"), atol=1e-5)
    assert read(tmp_path / "a.nii").dtype == np.float32
    assert "radians" in json.loads((tmp_path / "a_corrupt.json").read_text())["assumed"][0]


def test_magnitudes_from_0_to_1(qsim, tmp_path):
    nifti(tmp_path / "in.nii", 300 * brain(9, 8, 7, 2))
    chosen = config(tmp_path, NOISE, seed=8)
    for name, options in (("a", ()), ("b", ("--scale", "01"))):
        qsim.good("corrupt", tmp_path / "in.nii", "--config", chosen, "--out", tmp_path / f"{name}.nii", *options)
    plain, scaled = read(tmp_path / "a.nii"), read(tmp_path / "b.nii")
    assert (scaled.min(), scaled.max()) == (0, 1)
    np.testing.assert_allclose(scaled, (plain - plain.min()) / np.ptp(plain), atol=1e-6)
    told = json.loads((tmp_path / "b_corrupt.json").read_text())
    assert told["scale"] == {"low": pytest.approx(plain.min()), "high": pytest.approx(plain.max())}


def test_signed_images_keep_their_sign(qsim, tmp_path):
    image = brain(9, 8, 7) - 0.6
    nifti(tmp_path / "in.nii", image)
    chosen = config(tmp_path, *NOTHING, seed=8)
    qsim.good("corrupt", tmp_path / "in.nii", "--complex", "--config", chosen, "--out", tmp_path / "out.nii")
    assert np.array_equal(read(tmp_path / "out.nii"), image.astype(np.complex64))


def test_bad_input_is_one_line_and_nothing_is_left_behind(qsim, tmp_path):
    image, good = brain(9, 8, 7), config(tmp_path, SPIKE, seed=1)
    nifti(tmp_path / "in.nii", image)
    nifti(tmp_path / "slice.nii", image[:, :, :1])
    nifti(tmp_path / "nan.nii", np.where(np.arange(image.size).reshape(image.shape) < 3, np.nan, image))
    nifti(tmp_path / "flat.nii", np.zeros_like(image))
    nifti(tmp_path / "degrees.nii", np.full_like(image, 90))
    np.save(tmp_path / "real.npy", image[0])
    np.save(tmp_path / "flat.npy", np.zeros((0, 5), np.complex64))
    gaps = np.ones((9, 8), np.complex64)
    gaps[::2] = 0
    np.save(tmp_path / "gaps.npy", gaps)
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "there.nii").write_text("precious")
    (tmp_path / "image.dcm").write_text("")
    no_seed = config(tmp_path, SPIKE, name="no_seed.yaml")
    late = config(tmp_path, NOISE, SPIKE, name="late.yaml", seed=1)
    wrong = config(tmp_path, {**SPIKE, "amplitude": -1}, name="wrong.yaml", seed=1)
    word = config(tmp_path, {**SPIKE, "amplitude": "loud"}, name="word.yaml", seed=1)
    unknown = config(tmp_path, {"kind": "spark"}, name="unknown.yaml", seed=1)
    misspelt = config(tmp_path, {**SPIKE, "amplitud": 1}, name="misspelt.yaml", seed=1)
    empty = config(tmp_path, name="empty.yaml", seed=1)
    nothing = config(tmp_path, *NOTHING, name="nothing.yaml", seed=1)
    deep = config(tmp_path, {**SPIKE, "ndim": 3}, name="deep.yaml", seed=1)
    axis = config(tmp_path, {"kind": "low_pass", "factor": 2, "axes": [-4]}, name="axis.yaml", seed=1)
    field = config(tmp_path, {"kind": "bias_field", "strength": 1}, name="field.yaml", seed=1)
    whole = config(tmp_path, SPIKE, name="whole.yaml", seed=1, phantom={"kind": "x"}, samples=3, patch=[3, 4])
    text, none = tmp_path / "text.yaml", tmp_path / "none.yaml"
    text.write_text("artefacts: gibbs\nseed: 1\n")
    none.write_text("artefacts:\nseed: 1\n")
    large = config(tmp_path, {**SPIKE, "amplitude": 1e100}, name="large.yaml", seed=1)
    np.save(tmp_path / "k.npy", np.ones((9, 8), np.complex64))
    np.save(tmp_path / "gaps3.npy", np.stack([gaps, gaps]))
    image, out = tmp_path / "in.nii", tmp_path / "out.nii"
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        ((tmp_path / "missing.nii", good, out), "missing.nii: no such file"),
        ((tmp_path, good, out), "unknown suffix"),
        ((tmp_path / "image.dcm", good, out), "image.dcm: unknown suffix '.dcm', wanted one of .nii, .nii.gz, .npy"),
        ((tmp_path / "text.nii", good, out), "text.nii: cannot be read"),
        ((tmp_path / "nan.nii", good, out), "nan.nii: NaN or infinity in 3 of 504 voxels"),
        ((tmp_path / "real.npy", good, tmp_path / "o.npy", "--kspace"), "real.npy: k-space must be complex64"),
        ((tmp_path / "flat.npy", good, tmp_path / "o.npy"), "flat.npy: has an empty axis, its shape is (0, 5)"),
        (
            (tmp_path / "gaps.npy", field, tmp_path / "o.npy", "--kspace"),
            "field.yaml: artefacts[0]: bias_field changes the object",
        ),
        ((tmp_path / "gaps.npy", good, tmp_path / "o.npy", "--kspace", "--magnitude"), "is k-space and stays complex"),
        ((image, tmp_path / "missing.yaml", out), "missing.yaml: cannot be read"),
        ((image, no_seed, out), "--seed: missing; give one, or `seed:` in"),
        ((image, no_seed, out, "--seed", "1.5"), "--seed: got '1.5', wanted a whole number"),
        ((image, good, out, "--magnitude", "--complex"), "--magnitude: does not go with --complex"),
        ((image, whole, out), "whole.yaml: this is a config of qsim generate; qsim corrupt takes its `artefacts` and"),
        ((image, text, out), "text.yaml: artefacts: got 'gibbs', wanted a list of artefacts"),
        ((image, none, out), "none.yaml: artefacts: got None, wanted a list of artefacts"),
        (
            (image, large, out),
            "large.yaml: artefacts: what comes out is not finite in single precision; lower their strengths",
        ),
        (
            (tmp_path / "k.npy", large, tmp_path / "o.npy", "--kspace"),
            "large.yaml: artefacts: what comes out is not finite in single precision",
        ),
        (
            (tmp_path / "gaps3.npy", good, tmp_path / "o.npy", "--kspace", "--slices"),
            "artefacts[0].ndim: a spike is one sample of k-space, which has 3 axes here and gaps",
        ),
        ((image, no_seed, out, "--seed", -1), "--seed: must lie in [0, 2^63), got -1"),
        ((image, late, out), "late.yaml: artefacts[1]: rf_spike (interference) cannot follow k_space_noise"),
        ((image, wrong, out), "wrong.yaml: artefacts[0].amplitude must be at least 0, got -1"),
        ((image, word, out), "word.yaml: artefacts[0].amplitude"),
        ((image, unknown, out), "unknown.yaml: artefacts[0].kind: got 'spark', wanted one of"),
        ((image, misspelt, out), "misspelt.yaml: artefacts[0].amplitud: unknown key; did you mean amplitude?"),
        ((image, empty, out), "empty.yaml: artefacts: empty; name at least one"),
        ((tmp_path / "slice.nii", deep, out), "deep.yaml: artefacts[0].ndim: got 3, but the image is made of slices"),
        ((image, axis, out), "axis.yaml: artefacts[0].axes: axis -4 does not exist"),
        ((image, good, tmp_path / "there.nii"), "there.nii exists already; add --overwrite"),
        ((image, good, image, "--overwrite"), "in.nii is the input itself"),
        ((image, good, tmp_path / "out.npy"), "must end in .nii, as in.nii does"),
        ((image, good, tmp_path / "no folder" / "out.nii"), "no folder does not exist"),
        ((image, good, out, "--picture", tmp_path / "p.jpg"), "p.jpg must end in .png"),
        ((image, good, out, "--picture", tmp_path / "none" / "p.png"), "--picture: folder"),
        ((image, good, out, "--phase", tmp_path / "degrees.nii"), "goes from 90 to 90, wanted radians in [-pi, pi]"),
        ((image, good, out, "--phase", tmp_path / "missing.nii"), "is no NIfTI file that exists"),
        ((image, good, out, "--kspace"), "--kspace: does not go with NIfTI"),
        ((image, good, out, "--scale", "255"), "--scale: got 255, wanted 01"),
        ((image, good, out, "--scale", "01", "--complex"), "--scale: only magnitudes are scaled"),
        ((tmp_path / "slice.nii", good, out, "--slices"), "--slices: these are slices already"),
        (
            (tmp_path / "flat.nii", nothing, out, "--scale", "01"),
            "no range",
        ),
    ):
        source, chosen, target, *options = arguments
        code, printed, said = qsim("corrupt", source, "--config", chosen, "--out", target, *options)
        assert (code, printed) == (2, ""), said
        assert said.startswith("qsim: ")
        assert len(said.splitlines()) == 1, said
        assert message in said
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.nii").read_text() == "precious"


def test_the_console_script_exits_with_2(tmp_path):
    arguments = ("corrupt", "in.nii", "--config", "nowhere.yaml", "--seed", "1", "--out", "out.nii")
    done = subprocess.run(
        [sys.executable, "-m", "trainers.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "qsim: nowhere.yaml: cannot be read (No such file or directory)\n")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_drawn_leaves_no_image(qsim, tmp_path, monkeypatch):
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    chosen = config(tmp_path, SPIKE, seed=1)

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("generators.corrupt.picture", full)
    code, _, said = qsim("corrupt", tmp_path / "in.nii", "--config", chosen, "--out", tmp_path / "out.nii")
    assert code == 2
    assert "out.nii: cannot be written (No space left on device)" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.yaml", "in.nii"]


def test_overwrite_replaces_all_three(qsim, tmp_path):
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    for file in ("out.nii", "out_corrupt.json", "out_corrupt.png"):
        (tmp_path / file).write_text("old")
    chosen = config(tmp_path, SPIKE, seed=1)
    qsim.good(
        "corrupt", tmp_path / "in.nii", "--config", chosen, "--out", tmp_path / "out.nii", "--overwrite", picture=True
    )
    assert all((tmp_path / file).read_bytes() != b"old" for file in ("out.nii", "out_corrupt.json", "out_corrupt.png"))


@pytest.mark.usefixtures("unchecked")
def test_a_strength_that_cannot_be_computed_is_named(qsim, tmp_path):
    # the check of signatures would look at the severity itself
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    sudden = {"kind": "motion", "line_time": 0.01, "trajectory": {"kind": "sudden", "translation": 1e300}}
    for artefacts, message in (
        ((SPIKE, {**SPIKE, "amplitude": 1e300}, NOISE), "artefacts[1]: rf_spike is too strong to be computed"),
        ((sudden, SPIKE), "artefacts[0]"),
    ):
        chosen = config(tmp_path, *artefacts, seed=1)
        code, _, said = qsim("corrupt", tmp_path / "in.nii", "--config", chosen, "--out", tmp_path / "out.nii")
        assert (code, len(said.splitlines())) == (2, 1), said
        assert f"{chosen}: {message}" in said


TRAJECTORY = {"kind": "breathing", "period": 4, "translation": 3, "axis": -2}


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        ({"translation": 1}, "trajectory.kind: missing"),
        ({}, "trajectory.kind: missing"),
        ({**TRAJECTORY, "translation": "foo"}, "trajectory.translation"),
        ({**TRAJECTORY, "translation": {"kind": "unifor", "low": 3}}, "translation.kind: got 'unifor', wanted one of"),
        ({**TRAJECTORY, "translation": {"kind": "uniform", "low": 3}}, "trajectory.translation.high: missing"),
        ({**TRAJECTORY, "translation": [1, 2, 3]}, "trajectory.translation: got [1, 2, 3], wanted a number, a pair"),
        ({"kind": "sudden", "events": 1.5}, "trajectory.events"),
        ({"kind": "sudden", "translatio": 1}, "trajectory.translatio: unknown key; did you mean translation?"),
        ({"kind": "jump", "translation": [1, 2, 3]}, "trajectory.kind: got 'jump', wanted one of 'sudden', 'drift'"),
    ],
)
def test_a_wrong_trajectory_is_one_true_line(qsim, tmp_path, trajectory, message):
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    chosen = config(tmp_path, {"kind": "motion", "line_time": 0.01, "trajectory": trajectory}, seed=1)
    code, _, said = qsim("corrupt", tmp_path / "in.nii", "--config", chosen, "--out", tmp_path / "out.nii")
    assert (code, len(said.splitlines())) == (2, 1), said
    assert f"{chosen}: artefacts[0]." in said
    assert message in said


def gappy(folder: Path, *measured: np.ndarray, coils: int = 3) -> np.ndarray:
    """k-space of images of which samples are missing, saved as ncyx."""
    rng = np.random.default_rng(7)
    shape = (len(measured), coils, *measured[0].shape)
    kspace = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * np.stack(measured)[:, None]
    np.save(folder / "in.npy", kspace.astype(np.complex64))
    return np.load(folder / "in.npy")


GAPPY = ("--kspace", "--axes", "ncyx")


def test_a_spike_where_nothing_was_measured_has_no_effect_and_says_so(qsim, tmp_path):
    chosen = config(tmp_path, SPIKE)
    seeds = {}
    for seed in range(20):
        given = gappy(tmp_path, np.arange(12)[:, None] % 3 + 0 * np.arange(11) == 0)
        options = ("--config", chosen, "--seed", seed, "--out", tmp_path / "out.npy", "--overwrite", *GAPPY)
        out = qsim.good("corrupt", tmp_path / "in.npy", *options)
        told, after = json.loads((tmp_path / "out_corrupt.json").read_text()), np.load(tmp_path / "out.npy")
        k = told["drawn"][0]["spikes"][0]["k"]
        place = (k[0] + 6, k[1] + 5)
        hit = place[0] % 3 == 0
        seeds[hit] = seed
        note = f"artefacts[0]: spike at k = ({k[0]}, {k[1]}) falls on a sample that was not measured: no effect"
        assert told["severity"] == [0.5 if hit else 0.0]
        assert told["drawn"][0]["severity"] == told["severity"][0]
        assert told["notes"] == ([] if hit else [note])
        assert (f"note: {note}" in out) != hit
        assert f"severity rf_spike {0.5 if hit else 0:g}" in out
        assert (told["change"] > 0.01) if hit else (told["change"] == 0)
        # one sample of every coil, all others bit by bit
        changed = np.argwhere((after != given).any(axis=(0, 1)))
        assert changed.tolist() == ([list(place)] if hit else [])
    assert set(seeds) == {True, False}


def test_spikes_hit_the_images_in_which_their_sample_was_measured(qsim, tmp_path):
    rows = np.arange(12)[:, None] + 0 * np.arange(11)
    given = gappy(tmp_path, rows % 2 == 0, rows % 2 == 1, rows > 3)
    chosen = config(tmp_path, {**SPIKE, "spikes": 3})
    for seed in range(4):
        options = ("--config", chosen, "--seed", seed, "--out", tmp_path / "out.npy", "--overwrite", *GAPPY)
        told = json.loads(qsim.good("corrupt", tmp_path / "in.npy", *options, "--json"))
        after = np.load(tmp_path / "out.npy")
        spikes = {(s["k"][0] + 6, s["k"][1] + 5) for s in told["drawn"][0]["spikes"]}
        hits = {(n, *place) for n in range(3) for place in spikes if given[(n, 0, *place)] != 0}
        assert {tuple(place) for place in np.argwhere((after != given).any(axis=1)).tolist()} == hits
        # mean over images of the energy of the spikes
        assert told["severity"][0] == pytest.approx(np.sqrt(0.25 * len(hits) / 3), rel=1e-12)
        assert len(told["notes"]) == sum(any((n, *p) not in hits for n in range(3)) for p in spikes)


def test_the_snr_of_samples_that_were_measured_is_said(qsim, tmp_path):
    rng = np.random.default_rng(3)
    # an eighth of the samples
    given = gappy(tmp_path, rng.permutation(64 * 64).reshape(64, 64) < 512)
    options = ("--config", config(tmp_path, {"kind": "k_space_noise", "snr_db": 20}, seed=1), *GAPPY)
    out = qsim.good("corrupt", tmp_path / "in.npy", "--out", tmp_path / "out.npy", *options)
    assert "artefacts[0].snr_db counts the mean over all samples of k-space, those that were not measured (0)" in out
    assert "over the measured ones the SNR is 9.03 dB higher" in out
    measured = given != 0
    noise = (np.load(tmp_path / "out.npy") - given)[measured]
    snr = 10 * np.log10((np.abs(given[measured]) ** 2).mean() / (np.abs(noise) ** 2).mean())
    # 3 SD of the mean of 1536 exponentials
    assert snr == pytest.approx(20 + 10 * np.log10(8), abs=3 * 4.34 / np.sqrt(1536))


def test_no_picture_of_an_earlier_run_stays_beside_a_new_image(qsim, tmp_path):
    nifti(tmp_path / "in.nii", brain(9, 8, 7))
    options = ("--config", config(tmp_path, SPIKE, seed=1), "--out", tmp_path / "out.nii", "--no-picture")
    old = tmp_path / "out_corrupt.png"
    old.write_text("old")
    code, _, said = qsim("corrupt", tmp_path / "in.nii", *options)
    assert (code, old.read_text()) == (2, "old")
    assert "out_corrupt.png is of an earlier run; add --overwrite" in said
    qsim.good("corrupt", tmp_path / "in.nii", *options[:-1], "--overwrite")
    assert not old.exists()


def test_magnitudes_larger_than_single_precision_are_refused_and_large_ones_are_not(qsim, tmp_path):
    np.save(tmp_path / "in.npy", np.full((9, 8), 3e38 + 3e38j, np.complex64))
    options = ("--config", config(tmp_path, *NOTHING, seed=1), "--out", tmp_path / "out.npy", "--magnitude")
    code, _, said = qsim("corrupt", tmp_path / "in.npy", *options)
    assert code == 2
    assert "artefacts: what comes out is not finite in single precision" in said
    np.save(tmp_path / "in.npy", np.full((4, 9, 8), 1e30, np.complex64))
    qsim.good("corrupt", tmp_path / "in.npy", "--axes", "cyx", *options[:-1], picture=True)


def test_a_series_says_what_its_last_axis_is(qsim, tmp_path):
    nifti(tmp_path / "in.nii", brain(9, 8, 7, 3))
    options = ("--config", config(tmp_path, SPIKE, seed=1), "--out", tmp_path / "out.nii")
    assert "note: the last axis is taken as 3 images" in qsim.good("corrupt", tmp_path / "in.nii", *options)


@pytest.mark.parametrize("shape", [(3, 200), (200, 3)])
def test_pictures_of_thin_slices_show_their_panels(tmp_path, monkeypatch, shape):
    from matplotlib.figure import Figure

    figures = []
    kept = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), kept(self, *a, **k))[1])
    rng = np.random.default_rng(1)
    image = rng.normal(size=(1, *shape)) + 3j
    title = ", ".join(f"k_space_noise 0.{number}" for number in range(12))
    picture(image, image + 1, title, "yx", (1.0, 1.0), tmp_path / "a.png")
    (figure,) = figures
    for panel in figure.axes[:6]:
        box = panel.get_window_extent()
        assert min(box.width, box.height) > 100
    assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1
    assert "stretched" in figure._suptitle.get_text()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small data set with motion, a spike and noise; its name and its units hold brackets."""
    motion = {"kind": "motion", "line_time": 0.01, "trajectory": {"kind": "sudden", "translation": 1}}
    path = tmp_path_factory.mktemp("s") / "a[b].zarr"
    build(data_set(artefacts=[motion, SPIKE, NOISE], samples=2), path, workers=1)
    return path


def test_inspect_shows_brackets_and_one_sentence_per_severity(qsim, store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = qsim.good("inspect", store, picture=True)
    assert "a[b].zarr: 2 samples" in out
    assert "[k-space maxima]." in out
    assert "[mm with `spacing_mm`, else voxels]" in " ".join(out.replace("\u2502", " ").split())
    for part in ("Facts:", "Not:", "trajectory_columns", "For `between`"):
        assert part not in out
    # a severity takes a few lines, not pages
    assert len(out.partition("severity is")[2].splitlines()) < 16


def test_the_snr_of_inspect_is_that_before_artefacts_with_noise(qsim, store, tmp_path):
    page = tmp_path / "a.html"
    assert ", SNR before artefacts " in qsim.good("inspect", store, "--html", page, picture=True)
    assert "<span>SNR before artefacts = 0.65 / sigma; sigma" in page.read_text()
    build(data_set(artefacts=[SPIKE], samples=1), tmp_path / "s.zarr", workers=1)
    assert "before artefacts" not in qsim.good("inspect", tmp_path / "s.zarr", picture=True)


def test_a_report_says_that_its_bound_knows_no_artefacts():
    rows = {("bound-free", t, snr, "bound_median"): (5.0, 5.0, 5.0) for t in ("gm", "csf") for snr in SNRS}
    sentence = "The images carry artefacts (rf spike, motion); the bound does not know them."
    about = subject(rows)
    assert sentence in headline(about, ("rf_spike", "motion", "rf_spike"))
    assert "artefacts" not in headline(about)


def test_the_schema_of_the_artefacts():
    schema = CorruptConfig.model_json_schema()
    assert set(schema["properties"]) == {"artefacts", "seed"}
    assert "amplitude" in schema["$defs"]["RFSpike"]["properties"]
