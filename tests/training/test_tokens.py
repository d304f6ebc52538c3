"""Labels of sequences: which outputs they belong to, and who computes the loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples, UserDataset
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.tasks import CLASSIFICATION, Task, task_of
from lrzip.training.tokens import with_alignment
from tests.support.networks import seeded

VOCABULARY, LENGTH = 11, 6


class Model(nn.Module):
    """A language model that mixes each position with the earlier ones, or with all of them."""

    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)
        self.causal = causal

    def scores(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        mixed = x.cumsum(1) if self.causal else x.sum(1, keepdim=True) + x
        out: Tensor = self.head(mixed)
        return out

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.scores(input_ids)


class OwnLoss(Model):
    """The same, with a loss of its own as in transformers."""

    shift = True

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits, loss = self.scores(input_ids), None
        if labels is not None:
            outputs, targets = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
            loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        return SimpleNamespace(loss=loss, logits=logits)


class Masked(OwnLoss):
    """The same, with the loss of a masked language model."""

    shift = False


def scores_of(model: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(model, Model)
    return model.scores(x)


def tokens(count: int = 20) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(0))


def samples_of(x: Tensor, y: Tensor, *, named: bool) -> Samples:
    if not named:
        return Samples("d", Arrays(x, y))
    items: Any = [{"input_ids": a, "labels": b} for a, b in zip(x, y, strict=True)]
    return Samples("d", UserDataset(items, None))


def found(model: nn.Module, samples: Samples, loss: str = "auto") -> Task:
    return with_alignment(model, samples, task_of(model, Data(samples, None), loss), loss)


def loss_and_accuracy(model: nn.Module, samples: Samples, task: Task) -> tuple[Tensor, float]:
    x, y = samples.fetch(range(len(samples)))
    return TrainingLoss(task, make_loss("auto", task))(model, x, y), Scorer((), task)(model, samples)["accuracy"]


@pytest.mark.parametrize("named", [False, True], ids=["arrays", "mapping"])
@pytest.mark.parametrize("kind", [Model, OwnLoss])
def test_labels_that_are_the_inputs_are_those_of_the_next_position(kind: type[Model], named: bool) -> None:
    model, x = seeded(kind), tokens()
    samples = samples_of(x, x, named=named)
    task = found(model, samples)
    assert task == Task(CLASSIFICATION, VOCABULARY, labelled=True, shifted=True, own_loss=kind is OwnLoss)
    assert task.remark
    scores = scores_of(model, x)
    loss, accuracy = loss_and_accuracy(model, samples, task)
    assert torch.allclose(loss, F.cross_entropy(scores[:, :-1].flatten(0, 1), x[:, 1:].flatten()))
    assert accuracy == pytest.approx(float((scores[:, :-1].argmax(-1) == x[:, 1:]).float().mean()))


@pytest.mark.parametrize("named", [False, True], ids=["arrays", "mapping"])
@pytest.mark.parametrize("kind", [Model, OwnLoss])
def test_labels_that_are_moved_already_are_not_moved_again(kind: type[Model], named: bool) -> None:
    model, x = seeded(kind), tokens()
    samples = samples_of(x[:, :-1], x[:, 1:], named=named)
    task = found(model, samples)
    assert task == Task(CLASSIFICATION, VOCABULARY, labelled=True)
    loss, accuracy = loss_and_accuracy(model, samples, task)
    scores = scores_of(model, x[:, :-1])
    assert torch.allclose(loss, F.cross_entropy(scores.flatten(0, 1), x[:, 1:].flatten()))
    assert accuracy == pytest.approx(float((scores.argmax(-1) == x[:, 1:]).float().mean()))


def test_positions_without_a_label_count_in_neither_loss_nor_metric() -> None:
    model, x = seeded(Masked), tokens()
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    samples = samples_of(torch.where(hidden, 0, x), torch.where(hidden, x, -100), named=True)
    task = found(model, samples)
    assert (task.shifted, task.own_loss) == (False, True)
    scores = scores_of(model, torch.where(hidden, 0, x))
    loss, accuracy = loss_and_accuracy(model, samples, task)
    assert torch.allclose(loss, F.cross_entropy(scores[hidden], x[hidden]))
    assert accuracy == pytest.approx(float((scores.argmax(-1) == x)[hidden].float().mean()))


def test_padding_that_is_ignored_does_not_hide_that_labels_are_the_inputs() -> None:
    x = tokens()
    y = x.clone()
    y[:, -2:] = -100
    assert found(seeded(Model), samples_of(x, y, named=True)).shifted


def test_a_network_that_sees_its_labels_is_refused() -> None:
    x = tokens()
    with pytest.raises(LrzipError, match="The labels of `d` are its inputs, and the network sees all of them"):
        found(Model(causal=False), samples_of(x, x, named=False))


def test_a_loss_that_is_asked_for_takes_the_place_of_that_of_the_network() -> None:
    x = tokens()
    task = found(seeded(OwnLoss), samples_of(x, x, named=True), "cross_entropy")
    assert (task.shifted, task.own_loss) == (True, False)


def test_labels_of_whole_samples_and_tags_are_left_as_they_are() -> None:
    model, x = seeded(Model), tokens()
    tags = (x * 3 + 1) % VOCABULARY
    assert found(model, samples_of(x, tags, named=False)) == Task(CLASSIFICATION, VOCABULARY, labelled=True)
