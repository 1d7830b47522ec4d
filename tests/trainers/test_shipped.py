"""Networks that are shipped: they load by name, do what their card says on anatomy of no training, and are packaged."""

from importlib import resources
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import trainers
from generators.config import GeneratorConfig
from generators.sample import make_truth
from phantoms.files.map_files import read_map
from qsim.errors import InputError
from qsim.estimators import build_estimator
from qsim.estimators.base import Status
from qsim.signals import InversionRecovery, SpinLock, T2Prep
from trainers.checkpoint import load_tensors
from trainers.infer import find_network

TI = (0.139, 0.166, 0.193, 0.219, 0.246, 0.272, 0.299, 0.325, 0.352, 0.379, 0.405, 0.432, 0.458, 0.485, 0.511, 0.538,
      0.565, 0.591, 0.618, 0.644, 0.671, 0.697, 0.724, 0.751, 0.777, 0.804, 0.838, 0.857, 0.883, 0.915,
      0.937)  # fmt: skip
# random times between the first and the last, of no training
OTHER = (0.141, 0.17, 0.233, 0.318, 0.322, 0.401, 0.476, 0.55, 0.571, 0.624, 0.709, 0.76, 0.803, 0.859, 0.92)
DATA = {
    "seed": 2021,
    "samples": 8,
    "patch": [64, 64],
    "split": "test",
    "phantom": {"kind": "mni"},
    "tissues": {"kind": "sabidussi2021"},
    "noise": {"kind": "gaussian", "sigma": {"kind": "constant", "value": 0.13}},
    "partial_volume": False,
}


def judged(ti, sigma, repeats):
    """Median over voxels of the RMSE of T1 over repeats [%], of network and fit, and the coverage of 95 % intervals."""
    config = GeneratorConfig.model_validate(DATA | {"model": {"kind": "inversion_recovery", "ti": list(ti)}})
    model = config.signal_model
    net, likelihood = trainers.load("rim-t1", model=model), build_estimator("shared-b", model)
    errors, fits, hits = [], [], []
    for draw in range(2):
        truth = make_truth(config, draw)
        inside = truth.labels > 0
        t1 = truth.kappa[2][inside]
        one: list[list[torch.Tensor]] = [[], []]
        known = None
        for repeat in range(repeats):
            g = torch.Generator().manual_seed(10 * draw + repeat)
            images = truth.signal.abs() + sigma * torch.randn(truth.signal.shape, generator=g)
            if repeat == 0:
                low, high = net.quantiles(images, (0.025, 0.975), sigma, inside)[:, inside]
                hits.append((low <= t1) & (t1 <= high))
            # B is pooled once, which takes most of the time; the fit is at the same B
            found = net(images, sigma, inside, known)
            known = {"B": found.kappa[1][inside][0]}
            fit = likelihood(images, sigma, inside, known)
            one[0].append(found.kappa[2][inside] / t1 - 1)
            one[1].append(fit.kappa[2][inside] / t1 - 1)
        errors.append(torch.stack(one[0]).square().mean(0).sqrt())
        fits.append(torch.stack(one[1]).square().mean(0).sqrt())
    return *(100 * float(torch.cat(e).median()) for e in (errors, fits)), float(torch.cat(hits).float().mean())


@pytest.mark.parametrize(("name", "most"), [("rim-t1", 0.6), ("resnet-t1", 0.65)])
def test_both_networks_of_t1_beat_maximum_likelihood(name, most):
    """SNR 5, told the true B, whose error is the same for all of them."""
    config = GeneratorConfig.model_validate(DATA | {"model": {"kind": "inversion_recovery", "ti": list(OTHER)}})
    truth = make_truth(config, 0)
    inside = truth.labels > 0
    images = truth.signal.abs() + 0.13 * torch.randn(truth.signal.shape, generator=torch.Generator().manual_seed(3))
    known = {"B": truth.kappa[1][inside][0]}
    found = trainers.load(name, config.signal_model)(images, 0.13, inside, known)
    fit = build_estimator("shared-b", config.signal_model)(images, 0.13, inside, known)
    away, far = ((each.kappa[2] / truth.kappa[2] - 1)[inside].abs().median() for each in (found, fit))
    assert away < most * far


