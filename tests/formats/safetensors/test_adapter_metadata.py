"""Metadata state the ranks and scales of resized adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from tests.support.adapters import RANK, pair, tensors


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def compressed(
    folder: Path, found: dict[str, torch.Tensor], metadata: dict[str, str], **options: Any
) -> dict[str, str]:
    save_file(found, folder / "adapter.safetensors", metadata=metadata)
    lrzip.compress(folder / "adapter.safetensors", folder / "small.safetensors", **options)
    return metadata_of(folder / "small.safetensors")


@pytest.mark.parametrize(("only", "rank", "alpha"), [((), "2", "1"), (("*head",), "Dynamic", "Dynamic")])
def test_ranks_of_kohya_follow_and_hashes_go(only: tuple[str, ...], rank: str, alpha: str, tmp_path: Path) -> None:
    found = tensors("kohya")
    found |= {name.replace(".lora_up.weight", ".alpha"): torch.tensor(3.0) for name in found if "lora_up" in name}
    metadata = {"ss_network_dim": "6", "ss_network_alpha": "3", "sshs_model_hash": "ab", "ss_output_name": "x"}
    after = compressed(tmp_path, found, metadata, rank=2, only=only)
    assert after == {"ss_network_dim": rank, "ss_network_alpha": alpha, "ss_output_name": "x"}


def test_nothing_is_rewritten_where_nothing_is_resized(tmp_path: Path) -> None:
    metadata = {"ss_network_dim": "6", "sshs_model_hash": "ab"}
    assert compressed(tmp_path, tensors("kohya"), metadata, rank=RANK) == metadata


def test_configurations_of_diffusers_follow(tmp_path: Path) -> None:
    found: dict[str, torch.Tensor] = {}
    for seed, module in enumerate(("unet.a.to_q", "unet.b.to_q", "text_encoder.q_proj")):
        first, second = pair(20, 12, seed=seed)
        found |= {f"{module}.lora_A.weight": first, f"{module}.lora_B.weight": second}
    configs = {"unet.r": RANK, "unet.lora_alpha": 12, "unet.bias": "none"}
    configs |= {"text_encoder.r": RANK, "text_encoder.lora_alpha": 3}
    metadata = {"lora_adapter_metadata": json.dumps(configs), "format": "pt"}
    after = json.loads(compressed(tmp_path, found, metadata, rank=2, skip=["*b.to_q"])["lora_adapter_metadata"])
    assert (after["text_encoder.r"], after["text_encoder.lora_alpha"], after["unet.bias"]) == (2, 1, "none")
    ranks = [after["unet.r"], *after["unet.rank_pattern"].values()]
    alphas = [after["unet.lora_alpha"], *after["unet.alpha_pattern"].values()]
    assert sorted(ranks) == [2, RANK]
    assert sorted(alphas) == [4, 12]
    spectra = {item.candidate.layer.name: item for item in lrzip.analyze(tmp_path / "adapter.safetensors").layers}
    products = [
        found[f"{m}.lora_B.weight"] @ found[f"{m}.lora_A.weight"] for m in ("unet.a.to_q", "text_encoder.q_proj")
    ]
    for module, scale, product in zip(("unet.a.to_q", "text_encoder.q_proj"), (2, 0.5), products, strict=True):
        largest = spectra[module].candidate.spectra[0].spectral_norm
        assert largest == pytest.approx(float(torch.linalg.matrix_norm(product.double(), 2)) * scale, rel=1e-5)


@pytest.mark.parametrize("text", ["{", "[]", '{"unet.r": "x"}', '{"unet.rank_pattern": {"a": 0}}'])
def test_malformed_configurations_are_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="`lora_adapter_metadata` in `"):
        compressed(tmp_path, tensors("diffusers"), {"lora_adapter_metadata": text}, rank=2)
