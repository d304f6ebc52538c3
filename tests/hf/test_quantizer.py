"""transformers loads compressed folders with lrzip, and refuses them without."""

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError

transformers = pytest.importorskip("transformers", "4.50", reason="needs transformers 4.50 or later")
hf = importlib.import_module("lrzip.hf")

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RANK = 3
IDS = torch.arange(14).reshape(2, 7)
# Sums of at most 100 products in float32 through some ten layers.
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def build(name: str) -> Any:
    """Return a tiny model with random weights, its linear layers of exact rank."""
    config = {
        "bert": lambda: transformers.BertConfig(**SIZES),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=20),
        "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    }[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto(name).from_config(config).eval()
    for path, module in model.named_modules():
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and "head" not in path:
            u, s, vh = torch.linalg.svd(module.weight.detach(), full_matrices=False)
            module.weight.data = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    return model


def auto(name: str) -> Any:
    return transformers.AutoModelForSequenceClassification if name == "bert" else transformers.AutoModelForCausalLM


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Without progress bars and reports of new heads."""
    transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    yield
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with each model, compressed and dense again."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("bert", "gpt2", "llama"):
        build(name).save_pretrained(folder / name)
        lrzip.compress(folder / name, folder / f"{name}.lrzip", rank=RANK)
        lrzip.export(folder / f"{name}.lrzip", "dense", folder / f"{name}.dense")
    return folder


@pytest.fixture(params=["bert", "gpt2", "llama"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(IDS).logits  # type: ignore[no-any-return]


def copy_of(folder: Path, target: Path, **quantization: object) -> Path:
    """Return a copy of a folder with an edited `quantization_config`."""
    target.mkdir()
    save_file(load_file(folder / "model.safetensors"), target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= quantization
    (target / "config.json").write_text(json.dumps(config))
    return target


def ranks_of(folder: Path) -> dict[str, int]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"]["ranks"])


def test_a_compressed_folder_computes_the_outputs_of_the_model(name: str, root: Path) -> None:
    model, info = auto(name).from_pretrained(root / f"{name}.lrzip", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    replaced = [module for module in model.modules() if isinstance(module, hf.LowRankLinear)]
    assert len(replaced) == len(ranks_of(root / f"{name}.lrzip")) == {"bert": 13, "gpt2": 8, "llama": 14}[name]
    assert_close(logits(model), logits(auto(name).from_pretrained(root / name)))
    assert_close(logits(model), logits(auto(name).from_pretrained(root / f"{name}.dense")))


def test_it_saves_in_shards_and_loads_again(name: str, root: Path, tmp_path: Path) -> None:
    model = auto(name).from_pretrained(root / f"{name}.lrzip")
    model.save_pretrained(tmp_path / "again", max_shard_size="8KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    assert logits(auto(name).from_pretrained(tmp_path / "again")).equal(logits(model))
    assert ranks_of(tmp_path / "again") == ranks_of(root / f"{name}.lrzip")
    lrzip.export(tmp_path / "again", "dense", tmp_path / "dense")
    assert_close(logits(auto(name).from_pretrained(tmp_path / "dense")), logits(model))


def test_it_loads_onto_a_device(name: str, root: Path) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model = auto(name).from_pretrained(root / f"{name}.lrzip", device_map="cpu")
    assert logits(model).equal(logits(auto(name).from_pretrained(root / f"{name}.lrzip")))


def test_it_loads_in_half_precision_and_learns(name: str, root: Path) -> None:
    half = auto(name).from_pretrained(root / f"{name}.lrzip", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    model = half.float().train()
    model(IDS).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_base_models_and_heads_take_each_other(name: str, root: Path, tmp_path: Path) -> None:
    base = transformers.AutoModel.from_pretrained(root / f"{name}.lrzip")
    prefix = type(base).base_model_prefix
    ranks = {module.removeprefix(f"{prefix}."): r for module, r in ranks_of(root / f"{name}.lrzip").items()}
    base.save_pretrained(tmp_path / "base")
    assert ranks_of(tmp_path / "base") == ranks
    assert lrzip.analyze(tmp_path / "base").format == "huggingface"
    full = auto(name).from_pretrained(tmp_path / "base")
    original = auto(name).from_pretrained(root / f"{name}.lrzip")
    for module in ranks:
        one, other = (model.base_model.get_submodule(module) for model in (full, original))
        assert one.weight.equal(other.weight)
        assert one.weight_in.equal(other.weight_in)


def test_another_head_ignores_layers_that_it_lacks(root: Path) -> None:
    model = transformers.AutoModelForTokenClassification.from_pretrained(root / "bert.lrzip")
    assert "bert.pooler.dense" in ranks_of(root / "bert.lrzip")
    assert len(model.config.quantization_config.ranks) == 12


def test_the_network_gives_the_same_layers(name: str, root: Path) -> None:
    model = auto(name).from_pretrained(root / name)
    report = lrzip.compress(root / name, rank=RANK, model=model, dry_run=True)
    assert {d.layer.weight.name.removesuffix(".weight") for d in report.plan.factorize} == set(
        ranks_of(root / f"{name}.lrzip")
    )
    if name != "bert":
        assert any("shared with" in keep.reason for keep in report.plan.keep)


def test_factors_load_into_a_live_model(name: str, root: Path) -> None:
    model = lrzip.load_into(auto(name).from_pretrained(root / name), root / f"{name}.lrzip")
    assert_close(logits(model), logits(auto(name).from_pretrained(root / f"{name}.lrzip")))


def test_convolutions_and_renamed_layers_load(tmp_path: Path) -> None:
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16).sin()
    vit = transformers.ViTConfig(**{k: v for k, v in SIZES.items() if k != "vocab_size"}, image_size=16, patch_size=4)
    resnet = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1])
    for config, count in ((vit, 1), (resnet, 9)):
        cls = transformers.AutoModelForImageClassification
        cls.from_config(config).save_pretrained(tmp_path / config.model_type)
        lrzip.compress(tmp_path / config.model_type, ratio=2)
        small = tmp_path / f"{config.model_type}.lrzip"
        lrzip.export(small, "dense", tmp_path / "dense", force=True)
        model, dense = (cls.from_pretrained(path).eval() for path in (small, tmp_path / "dense"))
        assert sum(isinstance(module, hf.LowRankConv) for module in model.modules()) == count
        assert "rank=" in repr(model)
        with torch.no_grad():
            assert_close(model(image).logits, dense(image).logits)


FOREIGN = """
import sys, transformers
transformers.utils.logging.set_verbosity(50)
for name, auto in (("bert", "AutoModelForSequenceClassification"), ("gpt2", "AutoModelForCausalLM"),
                   ("llama", "AutoModelForCausalLM")):
    cls = getattr(transformers, auto)
    cls.from_pretrained(f"{sys.argv[1]}/{name}.dense")
    try:
        cls.from_pretrained(f"{sys.argv[1]}/{name}.lrzip")
    except RuntimeError:
        print("refused", name)
