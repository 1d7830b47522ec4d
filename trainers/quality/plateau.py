"""When a training of the weighted cross entropy becomes stricter: epsilon and learning rate are halved at plateaus."""

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class Plateau:
    """Where such a schedule stands. Every value is plain, so that a checkpoint can hold it as JSON.

    The loss is smoothed by its mean over each `window` iterations. Where that mean has for `patience` iterations not
    come below the best of this epsilon by more than `threshold`, epsilon and the rate are halved, and the search for a
    plateau begins anew, because the loss of another epsilon is another loss. Once epsilon is below `smallest`, neither
    changes any more: from 0.05 to below 0.001 these are six halvings, the last epsilon is 0.00078.

    A plateau shows `window + patience` iterations after the best mean began at the earliest, so the six take 3600
    iterations or more with the defaults; the paper trains for 30 000. Trainings of another length need others.

    Attributes:
        epsilon: now, of the weighted cross entropy [1].
        lr: learning rate now.
        window: iterations of one mean.
        patience: iterations without a better mean that make a plateau; counted in whole windows.
        threshold: by how much a mean must be better, absolute, since this loss can be negative [nat].
        smallest: below it epsilon stays as it is [1].
        best: lowest mean of this epsilon; None before the first.
        stale: iterations since then.
        total, count: sum and number of the losses of the window that is under way.
    Source: shaw2021 section 6 for what is halved, from what and until when; how a plateau is told is this project's.
    """

    epsilon: float = 0.05
    lr: float = 1e-4
    window: int = 100
    patience: int = 500
    threshold: float = 0.005
    smallest: float = 1e-3
    best: float | None = None
    stale: int = 0
    total: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "lr", "window", "patience", "smallest"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}")
        if not (isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold must be a number of at least 0, got {self.threshold}")

    @property
    def ended(self) -> bool:
        """Whether epsilon and the rate have reached what they stay at."""
        return self.epsilon < self.smallest

    def after(self, loss: float) -> "Plateau":
        """The schedule after one more iteration.

        Args:
            loss: of that iteration. Of processes that train together: the mean over all of them, or they part ways.
        Raises: ValueError if the loss is no number.
        """
        if not isfinite(loss):
            raise ValueError(f"loss: got {loss}; a training that diverged has no plateau")
        if self.ended:
            return self
        total, count = self.total + loss, self.count + 1
        if count < self.window:
            return replace(self, total=total, count=count)
        mean = total / count
        if self.best is None or mean < self.best - self.threshold:
            return replace(self, best=mean, stale=0, total=0.0, count=0)
        stale = self.stale + count
        if stale < self.patience:
            return replace(self, stale=stale, total=0.0, count=0)
        return replace(self, epsilon=self.epsilon / 2, lr=self.lr / 2, best=None, stale=0, total=0.0, count=0)

    def state(self) -> dict[str, Any]:
        """All values by name, as `from_state` reads them and JSON holds them exactly."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Plateau":
        """The schedule that `state` told of."""
        return cls(**state)
