import json
from math import isnan, nan

import pytest

from lrzip.search.trial import Trial, ranks_document

TRIAL = Trial(
    "key",
    {"layer": "fc1", "rank": 3},
    {"fc1": (3,), "conv": (4, 5)},
    100,
    {"accuracy": 0.5},
    {"accuracy": 0.75},
    "patience",
    1.25,
    within=False,
)


def test_a_trial_survives_its_log() -> None:
    document = json.loads(json.dumps(TRIAL.to_dict()))
    assert Trial.from_dict("key", document) == TRIAL


def test_the_document_has_the_keys_of_the_log() -> None:
    assert TRIAL.to_dict() == {
        "what": {"layer": "fc1", "rank": 3},
        "parameters": 100,
        "before": {"accuracy": 0.5},
        "scores": {"accuracy": 0.75},
        "within": False,
        "stopped": "patience",
        "ranks": {"fc1": 3, "conv": [4, 5]},
        "seconds": 1.25,
    }


def test_a_metric_that_is_no_number_is_null_in_the_log() -> None:
    document = Trial("key", {}, {}, 1, {"r2": nan}, {"r2": 1.0}).to_dict()
    assert document["before"] == {"r2": None}
    assert isnan(Trial.from_dict("key", document).before["r2"])


@pytest.mark.parametrize(("ranks", "document"), [((7,), 7), ((7, 8), [7, 8])])
def test_one_rank_is_an_integer_and_several_are_a_list(ranks: tuple[int, ...], document: object) -> None:
    assert ranks_document(ranks) == document
