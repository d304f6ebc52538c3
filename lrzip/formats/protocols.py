"""Protocols of formats and checkpoints: what every one provides, and one protocol for each optional capability."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from lrzip.core.costs import Multiplications, Timing
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.moments import Arguments, Observe
from lrzip.core.options import Key
from lrzip.core.report import Comparison, EntryChoice
from lrzip.core.stored import DenseLayer
from lrzip.formats.files.unchanged import Snapshot
from lrzip.networks.architecture import Architecture
from lrzip.networks.inputs import InputShape

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Source(Protocol):
    """Named tensors and the layers they belong to: the input of a plan."""

    @property
    def path(self) -> Path:
        """Path of the file or folder, or a description of the source for messages."""
        ...

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return the specs of all tensors by name, in file order, without reading their data."""
        ...

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        Biases are part of their layer and are not listed.

        Args:
            architecture: Network that the tensors belong to, if known.
        """
        ...

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        ...


@runtime_checkable
class BiasedNodes(Protocol):
    """A source whose layers are nodes of a graph, and which lists their biases as separate tensors."""

    def bias_of(self, layer: Layer) -> TensorSpec | None:
        """Return the bias that all nodes with the weight of a layer, and nothing else, use; None if there is none."""
        ...


def with_bias(source: Source, layer: Layer) -> Layer:
    """Return a layer with its bias, even if the source lists the bias as a separate tensor."""
    return replace(layer, bias=source.bias_of(layer)) if isinstance(source, BiasedNodes) else layer


class Checkpoint(Source, Protocol):
    """Read side of a format: a context manager over an open file or folder.

    Attributes:
        snapshot: The files as they were when the checkpoint was opened.
    """

    snapshot: Snapshot

    @property
    def format(self) -> str:
        """Registered name of the format."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes of the files of the checkpoint, as `Format.files` returns them."""
        ...

    @property
    def key(self) -> str:
        """Dotted name of the entry that holds the weights in a nested file; "" if the file itself is the state_dict."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings that describe the file, such as the `__metadata__` of safetensors."""
        ...

    @property
    def others(self) -> Sequence[str]:
        """Names of the entries beside the tensors."""
        ...

    @property
    def is_rewritable(self) -> bool:
        """Whether an output in the same format keeps the entries beside the tensors."""
        ...

    @property
    def knows_layers(self) -> bool:
        """Whether the file states which layers it has; otherwise they are inferred from the weights."""
        ...

    @property
    def dense_layers(self) -> Mapping[str, DenseLayer] | None:
        """Layers that are stored factorized, by module, or None if they must be inferred from names and shapes."""
        ...

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor of any dtype, little-endian and in C order."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


@runtime_checkable
class Chosen(Protocol):
    """A checkpoint whose weights were chosen among several entries of a nested file."""

    @property
    def rivals(self) -> Sequence[str]:
        """Dotted names of the other entries that hold weights."""
        ...


def entry_of(checkpoint: Checkpoint) -> EntryChoice:
    """Return the entry that holds the weights of a checkpoint, and the others that could."""
    return EntryChoice(checkpoint.key, tuple(checkpoint.rivals) if isinstance(checkpoint, Chosen) else ())


@runtime_checkable
class External(Protocol):
    """A checkpoint with data in files beside it."""

    @property
    def data_files(self) -> Sequence[Path]:
        """Files that hold data of the checkpoint, beside its own."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A checkpoint whose state_dict holds more than tensors."""

    def states(self) -> Mapping[str, Any]:
        """Return the entries of the state_dict that are no tensors, by name."""
        ...


