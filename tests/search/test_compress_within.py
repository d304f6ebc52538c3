import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UsageError
from lrzip.search.compress_within import compress_within
from lrzip.search.strategies import STRATEGIES
from lrzip.search.trial import Trial
from lrzip.training.learning import Learning
from lrzip.training.metrics import Scorer
from lrzip.training.settings import Settings
from tests.support.searches import accuracy, compress
from tests.support.tasks import (
    Classifier,
    Deep,
    Regressor,
    classes,
    learning_of,
    numbers,
    write_compressed,
    write_data,
    write_trained,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_output_is_smaller_within_the_bound_and_has_the_reported_accuracy(strategy: str, folder: Path) -> None:
    before = (folder / "dense.pt").read_bytes()
    found = compress(folder, strategy=strategy)
    assert (folder / "dense.pt").read_bytes() == before
    x, y = classes()
    model = lrzip.load_into(Deep(), folder / "small.pt")
    assert accuracy(model, x[300:], y[300:]) == pytest.approx(found.best.scores["accuracy"], abs=1e-6)
    assert found.best.scores["accuracy"] >= found.dense.scores["accuracy"] - 0.05 - 1e-6
    assert found.drop == pytest.approx(100 * (found.dense.scores["accuracy"] - found.best.scores["accuracy"]))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == found.best.parameters == found.report.parameters_after
    assert count < 0.95 * found.dense.parameters
    hits = (model(x[300:]).argmax(1) == y[300:]).double()
    assert found.standard_error == pytest.approx(100 * float(hits.std(correction=0)) / len(hits) ** 0.5)
    content = torch.load(folder / "small.pt")
    assert content["epoch"] == 3
    assert "optimizer" not in content
    assert found.report.dropped == (("optimizer", "its state no longer fits the parameters"),)
    built = [trial.action for trial in found.trials if "tune" not in trial.action]
    assert {action.get("strategy", "adaptive") for action in built} == {strategy}


def test_no_network_is_tried_twice_and_the_smallest_within_the_bound_is_written(folder: Path) -> None:
    found = compress(folder)
    assert len({trial.key for trial in found.trials}) == len(found.trials)
    within = [trial for trial in found.trials if trial.within]
    assert found.best.parameters == min(trial.parameters for trial in within)
    assert len(within) > 1
    assert all(later.parameters <= earlier.parameters for earlier, later in pairwise(within))
    floor = found.dense.scores["accuracy"] - 0.05 - 1e-6
    finished = [trial for trial in found.trials if trial.stopped == "finished"]
    assert {trial.within for trial in finished} == {True, False}
    assert all(trial.within == (trial.scores["accuracy"] >= floor) for trial in finished)


def test_training_samples_may_select_the_factors(folder: Path) -> None:
    found = [compress(folder, calibrate=calibrate) for calibrate in (False, True)]
    assert found[0].trials[0].key != found[1].trials[0].key
    assert all(each.best.scores["accuracy"] >= each.dense.scores["accuracy"] - 0.05 - 1e-6 for each in found)
    x, y = classes()
    model = lrzip.load_into(Deep(), folder / "small.pt")
    assert accuracy(model, x[300:], y[300:]) == pytest.approx(found[1].best.scores["accuracy"], abs=1e-6)


def test_without_a_real_bound_all_ranks_become_one(folder: Path) -> None:
    found = compress(folder, max_drop=100)
    assert found.best.ranks == {"fc1": (1,), "fc2": (1,), "fc3": (1,), "fc4": (1,)}


def test_an_interrupted_search_writes_the_smallest_network_so_far(folder: Path) -> None:
    seen: list[Trial] = []

    def watch(_: Any) -> None:
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    found = compress(folder, watch=watch, decided=seen.append, max_drop=10)
    assert found.interrupted
    assert found.best.parameters == min(trial.parameters for trial in seen if trial.within)
    assert found.test is None
    x, y = classes()
    model = lrzip.load_into(Deep(), folder / "small.pt")
    assert accuracy(model, x[300:], y[300:]) == pytest.approx(found.best.scores["accuracy"], abs=1e-6)


def test_test_data_is_used_once_at_the_end_for_the_dense_and_the_written_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = classes()
    write_data(folder / "test.npz", x[:120], y[:120])
    sizes: list[int] = []
    score = Scorer.__call__

    def counted(self: Scorer, model: nn.Module, samples: Any, **options: Any) -> dict[str, float]:
        sizes.append(len(samples))
        return score(self, model, samples, **options)

    monkeypatch.setattr(Scorer, "__call__", counted)
    # The cross entropy, unlike the accuracy, differs between any two networks.
    learning = learning_of(x, y, metrics=["accuracy", "tests.support.tasks:surprise"])
    found = compress(folder, learning=learning, test=str(folder / "test.npz"))
    assert sizes[-2:] == [120, 120]
    assert set(sizes[:-2]) == {100}
    assert found.test
    losses = []
    for name, scores in zip(("dense.pt", "small.pt"), found.test, strict=True):
        model = lrzip.load_into(Deep(), folder / name).eval()
        assert scores["accuracy"] == pytest.approx(accuracy(model, x[:120], y[:120]), abs=1e-6)
        losses.append(float(nn.functional.cross_entropy(model(x[:120]).detach(), y[:120])))
        assert scores["tests.support.tasks:surprise"] == pytest.approx(losses[-1], rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-2)


def test_without_labels_the_dense_network_is_the_reference(folder: Path) -> None:
    x, _ = classes()
    found = compress(folder, learning=learning_of(x, None))
    assert found.dense.scores == {"accuracy": 1.0}
    assert found.best.scores["accuracy"] >= 0.95 - 1e-6


def test_the_bound_of_a_regression_is_in_units_of_its_metric(tmp_path: Path) -> None:
    write_trained(tmp_path, Regressor)
    learning = learning_of(*numbers(), metrics=["rmse", "r2"], settings=Settings(epochs=10, batch_size=32, lr=1e-2))
    found = compress(tmp_path, model=Regressor(), learning=learning, max_drop=0.5)
    assert found.unit == 1
    assert found.standard_error is None
    assert found.best.scores["rmse"] <= found.dense.scores["rmse"] + 0.5
    assert found.drop == pytest.approx(found.best.scores["rmse"] - found.dense.scores["rmse"])


def test_only_and_skip_select_the_layers(folder: Path) -> None:
    found = compress(folder, only=["fc2", "fc3"], skip=["fc3"], max_drop=10)
    assert [decision.layer.name for decision in found.report.plan.factorize] == ["fc2"]
    assert {name for trial in found.trials for name in trial.ranks} == {"fc2"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_drop": -1}, UsageError, "`max_drop` takes a number from 0 on, got -1"),
        ({"max_drop": float("nan")}, UsageError, "`max_drop` takes a number from 0 on, got nan"),
        ({"strategy": "greedy"}, UsageError, "`strategy` takes global, adaptive, .*, got `greedy`"),
        ({"resume": True}, UsageError, "`resume` continues the search of a log"),
        ({"log": "no/folder/log.jsonl"}, LrzipError, "The folder of `no/folder/log.jsonl` does not exist"),
        ({"only": ["nothing"]}, LrzipError, "`only=nothing` matches no layer"),
        ({"model": Classifier()}, LrzipError, "does not fit the model"),
        ({"test": "no.npz"}, LrzipError, "`test=no.npz` does not exist"),
    ],
)
def test_invalid_input_is_one_line(options: dict[str, Any], error: type, message: str, folder: Path) -> None:
    with pytest.raises(error, match=message) as raised:
        compress(folder, **options)
    assert "\n" not in str(raised.value)
    assert not (folder / "small.pt").exists()


