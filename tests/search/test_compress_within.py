import json
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, OutputExists, UsageError
from lrzip.search.compress_within import SearchReport, compress_within
from lrzip.search.strategies import STRATEGIES
from lrzip.search.trials import Trial
from lrzip.training.learning import Learning
from lrzip.training.loop import train
from lrzip.training.metrics import Scorer
from lrzip.training.settings import Settings
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


def compress(folder: Path, name: str = "small.pt", **others: Any) -> SearchReport:
    options: dict[str, Any] = {"max_drop": 5, "model": Deep(), "learning": learning_of(*classes()), "force": True}
    return compress_within(folder / "dense.pt", folder / name, **options | others)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model.eval()(x).argmax(1) == y).float().mean())


@pytest.fixture
def folder(tmp_path: Path, trained: bytes) -> Path:
    (tmp_path / "dense.pt").write_bytes(trained)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_trained(tmp_path_factory.mktemp("trained"), Deep).read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_written_is_smaller_within_the_bound_and_what_was_measured(strategy: str, folder: Path) -> None:
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
    assert {one.what.get("strategy", "adaptive") for one in found.tried if "tune" not in one.what} == {strategy}


def test_nothing_is_tried_twice_and_what_is_written_is_the_smallest_within(folder: Path) -> None:
    found = compress(folder)
    assert len({one.key for one in found.tried}) == len(found.tried)
    within = [one for one in found.tried if one.within]
    assert found.best.parameters == min(one.parameters for one in within)
    assert all(later.parameters <= earlier.parameters for earlier, later in pairwise(within))
    floor = found.dense.scores["accuracy"] - 0.05 - 1e-6
    assert all(one.within == (one.scores["accuracy"] >= floor) for one in found.tried if one.stopped == "finished")


def test_examples_of_the_training_set_may_choose_the_factors(folder: Path) -> None:
    found = [compress(folder, calibrate=calibrate) for calibrate in (False, True)]
    assert found[0].tried[0].key != found[1].tried[0].key
    assert all(one.best.scores["accuracy"] >= one.dense.scores["accuracy"] - 0.05 - 1e-6 for one in found)
    assert lrzip.load_into(Deep(), folder / "small.pt")


def test_where_anything_goes_all_ranks_become_one(folder: Path) -> None:
    found = compress(folder, max_drop=100)
    assert set(found.best.ranks.values()) == {1}
    assert set(found.best.ranks) == {"fc1", "fc2", "fc3", "fc4"}


def test_adaptive_takes_critical_layers_first_and_gently_then_late_to_early(folder: Path) -> None:
    found = compress(folder, strategy="adaptive", max_drop=10)
    layers = [one.what["layer"] for one in found.tried if "layer" in one.what]
    order = list(dict.fromkeys(layers))
    assert order == [name for name in ("fc1", "fc4", "fc3", "fc2") if name in order]
    lowest = {"fc1": 0.95, "fc4": 0.9, "fc2": 0.3, "fc3": 0.3}
    assert all(one.what["energy"] >= lowest[one.what["layer"]] - 1e-4 for one in found.tried if "layer" in one.what)
    assert found.to_dict()["search"]["manner"] == "very aggressive"
    for name in order:
        # By bisection, so far fewer than the ranks there are.
        assert layers.count(name) <= 6


def _energies(folder: Path, ranks: Any) -> dict[str, tuple[float, float]]:
    """Return the energy of each rank and of the next larger one, of the dense weights."""
    state = torch.load(folder / "dense.pt")["state_dict"]
    found = {}
    for name, rank in ranks.items():
        squares = torch.linalg.svdvals(state[f"{name}.weight"].double()).square()
        shares = torch.cat([torch.zeros(1), (squares.cumsum(0) / squares.sum()).float()])
        found[name] = float(shares[rank - 1]), float(shares[rank])
    return found


def test_families_are_what_they_say(folder: Path) -> None:
    """The first network of each is made from the dense weights: one share stands for all of its ranks."""
    first = {name: compress(folder, strategy=name, max_drop=100).tried[0] for name in ("energy", "ratio", "uniform")}
    sizes = {"fc1": (24, 12), "fc2": (32, 24), "fc3": (24, 32), "fc4": (4, 24)}
    for one in first.values():
        assert one.parameters <= one.what["parameters"]
        assert set(one.ranks) <= set(sizes)
    between = _energies(folder, first["energy"].ranks).values()
    assert max(low for low, _ in between) <= min(high for _, high in between)
    for name, shares in (("ratio", _ratios), ("uniform", _shares)):
        low, high = zip(*(shares(*sizes[layer], rank) for layer, rank in first[name].ranks.items()), strict=True)
        assert max(low) <= min(high)


