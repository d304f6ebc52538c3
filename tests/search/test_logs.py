"""Logs of searches: what they hold, and how a search continues from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrzip.core.errors import LrzipError, OutputExists
from lrzip.search.trial import Trial
from lrzip.training.loop import train
from lrzip.training.settings import Settings
from tests.support.searches import compress
from tests.support.tasks import classes, learning_of


class _Killed(BaseException):
    pass


def _dying(after: int) -> Callable[[Trial], None]:
    count = 0

    def decided(_: Trial) -> None:
        nonlocal count
        count += 1
        if count == after:
            raise _Killed

    return decided


@pytest.mark.parametrize(("strategy", "after"), [("global", 1), ("global", 3), ("adaptive", 2), ("adaptive", 6)])
def test_a_killed_and_resumed_search_writes_the_same_bytes_and_repeats_no_trial(
    strategy: str, after: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = compress(folder, "uninterrupted.pt", strategy=strategy)
    log = folder / "log.jsonl"
    with pytest.raises(_Killed):
        compress(folder, "resumed.pt", strategy=strategy, log=log, decided=_dying(after))
    (folder / "resumed.pt").unlink(missing_ok=True)  # the first network within the bound, which was written early
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([line for line in lines if "parameters" in line]) == after + 1
    with log.open("a") as file:
        file.write('{"key": "half a li')
    trainings = _count_trainings(monkeypatch)
    resumed = compress(folder, "resumed.pt", strategy=strategy, log=log, resume=True)
    assert len(trainings) == len([each for each in uninterrupted.trials if each.stopped != "not smaller"]) - after
    documents = [[trial.to_dict() | {"seconds": 0} for trial in each.trials] for each in (resumed, uninterrupted)]
    assert documents[0] == documents[1]
    assert (folder / "resumed.pt").read_bytes() == (folder / "uninterrupted.pt").read_bytes()


def test_a_finished_search_is_not_repeated_but_another_seed_is_another_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder / "log.jsonl"
    first = compress(folder, "a.pt", log=log)
    assert len(list((folder / "log.jsonl.states").iterdir())) == 1
    trainings = _count_trainings(monkeypatch)
    again = compress(folder, "b.pt", log=log, resume=True)
    assert not trainings
    assert (folder / "a.pt").read_bytes() == (folder / "b.pt").read_bytes()
    assert again.best.key == first.best.key
    other = learning_of(*classes(), settings=Settings(epochs=1, batch_size=32, lr=1e-2, seed=1))
    compress(folder, "c.pt", log=log, resume=True, learning=other)
    assert trainings


def _count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    original = train

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr("lrzip.training.bench.train", counted)
    return calls


def test_a_file_that_is_no_log_is_refused_and_left_unchanged(folder: Path) -> None:
    (folder / "log.jsonl").write_text("a diary\n")
    with pytest.raises(OutputExists, match="Pass `resume=True` to continue it, or `force=True` to start again"):
        compress(folder, log=folder / "log.jsonl", force=False)
    for option in ("resume", "force"):
        with pytest.raises(LrzipError, match="line 1"):
            compress(folder, log=folder / "log.jsonl", force=option == "force", resume=option == "resume")
    assert (folder / "log.jsonl").read_text() == "a diary\n"
