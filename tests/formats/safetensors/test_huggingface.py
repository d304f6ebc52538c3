import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lrzip
from lrzip.core.errors import LrzipError, UnknownName, UnsupportedCheckpoint
from lrzip.core.layers import Keep, Layer
from lrzip.formats import FORMATS
from lrzip.formats.open import open_checkpoint
from tests.support.checkpoints import huggingface, nested
from tests.support.shell import error_of, run

MODULES = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]
RANKS = dict.fromkeys(MODULES, 3)
GPT2 = {"model_type": "gpt2", "vocab_size": 50, "architectures": ["GPT2LMHeadModel"], "note": "é"}


def folder(path: Path, tensors: Mapping[str, Tensor | tuple[int, ...]], config: object) -> Path:
    path.mkdir()
    generator = torch.Generator().manual_seed(0)
    made = {
        name: what if isinstance(what, Tensor) else torch.randn(what, generator=generator)
        for name, what in tensors.items()
    }
    save_file(made, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def gpt2(tmp_path: Path, **config: object) -> Path:
    """A block of GPT-2, whose linear layers are stored (in, out)."""
    shapes = {
        "wte.weight": (50, 16),
        "wpe.weight": (20, 16),
        "h.0.attn.c_attn.weight": (16, 48),
        "h.0.attn.c_attn.bias": (48,),
        "h.0.attn.c_proj.weight": (16, 16),
        "h.0.attn.c_proj.bias": (16,),
        "h.0.mlp.c_fc.weight": (16, 64),
        "h.0.mlp.c_fc.bias": (64,),
        "h.0.mlp.c_proj.weight": (64, 16),
        "h.0.mlp.c_proj.bias": (16,),
    }
    return folder(tmp_path / "gpt2", shapes, GPT2 | config)


def config_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "config.json").read_text()))


def kept(path: Path) -> dict[str, Keep]:
    with open_checkpoint(path) as checkpoint:
        return {item.name: item for item in checkpoint.layers() if isinstance(item, Keep)}