assert "lrzip" not in sys.modules
"""


def test_without_lrzip_a_compressed_folder_is_refused_and_a_dense_one_loads(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["refused bert", "refused gpt2", "refused llama"]


def test_bad_folders_are_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    good = root / "gpt2.lrzip"
    ranks = ranks_of(good)
    first = next(iter(ranks))
    cases: dict[str, tuple[dict[str, object], str]] = {
        "newer": ({"format_version": 2}, "format_version 2, and this lrzip knows 1"),
        "ranks": ({"ranks": ranks | {first: 5}}, f"`{first}` rank 5, which its tensors do not have"),
        "ghost": ({"ranks": ranks | {"ghost": 3}}, r"`ghost` rank 3, which its tensors do not have"),
        "none": ({"ranks": None}, "no usable `ranks`"),
    }
    for name, (changes, message) in cases.items():
        folder = copy_of(good, tmp_path / name, **changes)
        with pytest.raises(LrzipError, match=message) as caught:
            auto("gpt2").from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_transformers_4_reports_factors_that_are_missing(root: Path) -> None:
    model = auto("gpt2").from_pretrained(root / "gpt2.lrzip")
    quantizer = hf.LrzipQuantizer(model.config.quantization_config)
    assert quantizer.update_missing_keys(model, ["score.weight"], "") == ["score.weight"]
    with pytest.raises(LrzipError, match=r"no `transformer\.h\.1\.mlp\.c_fc\.weight_in`, which"):
        quantizer.update_missing_keys(model, ["transformer.h.1.mlp.c_fc.weight_in"], "")


def with_tensors(folder: Path, target: Path, ranks: dict[str, int], tensors: dict[str, Tensor]) -> Path:
    """Return a copy of a folder with other ranks and tensors."""
    made = copy_of(folder, target, ranks=ranks)
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    return made


def test_a_layer_of_another_name_or_kind_than_in_the_model_is_named(root: Path, tmp_path: Path) -> None:
    ranks, tensors = ranks_of(root / "gpt2.lrzip"), load_file(root / "gpt2.lrzip" / "model.safetensors")
    lost = "transformer.h.1.mlp.c_fc"
    renamed = {name.replace(lost, "transformer.ghost"): tensor for name, tensor in tensors.items()}
    elsewhere = {name.replace(lost, "transformer.ghost"): rank for name, rank in ranks.items()}
    folder = with_tensors(root / "gpt2.lrzip", tmp_path / "renamed", elsewhere, renamed)
    message = f"`transformer.ghost`, which GPT2LMHeadModel does not have, while no file has its `{lost}.weight`"
    with pytest.raises(LrzipError, match=message):
        auto("gpt2").from_pretrained(folder)
    extra = {"transformer.wpe.weight_in": torch.zeros(RANK, 32), "transformer.wpe.weight": torch.zeros(20, RANK)}
    ranks["transformer.wpe"] = RANK
    folder = with_tensors(root / "gpt2.lrzip", tmp_path / "kind", ranks, tensors | extra)
    with pytest.raises(LrzipError, match=r"`transformer\.wpe` is Embedding, for which there is no low-rank module"):
        auto("gpt2").from_pretrained(folder)


def test_layers_that_the_class_ignores_do_not_matter(root: Path, tmp_path: Path) -> None:
    dense = load_file(root / "llama" / "model.safetensors")
    transformers.LlamaConfig.from_pretrained(root / "llama").save_pretrained(tmp_path / "more")
    config = json.loads((root / "llama" / "config.json").read_text())
    (tmp_path / "more" / "config.json").write_text(json.dumps(config))
    save_file(dense | {"extra.weight": torch.randn(32, 32)}, tmp_path / "more" / "model.safetensors")
    lrzip.compress(tmp_path / "more", tmp_path / "small", rank=RANK)
    assert "extra" in ranks_of(tmp_path / "small")
    assert_close(
        logits(auto("llama").from_pretrained(tmp_path / "small")), logits(auto("llama").from_pretrained(root / "llama"))
    )


def test_dequantize_gives_the_dense_model(name: str, root: Path, tmp_path: Path) -> None:
    model = auto(name).from_pretrained(root / f"{name}.lrzip")
    expected = logits(model)
    dense = model.dequantize()
    assert not [module for module in dense.modules() if isinstance(module, hf.LowRankLinear)]
    assert {n: type(m) for n, m in dense.named_modules()} == {n: type(m) for n, m in build(name).named_modules()}
    assert_close(logits(dense), expected)
    dense.save_pretrained(tmp_path / "dense")
    assert_close(logits(auto(name).from_pretrained(tmp_path / "dense")), expected)


def test_subclasses_of_linear_layers_load(tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "dense")
    lrzip.compress(tmp_path / "dense", tmp_path / "small", rank=8)
    lrzip.export(tmp_path / "small", "dense", tmp_path / "merged")
    small, merged = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("small", "merged"))
    assert sum(isinstance(module, hf.LowRankLinear) for module in small.modules()) == len(ranks_of(tmp_path / "small"))
    assert_close(logits(small), logits(merged))
    assert {type(m) for m in small.dequantize().modules()} == {type(m) for m in model.modules()}


def test_a_plain_file_keeps_conv1d_and_a_live_network_does_not(tmp_path: Path) -> None:
    model = build("gpt2").eval()
    torch.save(model.state_dict(), tmp_path / "gpt2.pt")
    found = lrzip.analyze(tmp_path / "gpt2.pt", model=model)
    name = "transformer.h.0.mlp.c_fc"
    assert "transformers' Conv1D" in {keep.name: keep.reason for keep in found.keep}[name]
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(model.get_submodule(name).weight, full_matrices=False)
        model.get_submodule(name).weight.copy_((u[:, :3] * s[:3]) @ vh[:3])
        live = lrzip.factorize(model, rank=3, only=[name])
        ids = torch.arange(12).reshape(2, 6)
        assert isinstance(live.get_submodule(name), nn.Sequential)
        # The weight has that rank, so a few layers of float32 sums are all that differs.
        torch.testing.assert_close(live(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_low_rank_convolution_computes_the_product_of_its_factors_in_each_group(groups: int) -> None:
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=2, groups=groups)
    low_rank = hf.modules.low_rank("layer", layer, 2)
    generator = torch.Generator().manual_seed(0)
    for parameter in low_rank.parameters():
        nn.init.normal_(parameter, generator=generator)
    first, second = low_rank.weight_in.unflatten(0, (groups, 2)), low_rank.weight.unflatten(0, (groups, 12 // groups))
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("gork,grihw->goihw", second.flatten(3), first).flatten(0, 1))
        layer.bias = low_rank.bias
        x = torch.randn(2, 8, 9, 7, generator=generator)
        assert_close(low_rank(x), layer(x))
