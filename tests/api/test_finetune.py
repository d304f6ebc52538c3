import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lrzip
from lrzip.api.finetune import FinetuneReport, default_output
from lrzip.core.errors import LrzipError, UsageError
from lrzip.formats.open import open_checkpoint
from lrzip.training.losses import Distillation
from lrzip.training.settings import Settings
from tests.support.checkpoints import BUILDERS, state
from tests.support.networks import Net, seeded
from tests.support.tasks import Classifier, Regressor, classes, numbers, write_compressed, write_data

FAST = Settings(epochs=4, batch_size=32, lr=1e-2)


def tune(folder: Path, name: str = "tuned.pt", **changes: Any) -> FinetuneReport:
    """Finetune the compressed classifier of a folder on its data."""
    options: dict[str, Any] = {
        "model": Classifier(),
        "data": str(folder / "data.npz"),
        "settings": FAST,
        "force": True,
    } | changes
    return lrzip.finetune(folder / "small.pt", folder / name, **options)


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


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_format_is_written_as_it_was_read(kind: str, tmp_path: Path) -> None:
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_data(tmp_path / "data.npz", x, torch.arange(24) % 12)

    class FullWeights(nn.Module):
        """`Net` with the further tensors that the files have."""

        def __init__(self) -> None:
            super().__init__()
            for name, child in seeded(Net).named_children():
                self.add_module(name, child)
            self.extra = nn.Module()
            self.extra.low = nn.Module()
            self.extra.low.register_buffer("weight", torch.zeros(32, 20, dtype=torch.bfloat16))
            for name in ("eight", "scalar", "none"):
                self.extra.register_buffer(name, state()[f"extra.{name}"].clone())

        def forward(self, x: Tensor) -> Tensor:
            return Net.forward(self, x)  # type: ignore[arg-type]

    path = BUILDERS[kind](tmp_path)
    small = tmp_path / f"small{path.suffix}"
    lrzip.compress(path, small, ratio=2, only=["conv2", "fc*"])
    tuned = tmp_path / f"tuned{path.suffix}"
    settings = Settings(epochs=1, batch_size=8)
    report = lrzip.finetune(
        small, tuned, model=FullWeights(), data=str(tmp_path / "data.npz"), settings=settings, val_fraction=0
    )
    assert report.outcome.steps == 3
    with open_checkpoint(small) as first, open_checkpoint(tuned) as second:
        assert first.format == second.format
        assert first.tensors() == second.tensors()
        assert first.metadata == second.metadata
        assert [name for name in first.others if name != "optimizer"] == list(second.others)
    lrzip.load_into(FullWeights(), tuned)
    if kind == "safetensors":
        assert torch.equal(load_file(tuned)["extra.eight"], state()["extra.eight"])
    if kind == "huggingface":
        assert (tuned / "config.json").read_bytes() == (small / "config.json").read_bytes()


def test_another_format_can_be_written(folder: Path) -> None:
    tune(folder, "tuned.safetensors")
    lrzip.load_into(Classifier(), folder / "tuned.safetensors")


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
        ({"y": None}, {}, "no labels. Give the dense checkpoint as `--teacher`"),
        ({}, {"loss": "mse"}, "`--loss mse` does not fit the data, which is classification"),
        ({}, {"loss": "hinge"}, "`--loss` takes auto, "),
        ({}, {"metrics": ["r2"]}, "`--metric r2` is for regression; this is classification, which has accuracy, top5"),
        ({}, {"metrics": ["top5"]}, "`--metric top5` is always 1 for 4 classes"),
        ({}, {"metrics": ["f1"]}, "`--metric` takes accuracy, "),
        ({}, {"model": Regressor()}, "does not fit the model"),
        ({}, {"device": "cuda:77"}, "`--device cuda:77` cannot be used"),
        ({}, {"val_fraction": 1.0}, "`--val-fraction` takes a share"),
        ({}, {"distillation": Distillation()}, "how to learn from a `teacher`"),
        ({}, {"label_smoothing": 1.5}, "`--label-smoothing` takes a share"),
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
    with pytest.raises(LrzipError, match=r"no labels\. Give the dense checkpoint as `--teacher`"):
        tune(folder, **options)


def test_labels_of_validation_sets_are_checked_too(folder: Path) -> None:
    x, y = classes(40)
    write_data(folder / "val.npz", x, y + 1)
    with pytest.raises(LrzipError, match="has the label 4 in row 3"):
        tune(folder, val=str(folder / "val.npz"))


