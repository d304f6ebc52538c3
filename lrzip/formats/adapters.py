"""Adapters: checkpoints of LoRA factors, presented as the products that a rank rule decides on."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.kinds import LORA
from lrzip.core.layers import FACTORIZABLE_DTYPES, Keep, Layer, Pair, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.stored import DenseLayer
from lrzip.formats.capabilities import Folder
from lrzip.formats.protocols import Checkpoint, Guarded, Writer
from lrzip.formats.safetensors.adapter_config import ADAPTER_CONFIG
from lrzip.formats.safetensors.adapter_metadata import AdapterMetadata
from lrzip.formats.safetensors.file import SafetensorsFile
from lrzip.networks.adapters import StoredPair, adapter_reason, find_pairs, holds_base
from lrzip.networks.architecture import Architecture
from lrzip.networks.weights import not_a_weight

_PREFIX = "base_model.model."


@runtime_checkable
class Configured(Protocol):
    """A checkpoint whose configuration states the scales of its pairs."""

    def obstacle(self, module: str, rank: int) -> str | None:
        """Return why the pair of a module cannot get another rank, or None."""
        ...

    def scale(self, module: str) -> float | None:
        """Return the factor of the product of a module; None if the configuration does not state it."""
        ...


class Adapter:
    """An open adapter; each pair of factors is presented as one tensor, under the name of its factor A.

    A pair B (outputs, rank), A (rank, inputs) is presented as B over Aᵀ; see `lrzip.core.layers.Pair`. Everything else
    is presented as it is, and kept.
    """

    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = True

    def __init__(self, stored: Checkpoint, pairs: Mapping[str, StoredPair], reasons: Mapping[str, str]) -> None:
        self.stored = stored
        reasons = dict(reasons)
        self._metadata = AdapterMetadata.of(stored.metadata, stored.path)
        self._configuration: Configured = stored if isinstance(stored, Configured) else self._metadata
        found = ((pair, self._configuration.obstacle(pair.module, pair.rank)) for pair in pairs.values())
        reasons |= {spec.name: why for pair, why in found if why for spec in (pair.first, pair.second)}
        self.pairs = {name: pair for name, pair in pairs.items() if name not in reasons}
        self._reasons = reasons
        self._seconds = {pair.second.name for pair in self.pairs.values()}
        self._scales = {name: self._scale(pair) for name, pair in self.pairs.items()}
        self.path, self.format, self.key, self.nbytes = stored.path, stored.format, stored.key, stored.nbytes
        self.metadata, self.others, self.is_rewritable = stored.metadata, stored.others, stored.is_rewritable
        self.snapshot = stored.snapshot

    def _scale(self, pair: StoredPair) -> float:
        scale = self._configuration.scale(pair.module)
        if scale is not None:
            return scale
        # Without an alpha, readers take that of the rank, so that the scale is 1.
        return float(self.stored.read(pair.alpha.name)) / pair.rank if pair.alpha else 1.0

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors, with one in the place of the factors of each pair."""
        stored = self.stored.tensors().items()
        return {name: self._presented(spec) for name, spec in stored if name not in self._seconds}

    def _presented(self, spec: TensorSpec) -> TensorSpec:
        pair = self.pairs.get(spec.name)
        if pair is None:
            return spec
        rows = pair.second.shape[0] + prod(pair.first.shape[1:])
        return TensorSpec(spec.name, (rows, pair.rank), spec.dtype, pair.first.nbytes + pair.second.nbytes)

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the products of all pairs as layers, and all other tensors as kept with the reason.

        Raises:
            UsageError: A network is given; adapters have none of their own.
        """
        if architecture is not None:
            raise UsageError(f"`{self.path}` holds an adapter, which needs no network. Leave out `model`.")
        modules = [pair.module for pair in self.pairs.values()]
        found: list[Layer | Keep] = []
        for name, spec in self.tensors().items():
            pair = self.pairs.get(name)
            if pair is None:
                found.append(Keep(name.removeprefix(_PREFIX), spec, self._reason(spec)))
                continue
            label = pair.module if modules.count(pair.module) == 1 else name
            shape = Pair(pair.second.shape[0], self._scales[name])
            found.append(Layer(label.removeprefix(_PREFIX), pair.module, LORA, spec, None, pair=shape))
        return found

    def _reason(self, spec: TensorSpec) -> str:
        reason = self._reasons.get(spec.name) or adapter_reason(spec.name) or not_a_weight(spec)
        return reason or "stored in full beside the adapter, which is loaded as it is"

    def read(self, name: str) -> Tensor:
        """Read one tensor, or both factors of a pair."""
        pair = self.pairs.get(name)
        if pair is None:
            return self.stored.read(name)
        first, second = self.stored.read(name).flatten(1), self.stored.read(pair.second.name).flatten(1)
        return torch.cat([second, first.mT])

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one stored tensor."""
        return self.stored.chunks(name)

    def refuse_replacing(self, format_: str) -> None:
        """Refuse an output whose ranks no configuration would state.

        Raises:
            LrzipError: The adapter has a configuration, and the output would have none.
        """
        if isinstance(self.stored, Guarded):
            self.stored.refuse_replacing(format_)
        beside = self.path.parent / ADAPTER_CONFIG
        if self.path.is_file() and self.path.stem == "adapter_model" and beside.is_file():
            folder = self.path.parent
            raise LrzipError(f"`{beside}` states the ranks of `{self.path.name}`. Compress the folder `{folder}`.")
        if isinstance(self.stored, Configured) and format_ != self.format:
            raise LrzipError(f"`{self.path}` needs its `{ADAPTER_CONFIG}`. Write a folder, without a suffix.")

    def described(self, layout: Sequence[Entry]) -> Checkpoint:
        """Return the stored checkpoint, with metadata that describe the ranks of a layout."""
        ranks = {pair.module: e.spec.shape[1] for e in layout if (pair := self.pairs.get(e.origin))}
        changed = any(not entry.copied for entry in layout if entry.origin in self.pairs)
        if not changed or not isinstance(self.stored, SafetensorsFile):
            return self.stored
        scales = {pair.module: self._scales[name] for name, pair in self.pairs.items() if pair.alpha}
        view = copy.copy(self.stored)
        view.metadata = self._metadata.resized(ranks, [scale * ranks[module] for module, scale in scales.items()])
        return view

    def split(self, layout: Sequence[Entry]) -> Sequence[Entry]:
        """Return a layout of presented tensors as one of stored tensors."""
        alphas = {
            pair.alpha.name
            for entry in layout
            if not entry.copied and (pair := self.pairs.get(entry.origin)) and pair.alpha
        }
        found: list[Entry] = []
        for entry in layout:
            if pair := self.pairs.get(entry.origin):
                found += [_resized(spec, entry, axis) for axis, spec in enumerate((pair.first, pair.second))]
            elif entry.origin in alphas:
                spec = TensorSpec(entry.origin, entry.spec.shape, "float32", 4)
                found.append(replace(entry, spec=spec, copied=False))
            else:
                found.append(entry)
        return found

    def put(self, writer: Writer, name: str, tensor: Tensor) -> None:
        """Write a computed tensor; for a pair, its factors, and the alpha that keeps its scale."""
        pair = self.pairs.get(name)
        if pair is None:
            writer.put(name, tensor)
            return
        rank, outputs = tensor.shape[1], pair.second.shape[0]
        writer.put(name, tensor[outputs:].mT.reshape(rank, *pair.first.shape[1:]).contiguous())
        writer.put(pair.second.name, tensor[:outputs].reshape(-1, rank, *pair.second.shape[2:]).contiguous())
        if pair.alpha:
            writer.put(pair.alpha.name, torch.full(pair.alpha.shape, self._scales[name] * rank))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stored.__exit__(kind, error, traceback)


