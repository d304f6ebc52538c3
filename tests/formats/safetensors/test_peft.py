"""PEFT loads resized adapters, and they compute what the report says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lrzip
from tests.support.adapters import RANK, peft_folder

TRUE = 2
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 6, "lora_alpha": 12},
    "root-scaled": {"r": 6, "lora_alpha": 5, "use_rslora": True},
    "patterns": {"r": 6, "lora_alpha": 4, "rank_pattern": {"fc2": 4}, "alpha_pattern": {"fc1": 9}},
    "dora": {"r": 6, "use_dora": True},
    "bias": {"r": 6, "lora_bias": True},
    "saved": {"r": 6, "modules_to_save": ["head"]},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 24), nn.Linear(24, 20)
        self.embed, self.head = nn.Embedding(11, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        hidden = self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))
        out: Tensor = self.head(hidden + self.embed(index))
        return out


def base() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def adapted(peft: Any, fields: dict[str, Any]) -> Any:
    """Return an adapted network, whose adapter has a low rank."""
    targets = ["conv", "fc1", "fc2", *(["embed"] if not fields.keys() & {"use_dora", "lora_bias"} else [])]
    model = peft.get_peft_model(base(), peft.LoraConfig(target_modules=targets, **fields)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.dim() >= 2 and "magnitude" not in name:
            flat = parameter.data.flatten(1)
            inner = torch.randn(flat.shape[0], TRUE, generator=generator)
            low = inner @ torch.randn(TRUE, flat.shape[1], generator=generator)
            parameter.data = (low / 8).reshape(parameter.shape)
        elif "lora_" in name or "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 3, 4, 4, generator=generator)
    result: Tensor = model(x, torch.arange(7))
    return result


def delta_norms(model: Any) -> list[float]:
    return [float(m.get_delta_weight("default").norm()) for m in model.modules() if hasattr(m, "get_delta_weight")]


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", "0.17", reason="needs peft")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_peft_computes_the_same_at_the_true_rank(fields: dict[str, Any], peft: Any, tmp_path: Path) -> None:
    model = adapted(peft, fields)
    expected = outputs(model)
    assert not torch.allclose(expected, outputs(base()), atol=0.1)
    model.save_pretrained(tmp_path / "adapter")
    report = lrzip.compress(tmp_path / "adapter", tmp_path / "small", rank=TRUE)
    small = peft.PeftModel.from_pretrained(base(), tmp_path / "small").eval()
    assert {d.ranks for d in report.plan.factorize} == {(TRUE,)}
    assert len(report.plan.factorize) == len(delta_norms(small)) >= 3
    torch.testing.assert_close(outputs(small), expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "small" / "README.md").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_each_product_differs_by_the_reported_error(fields: dict[str, Any], peft: Any, tmp_path: Path) -> None:
    model = adapted(peft, fields)
    model.save_pretrained(tmp_path / "adapter")
    report = lrzip.compress(tmp_path / "adapter", tmp_path / "small", energy=0.7)
    small = peft.PeftModel.from_pretrained(base(), tmp_path / "small").eval()
    modules = dict(small.base_model.model.named_modules())
    for result in report.results:
        name = result.decision.layer.name
        before, after = (
            m.get_delta_weight("default") for m in (model.base_model.model.get_submodule(name), modules[name])
        )
        assert float(torch.dist(before, after) / before.norm()) == pytest.approx(result.error, rel=1e-3, abs=1e-6)


def test_an_old_folder_is_written_as_safetensors(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    lrzip.compress(folder, tmp_path / "small", rank=1)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_an_adapter_beside_a_model_is_the_one_that_is_opened(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    analysis = lrzip.analyze(folder)
    assert analysis.format == "peft"
    assert [item.candidate.layer.weight.shape[1] for item in analysis.layers] == [RANK] * 3
