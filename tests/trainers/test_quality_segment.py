"""`qsim segment` with networks whose answers have a closed form, on images made by code."""

import gzip
import json
import sys
from math import exp, log
from types import SimpleNamespace

import matplotlib.image
import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from qsim.errors import InputError
from tests.phantoms.test_derivatives import validate
from trainers import cli
from trainers.quality.image import read_image, resampled, resampling
from trainers.quality.scaling import intensity_scale
from trainers.quality.segment_command import SegmentWords, segment
from trainers.quality.segmenter import Segmenter
from trainers.quality.windows import by_windows, count_windows

SHAPE = (20, 24, 18)
SOURCES = ("task", "noise", "blur")
CPU = torch.device("cpu")


def answer(logits, log_variance):
    """Of a network that says nothing of an image as a whole."""
    return SimpleNamespace(
        logits=logits, log_variance=log_variance, of_image=log_variance.new_zeros(log_variance.shape[:2])
    )


class Local(nn.Module):
    """Sees one voxel: tissue where it is above a half; variances 0.25, image^2 and 0.5 |image|."""

    def forward(self, images):
        assert images.shape[1] == 1
        assert images.dtype == torch.float32
        logits = torch.cat((torch.zeros_like(images), 8 * (images - 0.5)), 1)
        variances = torch.cat((torch.full_like(images, 0.25), images**2 + 1e-12, 0.5 * images.abs() + 1e-12), 1)
        return answer(logits=logits, log_variance=variances.log())


def segmenter(**changes):
    given = {
        "net": Local().eval(),
        "sources": SOURCES,
        "target": ("gm",),
        "spacing_mm": (1.0, 1.0, 1.0),
        "patch": (16, 16, 16),
        "calibration": None,
        "device": CPU,
        "name": "fake",
        "digest": "ab12",
    }
    return Segmenter(**given | changes)


def head():
    """A box of 200 with a corner of 100, so that no axis and no direction is like another one."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[3:15, 5:20, 4:12] = 200.0
    values[3:8, 5:10, 4:7] = 100.0
    return values


def save(file, values=None, affine=None, **header):
    """A NIfTI file; fields of its header as given, right or wrong."""
    image = nibabel.Nifti1Image(head() if values is None else values, np.eye(4) if affine is None else affine)
    nibabel.save(image, file)
    if header:
        packed = file.suffix == ".gz"
        content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
        changed = nibabel.Nifti1Header(content[:348])
        for key, value in header.items():
            changed[key] = value
        content = changed.binaryblock + content[348:]
        file.write_bytes(gzip.compress(content) if packed else content)
    return file


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """A picture takes a second; those tests draw it that look at it."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("trainers.quality.segment_files.quick_look", lambda file, *_: file.write_bytes(b"png"))


@pytest.fixture
def loaded(monkeypatch):
    """What `load_segmenter` returns; changed by calling it."""
    box = {"segmenter": segmenter(), "asked": None}

    def load_segmenter(run, device):
        box["asked"] = (run, device)
        return box["segmenter"]

    monkeypatch.setitem(sys.modules, "trainers.quality.loading", SimpleNamespace(load_segmenter=load_segmenter))

    def change(**changes):
        box["segmenter"] = segmenter(**changes)
        return box

    return change


