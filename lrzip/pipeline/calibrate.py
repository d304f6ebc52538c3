"""Compression that examples guide: what they do in a network, and what follows for its factors."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from lrzip.calibration.calibrator import calibrate as run_calibration
from lrzip.calibration.result import Calibration
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.stored import holds_statistics, load_statistics, save_statistics
from lrzip.calibration.subjects import Network, Stored, Subject
from lrzip.core.errors import UsageError
from lrzip.core.layers import Keep, Layer
from lrzip.core.plan import Plan
from lrzip.core.progress import Progress
from lrzip.core.report import CalibrationSummary
from lrzip.formats import FORMATS
from lrzip.formats.files.atomic import check_output
from lrzip.formats.load import load_into
from lrzip.formats.protocols import Checkpoint, Loadable, Observable
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import match_names
from lrzip.networks.surgery import assemble
from lrzip.pipeline.factorize import Work, factorize_all


def look_at_inputs(
    checkpoint: Checkpoint,
    model: nn.Module | None,
    examples: str | Path | Tensor | None,
    settings: CalibrationSettings | None,
    layers: Callable[[], Sequence[Layer | Keep]],
    *,
    measured: bool,
    key: str | None,
    trust: bool,
    force: bool,
) -> Calibration | None:
    """Return what examples do in the network of a checkpoint and in some of its layers; None without examples.

    Raises:
        UsageError: There is no network to run.
    """
    if examples is None:
        return None
    chosen, found = settings or CalibrationSettings(), [item for item in layers() if isinstance(item, Layer)]
    if isinstance(examples, str | Path) and holds_statistics(Path(examples)):
        if chosen.corrections or chosen.save or chosen.reconstruct:
            raise UsageError(f"`{examples}` is what a calibration saw, so there is nothing to run, correct or save.")
        return load_statistics(Path(examples), found)
    if chosen.save:
        check_output(chosen.save, checkpoint.path, force=force)
    subject = subject_of(checkpoint, model, key=key, trust=trust)
    seen = run_calibration(subject, examples, found, chosen, measured=measured)
    if chosen.save:
        save_statistics(seen, chosen.save)
    return seen


def fit_calibrated(
    work: Work, plan: Plan, seen: Calibration | None, progress: Progress
) -> tuple[Work, Mapping[str, Tensor]]:
    """Return the work with what a calibration says of it, and the other tensors that change with the factors.

    Raises:
        UsageError: A reconstruction is asked for, and there is no network to train.
    """
    if seen is None:
        return work, {}
    decisions = {decision.layer.name: decision for decision in plan.factorize}
    fitted = seen.fit(
        [decision.layer for decision in plan.factorize],
        lambda layer, weight, moments: work.fit(decisions[layer.name], weight, moments),
    )
    work = replace(work, statistics=seen.statistics, fitted=fitted.factors)
    if not seen.settings.reconstruct:
        return work, fitted.tensors
    if seen.network is None or seen.samples is None:
        raise UsageError("`--reconstruct` trains a network, so it needs `--model PKG.MOD:NET` and examples.")
    from lrzip.calibration.reconstruction import reconstruct  # which takes the packages that train

    factors = {decision.layer.name: found for decision, found, _ in factorize_all(plan, work, progress)}
    steps, seed = seen.settings.reconstruct, seen.settings.seed
    done = reconstruct(seen.network, plan, factors, fitted.tensors, seen.samples, steps=steps, seed=seed)
    return replace(work, fitted=done.factors), done.tensors


def calibration_summary(seen: Calibration, changed: Iterable[str]) -> CalibrationSummary:
    """Return what a report says of a calibration."""
    return CalibrationSummary(seen.examples, seen.count, str(seen.corrections), tuple(changed), dict(seen.scarce))


def subject_of(checkpoint: Checkpoint, model: nn.Module | None, *, key: str | None, trust: bool) -> Subject:
    """Return what a calibration runs: the network with the weights of the checkpoint, or the program in it.

    Raises:
        UsageError: There is neither.
    """
    network = network_in(checkpoint, model, key=key, trust=trust)
    if network is not None:
        return Network(network.eval())
    if isinstance(checkpoint, Observable):
        return Stored(checkpoint)
    raise UsageError(
        f"`--calibrate` runs the network, and `{checkpoint.path}` holds only weights. Give `--model PKG.MOD:NET`."
    )


def network_in(checkpoint: Checkpoint, model: nn.Module | None, *, key: str | None, trust: bool) -> nn.Module | None:
    """Return a network with the weights of a checkpoint: a copy of the model, or what the file brings, if it does.

    A program is none, since its modules only hold tensors.
    """
    if model is not None:
        return load_into(copy.deepcopy(model), checkpoint.path, key=key, trust=trust)
    if isinstance(checkpoint, Loadable) and not FORMATS[checkpoint.format].is_program:
        return checkpoint.network()
    return None


def apply_plan(model: nn.Module, plan: Plan, work: Work, seen: Calibration | None, progress: Progress) -> nn.Module:
    """Replace the layers of a plan by their factors, in place, with what a calibration makes up for.

    Returns:
        The network, or the chain where that stands for the network itself.
    """
    work, changed = fit_calibrated(work, plan, seen, progress)
    made = {decision.layer.name: factors for decision, factors, _ in factorize_all(plan, work, progress)}
    return assemble(model, plan, made, changed)


def by_file_names(
    tensors: Mapping[str, Tensor], checkpoint: Checkpoint, architecture: Architecture | None
) -> Mapping[str, Tensor]:
    """Return tensors of a network by their names in its checkpoint."""
    if architecture is None or not tensors:
        return tensors
    names = match_names(checkpoint.path, checkpoint.tensors(), architecture)
    return {names[name].name: tensor for name, tensor in tensors.items()}