class AdapterFolder(Adapter):
    """An open adapter in a folder with other files."""

    def __init__(self, stored: Checkpoint, pairs: Mapping[str, StoredPair], reasons: Mapping[str, str]) -> None:
        super().__init__(stored, pairs, reasons)
        assert isinstance(stored, Folder)
        self._folder = stored
        self.files = stored.files

    def left_out(self) -> Mapping[str, str]:
        """Return the other files that do not fit an output with other weights, with the reason."""
        return self._folder.left_out()


class AdapterWriter:
    """Writes computed tensors of an adapter as they are stored."""

    def __init__(self, adapter: Adapter, writer: Writer) -> None:
        self._adapter, self._writer = adapter, writer

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one computed tensor."""
        self._adapter.put(self._writer, name, tensor)


def as_adapter(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the products of its factors as layers, if it is an adapter; otherwise as it is."""
    with ExitStack() as stack:
        stack.enter_context(checkpoint)  # closed if anything about it is malformed
        tensors = checkpoint.tensors()
        pairs, reasons = find_pairs(tensors)
        found = checkpoint
        if isinstance(checkpoint, Configured) or (pairs and not holds_base(pairs.values(), tensors)):
            found = (AdapterFolder if isinstance(checkpoint, Folder) else Adapter)(checkpoint, pairs, reasons)
        stack.pop_all()
    return found


def _resized(spec: TensorSpec, entry: Entry, axis: int) -> Entry:
    """Return the entry of a factor with the rank and dtype of an entry of its pair."""
    if entry.copied:
        return Entry(spec, spec.name, copied=True)
    shape = tuple(entry.spec.shape[1] if index == axis else size for index, size in enumerate(spec.shape))
    dtype = entry.spec.dtype
    return Entry(TensorSpec(spec.name, shape, dtype, FACTORIZABLE_DTYPES[dtype] * prod(shape)), spec.name, copied=False)
