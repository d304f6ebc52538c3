"""ONNX: programs with their weights, edited node by node and checked by running them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.plan import Entry
from lrzip.formats.protocols import Checkpoint, Writer

if TYPE_CHECKING:
    from lrzip.formats.onnx.model import OnnxFile


# A ModelProto starts with field 1, its IR version, as a small varint, then a text or message field.
_MAGIC = rb"\x08[\x01-\x20][\x12\x1a\x22\x32\x3a\x42]"


class Onnx:
    """Files that end in `.onnx`, or start like one. The ONNX libraries are imported when one is opened."""

    suffixes: Sequence[str] = (".onnx",)
    usage: str | None = None
    is_program = True

    def matches(self, path: Path) -> bool:
        """Tell by the suffix, or by the first fields of the message."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(3)
        return path.suffix.lower() in self.suffixes or re.match(_MAGIC, head) is not None

    def open(self, path: Path, *, key: str | None, trust: bool) -> "OnnxFile":
        """Open a file; there is nothing in it to trust."""
        from lrzip.formats.onnx.model import OnnxFile

        del trust
        if key:
            raise UnsupportedCheckpoint(f"`{path}` is ONNX and has no entries, so `--key {key}` names nothing.")
        return OnnxFile(path)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the model and the files of its external data."""
        from lrzip.formats.onnx.model import files_of, load_model

        return files_of(path, load_model(path))

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write the source's program with chains of nodes in place of the nodes of replaced layers."""
        from lrzip.formats.onnx.model import OnnxFile
        from lrzip.formats.onnx.writer import write_model

        del drop  # there are no entries beside the program
        if not isinstance(source, OnnxFile):
            raise LrzipError(f"`{source.path}` holds weights and no program, which `{destination}` needs to be ONNX.")
        with write_model(destination, source, layout) as writer:
            yield writer


FORMAT = Onnx()
