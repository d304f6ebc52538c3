"""A curve of plans: several budgets, with spectra computed once."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import UsageError
from lrzip.core.plan import SCHEMA
from lrzip.core.progress import Progress, silent
from lrzip.core.report import Report
from lrzip.core.version import __version__
from lrzip.decompositions import Decompositions
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import is_parameter
from lrzip.pipeline.calibrate import apply_plan, calibration_summary, look_at_inputs, network_in
from lrzip.pipeline.decide import decide
from lrzip.pipeline.factorize import Work
from lrzip.pipeline.latency import costs_of
from lrzip.pipeline.profile import profile_of
from lrzip.pipeline.request import meter_for, request_of, solver_of, with_objective
from lrzip.pipeline.survey import check_device, look_at, selected
from lrzip.ranks.budget import parse_budgets

if TYPE_CHECKING:
    from lrzip.training.bench import Bench
    from lrzip.training.evaluation import Evaluation
    from lrzip.training.learning import Learning


@dataclass(frozen=True)
class Curve:
    """Plans for several budgets.

    Attributes:
        source: What was planned for.
        version: Of lrzip.
        points: One plan for each budget, in the order in which they were asked for, as reports of dry runs.
        dense: Metrics of the network as it is, where there are data.
        measured: Metrics of the network by each plan, likewise; else empty.
    """

    source: str
    version: str
    points: Sequence[Report]
    dense: "Evaluation | None" = None
    measured: "Sequence[Evaluation]" = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        points = [point.to_dict() | {"input": self.source} for point in self.points]
        for point, evaluation in zip(points, self.measured, strict=False):
            point["metrics"] = evaluation.to_dict()["metrics"]
        dense = {"evaluation": self.dense.to_dict()} if self.dense else {}
        return {"schema": SCHEMA, "lrzip": self.version, "input": self.source} | dense | {"points": points}


def curve(
    path: str | Path,
    budgets: str,
    *,
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
    dtype: str = "keep",
    model: nn.Module | None = None,
    calibrate: str | Path | Tensor | None = None,
    calibration: CalibrationSettings | None = None,
    learning: "Learning | None" = None,
    input_shapes: Sequence[str] = (),
    key: str | None = None,
    trust: bool = False,
    device: str = "cpu",
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Curve:
    """Plan for several budgets, measure the plans where there are data, and write nothing.

    A plan is measured by what `compress` would write for its budget, with a calibration's corrections. What is common
    to all plans, spectra and the statistics of a calibration, is computed once.

    Args:
        path: A file of torch.save, safetensors or ONNX, or a folder of them, sharded or of transformers.
        budgets: Such as `params=10%,20%,30%`; otherwise as in `compress`, like all other arguments.
        objective: What predicts the loss of a rank.
        layers: Rules of some layers by glob.
        only: Globs of the layers to take.
        skip: Globs of the layers to leave.
        round_to: Ranks are multiples of it, where any saves.
        decomposition: What takes the place of layers.
        svd: How factors are computed.
        oversample: Sketch vectors beyond the rank.
        power_iterations: Of a sketch.
        tolerance: By which share a layer's error may exceed the best possible one of its rank.
        dtype: Of the factors.
        model: The network that the checkpoint belongs to.
        calibrate: Examples of what the network gets.
        calibration: How many examples, and what they may change.
        learning: On what to measure: metrics of the network by each plan, on the validation set.
        input_shapes: One for each input of the network.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the file.
        device: Where to compute.
        seed: Of all sketches.
        force: Overwrite an existing file of statistics.
        progress: Called before each layer.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: A budget cannot be met, or anything else that could not be done.
    """
    rules = parse_budgets(budgets)
    request = request_of(
        *(rules[0], layers or {}, only, skip, round_to, dtype),
        decomposition=decomposition,
        objective=objective,
    )
    assert request, "a budget is a rule"
    check_device(device)
    solver = solver_of(svd, oversample, power_iterations, tolerance)
    architecture = Architecture.of(model) if model else None
    with open_checkpoint(Path(path), key=key, trust=trust) as checkpoint:
        bench, dense = _bench(checkpoint, model, learning, key=key, trust=trust) if learning else (None, None)
        costs_asked = rules[0].unit in ("macs", "latency")
        if bench and costs_asked:
            input_shapes = input_shapes or bench.input_shapes()
        found = profile_of(checkpoint, model, input_shapes, needed=costs_asked)
        candidates = partial(selected, checkpoint, request, architecture)
        inputs = look_at_inputs(
            checkpoint,
            model,
            calibrate,
            calibration,
            candidates,
            measured=request.objective.measured,
            key=key,
            trust=trust,
            force=force,
        )
        if inputs and not objective:
            request = with_objective(request, inputs.objective)
        seen = look_at(
            checkpoint,
            request,
            solver,
            device=device,
            progress=progress,
            architecture=architecture,
            statistics=inputs.planned if inputs else None,
        )
        meter = meter_for(request, checkpoint, solver, found)
        work = Work(checkpoint, solver, None, device, seed)
        points: list[Report] = []
        measured: list[Evaluation] = []
        for rule in rules:
            start = perf_counter()
            plan = decide(
                checkpoint,
                seen,
                replace(request, rule=rule),
                Decompositions(request.decomposition, solver),
                meter,
            )
            if bench and dense:
                network = apply_plan(copy.deepcopy(bench.model), plan, work, inputs, progress)
                measured.append(replace(dense, scores=bench.score(network)))
            points.append(
                Report(
                    plan=plan,
                    results=[],
                    output=None,
                    parameters_before=sum(spec.numel for spec in checkpoint.tensors().values() if is_parameter(spec)),
                    nbytes_before=checkpoint.nbytes,
                    nbytes_after=checkpoint.nbytes - plan.nbytes_saved,
                    dropped=(),
                    seconds=perf_counter() - start,
                    version=__version__,
                    costs=costs_of(found, plan.factorize, latency=False) if found else None,
                    calibrated=calibration_summary(inputs, ()) if inputs else None,
                )
            )
    return Curve(str(path), __version__, points, dense, measured)


def _bench(
    checkpoint: Checkpoint, model: nn.Module | None, learning: "Learning", *, key: str | None, trust: bool
) -> "tuple[Bench, Evaluation]":
    """Return what measures networks of a checkpoint, and what it says of the checkpoint's own.

    Raises:
        UsageError: There is no network.
    """
    from lrzip.training.bench import make_bench  # which take the packages that train
    from lrzip.training.evaluation import evaluation_of  # which take the packages that train

    network = network_in(checkpoint, model, key=key, trust=trust)
    if network is None:
        raise UsageError("`--data` is what a network is measured on: give `--model PKG.MOD:NET`.")
    bench = make_bench(checkpoint.path, network, learning, distil=False, key=key, trust=trust)
    return bench, evaluation_of(bench)
