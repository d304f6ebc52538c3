"""What formats and their checkpoints can do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from lrzip.core.costs import Positions, Timing
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.moments import Arguments, Observe
from lrzip.core.plan import Entry
from lrzip.core.report import Difference
from lrzip.networks.architecture import Architecture
from lrzip.networks.inputs import InputShape

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Source(Protocol):
    """Tensors, and the layers they belong to: what a plan is made from."""

    @property
    def path(self) -> Path:
        """File or folder, or what stands for it in messages."""
        ...

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return all tensors in file order; reads no data."""
        ...

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return what each tensor is, by the network that it belongs to if that is known.

        Biases of layers belong to their layer.
        """
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        ...


class Checkpoint(Source, Protocol):
    """The read side of a format: a context manager over an open file or folder."""

    @property
    def format(self) -> str:
        """Its registered name."""
        ...

    @property
    def nbytes(self) -> int:
        """Size on disk of the files that hold its tensors."""
        ...

    @property
    def key(self) -> str:
        """Which entry of a nested file holds the weights, dotted; "" for the file itself."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts about the file as a whole, as safetensors has them."""
        ...

    @property
    def others(self) -> Sequence[str]:
        """Names of the entries beside the tensors."""
        ...

    @property
    def knows_layers(self) -> bool:
        """Whether it says what its layers are; else that is inferred from their weights."""
        ...

    @property
    def chain_kinds(self) -> Mapping[str, str] | None:
        """Kinds of the layers that are stored as chains, by module; None where names and shapes have to tell."""
        ...

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor, little-endian and contiguous, of any dtype."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


@runtime_checkable
class Nested(Protocol):
    """A checkpoint whose tensors may have other entries around them."""

    def bare(self) -> Checkpoint:
        """Return the same tensors without these."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """A checkpoint whose layers cannot be replaced under all circumstances."""

    def refuse_replacing(self, format_: str) -> None:
        """Refuse, before any work is done, an output in this format with layers replaced.

        Raises:
            LrzipError: It cannot be written, or not without trust.
        """
        ...

    def carries(self, format_: str) -> bool:
        """Tell whether an output in this format keeps what the file holds beside the tensors."""
        ...


@runtime_checkable
class Runnable(Protocol):
    """A checkpoint that holds a program, which can be run."""

    def measure(self, inputs: Sequence[InputShape]) -> tuple[Mapping[str, Positions], int] | None:
        """Return how often each element of each layer's weight is multiplied in a run, by layer, and all products.

        Args:
            inputs: Shapes of the inputs; none for those that are declared or stored, dynamic dimensions of size 1.

        Returns:
            None where that cannot be told.
        """
        ...

    def compare(self, output: Path) -> Sequence[Difference]:
        """Run this and what was made of it on the same inputs; empty where there are none, or output is no program.

        Raises:
            NotCompared: They cannot be run.
        """
        ...

    def time(self, output: Path, inputs: Sequence[InputShape]) -> Timing | None:
        """Return how long this and what was made of it run, or None where they cannot be run."""
        ...


@runtime_checkable
class Bringing(Protocol):
    """A checkpoint that brings its own network."""

    def network(self) -> nn.Module:
        """Return the network with its weights in it, for the caller to change. Loading it may run code from the file.

        Raises:
            UntrustedFile: The file is not trusted.
            UnsupportedCheckpoint: It cannot be loaded, or not be trained.
        """
        ...


@runtime_checkable
class Observable(Protocol):
    """A checkpoint whose layers can be watched while it runs."""

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and show what layers are applied to.

        Args:
            layers: To be watched.
            batches: Arguments of the calls, positional and named.
            observer: Gets the name of each layer, and its inputs, for every call.
        """
        ...


@runtime_checkable
class Exported(Protocol):
    """A checkpoint that holds a program of torch.export."""

    def exported(self) -> "ExportedProgram":
        """Return the program.

        Raises:
            UntrustedFile: Loading it would run code, and trust was not given.
        """
        ...


class Writer(Protocol):
    """The write side of a format: takes the tensors that are computed; all others it copies itself."""

    def put(self, name: str, tensor: Tensor) -> None:
        """Take one computed tensor, on the CPU, with the shape and dtype that the layout promised."""
        ...


class Format(Protocol):
    """One file format.

    Attributes:
        suffixes: Of files that are written in it.
        usage: What it takes to load an output with factorized layers, in one line for people, if it takes anything.
        is_program: Whether its files are programs that run, which only the same format can hold.
    """

    suffixes: Sequence[str]
    usage: str | None
    is_program: bool

    def matches(self, path: Path) -> bool:
        """Tell by name and bytes whether a path is of this format; runs and unpickles nothing."""
        ...

    def open(self, path: Path, *, key: str | None, trust: bool) -> Checkpoint:
        """Open a path for reading."""
        ...

    def files(self, path: Path) -> Sequence[Path]:
        """Return the files that hold the tensors of what lies at a path."""
        ...

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write a file without the entries `drop`; it appears when the context is left without an error."""
        ...
