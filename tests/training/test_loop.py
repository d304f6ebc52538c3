import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import UsageError
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Arrays, Samples
from lrzip.training.loop import Execution, train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Epoch, Outcome, StepState
from lrzip.training.settings import Settings
from lrzip.training.tasks import CLASSIFICATION, Task
from tests.support.networks import seeded
from tests.support.tasks import Convolutional, images

TASK = Task(CLASSIFICATION, 4, labelled=True)


def labelled_images() -> Data:
    samples = Samples("images", Arrays(images(96), torch.arange(96) % 4))
    return Data(samples, samples.subset(torch.arange(24)))


def fit(model: nn.Module, data: Data, settings: Settings, **execution: Any) -> Outcome:
    objective = TrainingLoss(TASK, make_loss("auto", TASK))
    return train(model, data, objective, Scorer([], TASK), settings, Execution(**execution))


def test_the_random_state_of_the_caller_is_restored() -> None:
    model = seeded(Convolutional)
    before = torch.get_rng_state()
    fit(model, labelled_images(), Settings(epochs=1, batch_size=24))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("workers", "amp"), [(0, "no"), (1, "no"), (0, "bf16")])
def test_convolutions_and_dropout_resume_bit_for_bit(
    optimizer: str, workers: int, amp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(epochs=2, batch_size=24, optimizer=optimizer, amp=amp)
    uninterrupted = fit(seeded(Convolutional), labelled_images(), settings, workers=workers)
    monkeypatch.setattr("lrzip.training.loop._SAVE_SECONDS", 0.0)

    def die(state: StepState) -> None:
        if state.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(seeded(Convolutional), labelled_images(), settings, resume=tmp_path / "state.pt", watch=die)
    resumed = fit(seeded(Convolutional), labelled_images(), settings, resume=tmp_path / "state.pt")
    assert resumed.state.keys() == uninterrupted.state.keys() >= {"conv.weight", "fc.bias"}
    for name, tensor in uninterrupted.state.items():
        assert torch.equal(tensor, resumed.state[name]), name
        assert tensor.is_contiguous()


def test_steps_replace_epochs() -> None:
    outcome = fit(seeded(Convolutional), labelled_images(), Settings(epochs=9, steps=6, batch_size=24))
    assert outcome.steps == 6
    assert [epoch.step for epoch in outcome.epochs] == [0, 4, 6]


def test_a_batch_is_no_larger_than_the_data() -> None:
    assert fit(seeded(Convolutional), labelled_images(), Settings(epochs=1, batch_size=1000)).steps == 1


def test_the_best_state_is_a_copy_of_the_epoch_with_the_best_score() -> None:
    model = seeded(Convolutional)
    outcome = fit(model, labelled_images(), Settings(epochs=3, batch_size=24))
    best = outcome.state["fc.weight"].clone()
    with torch.no_grad():
        model.get_parameter("fc.weight").zero_()
    assert torch.equal(outcome.state["fc.weight"], best)
    assert outcome.best.scores["accuracy"] == max(epoch.scores["accuracy"] for epoch in outcome.epochs)
    again = seeded(Convolutional)
    again.load_state_dict(outcome.state)
    val = labelled_images().val
    assert val is not None
    assert Scorer([], TASK)(again, val) == pytest.approx(outcome.best.scores)


def test_without_a_validation_set_the_last_state_is_returned() -> None:
    model = seeded(Convolutional)
    outcome = fit(model, Data(labelled_images().train, None), Settings(epochs=2, batch_size=24))
    assert outcome.best is outcome.epochs[-1]
    assert torch.equal(outcome.state["fc.weight"], model.state_dict()["fc.weight"])


def test_frozen_batch_norms_keep_their_statistics() -> None:
    model = seeded(Convolutional)
    fit(model, labelled_images(), Settings(epochs=1, batch_size=24, freeze_batchnorm=True))
    assert torch.equal(model.get_buffer("norm.running_mean"), torch.zeros(8))
    fit(model, labelled_images(), Settings(epochs=1, batch_size=24))
    assert not torch.equal(model.get_buffer("norm.running_mean"), torch.zeros(8))


def test_each_step_and_each_evaluation_is_reported() -> None:
    steps: list[StepState] = []
    epochs: list[Epoch] = []
    outcome = fit(
        seeded(Convolutional),
        labelled_images(),
        Settings(epochs=2, batch_size=24),
        watch=steps.append,
        log=epochs.append,
    )
    assert [(state.epoch, state.step, state.steps) for state in steps] == [
        (1 + index // 4, index + 1, 8) for index in range(8)
    ]
    assert epochs == list(outcome.epochs)
    assert epochs[1].loss == pytest.approx(sum(state.loss for state in steps[:4]) / 4)


def test_an_interruption_stops_after_the_step_and_evaluates_it() -> None:
    def interrupt(state: StepState) -> None:
        if state.step == 2:
            signal.raise_signal(signal.SIGINT)

    outcome = fit(seeded(Convolutional), labelled_images(), Settings(epochs=2, batch_size=24), watch=interrupt)
    assert outcome.stopped == "interrupted"
    assert [epoch.step for epoch in outcome.epochs] == [0, 2]


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    settings = Settings(epochs=1, batch_size=24, optimizer="sgd", lr=1e30, clip=0.0, warmup=0.0)
    outcome = fit(seeded(Convolutional), labelled_images(), settings)
    assert outcome.stopped == "not finite"
    assert outcome.steps < 4
    assert all(bool(tensor.isfinite().all()) for tensor in outcome.state.values())


def test_patience_ends_a_training_without_progress() -> None:
    settings = Settings(epochs=9, batch_size=24, lr=1e-12, patience=2, freeze_batchnorm=True)
    outcome = fit(seeded(Convolutional), labelled_images(), settings)
    assert outcome.stopped == "patience"
    assert [epoch.number for epoch in outcome.epochs] == [0, 1, 2]


def test_batches_that_processes_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 5)
    with pytest.raises(UsageError, match="`batch_size=24` cannot be shared by 5 processes"):
        fit(seeded(Convolutional), labelled_images(), Settings(epochs=1, batch_size=24))


class Viewing(Convolutional):
    """Calls `view` on activations, which must be contiguous for it."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).view(len(x), -1))
        return out


def test_networks_that_cannot_run_in_channels_last_are_trained() -> None:
    assert fit(seeded(Viewing), labelled_images(), Settings(epochs=1)).steps > 0