@pytest.fixture
def run(monkeypatch, capsys, unchecked):
    """The console script: exit status, what it printed on stdout and on stderr."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["qsim", "segment", *map(str, arguments), "--model", "fake"])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def read(folder, name):
    return nibabel.load(next(folder.rglob(name)))


def go(file, out, **words):
    return segment(file, out, SegmentWords(model="fake", **words))


# the scale


def test_the_scale_is_the_percentile_of_the_object():
    image = np.zeros((30, 30, 30))
    image[:10] = np.arange(1000, 10_000).reshape(10, 30, 30)
    # the largest is 9999: 1000 to 9999 are above a tenth of it, and their 99th percentile is 1000 + 0.99 x 8999
    assert intensity_scale(image) == pytest.approx(1000 + 0.99 * 8999, rel=1e-12)
    # air, and what is dark, do not count; a tensor gives the same
    image[10:] = 900
    assert intensity_scale(torch.from_numpy(image)) == pytest.approx(1000 + 0.99 * 8999, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_an_image_without_brightness_is_refused(value):
    with pytest.raises(InputError, match="no voxel above 0"):
        intensity_scale(torch.full((4, 4), value))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_of_nothing_finite_is_refused(value):
    image = np.ones((4, 4))
    image[1, 2] = value
    with pytest.raises(InputError, match="NaN or infinity"):
        intensity_scale(image)


# windows


@pytest.mark.parametrize("space", [(16, 16, 16), (33, 16, 25), (10, 40, 7), (17, 18, 50)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_windows_of_a_local_network_are_the_whole_volume(space, overlap):
    image = torch.rand(space, generator=torch.Generator().manual_seed(1)) + 0.1
    told = []
    logits, variances = by_windows(
        Local(), image, (16, 16, 16), overlap=overlap, device=CPU, progress=lambda *each: told.append(each)
    )
    assert logits.shape == (2, *space)
    assert variances.shape == (3, *space)
    torch.testing.assert_close(logits[1], 8 * (image - 0.5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variances[1], image**2, rtol=1e-5, atol=1e-6)
    # the count that a progress bar is promised is that of the calls
    total = count_windows(space, (16, 16, 16), overlap)
    assert told == [(n + 1, total) for n in range(total)]


def test_variances_are_averaged_not_their_logarithms():
    class Counting(nn.Module):
        """Its n-th answer has a variance of n."""

        calls = 0

        def forward(self, images):
            Counting.calls += 1
            flat = torch.zeros_like(images)
            return answer(
                logits=torch.cat((flat, flat + Counting.calls), 1), log_variance=flat + float(np.log(Counting.calls))
            )

    # two windows that overlap by half along x: the same weights for a logit of n and a variance of n
    logits, variances = by_windows(Counting(), torch.ones(24, 16, 16), (16, 16, 16), overlap=0.5, device=CPU)
    assert Counting.calls == 2
    torch.testing.assert_close(variances[0], logits[1], rtol=1e-5, atol=1e-6)
    assert variances[0, 0, 8, 8] == pytest.approx(1, rel=1e-5)
    # in the middle of the overlap both count as much
    np.testing.assert_allclose(variances[0, 11:13, 8, 8].mean(), 1.5, rtol=1e-4)
    assert variances[0, -1, 8, 8] == pytest.approx(2, rel=1e-5)


def test_what_is_said_of_the_image_is_one_number_for_the_volume():
    """log 2 in a window all of whose voxels are something, log 32 where it is a quarter of them: 2^(1.8) in all."""

    class Whole(nn.Module):
        def forward(self, images):
            share = (images > 0.1).float().mean()
            said = torch.tensor([[0.0, log(2) if share > 0.5 else log(32)]])
            voxel = torch.cat((images, images + 1), 1).log()
            return SimpleNamespace(
                logits=torch.cat((images, images), 1),
                log_variance=voxel + said[:, :, None, None, None],
                of_image=said,
            )

    image = torch.full((32, 16, 16), 0.05)
    image[:16], image[16:20] = 0.5, 0.25
    _, variances = by_windows(Whole(), image, (16, 16, 16), overlap=0.0, device=CPU)
    torch.testing.assert_close(variances[0], image, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variances[1], 2**1.8 * (image + 1), rtol=1e-5, atol=1e-6)
    # of nothing but air every window says as much
    _, variances = by_windows(Whole(), 0 * image + 0.01, (16, 16, 16), overlap=0.0, device=CPU)
    torch.testing.assert_close(variances[1], torch.full_like(image, 32 * 1.01), rtol=1e-5, atol=1e-6)


def test_a_segmenter_does_not_see_the_brightness():
    image = torch.from_numpy(head())
    one, two = segmenter()(image), segmenter()(1000 * image)
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-5, atol=1e-5)
    assert list(one.variances) == list(SOURCES)
    # 200 is the 99th percentile: tissue is 1 and the corner a half
    assert one.probabilities[1, 10, 15, 8] == pytest.approx(1 / (1 + exp(-4)), rel=1e-5)
    assert one.probabilities[1, 4, 6, 5] == pytest.approx(0.5, abs=1e-5)
    assert one.variances["noise"][4, 6, 5] == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(one.probabilities.sum(0), torch.ones(SHAPE))


def test_a_network_that_answers_nan_is_refused():
    class Lost(Local):
        def forward(self, images):
            found = super().forward(images)
            return answer(logits=found.logits, log_variance=found.log_variance * np.nan)

    with pytest.raises(InputError, match=r"^fake: answers with NaN or infinity; train it again"):
        segmenter(net=Lost())(torch.from_numpy(head()))


def test_a_network_of_other_sources_is_a_mistake():
    with pytest.raises(ValueError, match="answers with 2 classes and 3 sources"):
        segmenter(sources=("task", "noise"))(torch.from_numpy(head()))
    with pytest.raises(ValueError, match="start with task"):
        segmenter(sources=("noise", "task"))


# grids


def affine_of(order, signs, spacing=(1.0, 1.0, 1.0), origin=(5.0, -7.0, 11.0)):
    """Axes of the file run along world axes `order`, in directions `signs`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize(
    ("order", "signs"),
    [
        ((0, 1, 2), (-1, -1, 1)),
        ((2, 0, 1), (1, -1, 1)),
        ((1, 2, 0), (-1, 1, -1)),
        ((2, 1, 0), (1, 1, -1)),
        ((0, 2, 1), (-1, -1, -1)),
    ],
)
def test_axes_are_those_of_nibabel_and_come_back_exactly(tmp_path, order, signs):
    values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    file = save(tmp_path / "a.nii", values, affine_of(order, signs, (1.0, 1.25, 1.5)))
    image = read_image(file)
    canonical = nibabel.as_closest_canonical(nibabel.load(file))
    np.testing.assert_array_equal(image.values, canonical.get_fdata())
    assert image.spacing_mm == canonical.header.get_zooms()
    np.testing.assert_array_equal(image.turn.back(image.values), values)
    codes = "".join(nibabel.aff2axcodes(nibabel.load(file).affine))
    assert image.turn.codes == codes
    assert f"axes run {codes}" in image.notes[-1]
    assert image.voxel_mm3 == pytest.approx(1.875)


