"""What the receiver does to the images: coils, noise, motion and artefacts, complex from end to end.

from qsim.kspace import RFSpike, corrupt, magnitude
corrupted = corrupt(images, [RFSpike(amplitude=(1, 10))], np.random.default_rng(1))
"""

from qsim.kspace.artefacts.base import Artefact, Drawn, Stage
from qsim.kspace.artefacts.spike import RFSpike
from qsim.kspace.chain import Corrupted, apply_chain, as_records, corrupt, draw_chain
from qsim.kspace.fourier import magnitude, to_image, to_kspace

__all__ = [
    "ARTEFACTS",
    "Artefact",
    "Corrupted",
    "Drawn",
    "RFSpike",
    "Stage",
    "apply_chain",
    "as_records",
    "corrupt",
    "draw_chain",
    "magnitude",
    "to_image",
    "to_kspace",
]

# in the order of the scanner
ARTEFACTS: tuple[type, ...] = (RFSpike,)