def exported(path: Path, model: nn.Module, *, dynamic: bool = True) -> Path:
    """Write a network as a program of any batch size, or of five."""
    shapes = {0: torch.export.Dim("batch")} if dynamic else None
    program = torch.export.export(model, (torch.zeros(5, 12),), dynamic_shapes=({} if shapes is None else shapes,))
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("training", [True, False])
def test_a_program_is_trained_as_its_network_is_and_stays_a_program(training: bool, folder: Path) -> None:
    """Whichever mode it was exported in; the dense program teaches."""
    for name in ("dense", "small"):
        model = lrzip.load_into(Classifier(), folder / f"{name}.pt").train(training)
        exported(folder / f"{name}.pt2", model)
    settings = Settings(epochs=2, batch_size=32, lr=1e-2)
    report = lrzip.finetune(
        folder / "small.pt2",
        data=str(folder / "data.npz"),
        teacher=folder / "dense.pt2",
        settings=settings,
        trust=True,
    )
    expected = tune(folder, teacher=folder / "dense.pt", settings=settings)
    assert report.after == expected.after
    assert report.output == folder / "small.tuned.pt2"
    tuned = torch.export.load(report.output)
    for name, tensor in expected.outcome.state.items():
        assert torch.equal(tuned.state_dict[name], tensor), name
    x, _ = classes(7)
    # In the mode of the export: with the statistics of these seven or with those that were learned.
    model = lrzip.load_into(Classifier(), folder / "tuned.pt").train(training)
    assert torch.allclose(tuned.module()(x), model(x), atol=1e-6)


def test_a_compressed_program_is_trained(folder: Path) -> None:
    path = exported(folder / "dense.pt2", lrzip.load_into(Classifier(), folder / "dense.pt").eval())
    lrzip.compress(path, folder / "small.pt2", rank=4, layers={"fc2": "keep"}, trust=True)
    options: dict[str, Any] = {"data": str(folder / "data.npz"), "settings": FAST, "trust": True}
    report = lrzip.finetune(folder / "small.pt2", **options)
    assert report.before["accuracy"] < 0.6 < 0.95 < report.after["accuracy"]
    module: nn.Module = torch.export.load(report.output).module()
    x, y = classes()
    assert float((module(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize("compressed", [True, False])
def test_a_module_is_trained_and_stays_a_module(compressed: bool, folder: Path) -> None:
    torch.save(lrzip.load_into(Classifier(), folder / "dense.pt").eval(), folder / "module.pt")
    if compressed:
        lrzip.compress(folder / "module.pt", folder / "module.lrzip.pt", rank=4, layers={"fc2": "keep"}, trust=True)
    source = folder / ("module.lrzip.pt" if compressed else "module.pt")
    report = lrzip.finetune(
        source,
        data=str(folder / "data.npz"),
        settings=FAST,
        teacher=folder / "module.pt",
        distillation=Distillation(layers=1.0) if compressed else None,
        trust=True,
    )
    module = torch.load(report.output, weights_only=False)
    assert isinstance(module, Classifier)
    assert isinstance(module.fc1, nn.Sequential if compressed else nn.Linear)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, report.outcome.state[name]), name
    before = torch.load(source, weights_only=False).state_dict()
    assert not torch.equal(module.state_dict()["bn.running_mean"], before["bn.running_mean"])


def test_files_without_a_trainable_network_fail_before_training(folder: Path) -> None:
    model = lrzip.load_into(Classifier(), folder / "dense.pt").eval()
    program, fixed = exported(folder / "a.pt2", model), exported(folder / "b.pt2", model, dynamic=False)
    torch.save(model, folder / "module.pt")
    attention = nn.TransformerEncoderLayer(12, 2, 8).train()
    noisy = exported(folder / "c.pt2", nn.Sequential(nn.Unflatten(1, (1, 12)), attention).train())
    options: dict[str, Any] = {"data": str(folder / "data.npz"), "trust": True}
    for source, change, message in (
        (folder / "small.pt", {}, "holds weights alone"),
        (program, {"trust": False}, "Pass `trust=True`"),
        (folder / "module.pt", {"trust": False}, "Pass `trust=True`"),
        (program, {"output": folder / "x.txt"}, "must end in .pt2"),
        (folder / "small.pt", {"output": folder / "x.pt2", "model": Classifier()}, "holds weights and no program"),
        (program, {"teacher": folder / "dense.pt"}, "holds weights alone"),
        (program, {"teacher": program, "distillation": Distillation(layers=1.0)}, "has none\\."),
        (fixed, {}, r"only in the shape \(5, 12\)\. Export it with a dynamic first dimension"),
        (noisy, {}, "exported in training mode with `aten.scaled_dot_product_attention.default`"),
    ):
        with pytest.raises(LrzipError, match=message) as error:
            lrzip.finetune(source, **{**options, **change})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 half of it", "is damaged or not the state of a training"),
        ({"model": {}}, "is not the state of a training by this version"),
    ],
)
def test_resume_files_that_are_none_are_named(content: Any, message: str, folder: Path) -> None:
    path = folder / "state.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(LrzipError, match=message):
        tune(folder, resume=path)


def test_a_state_cut_short_is_named_and_another_training_is_not_mixed_in(folder: Path) -> None:
    path = folder / "state.pt"
    tune(folder, resume=path)
    with pytest.raises(LrzipError, match=r"belongs to a training with lr 0\.01, and now it is 0\.02"):
        tune(folder, resume=path, settings=Settings(epochs=4, batch_size=32, lr=2e-2))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LrzipError, match="is damaged"):
        tune(folder, resume=path)
