import json
from math import isnan, nan

import pytest

from lrzip.core.documents import Place, Record
from lrzip.core.errors import LrzipError
from lrzip.search.trial import Trial, ranks_document
from tests.support.damage import damaged

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


def logged(trial: Trial) -> Record:
    document = json.loads(json.dumps({"key": trial.key, **trial.to_dict()}))
    return Record(document, Place("`log.jsonl`", "Give another name."))


def test_a_trial_survives_its_log() -> None:
    assert Trial.read(logged(TRIAL)) == TRIAL


def test_damaged_trials_are_refused_or_whole() -> None:
    usable = 0
    for what, document in damaged({"key": "key", **TRIAL.to_dict()}):
        try:
            trial = Trial.read(Record(document, Place("`log.jsonl`", "Give another name.", path="line 3")))
        except LrzipError as error:
            assert str(error).startswith("`log.jsonl`: `line 3."), what
            assert str(error).isprintable(), what
        else:
            usable += 1
            json.dumps(trial.to_dict(), allow_nan=False)
            assert all(rank > 0 for ranks in trial.ranks.values() for rank in ranks), what
    assert 20 < usable < sum(1 for _ in damaged(TRIAL.to_dict())) / 2


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
    trial = Trial("key", {}, {}, 1, {"r2": nan}, {"r2": 1.0})
    assert trial.to_dict()["before"] == {"r2": None}
    assert isnan(Trial.read(logged(trial)).before["r2"])


@pytest.mark.parametrize(("ranks", "document"), [((7,), 7), ((7, 8), [7, 8])])
def test_one_rank_is_an_integer_and_several_are_a_list(ranks: tuple[int, ...], document: object) -> None:
    assert ranks_document(ranks) == document
