from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.bench import Bench, make_bench
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Samples, UserDataset
from lrzip.training.learning import Learning
from lrzip.training.losses import Distillation
from lrzip.training.settings import Settings
from tests.support.networks import seeded
from tests.support.tasks import (
    Classifier,
    Regressor,
    classes,
    learning_of,
    numbers,
    write_compressed,
    write_data,
    write_trained,
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained(tmp_path_factory.mktemp("bench"))


def bench_of(path: Path, *, distil: bool = False, **options: Any) -> Bench:
    return make_bench(path, Classifier(), learning_of(*classes(), **options), distil=distil)


def test_the_score_is_the_metric_on_the_validation_set(dense: Path) -> None:
    bench = bench_of(dense)
    x, y = classes()
    with torch.no_grad():
        correct = bench.model.eval()(x).argmax(1) == y
    assert bench.score(bench.model)["accuracy"] == pytest.approx(float(correct[300:].float().mean()))
    assert bench.score(bench.model, bench.train)["accuracy"] == pytest.approx(float(correct[:300].float().mean()))


def test_tuning_returns_the_best_state(dense: Path) -> None:
    bench = bench_of(dense)
    model = seeded(Classifier)
    outcome = bench.tune(model, bench.learning.settings)
    assert bench.gain(outcome.best.scores) > bench.gain(outcome.epochs[0].scores)
    model.load_state_dict(outcome.state)
    assert bench.score(model) == pytest.approx(outcome.best.scores)


def test_drops_of_shares_are_in_percentage_points(dense: Path, tmp_path: Path) -> None:
    assert bench_of(dense).unit == 0.01
    path = write_trained(tmp_path, Regressor, steps=1)
    assert make_bench(path, Regressor(), learning_of(*numbers()), distil=False).unit == 1.0


def test_the_network_is_its_own_teacher_unless_another_is_given(dense: Path, tmp_path: Path) -> None:
    assert bench_of(dense).teacher is None
    own = bench_of(dense, distil=True)
    assert own.teacher is not None
    assert own.teacher is not own.model
    assert torch.equal(own.teacher.get_parameter("fc1.weight"), own.model.get_parameter("fc1.weight"))
    write_compressed(tmp_path)
    other = bench_of(dense, distil=True, teacher=tmp_path / "dense.pt")
    assert other.teacher is not None
    expected = seeded(Classifier).get_parameter("fc1.weight")
    assert torch.equal(other.teacher.get_parameter("fc1.weight"), expected)


def test_input_shapes_are_those_of_a_sample(dense: Path) -> None:
    assert bench_of(dense).input_shapes() == ("1,12:float32",)
    named = Samples("named", UserDataset([{"a": row} for row in classes(4)[0]], None))  # type: ignore[arg-type]
    assert replace(bench_of(dense), val=named).input_shapes() == ()


OTHERS: list[dict[str, Any]] = [
    {"loss": "kl"},
    {"label_smoothing": 0.1},
    {"metrics": ["accuracy", "tests.support.tasks:surprise"]},
    {"distillation": Distillation(temperature=2.0)},
    {"settings": Settings(amp="bf16")},
]


def test_the_identity_is_a_function_of_all_that_results_depend_on(dense: Path) -> None:
    x, y = classes()
    identity = bench_of(dense).identity
    assert bench_of(dense, settings=Settings(epochs=7, seed=3)).identity == identity
    others = [bench_of(dense, **options).identity for options in OTHERS]
    others.append(bench_of(dense, distil=True).identity)
    others.append(make_bench(dense, Classifier(), learning_of(x[:-4], y[:-4]), distil=False).identity)
    assert len({identity, *others}) == 1 + len(others) == 8


def test_a_validation_set_is_needed(dense: Path) -> None:
    learning = learning_of(*classes())
    assert isinstance(learning.data, Data)
    for val in (None, learning.data.train.subset(torch.arange(0))):
        with pytest.raises(UsageError, match="has no validation set"):
            make_bench(dense, Classifier(), replace(learning, data=Data(learning.data.train, val)), distil=False)


def test_factorized_checkpoints_are_measured_but_not_distilled(tmp_path: Path) -> None:
    small = write_compressed(tmp_path)
    assert isinstance(bench_of(small).model.get_submodule("fc1"), nn.Sequential)
    with pytest.raises(LrzipError, match=r"is factorized already, at `fc1`. Give the dense checkpoint"):
        bench_of(small, distil=True)


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(seeded(Classifier), (torch.zeros(3, 12),)), tmp_path / "m.pt2")
    with pytest.raises(LrzipError, match="is a program, which cannot be fine-tuned"):
        make_bench(tmp_path / "m.pt2", Classifier(), learning_of(*classes()), distil=True, trust=True)


def test_data_is_read_as_specified(dense: Path, tmp_path: Path) -> None:
    spec = str(write_data(tmp_path / "data.npz", *classes()))
    bench = make_bench(dense, Classifier(), Learning(spec, val_fraction=0.25), distil=False)
    assert (len(bench.train), len(bench.val)) == (300, 100)
