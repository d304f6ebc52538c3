from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lrzip.core.errors import LrzipError
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.samples import Arrays, Samples, UserDataset, draws, seed_of, seeded
from tests.support.tasks import classes


class Noisy(Dataset[tuple[Tensor, int]]):
    """Adds random noise to each item."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(3) + float(np.random.rand()), index % 2


def samples_of(dataset: Any, loader: DataLoader[Any] | None = None) -> Samples:
    return Samples("data", UserDataset(dataset, loader))


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    x = torch.randint(256, (50, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    samples = Samples("images", Arrays(x, None, Preparation(augment=("crop", "flip"))))
    alone, together = samples.fetch([7], seed=3, epoch=2)[0], samples.fetch([2, 7], seed=3, epoch=2)[0]
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(alone, samples.fetch([7], seed=3, epoch=3)[0])
    assert not torch.equal(alone, samples.fetch([7], seed=4, epoch=2)[0])


def test_without_an_epoch_and_in_unaugmented_sets_nothing_is_augmented() -> None:
    x = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = Samples("images", Arrays(x, None, Preparation(augment=("crop", "flip"))))
    assert torch.equal(samples.fetch(range(20))[0], x)
    assert torch.equal(samples.unaugmented().fetch(range(20), epoch=1)[0], x)
    assert not torch.equal(samples.fetch(range(20), epoch=1)[0], x)


def test_draws_are_uniform() -> None:
    # Five standard deviations of the mean of 3000 uniform numbers, 1 / √(12 · 3000) each.
    assert float(draws(1000, 0, 1).mean()) == pytest.approx(0.5, abs=0.0264)


def test_items_of_datasets_depend_on_seed_epoch_and_index_alone() -> None:
    samples = samples_of(Noisy())
    state = torch.get_rng_state()
    alone, together = samples.fetch([7], epoch=1)[0], samples.fetch([2, 7], epoch=1)[0]
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(alone, samples.fetch([7], epoch=2)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_items_may_have_named_or_several_inputs_or_no_label() -> None:
    x, y = classes(10)
    inputs, labels = samples_of([{"a": a, "labels": label} for a, label in zip(x, y, strict=True)]).fetch([0, 1])
    assert set(inputs) == {"a"}
    assert labels is not None
    assert torch.equal(labels, y[:2])
    several = samples_of([(a, a + 1, label) for a, label in zip(x, y, strict=True)])
    (first, second), labels = several.fetch([3, 4])
    assert torch.equal(first, x[[3, 4]])
    assert torch.equal(second, first + 1)
    assert labels is not None
    assert torch.equal(labels, y[[3, 4]])
    for dataset in (TensorDataset(x), list(x)):
        alone, labels = samples_of(dataset).fetch([5])
        assert labels is None
        assert torch.equal(alone, x[5:6])


def test_items_of_other_structures_are_named() -> None:
    with pytest.raises(LrzipError, match=r"Item 2 of list is list, not \(x, y\) or x"):
        samples_of([["text"]] * 3).fetch([2])


def test_batches_are_collated_as_by_the_loader() -> None:
    x, y = classes(10)
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(x, y), collate_fn=lambda items: (torch.stack([item[0] for item in items]) * 2, None)
    )
    assert torch.equal(samples_of(loader.dataset, loader).fetch([1, 3])[0], 2 * x[[1, 3]])


def test_subsets_of_subsets_are_taken_by_position() -> None:
    x, y = classes(10)
    samples = Samples("data", Arrays(x, y)).subset(torch.tensor([8, 6, 4])).subset(torch.tensor([2, 0]))
    assert len(samples) == 2
    inputs, labels = samples.fetch([0, 1])
    assert torch.equal(inputs, x[[4, 8]])
    assert labels is not None
    assert samples.labels is not None
    assert torch.equal(labels, samples.labels)


def test_unlabelled_samples_have_the_same_inputs() -> None:
    x, y = classes(10)
    unlabelled = Samples("data", Arrays(x, y)).unlabelled()
    inputs, labels = unlabelled.fetch([2])
    assert torch.equal(inputs, x[2:3])
    assert labels is None
    assert unlabelled.labels is None


def test_seeds_differ_between_combinations() -> None:
    assert seed_of("a", 1) == seed_of("a", 1)
    assert len({seed_of(*parts) for parts in (("a", 1), ("a", 2), ("b", 1), ("a", "1"))}) == 4


def test_seeding_restores_all_generators() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with seeded("x"):
        first = torch.rand(1), np.random.rand()
    with seeded("x"):
        assert (torch.rand(1), np.random.rand()) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
