from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrzip.training.outcomes import Epoch
from lrzip.training.processes import make_accelerator
from lrzip.training.resuming import ResumeFile, TrainingProgress
from lrzip.training.settings import Settings
from lrzip.training.weights import Weights, place

IDENTITY: dict[str, Any] = {"lr": 0.01, "seed": 0}
PROGRESS = TrainingProgress(
    step=5,
    epochs=[Epoch(0, 0, 0.0, None, {"accuracy": 0.5}, 1.0), Epoch(1, 4, 0.01, 2.0, {"accuracy": 0.75}, 2.0)],
    losses=[1.5],
    best={"weight": torch.ones(3, 3), "bias": torch.ones(3)},
)


def trained() -> Weights:
    weights = place(nn.Linear(3, 3), Settings(), make_accelerator("cpu", "no"))
    weights.network(torch.ones(2, 3)).square().sum().backward()
    weights.optimizer.step()
    return weights


def test_progress_weights_and_optimizer_are_restored(tmp_path: Path) -> None:
    file, accelerator = ResumeFile(tmp_path / "state.pt", IDENTITY, ["accuracy"]), make_accelerator("cpu", "no")
    weights, other = trained(), trained()
    file.save(PROGRESS, weights, accelerator, seconds=7.0)
    found = file.restore(other, accelerator)
    assert (found.step, found.epochs, found.losses, found.seconds) == (5, PROGRESS.epochs, [1.5], 7.0)
    assert torch.equal(found.best["weight"], torch.ones(3, 3))
    assert weights.state().keys() == {"weight", "bias"}
    for name, tensor in weights.state().items():
        assert torch.equal(other.state()[name], tensor)
    moments = [state["exp_avg"] for state in weights.optimizer_state()["state"].values()]
    assert len(moments) == 2
    for moment, restored in zip(moments, other.optimizer_state()["state"].values(), strict=True):
        assert torch.equal(restored["exp_avg"], moment)


def test_without_a_file_a_training_is_new(tmp_path: Path) -> None:
    accelerator = make_accelerator("cpu", "no")
    for path in (None, tmp_path / "state.pt"):
        assert ResumeFile(path, IDENTITY).restore(trained(), accelerator) == TrainingProgress()
    ResumeFile(None, IDENTITY).save(PROGRESS, trained(), accelerator, seconds=0.0)
    assert list(tmp_path.iterdir()) == []


def test_the_keys_of_the_file_stay(tmp_path: Path) -> None:
    ResumeFile(tmp_path / "s.pt", IDENTITY).save(PROGRESS, trained(), make_accelerator("cpu", "no"), seconds=0.0)
    state = torch.load(tmp_path / "s.pt")
    assert sorted(state) == [
        *("best", "history", "loss", "lrzip_training", "model", "optimizer", "scaler", "seconds", "settings", "step")
    ]
    assert state["history"][1] == {
        "number": 1,
        "step": 4,
        "rate": 0.01,
        "loss": 2.0,
        "scores": {"accuracy": 0.75},
        "seconds": 2.0,
    }
