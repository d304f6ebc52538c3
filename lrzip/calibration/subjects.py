"""Subjects that a calibration runs: live networks, and programs in files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.export import ExportedProgram

from lrzip.calibration.masks import without_cache
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Observe
from lrzip.formats.protocols import Exported, Observable
from lrzip.networks.inputs import input_names
from lrzip.networks.observe import observe_network
from lrzip.networks.programs.rewrite import fixed_batch
from lrzip.networks.programs.trace import export_network


class Subject(Protocol):
    """A network or a program that a calibration runs."""

    def observe(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and pass the inputs of layers to an observer."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """Names of its inputs, in order."""
        ...

    @property
    def correctable(self) -> bool:
        """Whether there is a program of torch.export, in which layers can be fitted in sequence."""
        ...

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return that program; a live network is traced with the arguments."""
        ...

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight in the program."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of floating-point inputs, if known."""
        ...

    @property
    def batch(self) -> int | None:
        """The only batch size that the program takes, if there is one."""
        ...


@dataclass(frozen=True)
class Network:
    """A live network, in evaluation mode, with the weights that are to be compressed."""

    model: nn.Module
    correctable = True

    def observe(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and pass the inputs of layers to an observer."""
        with without_cache(self.model):
            observe_network(self.model, {layer.path: layer for layer in layers}, batches, observer)

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the arguments of `forward`."""
        return input_names(self.model)

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return the network as exported by torch.export.

        Raises:
            LrzipError: torch.export cannot trace it.
        """
        with without_cache(self.model):
            return export_network(self.model, *arguments)

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight in the network."""
        return layer.kind.tensor_name(layer.path, "weight")

    batch: int | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the floating-point parameters."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)


@dataclass(frozen=True)
class Stored:
    """A program in a file."""

    file: Observable

    @property
    def correctable(self) -> bool:
        """Whether it is a program of torch.export."""
        return isinstance(self.file, Exported)

    def observe(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and pass the inputs of layers to an observer."""
        self.file.observe(layers, batches, observer)

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs of the program."""
        return self.file.input_names()

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return the program."""
        del arguments
        assert isinstance(self.file, Exported), "callers check `correctable`"
        return self.file.exported()

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight."""
        return layer.weight.name

    @property
    def dtype(self) -> torch.dtype | None:
        """None, since the file does not state it."""
        return None

    @property
    def batch(self) -> int | None:
        """The batch size of the program, if it is fixed."""
        return fixed_batch(self.file.exported()) if isinstance(self.file, Exported) else None
