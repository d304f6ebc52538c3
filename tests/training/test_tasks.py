import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.tasks import CLASSIFICATION, REGRESSION, Task, class_first, find_task, task_of
from tests.support.networks import seeded
from tests.support.tasks import Classifier, Regressor, classes, numbers, samples_of


def samples(y: Tensor | None) -> Samples:
    return samples_of(torch.zeros(6 if y is None else len(y), 3), y)


def test_integer_labels_are_classes_and_others_numbers() -> None:
    assert find_task(samples(torch.arange(6) % 4), torch.zeros(2, 4)) == Task(CLASSIFICATION, 4, labelled=True)
    assert find_task(samples(torch.zeros(6)), torch.zeros(2, 1)) == Task(REGRESSION, 0, labelled=True)
    assert find_task(samples(torch.zeros(6, 4)), torch.zeros(2, 4)) == Task(REGRESSION, 0, labelled=True)


def test_without_labels_outputs_and_the_loss_decide() -> None:
    assert find_task(samples(None), torch.zeros(2, 4)) == Task(CLASSIFICATION, 4, labelled=False)
    assert find_task(samples(None), torch.zeros(2, 4), loss="mse") == Task(REGRESSION, 0, labelled=False)
    assert find_task(samples(None), torch.zeros(2, 1)) == Task(REGRESSION, 0, labelled=False)


def test_classes_may_come_last_as_in_language_models() -> None:
    output, target = torch.zeros(2, 5, 4), torch.arange(10).reshape(2, 5) % 4
    task = Task(CLASSIFICATION, 4, labelled=True)
    assert find_task(Samples("d", Arrays(torch.zeros(2, 5), target)), output) == task
    assert find_task(Samples("d", Arrays(torch.zeros(2, 5), target)), output.movedim(-1, 1)) == task
    assert class_first(output, target).shape == (2, 4, 5)
    assert class_first(output.movedim(-1, 1), target).shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("y", "output", "message"),
    [
        (torch.tensor([0, 4, 1]), torch.zeros(2, 4), "has the label 4 in row 1, but the network has 4 classes, 0 to 3"),
        (torch.tensor([0, -1, 1]), torch.zeros(2, 4), "has the label -1 in row 1"),
        (
            torch.arange(3),
            torch.zeros(2, 1),
            r"integer labels, which are classes, but .* returns shape \(1,\)",
        ),
        (torch.arange(3), torch.zeros(2), r"integer labels, which are classes, but the network returns shape \(\)"),
        (torch.zeros(3, 2).long(), torch.zeros(2, 4), r"classes of shape \(2,\) for a sample, but .* takes \(\)"),
        (torch.zeros(3, 2), torch.zeros(2, 4), r"numbers of shape \(2,\) for a sample, but .* shape \(4,\)"),
    ],
)
def test_labels_that_do_not_fit_the_output_are_refused(y: Tensor, output: Tensor, message: str) -> None:
    with pytest.raises(LrzipError, match=message):
        find_task(samples(y), output)


def test_the_task_of_a_network_is_that_of_both_sets() -> None:
    data = Data(samples_of(*classes(20)), samples_of(*classes(10)))
    assert task_of(seeded(Classifier), data, "auto") == Task(CLASSIFICATION, 4, labelled=True)
    assert task_of(seeded(Regressor), Data(samples_of(*numbers(20)), None), "auto").kind == REGRESSION


def test_the_validation_set_must_have_labels_of_the_same_kind_or_none() -> None:
    x, y = classes(20)
    unlabelled = Data(samples_of(x, y), samples_of(x, None))
    assert task_of(seeded(Classifier), unlabelled, "auto").labelled
    mixed = Data(samples_of(x, y), samples_of(x, nn.functional.one_hot(y).float()))
    with pytest.raises(LrzipError, match="has labels of another kind than"):
        task_of(seeded(Classifier), mixed, "auto")
