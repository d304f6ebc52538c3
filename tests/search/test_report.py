from dataclasses import replace
from math import nan
from pathlib import Path

import pytest

from lrzip.core.plan import Plan
from lrzip.core.report import Report
from lrzip.search.report import SearchReport
from lrzip.search.trial import Trial

DENSE = Trial("a", {"dense": True}, {}, 100, {"accuracy": 0.95}, {"accuracy": 0.95})
BEST = Trial("b", {"strategy": "global", "parameters": 50}, {"fc": (2,)}, 50, {"accuracy": 0.8}, {"accuracy": 0.9})
FOUND = SearchReport(
    report=Report(Plan((), (), "model.pt", "sha256:0"), [], Path("small.pt"), 100, 400, 200, (), 1.0, "0"),
    strategy="global",
    max_drop=6,
    metric="accuracy",
    higher_is_better=True,
    unit=0.01,
    drop=5.0,
    dense=DENSE,
    best=BEST,
    trials=[BEST],
    sample_counts=(300, 100),
    test=None,
    interrupted=False,
    log=None,
)


def test_the_standard_error_is_that_of_a_binomial_proportion_in_percentage_points() -> None:
    assert FOUND.standard_error == pytest.approx(100 * (0.9 * 0.1 / 100) ** 0.5)


def test_other_metrics_have_no_standard_error() -> None:
    assert replace(FOUND, unit=1.0).standard_error is None


def test_the_document_of_the_search_is_beside_that_of_the_report() -> None:
    document = FOUND.to_dict()
    assert document["input"] == "model.pt"
    assert document["search"] == {
        "strategy": "global",
        "max_drop": 6,
        "manner": "very aggressive",
        "metric": "accuracy",
        "drop": 5.0,
        "standard_error": FOUND.standard_error,
        "before": {"accuracy": 0.95},
        "after": {"accuracy": 0.9},
        "test": None,
        "train_examples": 300,
        "val_examples": 100,
        "interrupted": False,
        "tried": [BEST.to_dict()],
    }


def test_test_metrics_that_are_no_numbers_are_null() -> None:
    document = replace(FOUND, test=({"r2": 0.5}, {"r2": nan})).to_dict()
    assert document["search"]["test"] == {"before": {"r2": 0.5}, "after": {"r2": None}}
