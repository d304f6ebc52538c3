"""Checks of the zip archives that torch writes, before anything in them is read."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint

_UNPACKED_LIMIT = 1 << 26


def checked_members(path: Path, compressed: str = "(?!)") -> Sequence[zipfile.ZipInfo]:
    """Return the members of an archive after checking that it cannot unpack to more than its size.

    Args:
        path: Path of the archive.
        compressed: Pattern of the names of members that may be compressed, such as code.

    Raises:
        UnsupportedCheckpoint: The archive contains something that torch never writes: compressed members, names that
            point outside of it, duplicate names, or members larger than the file.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    sizes = {True: 0, False: 0}  # total size of the members that may be compressed, and of all others
    for member in members:
        shown = member.filename.encode("unicode_escape").decode()
        packed = re.fullmatch(compressed, member.filename) is not None
        sizes[packed] += member.file_size
        if not packed and member.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedCheckpoint(f"`{path}` has a compressed member `{shown}`, which torch.save never writes.")
        if member.filename.startswith("/") or ".." in Path(member.filename).parts:
            raise UnsupportedCheckpoint(f"`{path}` has a member `{shown}` that points outside of the archive.")
    if len({member.filename for member in members}) < len(members):
        raise UnsupportedCheckpoint(f"`{path}` has two members of the same name.")
    if sizes[True] > _UNPACKED_LIMIT:
        raise UnsupportedCheckpoint(f"`{path}` unpacks to more code than any program needs.")
    if sizes[False] > path.stat().st_size:
        raise UnsupportedCheckpoint(f"`{path}` is damaged: its members claim more bytes than the file has.")
    return members
