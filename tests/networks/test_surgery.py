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


def test_chains_take_the_attributes_of_the_layers_they_replace(tmp_path: Path) -> None:
    model = lrzip.load_into(Net(), compressed(tmp_path, seeded(Net)))
    original = Net().conv2
    first, second = model.get_submodule("conv2.0"), model.get_submodule("conv2.1")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    for attribute in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(first, attribute) == getattr(original, attribute)
    assert first.bias is None
    assert second.bias is not None
    assert (second.kernel_size, second.stride, second.padding) == ((1, 1), (1, 1), (0, 0))


def test_mode_and_dtype_of_the_model_stay(tmp_path: Path) -> None:
    path = compressed(tmp_path, seeded(Net))
    model = lrzip.load_into(Net().double().eval(), path)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_dense_checkpoint_is_loaded_as_it_is(tmp_path: Path) -> None:
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


def test_a_sequential_of_the_users_own_is_not_taken_for_a_chain(tmp_path: Path) -> None:
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
        (lambda m: setattr(m, "fc1", nn.Embedding(20, 576)), r"`fc1\.weight` is missing, the model takes \(20, 576\)"),
    ],
)
def test_a_model_that_does_not_fit_is_left_unchanged(change: object, message: str, tmp_path: Path) -> None:
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


def test_transformer_encoders_run_in_evaluation_mode(tmp_path: Path) -> None:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()

    torch.manual_seed(0)
    path = compressed(tmp_path, build())
    lrzip.export(path, "dense", tmp_path / "dense.pt")
    x, padding = torch.rand(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    factored, dense = lrzip.load_into(build(), path), lrzip.load_into(build(), tmp_path / "dense.pt")
    assert isinstance(factored.get_submodule("layers.0.linear1"), nn.Sequential)
    with torch.no_grad():
        found, expected = factored(x, src_key_padding_mask=padding), dense(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-4, atol=1e-5)


def test_of_weights_that_are_shared_a_file_may_have_one(tmp_path: Path) -> None:
    state = seeded(Zoo).state_dict()
    del state["tied.weight"]
    torch.save(state, tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", rank=2, model=Zoo())
    model = lrzip.load_into(Zoo(), tmp_path / "b.pt")
    assert model.tied.weight is model.tokens.weight
    assert model.tied.weight.equal(state["tokens.weight"])
