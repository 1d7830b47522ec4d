"""Bloch models on a CUDA device: the same images as on the CPU, to rounding."""

import numpy as np
import pytest
import torch

from tests.qsim.test_sequences import MODELS, random_maps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.kind)
def test_images_on_cuda_are_those_of_the_cpu(model):
    kappa = random_maps(model, 2, 8, 6, dtype=torch.float32)
    images = model(kappa.cuda())
    assert images.is_cuda
    np.testing.assert_allclose(images.cpu(), model(kappa), atol=2e-5)
