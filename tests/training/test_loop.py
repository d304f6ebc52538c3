from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.forward import apply, images_last, probe
from lrzip.training.loop import train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Outcome
from lrzip.training.settings import Settings, make_optimizer
from lrzip.training.tasks import CLASSIFICATION, Task
from tests.support.networks import seeded
from tests.support.tasks import Classifier, classes

TASK = Task(CLASSIFICATION, 4, labelled=True)


class Images(nn.Module):
    """Convolutions and dropout: 3×8×8 pixels, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))
        return out


class Viewing(Images):
    """Takes its activations as they lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).view(len(x), -1))
        return out


def pictures() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, 8, 8, generator=generator)
    samples = Samples("pictures", Arrays(x, torch.arange(96) % 4))
    return Data(samples, samples.subset(torch.arange(24)))


def fit(model: nn.Module, data: Data, settings: Settings, **options: Any) -> Outcome:
    return train(model, data, TrainingLoss(TASK, make_loss("auto", TASK)), Scorer([], TASK), settings, **options)


def test_random_numbers_of_the_caller_stay() -> None:
    model = seeded(Images)
    before = torch.get_rng_state()
    fit(model, pictures(), Settings(epochs=1, batch_size=24))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("workers", "amp"), [(0, "no"), (1, "no"), (0, "bf16")])
def test_convolutions_and_dropout_resume_bit_for_bit(
    optimizer: str, workers: int, amp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(epochs=2, batch_size=24, optimizer=optimizer, amp=amp)
    whole = fit(seeded(Images), pictures(), settings, workers=workers)
    monkeypatch.setattr("lrzip.training.loop._SAVE_SECONDS", 0.0)

    def die(moment: Any) -> None:
        if moment.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(seeded(Images), pictures(), settings, resume=tmp_path / "state.pt", watch=die)
    resumed = fit(seeded(Images), pictures(), settings, resume=tmp_path / "state.pt")
    for name, tensor in whole.state.items():
        assert torch.equal(tensor, resumed.state[name]), name
        assert tensor.is_contiguous()


def test_images_last_is_left_where_a_network_cannot_take_it() -> None:
    data = pictures().train
    assert images_last(seeded(Images), data)
    model = seeded(Viewing)
    assert not images_last(model, data)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert not images_last(seeded(Classifier), Samples("d", Arrays(*classes())))
    fit(seeded(Viewing), pictures(), Settings(epochs=1))


def test_steps_take_the_place_of_epochs() -> None:
    outcome = fit(seeded(Images), pictures(), Settings(epochs=9, steps=6, batch_size=24))
    assert outcome.steps == 6
    assert [epoch.step for epoch in outcome.epochs] == [0, 4, 6]


def test_a_batch_is_no_larger_than_the_data() -> None:
    assert fit(seeded(Images), pictures(), Settings(epochs=1, batch_size=1000)).steps == 1


def test_the_first_rate_is_warm_and_the_best_state_is_a_copy() -> None:
    model = seeded(Images)
    outcome = fit(model, pictures(), Settings(epochs=3, batch_size=24, warmup=0.5))
    first = outcome.state["fc.weight"].clone()
    with torch.no_grad():
        model.get_parameter("fc.weight").zero_()
    assert torch.equal(outcome.state["fc.weight"], first)
    assert outcome.best in outcome.epochs


def test_biases_and_norms_do_not_decay() -> None:
    optimizer = make_optimizer(seeded(Images).parameters(), Settings(weight_decay=0.1))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 2), (0.0, 4)]


class Several(nn.Module):
    """Takes and gives several tensors."""

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        return {"hidden": a, "logits": a + b}


def test_networks_may_take_and_give_several_tensors() -> None:
    a, b = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert torch.equal(apply(Several(), (a, b)), a + b)
    assert torch.equal(apply(Several(), {"b": b, "a": a}), a + b)

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> None:
            del x

    with pytest.raises(LrzipError, match="returns NoneType without a tensor"):
        apply(Nothing(), a)
    with pytest.raises(LrzipError, match=r"does not take the inputs of `d`, float32 \(5,\)"):
        probe(seeded(Classifier), Samples("d", Arrays(torch.zeros(3, 5), None)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "`--optimizer` takes"),
        ({"schedule": "step"}, "`--schedule` takes"),
        ({"amp": "int8"}, "`--amp` takes"),
        ({"epochs": 0}, "`--epochs` takes"),
        ({"steps": 0}, "`--steps` takes"),
        ({"batch_size": 0}, "`--batch-size` takes"),
        ({"lr": 0.0}, "`--lr` takes"),
        ({"clip": -1.0}, "`--clip` takes"),
        ({"weight_decay": float("nan")}, "`--weight-decay` takes"),
        ({"warmup": 1.5}, "`--warmup` takes"),
        ({"patience": 0}, "`--patience` takes"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**options)
