"""Archives of torch.export.save: the weights as raw bytes, and the strings stored beside the program."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.archive import checked_members
from lrzip.formats.files.raw import Block, RawTensor, members_of

_MODEL = r"([^/]+)/models/([^/]+)\.json"
_OLD = "serialized_exported_program.json"
_OLD_WEIGHTS = r"[^/]+/data/weights/[^/]+\.pt"
_COMPILED = r"[^/]+/data/aotinductor/.*"
_LISTING_LIMIT = 1 << 29
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu,
    34: torch.uint32,
    35: torch.uint64,
}
"""Dtypes by the codes of the format."""


@dataclass(frozen=True)
class ProgramArchive:
    """Content of a .pt2 archive that is read without loading the program.

    Attributes:
        tensors: Parameters and buffers by name.
        pickled: Names of the tensors that are stored as pickles.
        extra: Blocks of the files stored beside the program, by name.
    """

    tensors: Mapping[str, RawTensor]
    pickled: Sequence[str]
    extra: Mapping[str, Block]

    @classmethod
    def read(cls, path: Path) -> "ProgramArchive":
        """Read the directory of an archive, and the list of its weights.

        Raises:
            UnsupportedCheckpoint: The archive is damaged, or does not hold exactly one program with its weights.
        """
        checked_members(path)
        members = members_of(path)
        root = _root(path, list(members))
        config = _listing(path, members, root)
        extra = f"{root}/extra/"
        return cls(
            _tensors(path, config, members, root),
            [name for name, item in config.items() if item["use_pickle"]],
            {name.removeprefix(extra): block for name, block in members.items() if name.startswith(extra)},
        )


def holds_program(path: Path) -> bool:
    """Return whether a file is a zip archive with the members of a program."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.fullmatch(_MODEL, name) or name == _OLD for name in archive.namelist())


def block_bytes(path: Path, block: Block) -> bytes:
    """Read a block of a file."""
    with path.open("rb") as file:
        file.seek(block.start)
        return file.read(block.nbytes)


def _root(path: Path, members: Sequence[str]) -> str:
    """Return the root folder of the archive after checking that it holds a single program."""
    if any(name == _OLD or re.fullmatch(_OLD_WEIGHTS, name) for name in members):
        raise UnsupportedCheckpoint(
            f"`{path}` is a torch.export program as an older torch saved it. Load and save it with torch 2.10 or later."
        )
    if any(re.fullmatch(_COMPILED, name) for name in members):
        raise UnsupportedCheckpoint(
            f"`{path}` holds a program compiled by AOTInductor. Compress the .pt2 that it was compiled from."
        )
    roots = [(found[1], found[2]) for name in members if (found := re.fullmatch(_MODEL, name))]
    if len(roots) != 1 or roots[0][1] != "model":
        names = ", ".join(name for _, name in roots)
        raise UnsupportedCheckpoint(
            f"`{path}` holds the programs {names}; lrzip reads a single one named model, as torch.export.save writes."
        )
    return roots[0][0]


def _listing(path: Path, members: Mapping[str, Block], root: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the description of each weight, by name."""
    listing = members.get(f"{root}/data/weights/model_weights_config.json")
    if listing is None:
        raise UnsupportedCheckpoint(f"`{path}` does not store its weights. Save the program again with them.")
    if listing.nbytes > _LISTING_LIMIT:
        raise UnsupportedCheckpoint(f"`{path}` lists its weights in {listing.nbytes} bytes, more than any file needs.")
    if block_bytes(path, members.get(f"{root}/byteorder", Block(0, 0))) == b"big":
        raise UnsupportedCheckpoint(f"`{path}` is big-endian, and lrzip reads little-endian files.")
    config = json.loads(block_bytes(path, listing))["config"]
    return {str(name): dict(item) for name, item in config.items()}


def _tensors(
    path: Path, config: Mapping[str, Mapping[str, Any]], members: Mapping[str, Block], root: str
) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    for name, item in config.items():
        file, meta = item["path_name"], item["tensor_meta"]
        block = members.get(f"{root}/data/weights/{file}")
        if block is None or "/" in file:
            raise UnsupportedCheckpoint(f"`{path}` puts `{name}` into {file!r}, which is not a member of it.")
        shape, strides = (tuple(count["as_int"] for count in meta[key]) for key in ("sizes", "strides"))
        tensor = RawTensor(block, DTYPES[meta["dtype"]], shape, strides, meta["storage_offset"]["as_int"])
        # The place of the tensor within the pickle is unknown; it is never read as raw bytes.
        tensors[name] = replace(tensor, block=Block(0, 1 << 62)) if item["use_pickle"] else tensor
    return tensors