@runtime_checkable
class Nested(Protocol):
    """A checkpoint that may hold its state_dict inside other entries."""

    def bare(self) -> Checkpoint:
        """Return a view of the same tensors without the entries around them."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """A checkpoint whose layers cannot be replaced in every output format, or only if it is trusted."""

    def refuse_replacing(self, format_: str) -> None:
        """Refuse an output with replaced layers that cannot be written, before any work is done.

        Args:
            format_: Registered name of the output's format.

        Raises:
            LrzipError: The layers cannot be replaced.
            UntrustedFile: They can be replaced only if the file is trusted.
        """
        ...


@runtime_checkable
class Runnable(Protocol):
    """A checkpoint that holds a program, which can be executed."""

    def measure(self, inputs: Sequence[InputShape]) -> Multiplications:
        """Return the multiplications of one run.

        Args:
            inputs: Shapes of the inputs. If empty, those of the declared or stored inputs are used, and the result is
                that of one sample.

        Returns:
            The multiplications. If they cannot be counted, the result contains the reason.

        Raises:
            UntrustedFile: The program must not be run.
            LrzipError: The program does not take inputs of these shapes.
        """
        ...

    def compare_on(self, samples: Sequence[Arguments], shapes: Sequence[InputShape]) -> None:
        """Choose the inputs of later comparisons.

        Args:
            samples: Calibration data; if empty, random or stored inputs are taken.
            shapes: Shapes of random inputs; if empty, those that the program declares or stores.
        """
        ...

    def compare(self, output: Path) -> Comparison:
        """Run this program and a compressed one on the same inputs.

        Returns:
            The differences of the outputs that depend on the inputs; none if `output` is not a program.

        Raises:
            NotCompared: One of them cannot be run, or no output depends on the inputs.
        """
        ...

    def time(self, output: Path, inputs: Sequence[InputShape]) -> Timing | None:
        """Return the run times of this program and a compressed one, or None if they cannot be run."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A checkpoint that is not written as it is, beside its layers."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about what differs in its output."""
        ...


@runtime_checkable
class Loadable(Protocol):
    """A checkpoint that holds its network, not only the weights."""

    def network(self) -> nn.Module:
        """Load the network with its weights. Loading may execute code from the file; the caller owns the result.

        Raises:
            UntrustedFile: The file is not trusted.
            UnsupportedCheckpoint: The network cannot be loaded, or cannot be trained.
        """
        ...


@runtime_checkable
class Observable(Protocol):
    """A checkpoint that can run on samples while the inputs of its layers are observed."""

    def observe(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run the program on batches and pass the inputs of layers to an observer.

        Args:
            layers: Layers to observe.
            batches: Positional and named arguments of each call.
            observer: Function that receives the name and the inputs of a layer, once per call of the layer.
        """
        ...

    def input_names(self) -> Sequence[str]:
        """Return the names of the inputs of the program, in order."""
        ...


@runtime_checkable
class Exported(Protocol):
    """A checkpoint that holds an `ExportedProgram` of torch.export."""

    def exported(self) -> "ExportedProgram":
        """Load the program. Loading may execute code from the file; the caller owns the result.

        Raises:
            UntrustedFile: The file is not trusted.
        """
        ...


class Writer(Protocol):
    """Write side of a format: receives the computed tensors and copies all others itself."""

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one computed tensor, which is on the CPU and has the shape and dtype that the layout announced."""
        ...


class Format(Protocol):
    """One file format and what its files can hold.

    Attributes:
        suffixes: Suffixes of the files that are written in this format.
        usage: One line that tells users how to load an output with factorized layers, or None if nothing is needed.
        is_program: Whether outputs are executable programs, which can be written only from a program of this format.
        holds_entries: Whether files can hold entries beside the tensors, such as the epoch or an optimizer's state.
        holds_metadata: Whether files can hold strings that describe them.
        stores_kinds: Whether files record the kinds of their factorized layers, so that the factors of a transposed
            linear layer are not mistaken for those of a linear layer.
    """

    suffixes: Sequence[str]
    usage: str | None
    is_program: bool
    holds_entries: bool
    holds_metadata: bool
    stores_kinds: bool

    def matches(self, path: Path) -> bool:
        """Return whether a path is of this format, by its name and bytes. Nothing is executed or unpickled."""
        ...

    def open(self, path: Path, *, key: Key, trust: bool) -> Checkpoint:
        """Open a path for reading."""
        ...

    def files(self, path: Path) -> Sequence[Path]:
        """Return the files of a checkpoint: those that hold its tensors, or all files of a folder."""
        ...

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write a file without the entries `drop`; it appears when the context exits without an error."""
        ...
