"""The noise of a series: as the user gives it, or estimated from the images, saying how.

Background. Where there is no signal the sum of squares over the images of a voxel is a gamma variable,

    s / (2 sigma^2) ~ Gamma(k),   k = n L for magnitudes of L coils (Rayleigh: L = 1),   k = n / 2 for signed noise

so sigma follows from its mean. Ghosts and tissue only add to s: sigma is fitted to the dark end of the
distribution, the voxels below a percentile of the gamma distribution itself, found by repetition (a mean cut at c has
the expectation 2 sigma^2 k P(k + 1, c) / P(k, c), P the regularised incomplete gamma function): the 90th, or where the
rest then does not fit, the 60th or the 30th. Whether voxels look like noise is judged
by the distribution of s, by that of single values, and by whether all images are equally bright.

Source: Henkelman 1985, doi:10.1118/1.595711 (second moment); Constantinides et al. 1997, doi:10.1002/mrm.1910380524
(several coils); Sijbers et al. 2007, doi:10.1088/0031-9155/52/5/009 (fit to the dark end of the histogram).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import gammainc, gammaincinv, ndtr
from torch import Tensor

from qsim.errors import InputError

# the part of the noise that is fitted, and where the fit starts: quantiles of what may be noise
_FITTED = (0.9, 0.6, 0.3)
_STARTS = (0.05, 0.25, 0.5)
_ITERATIONS = 200
# background is used unasked if this share of it and this many voxels look like noise
_LEAST_SHARE = 0.25
_LEAST_VOXELS = 64
# distances of distributions, and of the mean square of an image from that of all: noise that a scanner has filtered or
# rounded is still noise, tissue lies several times further away. Kolmogorov's 99 % point is added.
_SUMS, _VALUES, _IMAGES = 0.05, 0.1, 0.2
_KOLMOGOROV = 1.63
# values whose mean over repeats is this many sigma: the SD of a magnitude is then at most 1 % below sigma
_BRIGHT = 5.0


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Standard deviation of the noise per real channel, and where it comes from.

    Attributes:
        sigma: one number, or a map [units of the images].
        source: how it is known.
        text: one sentence for reports and terminals.
    """

    sigma: Float[Tensor, "*space_or_none"]
    source: Literal["given", "background", "repeats", "residual"]
    text: str

    def at(self, where: Bool[Tensor, "*space"]) -> Float[Tensor, " v_or_1"]:
        """Sigma of the voxels, in float64; one number stays one number [units of the images]."""
        return self.sigma.double().reshape(1) if self.sigma.ndim == 0 else self.sigma.double()[where]


def noise_level(
    images: Float[Tensor, "n *space"],
    sigma: float | Tensor | None,
    where: Bool[Tensor, "*space"],
    residual: Callable[[], tuple[Float[Tensor, " v"], int]],
    coils: int = 1,
) -> NoiseLevel:
    """What an estimator works with: sigma as given, else from the voxels outside `where` if they look like noise, else
    from the residuals. No voxel to estimate and no noise to be seen elsewhere: NaN, which nothing is computed with.

    Args:
        images: the series [units of A].
        sigma: given by the user: a number, or a map over the voxels; None: estimated [units of A].
        where: voxels that are estimated.
        residual: called if nothing better is there: sum of squared residuals of a voxel-wise fit, and its degrees of
            freedom per voxel. No voxel, where those of `where` cannot be fitted: NaN as well.
        coils: of a magnitude combined as the root of the sum of squares; matters for the background only.
    Raises: InputError if the given sigma is not positive, or nothing is left to estimate it from.
    """
    if sigma is not None:
        return given(sigma, where)
    noise = _background(images, ~where, coils)
    if noise.refusal is None:
        return noise.level("outside the mask", images.device)
    squares, freedom = residual() if bool(where.any()) else (images.new_zeros(0), 0)
    if squares.numel() == 0:
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=images.device)
        return NoiseLevel(nothing, "residual", "sigma not estimated, since there is no voxel to estimate")
    return from_residual(squares, freedom, n_images=images.shape[0], note=noise.refusal)


def given(sigma: float | Tensor, where: Bool[Tensor, "*space"]) -> NoiseLevel:
    """The user's own.

    Raises: InputError if it is not positive, or a map of another shape.
    """
    value = numbers(sigma, "sigma", where.device)
    if value.numel() == 1:
        value = value.reshape(())
    elif value.shape != where.shape:
        raise InputError(f"sigma: has shape {tuple(value.shape)}, the images {tuple(where.shape)}; give one or a map")
    used = value if value.ndim == 0 else value[where]
    if not bool((torch.isfinite(used) & (used > 0)).all()):
        raise InputError(
            "sigma: must be positive and finite in every voxel that is estimated; leave others out by the mask"
        )
    return NoiseLevel(value, "given", "sigma as given")


def numbers(value: object, field: str, device: torch.device) -> Float[Tensor, "*space"]:
    """What the user gives as a number or a map, in float64.

    Raises: InputError, starting with `field`, if it is neither.
    """
    refusal = f"{field}: must be a number or a map of real numbers, got "
    if isinstance(value, Tensor) and value.dtype.is_complex:
        raise InputError(f"{refusal}{value.dtype}")
    try:
        return torch.as_tensor(value, dtype=torch.float64, device=device)
    # torch knows no common type for what it cannot read
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{refusal}{value!r}") from None


