"""Samples by index, fetched in batches, which are functions of the seed, the epoch and the indices alone."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lrzip.core.errors import LrzipError
from lrzip.training.data.augmentation import Preparation, augment, prepare

Batch = tuple[Any, Tensor | None]
"""Inputs of the network, a tensor or a tuple or mapping of them, and labels if there are any."""


class Rows(Protocol):
    """The stored inputs of samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Return the rows of some indices, (len(numbers), …)."""
        ...


class SampleSource(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor | None:
        """All labels, if they are in memory."""
        ...

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch, augmented if there is an epoch; its randomness is a function of seed, epoch and indices."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Samples whose inputs are rows of an array or image files, and whose labels, if any, are an array.

    Attributes:
        x: Inputs.
        labels: Classes as int64, or regression targets in the dtype of the networks.
        preparation: Normalization and augmentation of the inputs.
    """

    x: Rows
    labels: Tensor | None
    preparation: Preparation = field(default_factory=Preparation)

    def prepared(self, preparation: Preparation) -> "Arrays":
        """Return the same samples with another preparation."""
        return replace(self, preparation=preparation)

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch, augmented if there is an epoch."""
        x = prepare(self.x[numbers], self.preparation)
        if epoch is not None and self.preparation.augment:
            x = augment(x, self.preparation.augment, draws(len(self), seed, epoch)[numbers])
        return x, None if self.labels is None else self.labels[numbers]


class UserDataset:
    """Samples of a Dataset supplied by the user.

    An item is the input alone, (x, y), (x1, x2, …, y), or a mapping of named inputs with the label under `labels`.

    Args:
        dataset: A dataset with a length.
        loader: The DataLoader whose collation is used, if there is one.
    """

    labels: Tensor | None = None

    def __init__(self, dataset: Dataset[Any], loader: DataLoader[Any] | None) -> None:
        self._dataset = dataset
        self._collate = loader.collate_fn if loader is not None and loader.collate_fn else default_collate

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch; each item is read with its own seed, so that its randomness depends on nothing else.

        Raises:
            LrzipError: An item has none of the supported structures.
        """
        items = []
        for number in numbers.tolist():
            with seeded("item", seed, epoch, number):
                items.append(self._dataset[number])
        batch = self._collate(items)
        if isinstance(batch, Mapping):
            return {name: value for name, value in batch.items() if name != "labels"}, batch.get("labels")
        if isinstance(batch, tuple | list) and len(batch) > 1:
            return batch[0] if len(batch) == 2 else tuple(batch[:-1]), batch[-1]
        alone = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if isinstance(alone, Tensor):
            return alone, None
        raise LrzipError(
            f"Item {int(numbers[0])} of {type(self._dataset).__name__} is {type(batch).__name__}, not (x, y) or x."
        )


@dataclass(frozen=True)
class Unlabelled:
    """Samples without the labels that their source may have."""

    source: SampleSource
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch without labels."""
        return self.source.fetch(numbers, seed, epoch)[0], None


@dataclass(frozen=True)
class Samples:
    """A subset of the samples of a source, in a fixed order.

    Attributes:
        name: Name for messages.
        source: The source.
        numbers: Indices of the samples in the source; None for all.
        augmented: Whether augmentation applies.
    """

    name: str
    source: SampleSource
    numbers: Tensor | None = None
    augmented: bool = True

    def __len__(self) -> int:
        return len(self.source if self.numbers is None else self.numbers)

    def subset(self, positions: Tensor) -> "Samples":
        """Return the samples at some positions of this set."""
        return replace(self, numbers=positions if self.numbers is None else self.numbers[positions])

    def unaugmented(self) -> "Samples":
        """Return the same samples without augmentation."""
        return replace(self, augmented=False)

    def unlabelled(self) -> "Samples":
        """Return the same samples without labels."""
        return replace(self, source=Unlabelled(self.source))

    @property
    def labels(self) -> Tensor | None:
        """All labels, if they are in memory."""
        labels = self.source.labels
        return labels if labels is None or self.numbers is None else labels[self.numbers]

    def fetch(self, positions: Sequence[int], *, seed: int = 0, epoch: int | None = None) -> Batch:
        """Return the samples at some positions of this set as a batch.

        Args:
            positions: Positions in this set.
            seed: Seed of the augmentation.
            epoch: Number of the epoch, a part of the seed; without one, nothing is augmented.
        """
        numbers = torch.as_tensor(positions)
        if self.numbers is not None:
            numbers = self.numbers[numbers]
        return self.source.fetch(numbers, seed, epoch if self.augmented else None)


def draws(count: int, seed: int, epoch: int) -> Tensor:
    """Return three uniform numbers in [0, 1) for each sample of an epoch, (count, 3)."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed_of("augment", seed, epoch)))


def seed_of(*parts: object) -> int:
    """Return a 32-bit seed for a combination of values, independent of those of other combinations."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python inside the context, and restore their states after it."""
    seed = seed_of(*parts)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
