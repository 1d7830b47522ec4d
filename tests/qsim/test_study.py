"""The Monte Carlo study against estimators whose answer is known."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
import torch

from qsim.distributions import Constant
from qsim.estimators.base import Estimate, Status
from qsim.evaluation.blocks import block_key, from_arrays, read_arrays, to_arrays, write_arrays
from qsim.evaluation.study import Case, Design, MethodResult, noisy_images, painters, run_block, told
from qsim.evaluation.table import ALL, Row, Table, csv_text, read_csv, rows_of_snr
from qsim.kspace.noise import GaussianNoise, RicianNoise
from qsim.signals import InversionRecovery

# the 31 inversion times of sabidussi2021, Table 2 [s]
TI = tuple(
    t / 1000
    for t in (
        *(139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538, 565, 591, 618, 644, 671),
        *(697, 724, 751, 777, 804, 838, 857, 883, 915, 937),
    )
)
MODEL = InversionRecovery(ti=TI)
NOISE = GaussianNoise(sigma=Constant(value=0.1))


def make_case(draw=0, size=20, scale=1.0):
    """Grey matter on the left, white matter on the right, a column of mixed voxels, a row of background."""
    generator = torch.Generator().manual_seed(draw)
    labels = torch.ones(size, size, dtype=torch.uint8)
    labels[:, size // 2 :] = 2
    labels[0] = 0
    purity = torch.ones(size, size)
    purity[:, size // 2] = 0.6
    means = torch.tensor([[0.85, 1.9, 1.4], [0.65, 1.9, 0.78]]) * torch.tensor([1.0, 1.0, scale])
    varies = torch.tensor([0.05, 0.0, 0.05]).reshape(3, 1, 1)
    kappa = means[(labels.long() - 1).clamp(min=0)].movedim(-1, 0)
    kappa = kappa * (1 + varies * torch.randn(3, size, size, generator=generator)) * (labels > 0)
    signal = torch.nan_to_num(MODEL(kappa))
    return Case(draw, signal, kappa, labels, purity, ("gm", "wm"))


@dataclass
class Known:
    """Truth (1 + bias + spread z), where z is the noise of the first image: its moments are known in closed form."""

    case: Case
    bias: float = 0.03
    spread: float = 0.08
    name: str = "known"
    parameters: tuple = MODEL.parameters

    def __call__(self, images, sigma=None, mask=None, known=None):
        z = (images[0] - self.case.signal[0]) / sigma
        kappa = self.case.kappa * (1 + self.bias + self.spread * z)
        return Estimate(kappa=kappa, status=torch.zeros_like(z, dtype=torch.uint8))


@dataclass
class Recorder:
    """Keeps what it sees, then spoils it."""

    name: str
    seen: list = field(default_factory=list)
    sigmas: list = field(default_factory=list)
    parameters: tuple = MODEL.parameters

    def __call__(self, images, sigma=None, mask=None, known=None):
        self.seen.append(images.clone())
        self.sigmas.append(sigma)
        images.fill_(-7.0)
        return Estimate(kappa=torch.ones(3, *images.shape[1:]), status=torch.zeros(images.shape[1:], dtype=torch.uint8))


def design(repeats=3, **changes):
    return Design(model=MODEL, noise=NOISE, seed=5, repeats=repeats, shared=("B",), **changes)


def table_of(blocks):
    return list(rows_of_snr("noise", ["A", "B", "T1"], blocks))


def test_known_bias_spread_and_rmse_are_found():
    case, repeats = make_case(), 400
    method = Known(case)
    block = run_block(case, [method], design(repeats), 10.0)
    result = block.methods["known"]
    n_voxels = result.bias.shape[1]
    # all rows carry the same relative error, z is standard normal; mean over voxels of independent voxels
    error = 8 / np.sqrt(repeats * n_voxels)
    assert np.mean(result.bias[2]) == pytest.approx(3.0, abs=4 * error)
    assert np.mean(result.cv[2]) == pytest.approx(100 * 0.08 / 1.03, abs=4 * error)
    assert np.mean(result.rmse[2]) == pytest.approx(100 * np.hypot(0.03, 0.08), abs=4 * error)
    assert (result.n == repeats).all()
    # without noise, only the bias is left
    np.testing.assert_allclose(result.noise_free, 3.0, rtol=1e-4)


def test_the_table_says_so_too():
    cases = [make_case(draw) for draw in range(6)]
    blocks = [run_block(case, [Known(case)], design(100), 10.0) for case in cases]
    table = Table(table_of(blocks))
    row = table.get("known", "gm", "T1", 10.0, "rmse_median")
    assert row.value == pytest.approx(100 * np.hypot(0.03, 0.08), rel=0.01)
    assert row.low < row.value < row.high
    regions = [block.regions()["gm"] for block in blocks]
    pooled = np.concatenate([b.methods["known"].rmse[2, m] for b, m in zip(blocks, regions, strict=True)])
    assert row.value == pytest.approx(float(np.median(pooled)))
    assert row.n == pooled.size
    ratio = np.concatenate(
        [b.methods["known"].rmse[2, m] / b.bounds["known"][2, m] for b, m in zip(blocks, regions, strict=True)]
    )
    assert table.value("known", "gm", "T1", 10.0, "rmse_over_bound_known") == pytest.approx(
        float(np.median(ratio)), rel=1e-5
    )
    # a multiplicative bias is a slope of 1 + bias; its noise averages out
    assert table.value("known", "wm", "T1", 10.0, "slope_within") == pytest.approx(1.03, abs=0.05)
    assert table.get("known", "wm", "B", 10.0, "slope_within") is None


def test_painters_of_means_have_slope_0_and_no_spread():
    prior = torch.tensor([[0.9, 1.85, 1.5], [0.7, 1.85, 0.8]])
    blocks = []
    for draw in range(6):
        case = make_case(draw, scale=1 + 0.1 * draw)
        blocks.append(run_block(case, painters(case, MODEL, prior, torch.tensor([1.0, 3.0])), design(2), 30.0))
    table = Table(table_of(blocks))
    for name in ("population-constant", "tissue-prior-mean", "true-tissue-mean"):
        assert table.value(name, "gm", "T1", 30.0, "slope_within") == pytest.approx(0, abs=1e-5)
        assert table.value(name, "gm", "T1", 30.0, "cv_median") == 0
    # between draws the first two know nothing, the third everything
    assert table.value("tissue-prior-mean", "gm", "T1", 30.0, "slope_between_draws") == pytest.approx(0, abs=1e-5)
    assert table.value("true-tissue-mean", "gm", "T1", 30.0, "slope_between_draws") == pytest.approx(1, abs=0.03)
    # (1.5 - 1.4) / 1.4 in the first draw, whose voxels vary by 5 %
    first = [r for r in table_of(blocks[:1]) if r[1:4] == ("tissue-prior-mean", "gm", "T1") and r.draw == 0]
    assert next(r for r in first if r.metric == "relative_bias_median").value == pytest.approx(100 * 0.1 / 1.4, abs=1.5)
    constant = blocks[0].methods["population-constant"].mean[2]
    np.testing.assert_allclose(constant, (1.5 + 3 * 0.8) / 4, rtol=1e-6)
    # the RMSE of the tissue's own mean is the spread within the tissue
    assert table.value("true-tissue-mean", "gm", "T1", 30.0, "rmse_mean") == pytest.approx(
        5 * np.sqrt(2 / np.pi), rel=0.08
    )


def test_every_method_sees_the_same_noise_and_each_repeat_another():
    first, second = Recorder("first"), Recorder("second")
    case = make_case()
    run_block(case, [first, second], design(10), 5.0)
    for a, b in zip(first.seen, second.seen, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert first.sigmas == [0.13] * 11
    noise = [images - case.signal for images in first.seen]
    # ten repeats, then the images without noise
    assert float(noise[10].abs().max()) == 0
    # SE of an SD of 124000 normals: .2 %
    assert float(torch.stack(noise[:10]).std()) == pytest.approx(0.13, rel=0.008)
    together = np.corrcoef([z.numpy().ravel() for z in noise[:3]])
    assert np.abs(together[np.triu_indices(3, 1)]).max() < 0.04


def test_streams_differ_by_draw_snr_repeat_and_seed_only():
    signal = make_case().signal
    noise = noisy_images(signal, NOISE, 10.0, 5, 0, 0) - signal
    again = noisy_images(2 * signal, NOISE, 10.0, 5, 0, 0) - 2 * signal
    torch.testing.assert_close(noise, again, rtol=0, atol=1e-6)
    others = [(3.0, 5, 0, 0), (10.0, 6, 0, 0), (10.0, 5, 1, 0), (10.0, 5, 0, 1)]
    for snr, seed, draw, repeat in others:
        other = noisy_images(signal, NOISE, snr, seed, draw, repeat) - signal
        assert abs(np.corrcoef(noise.numpy().ravel(), other.numpy().ravel())[0, 1]) < 0.04


def test_the_kind_of_noise_is_that_of_the_config():
    signal = torch.zeros(4, 50, 50)
    rician = noisy_images(signal, RicianNoise(sigma=Constant(value=0.1)), 10.0, 1, 0, 0)
    # Rayleigh: mean sigma sqrt(pi / 2); 10000 voxels
    assert float(rician.mean()) == pytest.approx(0.065 * np.sqrt(np.pi / 2), rel=0.02)


def test_bounds_are_those_of_the_published_problem():
    """statistics.md of the project: GM, sigma .0255: B known 1.40 %, B shared by 200 voxels 2.68 %."""
    size = (10, 20)
    labels = torch.ones(size, dtype=torch.uint8)
    kappa = torch.tensor([0.85, 1.9, 1.4]).reshape(3, 1, 1).expand(3, *size).contiguous()
    case = Case(0, MODEL(kappa), kappa, labels, torch.ones(size), ("gm",))
    block = run_block(case, [Known(case)], design(2), 0.65 / 0.0255)
    assert float(block.bounds["known"][2, 0]) == pytest.approx(1.40, abs=0.01)
    assert float(block.bounds["shared"][2, 0]) == pytest.approx(2.68, abs=0.03)
    assert float(block.bounds["free"][2, 0]) == pytest.approx(82 * 0.0255 / 0.065, rel=0.02)


@dataclass
class Faulty(Known):
    """Knows nothing in the first five columns, gives up in the next, and stops at a bound in the last two."""

    name: str = "faulty"

    def __call__(self, images, sigma=None, mask=None, known=None):
        estimate = super().__call__(images, sigma, mask)
        estimate.kappa[:, :, :5] = torch.nan
        estimate.status[:, :5] = int(Status.NOT_COMPUTED)
        estimate.status[:, 5] = int(Status.NOT_CONVERGED)
        estimate.status[:, -2:] = int(Status.AT_BOUND)
        return estimate


def test_failures_are_counted_and_never_dropped_in_silence():
    case = make_case()
    table = Table(table_of([run_block(case, [Faulty(case), Known(case)], design(4), 30.0)]))
    # 19 rows of 10 columns of grey matter; the first of white matter is mixed
    assert table.get("known", "gm", "T1", 30.0, "rmse_median").n == 190
    assert table.get("faulty", "gm", "T1", 30.0, "rmse_median").n == 19 * 5
    assert table.value("faulty", "gm", "", 30.0, "failure_rate") == pytest.approx(60.0)
    assert table.value("faulty", "gm", "", 30.0, "not_computed_rate") == pytest.approx(50.0)
    assert table.value("faulty", "gm", "", 30.0, "at_bound_rate") == 0
    assert table.value("faulty", "wm", "", 30.0, "at_bound_rate") == pytest.approx(100 * 2 / 9)
    assert table.value("known", "gm", "", 30.0, "failure_rate") == 0
    # what is left has the same error as without the failures
    assert table.value("faulty", "gm", "T1", 30.0, "relative_bias_median") == pytest.approx(3, abs=2)


@dataclass
class Overconfident(Known):
    """Says that all went well, and returns no number in the first column."""

    name: str = "overconfident"

    def __call__(self, images, sigma=None, mask=None, known=None):
        estimate = super().__call__(images, sigma, mask)
        estimate.kappa[1, :, 0] = torch.inf
        estimate.status[:] = int(Status.OK)
        return estimate


def test_an_estimate_that_is_no_number_is_a_failure_whatever_the_method_says():
    case = make_case()
    table = Table(table_of([run_block(case, [Overconfident(case)], design(3), 30.0)]))
    assert table.value("overconfident", "gm", "", 30.0, "failure_rate") == pytest.approx(10.0)
    assert table.value("overconfident", "gm", "", 30.0, "not_computed_rate") == pytest.approx(10.0)


@pytest.mark.parametrize("noise", [NOISE, RicianNoise(sigma=Constant(value=0.1))])
def test_images_without_noise_are_the_modulus_of_the_signal(noise):
    case = make_case()
    seen = []

    class Eye(Known):
        def __call__(self, images, sigma=None, mask=None, known=None):
            seen.append(images)
            return super().__call__(images, sigma, mask)

    run_block(case, [Eye(case)], replace(design(2), noise=noise), 30.0)
    torch.testing.assert_close(seen[-1], case.signal.abs())


def test_rms_is_over_voxels_and_repeats_together():
    """A painter of the mean, against the sum over voxels by hand; the median over voxels is smaller by a third."""
    case = make_case(size=60)
    prior = torch.tensor([[0.85, 1.9, 1.4], [0.65, 1.9, 0.78]])
    painter = painters(case, MODEL, prior, torch.ones(2))[1]
    table = Table(table_of([run_block(case, [painter], design(2), 30.0)]))
    truth = case.kappa[2][case.labels == 1].double()
    rms = 100 * float(((1.4 - truth) / truth).square().mean().sqrt())
    assert table.value("tissue-prior-mean", "gm", "T1", 30.0, "rmse_rms") == pytest.approx(rms, rel=1e-4)
    assert table.value("tissue-prior-mean", "gm", "T1", 30.0, "rmse_median") == pytest.approx(0.67 * rms, rel=0.05)
    assert table.get("tissue-prior-mean", "gm", "T1", 30.0, "cv_rms") is None


def test_a_bound_that_does_not_exist_is_infinite_and_not_left_out():
    """Two inversion times cannot tell A, B and T1 apart."""
    model = InversionRecovery(ti=(0.2, 0.8))
    case = replace(make_case(), signal=make_case().signal[:2])
    table = Table(table_of([run_block(case, [Known(case)], replace(design(2), model=model), 30.0)]))
    assert table.get("bound-free", "gm", "T1", 30.0, "bound_median").value == np.inf
    assert table.get("bound-free", "gm", "T1", 30.0, "bound_median").n == 190
    assert np.isfinite(table.value("bound-known", "gm", "T1", 30.0, "bound_median"))


def test_mixed_voxels_are_their_own_row():
    case = make_case()
    block = run_block(case, [Known(case)], design(2), 30.0)
    regions = block.regions()
    assert {name: int(mask.sum()) for name, mask in regions.items()} == {"gm": 190, "wm": 171, "pure": 361, "mixed": 19}


@dataclass
class OnlyT1(Known):
    name: str = "only-t1"
    parameters: tuple = MODEL.parameters[2:]

    def __call__(self, images, sigma=None, mask=None, known=None):
        estimate = super().__call__(images, sigma, mask)
        return Estimate(kappa=estimate.kappa[2:], status=estimate.status)


def test_rows_are_matched_by_name_and_missing_ones_stay_blank():
    case = make_case()
    rows = table_of([run_block(case, [OnlyT1(case), Known(case)], design(3), 30.0)])
    table = Table(rows)
    for metric in ("rmse_median", "cv_mean", "slope_within"):
        assert table.value("only-t1", "gm", "T1", 30.0, metric) == table.value("known", "gm", "T1", 30.0, metric)
    assert not [row for row in rows if row.estimator == "only-t1" and row.parameter in ("A", "B")]


def test_methods_are_compared_with_the_fits_in_pairs():
    blocks = []
    for draw in range(6):
        case = make_case(draw)
        good = replace(Known(case), name="shared-b", bias=0.0, spread=0.05)
        poor = replace(Known(case), name="other", bias=0.0, spread=0.10)
        blocks.append(run_block(case, [good, poor], design(20), 10.0))
    row = Table(table_of(blocks)).get("other", "gm", "T1", 10.0, "rmse_over_shared-b")
    # the same noise in both: the ratio is exact in every draw
    assert (row.value, row.low, row.high) == pytest.approx((2.0, 2.0, 2.0), rel=1e-3)


def equal(a, b):
    assert list(a.methods) == list(b.methods)
    for name, result in a.methods.items():
        for item in fields(MethodResult):
            if item.name != "cpu_seconds":
                np.testing.assert_array_equal(getattr(result, item.name), getattr(b.methods[name], item.name))
    for name in ("kappa", "labels", "purity", "mask"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name, bound in a.bounds.items():
        np.testing.assert_array_equal(bound, b.bounds[name])


def test_numbers_do_not_depend_on_the_workers():
    cases = [make_case(draw) for draw in range(3)]
    jobs = [(case, snr) for case in cases for snr in (3.0, 30.0)]

    def run(job):
        return run_block(job[0], [Known(job[0])], design(5), job[1])

    results = []
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            results.append({(block.draw, block.snr): block for block in pool.map(run, jobs)})
    assert len(results[0]) == 6
    for key, block in results[0].items():
        equal(block, results[1][key])


def test_blocks_come_back_as_they_were_and_only_to_their_study(tmp_path):
    case = make_case()
    block = run_block(case, [Known(case), OnlyT1(case)], design(3), 10.0)
    path = tmp_path / "block.npz"
    write_arrays(path, to_arrays(block), "a digest")
    back = from_arrays(read_arrays(path, "a digest"))
    equal(block, back)
    assert (back.draw, back.snr, back.sigma, back.repeats, back.tissues) == (0, 10.0, 0.065, 3, ("gm", "wm"))
    assert read_arrays(path, "another digest") is None
    assert read_arrays(tmp_path / "none.npz", "a digest") is None
    assert block_key(0, 10.0) != block_key(0, 10.00000001)
    whole = path.read_bytes()
    for place in range(100, len(whole), len(whole) // 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) * 8 + whole[place + 8 :])
        read_arrays(path, "a digest")
    path.write_bytes(whole[:2000])
    assert read_arrays(path, "a digest") is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_method_may_be_told_the_truth():
    """A map where the row varies, one number where the mask shares it; others get nothing."""
    case = make_case()
    model = design(2).model
    given = told(case, model, ("B", "T1"))
    assert given["B"].ndim == 0
    torch.testing.assert_close(given["T1"], case.kappa[2])
    assert told(case, model, ()) is None

    class Asks(Known):
        def __call__(self, images, sigma=None, mask=None, known=None):
            asked.append(known)
            return super().__call__(images, sigma, mask)

    asked = []
    run_block(case, [Asks(case)], replace(design(2), told={"known": ("B",)}), 10.0)
    assert [list(known) for known in asked] == [["B"]] * 3


def test_two_methods_of_one_name_are_refused():
    case = make_case()
    with pytest.raises(ValueError, match="known"):
        run_block(case, [Known(case), Known(case)], design(2), 10.0)


def test_csv_has_the_columns_of_the_contract_and_comes_back(tmp_path):
    case = make_case()
    rows = table_of([run_block(case, [Known(case), OnlyT1(case)], design(3), 10.0)])
    path = tmp_path / "results.csv"
    path.write_text(csv_text(rows))
    header = "study,estimator,tissue,parameter,snr,sigma,draw,metric,value,low,high,n"
    assert path.read_text().splitlines()[0] == header
    back = read_csv(path)
    assert len(back) == len(rows)
    assert {row.draw for row in back} == {0, ALL}
    for row, written in zip(back, rows, strict=True):
        assert row[:4] == written[:4]
        assert row.n == written.n
        assert (row.value, row.low) == pytest.approx((written.value, written.low), rel=1e-5, nan_ok=True)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: not a study table"):
        read_csv(other)
    assert Row._fields == tuple(header.split(","))
