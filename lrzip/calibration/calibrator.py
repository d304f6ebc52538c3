"""Calibrate a network: observe its layers on calibration data and prepare the corrections of its factors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lrzip.calibration.corrections import Corrections
from lrzip.calibration.data import CalibrationData, batches_of, choose_samples
from lrzip.calibration.fisher import fisher_sensitivities
from lrzip.calibration.masks import MASK, hides_everything, mask_of
from lrzip.calibration.result import Calibration
from lrzip.calibration.sequential import Fitted, Job, fit_in_sequence
from lrzip.calibration.settings import DEFAULT_CORRECTIONS, CalibrationSettings
from lrzip.calibration.statistics import observe_in_passes
from lrzip.calibration.subjects import Network, Stored, Subject
from lrzip.calibration.truncation import Truncation, measure_output_changes
from lrzip.core.errors import LrzipError, UsageError, as_line, typed_line
from lrzip.core.layers import Layer
from lrzip.core.moments import Arguments, Moments
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decomposition, decomposition_of
from lrzip.linalg.svd import Solver
from lrzip.networks.inputs import described
from lrzip.training.data.samples import Samples

# A mean over some hundred samples suffices to rank layers by sensitivity.
_SENSITIVITY_BATCHES = 2
_LISTED = 8


@dataclass(frozen=True)
class _Batches:
    """Arguments of the runs, and for each the positions that count, or None for all."""

    arguments: Sequence[Arguments]
    masks: Sequence[Tensor | None]


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
    samples = choose_samples(data, settings).bound(subject.inputs)
    is_program = isinstance(subject, Stored) and subject.correctable  # its inputs have an order
    batches = list(batches_of(samples.unaugmented(), settings, subject.dtype, positional=is_program))
    masks = _masks(samples, batches, subject)
    program, corrections, obstacle = _program(subject, settings.corrections, batches[0], measured=measured)
    with _naming(samples, batches[0]):
        statistics = observe_in_passes(
            subject, layers, batches, positions=settings.positions, memory=settings.memory, masks=masks
        )
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
        remarks=[remark for remark in (obstacle, _ignored(samples)) if remark],
        positional=is_program,
    )
    if program is None:
        return calibration
    truncation = None
    if measured:
        decomposition = decomposition or decomposition_of(DEFAULT_DECOMPOSITION, Solver())
        truncation = Truncation(decomposition, statistics, centered=corrections.bias)
    return _with_program(calibration, subject, program, _Batches(batches, masks), truncation)


def _with_program(
    calibration: Calibration,
    subject: Subject,
    program: ExportedProgram,
    batches: _Batches,
    truncation: Truncation | None,
) -> Calibration:
    """Return a calibration with all that requires a program: sensitivities, measured changes, and corrections."""
    samples, statistics = calibration.samples, calibration.statistics
    assert samples is not None, "a program was run on samples"
    named = {subject.weight_name(layer): layer for layer in calibration.layers if layer.name in statistics}
    first, few = batches.arguments[0], batches.arguments[:_SENSITIVITY_BATCHES]
    with _naming(samples, first):
        fisher = fisher_sensitivities(
            program, named, few, seed=calibration.settings.seed, masks=batches.masks[: len(few)]
        )
        changes = measure_output_changes(program, named, few, truncation) if truncation else {}

    def run(job: Job) -> Fitted:
        with _naming(samples, first):
            return fit_in_sequence(program, subject.weight_name, batches.arguments, replace(job, masks=batches.masks))

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
) -> tuple[ExportedProgram | None, Corrections, str | None]:
    """Return the program of a subject, if it has one, the corrections that are requested or possible, and why not."""
    requested = corrections not in (None, Corrections())
    if not subject.correctable:
        if requested:
            raise UsageError("`correct` is for networks (`model=PKG.MOD:NET`) and `.pt2` programs. Leave it out.")
        if measured:
            raise UsageError(
                "`objective=sensitivity` is for networks (`model=PKG.MOD:NET`) and `.pt2` programs. Choose another."
            )
        return None, Corrections(), None
    try:
        return subject.program(arguments), DEFAULT_CORRECTIONS if corrections is None else corrections, None
    except LrzipError as error:
        if requested or measured:
            raise
        return None, Corrections(), f"No corrections: {as_line(str(error))}"


def _masks(samples: Samples, batches: Sequence[Arguments], subject: Subject) -> Sequence[Tensor | None]:
    """Return the positions of each batch that count.

    Raises:
        LrzipError: There are none.
    """
    masks = [mask_of(batch, subject.inputs) for batch in batches] if subject.correctable else [None] * len(batches)
    if hides_everything(masks):
        raise LrzipError(f"`{MASK}` of `{samples.name}` hides every position. Give 1 for the positions that count.")
    return masks


def _ignored(samples: Samples) -> str | None:
    names = ", ".join(f"`{name}`" for name in samples.ignored[:_LISTED])
    return f"Ignored, since the network has no inputs of these names: {names}" if names else None


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
