from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.losses import LossFunction, TrainingLoss, make_loss
from lrzip.training.processes import make_accelerator
from lrzip.training.settings import Settings
from lrzip.training.steps import Stepper
from lrzip.training.tasks import CLASSIFICATION, Task
from lrzip.training.weights import place
from tests.support.networks import seeded
from tests.support.tasks import Classifier, Convolutional, classes, images

TASK = Task(CLASSIFICATION, 4, labelled=True)
SGD: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.0, "clip": 0.0}


def stepper_of(model: nn.Module, loss: LossFunction | None = None, **options: Any) -> Stepper:
    accelerator = make_accelerator("cpu", "no")
    settings = Settings(**SGD | options)
    objective = TrainingLoss(TASK, loss or make_loss("auto", TASK))
    return Stepper(accelerator, model, place(model, settings, accelerator), objective, settings, channels_last=False)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_step_follows_the_gradient_of_the_loss() -> None:
    model, (x, y) = seeded(Classifier).train(), classes(32)
    reference = seeded(Classifier).train()
    loss = nn.functional.cross_entropy(reference(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    before = weights_of(model)
    value = stepper_of(model).take((x, y), 0, 0.1)
    assert value == pytest.approx(float(loss.detach()))
    # Nesterov's momentum of 0.9 makes the first step 1.9 gradients long.
    assert torch.allclose(weights_of(model), before - 0.19 * gradient, atol=1e-6)


def test_gradients_are_clipped() -> None:
    model, (x, y) = seeded(Classifier).train(), classes(32)
    before = weights_of(model)
    stepper_of(model, clip=1e-3).take((x, y), 0, 1.0)
    assert float((weights_of(model) - before).norm()) == pytest.approx(1.9e-3, rel=1e-2)


def test_dropout_is_a_function_of_the_seed_and_the_step() -> None:
    batch = images(8), torch.arange(8) % 4

    def loss(seed: int, step: int) -> float | None:
        return stepper_of(seeded(Convolutional).train(), seed=seed).take(batch, step, 0.1)

    assert loss(0, 5) == loss(0, 5)
    assert len({loss(0, 5), loss(0, 6), loss(1, 5)}) == 3


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, target: output.sum() * float("inf") + target.sum(),
        # A finite loss with a gradient that is not.
        lambda output, target: (output - output.detach()).abs().sqrt().sum() + 0 * target.sum(),
    ],
)
def test_weights_are_kept_if_the_loss_or_its_gradient_is_not_finite(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = seeded(Classifier).train()
    before = weights_of(model)
    assert stepper_of(model, loss).take(classes(32), 0, 0.1) is None
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: 1.0, r"The loss, float, is no scalar tensor"),  # noqa: ARG005
        (lambda output, target: output, r"The loss, of shape \(32, 4\), is no scalar tensor"),  # noqa: ARG005
        (lambda output, target: output.detach().sum(), r"depends on weights which can be trained"),  # noqa: ARG005
        (lambda output, target: output[:, target.max() + 1].sum(), r"Step 8, on inputs float32 \(12,\): IndexError: "),
    ],
)
def test_losses_that_cannot_be_trained_on_are_named(loss: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(LrzipError, match=message):
        stepper_of(seeded(Classifier), loss).take(classes(32), 7, 0.1)


def test_memory_that_runs_out_is_named() -> None:
    def exhausting(output: Tensor, target: Tensor) -> Tensor:
        del output, target
        raise torch.OutOfMemoryError

    with pytest.raises(LrzipError, match=r"out of memory in step 1. Lower `batch_size=N`"):
        stepper_of(seeded(Classifier), exhausting).take(classes(32), 0, 0.1)
