"""Layers keep their names through loading and saving, however transformers renames them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lrzip

transformers = pytest.importorskip("transformers", "4.50", reason="needs transformers 4.50 or later")
importlib.import_module("lrzip.hf")

SIZES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
VISION = SIZES | {"image_size": 8, "patch_size": 4}


def llava() -> Any:
    text, vision = transformers.LlamaConfig(vocab_size=40, **SIZES), transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    return transformers.LlavaForConditionalGeneration(config)


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=40, **SIZES))


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("make", [llava, vit, bert])
def test_what_save_pretrained_writes_is_loaded_again(make: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = make()
    dense.save_pretrained(tmp_path / "dense")
    report = lrzip.compress(tmp_path / "dense", tmp_path / "small", ratio=1.5)
    assert report.plan.factorize
    small = type(dense).from_pretrained(tmp_path / "small")
    small.save_pretrained(tmp_path / "again")
    again = type(dense).from_pretrained(tmp_path / "again")
    first, second = factors(small), factors(again)
    assert first.keys() == second.keys()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    names = [load_file(tmp_path / name / "model.safetensors").keys() for name in ("small", "again")]
    assert names[0] == names[1]


@pytest.mark.parametrize("make", [llava, vit, bert])
def test_a_saved_folder_is_read_by_lrzip(make: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = make()
    dense.save_pretrained(tmp_path / "dense")
    lrzip.compress(tmp_path / "dense", tmp_path / "small", ratio=1.5)
    type(dense).from_pretrained(tmp_path / "small").save_pretrained(tmp_path / "again")
    for name in ("small", "again"):
        lrzip.export(tmp_path / name, "dense", tmp_path / f"{name}.dense")
    first, second = (load_file(tmp_path / f"{name}.dense" / "model.safetensors") for name in ("small", "again"))
    assert first.keys() == second.keys()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
