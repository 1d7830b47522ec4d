"""What most tasks do with a batch: one update, nothing before the first."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from trainers.data import Batch


class OneUpdate(ABC):
    """A task whose loss is one number."""

    __slots__ = ()

    @abstractmethod
    def loss(self, net: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Terms of the loss; `total` is minimised."""

    def updates(self, net: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """The total loss."""
        yield self.loss(net, batch)["total"]

    def begin(self, net: nn.Module, batch: Batch) -> None:
        """Nothing depends on the data before the first iteration."""
        del net, batch
