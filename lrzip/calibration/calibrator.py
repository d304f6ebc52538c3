"""Calibration: what goes through a network decides what of its weights matters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.sequential import Fit, Fitted, Job, fit_in_sequence
from lrzip.calibration.settings import DEFAULT_CORRECTIONS, CalibrationSettings
from lrzip.data import read_inputs
from lrzip.data.samples import Arrays, Samples
from lrzip.errors import LrzipError, UsageError
from lrzip.formats import Watchable
from lrzip.inputs import described
from lrzip.layers import Layer, tensor_name
from lrzip.moments import Arguments, Moments, Observe, Statistics, Sums
from lrzip.patches import Inputs
from lrzip.taps import watch_network
from lrzip.tracing import follow

_ITEMSIZE = 8


class Subject(Protocol):
    """What runs on the examples of a calibration."""

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], see: Observe) -> None:
        """Run on batches and show what layers are applied to."""
        ...

    def program(self, arguments: Arguments) -> ExportedProgram | None:
        """Return the program of a run on inputs like these, in which layers can be fitted; None where there is none."""
        ...

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight in the program."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Of inputs of floating point, where that is known."""
        ...


@dataclass(frozen=True)
class Network:
    """A live network, in evaluation mode, with the weights that are to be compressed."""

    model: nn.Module

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], see: Observe) -> None:
        """Run on batches and show what layers are applied to."""
        watch_network(self.model, {layer.name: layer for layer in layers}, batches, see)

    def program(self, arguments: Arguments) -> ExportedProgram:
        """Return what torch.export makes of the network."""
        return follow(self.model, *arguments)

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight in the network."""
        return tensor_name(layer.name, layer.kind, "weight")

    @property
    def dtype(self) -> torch.dtype | None:
        """That of its parameters."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)


@dataclass(frozen=True)
class Stored:
    """A program in a file."""

    file: Watchable

    def watch(self, layers: Sequence[Layer], batches: Sequence[Arguments], see: Observe) -> None:
        """Run on batches and show what layers are applied to."""
        self.file.watch(layers, batches, see)

    def program(self, arguments: Arguments) -> ExportedProgram | None:
        """Return the program, if it is one of torch."""
        del arguments
        return self.file.exported()

    def weight_name(self, layer: Layer) -> str:
        """Return the name of a layer's weight."""
        return layer.weight.name

    @property
    def dtype(self) -> torch.dtype | None:
        """Not known: a program takes what it takes."""
        return None


class Calibrator:
    """Looks at what examples do in a network, and finds factors by it.

    Args:
        subject: What to run.
        examples: Inputs: a tensor (n, …), what `--calibrate` names, or samples. Labels are not looked at.
        settings: How many, and what to do with them.

    Raises:
        LrzipError: The examples cannot be read.
    """

    def __init__(self, subject: Subject, examples: "str | Tensor | Samples", settings: CalibrationSettings) -> None:
        self._subject, self._settings = subject, settings
        self.samples = _samples(examples, settings)
        self.batches = list(_batches(self.samples, settings, subject.dtype))

    @property
    def corrections(self) -> Corrections:
        """What is made up for."""
        return self._settings.corrections if self._settings.corrections is not None else DEFAULT_CORRECTIONS

    def statistics(self, layers: Sequence[Layer]) -> Statistics:
        """Return the moments of the inputs of all layers that the examples reach, in as many passes as memory asks for.

        Raises:
            LrzipError: The network does not take the examples, or makes NaN or Inf of them.
        """
        found: dict[str, Moments] = {}
        for part in _parts(layers, self._settings.memory):
            found |= self._run(partial(self._moments, part))
        for name, moments in found.items():
            if not isfinite(float(moments.second.sum())):
                raise LrzipError(f"`{name}` gets NaN or Inf on `{self.samples.name}`. Look at these inputs.")
        return found

    def _moments(self, layers: Sequence[Layer]) -> dict[str, Moments]:
        sums: dict[str, Sums] = {}
        by_name = {layer.name: layer for layer in layers}

        def see(name: str, inputs: Inputs) -> None:
            layer = by_name[name]
            if name not in sums:
                sums[name] = Sums(layer.input_size, layer.groups, diagonal=layer.kind == "embedding")
            sums[name].add(inputs)

        self._subject.watch(layers, self.batches, see)
        return {name: seen.moments() for name, seen in sums.items()}

    def fit(self, factorize: Sequence[Layer], refit: Sequence[Layer], statistics: Statistics, fit: Fit) -> Fitted:
        """Return factors of layers, and other tensors that change with them; nothing where nothing is to be corrected.

        Raises:
            LrzipError: The network cannot be followed.
        """
        if self.corrections == Corrections():
            return Fitted()
        program = self._subject.program(self.batches[0])
        if program is None:
            if self._settings.corrections is None:
                return Fitted()
            raise UsageError("`--correct` needs the network: `--model PKG.MOD:NET`, or a `.pt2` program. Leave it out.")
        again = refit if self.corrections.refit else ()
        job = Job(
            layers={self._subject.weight_name(layer): layer for layer in (*factorize, *again)},
            factorize=frozenset(layer.name for layer in factorize),
            refit=frozenset(layer.name for layer in again),
            fit=fit,
            statistics=statistics,
            corrections=self.corrections,
        )
        fitted: Fitted = self._run(partial(fit_in_sequence, program, self.batches, job))
        return fitted

    def _run(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (LrzipError, MemoryError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError) as error:
            said = " ".join(str(error).split())[:160].rstrip(".")
            raise LrzipError(
                f"The network does not take the inputs of `{self.samples.name}`, {described(self.batches[0])}: "
                f"{type(error).__name__}: {said}."
            ) from error


def _samples(examples: "str | Tensor | Samples", settings: CalibrationSettings) -> Samples:
    if isinstance(examples, str | Path):
        return read_inputs(str(examples), preparation=settings.preparation)
    if isinstance(examples, Tensor):
        return Samples("the examples", Arrays(examples, None, settings.preparation), augmented=False)
    return examples.unaugmented()


def _batches(samples: Samples, settings: CalibrationSettings, dtype: torch.dtype | None) -> Iterator[Arguments]:
    """Yield batches of one size, since a program may take no other; a remainder is left out."""
    generator = Generator().manual_seed(settings.seed)
    order = torch.randperm(len(samples), generator=generator)[: settings.samples]
    size = min(settings.batch_size, len(order))
    for positions in torch.split(order[: len(order) // size * size], size):
        x, _ = samples.fetch(positions.tolist(), seed=settings.seed)
        cast = pytree.tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, x)
        if isinstance(cast, Mapping):
            yield (), dict(cast)
        else:
            yield (tuple(cast) if isinstance(cast, tuple | list) else (cast,)), {}


def _parts(layers: Sequence[Layer], memory: int) -> Iterator[list[Layer]]:
    """Yield the layers in parts whose second moments take so many bytes together; one layer is the least."""
    part: list[Layer] = []
    taken = 0
    for layer in layers:
        nbytes = _ITEMSIZE * layer.groups * layer.input_size ** (1 if layer.kind == "embedding" else 2)
        if part and taken + nbytes > memory:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += nbytes
    if part:
        yield part
