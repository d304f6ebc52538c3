"""Open files of torch.save whose pickle is not executed: modules of any class, and state_dicts beside other objects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lrzip.core.errors import UnsupportedCheckpoint, UntrustedFile
from lrzip.formats import FORMATS
from lrzip.formats.files.inert import Inert
from lrzip.formats.files.raw import RawTensor
from lrzip.formats.torch.nesting import beside, descend, find_weights
from lrzip.formats.torch.pickled import Pickled, mapping_of
from lrzip.formats.torch.raw import RawFile
from lrzip.formats.torch.saved import read_file


class PickledFile(RawFile):
    """An open file of torch.save whose pickle is not executed.

    Attributes:
        kind: Class of the module in the file, or None for a state_dict.
        refusal: Reason why the entries beside the tensors cannot be written again.
    """

    def __init__(self, path: Path, *, key: str | None, refusal: str = "") -> None:
        pickled = read_file(path)
        content: Any = pickled.tree(pickled.content)
        if not isinstance(content, dict) and isinstance(pickled.content, Inert):
            raise UnsupportedCheckpoint(
                f"`{path}` is a pickled object of class `{pickled.content.name}`, not a module or a state_dict. "
                "Save its weights with `torch.save(model.state_dict(), path)` and compress those."
            )
        steps = find_weights(path, _outline(content), key)
        state = descend(content, steps)
        tensors = {str(name): value for name, value in state.items() if isinstance(value, RawTensor)}
        self.kind = _class_of(pickled, steps)
        self.refusal = refusal
        others = [f"the code and attributes of `{self.kind}`"] if self.kind else []
        format_ = "module" if self.kind else "state_dict"
        super().__init__(path, format_, tensors, others + beside(content, steps, tensors))
        self.key = ".".join(steps)

    def refuse_replacing(self, format_: str) -> None:
        """Refuse an output that would hold the entries beside the tensors, which would have to be loaded."""
        if self.kind is None and FORMATS[format_].holds_entries:
            raise UntrustedFile(self.refusal)


def _class_of(pickled: Pickled, steps: Sequence[str]) -> str | None:
    """Return the class of the object at an entry, or None if it is not a module."""
    value = pickled.content
    for step in steps:
        value = (mapping_of(value) or {}).get(step)
    return str(value.name or "unknown") if pickled.module(value) is not None else None


def _outline(tree: Any) -> Any:
    """Return nested dicts with meta tensors, which have shapes and no data."""
    if isinstance(tree, RawTensor):
        return torch.empty(tree.shape, device="meta")
    return {name: _outline(value) for name, value in tree.items()} if isinstance(tree, dict) else tree
