"""What the receiver does to the images: coils, noise, motion and artefacts, complex from end to end.

    from qsim.kspace import RFSpike, corrupt, magnitude
    corrupted = corrupt(images, [RFSpike(amplitude=(1, 10))], np.random.default_rng(1))
    seen = magnitude(corrupted.images)

One page with pictures of all of them: docs/artefacts.md.
"""

from qsim.kspace.artefacts.base import Artefact, Drawn, Stage
from qsim.kspace.artefacts.bias_field import BiasField
from qsim.kspace.artefacts.distortion import Distortion
from qsim.kspace.artefacts.ghosting import Ghosting
from qsim.kspace.artefacts.gibbs import Gibbs
from qsim.kspace.artefacts.k_space_noise import KSpaceNoise
from qsim.kspace.artefacts.low_pass import LowPass
from qsim.kspace.artefacts.partial_fourier import PartialFourier
from qsim.kspace.artefacts.spike import RFSpike
from qsim.kspace.artefacts.wraparound import Wraparound
from qsim.kspace.artefacts.zipper import Zipper
from qsim.kspace.chain import Corrupted, apply_chain, as_records, corrupt, draw_chain, with_spacing
from qsim.kspace.fourier import magnitude, to_image, to_kspace
from qsim.kspace.motion.motion import Motion
from qsim.kspace.motion.trajectory import Breathing, Drift, RandomWalk, Recorded, Sudden

__all__ = [
    "ARTEFACTS",
    "Artefact",
    "BiasField",
    "Breathing",
    "Corrupted",
    "Distortion",
    "Drawn",
    "Drift",
    "Ghosting",
    "Gibbs",
    "KSpaceNoise",
    "LowPass",
    "Motion",
    "PartialFourier",
    "RFSpike",
    "RandomWalk",
    "Recorded",
    "Stage",
    "Sudden",
    "Wraparound",
    "Zipper",
    "apply_chain",
    "as_records",
    "corrupt",
    "draw_chain",
    "magnitude",
    "to_image",
    "to_kspace",
    "with_spacing",
]

# in the order of the scanner
ARTEFACTS: tuple[type, ...] = (
    Motion,
    BiasField,
    Distortion,
    Ghosting,
    RFSpike,
    Zipper,
    KSpaceNoise,
    LowPass,
    Gibbs,
    Wraparound,
    PartialFourier,
)
