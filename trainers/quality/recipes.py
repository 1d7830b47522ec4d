"""What each stage of a cascade learns: its views, its loss, and which weights move.

`paper` (shaw2021 section 4):  task on clean images (Eq. 4) -> a teacher per source, told the task's variance (Eq. 6, 7)
    -> student of all sources, told every teacher's variance (Eq. 5, 7).
`qsim`:  task on clean images -> student from it, on corrupted ones too -> frozen; only the heads learn, from pairs.

The sum of variances in Eq. 5 does not say which of them is meant, and teachers whose artefact heads stay where they
began teach nothing. A pair does: what the artefact added to the error of a frozen network is the artefact's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainers.quality.config import DecoupledConfig
from trainers.quality.heads import ContextHeads
from trainers.quality.losses import attenuated, consistency, cross_entropy, image_level, soft_dice
from trainers.quality.network import Answer, DecoupledNet
from trainers.quality.views import Pairs, Present, always_one, each_by_itself, none_of, only


@dataclass(frozen=True, slots=True)
class Recipe:
    """One stage.

    Attributes:
        name: of the stage.
        config: of the cascade.
    """

    name: str
    config: DecoupledConfig

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of the network's variances besides the task."""
        if self.name == "task":
            return ()
        kind, _, source = self.name.partition("-")
        return (source,) if kind == "teacher" else self.config.source_names

    @property
    def present(self) -> Present:
        """Which sources happen in the views."""
        config, n = self.config, len(self.config.sources)
        if self.name == "task":
            return none_of(n)
        if self.name == "heads":
            return always_one(n, float(config.heads.together))
        if self.name.startswith("teacher-"):
            return only(config.source_names.index(self.sources[0]), n, float(config.corrupted))
        return each_by_itself(n, float(config.corrupted))

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages that must have ended before this one."""
        if self.name == "task":
            return ()
        if self.name == "heads":
            return ("student",)
        if self.config.recipe == "paper" and self.name == "student":
            return tuple(name for name in self.config.stage_names if name != "student")
        return ("task",)

    @property
    def begins_from(self) -> str | None:
        """Stage whose segmentation the weights begin with."""
        if self.config.recipe == "paper":
            return None
        return {"student": "task", "heads": "student"}.get(self.name)

    def learning(self, net: DecoupledNet) -> list[torch.nn.Parameter]:
        """The weights that move; the others are frozen."""
        if self.config.recipe == "paper":
            return list(net.parameters())
        return list((net.heads if self.name == "heads" else net.segmentation).parameters())

    def begin(self, net: DecoupledNet, views: Sequence[Pairs]) -> None:
        """Before the first iteration: heads that look at statistics of images learn how these vary, from some views."""
        if self.name != "heads" or not isinstance(net.heads, ContextHeads):
            return
        images = [image for pairs in views for image in (pairs.clean, pairs.corrupted)]
        with torch.no_grad():
            net.heads.begin([(*net.segment(image), image) for image in images])

    def loss(self, net: DecoupledNet, pairs: Pairs, teachers: Mapping[str, DecoupledNet], epsilon: float) -> Tensor:
        """What is minimised.

        Args:
            teachers: the networks of `needs`, frozen.
            epsilon: added to the variance [1].
        """
        if self.config.recipe == "paper":
            return self._likelihood(net, pairs, teachers, epsilon)
        if self.name == "heads":
            return self._from_pairs(net, pairs, epsilon)
        _, logits = net.segment(pairs.corrupted)
        return cross_entropy(logits, pairs.target).mean() + soft_dice(logits, pairs.target)

    def _likelihood(
        self, net: DecoupledNet, pairs: Pairs, teachers: Mapping[str, DecoupledNet], epsilon: float
    ) -> Tensor:
        """Eq. 4 of the task network, Eq. 6 of a teacher, Eq. 5 of the student; with Eq. 7 for every pseudo label."""
        answer = net(pairs.corrupted)
        variance = answer.log_variance.exp()
        ce = cross_entropy(answer.logits, pairs.target)
        loss = attenuated(ce, variance.sum(1), epsilon).mean()
        if self.name == "task":
            return loss
        with torch.no_grad():
            pseudo = [variances_of(teachers["task"](pairs.clean))[:, :1]]
            if self.name == "student":
                pseudo += [
                    variances_of(teachers[f"teacher-{source}"](pairs.corrupted))[:, 1:] for source in self.sources
                ]
        known = torch.cat(pseudo, 1)
        return loss + consistency(known, variance[:, : known.shape[1]], float(self.config.ssim))

    def _from_pairs(self, net: DecoupledNet, pairs: Pairs, epsilon: float) -> Tensor:
        """The heads of a frozen segmentation, from a clean view and the same view after an artefact.

            clean:      Eq. 4 with sigma_t^2
            corrupted:  Eq. 4 with sg(sigma_t^2 of the clean view) + the variances of the sources that are present
            image:      (t + .03) / (m + .03) + log(m + .03),   t = max(0, 2 mean(CE corrupted - CE clean))

        m is the mean variance of a head over the image, t is 0 for heads whose source is absent; a source that shares
        the image with another is asked for the sum of both.
        """
        weights = self.config.heads
        ce_clean, log_clean = errors_and_log_variances(net, pairs.clean, pairs.target)
        ce_spoiled, log_spoiled = errors_and_log_variances(net, pairs.corrupted, pairs.target)
        clean, spoiled = log_clean.exp(), log_spoiled.exp()
        task, present = clean[:, :1], pairs.present.to(clean.dtype)[:, :, None, None, None]
        by_clean = attenuated(ce_clean, task[:, 0], epsilon)
        total = task.detach()[:, 0] + (spoiled[:, 1:] * present).sum(1)
        by_spoiled = attenuated(ce_spoiled, total, epsilon)

        silent = (spoiled[:, 1:] * (1 - present)).mean() + clean[:, 1:].mean()
        carried = (log_spoiled[:, 0] - log_clean[:, 0].detach()).abs().mean()

        excess = (2 * (ce_spoiled - ce_clean).flatten(1).mean(1)).clamp(min=0)
        of_image = image_level(*asked(spoiled[:, 1:].flatten(2).mean(2), pairs.present, excess))
        of_clean = clean[:, 1:].flatten(2).mean(2)
        of_image = of_image + image_level(torch.zeros_like(of_clean), of_clean)
        return (
            by_clean.mean()
            + by_spoiled.mean()
            + float(weights.silence) * silent
            + float(weights.carried) * carried
            + float(weights.image_level) * of_image
        )


def asked(
    mean: Float[Tensor, "b s"], present: Tensor, excess: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Excess and mean variance by head, the present ones of an image together: their sum first, then the absent ones.

    Returns: excess and means, with 0 and 0 in the places of the present sources; they add a constant.
    """
    there = present.to(mean.dtype)
    together = (mean * there).sum(1, keepdim=True)
    none = torch.zeros_like(mean)
    return torch.cat([excess[:, None], none], 1), torch.cat([together, mean * (1 - there)], 1)


def errors_and_log_variances(
    net: DecoupledNet, images: Float[Tensor, "b 1 x y z"], target: Int[Tensor, "b x y z"]
) -> tuple[Float[Tensor, "b x y z"], Float[Tensor, "b s x y z"]]:
    """Cross entropy of the frozen segmentation, and the log variances of the heads that learn."""
    with torch.no_grad():
        features, logits = net.segment(images)
    return cross_entropy(logits, target), net.uncertainty(features, logits, images)


def variances_of(answer: Answer) -> Float[Tensor, "b s x y z"]:
    """sigma^2 of every source."""
    return answer.log_variance.exp()
