"""Open a checkpoint of any known format."""

from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats import FORMATS
from lrzip.formats.files.readable import readable
from lrzip.formats.protocols import Checkpoint, Format


def open_checkpoint(path: Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Open a checkpoint of any known format.

    Args:
        path: File, or folder with sharded weights.
        key: Dotted name of the entry that holds the weights, to override the default choice.
        trust: Whether reading may execute code from the file.

    Raises:
        UnsupportedCheckpoint: The path is missing, damaged, or not a checkpoint that can be read.
        UntrustedFile: Reading the file would execute code from it, and `trust` is False.
    """
    if not path.exists():
        raise UnsupportedCheckpoint(f"`{path}` does not exist. Check the name.")
    with readable(path):
        for name in FORMATS:
            format_: Format = FORMATS[name]
            if format_.matches(path):
                return format_.open(path, key=key, trust=trust)
    raise UnsupportedCheckpoint(
        f"`{path}` is not a checkpoint that lrzip knows. It reads safetensors, ONNX, and the files of torch.save and "
        "torch.export."
    )
