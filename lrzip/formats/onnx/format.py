"""ONNX models, which are edited node by node and checked by running them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lrzip.core.errors import LrzipError
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.protocols import Checkpoint, Writer

if TYPE_CHECKING:
    from lrzip.formats.onnx.model import OnnxFile


# A ModelProto starts with field 1, the IR version as a small varint, followed by a string or message field.
_MAGIC = rb"\x08[\x01-\x20][\x12\x1a\x22\x32\x3a\x42]"


class Onnx:
    """Files with the suffix `.onnx` or the first bytes of a model. The ONNX libraries are imported on first use."""

    suffixes: Sequence[str] = (".onnx",)
    usage: str | None = None
    is_program = True
    holds_entries = False
    holds_metadata = True
    stores_kinds = True

    def matches(self, path: Path) -> bool:
        """Return whether the suffix or the first fields of the message match."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(3)
        return path.suffix.lower() in self.suffixes or re.match(_MAGIC, head) is not None

    def open(self, path: Path, *, key: Key, trust: bool) -> "OnnxFile":
        """Open a file, which contains no code to trust."""
        from lrzip.formats.onnx.model import OnnxFile

        del trust
        refuse_key(path, key, "ONNX")
        return OnnxFile(path)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the model and the files of its external data."""
        from lrzip.formats.onnx.load import files_of, load_model

        return files_of(path, load_model(path)[0])

    @contextmanager
    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> Iterator[Writer]:
        """Write the model of the source with several nodes in place of each replaced layer."""
        from lrzip.formats.onnx.model import OnnxFile
        from lrzip.formats.onnx.writer import write_model

        del drop  # a model holds no other entries
        if not isinstance(source, OnnxFile):
            raise LrzipError(f"`{source.path}` holds weights and no program, which `{destination}` needs to be ONNX.")
        with write_model(destination, source, layout) as writer:
            yield writer


FORMAT = Onnx()
