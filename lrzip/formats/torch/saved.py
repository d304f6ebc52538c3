"""Read files of torch.save as inert objects, without executing their pickle: zip archives and legacy files."""

import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.archive import checked_members
from lrzip.formats.files.bounded import BoundedReader
from lrzip.formats.files.inert import parse_pickle, read_pickle
from lrzip.formats.files.raw import Block, members_of
from lrzip.formats.torch.pickled import STORAGES, Pickled

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 3  # a magic number, the protocol's version, and a description of the machine precede the object


@contextmanager
def opened_pickle(path: Path) -> Iterator[IO[bytes] | None]:
    """Open a file of torch.save at the pickle of the saved object; yield None for other files."""
    with path.open("rb") as file, ExitStack() as stack:
        head = file.read(len(_LEGACY))
        if head == _LEGACY:
            bounded: Any = BoundedReader(path)
            stack.callback(bounded.close)
            for _ in range(_LEGACY_PICKLES):
                read_pickle(bounded)
            yield bounded
            return
        members: Sequence[zipfile.ZipInfo] = ()
        if head.startswith(b"PK\x03\x04"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = [member for member in archive.infolist() if Path(member.filename).name == "data.pkl"]
        stored = [member for member in members if member.compress_type == zipfile.ZIP_STORED]
        yield stack.enter_context(archive.open(stored[0])) if stored else None


def read_file(path: Path) -> Pickled:
    """Read a file of torch.save, zip or legacy, as inert objects."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            bounded = BoundedReader(path)
            with closing(bounded):
                return _read_legacy(bounded)
    checked_members(path)
    return read_archive(path)


def read_archive(path: Path, what: str = "data") -> Pickled:
    """Read the pickle in a zip archive that was checked, and locate its storages.

    Args:
        path: Path of the archive.
        what: Name of the pickle and of the folder of its storages: `data`, or `constants` of TorchScript programs.
    """
    members = members_of(path)
    name = next(name for name in members if name.rpartition("/")[2] == f"{what}.pkl")
    root = name.removesuffix(f"{what}.pkl")
    with path.open("rb") as file:
        order = members.get(f"{root}byteorder", Block(0, 0))
        file.seek(order.start)
        if file.read(order.nbytes) == b"big":
            raise UnsupportedCheckpoint(f"`{path}` is big-endian, and lrzip reads little-endian files.")
        file.seek(members[name].start)
        parsed = parse_pickle(file.read(members[name].nbytes))
    folder = f"{root}{what}/"
    blocks = {n.removeprefix(folder): block for n, block in members.items() if n.startswith(folder)}
    return Pickled(parsed.content, blocks, members[name].nbytes, parsed.handles, parsed.calls)


def _read_legacy(file: Any) -> Pickled:
    """Read a legacy file: four pickles, a list of storages, and each storage as its length and bytes."""
    heads = [parse_pickle(file) for _ in range(_LEGACY_PICKLES)]
    start = file.tell()
    parsed = parse_pickle(file)
    content, handles = parsed.content, parsed.handles
    left = file.tell() - start
    stored = [handle.identity for handle in handles if handle.identity[0] == "storage"]
    sizes = {str(key): STORAGES[of.name].itemsize for _, of, key, *_ in stored if of.name in STORAGES}
    listed = parse_pickle(file)
    keys = listed.content
    blocks: dict[str, Block] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        block = Block(file.tell(), count * sizes[str(key)])
        if count < 0 or block.start + block.nbytes > file.size:
            raise ValueError("its storages exceed the file")
        blocks[str(key)] = block
        file.seek(block.start + block.nbytes)
    calls = [call for part in (*heads, parsed, listed) for call in part.calls]
    return Pickled(content, blocks, left, handles, calls)
