"""Samples by index, fetched in batches, which are functions of the seed, the epoch and the indices alone."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lrzip.core.errors import LrzipError, typed_line
from lrzip.training.data.augmentation import Preparation, augment, plain, prepare

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


@runtime_checkable
class Bindable(Protocol):
    """Samples whose arrays are inputs of a network by name."""

    def bound(self, name: str, inputs: Sequence[str]) -> "tuple[SampleSource, Sequence[str]]":
        """Return the samples for a network with inputs of these names, and the names of the arrays it does not take."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Samples whose inputs are rows of arrays or image files, and whose labels, if any, are an array.

    Attributes:
        x: The first input; None if all inputs have names.
        labels: Classes as int64, or regression targets in the dtype of the networks.
        preparation: Normalization and augmentation of the first input.
        named: Further arrays by name, which may be inputs of a network.
        inputs: Names of the inputs of the network, once it is known.
    """

    x: Rows | None
    labels: Tensor | None
    preparation: Preparation = field(default_factory=Preparation)
    named: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Sequence[str] | None = None

    def prepared(self, preparation: Preparation) -> "Arrays":
        """Return the same samples with another preparation."""
        return replace(self, preparation=preparation)

    def bound(self, name: str, inputs: Sequence[str]) -> "tuple[Arrays, Sequence[str]]":
        """Return the samples for a network with inputs of these names, and the names of the arrays it does not take.

        Raises:
            LrzipError: There is no array `x`, and the network takes none of the others.
        """
        taken = inputs if self.x is None else inputs[1:]
        if self.x is None and not self.named.keys() & set(taken):
            raise LrzipError(
                f"`{name}` has no array `x` or `train_x`, and no other that the network takes: it has "
                f"{_listed(self.named)}, and the network takes {_listed(inputs)}."
            )
        return replace(self, inputs=inputs), [array for array in self.named if array not in taken]

    def __len__(self) -> int:
        return len(next(iter(self.named.values())) if self.x is None else self.x)

    def fetch(self, numbers: Tensor, seed: int, epoch: int | None) -> Batch:
        """Return a batch, augmented if there is an epoch."""
        labels = None if self.labels is None else self.labels[numbers]
        if self.x is None:
            names = self.named if self.inputs is None else [name for name in self.inputs if name in self.named]
            return {name: plain(self.named[name][numbers]) for name in names}, labels
        x = prepare(self.x[numbers], self.preparation)
        if epoch is not None and self.preparation.augment:
            x = augment(x, self.preparation.augment, draws(len(self), seed, epoch)[numbers])
        first, *others = self.inputs or ("x",)
        chosen = {name: plain(self.named[name][numbers]) for name in others if name in self.named}
        return ({first: x, **chosen} if chosen else x), labels


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
                items.append(self._item(number))
        batch = self._collated(items)
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

    def _item(self, number: int) -> Any:
        try:
            return self._dataset[number]
        except Exception as error:
            name = type(self._dataset).__name__
            raise LrzipError(f"Item {number} of {name} cannot be read: {typed_line(error)}.") from error

    def _collated(self, items: list[Any]) -> Any:
        try:
            return self._collate(items)
        except Exception as error:
            raise LrzipError(
                f"{len(items)} items of {type(self._dataset).__name__} make no batch: {typed_line(error)}. Give them "
                "one shape, by padding for example, or a DataLoader whose `collate_fn` does."
            ) from error


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
        ignored: Names of the arrays that the network does not take.
    """

    name: str
    source: SampleSource
    numbers: Tensor | None = None
    augmented: bool = True
    ignored: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.source if self.numbers is None else self.numbers)

    def subset(self, positions: Tensor) -> "Samples":
        """Return the samples at some positions of this set."""
        return replace(self, numbers=positions if self.numbers is None else self.numbers[positions])

    def bound(self, inputs: Sequence[str]) -> "Samples":
        """Return the same samples with the arrays that a network takes by name; without any names, unchanged.

        Raises:
            LrzipError: The network takes no array.
        """
        if not inputs or not isinstance(self.source, Bindable):
            return self
        source, ignored = self.source.bound(self.name, inputs)
        return replace(self, source=source, ignored=ignored)

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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in islice(names, 8)) or "none"


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