@pytest.mark.parametrize(("sigma", "most"), [(0.13, 0.5), (0.0217, 0.85)])
@pytest.mark.parametrize("noise", ["rician", "gaussian"])
def test_t2_under_both_noises(noise, sigma, most):
    """SNR 5 and 30 at times of no training, against the fit of that noise; most intervals hold the truth."""
    te = (0.012, 0.025, 0.047, 0.07, 0.11, 0.18, 0.3)
    config = GeneratorConfig.model_validate(DATA | {"model": {"kind": "t2_prep", "te_prep": list(te)}})
    truth = make_truth(config, 1)
    inside = truth.labels > 0
    normals = sigma * torch.randn(2, *truth.signal.shape, generator=torch.Generator().manual_seed(4))
    images = truth.signal + normals[0]
    if noise == "rician":
        images = torch.hypot(images, normals[1])
    found = trainers.load("rim-t2", T2Prep(te_prep=te), noise=noise)
    estimate = found(images, sigma, inside)
    fit = build_estimator("rician" if noise == "rician" else "least-squares", T2Prep(te_prep=te))
    t2 = truth.kappa[1]
    away, far = ((each.kappa[1] / t2 - 1)[inside].abs().median() for each in (estimate, fit(images, sigma, inside)))
    assert away < most * far
    low, high = found.quantiles(images, (0.025, 0.975), sigma, inside)
    assert 0.9 < float(((low <= t2) & (t2 <= high))[inside].float().mean()) < 0.995


@pytest.mark.parametrize(
    ("ti", "sigma", "most", "repeats"),
    [(TI, 0.13, 0.6, 3), (OTHER, 0.13, 0.6, 2), (TI, 0.065, 0.85, 2), (TI, 0.0065, 1.02, 1)],
)
def test_it_beats_maximum_likelihood_on_unseen_anatomy(ti, sigma, most, repeats):
    """SNR 5 at the paper's times and at times of no training, SNR 10, and SNR 100, where the fit cannot be beaten."""
    error, fit, covered = judged(ti, sigma, repeats)
    assert error < most * fit
    # a nominal 95 %, of some thousand voxels whose errors of B are common
    assert 0.90 < covered < 0.99


def test_contrast_shrinks_less():
    """Slope of the estimate on the truth within one tissue at SNR 5: it grows with contrast, as does the noise."""
    model = InversionRecovery(ti=TI)
    g = torch.Generator().manual_seed(1)
    t1 = 0.9 * (1 + 0.05 * torch.randn(40, 40, generator=g))
    kappa = torch.stack((torch.full_like(t1, 0.65), torch.full_like(t1, 1.9), t1))
    images = model(kappa) + 0.13 * torch.randn(31, 40, 40, generator=g)
    slopes = {}
    for contrast in (None, 1.0, 3.0):
        found = trainers.load("rim-t1", model, contrast=contrast)(images, 0.13, known={"B": torch.tensor(1.9)}).kappa[2]
        away = t1 - t1.mean()
        slopes[contrast] = float((found * away).sum() / away.square().sum())
    assert slopes[None] == slopes[1.0]
    # the SD of a slope over 1600 voxels is about .03
    assert 0.1 < slopes[1.0] < slopes[3.0] - 0.05 < 1.0


def test_what_is_asked_of_it_wrongly():
    with pytest.raises(InputError, match="contrast: must be at least 1"):
        trainers.load("rim-t1", contrast=0.5)
    with pytest.raises(InputError, match="trained on"):
        trainers.load("rim-t1", T2Prep(te_prep=(0.01, 0.05)))
    with pytest.raises(InputError, match="noise: Rician noise is that of magnitudes"):
        trainers.load("rim-t1", InversionRecovery(ti=TI, signed=True), noise="rician")
    with pytest.raises(InputError, match=r"rim-t9: neither .* \(those are: .*rim-t1"):
        trainers.load("rim-t9")


def test_a_network_of_t2_maps_every_decay():
    """T1rho of 45 ms at SNR 50: within 2 % on average, and its row has its own name."""
    model = SpinLock(tsl=(0.0, 0.01, 0.03, 0.05))
    kappa = torch.stack((torch.ones(24, 24), torch.full((24, 24), 0.045)))
    images = (model(kappa) + 0.02 * torch.randn(4, 24, 24, generator=torch.Generator().manual_seed(5))).abs()
    network = trainers.load("rim-t2", model)
    assert [p.name for p in network.parameters] == ["A", "T1RHO"]
    assert float(network(images, 0.02).kappa[1].mean()) == pytest.approx(0.045, rel=0.02)
    with pytest.raises(InputError, match="cannot be told apart from 1 different times; give at least 2"):
        trainers.load("rim-t2", SpinLock(tsl=(0.02, 0.02)))


@pytest.mark.usefixtures("unchecked")
def test_a_noise_that_does_not_exist():
    with pytest.raises(InputError, match="noise: wanted gaussian or rician"):
        trainers.load("rim-t1", noise="chi")


def test_contrast_is_only_of_this_kind(tiny_rim):
    with pytest.raises(InputError, match="contrast: a rim has no such option"):
        trainers.load(tiny_rim, contrast=2.0)


