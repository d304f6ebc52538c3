"""What a calibration runs: a live network, or a program in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.export import ExportedProgram

from lrzip.core.layers import Layer, tensor_name
from lrzip.core.moments import Arguments, Observe
from lrzip.formats.protocols import Exported, Observable
from lrzip.networks.observe import observe_network
from lrzip.networks.programs.rewrite import fixed_batch
from lrzip.networks.programs.trace import export_network


class Subject(Protocol):
    """What runs on the examples of a calibration."""

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and show what layers are applied to."""
        ...

    @property
    def correctable(self) -> bool:
        """Whether it has a program of torch, in which layers can be fitted one after the other."""
        ...

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return that program, of a run on inputs like these."""
        ...

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight in the program."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Of inputs of floating point, where that is known."""
        ...

    @property
    def batch(self) -> int | None:
        """The only size of a batch that it takes, if there is one."""
        ...


@dataclass(frozen=True)
class Network:
    """A live network, in evaluation mode, with the weights that are to be compressed."""

    model: nn.Module
    correctable = True

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and show what layers are applied to."""
        observe_network(self.model, {layer.path: layer for layer in layers}, batches, observer)

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return what torch.export makes of the network."""
        return export_network(self.model, *arguments)

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight in the network."""
        return tensor_name(layer.path, layer.kind, "weight")

    batch: int | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """That of its parameters."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)


@dataclass(frozen=True)
class Stored:
    """A program in a file."""

    file: Observable

    @property
    def correctable(self) -> bool:
        """Whether it is one of torch."""
        return isinstance(self.file, Exported)

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], observer: Observe) -> None:
        """Run on batches and show what layers are applied to."""
        self.file.observe(layers, batches, observer)

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return the program."""
        del arguments
        assert isinstance(self.file, Exported), "only what is correctable is asked"
        return self.file.exported()

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight."""
        return layer.weight.name

    @property
    def dtype(self) -> torch.dtype | None:
        """Not known: a program takes what it takes."""
        return None

    @property
    def batch(self) -> int | None:
        """That of the program, if it is fixed there."""
        return fixed_batch(self.file.exported()) if isinstance(self.file, Exported) else None