def from_residual(squares: Float[Tensor, " v"], freedom: int, n_images: int, note: str = "") -> NoiseLevel:
    """One sigma from the residuals of a voxel-wise fit.

        sigma^2 = median_v(sum_n r_vn^2) / median of chi-square with f degrees of freedom

    The median is not moved by the voxels that the model does not fit.

    Args:
        squares: sum of squared residuals of each voxel [units of A squared].
        freedom: f, images less fitted parameters.
        n_images: for the message.
        note: why nothing better was used, for the text.
    Raises: InputError if no freedom or no residual is left.
    """
    if freedom < 1 or squares.numel() == 0:
        raise InputError(f"sigma: {n_images} images leave no residual to estimate the noise from; give sigma")
    found = (squares.double().median() / _median_chi_square(freedom)).clamp_min(0).sqrt()
    if not bool(found > 0):
        raise InputError("sigma: the residuals are zero, so the noise cannot be estimated from them; give sigma")
    text = f"sigma {float(found):.3g}, estimated from the residuals of a voxel-wise fit ({squares.numel()} voxels"
    return NoiseLevel(found, "residual", text + (f"; {note})" if note else ")"))


def from_background(
    images: Float[Tensor, "n *space"], background: Bool[Tensor, "*space"], coils: int = 1
) -> NoiseLevel:
    """One sigma from voxels that the user knows to be without signal.

    Series with negative values there are taken for signed noise of mean zero, others for magnitudes.

    Args:
        images: the series [units of A].
        background: voxels without signal. A ghost over a part of them does little harm: sigma is at most some percent
            too high where the ghost is as weak as the noise.
        coils: of a magnitude combined as the root of the sum of squares.
    Returns: the text says so if the voxels do not look like noise.
    Raises: InputError if no voxel is left, or most of them were filled with zeros.
    """
    noise = _background(images, background, coils)
    if noise.count == 0 or noise.filled > noise.count:
        raise InputError(
            f"background: {noise.filled} of {noise.filled + noise.count} voxels hold zeros that were filled in, so the "
            "noise cannot be seen there; give sigma or another region"
        )
    level = noise.level("given", images.device)
    if noise.unlike is None:
        return level
    return NoiseLevel(level.sigma, level.source, f"{level.text}; but {noise.unlike}")


def from_repeats(
    repeats: Float[Tensor, "c n *space"], where: Bool[Tensor, "*space"], *, per_voxel: bool = False
) -> NoiseLevel:
    """Sigma from the SD over repeated series of the same object.

        sigma^2 = median over voxels and images of the variance over repeats / median of chi-square / (C - 1)

    The SD of a magnitude is below sigma where the signal is weak (0.655 sigma without signal), so of a series without
    negative values only images and voxels whose mean is at least 5 sigma are used; the text says so if there are none.

    Args:
        repeats: C >= 2 series [units of A].
        where: voxels that are used.
        per_voxel: a map instead: in each voxel the mean variance over the images, all of them used.
    Raises: InputError if there is one repeat only, no voxel, or no difference between the repeats.
    """
    if repeats.shape[0] < 2:
        raise InputError(f"repeats: at least 2 series are needed to see the noise between them, got {repeats.shape[0]}")
    values = repeats[:, :, where].double()
    variance, mean = values.var(0), values.mean(0)
    usable = torch.isfinite(variance) & (variance > 0)
    if not bool(usable.any()):
        raise InputError("repeats: do not differ in any voxel of the mask, so they show no noise; give sigma")
    freedom = repeats.shape[0] - 1

    def pooled(which: Bool[Tensor, "n v"]) -> Tensor:
        return (freedom * variance[which].median() / _median_chi_square(freedom)).sqrt()

    found, note = pooled(usable), ""
    if not bool((values < 0).any()):
        # chosen by the mean, which is independent of the SD; twice, since the first sigma is that of all
        for _ in range(2):
            bright = usable & (mean > _BRIGHT * found)
            if not bool(bright.any()):
                note = "; the signal is weak everywhere, and the SD of a magnitude is then below sigma by up to 35 %"
                break
            found = pooled(bright)
    if per_voxel:
        spread = values.new_full(where.shape, torch.nan)
        spread[where] = variance.mean(0).sqrt()
        text = f"sigma map of median {float(found):.3g}, the SD over {repeats.shape[0]} repeats in each voxel{note}"
        return NoiseLevel(spread, "repeats", text)
    text = f"sigma {float(found):.3g}, estimated from the SD over {repeats.shape[0]} repeats ({values.shape[2]} voxels)"
    return NoiseLevel(found, "repeats", text + note)


def _median_chi_square(freedom: int) -> float:
    return 2 * float(gammaincinv(freedom / 2, 0.5))


