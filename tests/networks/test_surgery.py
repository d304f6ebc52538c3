from pathlib import Path

import torch
from torch import nn

import lrzip
from tests.support.networks import Net, seeded


def compressed(folder: Path, model: nn.Module, **options: object) -> Path:
    torch.save(model.state_dict(), folder / "a.pt")
    lrzip.compress(folder / "a.pt", folder / "b.pt", force=True, **{"ratio": 2, **options})  # type: ignore[arg-type]
    return folder / "b.pt"


def test_stages_take_the_attributes_of_the_layer_they_replace(tmp_path: Path) -> None:
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
