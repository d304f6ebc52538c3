from pathlib import Path
from typing import Any

import pytest

from lrzip.core.costs import Costs, Latency, LayerCost
from lrzip.core.decisions import Factorize
from lrzip.core.factors import Factors, GroupFactors
from lrzip.core.layers import Layer
from lrzip.core.plan import Plan
from lrzip.core.report import CalibrationSummary, Comparison, Difference, LayerResult, Report
from tests.support.candidates import DECOMPOSITIONS, linear_layer


def decision(layer: Layer, rank: int) -> Factorize:
    structure = DECOMPOSITIONS.of("svd").blueprint(layer, (rank,))
    return Factorize.of(layer, "svd", (rank,), structure, "float32")


FIRST, SECOND, KEPT = linear_layer(30, 20, "a"), linear_layer(40, 50, "b"), linear_layer(4, 4, "c")
PLAN = Plan((decision(FIRST, 2), decision(SECOND, 4)), (KEPT.kept("too small"),), "net.pt", "0123")


def report(results: tuple[LayerResult, ...] = (), **options: Any) -> Report:
    return Report(PLAN, results, None, 2616, 11_000, 2_300, (("step", "is no tensor"),), 1.23456, "0.2.0", **options)


def results() -> tuple[LayerResult, ...]:
    first, second = PLAN.factorize
    exact = Factors(first.structure, (), error=0.25, method="gram", excess=0.0)
    calibrated = Factors(second.structure, (), error=0.5, method="lanczos", output_error=0.125)
    return LayerResult.of(first, GroupFactors((exact,)), 0.98765), LayerResult.of(
        second, GroupFactors((calibrated,)), 0.98765
    )


def test_parameters_and_ratio_follow_from_the_plan() -> None:
    saved = (30 * 20 - 2 * 50) + (40 * 50 - 4 * 90)
    assert report().parameters_after == 2616 - saved
    assert report().ratio == pytest.approx(2616 / (2616 - saved))


def test_the_largest_error_is_that_of_the_worst_layer_and_unknown_for_a_dry_run() -> None:
    assert report(results()).max_error == 0.5
    assert report(results()[::-1]).max_error == 0.5
    assert report().max_error is None


def test_documents_of_dry_runs_have_decisions_without_errors() -> None:
    document = report().to_dict()
    assert document["output"] is None
    assert document["totals"]["max_error"] is None
    assert [layer["name"] for layer in document["layers"]] == ["a", "b"]
    assert all("error" not in layer and "stages" not in layer for layer in document["layers"])
    assert document["kept"] == [{"name": "c", "tensor": "c.weight", "reason": "too small"}]
    assert document["dropped"] == [{"name": "step", "reason": "is no tensor"}]


def test_documents_hold_the_result_of_each_layer() -> None:
    document = report(results(), comparison=Comparison((Difference("y", 0.5, 0.25),))).to_dict()
    first, second = document["layers"]
    assert (first["error"], first["method"], first["excess"], first["seconds"]) == (0.25, "gram", 0.0, 0.9877)
    assert "output_error" not in first
    assert (second["error"], second["excess"], second["output_error"]) == (0.5, None, 0.125)
    assert document["differences"] == [{"output": "y", "absolute": 0.5, "relative": 0.25}]
    assert document["totals"]["layers_factorized"] == 2
    assert document["totals"]["seconds"] == 1.235


def test_results_are_matched_to_layers_by_name() -> None:
    assert report(results()[::-1]).to_dict()["layers"] == report(results()).to_dict()["layers"]


def test_documents_hold_costs_and_calibration_only_if_there_are_any() -> None:
    plain = report().to_dict()
    assert "calibration" not in plain
    assert "macs_before" not in plain["totals"]
    latency = Latency(0.002, 0.001)
    costs = Costs(9, 3, {"a": LayerCost(5, 2, latency), "b": LayerCost(4, 1, None)}, None)
    summary = CalibrationSummary("x.npy", 64, "bias", ("b.bias",), {"a": (8, 20)})
    document = report(costs=costs, calibrated=summary).to_dict()
    assert (document["totals"]["macs_before"], document["totals"]["macs_after"]) == (9, 3)
    assert document["layers"][0]["latency"] == {"dense_ms": 2.0, "factorized_ms": 1.0}
    assert "latency" not in document["layers"][1]
    assert document["calibration"]["changed"] == ["b.bias"]
    assert document["calibration"]["scarce"] == [{"name": "a", "positions": 8, "columns": 20}]


def test_the_output_is_a_path_in_documents() -> None:
    written = Report(PLAN, results(), Path("out.pt"), 2616, 1, 1, (), 0.0, "0.2.0")
    assert written.to_dict()["output"] == "out.pt"