def _ratios(rows: int, columns: int, rank: int) -> tuple[float, float]:
    """Return the shares of a layer's parameters from which on it has this rank, and the next larger one."""
    return rank * (rows + columns) / (rows * columns), (rank + 1) * (rows + columns) / (rows * columns)


def _shares(rows: int, columns: int, rank: int) -> tuple[float, float]:
    """Return the shares of the full rank from which on it is this rank, and the next larger one."""
    return (0 if rank == 1 else rank / min(rows, columns)), (rank + 1) / min(rows, columns)


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
def test_a_killed_and_resumed_search_ends_with_the_same_bytes_and_repeats_nothing(
    strategy: str, after: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compress(folder, "whole.pt", strategy=strategy)
    log = folder / "log.jsonl"
    with pytest.raises(_Killed):
        compress(folder, "resumed.pt", strategy=strategy, log=log, decided=_dying(after))
    assert not (folder / "resumed.pt").exists()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([line for line in lines if "parameters" in line]) == after + 1
    with log.open("a") as file:
        file.write('{"key": "half a li')
    trainings = _count(monkeypatch)
    resumed = compress(folder, "resumed.pt", strategy=strategy, log=log, resume=True)
    assert len(trainings) == len([one for one in whole.tried if one.stopped != "not smaller"]) - after
    assert [one.to_dict() | {"seconds": 0} for one in resumed.tried] == [
        one.to_dict() | {"seconds": 0} for one in whole.tried
    ]
    assert (folder / "resumed.pt").read_bytes() == (folder / "whole.pt").read_bytes()


def test_a_finished_search_is_not_done_again_and_a_larger_bound_uses_what_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder / "log.jsonl"
    first = compress(folder, "a.pt", log=log)
    assert len(list((folder / "log.jsonl.states").iterdir())) == 1
    trainings = _count(monkeypatch)
    again = compress(folder, "b.pt", log=log, resume=True)
    assert not trainings
    assert (folder / "a.pt").read_bytes() == (folder / "b.pt").read_bytes()
    assert again.best.key == first.best.key
    # Another seed is another search.
    other = learning_of(*classes(), settings=Settings(epochs=1, batch_size=32, lr=1e-2, seed=1))
    compress(folder, "c.pt", log=log, resume=True, learning=other)
    assert trainings


def _count(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    original = train

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr("lrzip.training.bench.train", counted)
    return calls


def test_ctrl_c_writes_the_smallest_so_far(folder: Path) -> None:
    seen: list[Trial] = []

    def watch(_: Any) -> None:
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    found = compress(folder, watch=watch, decided=seen.append, max_drop=10)
    assert found.interrupted
    assert found.best.parameters == min(one.parameters for one in seen if one.within)
    assert found.test is None
    x, y = classes()
    model = lrzip.load_into(Deep(), folder / "small.pt")
    assert accuracy(model, x[300:], y[300:]) == pytest.approx(found.best.scores["accuracy"], abs=1e-6)


def test_test_data_is_looked_at_once_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = classes()
    write_data(folder / "test.npz", x[:120], y[:120])
    sizes: list[int] = []
    score = Scorer.__call__

    def counted(self: Scorer, model: nn.Module, samples: Any, **options: Any) -> dict[str, float]:
        sizes.append(len(samples))
        return score(self, model, samples, **options)

    monkeypatch.setattr(Scorer, "__call__", counted)
    found = compress(folder, test=str(folder / "test.npz"))
    assert sizes[-2:] == [120, 120]
    assert set(sizes[:-2]) == {100}
    assert found.test
    model = lrzip.load_into(Deep(), folder / "small.pt")
    assert found.test[1]["accuracy"] == pytest.approx(accuracy(model, x[:120], y[:120]), abs=1e-6)


def test_without_labels_the_dense_network_is_the_measure(folder: Path) -> None:
    x, _ = classes()
    found = compress(folder, learning=learning_of(x, None))
    assert found.dense.scores == {"accuracy": 1.0}
    assert found.best.scores["accuracy"] >= 0.95 - 1e-6


def test_a_regression_counts_in_units_of_its_metric(tmp_path: Path) -> None:
    write_trained(tmp_path, Regressor)
    learning = learning_of(*numbers(), metrics=["rmse", "r2"], settings=Settings(epochs=10, batch_size=32, lr=1e-2))
    found = compress(tmp_path, model=Regressor(), learning=learning, max_drop=0.5)
    assert found.unit == 1
    assert found.standard_error is None
    assert found.best.scores["rmse"] <= found.dense.scores["rmse"] + 0.5
    assert found.drop == pytest.approx(found.best.scores["rmse"] - found.dense.scores["rmse"])


def test_names_dtypes_and_formats_stay(folder: Path) -> None:
    state = torch.load(folder / "dense.pt")["state_dict"]
    wrapped = {f"module.{name}": tensor.bfloat16() for name, tensor in state.items()}
    torch.save({"state_dict": wrapped}, folder / "dense.pt")
    compress(folder, "small.safetensors", skip=["fc1"], max_drop=10)
    small = load_file(folder / "small.safetensors")
    assert {tensor.dtype for tensor in small.values()} == {torch.bfloat16}
    assert "module.fc1.weight" in small
    assert {name.split(".")[0] for name in small} == {"module"}
    assert any(name.endswith(".0.weight") for name in small)
    x, y = classes()
    # Weights of 8 bits of precision, of a network that the search saw in float32.
    assert accuracy(lrzip.load_into(Deep(), folder / "small.safetensors"), x[300:], y[300:]) > 0.8


def test_only_and_skip_choose_the_layers(folder: Path) -> None:
    found = compress(folder, only=["fc2", "fc3"], skip=["fc3"], max_drop=10)
    assert [decision.layer.name for decision in found.report.plan.factorize] == ["fc2"]
    assert {one for tried in found.tried for one in tried.ranks} == {"fc2"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_drop": -1}, UsageError, "`--max-drop` takes a number from 0 on, got -1"),
        ({"max_drop": float("nan")}, UsageError, "`--max-drop` takes a number from 0 on, got nan"),
        ({"strategy": "greedy"}, UsageError, "`--strategy` takes global, adaptive, .*, got `greedy`"),
        ({"resume": True}, UsageError, "`--resume` goes on with what a log holds"),
        ({"log": "no/folder/log.jsonl"}, LrzipError, "The folder of `no/folder/log.jsonl` does not exist"),
        ({"only": ["nothing"]}, LrzipError, "`--only nothing` matches no layer"),
        ({"model": Classifier()}, LrzipError, "does not fit the model"),
        ({"test": "no.npz"}, LrzipError, "`--test no.npz` does not exist"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], error: type, message: str, folder: Path) -> None:
    with pytest.raises(error, match=message) as raised:
        compress(folder, **options)
    assert "\n" not in str(raised.value)
    assert not (folder / "small.pt").exists()


def test_logs_of_something_else_and_factorized_checkpoints_are_refused(folder: Path) -> None:
    (folder / "log.jsonl").write_text("a diary\n")
    with pytest.raises(OutputExists, match="Pass `--resume` to go on with it, or `--force` to begin anew"):
        compress(folder, log=folder / "log.jsonl", force=False)
    for option in ("resume", "force"):
        with pytest.raises(LrzipError, match="holds no results of lrzip: see line 1"):
            compress(folder, log=folder / "log.jsonl", force=option == "force", resume=option == "resume")
    assert (folder / "log.jsonl").read_text() == "a diary\n"
    write_compressed(folder)
    with pytest.raises(LrzipError, match="is factorized already, at `fc1`"):
        compress_within(
            folder / "small.pt", folder / "x.pt", max_drop=1, model=Classifier(), learning=learning_of(*classes())
        )


def test_nothing_is_written_where_nothing_is_within(folder: Path) -> None:
    generator = np.random.default_rng(0)
    x, y = classes()
    hopeless = Learning(
        learning_of(x, torch.from_numpy(generator.permutation(y.numpy()))).data,
        metrics=["tests.search.test_compress_within:exactly"],
        settings=Settings(steps=1, lr=1e-9),
    )
    with pytest.raises(LrzipError, match=r"No smaller network keeps .* within .*; the best .* has .*\. Raise"):
        compress(folder, max_drop=0, learning=hopeless)
    assert not (folder / "small.pt").exists()


def exactly(output: Tensor, target: Tensor) -> Tensor:
    """Minus the distance to the outputs of the first network that was measured."""
    del target
    distance: Tensor = torch.linalg.vector_norm(output - _FIRST.setdefault("output", output))
    return -distance


_FIRST: dict[str, Tensor] = {}
