import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.options import Factoring, Selection
from lrzip.search.sensitivities import Sensitivities
from lrzip.search.sensitivity import sensitivities_of
from lrzip.search.variants import Variants
from lrzip.training.bench import make_bench
from lrzip.training.cache import Cache
from lrzip.training.data.read import Data
from lrzip.training.evaluation import evaluate
from lrzip.training.learning import Learning
from lrzip.training.settings import Settings
from tests.support.tasks import (
    Classifier,
    Regressor,
    TwoConvolutions,
    classes,
    learning_of,
    numbers,
    samples_of,
    write_trained,
)


def measure(
    folder: Path,
    *,
    model: nn.Module | None = None,
    learning: Learning | None = None,
    selection: Selection | None = None,
    factoring: Factoring | None = None,
    cache: Path | None = None,
    **others: Any,
) -> Sensitivities:
    network, data = model or Classifier(), learning or learning_of(*classes())
    bench = make_bench(folder / "dense.pt", network, data, distil=True)
    variants = Variants(bench.model, selection or Selection(), factoring or Factoring())
    return sensitivities_of(bench, variants, Cache(cache), **others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    write_trained(path)
    return path


def test_the_baseline_is_the_metric_on_the_validation_set(folder: Path) -> None:
    x, y = classes()
    found = evaluate(folder / "dense.pt", model=(model := Classifier()), learning=learning_of(x, y))
    right = model.eval()(x[300:]).argmax(1) == y[300:]
    assert found.scores == {"accuracy": pytest.approx(float(right.float().mean()), abs=1e-7)}
    assert found.examples == 100


def test_drops_are_those_of_the_same_network_truncated_by_hand(folder: Path) -> None:
    found = measure(folder, energies=(0.3, 0.9))
    assert [(item.layer.name, item.energy) for item in found.layers] == [
        (name, energy) for name in ("fc1", "fc2") for energy in (0.3, 0.9)
    ]
    x, y = classes()
    state = torch.load(folder / "dense.pt")["state_dict"]
    for item in found.layers:
        u, s, v = torch.linalg.svd(state[f"{item.layer.name}.weight"], full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum()
        assert item.ranks == (int((share < item.energy).sum()) + 1,)
        (r,) = item.ranks
        changed = state | {f"{item.layer.name}.weight": u[:, :r] @ torch.diag(s[:r]) @ v[:r]}
        model = Classifier().eval()
        model.load_state_dict(changed)
        accuracy = float((model(x[300:]).argmax(1) == y[300:]).float().mean())
        # One of a hundred samples may be on the decision boundary, by rounding.
        assert item.before == pytest.approx(found.baseline["accuracy"] - accuracy, abs=0.011)
        assert item.removed == pytest.approx(float(s[r:].square().sum().sqrt()), rel=1e-3, abs=1e-5)
        assert item.norm == pytest.approx(float(s.square().sum().sqrt()), rel=1e-5)
        document = item.to_dict()
        assert document["drop_per_norm"] == pytest.approx(item.before / item.norm)
    assert max(item.before for item in found.layers) > 0.1


def test_fine_tuning_is_repeated_over_seeds_and_recovers(folder: Path) -> None:
    found = measure(folder, energies=(0.4,), finetune_steps=60, runs=3, selection=Selection(only=["fc1"]))
    (item,) = found.layers
    assert item.after
    assert len(item.after.values) == 3
    assert item.after.mean < item.before - 0.1
    assert item.drop == item.after.mean
    assert found.ranking(0.4) == ["fc1"]


def test_a_cached_result_is_not_measured_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"energies": (0.3, 0.9), "finetune_steps": 5, "runs": 2, "cache": tmp_path / "c.jsonl"}
    first = measure(folder, **options)
    assert first.measured == 1 + 4 + 8

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr("lrzip.training.bench.train", never)
        patched.setattr("lrzip.training.metrics.Scorer.__call__", never)
        again = measure(folder, **options)
    assert again.measured == 0
    assert again.to_dict() == first.to_dict()
    # Another seed, number of steps or validation set has other results.
    assert measure(folder, **options | {"runs": 3}).measured == 4
    assert measure(folder, **options | {"finetune_steps": 6}).measured == 8
    x, y = classes()
    assert measure(folder, **options, learning=learning_of(x[:-1], y[:-1])).measured == 13


@pytest.mark.parametrize(
    "scores", [None, {}, 7, [], {"accuracy": "x"}, {"accuracy": 0.5}, {"accuracy": None}, {"r2": "0.5"}], ids=str
)
def test_a_damaged_result_is_measured_again(scores: object, folder: Path, tmp_path: Path) -> None:
    first = measure(folder, energies=(0.3,), cache=tmp_path / "c.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line | {"scores": scores}) + "\n" for line in lines))
    again = measure(folder, energies=(0.3,), cache=tmp_path / "c.jsonl")
    assert again.measured == first.measured == len(lines)
    assert again.to_dict() == first.to_dict()


def test_an_interrupted_measurement_continues_from_its_cache(folder: Path, tmp_path: Path) -> None:
    count = 0

    def stop(_: str) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(folder, energies=(0.3, 0.9), cache=tmp_path / "c.jsonl", announce=stop)
    assert measure(folder, energies=(0.3, 0.9), cache=tmp_path / "c.jsonl").measured == 2


def test_a_larger_error_is_a_positive_drop(tmp_path: Path) -> None:
    write_trained(tmp_path, Regressor)
    learning = learning_of(*numbers(), metrics=["rmse"])
    found = measure(tmp_path, model=Regressor(), learning=learning, energies=(0.2,), selection=Selection(only=["fc1"]))
    assert found.layers[0].before > 0.1
    assert (found.metric, found.unit) == ("rmse", 1.0)


def test_without_labels_the_dense_network_is_the_reference(folder: Path) -> None:
    x, _ = classes()
    found = measure(folder, learning=learning_of(x, None), energies=(0.3,))
    assert found.baseline == {"accuracy": 1.0}
    assert max(item.before for item in found.layers) > 0.1


def test_invalid_input_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="`runs` repeats fine-tuning"):
        measure(folder, runs=2)
    with pytest.raises(UsageError, match="`runs` takes a number from 1 on, got 0"):
        measure(folder, runs=0)
    with pytest.raises(UsageError, match="`finetune_steps` takes a number from 0 on, got -1"):
        measure(folder, finetune_steps=-1)
    x, y = classes()
    with pytest.raises(UsageError, match="has no validation set"):
        measure(folder, learning=learning_of(x, y).__class__(Data(samples_of(x, y), None)))
    with pytest.raises(UsageError, match="`metrics=r2` is for regression"):
        measure(folder, learning=learning_of(x, y, metrics=["r2"]))
    with pytest.raises(LrzipError, match="has the label 2 in row 2, but the network has 2 classes"):
        measure(folder, model=_two_classes(), learning=learning_of(x, y))


def _two_classes() -> Classifier:
    class Two(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :2]

    return Two()


def test_the_same_seed_gives_the_same_result(folder: Path) -> None:
    settings = Settings(epochs=1, batch_size=32, lr=1e-2, seed=7)
    options: dict[str, Any] = {"energies": (0.3,), "finetune_steps": 3, "runs": 2, "selection": Selection(only=["fc1"])}
    runs = [measure(folder, **options, learning=learning_of(*classes(), settings=s)) for s in (settings, settings)]
    assert runs[0].to_dict() == runs[1].to_dict()


def test_layers_are_factorized_by_the_decomposition(convolutional: Path) -> None:
    found = measure(
        convolutional, model=TwoConvolutions(), factoring=Factoring(decomposition="tucker"), energies=(0.5, 0.9)
    )
    weight = torch.load(convolutional / "dense.pt")["state_dict"]["conv2.weight"]
    measured = [item for item in found.layers if item.layer.name == "conv2"]
    assert len(measured) == 2
    for item in measured:
        unfoldings = (weight.flatten(1), weight.transpose(0, 1).flatten(1))
        squares = [torch.linalg.svdvals(unfolding).square() for unfolding in unfoldings]
        shares = [values.cumsum(0) / values.sum() for values in squares]
        assert item.ranks == tuple(int((share < item.energy).sum()) + 1 for share in shares)
        tails = [float(values[rank:].sum()) for values, rank in zip(squares, item.ranks, strict=True)]
        assert item.removed == pytest.approx(sum(tails) ** 0.5, rel=1e-3)
        out, inner, *kernel = weight.shape
        assert item.parameters == item.ranks[1] * inner + item.ranks[0] * (item.ranks[1] * prod(kernel) + out)
    ranks = {item.layer.name: len(item.ranks) for item in found.layers}
    assert ranks == {"conv1": 2, "conv2": 2, "fc": 1}
