"""Builders of tiny checkpoints, at least one of every format."""

import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import torch
import torch.jit
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from tests.support.graphs import model, node
from tests.support.networks import Net, seeded

Builder: TypeAlias = Callable[[Path], Path]


def state() -> dict[str, Tensor]:
    """Return the state_dict of `NetWithExtras`: that of `Net`, and tensors of other shapes and dtypes."""
    tensors = seeded(Net).state_dict()
    extra = {
        "extra.low.weight": torch.linspace(-1, 1, 640).reshape(32, 20).to(torch.bfloat16) ** 2,
        "extra.eight": torch.arange(640).reshape(32, 20).to(torch.int8),
        "extra.scalar": torch.tensor(3.5),
        "extra.none": torch.empty(0, 4),
    }
    return OrderedDict({**tensors, **extra})


def bare(folder: Path) -> Path:
    """Save a zip state_dict with `_metadata`."""
    tensors: Any = state()
    tensors._metadata = OrderedDict({"": {"version": 1}, "bn1": {"version": 2}})
    return _saved(folder / "bare.pt", tensors)


def legacy(folder: Path) -> Path:
    """Save a state_dict in the legacy format."""
    return _saved(folder / "legacy.pth", state(), _use_new_zipfile_serialization=False)


def nested(folder: Path) -> Path:
    """Save a training checkpoint with wrapper prefixes, an optimizer and other entries."""
    content = {
        "epoch": 7,
        "state_dict": {f"module.{name}": tensor for name, tensor in state().items()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "best_prec1": 91.7,
        "hyper_parameters": {"width": [1, 2], "name": "net"},
    }
    return _saved(folder / "nested.ckpt", content)


def safetensors(folder: Path) -> Path:
    """Save a safetensors file with metadata."""
    path = folder / "single.safetensors"
    save_file(dict(state()), path, metadata={"format": "pt", "note": "é"})
    return path


def sharded(folder: Path) -> Path:
    """Save a folder of two shards with an index and other files."""
    return _folder(folder / "sharded", {"name": "net"})


def huggingface(folder: Path) -> Path:
    """Save a folder of transformers: shards, and a config.json that names a model."""
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


class NetWithExtras(Net):
    """`Net` with modules for the other tensors of the checkpoints, which it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Module()
        self.extra.low = nn.Linear(20, 32, bias=False, dtype=torch.bfloat16)
        self.extra.register_buffer("eight", torch.zeros(32, 20, dtype=torch.int8))
        self.extra.register_buffer("scalar", torch.tensor(0.0))
        self.extra.register_buffer("none", torch.empty(0, 4))
        self.load_state_dict(state())


def module(folder: Path) -> Path:
    """Save the network itself."""
    return _saved(folder / "module.pt", NetWithExtras().eval())


def program(folder: Path) -> Path:
    """Save a program of torch.export."""
    path = folder / "program.pt2"
    path.write_bytes(_exported())
    return path


def torchscript(folder: Path) -> Path:
    """Save a TorchScript program."""
    path = folder / "script.jit"
    path.write_bytes(_scripted())
    return path


def onnx_model(folder: Path) -> Path:
    """Save an ONNX model that uses each weight of `Net` in a node, and no other tensor."""
    nodes = [
        node("Conv", "image conv1.weight", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "a conv2.weight conv2.bias", "b", dilations=[2, 1]),
        node("GlobalAveragePool", "b", "pooled"),
        node("Gemm", "features fc1.weight fc1.bias", "c", transB=1),
        node("Gemm", "c fc2.weight fc2.bias", "d", transB=1),
    ]
    inputs: dict[str, list[str | int | None]] = {"image": ["n", 3, 16, 16], "features": ["n", 576]}
    built = model(nodes, inputs, {"pooled": 4, "d": 2}, {})
    built.metadata_props.add(key="note", value="é")
    for name, tensor in state().items():
        code = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype) if tensor.dtype != torch.bfloat16 else 16
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        built.graph.initializer.add(name=name, dims=tensor.shape, data_type=code, raw_data=data)
    onnx.save_model(built, folder / "model.onnx")
    return folder / "model.onnx"


def foreign(folder: Path) -> Path:
    """Write a file of a kind that lrzip recognizes only to refuse it."""
    path = folder / "weights.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    return path


@cache
def _exported() -> bytes:
    file = io.BytesIO()
    images = torch.ones(2, 3, 16, 16)
    program_ = torch.export.export(NetWithExtras().eval(), (images,), dynamic_shapes=[{0: Dim.AUTO}])
    torch.export.save(program_, file)
    return file.getvalue()


@cache
def _scripted() -> bytes:
    jit: Any = torch.jit  # without types
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jit.save(jit.script(NetWithExtras().eval()), file)
    return file.getvalue()


BUILDERS: Mapping[str, Builder] = {
    "bare": bare,
    "legacy": legacy,
    "nested": nested,
    "safetensors": safetensors,
    "sharded": sharded,
    "huggingface": huggingface,
}
"""Checkpoints of weights alone, whose layers can be replaced without trust."""

NETWORK_BUILDERS: Mapping[str, Builder] = {
    "module": module,
    "program": program,
    "torchscript": torchscript,
    "onnx": onnx_model,
}
"""Checkpoints that hold more than weights: the network or a program, some of which need trust."""

REFUSED_BUILDERS: Mapping[str, Builder] = {"foreign": foreign}
"""Files that are recognized only to be refused."""


def _saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path
