from pathlib import Path

import pytest
import torch

from lrzip.core.errors import UsageError
from lrzip.training.evaluation import Evaluation, evaluate, read_test
from lrzip.training.learning import Learning
from tests.support.tasks import Classifier, classes, learning_of, write_data, write_trained


def test_a_checkpoint_is_measured_on_the_validation_set(tmp_path: Path) -> None:
    path, (x, y) = write_trained(tmp_path), classes()
    found = evaluate(path, model=Classifier(), learning=learning_of(x, y))
    assert (found.task, found.examples) == ("classification", 100)
    model = Classifier()
    model.load_state_dict(torch.load(path)["state_dict"])
    with torch.no_grad():
        accuracy = float((model.eval()(x[300:]).argmax(1) == y[300:]).float().mean())
    assert found.scores == pytest.approx({"accuracy": accuracy})


def test_the_document_has_no_numbers_that_are_not_finite() -> None:
    evaluation = Evaluation({"r2": float("nan"), "rmse": 0.5}, 7, "regression")
    metrics = {"r2": None, "rmse": 0.5}
    assert evaluation.to_dict() == {"task": "regression", "val_examples": 7, "metrics": metrics}


def test_the_test_part_or_the_only_part_is_read(tmp_path: Path) -> None:
    x, y = classes(30)
    parts = str(write_data(tmp_path / "p.npz", train_x=x[:20], train_y=y[:20], test_x=x[20:], test_y=y[20:]))
    learning = Learning(parts)
    assert torch.equal(read_test(parts, learning).fetch(range(10))[0], x[20:])
    assert torch.equal(read_test(f"{parts}:train", learning).fetch(range(20))[0], x[:20])


def test_several_parts_without_a_test_part_are_ambiguous(tmp_path: Path) -> None:
    x, y = classes(30)
    spec = str(write_data(tmp_path / "p.npz", train_x=x[:20], train_y=y[:20], val_x=x[20:], val_y=y[20:]))
    with pytest.raises(UsageError, match=r"has the parts train, val\. Name one"):
        read_test(spec, Learning(spec))