@dataclass(frozen=True, slots=True)
class _Noise:
    """What the background says.

    Attributes:
        sigma: NaN if there is nothing to fit [units of the images].
        signed: noise of both signs rather than a magnitude.
        count, filled: voxels with values, and those with a zero in some image (or all).
        similar: voxels that follow the fitted distribution.
        unlike: why it does not look like noise, or None.
    """

    sigma: float
    signed: bool
    count: int
    filled: int
    similar: int
    unlike: str | None

    @property
    def refusal(self) -> str | None:
        """Why it is not used unasked, or None."""
        if self.count + self.filled == 0:
            return "no voxels outside the mask"
        if self.count < _LEAST_VOXELS:
            return f"too few of the voxels outside the mask hold values, {self.count} of {self.count + self.filled}"
        return self.unlike

    def level(self, place: str, device: torch.device) -> NoiseLevel:
        kind = "signed noise" if self.signed else "magnitude of noise"
        left = f", {self.filled} with zeros left out" if self.filled else ""
        text = (
            f"sigma {self.sigma:.3g}, estimated from the background {place} ({kind}; {self.similar} of {self.count} "
            f"voxels follow it{left})"
        )
        return NoiseLevel(torch.tensor(self.sigma, dtype=torch.float64, device=device), "background", text)


def _background(images: Float[Tensor, "n *space"], where: Bool[Tensor, "*space"], coils: int) -> _Noise:
    if where.shape != images.shape[1:]:
        raise InputError(f"background: has shape {tuple(where.shape)}, the images {tuple(images.shape[1:])}")
    if coils < 1:
        raise InputError(f"coils: must be at least 1, got {coils}")
    values = images[:, where].double()
    values = values[:, torch.isfinite(values).all(0)]
    present = (values != 0).all(0)
    values = values[:, present]
    n, count = values.shape
    filled = present.numel() - count
    if count == 0:
        return _Noise(np.nan, False, 0, filled, 0, "the background holds no values")
    signed = bool((values < 0).any())
    shape = 1 / 2 if signed else float(coils)
    sums = values.square().sum(0)
    scale, similar, distance = _dark_end(np.sort(sums.cpu().numpy()), n * shape)
    sigma = float(np.sqrt(scale / 2))
    unlike = None
    inside = sums < scale * float(gammaincinv(n * shape, 0.99))
    if similar < max(_LEAST_SHARE * count, 1):
        unlike = f"only {similar} of {count} background voxels follow the distribution of noise"
    elif distance > _SUMS + _KOLMOGOROV / np.sqrt(similar):
        unlike = f"the {count} background voxels are not distributed like noise"
    elif not _single_values_fit(values[:, inside].cpu().numpy(), sigma, signed, coils):
        unlike = f"the {count} background voxels are not distributed like noise, or not alike in all images"
    return _Noise(sigma, signed, count, filled, similar, unlike)


def _dark_end(sums: Float[np.ndarray, " v"], k: float) -> tuple[float, int, float]:
    """Fit Gamma(k) to the dark end of the sorted sums of squares.

    Returns: the scale 2 sigma^2, how many voxels follow the fit, and the largest distance of the two distributions
    where they were fitted.
    """
    totals = np.cumsum(sums)
    fits: list[tuple[float, int, float]] = []
    for part in _FITTED:
        cut = float(gammaincinv(k, part))
        mean = k * float(gammainc(k + 1, cut)) / part
        for start in _STARTS:
            scale = float(np.quantile(sums, start) / gammaincinv(k, start))
            for _ in range(_ITERATIONS):
                below = max(int(np.searchsorted(sums, cut * scale)), 1)
                before, scale = scale, float(totals[below - 1]) / below / mean
                if abs(scale - before) < 1e-6 * scale:
                    break
            below = max(int(np.searchsorted(sums, cut * scale)), 1)
            expected = gammainc(k, sums[:below] / scale) / part
            distance = float(np.abs(expected - (np.arange(below) + 0.5) / below).max())
            fits.append((scale, min(round(below / part), len(sums)), distance))
        # of those that cannot be told from noise the one that explains the most voxels; else less is fitted
        good = [fit for fit in fits if fit[2] < _KOLMOGOROV / np.sqrt(part * fit[1] + 1)]
        if good:
            return max(good, key=lambda fit: fit[1])
    return min(fits, key=lambda fit: fit[2])


def _single_values_fit(values: Float[np.ndarray, "n v"], sigma: float, signed: bool, coils: int) -> bool:
    """Whether single values are distributed like noise, and all images are equally bright.

    Tissue fails: its values do not reach down to zero, and its images differ.
    """
    scaled = np.sort(values.ravel()) / sigma
    expected = ndtr(scaled) if signed else gammainc(coils, scaled**2 / 2)
    distance = float(np.abs(expected - (np.arange(scaled.size) + 0.5) / scaled.size).max())
    bright = np.mean(values**2, axis=1)
    # relative standard error of a mean square
    error = np.sqrt((2 if signed else 1 / coils) / values.shape[1])
    uneven = float(np.abs(bright / bright.mean() - 1).max())
    return bool(distance < _VALUES + _KOLMOGOROV / np.sqrt(values.shape[1]) and uneven < _IMAGES + 5 * error)
