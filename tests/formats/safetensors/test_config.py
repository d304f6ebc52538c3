import json
from pathlib import Path
from typing import Any

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.formats.open import open_checkpoint
from lrzip.formats.safetensors.config import CONFIG, read_config, read_ranks
from tests.support.checkpoints import huggingface
from tests.support.damage import damaged

VALID: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2Model"],
    "tie_word_embeddings": True,
    "vocab_size": 50,
    "num_experts": 8,
    "text_config": {"vocab_size": 50},
    "quantization_config": {
        "quant_method": "lrzip",
        "format_version": 1,
        "ranks": {"h.0.mlp.c_fc": 3},
        "transposed": ["h.0.mlp.c_fc"],
    },
}


def test_a_damaged_config_is_read_or_refused_by_name(tmp_path: Path) -> None:
    for what, config in damaged(VALID):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        try:
            quantization = read_config(tmp_path).get("quantization_config") or {}
            if quantization.get("quant_method") == "lrzip":
                read_ranks(quantization, f"`quantization_config` in `{tmp_path / CONFIG}`")
        except UnsupportedCheckpoint as error:
            assert CONFIG in str(error), what
            assert "\n" not in str(error), what


def test_a_damaged_config_is_read_or_refused_by_its_folder(tmp_path: Path) -> None:
    source = huggingface(tmp_path)
    lrzip.compress(source, tmp_path / "small", ratio=2)
    path = tmp_path / "small" / CONFIG
    valid = json.loads(path.read_text())
    for what, config in damaged(valid):
        path.write_text(json.dumps(config))
        try:
            with open_checkpoint(tmp_path / "small") as checkpoint:
                checkpoint.layers()
        except LrzipError as error:
            assert "\n" not in str(error), what
