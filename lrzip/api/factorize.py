"""Factorize the layers of a live network, without a file."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from lrzip.calibration.calibrator import calibrate as run_calibration
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.subjects import Network
from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.progress import Progress, silent
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.calibrate import apply_plan
from lrzip.pipeline.decide import make_plan
from lrzip.pipeline.factorize import Work
from lrzip.pipeline.request import meter_for, request_of, rule_of, solver_of, with_objective
from lrzip.pipeline.survey import selected
from lrzip.training.data.samples import Samples


def factorize(
    model: nn.Module,
    *,
    energy: float | None = None,
    ratio: float | None = None,
    rank: int | None = None,
    vbmf: bool = False,
    budget: str | None = None,
    objective: str | None = None,
    layers: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    round_to: int | None = None,
    decomposition: str = "svd",
    svd: str = "auto",
    oversample: int = 10,
    power_iterations: int = 2,
    tolerance: float = 1e-3,
    calibrate: str | Path | Tensor | Samples | None = None,
    calibration: CalibrationSettings | None = None,
    device: str | None = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Progress = silent,
) -> nn.Module:
    """Replace layers of a network by `nn.Sequential`s of smaller ones.

    What `lrzip.compress(…, model=model)` does to a checkpoint of the network, with the same options: the result is what
    `load_into` makes of that checkpoint. Device, dtype, mode and `requires_grad` of each layer stay.

    Args:
        model: A network of ordinary layers.
        energy: The smallest rank of each layer that keeps this share of Σσ², in (0, 1].
        ratio: Divide each layer's parameters by this, above 1.
        rank: One rank for all layers.
        vbmf: Keep what stands out from noise.
        budget: `params=50%` or `nbytes=10MB` for all layers together. Exactly one of these five is needed.
        objective: What predicts the loss of a rank, as in `compress`.
        layers: Rules of some layers by glob, as in `compress`.
        only: Globs of the layers to take.
        skip: Globs of the layers to leave.
        round_to: Round ranks up to a multiple, where that still saves.
        decomposition: `svd`, or `tucker`, as in `compress`.
        svd: As in `compress`.
        oversample: Sketch vectors beyond the rank.
        power_iterations: Of a sketch.
        tolerance: By which share a layer's error may exceed the best possible one of its rank.
        calibrate: Examples of what the network gets, by which ranks and factors are chosen, as in `compress`.
        calibration: How many examples, and what they may change.
        device: Where to compute; by default where the network's parameters are.
        seed: Of all sketches.
        inplace: Change `model` itself instead of a copy.
        progress: Called before each layer.

    Returns:
        The network, of ordinary modules; only nn.MultiheadAttention becomes a module of `lrzip.networks.attention`.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: Anything else that could not be done; `model` is unchanged.
    """
    rule = rule_of({"energy": energy, "ratio": ratio, "rank": rank, "vbmf": vbmf or None, "budget": budget})
    request = request_of(
        *(rule, layers or {}, only, skip, round_to, "keep"),
        decomposition=decomposition,
        objective=objective,
    )
    assert request, "there is no plan file among the choices"
    if request.rule.unit in ("macs", "latency"):
        raise UsageError(
            f"A budget of `{request.rule.unit}` is for `lrzip.compress` with a network and input shapes. Give another."
        )
    solver = solver_of(svd, oversample, power_iterations, tolerance)
    source = LiveSource(model)
    where = device or str(next((parameter.device for parameter in model.parameters()), "cpu"))
    architecture = Architecture.of(model)
    seen = None
    if calibrate is not None:
        candidates = [item for item in selected(source, request, architecture) if isinstance(item, Layer)]
        network = Network(copy.deepcopy(model).eval())
        how, measured = calibration or CalibrationSettings(), request.objective.measured
        seen = run_calibration(network, calibrate, candidates, how, measured=measured)
        request = request if objective else with_objective(request, seen.objective)
    plan = make_plan(
        source,
        request,
        solver,
        device=where,
        progress=progress,
        architecture=architecture,
        meter=meter_for(request, source, solver, None),
        statistics=seen.planned if seen else None,
    )
    work = Work(source, solver, None, where, seed)
    return apply_plan(model if inplace else copy.deepcopy(model), plan, work, seen, progress)
