import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.losses import Distillation, TrainingLoss, make_loss
from lrzip.training.tasks import CLASSIFICATION, REGRESSION, Task
from tests.support.tasks import surprise

CLASSES = Task(CLASSIFICATION, 4, labelled=True)
NUMBERS = Task(REGRESSION, 0, labelled=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Linear):
    """A network of one layer, with reproducible weights."""

    def __init__(self, seed: int) -> None:
        super().__init__(3, 4)
        with torch.no_grad():
            self.weight.copy_(normal(4, 3, seed=seed))


def test_auto_is_cross_entropy_for_classes_and_mean_squared_error_for_numbers() -> None:
    output, target = normal(6, 4), torch.arange(6) % 4
    expected = F.cross_entropy(output, target, label_smoothing=0.1)
    assert torch.equal(make_loss("auto", CLASSES, label_smoothing=0.1)(output, target), expected)
    numbers = normal(6, seed=1)
    assert torch.equal(make_loss("auto", NUMBERS)(output[:, :1], numbers), F.mse_loss(output[:, 0], numbers))


def test_kl_takes_distributions() -> None:
    output, target = normal(6, 4), normal(6, 4, seed=1).softmax(1)
    expected = (target * (target.log() - output.log_softmax(1))).sum(1).mean()
    assert torch.allclose(make_loss("kl", NUMBERS)(output, target), expected, atol=1e-6)


def test_with_a_temperature_the_divergence_from_the_teacher_is_weighted_by_its_share() -> None:
    student, teacher, x, y = Linear(1), Linear(2), normal(8, 3), torch.arange(8) % 4
    loss = make_loss("auto", CLASSES)
    objective = TrainingLoss(CLASSES, loss, teacher=teacher, distillation=Distillation(temperature=3.0, share=0.25))
    ours, theirs = student(x) / 3, (teacher(x) / 3).softmax(1)
    distance = 9 * (theirs * (theirs.log() - ours.log_softmax(1))).sum(1).mean()
    assert torch.allclose(objective(student, x, y), 0.25 * distance + 0.75 * loss(student(x), y), atol=1e-6)


def test_without_a_temperature_outputs_are_compared_directly() -> None:
    student, teacher, x, y = Linear(1), Linear(2), normal(8, 3), torch.arange(8) % 4
    loss = make_loss("auto", CLASSES)
    objective = TrainingLoss(CLASSES, loss, teacher=teacher, distillation=Distillation(share=0.25))
    expected = 0.25 * (student(x) - teacher(x)).square().mean() + 0.75 * loss(student(x), y)
    assert torch.allclose(objective(student, x, y), expected, atol=1e-6)


def test_without_labels_the_teacher_is_the_only_target() -> None:
    task = Task(CLASSIFICATION, 4, labelled=False)
    student, teacher, x = Linear(1), Linear(2), normal(8, 3)
    objective = TrainingLoss(task, make_loss("auto", task), teacher=teacher)
    assert float(objective(teacher, x, None).detach()) == pytest.approx(0, abs=1e-6)
    assert float(objective(student, x, None).detach()) > 0.1
    assert torch.equal(objective.target(x, None), teacher(x).argmax(1))
    with pytest.raises(UsageError, match="no labels"):
        TrainingLoss(task, make_loss("auto", task))


def test_outputs_of_layers_are_compared_relative_to_the_teacher() -> None:
    student, teacher = (nn.Sequential(Linear(seed), nn.ReLU()) for seed in (1, 2))
    x, y = normal(8, 3), torch.arange(8) % 4
    loss = make_loss("auto", CLASSES)
    plain = TrainingLoss(CLASSES, loss, teacher=teacher)(student, x, y)
    objective = TrainingLoss(CLASSES, loss, teacher=teacher, distillation=Distillation(layers=2.0), modules=["0"])
    with objective.attached(student):
        matched = objective(student, x, y)
    relative = (student[0](x) - teacher[0](x)).square().sum() / teacher[0](x).square().sum()
    assert torch.allclose(matched - plain, 2 * relative, rtol=1e-5)
    assert not student[0]._forward_hooks


def test_classes_may_come_last_as_in_language_models() -> None:
    output, target = normal(2, 5, 4), torch.arange(10).reshape(2, 5) % 4
    expected = F.cross_entropy(output.flatten(0, 1), target.flatten())
    assert torch.allclose(make_loss("auto", CLASSES)(output, target), expected)


@pytest.mark.parametrize(
    ("spec", "task", "options", "message"),
    [
        ("hinge", CLASSES, {}, "`loss` takes auto, cross_entropy, mse, kl or"),
        ("mse", CLASSES, {}, "`loss=mse` does not fit the data, which is classification"),
        ("cross_entropy", NUMBERS, {}, "`loss=cross_entropy` does not fit the data, which is regression"),
        ("auto", CLASSES, {"label_smoothing": 1.0}, "`label_smoothing` takes a share"),
    ],
)
def test_losses_that_do_not_fit_are_refused(spec: str, task: Task, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_loss(spec, task, **options)


def test_a_loss_may_be_code() -> None:
    assert make_loss("tests.support.tasks:surprise", CLASSES) is surprise


def test_a_batch_without_labels_is_refused() -> None:
    objective = TrainingLoss(CLASSES, make_loss("auto", CLASSES))
    with pytest.raises(LrzipError, match="A batch has no labels"):
        objective(Linear(1), normal(8, 3), None)
    with pytest.raises(LrzipError, match="nothing can be measured"):
        objective.target(normal(8, 3), None)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"share": 0.0}, {"share": 1.1}, {"layers": -1.0}])
def test_distillation_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="takes a"):
        Distillation(**options)