def test_an_oblique_image_keeps_its_axes(tmp_path):
    turn = np.eye(4)
    angle = np.deg2rad(20)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image = read_image(save(tmp_path / "a.nii", affine=turn))
    np.testing.assert_array_equal(image.values, head())
    assert image.notes == ()
    np.testing.assert_allclose(image.spacing_mm, 1, rtol=1e-6)


def test_finer_is_linear_interpolation():
    rng = np.random.default_rng(2)
    values = rng.random((17, 20, 18))
    out = resampled(values, (2.0, 2.0, 2.0), (34, 40, 36), (1.0, 1.0, 1.0))
    at = np.meshgrid(*((np.arange(2 * n) - 0.5) / 2 for n in values.shape), indexing="ij")
    np.testing.assert_allclose(out, map_coordinates(values, at, order=1, mode="nearest"), rtol=1e-12)


def test_coarser_does_not_alias():
    # two samples a period, which the coarse grid cannot hold; a plane wave of 40 samples, which it can
    x = np.arange(64)
    fast, slow = np.cos(np.pi * x), np.cos(2 * np.pi * (x - 31.5) / 40)
    one = np.broadcast_to((fast + slow)[:, None, None], (64, 16, 16)).copy()
    out = resampled(one, (1.0, 1.0, 1.0), (32, 16, 16), (2.0, 1.0, 1.0))[:, 3, 4]
    at = 2 * np.arange(32) + 0.5
    # a triangle of reach 2 between samples: weights 1/8, 3/8, 3/8, 1/8 take the fast wave out, and lower the slow one
    k = 2 * np.pi / 40
    gain = 0.75 * np.cos(k / 2) + 0.25 * np.cos(3 * k / 2)
    np.testing.assert_allclose(out[1:-1], gain * np.cos(k * (at[1:-1] - 31.5)), atol=1e-12)


