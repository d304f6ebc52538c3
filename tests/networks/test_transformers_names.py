"""Networks of transformers find their tensors in files as `from_pretrained` does, and are written by these names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.core.layers import Keep
from lrzip.formats.load import load_into
from lrzip.formats.open import open_checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import Match, match
from lrzip.networks.transformers_names import naming_of

transformers: Any = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
VISION = {name: size for name, size in SIZES.items() if name != "vocab_size"} | {"image_size": 8, "patch_size": 4}


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SIZES))  # type: ignore[no-any-return]


def masked() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))  # type: ignore[no-any-return]


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=12)
    return transformers.MixtralForCausalLM(config)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))  # type: ignore[no-any-return]


def llava() -> nn.Module:
    text, vision = transformers.LlamaConfig(**SIZES), transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    return transformers.LlavaForConditionalGeneration(config)  # type: ignore[no-any-return]


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CASES: Mapping[str, tuple[Callable[[], nn.Module], Change, int]] = {
    "saved": (bert, dict, 0),
    "position_ids": (bert, lambda state: state | {"embeddings.position_ids": torch.arange(512)[None]}, 1),
    "gamma and beta": (
        bert,
        lambda state: {
            name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
            for name, tensor in state.items()
        },
        0,
    ),
    "of a model with a head": (bert, lambda state: {f"bert.{name}": tensor for name, tensor in state.items()}, 0),
    "inv_freq": (llama, lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}, 1),
    "of the base model": (
        gpt2,
        lambda state: {name.removeprefix("transformer."): tensor for name, tensor in state.items()},
        0,
    ),
    "stale masks": (gpt2, lambda state: state | {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)}, 1),
    "a pooler": (masked, lambda state: state | {"bert.pooler.dense.weight": torch.ones(24, 24)}, 1),
    "experts": (mixtral, dict, 0),
    "renamed": (vit, dict, 0),
    "vision and language": (llava, dict, 0),
}


def built(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def saved(folder: Path, case: str) -> tuple[nn.Module, Callable[[], nn.Module], int]:
    make, change, ignored = CASES[case]
    model: Any = built(make, 0)
    model.save_pretrained(folder)
    state = change(load_file(folder / "model.safetensors"))
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    return model, make, ignored


def matched(folder: Path, model: nn.Module) -> Match:
    with open_checkpoint(folder) as checkpoint:
        return match(folder, checkpoint.tensors(), Architecture.of(model))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_transformers_loads_is_loaded(case: str, tmp_path: Path) -> None:
    model, make, ignored = saved(tmp_path, case)
    loaded = load_into(built(make, 1), tmp_path)
    expected = model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in loaded.state_dict().items())
    assert len(matched(tmp_path, model).ignored) == ignored


@pytest.mark.parametrize("case", CASES)
def test_the_tensors_of_a_network_are_written_by_the_names_of_its_file(case: str, tmp_path: Path) -> None:
    model, _, ignored = saved(tmp_path, case)
    stored = matched(tmp_path, model).stored(model.state_dict())
    expected = load_file(tmp_path / "model.safetensors")
    assert len(stored) == len(expected) - ignored
    assert all(tensor.equal(expected[name]) for name, tensor in stored.items())


@pytest.mark.parametrize("case", CASES)
def test_a_compressed_folder_has_the_names_of_its_source(case: str, tmp_path: Path) -> None:
    model, make, _ = saved(tmp_path / "dense", case)
    report = lrzip.compress(tmp_path / "dense", tmp_path / "small", ratio=1.5, model=built(make, 1))
    names = {decision.group.layers[0].weight.name.removesuffix(".weight") for decision in report.plan.factorize}
    before, after = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("dense", "small"))
    assert names
    assert after - before == {f"{name}.weight_in" for name in names}
    small = load_into(built(make, 1), tmp_path / "small").state_dict()
    dense = model.state_dict()
    assert all(tensor.equal(dense[name]) for name, tensor in small.items() if name in dense)
    lrzip.export(tmp_path / "small", "dense", tmp_path / "merged", model=built(make, 1))
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == before


def test_tensors_of_other_modules_are_kept_with_the_reason(tmp_path: Path) -> None:
    _, make, _ = saved(tmp_path, "a pooler")
    with open_checkpoint(tmp_path) as checkpoint:
        items = checkpoint.layers(Architecture.of(make()))
    reasons = {item.name: item.reason for item in items if isinstance(item, Keep)}
    assert "BertForMaskedLM does not have" in reasons["bert.pooler.dense"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.layer.2.output.dense.weight", "has no such tensor"),
        ("encoder.layer.0.output.dense.extra", "has no such tensor"),
        ("pooler.dense.other", "has no such tensor"),
    ],
)
def test_a_tensor_that_the_network_should_have_is_refused(name: str, message: str, tmp_path: Path) -> None:
    _, make, _ = saved(tmp_path, "saved")
    state = load_file(tmp_path / "model.safetensors") | {name: torch.ones(24, 24)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LrzipError, match=message):
        matched(tmp_path, make())


@pytest.mark.parametrize("name", ["pooler.dense.weight", "encoder.layer.1.output.dense.bias"])
def test_a_tensor_that_the_file_lacks_is_refused(name: str, tmp_path: Path) -> None:
    _, make, _ = saved(tmp_path, "saved")
    state = load_file(tmp_path / "model.safetensors")
    del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LrzipError, match=f"`{name}` is missing"):
        matched(tmp_path, make())


@pytest.mark.parametrize("case", ["renamed", "saved"])
def test_a_compressed_model_still_has_the_dtype_of_its_weights(case: str, tmp_path: Path) -> None:
    _, make, _ = saved(tmp_path / "dense", case)
    lrzip.compress(tmp_path / "dense", tmp_path / "small", ratio=1.5, model=built(make, 1))
    small = load_into(built(make, 1), tmp_path / "small").to(torch.bfloat16)
    if case == "renamed":  # the model asks its patch embedding for the dtype of its weight
        assert small(torch.ones(2, 3, 8, 8)).logits.dtype == torch.bfloat16
    replaced = [module for module in small.modules() if type(module) is nn.Sequential]
    assert replaced
    assert all(module.weight.dtype == torch.bfloat16 for module in replaced)
    assert not any(name.endswith("weight") and not tensor.numel() for name, tensor in small.state_dict().items())


def test_other_networks_have_their_own_names() -> None:
    assert naming_of(nn.Linear(2, 2)) is None
