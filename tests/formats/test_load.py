"""Compressed checkpoints are loaded into the dense networks that they were made from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError
from tests.support.networks import Net, Zoo, seeded


def compressed(folder: Path, model: nn.Module, **options: object) -> Path:
    torch.save(model.state_dict(), folder / "a.pt")
    lrzip.compress(folder / "a.pt", folder / "b.pt", force=True, **{"ratio": 2, **options})  # type: ignore[arg-type]
    return folder / "b.pt"


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_dense_checkpoint_is_loaded_unchanged(tmp_path: Path) -> None:
    model = seeded(Net)
    compressed(tmp_path, model)
    loaded = lrzip.load_into(Net(), tmp_path / "a.pt")
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
def test_wrapper_prefixes_of_the_file_are_ignored(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in seeded(Net).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", ratio=2)
    model = lrzip.load_into(Net(), tmp_path / "a.lrzip.pt")
    assert isinstance(model.fc1, nn.Sequential)


def test_a_sequential_of_the_network_is_not_mistaken_for_factors(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Sequential(nn.Linear(40, 2, bias=False), nn.Linear(2, 40)), nn.ReLU(), nn.Linear(40, 40)
        )

    model = build()
    loaded = lrzip.load_into(build(), compressed(tmp_path, model, only=["2"]))
    assert isinstance(loaded.get_submodule("2"), nn.Sequential)
    assert isinstance(loaded.get_submodule("0.0"), nn.Linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: setattr(m, "fc2", nn.Linear(20, 13)),
            r"stands for \(shape, has bias, groups\) \(\(12, 20\), True, 1\)",
        ),
        (lambda m: setattr(m, "fc2", nn.Linear(20, 12, bias=False)), "has bias"),
        (lambda m: setattr(m, "conv1", nn.Conv2d(3, 16, 5)), "conv1"),
        (lambda m: setattr(m, "extra", nn.Linear(2, 2)), r"`extra\.weight` is missing, the model takes \(2, 2\)"),
        (lambda m: delattr(m, "bn1"), r"`bn1\.weight` has shape \(16,\), the model has no such tensor"),
        (
            lambda m: setattr(m, "conv2", nn.Conv2d(32, 24, (3, 5), groups=2)),
            r"`conv2` stands for .*, 1\), but the model has .*, 2\) there",
        ),
        (
            lambda m: setattr(m, "fc1", nn.Embedding(20, 576)),
            r"`fc1` is stored as factors of a linear layer, which cannot replace the Embedding of the model\. "
            r"Compress again with `skip=fc1` or with `model=PKG\.MOD:NET`",
        ),
        (
            lambda m: setattr(m, "conv1", nn.ConvTranspose2d(16, 3, 3, bias=False)),
            r"`conv1` is stored as factors of a conv2d layer, which cannot replace the ConvTranspose2d",
        ),
        (lambda m: setattr(m, "fc2", nn.Bilinear(20, 20, 12)), r"`fc2` .* cannot replace the Bilinear of the model"),
    ],
)
def test_a_model_that_does_not_fit_is_unchanged(change: object, message: str, tmp_path: Path) -> None:
    path = compressed(tmp_path, seeded(Net))
    model = Net()
    assert callable(change)
    change(model)
    before = snapshot(model)
    with pytest.raises(LrzipError, match=message):
        lrzip.load_into(model, path)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_a_weight_that_the_model_shares_is_refused(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False)

    path = compressed(tmp_path, Tied())
    model = Tied()
    model.b.weight = model.a.weight
    with pytest.raises(LrzipError, match="shares its weight"):
        lrzip.load_into(model, path)


def test_a_file_may_hold_one_of_two_shared_weights(tmp_path: Path) -> None:
    state = seeded(Zoo).state_dict()
    del state["tied.weight"]
    torch.save(state, tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", rank=2, model=Zoo())
    model = lrzip.load_into(Zoo(), tmp_path / "b.pt")
    assert model.tied.weight is model.tokens.weight
    assert model.tied.weight.equal(state["tokens.weight"])
