from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

import lrzip
from lrzip.cli.gates import check_gates
from lrzip.core.report import Report
from tests.support.networks import Net, seeded


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a report whose largest error is neither the first nor the last one."""
    path = tmp_path_factory.mktemp("gates") / "net.pt"
    torch.save(seeded(Net).state_dict(), path)
    found = lrzip.compress(path, ratio=2)
    errors = [0.1, 0.3, 0.2, 0.15]
    assert len(found.results) == len(errors)
    results = [replace(result, error=error) for result, error in zip(found.results, errors, strict=True)]
    return replace(found, results=results)


def failures(report: Report, min_ratio: float | None, max_error: float | None) -> bool:
    try:
        check_gates(report, min_ratio, max_error)
    except typer.Exit as exit_:
        assert exit_.exit_code == 3
        return True
    return False


def test_no_gate_is_no_failure(report: Report) -> None:
    assert not failures(report, None, None)


def test_a_ratio_fails_only_below_its_gate(report: Report) -> None:
    assert not failures(report, report.ratio, None)
    assert failures(report, report.ratio * (1 + 1e-12), None)


def test_the_largest_error_of_all_layers_counts(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert not failures(report, None, 0.3)
    assert failures(report, None, 0.25)
    name = report.results[1].decision.layer.name
    assert f"the error of `{name}` is 0.300, `--max-error` allows 0.25" in capsys.readouterr().err


def test_every_failed_gate_is_printed(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert failures(report, 1e9, 0.01)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines] == [" Gate failed"] * 2


def test_a_dry_run_has_no_errors_to_check(report: Report) -> None:
    assert not failures(replace(report, results=[], output=Path("x")), None, 0.01)
