from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.layers import Keep, Layer
from lrzip.formats.open import open_checkpoint
from lrzip.formats.torch.state_dict import save_to


def weights(fill: float = 1.0) -> dict[str, Tensor]:
    return {"fc.weight": torch.full((30, 30), fill), "fc.bias": torch.full((30,), fill)}


def saved(folder: Path, content: object) -> Path:
    path = folder / "a.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (weights(), ""),
        ({"state_dict": weights()}, "state_dict"),
        ({"model": weights()}, "model"),
        ({"model_state_dict": weights(), "epoch": 1}, "model_state_dict"),
        ({"params": weights()}, "params"),
        ({"state_dict": weights(1), "state_dict_ema": weights(2)}, "state_dict_ema"),
        ({"model": {"state_dict": weights(), "args": 1}}, "model.state_dict"),
        ({"generator": weights(), "step": torch.tensor(3)}, "generator"),
        ({"big": {"w": torch.ones(99)}, "small": weights() | {"fc.weight": torch.ones(2)}}, "big"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_weights_are_found_where_trainers_put_them(content: object, key: str, tmp_path: Path) -> None:
    with open_checkpoint(saved(tmp_path, content)) as checkpoint:
        assert checkpoint.key == key


def test_a_key_chooses_an_entry_even_with_dots_in_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": weights(1), "nets": {"v1.0": weights(2)}})
    with open_checkpoint(path, key="nets.v1.0") as checkpoint:
        assert float(checkpoint.read("fc.bias")[0]) == 2
        assert set(checkpoint.others) == {"state_dict"}
    with pytest.raises(UnsupportedCheckpoint, match=r"no entry `nets.v2` of tensors. It has: state_dict, nets"):
        open_checkpoint(path, key="nets.v2")


def test_all_other_entries_are_written_unchanged(tmp_path: Path) -> None:
    state: Any = OrderedDict(weights(), **{"bn.weight": torch.rand(4), "fc._extra_state": {"a": [1]}})
    state._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})
    strided = torch.rand(6, 5).t()
    content = {
        "epoch": 3,
        "args": {"lr": 0.1, "names": ("a", "b")},
        "state_dict": state,
        "buffer": strided,
        "ema": {"fc.weight": torch.rand(3, 3)},
        "optimizer_state_dict": {"state": {}},
    }
    path = saved(tmp_path, content)
    report = lrzip.compress(path, tmp_path / "b.pt", rank=2)
    result = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(result) == ["epoch", "args", "state_dict", "buffer", "ema"]
    assert [name for name, _ in report.dropped] == ["optimizer_state_dict"]
    assert (result["epoch"], result["args"]) == (3, content["args"])
    assert type(result["state_dict"]) is OrderedDict
    assert vars(result["state_dict"])["_metadata"] == state._metadata
    assert list(result["state_dict"]) == ["fc.0.weight", "fc.1.weight", "fc.1.bias", "bn.weight", "fc._extra_state"]
    assert result["state_dict"]["fc._extra_state"] == {"a": [1]}
    assert result["buffer"].equal(strided)
    assert result["buffer"].stride() == strided.stride()


def test_an_optimizer_is_kept_where_asked(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": weights(), "optimizer": {"lr": 1}})
    lrzip.compress(path, tmp_path / "b.pt", rank=2, keep_optimizer=True)
    assert "optimizer" in torch.load(tmp_path / "b.pt", weights_only=True)


def test_an_optimizer_stays_where_nothing_is_factorized(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": weights(), "optimizer": {"lr": 1}})
    report = lrzip.compress(path, tmp_path / "b.pt", rank=29)
    assert not report.plan.factorize
    assert "optimizer" in torch.load(tmp_path / "b.pt", weights_only=True)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module."])
def test_wrapper_prefixes_are_ignored_and_written_back(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in weights().items()}
    path = saved(tmp_path, {"state_dict": state, "epoch": 1})
    report = lrzip.compress(path, tmp_path / "b.pt", rank=2, only=["fc"])
    assert report.plan.factorize[0].layer.name == "fc"
    names = list(torch.load(tmp_path / "b.pt", weights_only=True)["state_dict"])
    assert names == [f"{prefix}fc.0.weight", f"{prefix}fc.1.weight", f"{prefix}fc.1.bias"]


def test_a_model_attribute_of_a_bare_state_dict_is_no_wrapper(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model.0.weight": torch.rand(20, 20), "model.2.weight": torch.rand(20, 20)})
    with open_checkpoint(path) as checkpoint:
        assert [item.name for item in checkpoint.layers()] == ["model.0", "model.2"]


def test_shared_quantized_and_sparse_tensors_are_kept(tmp_path: Path) -> None:
    tied = torch.rand(40, 30)
    flat = torch.rand(1800)
    content = {
        "encoder.weight": tied,
        "decoder.weight": tied,
        "left.weight": flat[:900].reshape(30, 30),
        "right.weight": flat[900:].reshape(30, 30),
        "sparse.weight": torch.eye(30).to_sparse(),
        "free.weight": torch.rand(30, 30),
    }
    with open_checkpoint(saved(tmp_path, content)) as checkpoint:
        found = checkpoint.layers()
    assert [item.name for item in found if isinstance(item, Layer)] == ["left", "right", "free"]
    reasons = {item.name: item.reason for item in found if isinstance(item, Keep)}
    assert reasons["encoder"] == "shared with decoder.weight"
    assert reasons["sparse"].startswith("sparse")


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    tied = torch.rand(40, 30)
    path = saved(tmp_path, {"a.weight": tied, "b.weight": tied, "c.weight": torch.rand(30, 30)})
    lrzip.compress(path, tmp_path / "b.pt", rank=2)
    result = torch.load(tmp_path / "b.pt", weights_only=True)
    assert result["a.weight"].data_ptr() == result["b.weight"].data_ptr()


def test_parameters_stay_parameters(tmp_path: Path) -> None:
    state = {"fc.weight": nn.Parameter(torch.rand(30, 30), requires_grad=False)}
    lrzip.compress(saved(tmp_path, state), tmp_path / "b.pt", rank=2)
    result = torch.load(tmp_path / "b.pt", weights_only=True)
    assert all(isinstance(tensor, nn.Parameter) and not tensor.requires_grad for tensor in result.values())


def test_a_slice_of_a_larger_storage_does_not_carry_it_along(tmp_path: Path) -> None:
    path = saved(tmp_path, {"fc.weight": torch.rand(3000, 30)[:30], "fc.bias": torch.rand(30)})
    lrzip.compress(path, tmp_path / "b.pt", rank=2)
    assert (tmp_path / "b.pt").stat().st_size < 10_000 < path.stat().st_size


def test_an_entry_that_cannot_be_saved_again_is_one_line(tmp_path: Path) -> None:
    content = {"a": lambda: None}
    with (
        pytest.raises(UnsupportedCheckpoint, match="cannot be saved again") as caught,
        (tmp_path / "a").open("wb") as file,
    ):
        save_to(file, content, Path("a.pt"))
    assert "\n" not in str(caught.value)
