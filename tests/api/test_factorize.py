from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import Keep, Layer
from lrzip.decompositions import DECOMPOSITIONS
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from tests.support.networks import Net, Zoo, seeded


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(*Zoo.inputs())
    return result


def test_every_kind_of_layer_is_known_or_kept_with_the_right_reason() -> None:
    model = seeded(Zoo)
    found = LiveSource(model).layers(Architecture.of(model))
    kinds = {item.name: (str(item.kind), item.groups) for item in found if isinstance(item, Layer)}
    assert kinds == {
        "stem": ("conv2d", 1),
        "grouped": ("conv2d", 4),
        "up": ("conv_transpose2d", 1),
        "mix": ("linear", 1),
        "words": ("embedding", 1),
        "attention.in_proj": ("attention", 3),
        "head": ("linear", 1),
    }
    reasons = {item.name: item.reason for item in found if isinstance(item, Keep)}
    assert "depthwise" in reasons["depthwise"]
    assert "shared with tied.weight" in reasons["tokens"]
    assert "shared with tokens.weight" in reasons["tied"]
    assert "LSTM" in reasons["lstm.weight_ih_l0"]
    assert "nn.MultiheadAttention" in reasons["attention.out_proj"]
    assert reasons["norm"] == "a vector"


def test_weights_that_something_else_makes_are_kept() -> None:
    model = nn.ModuleDict(
        {
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(20, 20)),
            "hooked": nn.Linear(20, 20),
            "renormalized": nn.Embedding(20, 20, max_norm=1.0),
            "own": Doubled(20, 20),
            "bilinear": nn.Bilinear(9, 9, 9),
            "plain": nn.Linear(20, 20),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    found = LiveSource(model).layers(Architecture.of(model))
    assert [item.name for item in found if isinstance(item, Layer)] == ["plain"]
    reasons = {item.name: item.reason for item in found if isinstance(item, Keep)}
    assert "ParametrizationList" in reasons["normed.parametrizations.weight.original1"]
    assert "forward hooks" in reasons["hooked"]
    assert "max_norm" in reasons["renormalized"]
    assert "Doubled" in reasons["own"]
    assert "Bilinear" in reasons["bilinear"]


class Doubled(nn.Linear):
    """A subclass that does not compute what its parent does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


def test_full_rank_changes_nothing_but_rounding() -> None:
    model = seeded(Zoo)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factored = lrzip.factorize(model, energy=1 - 1e-9, only=["stem", "grouped", "up", "mix", "words", "head"])
    replaced = {name for name, module in factored.named_modules() if isinstance(module, nn.Sequential)}
    assert {"grouped", "up", "words"} <= replaced
    # The weights have exact low rank, so that all is met; a few layers of float32 sums.
    torch.testing.assert_close(outputs(factored), outputs(model), rtol=1e-3, atol=1e-4)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_the_result_is_that_of_compress_and_load(name: str, tmp_path: Path) -> None:
    model = seeded(Zoo)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    lrzip.compress(tmp_path / "a.pt", tmp_path / "b.pt", decomposition=name, ratio=2, model=seeded(Zoo))
    loaded = lrzip.load_into(seeded(Zoo), tmp_path / "b.pt")
    factored = lrzip.factorize(model, decomposition=name, ratio=2)
    ours, theirs = factored.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
    own = {name for name, module in factored.named_modules() if type(module).__module__.startswith("lrzip")}
    assert own == {"attention"}


def test_in_place_keeps_modes_and_gradients() -> None:
    model = seeded(Net).train()
    model.get_submodule("conv2").requires_grad_(False)
    assert lrzip.factorize(model, ratio=2, inplace=True) is model
    conv, linear = model.get_submodule("conv2"), model.get_submodule("fc1")
    assert isinstance(conv, nn.Sequential)
    assert not any(parameter.requires_grad for parameter in conv.parameters())
    assert all(parameter.requires_grad for parameter in linear.parameters())
    assert linear.training


def test_a_bare_layer_becomes_a_sequential() -> None:
    assert isinstance(lrzip.factorize(nn.Linear(40, 40), rank=3), nn.Sequential)


@pytest.mark.parametrize(
    ("options", "error"),
    [({}, UsageError), ({"rank": 3, "ratio": 2}, UsageError), ({"ratio": 2, "only": ["no"]}, LrzipError)],
)
def test_bad_options_leave_the_model_alone(options: dict[str, Any], error: type[LrzipError]) -> None:
    model = seeded(Net)
    with pytest.raises(error):
        lrzip.factorize(model, **options, inplace=True)
    assert isinstance(model.fc1, nn.Linear)
