"""The batches of an epoch, in an order that follows from the seed and the epoch."""

from torch import Generator, randperm
from torch.utils.data import Dataset

from lrzip.training.data.samples import Batch, Samples, seed_of


class Batches(Dataset[Batch]):
    """The batches of one epoch, or the share of one process in each of them."""

    def __init__(self, samples: Samples, size: int, seed: int, epoch: int, part: tuple[int, int]) -> None:
        order = randperm(len(samples), generator=Generator().manual_seed(seed_of("order", seed, epoch)))
        rank, count = part
        whole = order[: len(order) // size * size].reshape(-1, size)
        self._positions = whole[:, rank * size // count : (rank + 1) * size // count]
        self._samples, self._seed, self._epoch = samples, seed, epoch

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Batch:
        return self._samples.fetch(self._positions[index].tolist(), seed=self._seed, epoch=self._epoch)
