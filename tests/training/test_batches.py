from itertools import chain

import pytest
import torch

from lrzip.training.batches import Batches, Share
from lrzip.training.data.samples import Arrays, Samples

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
