"""Open files of torch.save whose pickle is not executed: modules of any class, and state_dicts beside other objects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lrzip.core.errors import UnsupportedCheckpoint, UntrustedFile
from lrzip.core.options import Key
from lrzip.formats import FORMATS
from lrzip.formats.files.inert import Inert
from lrzip.formats.files.raw import RawTensor
from lrzip.formats.torch.entries import find_weights
from lrzip.formats.torch.nesting import beside, merged
from lrzip.formats.torch.pickled import Pickled, mapping_of
from lrzip.formats.torch.raw import RawFile
from lrzip.formats.torch.saved import read_file


class PickledFile(RawFile):
    """An open file of torch.save whose pickle is not executed.

    Attributes:
        kind: Class of the module in the file, or None for a state_dict.
        refusal: Reason why the entries beside the tensors cannot be written again.
    """

    def __init__(self, path: Path, *, key: Key, refusal: str = "") -> None:
        pickled = read_file(path)
        content: Any = pickled.tree(pickled.content)
        if not isinstance(content, dict) and isinstance(pickled.content, Inert):
            raise UnsupportedCheckpoint(
                f"`{path}` is a pickled object of class `{pickled.content.name}`, not a module or a state_dict. "
                "Save its weights with `torch.save(model.state_dict(), path)` and compress those."
            )
        self.weights = find_weights(path, _outline(content), key)
        self.rivals = self.weights.rivals
        state = merged(content, self.weights.entries)
        tensors = {
            name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, RawTensor)
        }
        kinds = [_class_of(pickled, steps) for steps in self.weights.entries.values()]
        self.kind = next(filter(None, kinds), None)
        self.refusal = refusal or (
            f"`{path}` holds pickled Python objects, not only tensors. Write the weights alone with "
            "`output=NAME.safetensors`, or pass `trust=True`, which allows the file to run code."
        )
        others = [f"the code and attributes of `{self.kind}`"] if self.kind else []
        format_ = "module" if self.kind else "state_dict"
        others += [str(name) for name in state if name not in tensors]
        super().__init__(path, format_, tensors, others + beside(content, self.weights.entries.values()))
        self.key = self.weights.key

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
