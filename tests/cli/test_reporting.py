import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import lrzip
from lrzip.cli.reporting import print_report
from lrzip.core.budget_use import BudgetUse
from lrzip.core.report import CalibrationSummary, Comparison, Difference, Report
from tests.support.networks import Net, seeded


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("reporting") / "net.pt"
    torch.save(seeded(Net).state_dict(), path)
    found = lrzip.compress(path, rank=4, dry_run=True, model=Net(), input_shapes=["1,3,16,16"])
    return replace(found, seconds=1.25)


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=10_000)
    print_report(console, report)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def columns(report: Report) -> list[str]:
    return [part.strip() for part in printed(report).splitlines()[0].split("  ") if part.strip()]


def test_a_dry_run_has_sizes_and_costs_and_no_errors(report: Report) -> None:
    assert columns(report) == ["layer", "kind", "shape", "rank", "parameters", "after", "MACs", "then"]
    text = printed(report)
    assert "4 layers factorized: " in text
    assert text.endswith("Nothing was written: this was a dry run\n")


def test_decompositions_are_named_where_there_are_others_than_the_svd(tmp_path: Path) -> None:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    found = lrzip.compress(tmp_path / "net.pt", rank=4, dry_run=True, layers={"conv2": "tucker"})
    assert "decomposition" in columns(found)
    assert "  tucker  " in printed(found)
    assert "  svd  " in printed(found)


def test_a_budget_adds_predicted_losses_and_its_proof(report: Report) -> None:
    budget = BudgetUse("params", 900, 500, 480, "energy", 2.0, 2.0)
    spent = replace(report, plan=replace(report.plan, budget=budget))
    assert "predicted loss" in columns(spent)
    line = "Budget: 480 of 500 params used (20 left); predicted loss (energy) 2, the least possible"
    assert line in printed(spent)
    gap = replace(report, plan=replace(report.plan, budget=replace(budget, bound=1.5)))
    assert "at most 0.5 above the least possible" in printed(gap)


def test_a_calibration_names_its_samples_and_what_they_lack(report: Report) -> None:
    calibrated = CalibrationSummary("x.npz", 9, "bias", ("fc1.bias",), {"fc1": (9, 64)})
    lines = printed(replace(report, calibrated=calibrated)).splitlines()
    assert "Calibrated on 9 samples of x.npz, corrections: bias; 1 other tensors have new values" in lines
    assert any(line.startswith("Few samples for 1 layers") for line in lines)


def test_a_written_file_is_named_with_what_it_takes_to_load_it(report: Report) -> None:
    differences = (Difference("y", 1.0, 0.25), Difference("z", 2.0, 0.125))
    written = replace(
        report,
        output=Path("-"),
        usage="Load it so.",
        comparison=Comparison(differences, "random inputs of 1 × 3"),
        dropped=(("optimizer", "stale"),),
        notes=("Two inputs became constants.",),
    )
    text = printed(written)
    assert "Left out: optimizer: stale." in text
    assert "Outputs differ by 0.25 (relative) at most, `y`, on random inputs of 1 × 3" in text
    assert "Two inputs became constants." in text
    assert text.endswith("Wrote standard output in 1.2 s\nLoad it so.\n")
    reason = "the program stores no inputs. Give sizes by `input_shapes=SIZES`."
    uncompared = replace(report, comparison=Comparison(not_compared=reason))
    expected = "Outputs were not compared: the program stores no inputs. Give sizes by `--input-shape SIZES`."
    assert expected in printed(uncompared)
    some = replace(report, comparison=Comparison(differences, "inputs", "`z` does not depend on them."))
    assert "Some outputs were not compared: `z` does not depend on them." in printed(some)
