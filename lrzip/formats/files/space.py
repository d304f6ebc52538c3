"""Compare the size of an output with the free space of its disk, before work is done that would be lost."""

import shutil
from pathlib import Path

from lrzip.core.errors import LrzipError
from lrzip.formats.files.atomic import is_stream


def check_space(destination: Path, nbytes: int) -> None:
    """Refuse an output that is larger than the free space of its disk.

    Args:
        destination: Path of the output.
        nbytes: Least size of the output in bytes.

    Raises:
        LrzipError: The disk is too small.
    """
    if is_stream(destination):
        return
    folder = destination.resolve().parent
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise LrzipError(
            f"`{destination}` takes at least {nbytes / 1e6:,.1f} MB, and the disk of `{folder}` has "
            f"{free / 1e6:,.1f} MB left. Free some space, or choose another disk with `output=PATH`."
        )