def test_there_and_back_keeps_constants_and_the_mean(tmp_path):
    image = read_image(save(tmp_path / "a.nii", affine=np.diag([1.7, 1.3, 2.1, 1.0])))
    grid, notes = resampling(image, (1.0, 1.0, 1.0), allowed=True)
    assert grid.model_shape == (34, 31, 38)
    assert "voxels of 1.7 x 1.3 x 2.1 mm, the model learned 1 x 1 x 1 mm: resampled" in notes[0]
    np.testing.assert_allclose(grid.back(grid.there(np.full(SHAPE, 3.0))), 3.0, rtol=1e-12)
    # the amount of a smooth blob away from the border, in mm^3
    x, y, z = np.indices(SHAPE)
    blob = np.exp(-((x - 9.2) ** 2 + (y - 11.4) ** 2 + (z - 8.8) ** 2) / 18)
    assert grid.there(blob).sum() == pytest.approx(blob.sum() * image.voxel_mm3, rel=2e-3)


# the whole command


def test_results_are_in_the_grid_of_the_image(tmp_path, loaded):
    """Another order of axes changes nothing but that."""
    loaded()
    straight = save(tmp_path / "a.nii.gz")
    # the same head: file axis 0 is world z downwards, 1 is x to the left, 2 is y forwards
    turned = np.ascontiguousarray(head().transpose(2, 0, 1)[::-1, ::-1, :])
    affine = affine_of((2, 0, 1), (-1, -1, 1), origin=(19.0, 0.0, 17.0))
    odd = save(tmp_path / "b.nii.gz", turned, affine)
    one, two = go(straight, tmp_path / "one"), go(odd, tmp_path / "two")
    for name in ("gm_dseg", "gm_probseg", "task_variance", "noise_variance", "blur_variance"):
        a, b = read(tmp_path / "one", f"*desc-{name}.nii.gz"), read(tmp_path / "two", f"*desc-{name}.nii.gz")
        np.testing.assert_allclose(b.affine, affine, atol=1e-6)
        back = np.asarray(b.dataobj)[::-1, ::-1, :].transpose(1, 2, 0)
        np.testing.assert_array_equal(back, np.asarray(a.dataobj))
    assert one.volumes == two.volumes
    assert one.sources == two.sources
    assert any("axes run ILA" in note for note in two.notes)


