"""Short-axis slices of hearts in their surroundings, in two domains, and the mask of the left ventricle."""

from phantoms.heart.mask import ventricle as ventricle
from phantoms.heart.spec import Heart as Heart
from phantoms.heart.subject import TISSUES as TISSUES
from phantoms.heart.subject import Subject as Subject
