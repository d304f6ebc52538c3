"""Adapters of PEFT on compressed models."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lrzip
from lrzip.core.errors import LrzipError

transformers = pytest.importorskip("transformers", "4.50", reason="needs transformers 4.50 or later")
peft = pytest.importorskip("peft", "0.17", reason="needs peft")
hf = importlib.import_module("lrzip.hf")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

IDS = torch.arange(14).reshape(2, 7)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a compressed model."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=64))
    model.save_pretrained(folder / "dense")
    lrzip.compress(folder / "dense", folder / "small", ratio=2)
    return folder / "small"


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(IDS).logits  # type: ignore[no-any-return]


def adapted(small: Path, config: Any) -> Any:
    """Return a compressed model with a random adapter."""
    model = peft.get_peft_model(load(small), config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "ia3_" in name:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    assert not logits(model).equal(logits(load(small)))
    return model


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"], ["v_proj.0", "up_proj.1"], "all-linear"])
def test_lora_learns_saves_and_loads(targets: Sequence[str] | None, small: Path, tmp_path: Path) -> None:
    model = adapted(small, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
    model.save_pretrained(tmp_path / "adapter")
    assert logits(peft.PeftModel.from_pretrained(load(small), tmp_path / "adapter")).equal(logits(model))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj.1", "down_proj.0"]])
def test_lora_inside_low_rank_modules_merges(targets: Sequence[str], small: Path, tmp_path: Path) -> None:
    model = adapted(small, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


def test_lora_around_low_rank_modules_merges_once_they_are_dense(small: Path) -> None:
    model = adapted(small, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"]))
    expected = logits(model)
    with pytest.raises(LrzipError, match=r"cannot be merged into it. Adapt the layers inside"):
        model.merge_and_unload()
    model.base_model.model.dequantize()
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_ia3_learns_saves_loads_and_merges(small: Path, tmp_path: Path) -> None:
    model = adapted(small, peft.IA3Config(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(peft.PeftModel.from_pretrained(load(small), tmp_path / "adapter"))
    assert expected.equal(logits(model))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_per_tensor")
def test_dynamic_quantization_reaches_both_layers(small: Path) -> None:
    model = load(small)
    count = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    quantize: Any = torch.ao.quantization.quantize_dynamic
    quantized = quantize(model, {torch.nn.Linear}, dtype=torch.qint8)
    found = [m for m in quantized.modules() if type(m) is torch.ao.nn.quantized.dynamic.Linear]
    assert len(found) == count > 2 * len(model.config.quantization_config.ranks)