def test_values_are_the_closed_form(tmp_path, loaded):
    box = loaded()
    record = go(save(tmp_path / "sub-07_ses-2_run-1_T1w.nii.gz"), tmp_path / "out")
    assert box["asked"] == ("fake", "auto")
    folder = tmp_path / "out/sub-07/ses-2/anat"
    stem = "sub-07_ses-2_run-1"
    maps = ("desc-gm_dseg", "desc-gm_probseg", *(f"desc-{s}_variance" for s in SOURCES))
    wanted = {f"{stem}_{each}{end}" for each in maps for end in (".nii.gz", ".json")}
    assert {f.name for f in folder.iterdir()} == wanted | {f"{stem}_quality.json", f"{stem}_quality.png"}
    scaled = head() / 200
    labels = nibabel.load(folder / f"{stem}_desc-gm_dseg.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(labels.dataobj), scaled > 0.5)
    probability = nibabel.load(folder / f"{stem}_desc-gm_probseg.nii.gz")
    assert probability.get_data_dtype() == np.float32
    np.testing.assert_allclose(probability.get_fdata(), 1 / (1 + np.exp(-8 * (scaled - 0.5))), rtol=1e-5)
    noise = nibabel.load(folder / f"{stem}_desc-noise_variance.nii.gz").get_fdata()
    np.testing.assert_allclose(noise, scaled**2, rtol=1e-5, atol=1e-9)
    tissue, corner, voxels = 12 * 15 * 8 - 75, 75, np.prod(SHAPE)
    assert record.volumes["gm"].labels_ml == pytest.approx(1e-3 * tissue)
    high, low = 1 / (1 + exp(-4)), 1 / (1 + exp(4))
    soft = tissue * high + corner * 0.5 + (voxels - tissue - corner) * low
    assert record.volumes["gm"].ml == pytest.approx(1e-3 * soft, rel=1e-5)
    assert record.sources["noise"].mean == pytest.approx((tissue + corner / 4) / voxels, rel=1e-5)
    assert record.sources["noise"].mean_in_target == pytest.approx(1.0, rel=1e-5)
    assert record.sources["task"].mean == pytest.approx(0.25, rel=1e-5)
    assert record.artefacts.mean_in_target == pytest.approx(1.5, rel=1e-5)
    # noise: tissue + corner / 4, blur: half of tissue + corner / 2
    share = (tissue + corner / 4) / (1.5 * tissue + corner / 2)
    assert (record.blame.source, record.blame.above_clean_sd) == ("noise", None)
    assert record.blame.share == pytest.approx(share, rel=1e-5)
    said = json.loads((folder / f"{stem}_quality.json").read_text())
    assert said["volumes"]["gm"]["ml"] == record.volumes["gm"].ml
    assert (said["model"], said["digest"], said["resampled"]) == ("fake", "ab12", False)
    assert "no calibrated error bar: the model has no calibration" in " ".join(said["notes"])
    beside = json.loads((folder / f"{stem}_desc-noise_variance.json").read_text())
    assert beside["Sources"] == ["bids:raw:sub-07_ses-2_run-1_T1w.nii.gz"]


CALIBRATION = {
    "clean": {
        "task": {"mean": 0.2, "sd": 0.1},
        "noise": {"mean": 0.1, "sd": 0.2},
        "blur": {"mean": 0.0, "sd": 0.01},
    },
    "entropic": {"mean": 0.0, "sd": 0.1},
    "volume": {
        "ratio": 1.1,
        "coefficients": [0.0, 0.5, 1.0],
        "offset": 0.03,
        "factor": 2.0,
        "level": 0.9,
        "law": "gaussian",
        "images": 40,
        "anatomies": 10,
        "spread_range": [1e-4, 1.0],
    },
}


def test_calibration_decides_error_bar_and_blame(tmp_path, loaded):
    loaded(calibration=CALIBRATION)
    record = go(save(tmp_path / "a.nii"), tmp_path / "out")
    tissue, corner, voxels = 1365, 75, int(np.prod(SHAPE))
    p = 1 / (1 + exp(-4))
    spread = (voxels - corner) * p * (1 - p) + corner / 4
    found = record.volumes["gm"]
    # half width = factor V exp(0.5 log u + log(m + m0)) about ratio V; u, m: sums over voxels over that of p
    predicted = tissue * p + corner / 2 + (voxels - tissue - corner) * (1 - p)
    artefacts = (1.5 * tissue + corner / 2) / predicted
    half = 2 * found.ml * (spread / predicted) ** 0.5 * (artefacts + 0.03)
    assert found.calibrated_ml == pytest.approx(1.1 * found.ml)
    assert found.low_ml == pytest.approx(1.1 * found.ml - half, rel=1e-5)
    assert found.high_ml == pytest.approx(1.1 * found.ml + half, rel=1e-5)
    assert found.level == 0.9
    # Eq. 8 of two classes of the scaled logits, and no uncertainty of clean images to take off
    sums = 0.0
    for count, x in ((tissue, 1.0), (corner, 0.5), (voxels - tissue - corner, 0.0)):
        q = 1 / (1 + np.exp(-8 * (x - 0.5) / (0.25 + x**2 + 0.5 * x)))
        h = -q * np.log(q) - (1 - q) * np.log(1 - q)
        sums += count * np.exp(2 * h) / (2 * np.pi * np.e)
    assert found.paper_sd_ml == pytest.approx(1e-3 * sums**0.5, rel=1e-4)
    # per voxel of the tissue, whatever the air around: noise has the larger variance, blur stands out more
    blur = 0.5 * (tissue + corner / 2) / predicted
    assert record.blame.source == "blur"
    assert record.blame.above_clean_sd == pytest.approx(blur / 0.01, rel=1e-4)
    assert record.sources["task"].above_clean_sd == pytest.approx((0.25 * voxels / predicted - 0.2) / 0.1, rel=1e-4)


def test_what_is_not_calibrated_is_said(tmp_path, loaded):
    file = save(tmp_path / "a.nii")
    volumes = CALIBRATION["volume"]
    loaded(calibration=CALIBRATION | {"volume": {"missing": "predicted: 3 images; a calibration needs at least 20"}})
    record = go(file, tmp_path / "one")
    assert record.volumes["gm"].low_ml is None
    assert "no calibrated error bar: predicted: 3 images; a calibration needs at least 20" in record.notes
    loaded(calibration=CALIBRATION | {"volume": volumes | {"spread_range": [0.9, 1.0]}})
    record = go(file, tmp_path / "two")
    assert "calibrated on images of another quality" in " ".join(record.notes)
    # far above what any of these variances is: nothing stands out
    clean = {source: {"mean": 1.0, "sd": 1.0} for source in SOURCES}
    loaded(calibration={"clean": clean})
    record = go(file, tmp_path / "three")
    assert record.blame.source is None
    assert record.blame.above_clean_sd < 0
    # one clean image has no SD
    loaded(calibration={"clean": {source: {"mean": 1.0, "sd": 0.0} for source in SOURCES}})
    record = go(file, tmp_path / "four")
    assert (record.blame.source, record.blame.above_clean_sd) == ("noise", None)


def test_an_image_of_2_mm_is_resampled_and_comes_back(tmp_path, loaded, run):
    loaded()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    file = save(tmp_path / "a.nii.gz", affine=affine)
    code, said, _ = run(file, "--out", tmp_path / "out")
    assert code == 0
    assert "note: a.nii.gz: voxels of 2 x 2 x 2 mm, the model learned 1 x 1 x 1 mm: resampled" in said
    labels = read(tmp_path / "out", "*_dseg.nii.gz")
    assert labels.shape == SHAPE
    np.testing.assert_allclose(labels.affine, affine)
    # inside of the box, away from its edges, nothing changes
    inside = head() > 150
    assert np.asarray(labels.dataobj)[9:14, 11:19, 8:11].all()
    assert np.mean(np.asarray(labels.dataobj) != inside) < 0.04
    found = json.loads(next((tmp_path / "out").rglob("*_quality.json")).read_text())
    assert found["resampled"] is True
    assert found["volumes"]["gm"]["labels_ml"] == pytest.approx(8e-3 * np.asarray(labels.dataobj).sum())
    code, _, wrong = run(file, "--out", tmp_path / "no", "--no-resample")
    assert code == 2
    assert "resample it, or leave out --no-resample" in wrong
    assert not (tmp_path / "no").exists()


def test_spacings_within_a_tenth_are_taken_as_they_are(tmp_path, loaded):
    loaded()
    record = go(save(tmp_path / "a.nii", affine=np.diag([1.05, 0.95, 1.09, 1.0])), tmp_path / "out")
    assert not record.resampled
    assert record.volumes["gm"].labels_ml == pytest.approx(1365e-3 * 1.05 * 0.95 * 1.09, rel=1e-5)


def test_truth_gives_dice_and_volume_error(tmp_path, loaded, run):
    loaded()
    affine = affine_of((1, 0, 2), (1, -1, 1))
    file = save(tmp_path / "a.nii", affine=affine)
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[3:15, 5:20, 4:12] = 3
    truth[3:5] *= 14
    labels = save(tmp_path / "l.nii.gz", truth, affine)
    code, said, _ = run(file, "--out", tmp_path / "out", "--labels", labels)
    assert code == 0
    # 3 is cortex, and 42 on the other side; the corner of 75 voxels is not found
    assert "Dice 0.973" in said
    found = json.loads(next((tmp_path / "out").rglob("*_quality.json")).read_text())["volumes"]["gm"]
    assert found["dice"] == pytest.approx(2 * 1365 / (1365 + 1440))
    assert found["true_ml"] == pytest.approx(1.44)


def test_only_the_sources_asked_for(tmp_path, loaded):
    loaded()
    file = save(tmp_path / "a.nii")
    go(file, tmp_path / "out")
    record = go(file, tmp_path / "out", source=("blur", "task"), overwrite=True)
    # a map of the other call would not be of this one
    assert sorted(f.name for f in (tmp_path / "out").rglob("*_variance.nii.gz")) == [
        "sub-a_desc-blur_variance.nii.gz",
        "sub-a_desc-task_variance.nii.gz",
    ]
    assert set(record.sources) == set(SOURCES)


def test_json_is_all_that_is_printed(tmp_path, loaded, run):
    loaded()
    code, printed, wrong = run(save(tmp_path / "a.nii"), "--out", tmp_path / "out", "--json")
    assert (code, wrong) == (0, "")
    said = json.loads(printed)
    assert said["blame"]["source"] == "noise"
    assert set(said["files"]) == {
        str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out/sub-a").rglob("*") if f.is_file()
    }


def test_the_folder_is_bids_and_says_what_it_holds(tmp_path, loaded):
    loaded()
    go(save(tmp_path / "sub-01_T1w.nii.gz"), tmp_path / "out")
    go(save(tmp_path / "sub-02_T1w.nii.gz"), tmp_path / "out")
    assert "segment" in (tmp_path / "out/README").read_text()
    lines = (tmp_path / "out/.bidsignore").read_text().splitlines()
    assert len(lines) == len(set(lines))
    assert validate(tmp_path / "out") == []


def test_the_same_image_gives_the_same_bytes_and_picture(tmp_path, loaded):
    loaded()
    file = save(tmp_path / "a.nii")
    for name in ("one", "two"):
        go(file, tmp_path / name)
    for one in (tmp_path / "one/sub-a").rglob("*.*"):
        assert one.read_bytes() == (tmp_path / "two" / one.relative_to(tmp_path / "one")).read_bytes(), one.name


def test_an_empty_segmentation_is_said(tmp_path, loaded):
    class Never(Local):
        def forward(self, images):
            found = super().forward(images)
            return answer(
                logits=found.logits - torch.tensor([0.0, 99.0])[:, None, None, None], log_variance=found.log_variance
            )

    loaded(net=Never())
    record = go(save(tmp_path / "a.nii"), tmp_path / "out")
    assert record.volumes["gm"].labels_ml == 0
    assert record.sources["noise"].mean_in_target is None
    assert "no voxel is most likely gm" in record.notes


def test_a_model_without_artefacts_and_with_two_classes(tmp_path, loaded):
    class Two(nn.Module):
        def forward(self, images):
            flat = torch.zeros_like(images)
            return answer(logits=torch.cat((flat + 0.2, images, 9 * images - 6), 1), log_variance=flat)

    loaded(net=Two(), sources=("task",), target=("gm", "liver_vessel"))
    record = go(save(tmp_path / "a.nii"), tmp_path / "out")
    assert record.blame is None
    labels = {
        name: np.asarray(read(tmp_path / "out", f"*desc-{name}_dseg.nii.gz").dataobj) for name in ("gm", "livervessel")
    }
    # 1 beats 0.2 and 9 - 6; a half beats 0.2 and 4.5 - 6
    np.testing.assert_array_equal(labels["livervessel"], head() == 200)
    np.testing.assert_array_equal(labels["gm"], head() == 100)


def test_the_picture_shows_every_map(tmp_path, loaded):
    loaded()
    go(save(tmp_path / "a.nii"), tmp_path / "out")
    pixels = matplotlib.image.imread(next((tmp_path / "out").rglob("*.png")))[..., :3]
    # the outline of the segmentation is the only cyan
    cyan = (pixels[..., 2] > 0.9) & (pixels[..., 1] > 0.7) & (pixels[..., 0] < 0.4)
    assert cyan.sum() > 50
    assert np.nonzero(cyan)[1].max() < pixels.shape[1] / 3


def bad(values, place, **header):
    return lambda folder: save(folder / "bad.nii.gz", values, place, **header)


def nan_image():
    values = head()
    values[1, 2, 3], values[0, 0, 0] = np.nan, np.inf
    return values


def truncated(folder):
    file = save(folder / "bad.nii.gz")
    file.write_bytes(file.read_bytes()[:400])
    return file


def text(folder):
    file = folder / "bad.nii.gz"
    file.write_text("no image")
    return file


EYE = np.eye(4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bad(np.zeros((*SHAPE, 3), np.float32), EYE), "holds 3 volumes, wanted one; save one of them"),
        (bad(np.ones((30, 30), np.float32), EYE), "has 2 dimensions, wanted a three-dimensional image"),
        (bad(np.ones((30, 30, 15), np.float32), EYE), "has 30 x 30 x 15 voxels, wanted at least 16"),
        (bad(nan_image(), EYE), f"NaN or infinity in 2 of {np.prod(SHAPE)} voxels; replace them"),
        (bad(head().astype(np.complex64), EYE), "holds complex numbers, wanted real ones"),
        (bad(-head() - 1, EYE), "holds no value above 0 (largest -1); give a magnitude image"),
        (bad(0 * head(), EYE), "holds no value above 0 (largest 0); give a magnitude image"),
        (bad(0 * head() + 7, EYE), "holds 7 in every voxel"),
        (bad(head(), EYE, sform_code=0, qform_code=0), "has no affine (sform_code and qform_code are 0)"),
        (bad(head(), EYE, pixdim=[1, 2, 2, 2, 1, 1, 1, 1]), "1 x 1 x 1 mm by its affine"),
        (bad(head(), EYE, srow_x=[0, 0, 0, 0]), "its affine has no inverse"),
        (bad(head(), EYE, srow_x=[np.nan, 0, 0, 0]), "its affine holds NaN or infinity"),
        (bad(head(), EYE, xyzt_units=3), "its lengths are in micron, wanted mm"),
        (bad(head(), np.diag([0.3, 1.0, 1.0, 1.0])), "it has 6 x 24 x 18 voxels, wanted at least 16"),
        (bad(head(), np.diag([99.0, 99.0, 99.0, 1.0])), "is its voxel size right?"),
        (truncated, "cannot be read"),
        (text, "cannot be read"),
        (lambda folder: folder / "bad.nii.gz", "no such file"),
        (lambda folder: folder, "is a folder"),
    ],
)
def test_a_bad_image_is_one_line_and_status_2(tmp_path, loaded, run, make, said):
    loaded()
    file = make(tmp_path)
    code, _, err = run(file, "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"qsim: {file}")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def other(folder, values=None, affine=None):
    return save(folder / "l.nii.gz", np.zeros(SHAPE, np.uint8) if values is None else values, affine)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (lambda f: ("--source", "spike"), "--source: the model has no source spike; it has task, noise, blur"),
        (lambda f: ("--labels", other(f, np.zeros((20, 24, 17), np.uint8))), "has 20 x 24 x 17 voxels, a.nii has"),
        (lambda f: ("--labels", other(f, affine=np.diag([-1.0, 1, 1, 1]))), "lies in another place than a.nii"),
        (lambda f: ("--labels", other(f, np.full(SHAPE, 999, np.uint16))), "holds 999, which freesurfer does not know"),
        (lambda f: ("--labels", other(f, np.full(SHAPE, 0.5, np.float32))), "not whole numbers"),
        (lambda f: ("--labels", f / "none.nii"), "none.nii does not exist"),
        (lambda f: ("--labels", other(f), "--scheme", "mine"), "--scheme: there is no mine; choose from discrete"),
        (lambda f: ("--labels", other(f), "--scheme", "totalseg-mr"), "--scheme: totalseg-mr has no gm"),
    ],
)
def test_a_bad_option_is_one_line_and_status_2(tmp_path, loaded, run, options, said):
    loaded()
    file = save(tmp_path / "a.nii")
    code, _, err = run(file, "--out", tmp_path / "out", *options(tmp_path))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten_unasked(tmp_path, loaded, run):
    loaded()
    file = save(tmp_path / "a.nii")
    assert run(file, "--out", tmp_path / "out")[0] == 0
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*.*")}
    code, _, err = run(file, "--out", tmp_path / "out")
    assert code == 2
    assert "exists already; name another folder, or add --overwrite" in err
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*.*")} == before
    assert run(file, "--out", tmp_path / "out", "--overwrite")[0] == 0


def test_a_failure_leaves_nothing(tmp_path, loaded, monkeypatch):
    loaded()
    monkeypatch.setattr("trainers.quality.segment_files.quick_look", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(save(tmp_path / "a.nii"), tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["a.nii"]


def test_negative_values_are_said(tmp_path, loaded):
    loaded()
    values = head()
    values[0] = -1
    record = go(save(tmp_path / "a.nii", values), tmp_path / "out")
    assert "a.nii: 5 % of its values are negative; networks learn magnitudes" in record.notes
