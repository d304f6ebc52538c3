from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrzip.core.errors import LrzipError
from lrzip.training.batches import Batches, Share, prepared
from lrzip.training.data.samples import Arrays, Samples, UserDataset

SAMPLES = Samples("numbers", Arrays(torch.arange(22.0)[:, None], torch.arange(22)))


def labels_of(batches: Batches) -> list[list[int]]:
    found = []
    for index in range(len(batches)):
        _, labels = batches[index]
        assert labels is not None
        found.append(labels.tolist())
    return found


def test_an_epoch_has_each_sample_at_most_once_in_full_batches() -> None:
    found = labels_of(Batches(SAMPLES, 4, seed=0, epoch=1, share=Share()))
    assert [len(batch) for batch in found] == [4] * 5
    assert len({label for batch in found for label in batch}) == 20


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = labels_of(Batches(SAMPLES, 4, seed=0, epoch=1, share=Share()))
    assert labels_of(Batches(SAMPLES, 4, seed=0, epoch=1, share=Share())) == first
    for seed, epoch in ((1, 1), (0, 2)):
        assert labels_of(Batches(SAMPLES, 4, seed=seed, epoch=epoch, share=Share())) != first


@pytest.mark.parametrize("count", [2, 4])
def test_the_shares_of_processes_make_up_the_batches(count: int) -> None:
    together = labels_of(Batches(SAMPLES, 4, seed=0, epoch=1, share=Share()))
    shares = [labels_of(Batches(SAMPLES, 4, seed=0, epoch=1, share=Share(rank, count))) for rank in range(count)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == together


class Unreadable:
    """A dataset whose items cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        raise KeyError(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_processes_cannot_read_is_one_line(workers: int) -> None:
    dataset: Any = Unreadable()
    batches = Batches(Samples("d", UserDataset(dataset, None)), 4, seed=0, epoch=1, share=Share())
    with pytest.raises(LrzipError, match=r"^Item \d of Unreadable cannot be read: KeyError: \d\.$"):
        list(prepared(DataLoader(batches, batch_size=None, num_workers=workers)))
