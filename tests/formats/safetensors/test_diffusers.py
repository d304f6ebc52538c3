"""Folders of diffusers store factors under names that diffusers refuses without lrzip."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import lrzip


def test_factors_are_stored_as_for_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 8}))
    tensors = {"conv.weight": torch.randn(16, 8, 3, 3), "conv.bias": torch.zeros(16), "fc.weight": torch.randn(40, 20)}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    report = lrzip.compress(folder, tmp_path / "small", rank=4)
    assert report.usage
    assert "import lrzip.hf.diffusers" in report.usage
    after = load_file(tmp_path / "small" / "diffusion_pytorch_model.safetensors")
    assert {name: tuple(t.shape) for name, t in after.items()} == {
        "conv.weight_in": (4, 8, 3, 3), "conv.weight": (16, 4, 1, 1), "conv.bias": (16,),
        "fc.weight_in": (4, 20), "fc.weight": (40, 4),
    }  # fmt: skip
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DModel"
    assert config["quantization_config"]["ranks"] == {"conv": 4, "fc": 4}
    assert config["quantization_config"]["usage"] == "import lrzip.hf.diffusers before from_pretrained"
    assert lrzip.analyze(tmp_path / "small").format == "diffusers"
    lrzip.export(tmp_path / "small", "dense", tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
