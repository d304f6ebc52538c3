from pathlib import Path
from typing import Any

import pytest
import torch

from lrzip.core.errors import LrzipError, UsageError
from lrzip.search.sensitivities import Sensitivities
from lrzip.search.sensitivity import sensitivity
from lrzip.training.data.read import Data
from lrzip.training.evaluation import evaluate
from lrzip.training.settings import Settings
from tests.support.tasks import (
    Classifier,
    Regressor,
    classes,
    learning_of,
    numbers,
    samples_of,
    write_compressed,
    write_trained,
)


def measure(folder: Path, **others: Any) -> Sensitivities:
    options: dict[str, Any] = {"model": Classifier(), "learning": learning_of(*classes())} | others
    return sensitivity(folder / "dense.pt", **options)


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
    found = measure(folder, energies=(0.4,), finetune_steps=60, runs=3, only=["fc1"])
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
    found = measure(tmp_path, model=Regressor(), learning=learning, energies=(0.2,), only=["fc1"])
    assert found.layers[0].before > 0.1
    assert (found.metric, found.unit) == ("rmse", 1.0)


def test_without_labels_the_dense_network_is_the_reference(folder: Path) -> None:
    x, _ = classes()
    found = measure(folder, learning=learning_of(x, None), energies=(0.3,))
    assert found.baseline == {"accuracy": 1.0}
    assert max(item.before for item in found.layers) > 0.1


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--runs` repeats fine-tuning"):
        measure(folder, runs=2)
    with pytest.raises(UsageError, match="`--runs` takes a number from 1 on, got 0"):
        measure(folder, runs=0)
    with pytest.raises(UsageError, match="`--finetune-steps` takes a number from 0 on, got -1"):
        measure(folder, finetune_steps=-1)
    write_compressed(tmp_path)
    with pytest.raises(LrzipError, match=r"is factorized already, at `fc1`\. Give the dense checkpoint"):
        sensitivity(tmp_path / "small.pt", model=Classifier(), learning=learning_of(*classes()))
    x, y = classes()
    with pytest.raises(UsageError, match="There is no validation set"):
        measure(folder, learning=learning_of(x, y).__class__(Data(samples_of(x, y), None)))
    with pytest.raises(UsageError, match="`--metric r2` is for regression"):
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
    options: dict[str, Any] = {"energies": (0.3,), "finetune_steps": 3, "runs": 2, "only": ["fc1"]}
    runs = [measure(folder, **options, learning=learning_of(*classes(), settings=s)) for s in (settings, settings)]
    assert runs[0].to_dict() == runs[1].to_dict()
