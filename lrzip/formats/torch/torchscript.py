"""TorchScript programs, of which only the weights are read and nothing is executed."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.formats.files.archive import checked_members
from lrzip.formats.files.inert import Inert
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.files.raw import RawTensor
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.torch.pickled import Pickled, mapping_of
from lrzip.formats.torch.raw import RawFile
from lrzip.formats.torch.saved import read_archive

_CODE = r"(.*/)?code/.*"
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  __\w+__ = .*\n)*)", re.MULTILINE)
_LISTED = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


class TorchScriptFile(RawFile):
    """An open file of torch.jit.save."""

    def __init__(self, path: Path) -> None:
        checked_members(path, compressed=_CODE)
        pickled = read_archive(path)
        found: dict[str, RawTensor] = {}
        _gather(pickled, pickled.content, _tensor_names(path), "", found)
        constants = _constants(path)
        if any(len(tensor.shape) > 1 for tensor in constants) and not any(len(t.shape) > 1 for t in found.values()):
            raise UnsupportedCheckpoint(
                f"`{path}` is a frozen TorchScript program: its weights are {len(constants)} constants without names. "
                "Save the program before `torch.jit.freeze`, or the state_dict of its network."
            )
        others = [f"{len(constants)} constants of the program"] if constants else []
        super().__init__(path, "torchscript", found, ["the TorchScript program", *others])

    def refuse_replacing(self, format_: str) -> None:
        """Refuse: a TorchScript program cannot be rewritten."""
        del format_
        raise UnsupportedCheckpoint(
            f"`{self.path}` is a TorchScript program, whose layers cannot be replaced. Save its weights with "
            f"`lrzip export {self.path} --to state-dict` and compress those, or export the model with torch.export."
        )


class TorchScript:
    """Files of torch.jit.save. They are never written, so outputs are not programs."""

    suffixes: Sequence[str] = (".jit",)
    usage: str | None = None
    is_program = False
    holds_entries = False
    holds_metadata = False
    stores_kinds = False

    def matches(self, path: Path) -> bool:
        """Return whether the file is a zip archive with the members of a TorchScript program."""
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"([^/]+/)?(code/.*|constants\.pkl)", name) for name in archive.namelist())

    def open(self, path: Path, *, key: Key, trust: bool) -> TorchScriptFile:
        """Open a file; the program is not loaded, so no trust is needed."""
        del trust
        refuse_key(path, key, "TorchScript")
        return TorchScriptFile(path)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file itself."""
        return [path]

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Refuse: lrzip does not write TorchScript."""
        del source, layout, drop
        raise UnsupportedCheckpoint(f"lrzip does not write TorchScript, as `{destination}` would be. Use .pt or .pt2.")


def _gather(
    pickled: Pickled, value: Inert, names: Mapping[str, Sequence[str]], prefix: str, found: dict[str, RawTensor]
) -> None:
    """Collect the parameters and buffers of a module and its submodules."""
    pickled.count()
    own: list[tuple[str, RawTensor]] = []
    children: list[tuple[str, Inert]] = []
    for name, item in (mapping_of(value.state) or {}).items():
        tensor = pickled.tensor(item)
        if tensor and name in names.get(str(value.name), ()):
            own.append((f"{prefix}{name}", tensor))
        elif isinstance(item, Inert) and str(item.name) in names:
            children.append((f"{prefix}{name}.", item))
    found.update(own)
    for inner, child in children:
        _gather(pickled, child, names, inner, found)


def _constants(path: Path) -> Sequence[RawTensor]:
    """Return the tensors among the constants of a program, in which freezing stores the weights."""
    with zipfile.ZipFile(path) as archive:
        if not any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            return ()
    pickled = read_archive(path, "constants")
    values = pickled.content if isinstance(pickled.content, list | tuple) else ()
    return [tensor for tensor in map(pickled.tensor, values) if tensor]


def _tensor_names(path: Path) -> Mapping[str, Sequence[str]]:
    """Return the names of the parameters and buffers by class, as listed in the code of the program."""
    names: dict[str, Sequence[str]] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            source = re.fullmatch(r"(?:[^/]+/)?code/(.*)\.py", member)
            if source is None:
                continue
            for found in _CLASS.finditer(archive.read(member).decode()):
                listed = " ".join(_LISTED.findall(found[2]))
                names[f"{source[1].replace('/', '.')}.{found[1]}"] = re.findall(r'"([^"]*)"', listed)
    return names


FORMAT = TorchScript()