def test_a_factorized_checkpoint_is_refused(tmp_path: Path) -> None:
    write_compressed(tmp_path)
    with pytest.raises(LrzipError, match="is factorized already, at `fc1`"):
        compress_within(
            tmp_path / "small.pt", tmp_path / "x.pt", max_drop=1, model=Classifier(), learning=learning_of(*classes())
        )


def test_nothing_is_written_if_no_network_is_within_the_bound(folder: Path) -> None:
    generator = np.random.default_rng(0)
    x, y = classes()
    hopeless = Learning(
        learning_of(x, torch.from_numpy(generator.permutation(y.numpy()))).data,
        metrics=["tests.search.test_compress_within:exactly:max"],
        settings=Settings(steps=1, lr=1e-9),
    )
    with pytest.raises(
        LrzipError, match=r"No smaller network keeps .* within .*; the best .* has .*\. Allow more than `max_drop=0`"
    ):
        compress(folder, max_drop=0, learning=hopeless)
    assert not (folder / "small.pt").exists()


def exactly(output: Tensor, target: Tensor) -> Tensor:
    """Return minus the distance to the outputs of the first network that was measured."""
    del target
    distance: Tensor = torch.linalg.vector_norm(output - _FIRST.setdefault("output", output))
    return -distance


_FIRST: dict[str, Tensor] = {}


def test_a_keyword_that_the_search_decides_itself_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"options of compress_within\(\) got an unexpected keyword argument 'energy'"):
        compress(folder, options={"energy": 0.9})
