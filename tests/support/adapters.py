"""Adapters with random factors of exact rank, in the names of several libraries."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 6
TRUE_RANK = 2
SHAPES = {"block.0.query": (20, 12), "block.0.value": (12, 12), "head": (9, 20)}
NAMES = {
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "peft-named": ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "loralib": ("{}.lora_A", "{}.lora_B"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
    "diffusers": ("unet.{}.processor.to_q_lora.down.weight", "unet.{}.processor.to_q_lora.up.weight"),
    "text-encoder": ("{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight"),
}
"""Names of both factors of a module, in each library."""


def pair(outputs: int, inputs: int, rank: int = RANK, true_rank: int = TRUE_RANK, seed: int = 0) -> list[Tensor]:
    """Return factors A (rank, inputs) and B (outputs, rank) whose product has a lower rank."""
    generator = torch.Generator().manual_seed(seed)
    inner = [torch.randn(rank, true_rank, generator=generator) for _ in range(2)]
    first = inner[0] @ torch.randn(true_rank, inputs, generator=generator)
    return [first, torch.randn(outputs, true_rank, generator=generator) @ inner[1].mT]


def tensors(library: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the tensors of an adapter in the names of a library."""
    found: dict[str, Tensor] = {}
    for seed, (module, shape) in enumerate(SHAPES.items()):
        names = [name.format(module.replace(".", "_") if library == "kohya" else module) for name in NAMES[library]]
        found |= dict(zip(names, (t.to(dtype) for t in pair(*shape, seed=seed)), strict=True))
    return found


def products(library: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the product of each pair, by module, without its scale."""
    modules = {m: m.replace(".", "_") if library == "kohya" else m for m in SHAPES}
    named = {
        m: [found[name.format(path)].double().flatten(1) for name in NAMES[library]] for m, path in modules.items()
    }
    return {module: second @ first for module, (first, second) in named.items()}


def peft_folder(folder: Path) -> Path:
    """Return a folder of PEFT."""
    path = folder / "adapter"
    path.mkdir()
    save_file(tensors("peft"), path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 12}))
    (path / "README.md").write_text("about it")
    return path


def diffusers_folder(folder: Path) -> Path:
    """Return a folder of a model of diffusers."""
    path = folder / "unet"
    path.mkdir()
    save_file({"fc.weight": torch.randn(9, 9)}, path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    return path


FOLDER_BUILDERS: Mapping[str, Callable[[Path], Path]] = {"peft": peft_folder, "diffusers": diffusers_folder}
"""Folders of libraries that hold something else than a whole network."""
