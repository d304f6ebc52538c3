import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lrzip
from lrzip.api.finetune import default_output
from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.losses import Distillation
from lrzip.training.settings import Settings
from tests.support.finetunes import FAST, tune
from tests.support.tasks import Classifier, Regressor, classes, numbers, write_compressed, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "data.npz", *classes())
    write_compressed(tmp_path)
    return tmp_path


def test_a_classifier_learns_and_keeps_names_nesting_and_dtypes(folder: Path) -> None:
    before = (folder / "small.pt").read_bytes()
    report = tune(folder)
    assert report.before["accuracy"] < 0.6 < 0.95 < report.after["accuracy"]
    assert (folder / "small.pt").read_bytes() == before
    small, tuned = (torch.load(folder / name) for name in ("small.pt", "tuned.pt"))
    assert tuned["epoch"] == 3
    assert list(tuned) == ["epoch", "state_dict"]
    shapes = [{name: (t.shape, t.dtype) for name, t in content["state_dict"].items()} for content in (small, tuned)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(small["state_dict"]["fc1.0.weight"], tuned["state_dict"]["fc1.0.weight"])
    # What was written computes what was measured.
    model = lrzip.load_into(Classifier(), folder / "tuned.pt").eval()
    x, y = classes()
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9


def test_modules_that_are_not_selected_stay_as_they_are(folder: Path) -> None:
    tune(folder, only=["fc1"], settings=Settings(epochs=1, batch_size=32))
    before, after = (torch.load(folder / name)["state_dict"] for name in ("small.pt", "tuned.pt"))
    assert {name for name in before if not before[name].equal(after[name])} == {
        name for name in before if name.startswith("fc1.")
    }


def test_a_regression_learns_with_nothing_but_model_and_data(tmp_path: Path) -> None:
    write_data(tmp_path / "data.npz", *numbers())
    report = lrzip.finetune(
        write_compressed(tmp_path, Regressor),
        model=Regressor(),
        data=str(tmp_path / "data.npz"),
        metrics=["rmse", "r2"],
    )
    assert report.task.kind == "regression"
    assert report.after["rmse"] < report.before["rmse"]
    assert report.after["r2"] > report.before["r2"]
    assert report.output == tmp_path / "small.tuned.pt"


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(folder: Path) -> None:
    for name, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1)):
        tune(folder, name, settings=Settings(epochs=1, batch_size=32, seed=seed))
    a, b, c = ((folder / name).read_bytes() for name in ("a.pt", "b.pt", "c.pt"))
    assert a == b != c


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 7, 12, 13, 21])
def test_a_killed_and_resumed_training_ends_with_the_same_bytes(
    step: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven steps an epoch; a state is kept after each, and the process dies in the step after."""
    settings = Settings(epochs=2, batch_size=32, schedule="plateau", optimizer="adamw")
    whole = tune(folder, "whole.pt", settings=settings)
    monkeypatch.setattr("lrzip.training.loop._SAVE_SECONDS", 0.0)

    def die(moment: Any) -> None:
        if moment.step == step + 1:
            raise _Killed

    with pytest.raises(_Killed):
        tune(folder, "resumed.pt", settings=settings, resume=folder / "state.pt", watch=die)
    assert not (folder / "resumed.pt").exists()
    resumed = tune(folder, "resumed.pt", settings=settings, resume=folder / "state.pt")
    assert (folder / "resumed.pt").read_bytes() == (folder / "whole.pt").read_bytes()
    assert [e.scores for e in resumed.outcome.epochs] == [e.scores for e in whole.outcome.epochs]
    assert [e.loss for e in resumed.outcome.epochs] == [e.loss for e in whole.outcome.epochs]


def test_a_finished_training_is_not_trained_again(folder: Path) -> None:
    first = tune(folder, "a.pt", resume=folder / "state.pt")
    again = tune(folder, "b.pt", resume=folder / "state.pt")
    assert (folder / "a.pt").read_bytes() == (folder / "b.pt").read_bytes()
    assert again.outcome.steps == first.outcome.steps


def test_ctrl_c_writes_the_best_so_far_and_the_resumed_rest_is_the_same(folder: Path) -> None:
    tune(folder, "whole.pt")

    def interrupt(moment: Any) -> None:
        if moment.step == 15:
            signal.raise_signal(signal.SIGINT)

    report = tune(folder, "half.pt", watch=interrupt, resume=folder / "state.pt")
    assert report.outcome.stopped == "interrupted"
    assert report.outcome.steps == 15
    assert report.trouble
    assert report.trouble.startswith("Interrupted after step 15; ")
    assert report.after["accuracy"] > report.before["accuracy"]
    assert (folder / "half.pt").exists()
    tune(folder, "resumed.pt", resume=folder / "state.pt")
    assert (folder / "resumed.pt").read_bytes() == (folder / "whole.pt").read_bytes()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(folder: Path) -> None:
    """At this rate the weights overflow soon after the warm-up."""
    settings = Settings(epochs=4, batch_size=32, optimizer="sgd", lr=1e30, clip=0, warmup=0.3)
    report = tune(folder, settings=settings)
    assert report.outcome.stopped == "not finite"
    assert report.trouble
    assert f"not finite in step {report.outcome.steps + 1}; " in report.trouble
    assert report.after["accuracy"] >= report.before["accuracy"]
    assert all(torch.isfinite(t).all() for t in torch.load(folder / "tuned.pt")["state_dict"].values())


def test_distillation_recovers_without_labels(folder: Path) -> None:
    """The teacher is a trained dense network; the student, of rank 2, never sees a label."""
    x, y = classes()
    lrzip.finetune(
        folder / "dense.pt", folder / "teacher.pt", model=Classifier(), data=str(folder / "data.npz"), settings=FAST
    )
    lrzip.compress(folder / "teacher.pt", folder / "small.pt", rank=2, layers={"fc2": "keep"}, force=True)
    write_data(folder / "unlabelled.npz", x)
    report = tune(folder, data=str(folder / "unlabelled.npz"), teacher=folder / "teacher.pt")
    model = lrzip.load_into(Classifier(), folder / "tuned.pt").eval()
    assert report.after["accuracy"] > 0.95  # agreement with the teacher
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9


def test_outputs_of_factorized_layers_are_learned_too(folder: Path) -> None:
    options: dict[str, Any] = {"teacher": folder / "dense.pt", "settings": Settings(epochs=8, batch_size=32, lr=1e-2)}

    def difference(name: str) -> float:
        model, dense = (lrzip.load_into(Classifier(), folder / file).eval() for file in (name, "dense.pt"))
        assert isinstance(model, Classifier)
        assert isinstance(dense, Classifier)
        return float((model.fc1(classes()[0]) - dense.fc1(classes()[0])).norm().detach())

    tune(folder, "without.pt", **options)
    tune(folder, "with.pt", distillation=Distillation(layers=10.0), **options)
    assert difference("with.pt") < 0.5 * difference("without.pt")


def test_without_a_validation_set_the_last_state_is_written(folder: Path) -> None:
    report = tune(folder, val_fraction=0)
    assert report.before == report.after == {}
    assert report.outcome.best.number == FAST.epochs


def test_patience_stops_early(folder: Path) -> None:
    report = tune(folder, settings=Settings(epochs=50, batch_size=32, lr=1e-2, patience=2))
    assert report.outcome.stopped == "patience"
    assert len(report.outcome.epochs) - 1 == report.outcome.best.number + 2


def test_frozen_batch_norms_keep_their_statistics(folder: Path) -> None:
    tune(folder, settings=Settings(epochs=1, batch_size=32, freeze_batchnorm=True))
    small, tuned = (torch.load(folder / name)["state_dict"] for name in ("small.pt", "tuned.pt"))
    for leaf in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(small[f"bn.{leaf}"], tuned[f"bn.{leaf}"])


def test_test_arrays_steer_nothing(folder: Path) -> None:
    """They hold nonsense of other shapes, which would stop anything that looked at them."""
    x, y = classes()
    parts = {"train_x": x, "train_y": y, "test_x": torch.full((5, 2), float("1")), "test_y": torch.full((5,), 99)}
    np.savez(folder / "parts.npz", **{name: array.numpy() for name, array in parts.items()})  # type: ignore[arg-type]
    report = tune(folder, data=str(folder / "parts.npz"))
    assert report.examples == (360, 40)
    with pytest.raises(UsageError, match="is test data, which must not influence"):
        tune(folder, data=f"{folder / 'parts.npz'}:test")


def test_the_log_has_a_line_an_epoch(folder: Path) -> None:
    report = tune(folder, log=folder / "log.jsonl")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == report.to_dict()["epochs"]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]


def test_default_outputs_stand_beside_the_source(tmp_path: Path) -> None:
    assert default_output(Path("a/small.pt")) == Path("a/small.tuned.pt")
    assert default_output(tmp_path) == tmp_path.with_name(f"{tmp_path.name}.tuned")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"y": torch.full((400,), 4)}, {}, "has the label 4 in row 0, but the network has 4 classes, 0 to 3"),
        (
            {"y": torch.zeros(400, 3)},
            {},
            r"has numbers of shape \(3,\) for a sample, but the network returns shape \(4,\)",
        ),
        ({"y": torch.zeros(400, 2, dtype=torch.int64)}, {}, r"has classes of shape \(2,\) for a sample, but"),
        ({"x": torch.zeros(400, 11)}, {}, r"does not take the inputs of .*, float32 \(11,\)"),
        ({"y": None}, {}, "no labels. Give the dense checkpoint as `teacher`"),
        ({}, {"loss": "mse"}, "`loss=mse` does not fit the data, which is classification"),
        ({}, {"loss": "hinge"}, "`loss` takes auto, "),
        ({}, {"metrics": ["r2"]}, "`metrics=r2` is for regression; this is classification, which has accuracy, top5"),
        ({}, {"metrics": ["top5"]}, "`metrics=top5` is always 1 for 4 classes"),
        ({}, {"metrics": ["f1"]}, "`metrics` takes accuracy, "),
        ({}, {"model": Regressor()}, "does not fit the model"),
        ({}, {"device": "cuda:77"}, "`device=cuda:77` cannot be used"),
        ({}, {"val_fraction": 1.0}, "`val_fraction` takes a share"),
        ({}, {"distillation": Distillation()}, "how to learn from a `teacher`"),
        ({}, {"label_smoothing": 1.5}, "`label_smoothing` takes a share"),
    ],
)
def test_failures_are_one_line(
    change: dict[str, Tensor | None], options: dict[str, Any], message: str, folder: Path
) -> None:
    x, y = classes()
    write_data(folder / "data.npz", **({"x": x, "y": y} | change))  # type: ignore[arg-type]
    with pytest.raises(LrzipError, match=message) as error:
        tune(folder, **options)
    assert "\n" not in str(error.value)
    assert not (folder / "tuned.pt").exists()


def test_texts_are_no_labels(folder: Path) -> None:
    x, y = classes()
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy().astype(str))
    with pytest.raises(LrzipError, match=r"`y` holds texts \(<U21\). Give numbers"):
        tune(folder)


def test_a_teacher_needs_labels_for_validation_alone(folder: Path) -> None:
    x, y = classes()
    write_data(folder / "train.npz", x[40:])
    write_data(folder / "val.npz", x[:40], y[:40])
    options: dict[str, Any] = {"data": str(folder / "train.npz"), "val": str(folder / "val.npz")}
    report = tune(folder, teacher=folder / "dense.pt", settings=Settings(steps=1), **options)
    model = lrzip.load_into(Classifier(), folder / "small.pt").eval()
    assert report.before["accuracy"] == pytest.approx(float((model(x[:40]).argmax(1) == y[:40]).float().mean()))
    with pytest.raises(LrzipError, match=r"no labels\. Give the dense checkpoint as `teacher`"):
        tune(folder, **options)


def test_labels_of_validation_sets_are_checked_too(folder: Path) -> None:
    x, y = classes(40)
    write_data(folder / "val.npz", x, y + 1)
    with pytest.raises(LrzipError, match="has the label 4 in row 3"):
        tune(folder, val=str(folder / "val.npz"))