def layers(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as checkpoint:
        return {item.name: str(item.kind) for item in checkpoint.layers() if isinstance(item, Layer)}


def test_factors_lie_beside_the_bias_and_config_names_them(tmp_path: Path) -> None:
    source = huggingface(tmp_path)
    lrzip.compress(source, tmp_path / "small", ratio=2)
    before, after = (
        {name: tensor for shard in path.glob("*.safetensors") for name, tensor in load_file(shard).items()}
        for path in (source, tmp_path / "small")
    )
    config = config_of(tmp_path / "small")
    quantization = config.pop("quantization_config")
    assert config == config_of(source)
    assert (quantization["quant_method"], quantization["format_version"]) == ("lrzip", 1)
    assert quantization["ranks"].keys() == {"conv1", "conv2", "fc1", "fc2", "extra.low"}
    assert "transposed" not in quantization
    for module, rank in quantization["ranks"].items():
        out, inner, *kernel = before.pop(f"{module}.weight").shape
        assert tuple(after.pop(f"{module}.weight_in").shape) == (rank, inner, *kernel)
        assert tuple(after.pop(f"{module}.weight").shape) == (out, rank, *[1] * len(kernel))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert {"fc1.weight_in", "fc1.weight", "fc1.bias"} <= index["weight_map"].keys()
    assert (tmp_path / "small" / "tokenizer" / "vocab.txt").read_text() == "a\nb\n"


def test_conv1d_is_known_by_the_type_of_the_model(tmp_path: Path) -> None:
    path = gpt2(tmp_path)
    assert layers(path) == dict.fromkeys(MODULES, "linear_transposed")
    lrzip.compress(path, tmp_path / "small", rank=3)
    assert config_of(tmp_path / "small")["quantization_config"]["transposed"] == MODULES
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert stored["h.0.mlp.c_fc.weight_in"].shape == (3, 16)
    assert stored["h.0.mlp.c_fc.weight"].shape == (64, 3)
    (path / "config.json").write_text('{"model_type": "unheard of"}')
    assert not layers(path)
    assert "stored transposed" in kept(path)["h.0.attn.c_proj"].reason


def test_dense_is_the_product_of_the_factors_in_the_original_folder(tmp_path: Path) -> None:
    path = gpt2(tmp_path)
    lrzip.compress(path, tmp_path / "small", rank=3)
    lrzip.export(tmp_path / "small", "dense", tmp_path / "dense")
    before, small, dense = (load_file(p / "model.safetensors") for p in (path, tmp_path / "small", tmp_path / "dense"))
    assert config_of(tmp_path / "dense") == config_of(path)
    assert {name: tensor.shape for name, tensor in dense.items()} == {n: tensor.shape for n, tensor in before.items()}
    for module in MODULES:
        product = (small[f"{module}.weight"] @ small[f"{module}.weight_in"]).T
        torch.testing.assert_close(dense[f"{module}.weight"], product)
        u, s, vh = torch.linalg.svd(before[f"{module}.weight"], full_matrices=False)
        # The best product of rank 3, to float32's precision relative to the largest singular value.
        best = (u[:, :3] * s[:3]) @ vh[:3]
        torch.testing.assert_close(product, best, rtol=1e-4, atol=1e-5 * float(s[0]))


def test_one_file_has_the_keys_of_a_sequential(tmp_path: Path) -> None:
    shapes = {"fc.weight": (48, 16), "fc.bias": (48,)}
    bert = folder(tmp_path / "bert", shapes, {"model_type": "bert"})
    lrzip.compress(bert, tmp_path / "small", rank=3)
    lrzip.export(tmp_path / "small", "safetensors", tmp_path / "one.safetensors")
    lrzip.compress(bert, tmp_path / "direct.safetensors", rank=3)
    assert load_file(tmp_path / "one.safetensors").keys() == {"fc.0.weight", "fc.1.weight", "fc.1.bias"}
    assert load_file(tmp_path / "direct.safetensors").keys() == {"fc.0.weight", "fc.1.weight", "fc.1.bias"}
    assert lrzip.export(tmp_path / "one.safetensors", "dense").chains == ["fc"]


def test_factors_of_a_conv1d_are_not_written_to_formats_without_kinds(tmp_path: Path) -> None:
    path = gpt2(tmp_path)
    with pytest.raises(LrzipError, match=r"cannot distinguish the factors of `h\.0\.attn\.c_attn\.0\.weight`"):
        lrzip.compress(path, tmp_path / "direct.safetensors", rank=3)
    lrzip.compress(path, tmp_path / "small", rank=3)
    for to in ("safetensors", "state-dict"):
        with pytest.raises(LrzipError, match="Write a folder, or `to=dense`"):
            lrzip.export(tmp_path / "small", to)
    lrzip.export(tmp_path / "small", "dense", tmp_path / "dense.safetensors")
    assert load_file(tmp_path / "dense.safetensors")["h.0.mlp.c_fc.weight"].shape == (16, 64)
    assert {item.name for item in tmp_path.iterdir()} == {"gpt2", "small", "dense.safetensors"}


def test_a_compressed_folder_can_be_compressed_further(tmp_path: Path) -> None:
    path = gpt2(tmp_path)
    lrzip.compress(path, tmp_path / "first", rank=3, only=["*.c_fc"])
    assert kept(tmp_path / "first")["h.0.mlp.c_fc.0"].reason == "already factorized"
    lrzip.compress(tmp_path / "first", tmp_path / "second", rank=2)
    quantization = config_of(tmp_path / "second")["quantization_config"]
    assert quantization["ranks"] == dict.fromkeys(MODULES, 2) | {"h.0.mlp.c_fc": 3}
    assert set(quantization["transposed"]) == quantization["ranks"].keys()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first["h.0.mlp.c_fc.weight_in"].equal(second["h.0.mlp.c_fc.weight_in"])
    lrzip.export(tmp_path / "second", "dense", tmp_path / "dense")
    assert config_of(tmp_path / "dense") == config_of(path)


def test_layers_of_the_vocabulary_are_kept_unless_they_are_untied_and_named(tmp_path: Path) -> None:
    shapes = {"embed_tokens.weight": (50, 16), "lm_head.weight": (50, 16), "up.weight": (30, 16)}
    config: dict[str, Any] = {"model_type": "x", "type_vocab_size": 30, "text_config": {"vocab_size": 50}}
    path = folder(tmp_path / "model", shapes, config)
    assert "vocabulary" in kept(path)["lm_head"].reason
    assert layers(path) == {"up": "linear"}
    with pytest.raises(UnknownName, match="may share its weight"):
        lrzip.compress(path, rank=2, only=["lm_head"])
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    lrzip.compress(path, rank=2, only=["lm_head"])
    assert config_of(tmp_path / "model.lrzip")["quantization_config"]["ranks"] == {"lm_head": 2}


def test_layers_that_are_read_directly_are_kept_in_mixtures_and_mixers(tmp_path: Path) -> None:
    shapes = {
        "l.0.mlp.gate.weight": (4, 16),
        "l.0.mlp.experts.0.up_proj.weight": (30, 16),
        "l.0.mlp.experts.0.down_proj.weight": (16, 30),
        "l.0.attn.q_proj.weight": (16, 16),
        "l.3.moe.input_linear.weight": (4, 30, 16),
        "l.3.moe.router.layer.weight": (4, 16),
        "l.1.mixer.A_log": (30, 16),
        "l.1.mixer.in_proj.weight": (60, 16),
        "l.1.mixer.x_proj.weight": (40, 30),
        "l.1.mixer.dt_proj.weight": (30, 8),
        "l.1.mixer.dt_proj.bias": (30,),
        "l.1.mixer.out_proj.weight": (16, 30),
        "l.2.attn.out_proj.weight": (16, 16),
    }
    path = folder(tmp_path / "model", shapes, {"model_type": "mixture", "num_local_experts": 4})
    assert layers(path).keys() == {"l.0.attn.q_proj", "l.1.mixer.in_proj", "l.2.attn.out_proj"}
    reasons = {name: item.reason for name, item in kept(path).items()}
    assert "router" in reasons["l.0.mlp.gate"]
    assert "router" in reasons["l.3.moe.router.layer"]
    assert "an expert of a mixture, which transformers may merge" in reasons["l.0.mlp.experts.0.up_proj"]
    assert "experts" in reasons["l.3.moe.input_linear"]
    assert "state-space" in reasons["l.1.mixer.dt_proj"]


def test_convolutions_that_are_grouped_in_a_model_of_this_type_are_kept(tmp_path: Path) -> None:
    shapes = {"a.weight": (16, 3, 3, 3), "b.weight": (32, 16, 3, 3), "fc.weight": (20, 32)}
    path = folder(tmp_path / "model", shapes, {"model_type": "regnet"})
    assert layers(path) == {"fc": "linear"}
    assert "`--model` settles it" in kept(path)["b"].reason


def test_a_folder_quantized_by_others_is_read_and_left_alone(tmp_path: Path) -> None:
    path = gpt2(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert {item.reason for item in kept(path).values()} == {"quantized already (gptq)"}
    with pytest.raises(LrzipError, match=r"no layer that can be factorized: most are kept as quantized already"):
        lrzip.compress(path, rank=2)
    lrzip.export(path, "safetensors", tmp_path / "x.safetensors")


@pytest.mark.parametrize("config", ["", "{", "[1]", '"gpt2"', "{" * 5000])
def test_a_damaged_config_is_named(config: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"a.weight": (20, 20)}, config)
    error = error_of(run("compress", path, "--rank", "2"), 1)
    assert "config.json" in error
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format_version 2, and this lrzip knows 1\. Update lrzip"),
        ({"format_version": "1"}, r"format_version '1'"),
        ({"ranks": [3]}, "no usable `ranks`"),
        ({"ranks": {"h.0.mlp.c_fc": 3.0}}, "no usable `ranks`"),
        ({"ranks": {"h.0.mlp.c_fc": True}}, "no usable `ranks`"),
        ({"ranks": {"h.0.mlp.c_fc": 0}}, "no usable `ranks`"),
        ({"ranks": RANKS | {"h.0.mlp.c_fc": 4}}, r"`h\.0\.mlp\.c_fc` rank 4, which its tensors do not have"),
        ({"ranks": RANKS | {"h.7": 4}}, r"`h\.7` rank 4, which its tensors do not have: no tensors"),
        ({"ranks": RANKS | {"wte": 16}}, r"`wte` rank 16, .*: `weight` \(50, 16\)"),
    ],
)
def test_ranks_must_fit_the_tensors(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    lrzip.compress(gpt2(tmp_path), tmp_path / "small", rank=3)
    config = config_of(tmp_path / "small")
    config["quantization_config"] |= changes
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpoint, match=message):
        open_checkpoint(tmp_path / "small")


