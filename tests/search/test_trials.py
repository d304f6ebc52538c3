import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.documents import Record
from lrzip.core.errors import LrzipError
from lrzip.search.trial import NOT_SMALLER
from lrzip.search.trials import Callbacks, Trials
from lrzip.search.variants import Ranks, Variant, Variants
from lrzip.training.bench import Bench
from lrzip.training.settings import Settings
from tests.support.searches import trials_of

SETTINGS = Settings(epochs=1, batch_size=32, lr=1e-2)
RANKS: Ranks = {"fc2": (2,), "fc3": (2,)}


def with_ranks(ranks: Ranks, variants: Variants) -> Variant:
    return variants.factorized(ranks)


@pytest.fixture
def trials(folder: Path) -> Trials:
    return trials_of(folder)


def test_the_floor_is_the_dense_metric_less_the_bound(trials: Trials) -> None:
    dense = trials.dense.scores["accuracy"]
    assert trials.floor == pytest.approx(dense - 0.05, abs=2e-6)
    assert trials.shortfall(trials.dense) == pytest.approx(-0.05, abs=2e-6)
    assert trials.dense.within
    assert trials.dense.action == {"dense": True}


def test_an_attempt_builds_tunes_and_measures(trials: Trials) -> None:
    trial = trials.attempt(trials.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    assert trial.ranks == RANKS
    assert trial.parameters == trials.variants.parameters(RANKS)
    network = trials.variants.rebuilt(trials.state(trial), trial.ranks).network
    assert trials.bench.score(network) == pytest.approx(trial.scores, abs=1e-6)
    assert trial.scores["accuracy"] >= trial.before["accuracy"]
    assert trial.within == (trial.scores["accuracy"] >= trials.floor)
    assert trials.history == [trial]


def test_a_network_that_is_not_smaller_is_not_tuned(trials: Trials) -> None:
    trial = trials.attempt(trials.dense, {"step": 1}, partial(with_ranks, {}), SETTINGS)
    assert (trial.stopped, trial.within, trial.seconds) == (NOT_SMALLER, False, 0.0)


def test_two_actions_that_build_the_same_network_are_one_trial(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    tunings = _count_tunings(monkeypatch)
    first = trials.attempt(trials.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    second = trials.attempt(trials.dense, {"step": 2}, partial(with_ranks, RANKS), SETTINGS)
    assert first == second
    assert len(tunings) == len(trials.history) == 1


def test_the_next_network_starts_from_the_tuned_weights(trials: Trials) -> None:
    first = trials.attempt(trials.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    merged = trials.variants_of(first).model.state_dict()["fc2.weight"]
    state = trials.state(first)
    torch.testing.assert_close(merged, state["fc2.1.weight"] @ state["fc2.0.weight"])
    further = trials.attempt(first, {"tune": "on"}, None, SETTINGS)
    assert further.ranks == first.ranks
    assert further.before == pytest.approx(first.scores)


def test_a_state_that_is_no_longer_stored_is_computed_again(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trials.attempt(trials.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    before = {name: tensor.clone() for name, tensor in trials.state(trial).items()}
    trials.keep()
    assert trials.states.get(trial.key) is None
    tunings = _count_tunings(monkeypatch)
    after = trials.state(trial)
    assert len(tunings) == 1
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_results_of_an_earlier_run_are_reused_with_their_states(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = trials_of(folder, log=folder / "log.jsonl")
    first = earlier.attempt(earlier.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    tunings = _count_tunings(monkeypatch)
    later = trials_of(folder, log=folder / "log.jsonl")
    again = later.attempt(later.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    later.keep()  # nothing was computed in this run: states of later trials may still be needed
    assert later.states.get(again.key) is not None
    assert not tunings
    assert again.to_dict() == first.to_dict() | {"seconds": round(first.seconds, 3)}


def test_a_note_is_computed_once(trials: Trials) -> None:
    calls: list[Variants] = []

    def compute(variants: Variants) -> dict[str, Any]:
        calls.append(variants)
        return {"values": [len(variants.candidates)]}

    def read(document: Record) -> Any:
        return document.fields["values"]

    found = [trials.note(trials.dense, {"energies of": "fc1"}, compute, read) for _ in range(2)]
    assert found == [[4], [4]]
    assert len(calls) == 1
    trials.note(trials.dense, {"energies of": "fc2"}, compute, read)
    assert len(calls) == 2


def test_callbacks_are_called_for_each_trial(folder: Path) -> None:
    announced: list[str] = []
    decided: list[object] = []
    trials = trials_of(folder)
    trials.callbacks = Callbacks(announce=announced.append, decided=decided.append)
    trial = trials.attempt(trials.dense, {"layer": "fc2", "rank": 2}, partial(with_ranks, RANKS), SETTINGS)
    assert announced == ["layer fc2, rank 2"]
    assert decided == [trial]


def test_a_dense_metric_that_is_no_number_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "score", lambda *_: {"accuracy": float("nan")})
    with pytest.raises(LrzipError, match="The accuracy of the dense network on the validation set is no number"):
        trials_of(folder)


def _count_tunings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    original = Bench.tune

    def counted(self: Bench, *args: Any) -> Any:
        calls.append(args)
        return original(self, *args)

    monkeypatch.setattr(Bench, "tune", counted)
    return calls


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": {"fc9": 2}},
        {"ranks": {"fc2": 10**6, "fc3": 2}},
        {"ranks": {"fc2": [2, 2], "fc3": 2}},
        {"ranks": {"fc2": {}, "fc3": {}}},
        {"parameters": 1},
        {"parameters": None},
        {"scores": {"r2": 0.5}},
        {"scores": {}},
        {"stopped": "x"},
        {"same": "itself"},
        {"same": "nothing"},
        {"same": 7},
    ],
    ids=str,
)
def test_a_damaged_result_is_computed_again(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    earlier = trials_of(folder, log=log)
    first = earlier.attempt(earlier.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    damaged = [{**line, **change} for line in lines]
    for line in damaged:
        line |= {"same": line["key"]} if change == {"same": "itself"} else {}
    log.write_text("".join(json.dumps(line) + "\n" for line in damaged))
    later = trials_of(folder, log=log)
    again = later.attempt(later.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"fc1.weight": state["fc1.weight"][:-1]},
        lambda state: {name: tensor for name, tensor in state.items() if name != "fc1.bias"},
        lambda state: state | {"other": torch.ones(1)},
        lambda state: state | {"fc2.0.weight": torch.ones(3, 24), "fc2.1.weight": torch.ones(24, 3)},
        lambda state: state | {"fc1.bias": None},
        lambda state: [state],
    ],
)
def test_a_damaged_state_is_computed_again(change: Callable[[Any], Any], folder: Path, tmp_path: Path) -> None:
    trials = trials_of(folder, log=tmp_path / "log.jsonl")
    trial = trials.attempt(trials.dense, {"step": 1}, partial(with_ranks, RANKS), SETTINGS)
    before = dict(trials.state(trial))
    assert trials.has_state(trial)
    torch.save(change(before), tmp_path / "states" / f"{trial.key}.pt")
    assert not trials.has_state(trial)
    assert all(torch.equal(trials.state(trial)[name], tensor) for name, tensor in before.items())
