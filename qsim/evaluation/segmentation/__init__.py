"""How good a segmentation is, what its uncertainty says of it, and how far its volume can be off (shaw2021).

`quality`: Dice, SNR and CNR of an image. `probabilities`: their entropy, and Eq. 8. `volumes`: volumes and the
paper's error bar. `volume_calibration`: error bars that hold. `heads`: which head answers to which artefact.
`ranks`: rank correlations, pooled and within groups, with intervals by anatomy. Arrays are numpy.
"""

from qsim.evaluation.segmentation.heads import diagonal_leads, leakage
from qsim.evaluation.segmentation.probabilities import entropic_variance, entropy, mean_entropy, scaled_probabilities
from qsim.evaluation.segmentation.quality import contrast_to_noise, dice, grey_matter_snr, noise_snr
from qsim.evaluation.segmentation.ranks import Rank, RankInterval, spearman, spearman_by_cluster, spearman_within
from qsim.evaluation.segmentation.volume_calibration import VolumeCalibration, fit_volume_error
from qsim.evaluation.segmentation.volumes import (
    VolumeError,
    bernoulli_spread,
    paper_volume_error,
    per_target,
    relative_spread,
    volume,
)

__all__ = [
    "Rank",
    "RankInterval",
    "VolumeCalibration",
    "VolumeError",
    "bernoulli_spread",
    "contrast_to_noise",
    "diagonal_leads",
    "dice",
    "entropic_variance",
    "entropy",
    "fit_volume_error",
    "grey_matter_snr",
    "leakage",
    "mean_entropy",
    "noise_snr",
    "paper_volume_error",
    "per_target",
    "relative_spread",
    "scaled_probabilities",
    "spearman",
    "spearman_by_cluster",
    "spearman_within",
    "volume",
]
