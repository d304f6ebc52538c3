"""Calibrate a checkpoint or a live network, and fit factors to the calibration."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from lrzip.calibration.calibrator import calibrate as run_calibration
from lrzip.calibration.data import CalibrationData
from lrzip.calibration.result import Calibration
from lrzip.calibration.sequential import Fitted
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.stored import holds_statistics, load_statistics, save_statistics
from lrzip.calibration.subjects import Network, Stored, Subject
from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.options import Opening
from lrzip.core.plan import Plan
from lrzip.core.progress import Progress
from lrzip.core.report import CalibrationSummary
from lrzip.formats.files.atomic import check_output
from lrzip.formats.load import load_into
from lrzip.formats.protocols import Loadable, Observable, Source
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import match_names
from lrzip.networks.state import copy_of
from lrzip.pipeline.factorize import Factorizer, factorize_all


def calibrate_layers(
    subject: Callable[[], Subject],
    data: CalibrationData,
    layers: Sequence[Layer],
    settings: CalibrationSettings,
    *,
    measured: bool,
) -> Calibration:
    """Return the statistics of the inputs of layers on calibration data, or those that an earlier run stored.

    Args:
        subject: Returns the network or program to run; not called for stored statistics.
        data: Calibration data, or a file of statistics.
        layers: Layers to observe.
        settings: Number of samples, memory and corrections.
        measured: Whether to measure how some ranks of each layer change the outputs of the network.

    Raises:
        UsageError: There is no network to run, or stored statistics are to be corrected or saved.
    """
    if isinstance(data, str | Path) and holds_statistics(Path(data)):
        if settings.corrections or settings.save or settings.reconstruct:
            raise UsageError(f"`{data}` holds statistics, so there is nothing to run, correct or save.")
        return load_statistics(Path(data), layers)
    found = run_calibration(subject(), data, layers, settings, measured=measured)
    if settings.save:
        save_statistics(found, settings.save)
    return found


def check_statistics_output(settings: CalibrationSettings, source: Source, *, force: bool) -> None:
    """Refuse a file of statistics that could not be written, before any work is done."""
    if settings.save:
        check_output(settings.save, source.path, force=force)


def fit_factors(
    factorizer: Factorizer, plan: Plan, calibration: Calibration | None, progress: Progress
) -> tuple[Factorizer, Mapping[str, Tensor]]:
    """Return the factorizer with the factors that a calibration fits, and the other tensors that change with them.

    Raises:
        UsageError: A reconstruction is asked for and there is no network to train, or the plan replaces groups.
    """
    if calibration is None:
        return factorizer, {}
    joint = next((decision for decision in plan.factorize if len(decision.replacements) > 1), None)
    if joint is not None:
        raise UsageError(f"A calibration fits layers one by one, and the plan replaces `{joint.group.name}` together.")
    decisions = {decision.layer.name: decision for decision in plan.factorize}
    fitted = calibration.fit(
        [decision.layer for decision in plan.factorize],
        lambda layer, weight, moments: factorizer.fit(decisions[layer.name], weight, moments),
    )
    factorizer = replace(factorizer, statistics=calibration.statistics, fitted=fitted.factors)
    if not calibration.settings.reconstruct:
        return factorizer, fitted.tensors
    if calibration.network is None or calibration.samples is None:
        raise UsageError("`reconstruct` trains a network, so it needs `model=PKG.MOD:NET` and calibration data.")
    from lrzip.calibration.reconstruction import reconstruct  # imports packages for training

    factors = {
        decision.layer.name: found.members[0] for decision, found, _ in factorize_all(plan, factorizer, progress)
    }
    steps, seed = calibration.settings.reconstruct, calibration.settings.seed
    start = Fitted(factors, fitted.tensors)
    trained = reconstruct(calibration.network, plan, start, calibration.samples, steps=steps, seed=seed)
    return replace(factorizer, fitted=trained.factors), trained.tensors


def calibration_summary(calibration: Calibration, changed: Iterable[str]) -> CalibrationSummary:
    """Return the part of a report that describes a calibration."""
    corrections = str(calibration.corrections)
    return CalibrationSummary(
        calibration.examples,
        calibration.count,
        corrections,
        tuple(changed),
        dict(calibration.scarce),
        tuple(calibration.remarks),
    )


def subject_of(source: Source, model: nn.Module | None, opening: Opening) -> Subject:
    """Return what a calibration runs: the network with the weights of the source, or the program that it holds.

    Raises:
        UsageError: The source holds neither.
    """
    network = network_of(source, model, opening)
    if network is not None:
        return Network(network.eval())
    if isinstance(source, Observable):
        return Stored(source)
    raise UsageError(f"`calibrate` runs the network, and `{source.path}` holds only weights. Give `model=PKG.MOD:NET`.")


def network_of(source: Source, model: nn.Module | None, opening: Opening) -> nn.Module | None:
    """Return a network with the weights of a source: a copy of the architecture, or the network in the source.

    Programs have none: their modules only hold tensors.
    """
    if model is not None:
        return load_into(copy_of(model), source.path, key=opening.key, trust=opening.trust)
    if isinstance(source, Loadable) and not isinstance(source, Observable):
        return source.network()
    return None


def by_checkpoint_name(
    tensors: Mapping[str, Tensor], source: Source, architecture: Architecture | None
) -> Mapping[str, Tensor]:
    """Return tensors of a network by their names in its checkpoint."""
    if architecture is None or not tensors:
        return tensors
    names = match_names(source.path, source.tensors(), architecture)
    return {names[name].name: tensor for name, tensor in tensors.items()}
