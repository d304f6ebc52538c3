"""Open a checkpoint of any known format."""

from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.options import Key
from lrzip.formats import FORMATS
from lrzip.formats.files.missing import refuse_missing
from lrzip.formats.files.readable import readable
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.protocols import Checkpoint, External, Format


def open_checkpoint(path: Path, *, key: Key = None, trust: bool = False) -> Checkpoint:
    """Open a checkpoint of any known format.

    Args:
        path: File, or folder with sharded weights.
        key: Dotted name of the entry that holds the weights, to override the default choice.
        trust: Whether reading may execute code from the file.

    Raises:
        UnsupportedCheckpoint: The path is missing, damaged, or not a checkpoint that can be read.
        UntrustedFile: Reading the file would execute code from it, and `trust` is False.
    """
    refuse_missing(path)
    with readable(path):
        before = Snapshot.of(path)
        for name in FORMATS:
            format_: Format = FORMATS[name]
            if format_.matches(path):
                checkpoint = format_.open(path, key=key, trust=trust)
                beside = checkpoint.data_files if isinstance(checkpoint, External) else ()
                checkpoint.snapshot = before | Snapshot.of_all(beside)
                return checkpoint
    raise UnsupportedCheckpoint(
        f"`{path}` is not a checkpoint that lrzip knows. It reads safetensors, ONNX, and the files of torch.save and "
        "torch.export."
    )
