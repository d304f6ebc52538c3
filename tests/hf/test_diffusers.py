"""diffusers loads compressed models with lrzip, and refuses them without."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lrzip

diffusers = pytest.importorskip("diffusers", "0.32", reason="needs diffusers")
RANK = 3


def build() -> Any:
    """Return a tiny model whose layers have a low rank."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.UNet2DModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() > 1:
            u, s, vh = torch.linalg.svd(parameter.data.flatten(1), full_matrices=False)
            parameter.data = ((u[:, :RANK] * s[:RANK]) @ vh[:RANK]).reshape(parameter.shape)
    return model


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result: Tensor = model(x, torch.tensor([3])).sample
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build().save_pretrained(folder / "dense")
    report = lrzip.compress(folder / "dense", folder / "small", rank=RANK)
    assert report.usage
    assert "lrzip.hf.diffusers" in report.usage
    return folder


def test_a_compressed_folder_computes_the_same_and_saves_and_becomes_dense(root: Path, tmp_path: Path) -> None:
    importlib.import_module("lrzip.hf.diffusers")
    load = diffusers.UNet2DModel.from_pretrained
    model = load(root / "small")
    expected = outputs(build())
    torch.testing.assert_close(outputs(model), expected, rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    assert outputs(load(tmp_path / "again")).equal(outputs(model))
    model.dequantize().save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(outputs(load(tmp_path / "dense")), expected, rtol=1e-3, atol=1e-4)


def test_without_lrzip_it_is_refused_and_a_dense_one_loads(root: Path) -> None:
    lrzip.export(root / "small", "dense", root / "merged", force=True)
    code = (
        "import diffusers, sys\ndiffusers.UNet2DModel.from_pretrained(f'{sys.argv[1]}/merged')\n"
        "for low in (True, False):\n  try: diffusers.UNet2DModel.from_pretrained(f'{sys.argv[1]}/small', "
        "low_cpu_mem_usage=low)\n  except ValueError: print('refused')\nassert 'lrzip' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused", "refused"], done.stderr


def test_a_layer_that_the_model_lacks_is_named(root: Path, tmp_path: Path) -> None:
    importlib.import_module("lrzip.hf.diffusers")
    (tmp_path / "odd").mkdir()
    for path in (root / "small").iterdir():
        (tmp_path / "odd" / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    config["quantization_config"]["ranks"]["ghost"] = 2
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    with pytest.raises(lrzip.LrzipError, match="names `ghost`, which UNet2DModel does not have"):
        diffusers.UNet2DModel.from_pretrained(tmp_path / "odd")
