"""What the formats have in common whose files are read as raw bytes, without running or loading what else is there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.plan import Entry
from lrzip.formats.files.raw import RawTensor, shared
from lrzip.formats.protocols import Checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import find_layers


def refuse_other_dtypes(source: Checkpoint, layout: Sequence[Entry]) -> None:
    """Refuse factors of another dtype than their layer's in what computes with them.

    Raises:
        LrzipError: There are some.
    """
    for entry in layout:
        before = source.tensors()[entry.origin].dtype
        if entry.spec.dtype != before:
            raise LrzipError(
                f"`{entry.origin}` is {before}, and `{source.path}` computes in that, so its factors cannot be "
                f"{entry.spec.dtype}. Leave out `--dtype`."
            )


class RawFile:
    """An open file of raw tensors.

    Attributes:
        path: The file.
        nbytes: Its size.
        format: Registered name.
        key: Which entry holds the weights.
        others: What the file holds beside them.
    """

    metadata: Mapping[str, str] = {"format": "pt"}
    chain_kinds: Mapping[str, str] | None = None
    knows_layers = False
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
        """Return all tensors."""
        return self._specs

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return what each tensor is. A nested state_dict comes from a trainer, whose `model.` is a wrapper."""
        return find_layers(self.path, self._specs, architecture, trainer=bool(self.key), untouchable=self.untouchable())

    def untouchable(self) -> Mapping[str, str]:
        """Return the reasons against touching tensors, by name."""
        return shared(self.raw)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
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
