"""Fine-tunes of every format, of programs and modules, and the files to resume from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.formats.open import open_checkpoint
from lrzip.training.losses import Distillation
from lrzip.training.settings import Settings
from tests.support.checkpoints import BUILDERS, state
from tests.support.finetunes import FAST, tune
from tests.support.networks import Net, seeded
from tests.support.tasks import Classifier, classes, write_compressed, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "data.npz", *classes())
    write_compressed(tmp_path)
    return tmp_path


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
        (b"PK\x03\x04 half of it", "is damaged or was not written by torch.save"),
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
