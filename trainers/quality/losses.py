"""Losses of a segmentation that tells how uncertain it is, and from what source.

Variances v here are of the logits of a voxel, as the network learns them [1]; v_t of the task, v_i of source i. Every
loss is computed in float32, or in float64 where that is given.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

# of the structural similarity, per data range; Wang et al. 2004
_K1, _K2 = 0.01, 0.03
# smallest data range of a map of variances: the smallest epsilon of the paper
_RANGE = 1e-3
_SIDE = 3


def cross_entropy(logits: Float[Tensor, "b k *space"], target: Int[Tensor, "b *space"]) -> Float[Tensor, "b *space"]:
    """Cross entropy of each voxel.

        CE(x) = log sum_c exp f_c(x) - f_y(x)(x)

    Args:
        logits: f of each class [1].
        target: number of the true class, y.
    Returns: CE [nat].
    Source: shaw2021, between Eq. 2 and 3.
    """
    return functional.cross_entropy(_wide(logits), target.long(), reduction="none")


def attenuated(
    ce: Float[Tensor, "b *space"], variance: Float[Tensor, "b *space"], epsilon: float
) -> Float[Tensor, "b *space"]:
    """Cross entropy of each voxel, weighted by how uncertain the voxel is said to be.

        L(x) = CE(x) / (v(x) + epsilon) + 1/2 log(v(x) + epsilon)

    Least over v at v = 2 CE - epsilon, or at v = 0 where that is negative.

    Args:
        ce: cross entropy [nat].
        variance: v, of Eq. 4 that of the task; of Eq. 5 and 6 the sum v_t + sum_i v_i.
        epsilon: above 0 [1].
    Raises: ValueError if epsilon is not above 0: where v vanishes, so would the denominator.
    Source: shaw2021 Eq. 4 to 6, epsilon: section 6.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: got {epsilon:g}; give a number above 0")
    sure = _wide(variance) + epsilon
    return _wide(ce) / sure + 0.5 * torch.log(sure)


def consistency(
    pseudo: Float[Tensor, "b s x y z"], own: Float[Tensor, "b s x y z"], ssim_weight: float = 0.1
) -> Float[Tensor, ""]:
    """How far variances are from those of a teacher.

        L = mean |v - p| + sum_a mean |D_a v - D_a p| + w (1 - SSIM(p, v))

    D_a is the forward difference along axis a, x, y and z; means are over images, sources and voxels.

    Args:
        pseudo: variances p of the teacher, which the loss gives no gradient.
        own: variances v.
        ssim_weight: w.
    Raises: ValueError if a side of the image is below the 3 voxels of the similarity's filter.
    Source: shaw2021 Eq. 7. That the differences of the three axes are added, and the form 1 - SSIM, as Zhao et al.
    2017, doi:10.1109/TCI.2016.2644865, has it, are this project's reading.
    """
    pseudo, own = _wide(pseudo).detach(), _wide(own)
    loss = (own - pseudo).abs().mean() + ssim_weight * (1 - similarity(pseudo, own).mean())
    for axis in (2, 3, 4):
        loss = loss + (own - pseudo).diff(dim=axis).abs().mean()
    return loss


def similarity(pseudo: Float[Tensor, "b s x y z"], own: Float[Tensor, "b s x y z"]) -> Float[Tensor, "b s xi yi zi"]:
    """Structural similarity by a 3 x 3 x 3 mean filter, of the voxels whose neighbours all lie within the image.

        SSIM = (2 m_p m_v + C1) (2 s_pv + C2) / ((m_p^2 + m_v^2 + C1) (s_pp + s_vv + C2))
        C1 = (0.01 R)^2,    C2 = (0.03 R)^2

    m are means and s (co)variances over the 27 voxels, without Bessel's correction. Variances have no upper bound, so
    the data range R is the largest value of `pseudo`, of each image and source by itself, but at least 0.001: the
    similarity does not change when both maps are scaled, and is 1 where both vanish.

    Raises: ValueError if a side is below 3 voxels.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, Eq. 13; the filter: shaw2021 section 4.
    """
    if min(pseudo.shape[2:]) < _SIDE:
        raise ValueError(f"images of {tuple(pseudo.shape[2:])} voxels; give at least {_SIDE} along each axis")
    pseudo, own = _wide(pseudo), _wide(own)
    extent = pseudo.detach().amax((2, 3, 4), keepdim=True).clamp(min=_RANGE)
    c1, c2 = (_K1 * extent) ** 2, (_K2 * extent) ** 2

    def mean(of: Tensor) -> Tensor:
        return functional.avg_pool3d(of, _SIDE, stride=1)

    m_p, m_v = mean(pseudo), mean(own)
    # differences of squares: what rounding makes negative is 0
    s_pp = (mean(pseudo.square()) - m_p.square()).clamp(min=0)
    s_vv = (mean(own.square()) - m_v.square()).clamp(min=0)
    s_pv = mean(pseudo * own) - m_p * m_v
    like = (2 * m_p * m_v + c1) * (2 * s_pv + c2)
    return like / ((m_p.square() + m_v.square() + c1) * (s_pp + s_vv + c2))


def soft_dice(
    logits: Float[Tensor, "b k *space"], target: Int[Tensor, "b *space"], smooth: float = 1.0
) -> Float[Tensor, ""]:
    """1 less the soft Dice overlap, averaged over images and over all classes but the first, the background.

        L = 1 - (2 sum_x p(x) t(x) + s) / (sum_x p(x) + sum_x t(x) + s)

    p is the softmax of the logits and t 1 where the class is true. With s of one voxel an image without the class costs
    about sum_x p, next to nothing where the network is sure; with MONAI's 1e-5 it costs up to 1 there.

    Args:
        smooth: s, above 0 [voxels].
    Source: Milletari et al. 2016, doi:10.1109/3DV.2016.79, with sums in place of sums of squares.
    """
    probabilities = torch.softmax(_wide(logits), 1)[:, 1:].flatten(2)
    classes = torch.arange(1, logits.shape[1], device=target.device)
    true = (target.flatten(1)[:, None] == classes[None, :, None]).to(probabilities.dtype)
    shared = 2 * (probabilities * true).sum(2) + smooth
    return (1 - shared / (probabilities.sum(2) + true.sum(2) + smooth)).mean()


def image_level(excess: Float[Tensor, "b s"], mean: Float[Tensor, "b s"], offset: float = 0.03) -> Float[Tensor, ""]:
    """How far a source's mean variance over an image is from the harm that the source did to it.

        L = mean ((t + o) / (m + o) + log(m + o))

    Least at m = t, and on average over noisy t at their mean, so t may be negative in single images.

    Args:
        excess: t, what the cross entropy of the image gained by the source.
        mean: m, mean variance of the source over the image, at least 0.
        offset: o, above 0: below it differences hardly count.
    Raises: ValueError if the offset is not above 0.
    Source: this project's; the quasi-likelihood ("QLIKE") of Patton 2011, doi:10.1016/j.jeconom.2010.03.034, with an
    offset.
    """
    if not offset > 0:
        raise ValueError(f"offset: got {offset:g}; give a number above 0")
    said = _wide(mean) + offset
    return ((_wide(excess) + offset) / said + torch.log(said)).mean()


def _wide(values: Tensor) -> Tensor:
    """float64 as it is, all else as float32."""
    return values if values.dtype == torch.float64 else values.float()