def test_factors_must_fit_each_other(tmp_path: Path) -> None:
    quantization = {"quant_method": "lrzip", "format_version": 1, "ranks": {"a": 2}}
    config = {"model_type": "x", "quantization_config": quantization}
    path = folder(tmp_path / "model", {"a.weight_in": (3, 20), "a.weight": (20, 2)}, config)
    with pytest.raises(UnsupportedCheckpoint, match="names `a`, whose factors do not fit together"):
        open_checkpoint(path)
    path = folder(tmp_path / "other", {"a.weight": (20, 20)}, {"model_type": "x", "quantization_config": "lrzip"})
    with pytest.raises(UnsupportedCheckpoint, match="must be an object"):
        open_checkpoint(path)


def test_a_file_cannot_become_a_folder_of_transformers(tmp_path: Path) -> None:
    lrzip.compress(nested(tmp_path), tmp_path / "small.ckpt", ratio=2)
    with open_checkpoint(tmp_path / "small.ckpt") as source, pytest.raises(LrzipError, match=r"no folder with a"):
        FORMATS["huggingface"].write(tmp_path / "out", source, (), drop=())


def test_the_command_says_how_to_load_its_output(tmp_path: Path) -> None:
    path = gpt2(tmp_path)
    line = b"To load it: `import lrzip.hf` before `from_pretrained`"
    assert line not in run("compress", path, "--rank", "3", "--dry-run").stdout
    done = run("compress", path, "--rank", "3", "-o", tmp_path / "small")
    assert done.stdout.splitlines()[-1].startswith(line)
    assert line not in run("compress", path, "--rank", "3", "-o", tmp_path / "one.safetensors").stdout
    assert "lrzip.hf" in config_of(tmp_path / "small")["quantization_config"]["usage"]


def test_without_transformers_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lrzip.hf", raising=False)
    monkeypatch.setitem(sys.modules, "transformers.quantizers", None)
    with pytest.raises(ImportError, match=r"transformers 4\.50 or later: pip install 'lrzip-nn\[hf\]'"):
        import lrzip.hf  # noqa: F401
