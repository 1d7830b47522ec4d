"""On a CUDA device: the same draws as on the CPU, a training step, and maps that agree with the CPU's."""

import pytest
import torch
from rich.console import Console

import trainers
from generators.config import GeneratorConfig
from generators.sample import make_sample
from tests.trainers.test_fit import GENERATE, RESNET, RIM, config
from trainers.fit import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch finds none here"),
]


@pytest.mark.parametrize("network", [RIM, RESNET], ids=["rim", "resnet"])
def test_train_on_the_device_and_map_on_both(tmp_path, network):
    fit(config(network, iterations=3), tmp_path / "run", device="cuda", console=Console(quiet=True))
    sample = make_sample(GeneratorConfig.model_validate(GENERATE), 0)
    there = trainers.load(tmp_path / "run", device="cuda")(sample.images[0], float(sample.sigma))
    here = trainers.load(tmp_path / "run", device="cpu")(sample.images[0], float(sample.sigma))
    # bfloat16 convolutions round at 1 part in 256, and four updates add up
    torch.testing.assert_close(there.kappa, here.kappa, rtol=0.05, atol=0.05)
