"""Plan for several budgets, with spectra computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from lrzip.api.keywords import CURVE_GROUPS, CurveOptions, MeasuringKeywords
from lrzip.api.requests import check_setup, setup_of
from lrzip.core.declarations import Options, documented
from lrzip.core.errors import UsageError
from lrzip.core.options import Factoring, LayerRules, Selection
from lrzip.core.plan import SCHEMA
from lrzip.core.report import Report
from lrzip.core.version import __version__
from lrzip.formats.adapters import as_adapter
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint
from lrzip.networks.state import copy_of
from lrzip.pipeline.calibrate import network_of
from lrzip.pipeline.request import request_of
from lrzip.pipeline.session import RUN_UNITS, Session
from lrzip.pipeline.setup import Setup
from lrzip.ranks.budget import parse_budgets

if TYPE_CHECKING:
    from lrzip.training.bench import Bench
    from lrzip.training.evaluation import Evaluation
    from lrzip.training.learning import Learning


@dataclass(frozen=True)
class Curve:
    """Plans for several budgets.

    Attributes:
        source: Path of the checkpoint.
        version: Version of lrzip.
        points: Reports of dry runs, one for each budget in the given order.
        dense: Metrics of the dense network, if there is data.
        measured: Metrics of the network of each plan, if there is data; else empty.
    """

    source: str
    version: str
    points: Sequence[Report]
    dense: "Evaluation | None" = None
    measured: "Sequence[Evaluation]" = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as a JSON document."""
        points = [point.to_dict() | {"input": self.source} for point in self.points]
        for point, evaluation in zip(points, self.measured, strict=False):
            point["metrics"] = evaluation.to_dict()["metrics"]
        dense = {"evaluation": self.dense.to_dict()} if self.dense else {}
        return {"schema": SCHEMA, "lrzip": self.version, "input": self.source} | dense | {"points": points}


@documented(CurveOptions, *CURVE_GROUPS)
def curve(path: str | Path, budgets: str, **options: Unpack[CurveOptions]) -> Curve:
    """Plan for several budgets, and measure the networks of the plans if there is data; write nothing.

    The network measured for a plan is the one that `compress` would write for its budget, with the corrections of a
    calibration. Spectra and the statistics of a calibration are computed once.

    Args:
        path: File written by torch.save, safetensors or ONNX, or a sharded or transformers folder.
        budgets: Budgets of one unit, such as `params=10%,20%,30%`.
        **options: Keywords as declared in `lrzip.core.options`, the same as those of `compress`.

    Raises:
        UsageError: Options contradict each other or are out of range.
        LrzipError: A budget cannot be met, or planning or measuring failed.
    """
    given = Options("curve", CurveOptions, options)
    rules = parse_budgets(budgets)
    request = request_of(rules[0], given[Selection], given[Factoring], given[LayerRules].layers)
    setup, learning = setup_of(given), given[MeasuringKeywords].learning
    check_setup(given)
    opened = open_checkpoint(Path(path), key=setup.opening.key, trust=setup.opening.trust)
    with as_adapter(opened) as checkpoint:
        bench = _bench(checkpoint, setup, learning) if learning else None
        if bench and not setup.input_shapes and request.unit in RUN_UNITS:
            setup = replace(setup, input_shapes=bench.input_shapes())
        dense = _evaluate(bench, bench.model) if bench else None
        session = Session(checkpoint, request, setup)
        points, measured = [], []
        for rule in rules:
            start = perf_counter()
            plan = session.plan(rule)
            if bench:
                measured.append(_evaluate(bench, session.network(plan, copy_of(bench.model))))
            points.append(replace(session.report(plan), seconds=perf_counter() - start))
    return Curve(str(path), __version__, points, dense, measured)


def _bench(checkpoint: Checkpoint, setup: Setup, learning: "Learning") -> "Bench":
    """Return a bench that measures networks of a checkpoint.

    Raises:
        UsageError: The checkpoint contains no network, and no architecture is given.
    """
    from lrzip.training.bench import make_bench  # imports packages for training

    network = network_of(checkpoint, setup.model, setup.opening)
    if network is None:
        raise UsageError("`data` is what a network is measured on: give `model=PKG.MOD:NET`.")
    return make_bench(
        checkpoint.path, network, learning, distil=False, key=setup.opening.key, trust=setup.opening.trust
    )


def _evaluate(bench: "Bench", model: nn.Module) -> "Evaluation":
    from lrzip.training.evaluation import Evaluation  # imports packages for training

    return Evaluation(bench.score(model), len(bench.val), bench.task.kind)
