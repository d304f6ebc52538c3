"""Calibration: what goes through a network decides what of its weights matters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.fisher import fisher_sensitivities
from lrzip.calibration.sequential import Fit, Fitted, Job, fit_in_sequence
from lrzip.calibration.settings import DEFAULT_CORRECTIONS, CalibrationSettings
from lrzip.calibration.subjects import Network, Subject
from lrzip.calibration.truncation import measure
from lrzip.core.activations import Inputs
from lrzip.core.errors import LrzipError, UsageError, typed_line
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Moments, Statistics, Sums
from lrzip.decompositions import DEFAULT_DECOMPOSITION, decomposition_of
from lrzip.linalg.svd import Solver
from lrzip.networks.inputs import described
from lrzip.ranks.objectives import CALIBRATED_OBJECTIVE, DEFAULT_OBJECTIVE
from lrzip.training.data.read import read_inputs
from lrzip.training.data.samples import Arrays, Samples

_ITEMSIZE = 8
# A mean over some hundred examples says well enough which layers matter.
_WEIGHING_BATCHES = 2


@dataclass(frozen=True)
class Calibration:
    """What examples do in a network, and what that says of its layers.

    Attributes:
        examples: What people call them.
        count: How many were used.
        layers: The layers that were looked at.
        statistics: Of those that the examples reach.
        corrections: What factors will make up for.
        run: Makes them: fits layers in the order in which they run. None where nothing is made up for.
        samples: What was used; None where it is not at hand.
        settings: How it was done.
        network: That ran; None if it is a program.
    """

    examples: str
    count: int
    layers: Sequence[Layer]
    statistics: Statistics
    corrections: Corrections = field(default_factory=Corrections)
    run: Callable[[Job], Fitted] | None = None
    samples: Samples | None = None
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    network: nn.Module | None = None

    @property
    def planned(self) -> Statistics:
        """The moments that ranks are chosen by: without means, where those that are missed are made up for."""
        if not self.corrections.bias:
            return self.statistics
        return {name: moments.centered for name, moments in self.statistics.items()}

    @property
    def objective(self) -> str:
        """The objective by which ranks are chosen best with what is known."""
        known = all(moments.fisher is not None for moments in self.statistics.values())
        return CALIBRATED_OBJECTIVE if known and self.statistics else DEFAULT_OBJECTIVE

    @property
    def scarce(self) -> Mapping[str, tuple[int, int]]:
        """The layers that were seen in fewer positions than their weight has columns: both numbers, by name."""
        sizes = {layer.name: layer.input_size for layer in self.layers if layer.kind != "embedding"}
        counts = {name: moments.count for name, moments in self.statistics.items()}
        return {name: (counts[name], size) for name, size in sizes.items() if counts.get(name, size) < size}

    def fit(self, factorize: Sequence[Layer], fit: Fit) -> Fitted:
        """Return the factors of some layers, which make up for each other, and other tensors that change with them.

        Raises:
            LrzipError: torch.export cannot follow the network.
        """
        if self.run is None:
            return Fitted()
        chosen = {layer.name for layer in factorize}
        others = [layer for layer in self.layers if layer.name not in chosen and self.corrections.refit]
        return self.run(
            Job(
                layers=[layer for layer in (*factorize, *others) if layer.name in self.statistics],
                factorize=frozenset(chosen),
                fit=fit,
                statistics=self.statistics,
                corrections=self.corrections,
                positions=self.settings.positions,
            )
        )


def calibrate(
    subject: Subject,
    examples: str | Path | Tensor | Samples,
    layers: Sequence[Layer],
    settings: CalibrationSettings,
    *,
    measured: bool = False,
) -> Calibration:
    """Run a network on examples and look at what its layers get, in as many passes as memory asks for.

    Args:
        subject: What to run.
        examples: A tensor (n, …), what `--calibrate` names, or samples. Labels are not looked at.
        layers: To look at.
        settings: How many examples, and what to make up for.
        measured: Whether to measure what some ranks of each layer do to the outputs, which takes many runs.

    Raises:
        UsageError: Corrections or measurements are asked for that the subject cannot have.
        LrzipError: The examples cannot be read, the network does not take them, or it makes NaN or Inf of them.
    """
    settings = replace(settings, batch_size=subject.batch or settings.batch_size)
    samples = _samples(examples, settings)
    batches = list(_batches(samples.unaugmented(), settings, subject.dtype))
    program, corrections = _program(subject, settings.corrections, batches[0], measured=measured)
    found: dict[str, Moments] = {}
    with _named(samples, batches[0]):
        for part in _parts(layers, settings.memory):
            found |= moments_of(subject, part, batches, settings.positions)
    for name, moments in found.items():
        if not isfinite(float(moments.second.sum())):
            raise LrzipError(f"`{name}` gets NaN or Inf on `{samples.name}`. Look at these inputs.")

    count = len(batches) * min(settings.batch_size, len(samples))
    network = subject.model if isinstance(subject, Network) else None
    seen = Calibration(
        samples.name, count, layers, found, corrections, samples=samples, settings=settings, network=network
    )
    if program is None:
        return seen
    with _named(samples, batches[0]):
        named = {subject.weight_name(layer): layer for layer in layers if layer.name in found}
        few = batches[:_WEIGHING_BATCHES]
        counts = fisher_sensitivities(program, named, few, seed=settings.seed)
        decomposition = decomposition_of(DEFAULT_DECOMPOSITION, Solver())
        changes = measure(program, named, few, found, decomposition, centered=corrections.bias) if measured else {}
    weighed = {
        name: replace(moments, fisher=counts.get(name, 0.0), measured=changes.get(name))
        for name, moments in found.items()
    }

    def run(job: Job) -> Fitted:
        with _named(samples, batches[0]):
            return fit_in_sequence(program, subject.weight_name, batches, job)

    return replace(seen, statistics=weighed, run=run if corrections != Corrections() else None)


def _program(
    subject: Subject, asked: Corrections | None, arguments: Arguments, *, measured: bool
) -> tuple[ExportedProgram | None, Corrections]:
    """Return the program of a subject, if it has one, and what can be made up for in it."""
    if not subject.correctable:
        if asked not in (None, Corrections()):
            raise UsageError("`--correct` is for networks (`--model PKG.MOD:NET`) and `.pt2` programs. Leave it out.")
        if measured:
            raise UsageError(
                "`--objective sensitivity` is for networks (`--model PKG.MOD:NET`) and `.pt2` programs. Choose another."
            )
        return None, Corrections()
    try:
        return subject.program(arguments), DEFAULT_CORRECTIONS if asked is None else asked
    except LrzipError:
        if asked not in (None, Corrections()) or measured:
            raise
        return None, Corrections()


def moments_of(
    subject: Subject, layers: Sequence[Layer], batches: Sequence[Arguments], positions: int
) -> dict[str, Moments]:
    """Return the moments of what layers get, at about so many positions, by name, for those that are reached."""
    sums: dict[str, Sums] = {}
    most = max(positions // len(batches), 1)
    by_name = {layer.name: layer for layer in layers}

    def observer(name: str, inputs: Inputs) -> None:
        layer = by_name[name]
        if name not in sums:
            sums[name] = Sums(layer.input_size, layer.groups, diagonal=layer.kind == "embedding")
        sums[name].add(inputs, most=most)

    subject.watch(layers, batches, observer)
    return {name: seen.moments() for name, seen in sums.items()}


@contextmanager
def _named(samples: Samples, inputs: Arguments) -> Iterator[None]:
    """Turn what goes wrong in running a network on examples into one line about the examples."""
    try:
        yield
    except (LrzipError, MemoryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError) as error:
        raise LrzipError(
            f"The network does not take the inputs of `{samples.name}`, {described(inputs)}: {typed_line(error)}."
        ) from error


def _samples(examples: str | Path | Tensor | Samples, settings: CalibrationSettings) -> Samples:
    """Return as many of the examples as are wanted, picked at random."""
    if isinstance(examples, str | Path):
        found = read_inputs(str(examples), preparation=settings.preparation)
    elif isinstance(examples, Tensor):
        found = Samples("the examples", Arrays(examples, None, settings.preparation))
    else:
        found = examples
    order = torch.randperm(len(found), generator=Generator().manual_seed(settings.seed))
    return found.subset(order[: settings.samples])


def _batches(samples: Samples, settings: CalibrationSettings, dtype: torch.dtype | None) -> Iterator[Arguments]:
    """Yield batches of one size, since a program may take no other; a remainder is left out."""
    size = min(settings.batch_size, len(samples))
    for start in range(0, len(samples) // size * size, size):
        x, _ = samples.fetch(range(start, start + size), seed=settings.seed)
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
