"""Modules saved by `torch.save(model)`.

Their weights are read without executing anything. With trust the module itself is loaded, and can be written again.
"""

import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, UntrustedFile, one_line
from lrzip.core.kinds import Kind
from lrzip.core.layers import Keep, Layer
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.core.stored import Stored
from lrzip.formats import FORMATS
from lrzip.formats.files.atomic import atomic_file
from lrzip.formats.files.inert import outermost_class
from lrzip.formats.protocols import Checkpoint, Format, Writer
from lrzip.formats.torch.collecting import CollectingWriter
from lrzip.formats.torch.entries import Steps
from lrzip.formats.torch.loaded import separate
from lrzip.formats.torch.nesting import descend, rebuilt
from lrzip.formats.torch.pickled_file import PickledFile
from lrzip.formats.torch.raw import refuse_other_dtypes
from lrzip.formats.torch.saved import opened_pickle
from lrzip.formats.torch.state_dict import save_to
from lrzip.networks.architecture import Architecture
from lrzip.networks.build import importable
from lrzip.networks.recognition import find_layers
from lrzip.networks.state import tensors_of
from lrzip.networks.surgery import leave_fast_paths, replace_layer, resize


class ModuleFile(PickledFile):
    """An open file of a module. With trust the module is loaded and determines the layers."""

    def __init__(self, path: Path, *, key: Key, trust: bool) -> None:
        super().__init__(path, key=key)
        self.trust = trust
        self.knows_layers = trust
        self.is_rewritable = trust
        self._architecture = Architecture.of(self.load()) if trust else None

    def load(self) -> nn.Module:
        """Load the module, which executes code from the file.

        Raises:
            UnsupportedCheckpoint: The class of the module cannot be imported, the file does not load, or several
                modules were chosen.
        """
        if len(self.weights.entries) > 1:
            raise UnsupportedCheckpoint(
                f"`{self.path}`: `key={self.key}` names several modules, of which one is loaded at a time. "
                "Give one, or leave out `trust=True`, which gives their state_dicts."
            )
        module = descend(self.content(), self.steps)
        if not isinstance(module, nn.Module):
            raise UnsupportedCheckpoint(f"`{self.path}` holds `{self.kind}`, which is not a module.")
        return module

    @property
    def steps(self) -> Steps:
        """Keys that lead to the module in a nested file."""
        return next(iter(self.weights.entries.values()))

    def content(self) -> Any:
        """Load everything in the file, which executes code from it.

        Raises:
            UnsupportedCheckpoint: A class cannot be imported, or the file does not load.
        """
        try:
            with importable(Path.cwd()), warnings.catch_warnings():
                # A class whose source differs from the saved one is the user's own, in a newer version.
                warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
                return torch.load(self.path, map_location="cpu", weights_only=False)
        except Exception as error:
            raise UnsupportedCheckpoint(
                f"`{self.path}` is a module of class `{self.kind}`, which cannot be loaded: {one_line(error)}. "
                "Make the class importable, or leave out `trust=True`, which gives its state_dict."
            ) from error

    def network(self) -> nn.Module:
        """Load the module.

        Raises:
            UntrustedFile: The file is not trusted.
        """
        if not self.trust:
            raise UntrustedFile(
                f"`{self.path}` is a module of class `{self.kind}`, and loading it can execute code from the file. "
                "Pass `trust=True` if you know where it came from, or build the network by `model=PKG.MOD:NET`."
            )
        return self.load()

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        With trust they follow from the module, otherwise they are inferred.
        """
        known = architecture or self._architecture
        kinds: dict[str, Kind] | None = {} if self.trust else None  # a module keeps the kinds of its layers
        return find_layers(self.path, self.tensors(), known, untouchable=self.untouchable(), kinds=kinds)


class Module:
    """Files of torch.save that hold a module instead of its state_dict."""

    suffixes: Sequence[str] = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar")
    usage: str | None = None
    is_program = False
    holds_entries = True
    holds_metadata = False
    stores_kinds = True

    def matches(self, path: Path) -> bool:
        """Return whether the outermost object of the file is neither a container nor a tensor."""
        if not path.is_file():
            return False
        with opened_pickle(path) as file:
            return file is not None and outermost_class(file) is not None

    def open(self, path: Path, *, key: Key, trust: bool) -> ModuleFile:
        """Open a file; without `trust` the module is not loaded."""
        return ModuleFile(path, key=key, trust=trust)

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file itself."""
        return [path]

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write the module with layers replaced if the source is trusted, otherwise a state_dict of its weights."""
        if isinstance(source, ModuleFile) and source.trust:
            return _write_module(destination, source, layout, drop)
        state_dict: Format = FORMATS["state_dict"]
        return state_dict.write(destination, source, layout, drop=drop)


@contextmanager
def _write_module(
    destination: Path, source: ModuleFile, layout: Sequence[Entry], drop: Sequence[str]
) -> Iterator[Writer]:
    refuse_other_dtypes(source, layout)
    with atomic_file(destination) as temporary:
        writer = CollectingWriter()
        yield writer
        content = source.content()
        module = _rewritten(descend(content, source.steps), source, layout, writer.tensors)
        with temporary.open("wb") as file:
            save_to(file, rebuilt(content, source.steps, module, drop), source.path)


def _rewritten(
    module: nn.Module, source: ModuleFile, layout: Sequence[Entry], computed: Mapping[str, Tensor]
) -> nn.Module:
    """Return a module with the computed tensors of a layout, and with layers replaced by structures."""
    result = module
    own = tensors_of(result)
    layers = {item.weight.name: item for item in source.layers() if isinstance(item, Layer)}
    kept_biases = {entry.origin for entry in layout if entry.origin == entry.spec.name}
    parts: dict[str, list[Entry]] = {}
    for entry in layout:
        if not entry.copied:
            parts.setdefault(entry.origin, []).append(entry)
    resized: dict[str, Tensor] = {}
    for name, entries in parts.items():
        structure, values = entries[0].structure, [computed[entry.spec.name] for entry in entries]
        if structure is None and own[name].shape == values[0].shape:
            own[name].copy_(values[0])
        elif name in layers and (structure or entries[0].spec.name == name):
            layer = layers[name]
            bias = layer.bias if layer.bias and (structure is None or layer.bias.name not in kept_biases) else None
            stage = replace(layer.stage, shape=tuple(values[0].shape))
            specs = tuple(entry.spec for entry in entries)
            result = replace_layer(result, Stored(layer.module, structure or stage, specs, bias, layer.stage), values)
        elif structure is None and entries[0].spec.name == name:
            resized[name] = values[0]
        else:
            raise LrzipError(
                f"`{name}` is not a layer that factors can replace in a module. Write it with `output=weights.pt`."
            )
    for name, value in resized.items():
        resize(result, name, value)
    leave_fast_paths(result)
    _separate(result, source.untouchable())
    return result


def _separate(model: nn.Module, shared: Container[str]) -> None:
    """Give parameters that are views of a larger storage, which would be stored with them, storages of their own."""
    for name, parameter in model.named_parameters():
        if name not in shared:
            parameter.data = separate(parameter.data)


FORMAT = Module()
