"""Examples by number, a whole batch at a time, the same for the same seed, epoch and number wherever they are read."""

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
"""What the network takes, a tensor or a tuple or mapping of them, and the labels if there are any."""


class Rows(Protocol):
    """The inputs of examples, as they are stored."""

    def __len__(self) -> int: ...
    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Return some rows, (len(numbers), …)."""
        ...


class SampleSource(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor | None:
        """All labels where they are at hand."""
        ...

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch; randomness follows from seed, epoch and number. Without an epoch nothing is augmented."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Examples whose inputs are rows of an array or image files, and whose labels, if any, are an array.

    Attributes:
        x: Inputs.
        labels: int64 classes, or numbers of the networks' dtype.
        preparation: What becomes of the inputs.
    """

    x: Rows
    labels: Tensor | None
    preparation: Preparation = field(default_factory=Preparation)

    def prepared(self, preparation: Preparation) -> "Arrays":
        """Return the same examples with another preparation."""
        return replace(self, preparation=preparation)

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch."""
        x = prepare(self.x[numbers], self.preparation)
        if epoch is not None and self.preparation.augment:
            x = augment(x, self.preparation.augment, draws(len(self), seed, epoch)[numbers])
        return x, None if self.labels is None else self.labels[numbers]


class UserDataset:
    """Examples of a Dataset of the user's, with the collation of its DataLoader if there is one.

    An item is the input alone, (x, y), (x1, x2, …, y), or a mapping of named inputs with the label under `labels`.
    """

    labels: Tensor | None = None

    def __init__(self, dataset: Dataset[Any], loader: DataLoader[Any] | None) -> None:
        self._dataset = dataset
        self._collate = loader.collate_fn if loader is not None and loader.collate_fn else default_collate

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch; each item is made under its own seed, so that what it draws is the same everywhere."""
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
    """Examples whose labels are not looked at."""

    source: SampleSource
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch."""
        return self.source.fetch(numbers, seed, epoch)[0], None


@dataclass(frozen=True)
class Samples:
    """Some of the examples of a source, in a fixed order.

    Attributes:
        name: What people call them.
        source: Where they are.
        numbers: Which of them; None for all.
        augmented: Whether random changes apply.
    """

    name: str
    source: SampleSource
    numbers: Tensor | None = None
    augmented: bool = True

    def __len__(self) -> int:
        return len(self.source if self.numbers is None else self.numbers)

    def subset(self, positions: Tensor) -> "Samples":
        """Return the examples at some positions."""
        return replace(self, numbers=positions if self.numbers is None else self.numbers[positions])

    def unaugmented(self) -> "Samples":
        """Return the same examples without random changes."""
        return replace(self, augmented=False)

    def unlabelled(self) -> "Samples":
        """Return the same examples without labels."""
        return replace(self, source=Unlabelled(self.source))

    @property
    def labels(self) -> Tensor | None:
        """All labels, where they are at hand."""
        labels = self.source.labels
        return labels if labels is None or self.numbers is None else labels[self.numbers]

    def fetch(self, positions: Sequence[int], *, seed: int = 0, epoch: int | None = None) -> Batch:
        """Return the examples at some positions as a batch; those of an epoch are augmented, if any are."""
        numbers = torch.as_tensor(positions)
        if self.numbers is not None:
            numbers = self.numbers[numbers]
        return self.source.fetch(numbers, seed, epoch if self.augmented else None)


def draws(count: int, seed: int, epoch: int) -> Tensor:
    """Return three numbers in [0, 1) for each example of an epoch, (count, 3)."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed_of("augment", seed, epoch)))


def seed_of(*parts: object) -> int:
    """Return a seed for each combination of values, 32 bits, so that none follows from another."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed the random numbers of torch, NumPy and Python inside, and leave them outside as they were."""
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
