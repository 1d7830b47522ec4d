"""Sets A and B (jacobs2025): what moves, what keeps its label, what is drawn; against scipy and closed forms."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from qsim.errors import InputError
from trainers.segmentation.augment import (
    CORNERS,
    Additional,
    RotationScaling,
    blurred,
    distorted,
    homography,
    projected,
    resampled,
    shading,
)

NOTHING = {"flips": False, "quarter_turns": False, "scale": (1.0, 1.0)}
STRENGTHS = ("rotation_deg", "grid_distortion", "perspective", "brightness", "illumination", "blur", "noise")
OFF = {**dict.fromkeys(STRENGTHS, 0.0), "rectangles": 0}


def only(**strength) -> Additional:
    """One of the eight, always."""
    return Additional(**{**NOTHING, **OFF, "probability": 1.0, **strength})


def disc(n: int = 64, radius: float = 14.0, centre: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """An image [1] with a soft edge, half at the radius [voxels from the middle]."""
    axis = torch.arange(n) - (n - 1) / 2
    distance = torch.hypot(axis[:, None] - centre[0], axis[None, :] - centre[1])
    return (radius + 0.5 - distance).clamp(0, 1)


def grey(shape: tuple[int, int] = (64, 64), level: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full(shape, level), torch.zeros(shape, dtype=torch.bool)


def texture(shape: tuple[int, int] = (48, 48), seed: int = 0) -> torch.Tensor:
    """Smooth, 0 at the border, different under every symmetry of the square."""
    rough = np.random.default_rng(seed).random(shape)
    smooth = ndimage.gaussian_filter(rough, 3) * np.outer(*(np.hanning(n) for n in shape))
    return torch.from_numpy(smooth / smooth.max()).float()


def rngs(count: int):
    return (np.random.default_rng(seed) for seed in range(count))


@pytest.mark.parametrize("augment", [RotationScaling(), Additional(probability=1.0, **{**OFF, "rotation_deg": 90.0})])
def test_an_image_that_is_its_mask_stays_its_mask(augment):
    mask = disc(centre=(8, -5)) >= 0.5
    for rng in rngs(20):
        image, moved = augment.apply(mask.float(), mask, rng)
        assert torch.equal(image >= 0.5, moved)
        assert moved.dtype == torch.bool


def test_everything_geometric_moves_both_alike():
    mask = disc(centre=(8, -5)) >= 0.5
    augment = Additional(probability=1.0, **{**OFF, "rotation_deg": 90.0, "grid_distortion": 0.3, "perspective": 0.1})
    areas = set()
    for rng in rngs(20):
        image, moved = augment.apply(mask.float(), mask, rng)
        assert torch.equal(image >= 0.5, moved)
        areas.add(int(moved.sum()))
    assert len(areas) > 10


@pytest.mark.parametrize("scale", [0.8, 1.25, 1.6])
def test_area_grows_with_the_square_of_the_scale(scale):
    image = disc(96, 20)
    augment = RotationScaling(flips=False, quarter_turns=False, scale=(scale, scale))
    larger, mask = augment.apply(image, image >= 0.5, np.random.default_rng(0))
    assert float(larger.sum()) == pytest.approx(float(image.sum()) * scale**2, rel=5e-3)
    assert int(mask.sum()) == pytest.approx(np.pi * (20 * scale) ** 2, rel=0.02)
    y, x = (float(each) for each in (mask.nonzero().double().mean(0) - 47.5))
    assert abs(y) < 0.1
    assert abs(x) < 0.1


def test_scale_is_drawn_log_uniformly_within_its_bounds():
    image, augment = disc(64, 14), RotationScaling(scale=(0.5, 2.0))
    drawn = [augment.apply(image, image >= 0.5, rng)[0].sum() / image.sum() for rng in rngs(400)]
    logs = np.log(np.sqrt(np.array(drawn))) / np.log(2)
    assert np.abs(logs).max() < 1.01
    # of a uniform between -1 and 1
    assert logs.mean() == pytest.approx(0, abs=0.1)
    assert logs.std() == pytest.approx(3**-0.5, abs=0.04)


@pytest.mark.parametrize("angle", [-90.0, -37.0, 20.0, 90.0])
def test_rotation_is_that_of_scipy(angle):
    both = torch.stack([texture(), texture(seed=1)])
    expected = [ndimage.rotate(each.numpy(), angle, reshape=False, order=1) for each in both]
    np.testing.assert_allclose(resampled(both, 1.0, angle).numpy(), np.stack(expected), atol=2e-4)


def test_rotation_reaches_ninety_degrees_both_ways_and_no_further():
    image = disc(64, 4, (0, 20))
    angles = []
    for rng in rngs(300):
        mask = only(rotation_deg=90.0).apply(image, image >= 0.5, rng)[1]
        y, x = (float(each) for each in (mask.nonzero().double().mean(0) - 31.5))
        assert np.hypot(y, x) == pytest.approx(20, abs=0.3)
        angles.append(np.degrees(np.arctan2(y, x)))
    assert -91 < min(angles) < -85
    assert 85 < max(angles) < 91
    assert np.std(angles) == pytest.approx(180 / 12**0.5, rel=0.1)


def test_turns_and_flips_of_a_square_are_its_eight_symmetries_exactly():
    image = texture()
    turned = [image.rot90(k) for k in range(4)]
    symmetries = turned + [each.flip(0) for each in turned]
    seen = np.zeros(8, dtype=int)
    for rng in rngs(240):
        got, mask = RotationScaling(scale=(1.0, 1.0)).apply(image, image >= 0.5, rng)
        matches = [i for i, each in enumerate(symmetries) if torch.equal(each, got)]
        assert len(matches) == 1
        assert torch.equal(mask, symmetries[matches[0]] >= 0.5)
        seen[matches[0]] += 1
    # 30 each; five standard deviations
    assert seen.min() > 4
    assert seen.max() < 56


def test_quarter_turns_alone_are_four_and_two_if_not_square():
    for shape, expected in (((20, 20), 4), ((20, 28), 2)):
        image = texture(shape)
        augment = RotationScaling(flips=False, scale=(1.0, 1.0))
        found = {augment.apply(image, image >= 0.5, rng)[0].numpy().tobytes() for rng in rngs(40)}
        symmetries = {image.rot90(k).contiguous().numpy().tobytes() for k in range(0, 4, 4 // expected)}
        assert found == symmetries


def test_a_homography_takes_corners_where_they_should_go():
    corners = np.array([[-0.9, -0.8], [1.1, -1.2], [0.7, 0.95], [-1.05, 0.85]])
    matrix = homography(corners)
    for (x, y), place in zip(CORNERS, corners, strict=True):
        u, v, w = matrix @ [x, y, 1]
        np.testing.assert_allclose([u / w, v / w], place, atol=1e-12)
    # lines stay lines: the diagonals of the square meet in its middle, those of the quadrangle where it goes
    (a, b, c, d) = corners
    s = np.linalg.solve(np.stack([c - a, b - d], 1), b - a)
    u, v, w = matrix @ [0, 0, 1]
    np.testing.assert_allclose([u / w, v / w], a + s[0] * (c - a), atol=1e-12)
    np.testing.assert_allclose(homography(CORNERS), np.eye(3), atol=1e-12)


def test_a_projected_image_shows_at_its_corners_what_was_at_the_places():
    # a ramp along x and one along y tell where a voxel was
    axis = torch.linspace(-1, 1, 33)
    both = torch.stack([axis.expand(33, 33), axis[:, None].expand(33, 33)])
    corners = np.array([[-0.9, -0.8], [0.9, -0.6], [0.7, 0.95], [-1.0, 0.85]])
    seen = projected(both, homography(corners))
    for (x, y), place in zip(CORNERS, corners, strict=True):
        row, column = (0 if each < 0 else -1 for each in (y, x))
        np.testing.assert_allclose(seen[:, row, column].numpy(), place, atol=1e-5)
    np.testing.assert_allclose(projected(both, np.eye(3)).numpy(), both.numpy(), atol=1e-5)


def test_perspective_matches_scipy_on_a_texture():
    image = texture((40, 56))
    matrix = homography(CORNERS + np.array([[0.1, -0.05], [0.15, 0.2], [-0.1, 0.02], [0.2, -0.2]]))
    y, x = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 56), indexing="ij")
    u, v, w = np.einsum("ij,jyx->iyx", matrix, np.stack([x, y, np.ones_like(x)]))
    places = [(v / w + 1) * 39 / 2, (u / w + 1) * 55 / 2]
    expected = ndimage.map_coordinates(image.double().numpy(), places, order=1, mode="grid-constant")
    np.testing.assert_allclose(projected(image[None], matrix)[0].numpy(), expected, atol=1e-4)


def test_grid_distortion_is_a_line_in_each_cell_and_keeps_the_border():
    n, widths = 60, np.array([[1.0, 0.7, 1.3, 1.2, 0.8], [0.8, 1.2, 1.0, 1.3, 0.7]])
    ramp = torch.arange(n).float()
    both = torch.stack([ramp[:, None].expand(n, n), ramp.expand(n, n)])
    seen = distorted(both, widths).numpy()
    for axis in range(2):
        edges = np.concatenate([[0], np.cumsum(widths[axis]) / widths[axis].sum()]) * n
        expected = np.interp(np.arange(n), np.linspace(0, n, 6), edges)
        line = seen[axis].mean(1 - axis)
        assert np.ptp(seen[axis], axis=1 - axis).max() < 1e-3
        # a cell is sampled from edge to edge by MONAI
        np.testing.assert_allclose(line, expected, atol=1.31)
        assert line[0] == pytest.approx(0, abs=1e-3)
        assert line[-1] == pytest.approx(n - 1, abs=1e-3)
        np.testing.assert_allclose(line[::12], edges[:-1], atol=1e-3)
        assert (np.diff(line) >= -1e-3).all()


@pytest.mark.parametrize("n", [61, 64])
def test_grid_distortion_of_cells_that_do_not_fit_evenly_keeps_the_border(n):
    ramp = torch.arange(n).float()
    line = distorted(ramp.expand(n, n)[None], np.array([[1.0] * 5, [0.7, 1.3, 1.2, 0.8, 0.6]]))[0, 3].numpy()
    assert line[0] == pytest.approx(0, abs=1e-3)
    assert line[-1] == pytest.approx(n - 1, abs=1e-3)
    assert (np.diff(line) >= -1e-3).all()


@pytest.mark.parametrize("sigma", [0.4, 1.5, 3.0])
def test_blur_is_that_of_scipy_and_of_a_gaussian(sigma):
    image = texture()
    np.testing.assert_allclose(blurred(image, sigma).numpy(), ndimage.gaussian_filter(image.numpy(), sigma), atol=1e-5)
    point = torch.zeros(41, 41)
    point[20, 20] = 1
    spread = blurred(point, sigma).double().numpy()
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    if sigma > 1:
        assert (spread.sum(0) * (np.arange(41) - 20.0) ** 2).sum() == pytest.approx(sigma**2, rel=0.02)


def test_blur_is_a_share_of_the_longest_side():
    point = torch.zeros(41, 121)
    point[20, 60] = 1
    sds = []
    for rng in rngs(60):
        image = only(blur=0.02).apply(point, point > 0, rng)[0].double().numpy()
        sds.append(np.sqrt((image.sum(0) * (np.arange(121) - 60.0) ** 2).sum() / image.sum()))
    assert 2.2 < max(sds) < 0.02 * 121 * 1.01
    assert np.mean(sds) == pytest.approx(0.01 * 121, rel=0.15)


def test_noise_has_the_stated_standard_deviations():
    sds = [float(only(noise=0.1).apply(*grey(), rng)[0].std()) for rng in rngs(300)]
    # uniform between 0 and 0.1
    assert max(sds) < 0.105
    assert np.mean(sds) == pytest.approx(0.05, rel=0.1)
    image, mask = grey((256, 256))
    noisy = only(noise=0.1).apply(image, mask, np.random.default_rng(3))[0] - 0.5
    correlation = float((noisy[:, 1:] * noisy[:, :-1]).mean() / noisy.var())
    assert float(noisy.mean() / noisy.std()) == pytest.approx(0, abs=0.02)
    assert correlation == pytest.approx(0, abs=0.02)
    assert float(((noisy / noisy.std()) ** 4).mean()) == pytest.approx(3, abs=0.1)


def test_brightness_is_one_factor_and_the_result_is_clamped():
    image = texture()
    logs = []
    for rng in rngs(200):
        bright = only(brightness=0.3).apply(image * 0.5, image > 0.5, rng)[0]
        factor = float(bright.max() / 0.5)
        np.testing.assert_allclose(bright.numpy(), factor * 0.5 * image.numpy(), atol=1e-6)
        logs.append(np.log(factor))
    assert np.abs(logs).max() < 0.3 + 1e-5
    assert np.std(logs) == pytest.approx(0.3 / 3**0.5, rel=0.1)
    most = max(float(only(brightness=2.0).apply(image, image > 0.5, rng)[0].max()) for rng in rngs(10))
    assert most == 1.0


def test_shading_is_smooth_and_bounded():
    coefficients = np.array([0.3, -0.7, 0.4, 0.9, -0.2])
    factor = shading((30, 40), coefficients, 0.5).double().numpy()
    y, x = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 40), indexing="ij")
    p = 0.3 * x - 0.7 * x**2 + 0.4 * y + 0.9 * x * y - 0.2 * y**2
    np.testing.assert_allclose(np.log(factor), 0.5 * p / np.abs(p).max(), atol=1e-6)
    # third differences of a polynomial of second order
    assert np.abs(np.diff(np.log(factor), 3, axis=1)).max() < 1e-5
    largest = []
    for rng in rngs(100):
        image = only(illumination=0.5).apply(*grey(), rng)[0]
        largest.append(float((image / 0.5).log().abs().max()))
    assert 0.45 < max(largest) <= 0.5 + 1e-5
    assert np.mean(largest) == pytest.approx(0.25, rel=0.2)


def test_masking_sets_rectangles_to_zero_and_keeps_every_label():
    image, mask = torch.ones(50, 80), disc(80, 14)[:50] >= 0.5
    counts = []
    for rng in rngs(100):
        seen, kept = only(rectangles=3, rectangle_side=(0.1, 0.2)).apply(image, mask, rng)
        assert torch.equal(kept, mask)
        assert set(seen.unique().tolist()) == {0.0, 1.0}
        parts, count = ndimage.label(seen.numpy() == 0)
        counts.append(count)
        for window in ndimage.find_objects(parts):
            height, width = (each.stop - each.start for each in window)
            assert height >= 5
            assert width >= 8
    assert set(counts) == {1, 2, 3}
    single = only(rectangles=1, rectangle_side=(0.1, 0.2)).apply(image, mask, np.random.default_rng(0))[0]
    (window,) = ndimage.find_objects((single.numpy() == 0).astype(int))
    assert not single[window].any()
    assert 5 <= window[0].stop - window[0].start <= 10
    assert 8 <= window[1].stop - window[1].start <= 16


def test_the_same_seed_gives_the_same_bytes_and_global_streams_are_left_alone():
    image, augment = texture(), Additional(probability=1.0)
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        answers.append([each.numpy().tobytes() for each in augment.apply(image, image > 0.5, np.random.default_rng(7))])
        RotationScaling().apply(image, image > 0.5, np.random.default_rng(7))
        assert torch.equal(torch.get_rng_state(), state)
        np.testing.assert_array_equal(np.random.get_state()[1], other)  # noqa: NPY002
    assert answers[0] == answers[1]
    assert augment.apply(image, image > 0.5, np.random.default_rng(8))[0].numpy().tobytes() != answers[0][0]


@pytest.mark.parametrize("augment", [RotationScaling(), Additional(probability=1.0), RotationScaling(**NOTHING)])
def test_what_was_handed_over_is_left_as_it_was(augment):
    image = texture()
    mask = image > 0.5
    before = image.clone(), mask.clone()
    changed, moved = augment.apply(image, mask, np.random.default_rng(0))
    changed.zero_()
    moved.zero_()
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_without_probability_or_strength_b_is_a():
    image = texture()
    for settings in ({}, {"scale": (0.5, 0.9), "flips": False}):
        for rng, other, third in zip(rngs(10), rngs(10), rngs(10), strict=True):
            a = RotationScaling(**settings).apply(image, image > 0.5, rng)
            for b in (
                Additional(probability=0.0, **settings).apply(image, image > 0.5, other),
                Additional(probability=1.0, **OFF, **settings).apply(image, image > 0.5, third),
            ):
                assert torch.equal(a[0], b[0])
                assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("name", [*STRENGTHS, "rectangles"])
def test_each_of_the_eight_happens_in_its_share_of_the_slices(name):
    strength = 4 if name == "rectangles" else Additional.model_fields[name].default
    augment = Additional(**{**NOTHING, **OFF, name: strength, "probability": 0.3})
    # a Gaussian of less than an eighth of a voxel changes nothing: a tenth of them at 128 voxels
    image = 0.9 * texture((128, 128) if name == "blur" else (24, 24))
    changed = sum(not torch.equal(augment.apply(image, image > 0.5, rng)[0], image) for rng in rngs(400))
    share = 0.27 if name == "blur" else 0.3
    # four standard deviations
    assert changed / 400 == pytest.approx(share, abs=4 * (0.3 * 0.7 / 400) ** 0.5)


def test_the_eight_are_independent():
    augment = Additional(**{**NOTHING, **OFF, "noise": 0.1, "rotation_deg": 90.0})
    image = disc(32, 4, (0, 10))
    found = np.zeros((2, 2))
    for rng in rngs(400):
        seen, mask = augment.apply(image, image >= 0.5, rng)
        found[int(not torch.equal(mask, image >= 0.5)), int(bool(seen[:2, :2].any()))] += 1
    np.testing.assert_allclose(found / 400, 0.25, atol=0.09)


@pytest.mark.parametrize("shape", [(64, 64), (40, 56), (33, 21)])
def test_results_are_finite_and_within_zero_and_one(shape):
    image = texture(shape)
    strong = Additional(
        probability=1.0, brightness=3.0, illumination=3.0, blur=0.1, noise=1.0, grid_distortion=0.99, perspective=0.249
    )
    for rng in rngs(15):
        for augment in (RotationScaling(scale=(0.1, 5.0)), strong):
            seen, mask = augment.apply(image, image > 0.5, rng)
            assert seen.shape == mask.shape == shape
            assert seen.dtype == torch.float32
            # NaN fails both
            assert 0 <= float(seen.min()) <= float(seen.max()) <= 1


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("flips", 1), ("quarter_turns", "yes"), ("scale", (0.0, 1.0)), ("scale", (1.2, 0.8)), ("probability", 1.1),
        ("rotation_deg", -1.0), ("grid_cells", 0), ("grid_distortion", 1.0), ("perspective", 0.25),
        ("brightness", -0.1), ("illumination", float("nan")), ("blur", 0.2), ("noise", -0.1), ("rectangles", 1.5),
        ("rectangle_side", (0.3, 0.2)), ("rectangle_side", (0.3, 1.2)), ("kind", "rotation_scaling"), ("shear", 0.1),
    ],
)  # fmt: skip
def test_bad_values_name_their_field(name, bad):
    with pytest.raises(ValidationError, match=name):
        Additional(**{name: bad})
    if name in RotationScaling.model_fields and name != "kind":
        with pytest.raises(ValueError, match=name):
            RotationScaling(**{name: bad})


def test_bad_images_are_refused():
    image = texture()
    for augment in (RotationScaling(), Additional()):
        for bad, mask, match in (
            (image * 300, image > 0.5, "image: from 0 to 300; normalise"),
            (image - 0.5, image > 0.5, "image: from"),
            (torch.where(image > 0.9, torch.nan, image), image > 0.5, "image: from nan"),
        ):
            with pytest.raises(InputError, match=match):
                augment.apply(bad, mask, np.random.default_rng(0))
    with pytest.raises(InputError, match="grid_cells: 5 of them"):
        Additional().apply(torch.zeros(4, 20), torch.zeros(4, 20, dtype=torch.bool), np.random.default_rng(0))


def test_shapes_that_differ_are_refused(unchecked):
    with pytest.raises(InputError, match=r"mask: shape \(8, 9\), the image has \(8, 8\)"):
        RotationScaling().apply(torch.zeros(8, 8), torch.zeros(8, 9, dtype=torch.bool), np.random.default_rng(0))


@pytest.mark.parametrize("cls", [RotationScaling, Additional])
def test_a_config_survives_its_own_text(cls):
    assert cls(**cls().model_dump(mode="json")) == cls()
    with pytest.raises(ValidationError, match="frozen"):
        cls().flips = False
