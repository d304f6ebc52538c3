import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.batches import Share
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.metrics import Scorer
from lrzip.training.tasks import CLASSIFICATION, REGRESSION, Task

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(50, 8, generator=GENERATOR)
LABELS = torch.randint(8, (50,), generator=GENERATOR)
TARGETS = torch.randn(50, generator=GENERATOR)
CLASSES, NUMBERS = Task(CLASSIFICATION, 8, labelled=True), Task(REGRESSION, 0, labelled=True)


def median_error(output: Tensor, target: Tensor) -> Tensor:
    return (output[:, 0] - target).abs().median()


class Squared(MeanSquaredError):
    """A metric class supplied by the user."""


number = 5


def score(specs: list[str], task: Task, batch_size: int = 7) -> dict[str, float]:
    x = OUTPUTS if task is CLASSES else OUTPUTS[:, :1]
    samples = Samples("data", Arrays(x, LABELS if task is CLASSES else TARGETS))
    return Scorer(specs, task)(nn.Identity(), samples, batch_size=batch_size)


def test_classification_agrees_with_scikit_learn() -> None:
    found = score(["accuracy", "top5"], CLASSES)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(LABELS, OUTPUTS.argmax(1)))
    expected = reference.top_k_accuracy_score(LABELS, OUTPUTS, k=5, labels=np.arange(8))
    assert found["top5"] == pytest.approx(expected)


def test_regression_agrees_with_scikit_learn() -> None:
    found = score(["r2", "rmse", "mae"], NUMBERS)
    prediction = OUTPUTS[:, 0]
    # Sums of 50 float32 numbers differ in their last digits by the order.
    assert found["r2"] == pytest.approx(reference.r2_score(TARGETS, prediction), rel=1e-5)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(TARGETS, prediction), rel=1e-5)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(TARGETS, prediction), rel=1e-5)


def test_functions_get_all_outputs_at_once() -> None:
    found = score(["tests.training.test_metrics:median_error:min"], NUMBERS)
    expected = float((OUTPUTS[:, 0] - TARGETS).abs().median())
    assert found["tests.training.test_metrics:median_error:min"] == expected


def test_the_deciding_metric_says_which_direction_is_better() -> None:
    scorer = Scorer(["tests.training.test_metrics:Squared"], NUMBERS)
    assert not scorer.higher_is_better
    assert scorer.gain({"tests.training.test_metrics:Squared": 2.0}) == -2.0
    assert Scorer([], CLASSES).higher_is_better
    assert Scorer([], NUMBERS).first == "r2"
    assert Scorer([], CLASSES).gain({"accuracy": float("nan")}) == float("-inf")
    assert Scorer(["tests.training.test_metrics:Squared:max"], NUMBERS).higher_is_better
    for direction in ("min", "max"):
        named = Scorer([f"tests.training.test_metrics:median_error:{direction}"], NUMBERS)
        assert named.higher_is_better == (direction == "max")
    with pytest.raises(UsageError, match=r"median_error` has no direction. Give `.*:median_error:max` or `.*:min`"):
        Scorer(["tests.training.test_metrics:median_error"], NUMBERS)
    assert Scorer(["r2", "tests.training.test_metrics:median_error"], NUMBERS).higher_is_better
    with pytest.raises(LrzipError, match="is int, not a function"):
        Scorer(["tests.training.test_metrics:number"], NUMBERS)


def test_modes_of_modules_are_restored() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).train()
    model[0].eval()
    Scorer([], CLASSES)(model, Samples("data", Arrays(OUTPUTS, LABELS)))
    assert [module.training for module in model.modules()] == [True, False, True]


def failing(output: Tensor, target: Tensor) -> Tensor:
    del output, target
    raise ValueError("no luck")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("f1", "`metrics` takes accuracy, top5, r2, rmse, mae or"),
        ("r2", "`metrics=r2` is for regression; this is classification, which has accuracy, top5"),
        ("top5", "`metrics=top5` is always 1 for 4 classes"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer([spec], Task(CLASSIFICATION, 4, labelled=True))


def test_metrics_that_fail_are_named() -> None:
    with pytest.raises(LrzipError, match=r"test_metrics:failing:max` failed: ValueError: no luck"):
        score(["tests.training.test_metrics:failing:max"], CLASSES)


def test_the_target_replaces_labels() -> None:
    samples = Samples("data", Arrays(OUTPUTS, None))
    found = Scorer([], CLASSES)(nn.Identity(), samples, target=lambda inputs, _: inputs.argmax(1))
    assert found == {"accuracy": 1.0}
    with pytest.raises(LrzipError, match="`data` has no labels"):
        Scorer([], CLASSES)(nn.Identity(), samples)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_share_the_samples_and_run_equally_often(count: int) -> None:
    """A process without samples left runs the network all the same, since sharded weights need all processes."""
    sizes: list[int] = []

    class Counting(nn.Identity):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            sizes.append(len(input))
            return input

    samples = Samples("data", Arrays(OUTPUTS, LABELS))
    correct, runs = 0.0, []
    for rank in range(count):
        sizes.clear()
        found = Scorer([], CLASSES)(Counting(), samples, batch_size=7, share=Share(rank, count))
        runs.append(len(sizes))
        correct += found["accuracy"] * len(range(rank, 50, count))
    assert len(set(runs)) == 1
    assert correct == pytest.approx(float((OUTPUTS.argmax(1) == LABELS).sum()), abs=1e-3)
