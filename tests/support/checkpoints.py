"""The tiniest checkpoint of every kind of file."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.networks import Net, seeded


def state() -> dict[str, Tensor]:
    """Return the state_dict of `Net`, with tensors of all sorts beside it."""
    tensors = seeded(Net).state_dict()
    extra = {
        "extra.low.weight": torch.linspace(-1, 1, 640).reshape(32, 20).to(torch.bfloat16) ** 2,
        "extra.eight": torch.arange(640).reshape(32, 20).to(torch.int8),
        "extra.scalar": torch.tensor(3.5),
        "extra.none": torch.empty(0, 4),
    }
    return OrderedDict({**tensors, **extra})


def bare(folder: Path) -> Path:
    """A zip state_dict with `_metadata`."""
    tensors: Any = state()
    tensors._metadata = OrderedDict({"": {"version": 1}, "bn1": {"version": 2}})
    return _saved(folder / "bare.pt", tensors)


def legacy(folder: Path) -> Path:
    """A state_dict from before the zip format."""
    return _saved(folder / "legacy.pth", state(), _use_new_zipfile_serialization=False)


def nested(folder: Path) -> Path:
    """A training checkpoint with wrapper prefixes, an optimizer and other entries."""
    content = {
        "epoch": 7,
        "state_dict": {f"module.{name}": tensor for name, tensor in state().items()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "best_prec1": 91.7,
        "hyper_parameters": {"width": [1, 2], "name": "net"},
    }
    return _saved(folder / "nested.ckpt", content)


def safetensors(folder: Path) -> Path:
    """One safetensors file with metadata."""
    path = folder / "single.safetensors"
    save_file(dict(state()), path, metadata={"format": "pt", "note": "é"})
    return path


def sharded(folder: Path) -> Path:
    """A folder of two shards with an index and other files."""
    return _folder(folder / "sharded", {"name": "net"})


def huggingface(folder: Path) -> Path:
    """A folder of transformers: the same, with a config.json that names a model."""
    return _folder(folder / "huggingface", {"model_type": "net", "vocab_size": 99})


def _folder(path: Path, config: Mapping[str, Any]) -> Path:
    (path / "tokenizer").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    names = list(state())
    weight_map: dict[str, str] = {}
    for index, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"model-0000{index + 1}-of-00002.safetensors"
        save_file({name: state()[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    metadata = {"total_size": sum(tensor.nbytes for tensor in state().values()), "made_by": "test"}
    index_text = json.dumps({"metadata": metadata, "weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(index_text)
    return path


BUILDERS: Mapping[str, Callable[[Path], Path]] = {
    "bare": bare,
    "legacy": legacy,
    "nested": nested,
    "safetensors": safetensors,
    "sharded": sharded,
    "huggingface": huggingface,
}


def _saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path
