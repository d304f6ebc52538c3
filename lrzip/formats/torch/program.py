"""Programs saved by torch.export.save (.pt2).

The weights are raw bytes with a list of their shapes, and are read without executing anything. To replace layers the
program itself must be loaded, which can execute code from the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lrzip.core.costs import Multiplications, Timing
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, UntrustedFile, one_line
from lrzip.core.layers import Keep, Layer
from lrzip.core.layout import Entry
from lrzip.core.moments import Arguments, Observe
from lrzip.core.options import Key
from lrzip.core.report import Comparison
from lrzip.formats import FORMATS
from lrzip.formats.files.atomic import atomic_file
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.torch.collecting import CollectingWriter
from lrzip.formats.torch.program_archive import ProgramArchive, block_bytes, holds_program
from lrzip.formats.torch.raw import RawFile, refuse_other_dtypes
from lrzip.networks.architecture import Architecture
from lrzip.networks.inputs import InputShape

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class ProgramFile(RawFile):
    """An open .pt2 file. With trust the layers follow from the graph, otherwise from the names of the weights."""

    def __init__(self, path: Path, *, trust: bool) -> None:
        archive = ProgramArchive.read(path)
        super().__init__(path, "program", archive.tensors, ["the program"])
        self._extra, self._pickled = archive.extra, archive.pickled
        self.is_rewritable = True
        self.trust = trust
        self._program: ExportedProgram | None = None
        self._known = self._layers_of_graph() if trust else None
        self.knows_layers = trust
        self._compared_on: tuple[Sequence[Arguments], Sequence[InputShape]] = ((), ())

    def _layers_of_graph(self) -> Sequence[Layer | Keep]:
        from lrzip.networks.programs.rewrite import program_layers

        self._program = self.program()
        return program_layers(self._program, self._specs, self.untouchable())

    def program(self) -> "ExportedProgram":
        """Load the program, which is slow and may execute code from the file; the caller owns the result."""
        from lrzip.networks.programs.rewrite import load_program

        program, self._program = self._program, None
        try:
            return program or load_program(self.path)
        except Exception as error:
            raise UnsupportedCheckpoint(
                f"`{self.path}` is damaged, or needs operators that are not installed: {one_line(error)}."
            ) from error

    def network(self) -> nn.Module:
        """Load the program as a network that can be trained."""
        from lrzip.networks.programs.trainable import network_of

        if not self.trust:
            raise UntrustedFile(
                f"`{self.path}` is a program, which must be loaded to be trained, and that can execute code from the "
                "file. Pass `trust=True` if you know where it came from."
            )
        return network_of(self.program(), self.path)

    def extra_files(self) -> Mapping[str, str]:
        """Return the strings stored beside the program, by name."""
        return {name: block_bytes(self.path, block).decode() for name, block in self._extra.items()}

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        With trust they follow from the graph, otherwise they are inferred.
        """
        return super().layers(architecture) if self._known is None else self._known

    def untouchable(self) -> Mapping[str, str]:
        """Return the tensors that must not be replaced, with the reason."""
        return {**super().untouchable(), **dict.fromkeys(self._pickled, "pickled within the program")}

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        self._refuse_pickled(name)
        return super().read(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor."""
        self._refuse_pickled(name)
        return super().chunks(name)

    def compare_on(self, samples: Sequence[Arguments], shapes: Sequence[InputShape]) -> None:
        """Choose the inputs of later comparisons."""
        self._compared_on = samples, shapes

    def compare(self, output: Path) -> Comparison:
        """Run both programs on the chosen inputs, or on those that are stored in this one."""
        from lrzip.networks.programs.compare import compare_programs
        from lrzip.networks.programs.rewrite import load_program

        if not FORMAT.matches(output):
            return Comparison()
        return compare_programs(self.program(), load_program(output), *self._compared_on)

    def measure(self, inputs: Sequence[InputShape]) -> Multiplications:
        """Count the multiplications of a run.

        Raises:
            UntrustedFile: The file is not trusted.
        """
        if not self.trust:
            raise UntrustedFile(
                f"`{self.path}` is a program, which must be loaded to be run, and that can execute code from the file. "
                "Pass `trust=True` if you know its origin."
            )
        from lrzip.networks.programs.run import measure

        try:
            return measure(self.program(), [item for item in self.layers() if isinstance(item, Layer)], inputs)
        except LrzipError as error:
            if inputs:
                raise
            return Multiplications({}, None, not_counted=str(error).rstrip("."))

    def time(self, output: Path, inputs: Sequence[InputShape]) -> Timing | None:
        """Time both programs alternately, if this one is trusted."""
        from lrzip.networks.programs.rewrite import load_program
        from lrzip.networks.programs.run import time

        if not self.trust or not FORMAT.matches(output):
            return None
        layers = [item for item in self.layers() if isinstance(item, Layer)]
        return time(self.program(), load_program(output), layers, inputs)

    def observe(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run the program on batches and pass the inputs of layers to an observer."""
        from lrzip.networks.programs.observe import observe_program

        observe_program(self.exported(), {layer.weight.name: layer for layer in layers}, batches, observer)

    def input_names(self) -> Sequence[str]:
        """Return the names of the inputs of the program, in order."""
        return [name for name in self.exported().graph_signature.user_inputs if isinstance(name, str)]

    def exported(self) -> "ExportedProgram":
        """Load the program.

        Raises:
            UntrustedFile: The file is not trusted.
        """
        self.refuse_replacing(self.format)
        return self.program()

    def refuse_replacing(self, format_: str) -> None:
        """Refuse to write a program without trust."""
        if FORMATS[format_].is_program and not self.trust:
            raise UntrustedFile(
                f"`{self.path}` is a program, and to replace its layers it must be loaded, which can execute code "
                "from the file. Pass `trust=True` if you know its origin, or write only weights: `output=weights.pt`."
            )

    def _refuse_pickled(self, name: str) -> None:
        if name in self._pickled:
            raise UnsupportedCheckpoint(f"`{name}` in `{self.path}` is pickled, and reading it would execute code.")


class Program:
    """Files of torch.export.save."""

    suffixes: Sequence[str] = (".pt2",)
    usage: str | None = None
    is_program = True
    holds_entries = False
    holds_metadata = False
    stores_kinds = True

    def matches(self, path: Path) -> bool:
        """Return whether the file is a zip archive with the members of a program."""
        return holds_program(path)

    def open(self, path: Path, *, key: Key, trust: bool) -> ProgramFile:
        """Open a file; without `trust` the program is not loaded."""
        refuse_key(path, key, "a program")
        return ProgramFile(path, trust=trust)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file itself."""
        return [path]

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write the program of the source with layers replaced, and the strings stored beside it."""
        from lrzip.networks.programs.rewrite import rewrite, write_program

        del drop  # a program holds no other entries
        if not isinstance(source, ProgramFile):
            raise LrzipError(
                f"`{source.path}` is not a program, so `{destination}` cannot be one. Give the output another suffix."
            )
        source.refuse_replacing(source.format)
        refuse_other_dtypes(source, layout)
        with atomic_file(destination) as temporary:
            writer = CollectingWriter()
            yield writer
            program = rewrite(source.program(), layout, writer.tensors)
            with temporary.open("wb") as file:
                write_program(program, file, source.extra_files())


FORMAT = Program()
