import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from lrzip.formats.safetensors.selection import find_weights, has_weights, output_name

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BINS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        if name.endswith(".json"):
            shards = BINS if ".bin" in name else SHARDS
            (folder / name).write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
        else:
            (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
        (["model.safetensors", "model.safetensors.index.json", *SHARDS], ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors.index.json", *SHARDS, "consolidated.safetensors"], SHARDS),
        (["model.safetensors.index.json", *SHARDS, "pytorch_model.bin"], SHARDS),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
         ["diffusion_pytorch_model.safetensors"]),
        (["weights.safetensors", "consolidated.safetensors"], ["weights.safetensors"]),
        (["weights.safetensors", "weights.fp16.safetensors"], ["weights.safetensors"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["consolidated.safetensors", "pytorch_model.bin"], ["consolidated.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (["pytorch_model.bin.index.json", *BINS], BINS),
    ],
)  # fmt: skip
def test_weights_are_chosen_as_from_pretrained_does(names: list[str], chosen: list[str], tmp_path: Path) -> None:
    assert list(find_weights(touched(tmp_path, *names)).names) == chosen
    assert has_weights(tmp_path)


@pytest.mark.parametrize("names", [["a.safetensors", "b.safetensors"], SHARDS])
def test_several_files_without_an_index_are_ambiguous(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"holds 2 safetensors files and no index: .*Name one of them"):
        find_weights(touched(tmp_path, *names))


@pytest.mark.parametrize("names", [[], ["training_args.bin"], ["tf_model.h5"]])
def test_a_folder_without_weights_is_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="holds no safetensors weights"):
        find_weights(touched(tmp_path, *names))
    assert not has_weights(tmp_path)


def test_outputs_are_named_as_safetensors() -> None:
    names = {
        "pytorch_model.bin": "model.safetensors",
        "pytorch_model.bin.index.json": "model.safetensors.index.json",
        "pytorch_model-00001-of-00002.bin": "model-00001-of-00002.safetensors",
        "diffusion_pytorch_model.bin": "diffusion_pytorch_model.safetensors",
        "model-00001-of-00002.safetensors": "model-00001-of-00002.safetensors",
    }
    assert {name: output_name(name) for name in names} == names


@pytest.mark.parametrize("config", [{"model_type": "net"}, None])
@pytest.mark.parametrize("sharded", [False, True])
def test_files_of_torch_save_become_safetensors(sharded: bool, config: object, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(40, 16, generator=generator)
    state = {"fc.weight": torch.randn(24, 24, generator=generator), "fc.bias": torch.ones(24), "emb.weight": embedding}
    source = tmp_path / "source"
    source.mkdir()
    tied = {**state, "head.weight": embedding}
    if config:
        (source / "config.json").write_text(json.dumps(config))
    if sharded:
        parts = [{name: tied[name] for name in ("fc.weight", "fc.bias")}]
        parts.append({name: tied[name] for name in ("emb.weight", "head.weight")})
        for name, part in zip(BINS, parts, strict=True):
            torch.save(part, source / name)
        weight_map = {name: file for file, part in zip(BINS, parts, strict=True) for name in part}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(tied, source / "pytorch_model.bin")
    report = lrzip.compress(source, tmp_path / "small", rank=3)
    assert [decision.group.name for decision in report.plan.factorize] == ["fc"]
    assert not list((tmp_path / "small").glob("*.bin*"))
    written = {
        name: tensor for path in (tmp_path / "small").glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert written["emb.weight"].equal(embedding)
    assert written["head.weight"].equal(embedding)
    lrzip.export(tmp_path / "small", "dense", tmp_path / "dense")
    with open_checkpoint(tmp_path / "dense") as dense:
        u, s, vh = torch.linalg.svd(state["fc.weight"])
        torch.testing.assert_close(dense.read("fc.weight"), (u[:, :3] * s[:3]) @ vh[:3], rtol=1e-4, atol=1e-4)


def test_the_variant_that_was_not_chosen_does_not_matter(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    weight = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    save_file({"fc.weight": weight}, source / "model.safetensors")
    (source / "model.fp16.safetensors").write_bytes(b"damaged")
    report = lrzip.compress(source, tmp_path / "small", rank=3)
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"model.safetensors"}
    assert [name for name, _ in report.dropped] == ["model.fp16.safetensors"]