def test_it_is_packaged_with_its_card():
    """Beside the code, small, with a card that names its data, results and limits; nothing pickled."""
    file = find_network("rim-t1")
    assert Path(str(resources.files("trainers"))) / "shipped" / "rim-t1.safetensors" == file
    assert file.stat().st_size < 1_000_000
    tensors, header = load_tensors(file)
    assert header["config"]["network"]["kind"] == "local_mixture"
    assert sum(t.numel() for t in tensors.values()) == 36_576
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"## {part}" in card for part in ("Data", "Training", "Results", "Limits"))


def test_the_command_takes_it_by_name(tmp_path, monkeypatch, unchecked):
    """`qsim map --model rim-t1` on a series in units of a scanner: T1 of the truth, A in those units."""
    from trainers import cli

    model = InversionRecovery(ti=TI)
    y, x = np.indices((24, 22))
    inside = torch.from_numpy((y - 12) ** 2 + (x - 11) ** 2 < 90)
    t1 = torch.where(torch.from_numpy(x) < 11, 0.8, 1.3)
    kappa = torch.stack((torch.full_like(t1, 700.0), torch.full_like(t1, 1.9), t1)).float()
    images = torch.where(inside, model(kappa), 0.0)
    images = (images + 7.0 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))).abs()
    file = tmp_path / "series.nii.gz"
    nibabel.save(nibabel.Nifti1Image(images.permute(2, 1, 0)[:, :, None].numpy(), np.eye(4)), file)
    nibabel.save(
        nibabel.Nifti1Image(inside.T[:, :, None].numpy().astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz"
    )
    words = ["qsim", "map", str(file), "--out", str(tmp_path / "maps"), "--model", "rim-t1", "--sigma", "7"]
    times = ",".join(str(each) for each in TI)
    words += ["--signal", "inversion_recovery", "--times", times, "--mask", str(tmp_path / "mask.nii.gz")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    found = {f.name.split("_")[-1]: f for f in (tmp_path / "maps").rglob("*map.nii.gz") if "desc-" not in f.name}
    mapped = torch.from_numpy(np.asarray(read_map(found["T1map.nii.gz"])))[0]
    # SNR 55: the fit scatters by a little over 1 %
    assert float((mapped / t1 - 1)[inside].abs().median()) < 0.02
    brightness = torch.from_numpy(np.asarray(read_map(found["M0map.nii.gz"])))[0]
    assert float(brightness[inside].median()) == pytest.approx(700, rel=0.02)
    assert (tmp_path / "maps/sub-series/anat/sub-series_desc-std_T1map.nii.gz").is_file()


def test_quantiles_are_in_order_in_the_smallest_masks():
    """Where B is all but unknown, and posteriors are skewed."""
    model = InversionRecovery(ti=(0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 0.93))
    g = torch.Generator().manual_seed(6)
    kappa = torch.stack(
        (torch.full((20, 20), 0.8), torch.full((20, 20), 1.9), 0.4 + 2 * torch.rand(20, 20, generator=g))
    )
    images = model(kappa) + 0.15 * torch.randn(7, 20, 20, generator=g)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[8:12, 8:12] = True
    ends = trainers.load("rim-t1", model).quantiles(images, (0.02, 0.2, 0.5, 0.8, 0.98), 0.15, mask)[:, mask]
    assert (ends[1:] >= ends[:-1]).all()


def test_what_is_shorter_than_the_grid_is_marked():
    """T1 of 20 ms comes to lie at 80 ms, the shortest of the grid, and is said to be on a bound."""
    model = InversionRecovery(ti=TI)
    kappa = torch.stack((torch.ones(12, 12), torch.full((12, 12), 1.9), torch.full((12, 12), 0.02)))
    kappa[2, :6] = 0.9
    images = model(kappa) + 0.02 * torch.randn(31, 12, 12, generator=torch.Generator().manual_seed(1))
    status = trainers.load("rim-t1", model)(images, 0.02, known={"B": torch.tensor(1.9)}).status
    assert (status[7:] == int(Status.AT_BOUND)).all()
    assert (status[:6] == int(Status.OK)).all()


def test_where_nothing_can_be_computed():
    """All-zero images: maps, variances and covariance of NaN, as of the fits."""
    found = trainers.load("rim-t2")(torch.full((6, 5, 4), torch.nan), 0.1)
    assert found.variances["noise"].shape == (2, 5, 4)
    assert found.covariance.isnan().all()
    assert (found.status == int(Status.NOT_COMPUTED)).all()


def test_the_amplitude_of_a_dark_voxel_is_about_as_uncertain_as_its_noise():
    """Under Rician noise a magnitude tells nothing of an amplitude of 0."""
    images = torch.full((6, 6, 6), 1e-4)
    images[:, :3] = 0.5
    sd = trainers.load("rim-t2")(images, 0.05).variances["noise"][0].sqrt()
    assert float(sd[4:].max()) < 1.0
