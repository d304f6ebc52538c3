"""Calibrate a network: observe its layers on calibration data and prepare the corrections of its factors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite

import torch
from torch.export import ExportedProgram

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.data import CalibrationData, batches_of, choose_samples
from lrzip.calibration.fisher import fisher_sensitivities
from lrzip.calibration.result import Calibration
from lrzip.calibration.sequential import Fitted, Job, fit_in_sequence
from lrzip.calibration.settings import DEFAULT_CORRECTIONS, CalibrationSettings
from lrzip.calibration.statistics import observe_in_passes
from lrzip.calibration.subjects import Network, Subject
from lrzip.calibration.truncation import Truncation, measure_output_changes
from lrzip.core.errors import LrzipError, UsageError, typed_line
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Moments
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decomposition, decomposition_of
from lrzip.linalg.svd import Solver
from lrzip.networks.inputs import described
from lrzip.training.data.samples import Samples

# A mean over some hundred samples suffices to rank layers by sensitivity.
_SENSITIVITY_BATCHES = 2


def calibrate(
    subject: Subject,
    data: CalibrationData,
    layers: Sequence[Layer],
    settings: CalibrationSettings,
    *,
    measured: bool = False,
    decomposition: Decomposition | None = None,
) -> Calibration:
    """Run a network on calibration data and return the statistics of its layers.

    Args:
        subject: The network or program to run.
        data: Calibration data; labels are ignored.
        layers: Layers to observe.
        settings: Number of samples and corrections.
        measured: Whether to measure how the outputs change at several ranks of each layer, which takes many runs.
        decomposition: Decomposition with one rank per layer, for these measurements; by default the SVD.

    Raises:
        UsageError: Corrections or measurements are requested that the subject does not allow.
        LrzipError: The calibration data cannot be read, the network does not accept it, or inputs of layers are not
            finite.
    """
    settings = replace(settings, batch_size=subject.batch or settings.batch_size)
    samples = choose_samples(data, settings)
    batches = list(batches_of(samples.unaugmented(), settings, subject.dtype))
    program, corrections = _program(subject, settings.corrections, batches[0], measured=measured)
    with _naming(samples, batches[0]):
        statistics = observe_in_passes(subject, layers, batches, positions=settings.positions, memory=settings.memory)
    _check_finite(statistics, samples)
    calibration = Calibration(
        examples=samples.name,
        count=len(batches) * min(settings.batch_size, len(samples)),
        layers=layers,
        statistics=statistics,
        corrections=corrections,
        samples=samples,
        settings=settings,
        network=subject.model if isinstance(subject, Network) else None,
    )
    if program is None:
        return calibration
    truncation = None
    if measured:
        decomposition = decomposition or decomposition_of(DEFAULT_DECOMPOSITION, Solver())
        truncation = Truncation(decomposition, statistics, centered=corrections.bias)
    return _with_program(calibration, subject, program, batches, truncation)


def _with_program(
    calibration: Calibration,
    subject: Subject,
    program: ExportedProgram,
    batches: Sequence[Arguments],
    truncation: Truncation | None,
) -> Calibration:
    """Return a calibration with all that requires a program: sensitivities, measured changes, and corrections."""
    samples, statistics = calibration.samples, calibration.statistics
    assert samples is not None, "a program was run on samples"
    named = {subject.weight_name(layer): layer for layer in calibration.layers if layer.name in statistics}
    few = batches[:_SENSITIVITY_BATCHES]
    with _naming(samples, batches[0]):
        fisher = fisher_sensitivities(program, named, few, seed=calibration.settings.seed)
        changes = measure_output_changes(program, named, few, truncation) if truncation else {}

    def run(job: Job) -> Fitted:
        with _naming(samples, batches[0]):
            return fit_in_sequence(program, subject.weight_name, batches, job)

    return replace(
        calibration,
        statistics={
            name: replace(moments, fisher=fisher.get(name, 0.0), measured=changes.get(name))
            for name, moments in statistics.items()
        },
        run=run if calibration.corrections != Corrections() else None,
    )


def _program(
    subject: Subject, corrections: Corrections | None, arguments: Arguments, *, measured: bool
) -> tuple[ExportedProgram | None, Corrections]:
    """Return the program of a subject, if it has one, and the corrections that are requested or possible in it."""
    requested = corrections not in (None, Corrections())
    if not subject.correctable:
        if requested:
            raise UsageError("`correct` is for networks (`model=PKG.MOD:NET`) and `.pt2` programs. Leave it out.")
        if measured:
            raise UsageError(
                "`objective=sensitivity` is for networks (`model=PKG.MOD:NET`) and `.pt2` programs. Choose another."
            )
        return None, Corrections()
    try:
        return subject.program(arguments), DEFAULT_CORRECTIONS if corrections is None else corrections
    except LrzipError:
        if requested or measured:
            raise
        return None, Corrections()


def _check_finite(statistics: dict[str, Moments], samples: Samples) -> None:
    for name, moments in statistics.items():
        if not isfinite(float(moments.second.sum())):
            raise LrzipError(f"`{name}` gets NaN or Inf on `{samples.name}`. Check these inputs.")


@contextmanager
def _naming(samples: Samples, inputs: Arguments) -> Iterator[None]:
    """Turn an exception of a network inside the context into one line that names the calibration data."""
    try:
        yield
    except (LrzipError, MemoryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError) as error:
        raise LrzipError(
            f"The network does not take the inputs of `{samples.name}`, {described(inputs)}: {typed_line(error)}."
        ) from error
