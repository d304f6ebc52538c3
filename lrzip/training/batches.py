"""The batches of an epoch, in an order determined by the seed and the epoch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Generator, randperm
from torch.utils.data import Dataset

from lrzip.core.errors import LrzipError
from lrzip.training.data.samples import Batch, Samples, seed_of


@dataclass(frozen=True)
class Share:
    """The share of one process in each batch.

    Attributes:
        rank: Index of the process.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1


class Batches(Dataset[Batch]):
    """The batches of one epoch, or the share of one process in each of them.

    Args:
        samples: Training set; a last batch that is not full is dropped.
        size: Samples per batch, over all processes.
        seed: Seed of the order.
        epoch: Number of the epoch.
        share: Which part of each batch to return.
    """

    def __init__(self, samples: Samples, size: int, *, seed: int, epoch: int, share: Share) -> None:
        order = randperm(len(samples), generator=Generator().manual_seed(seed_of("order", seed, epoch)))
        batches = order[: len(order) // size * size].reshape(-1, size)
        self._positions = batches[:, share.rank * size // share.count : (share.rank + 1) * size // share.count]
        self._samples, self._seed, self._epoch = samples, seed, epoch

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Batch:
        return self._samples.fetch(self._positions[index].tolist(), seed=self._seed, epoch=self._epoch)


def prepared(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of a loader, whose processes put their traceback before the message of an error.

    Raises:
        LrzipError: Data cannot be read; the message is one line.
    """
    try:
        yield from loader
    except LrzipError as error:
        lines = str(error).strip().splitlines()
        raise LrzipError(lines[-1].partition("LrzipError: ")[2] or lines[-1]) from error
