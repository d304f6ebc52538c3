"""A curve of plans: several budgets, with spectra computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

import lrzip
from lrzip.calibration.settings import CalibrationSettings
from lrzip.compression import look_at_inputs, meter_for, request_of, told, with_objective
from lrzip.costs import costs_of, profile_of
from lrzip.formats import open_checkpoint
from lrzip.inference import is_parameter
from lrzip.linalg.svd import Solver
from lrzip.modules import Architecture
from lrzip.objectives import DEFAULT_OBJECTIVE, objective_of
from lrzip.plan import SCHEMA
from lrzip.planning import check_device, decide, decomposition_of, look_at, selected
from lrzip.progress import Progress, silent
from lrzip.ranks.budget import parse_budgets
from lrzip.report import Report


@dataclass(frozen=True)
class Curve:
    """One plan for each budget, in the order in which they were asked for, as reports of dry runs."""

    source: str
    version: str
    points: Sequence[Report]

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        points = [point.to_dict() | {"input": self.source} for point in self.points]
        return {"schema": SCHEMA, "lrzip": self.version, "input": self.source, "points": points}


def curve(
    path: str | Path,
    budgets: str,
    *,
    objective: str | None = None,
    layers: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    round_to: int | None = None,
    dtype: str = "keep",
    model: nn.Module | None = None,
    calibrate: str | Path | Tensor | None = None,
    calibration: CalibrationSettings | None = None,
    input_shapes: Sequence[str] = (),
    key: str | None = None,
    trust: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Curve:
    """Plan for several budgets, and write nothing.

    Args:
        path: A file of torch.save, safetensors or ONNX, or a folder of them, sharded or of transformers.
        budgets: Such as `params=10%,20%,30%`; otherwise as in `compress`, like all other arguments.
        objective: What predicts the loss of a rank.
        layers: Rules of some layers by glob.
        only: Globs of the layers to take.
        skip: Globs of the layers to leave.
        round_to: Ranks are multiples of it, where any saves.
        dtype: Of the factors.
        model: The network that the checkpoint belongs to.
        calibrate: Examples of what the network gets.
        calibration: How many examples, and what they may change.
        input_shapes: One for each input of the network.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the file.
        device: Where to compute.
        progress: Called before each layer.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: A budget cannot be met, or anything else that could not be done.
    """
    rules = parse_budgets(budgets, objective_of(objective or DEFAULT_OBJECTIVE))
    request = request_of(rules[0], layers or {}, only, skip, round_to, dtype, objective=objective)
    assert request, "a budget is a rule"
    check_device(device)
    solver = Solver()
    architecture = Architecture.of(model) if model else None
    with open_checkpoint(Path(path), key=key, trust=trust) as checkpoint:
        found = profile_of(checkpoint, model, input_shapes, needed=rules[0].unit in ("macs", "latency"))
        candidates = partial(selected, checkpoint, request, architecture)
        measured = request.objective.measured
        inputs = look_at_inputs(
            checkpoint, model, calibrate, calibration, candidates, measured=measured, key=key, trust=trust
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
        points: list[Report] = []
        for rule in rules:
            start = perf_counter()
            decomposition = decomposition_of(request.decomposition, solver)
            plan = decide(
                checkpoint,
                seen,
                replace(request, rule=replace(rule, objective=request.objective)),
                decomposition,
                meter,
            )
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
                    version=lrzip.__version__,
                    costs=costs_of(found, plan.factorize, latency=False) if found else None,
                    calibrated=told(inputs, ()) if inputs else None,
                )
            )
    return Curve(str(path), lrzip.__version__, points)
