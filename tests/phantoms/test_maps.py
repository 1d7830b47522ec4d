"""Labels, shares and parameter maps on small arrays worked out by hand, and the cut normal against scipy."""

import torch
from scipy import stats

from phantoms.maps import mixture, parameter_maps, vary
from qsim.tissues import Variation


def fractions(*voxels):
    """(1, t, voxels) from one tuple of shares per voxel."""
    return torch.tensor(voxels).T[None]


def test_majority_background_and_purity():
    share = fractions((0.7, 0.2, 0.0), (0.3, 0.4, 0.0), (0.0, 0.0, 0.0), (0.2, 0.2, 0.1), (0.0, 0.0, 1.0))
    voxels = mixture(share, partial_volume=True)
    # the fourth voxel is half background: no tissue holds more than that
    assert voxels.labels.tolist() == [[1, 2, 0, 0, 3]]
    torch.testing.assert_close(voxels.purity, torch.tensor([[0.7, 0.4, 0.0, 0.2, 1.0]]))
    minor = voxels.minor
    pairs = sorted(zip(minor.voxel.tolist(), minor.tissue.tolist(), minor.share.tolist(), strict=True))
    assert [(voxel, tissue, round(share, 6)) for voxel, tissue, share in pairs] == [
        (0, 1, 0.2),
        (1, 0, 0.3),
        (3, 1, 0.2),
        (3, 2, 0.1),
    ]


def test_without_partial_volume_the_majority_fills_the_voxel():
    voxels = mixture(fractions((0.7, 0.2), (0.0, 0.0), (0.1, 0.2)), partial_volume=False)
    assert voxels.labels.tolist() == [[1, 0, 0]]
    assert len(voxels.minor.share) == 0
    assert voxels.purity.tolist() == [[1.0, 0.0, 0.0]]


def test_maps_take_the_value_of_the_tissue():
    values = torch.tensor([[[1.0, 3.5], [0.85, 1.4]]])  # (b, t, q): A, T1 of two tissues
    tissues = torch.tensor([[0, 1, 1]])
    normals = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, -2.0]]])
    kappa = parameter_maps(values, normals, (Variation(), Variation(relative=0.05)), tissues)
    torch.testing.assert_close(kappa[0], torch.tensor([[1.0, 0.85, 0.85]]))
    torch.testing.assert_close(kappa[1], torch.tensor([[3.5, 1.4 * 1.05, 1.4 * 0.9]]))


def test_absolute_variation_is_cut_at_the_floor_and_not_piled_up_there():
    """T2 30 ms, SD 10 ms (the authors' skull) cut at 10 %: the distribution is scipy's truncated normal."""
    z = torch.empty(40_000).normal_(generator=torch.Generator().manual_seed(2))
    x = vary(torch.full_like(z, 0.030), z, Variation(absolute=0.010)).numpy()
    assert x.min() > 0.003
    assert stats.kstest(x, stats.truncnorm(-2.7, float("inf"), 0.030, 0.010).cdf).pvalue > 1e-3


def test_the_short_way_equals_the_cut_normal():
    """A relative SD of 5 % never reaches the cut, so skipping it changes nothing but rounding."""
    z = torch.empty(1000).normal_(generator=torch.Generator().manual_seed(3))
    value = torch.full_like(z, 1.4)
    short = vary(value, z, Variation(relative=0.05))
    long = vary(value, z, Variation(relative=0.05, absolute=1e-9))
    torch.testing.assert_close(short, long, rtol=1e-5, atol=0.0)
