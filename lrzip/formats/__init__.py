"""Checkpoint formats: how tensors are found in files, and how files are written with layers replaced."""

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from lrzip.errors import LrzipError, UnsupportedCheckpoint
from lrzip.factors import Factors, Positions
from lrzip.formats.nesting import optimizer_entries
from lrzip.inputs import InputShape
from lrzip.layers import Keep, Layer, TensorSpec
from lrzip.modules import Architecture
from lrzip.moments import Arguments, Observe
from lrzip.plan import Entry, Plan
from lrzip.registry import Registry
from lrzip.report import Difference, Timing

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMATS = Registry(
    "format",
    {  # in the order in which they are asked
        "foreign": "lrzip.formats.foreign:FORMAT",
        "huggingface": "lrzip.formats.huggingface:FORMAT",
        "sharded-safetensors": "lrzip.formats.sharded:FORMAT",
        "safetensors": "lrzip.formats.safetensors:FORMAT",
        "onnx": "lrzip.formats.onnx:FORMAT",
        "program": "lrzip.formats.program:FORMAT",
        "torchscript": "lrzip.formats.torchscript:FORMAT",
        "module": "lrzip.formats.module:FORMAT",
        "state_dict": "lrzip.formats.state_dict:FORMAT",
    },
)


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
class Watchable(Protocol):
    """A checkpoint whose layers can be watched while it runs."""

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], see: Observe) -> None:
        """Run on batches and show what layers are applied to.

        Args:
            layers: To be watched.
            batches: Arguments of the calls, positional and named.
            see: Gets the name of each layer, and its inputs, for every call.
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


class Rewriter:
    """Writes a checkpoint with layers replaced."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def put(self, layer: Layer, factors: Factors) -> None:
        """Write the chain that replaces a layer."""
        for index, weight in enumerate(factors.weights):
            self._writer.put(layer.key(f"{index}.weight"), weight)


def open_checkpoint(path: Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Open a checkpoint of any known format.

    Args:
        path: A file, or a folder with sharded weights.
        key: Dotted name of the entry that holds the weights, where the default choice is not the wanted one.
        trust: Allow what would run code from the file.

    Raises:
        UnsupportedCheckpoint: It is missing, damaged, or not a checkpoint that can be read.
        UntrustedFile: Reading it would run code, and `trust` is not given.
    """
    if not path.exists():
        raise UnsupportedCheckpoint(f"`{path}` does not exist. Check the name.")
    with readable(path):
        for name in FORMATS:
            format_: Format = FORMATS[name]
            if format_.matches(path):
                return format_.open(path, key=key, trust=trust)
    raise UnsupportedCheckpoint(
        f"`{path}` is no checkpoint that lrzip knows. It reads safetensors, torch.save's and torch.export's files."
    )


@contextmanager
def create(
    destination: Path, source: Checkpoint, layout: Sequence[Entry], *, format_: str, drop: Sequence[str] = ()
) -> Iterator[Writer]:
    """Write a layout in a registered format, without the entries `drop`; it appears when all went well."""
    target: Format = FORMATS[format_]
    if format_ != source.format:
        _refuse_unrecognizable(destination, source, layout)
    try:
        with target.write(destination, source, layout, drop=drop) as writer:
            yield writer
    except OSError as error:
        advice = " Free some space and run it again." if error.errno == errno.ENOSPC else ""
        raise LrzipError(f"Could not write `{destination}`: {error.strerror or error}.{advice}") from error


def _refuse_unrecognizable(destination: Path, source: Checkpoint, layout: Sequence[Entry]) -> None:
    """Refuse factors that only the source's format can tell from those of a linear layer."""
    chains = {f"{module}.0.weight": kind for module, kind in (source.chain_kinds or {}).items()}
    found = next((e for e in layout if "linear_transposed" in (e.kind, chains.get(e.spec.name))), None)
    if found:
        raise UnsupportedCheckpoint(
            f"`{destination}` could not tell the factors of `{found.spec.name}`, of transformers' Conv1D, from "
            "those of a linear layer. Write a folder, or `--to dense`."
        )


@contextmanager
def rewrite(
    destination: Path,
    source: Checkpoint,
    plan: Plan,
    *,
    drop: Sequence[str] = (),
    changed: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[Rewriter]:
    """Write a checkpoint with the layers of a plan replaced, and tensors changed; all else is copied as it is."""
    layout = plan.layout(source.tensors(), changed)
    format_ = output_format(destination, source.format)
    with create(destination, source, layout, format_=format_, drop=drop) as writer:
        yield Rewriter(writer)
        for entry in layout:
            if entry.origin in changed:
                writer.put(entry.spec.name, changed[entry.origin])


def output_format(destination: Path, default: str) -> str:
    """Return the registered name of the format that the suffix of an output names, else the default.

    Where several have the suffix, it is the default, or the most general one: that which is asked last in reading.
    """
    suffix, names = destination.suffix.lower(), [default, *reversed(list(FORMATS))]
    return next((name for name in names if suffix in FORMATS[name].suffixes), default)


def not_carried(format_: str, source: Checkpoint, *, optimizer: bool) -> dict[str, str]:
    """Return what an output will not have beside the tensors, with the reason.

    Args:
        format_: Registered name of the output's format.
        source: What is read.
        optimizer: Whether to leave out the state of an optimizer, which does not fit replaced parameters.
    """
    if source.carries(format_) if isinstance(source, Guarded) else format_ == source.format:
        entries = optimizer_entries(source.others) if optimizer else []
        return dict.fromkeys(entries, "its state no longer fits the parameters")
    if not format_.endswith("safetensors"):
        texts = [f"metadata {name}" for name in source.metadata if name != "format"]  # that is "pt", and still true
        return dict.fromkeys([*texts, *source.others], "a state_dict has no place for it")
    return dict.fromkeys(source.others, "safetensors holds tensors only")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into one line about the file.

    The libraries that parse files raise anything at all on damaged ones: KeyError, EOFError, IndexError, RuntimeError.
    """
    try:
        yield
    except (LrzipError, MemoryError):
        raise
    except OSError as error:
        raise UnsupportedCheckpoint(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        text = str(error).rpartition("WeightsUnpickler error:")[2]  # torch says at length what to do before it
        detail = re.sub(r"\x1b\[[0-9;]*m|[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip(" .") or type(error).__name__
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: {detail[:160]}.") from error
