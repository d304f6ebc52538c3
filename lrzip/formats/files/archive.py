"""Zip archives that torch wrote: members stored as they are, none of which points outside."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint

_UNPACKED_LIMIT = 1 << 26


def checked_members(path: Path, compressed: str = "(?!)") -> Sequence[zipfile.ZipInfo]:
    """Return the members of an archive, none of which unpacks to more than it is.

    Args:
        path: The archive.
        compressed: Pattern of the names of members, such as code, that may be compressed all the same.

    Raises:
        UnsupportedCheckpoint: It has what torch never writes: compressed members, path-like names, two of one name, or
            more bytes than the file.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    sizes = {True: 0, False: 0}  # of those that may be compressed, and of the others
    for member in members:
        shown = member.filename.encode("unicode_escape").decode()
        packed = re.fullmatch(compressed, member.filename) is not None
        sizes[packed] += member.file_size
        if not packed and member.compress_type != zipfile.ZIP_STORED:
            raise UnsupportedCheckpoint(f"`{path}` has a compressed member `{shown}`, which torch.save never writes.")
        if member.filename.startswith("/") or ".." in Path(member.filename).parts:
            raise UnsupportedCheckpoint(f"`{path}` has a member `{shown}` that points outside of it.")
    if len({member.filename for member in members}) < len(members):
        raise UnsupportedCheckpoint(f"`{path}` has two members of the same name.")
    if sizes[True] > _UNPACKED_LIMIT:
        raise UnsupportedCheckpoint(f"`{path}` unpacks to more code than any program needs.")
    if sizes[False] > path.stat().st_size:
        raise UnsupportedCheckpoint(f"`{path}` claims more bytes than it has.")
    return members
