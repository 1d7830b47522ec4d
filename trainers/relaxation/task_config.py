"""What a config says of `task: {kind: self_supervised}`; what it does is in `task.py`."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from qsim.signals import AnyModel
from qsim.signals.constraint import Order
from qsim.values import value
from trainers.relaxation.moving import Augmentation, ImageMotion


@value
class Corruption:
    """What is wrong with one contrast in the loss; the network sees it as it is (huang2023, table III).

    Attributes:
        row: relaxation time of the contrast.
        scale: its residuals are those of images so many times brighter.
        motion: every image but the first moves by itself; null: none.
    """

    row: str
    scale: Annotated[float, Field(gt=0)] = 1.0
    motion: ImageMotion | None = None


@value
class SelfSupervisedTask:
    """What is learned, and from what.

    Attributes:
        supervision: `constraint`: images alone. `fit`: the least-squares map of all images, by its absolute error.
            `truth`: the true map of a simulation. A two_stream network learns by synthesis, which is `constraint`.
        inputs: numbers of the images of each input: the common first one, then one of each contrast; empty: the first
            with each later one, contrasts in step.
        rows: relaxation times to be learned; empty: of all contrasts.
        constraints: pairs in the loss. `all`: of all images. `without_inputs`: but not the pair of two images of the
            input. `independent`: of images that the input does not hold.
        order: `both` directions of a pair, or only `decaying`: a later image by an earlier one.
        backward: `together`: one update for all pairs. `separate`: one for each, as in huang2022; of `constraint` only.
        beta: the Laplace scale weighs a voxel's loss by its power 1 - beta. 0: the likelihood. 1: the maps learn as
            without a scale.
        weights: of each row's contrast in the loss, by name; 1 if not given.
        corrupt: one contrast made worse in the loss.
        augment: slight moves of the examples; null: none.
        relaxation: model of the constraint, with the times of the series, if it is not the ideal decay. Its rows but A
            are learned; those that the data know as maps (DELTA_B0, REL_B1, T1, T2) are taken from there.
    """

    kind: Literal["self_supervised"] = "self_supervised"
    supervision: Literal["constraint", "fit", "truth"] = "constraint"
    inputs: tuple[tuple[Annotated[int, Field(strict=True, ge=0)], ...], ...] = ()
    rows: tuple[str, ...] = ()
    constraints: Literal["all", "without_inputs", "independent"] = "all"
    order: Order = "both"
    backward: Literal["together", "separate"] = "together"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    weights: Mapping[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    corrupt: Corruption | None = None
    augment: Augmentation | None = Augmentation()
    relaxation: AnyModel | None = None

    def __post_init__(self) -> None:
        if self.backward == "separate" and self.supervision != "constraint":
            raise ValueError("backward: separate is of constraint pairs; take together with a map to learn from")
        if self.supervision != "constraint":
            self.without_pairs(f"supervision: {self.supervision} learns from a map")
        if self.relaxation is not None and self.supervision != "constraint":
            raise ValueError("relaxation: is the model of the constraint; leave it out with a map to learn from")

    def without_pairs(self, why: str) -> None:
        """Refuse what acts on constraint pairs where there are none.

        Raises: ValueError.
        """
        usual = {"constraints": "all", "order": "both", "beta": 0.0, "corrupt": None}
        for name, plain in usual.items():
            if getattr(self, name) != plain:
                raise ValueError(f"{name}: {why} and has no constraint pairs; leave it out")
        if self.weights:
            raise ValueError(f"weights: {why} and has no constraint pairs; leave it out")
