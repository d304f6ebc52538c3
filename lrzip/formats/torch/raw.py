"""Base of the open files whose tensors are read as raw bytes, without loading anything else in them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.stored import DenseLayer
from lrzip.formats.files.raw import RawTensor, shared
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.protocols import Checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers


def refuse_other_dtypes(source: Checkpoint, layout: Sequence[Entry]) -> None:
    """Refuse tensors of another dtype than the one that a program or module computes in.

    Raises:
        LrzipError: The dtype of a tensor differs from that of its origin.
    """
    for entry in layout:
        before = source.tensors()[entry.origin].dtype
        if entry.spec.dtype != before and (entry.structure is None or entry.spec.is_floating_point):
            raise LrzipError(
                f"`{entry.origin}` is {before}, and `{source.path}` computes in that, so its factors cannot be "
                f"{entry.spec.dtype}. Leave out `dtype={entry.spec.dtype}`."
            )


class RawFile:
    """An open file of raw tensors.

    Attributes:
        path: Path of the file.
        nbytes: Size of the file in bytes.
        format: Registered name of its format.
        key: Dotted name of the entry that holds the weights.
        others: Names or descriptions of the entries beside the tensors.
        raw: Tensors by name.
    """

    metadata: Mapping[str, str] = {"format": "pt"}
    dense_layers: Mapping[str, DenseLayer] | None = None
    knows_layers = False
    is_rewritable = False
    snapshot = Snapshot()
    key = ""

    def __init__(self, path: Path, format_: str, tensors: Mapping[str, RawTensor], others: Sequence[str]) -> None:
        for name, tensor in tensors.items():
            tensor.check(path, name)
        self.path = path
        self.nbytes = path.stat().st_size
        self.format = format_
        self.others = others
        self.raw = tensors
        self._specs = {name: tensor.spec(name) for name, tensor in tensors.items()}

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        A nested state_dict was written by a trainer, so the prefix `model.` is an attribute of the trainer.
        """
        return find_layers(self.path, self._specs, architecture, trainer=bool(self.key), untouchable=self.untouchable())

    def untouchable(self) -> Mapping[str, str]:
        """Return the tensors that must not be replaced, with the reason."""
        return shared(self.raw)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        return self.raw[name].read(self.path)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        return self.raw[name].chunks(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass  # the file is open only while a tensor is read
