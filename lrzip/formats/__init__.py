"""Checkpoint formats: reading the tensors of a file, and writing a file with layers replaced."""

from lrzip.core.registry import Registry

FORMATS = Registry(
    "format",
    {  # tested in this order for whether they match a path
        "foreign": "lrzip.formats.torch.foreign:FORMAT",
        "peft": "lrzip.formats.safetensors.peft:FORMAT",
        "diffusers": "lrzip.formats.safetensors.diffusers:FORMAT",
        "huggingface": "lrzip.formats.safetensors.huggingface:FORMAT",
        "sharded-safetensors": "lrzip.formats.safetensors.sharded:FORMAT",
        "safetensors": "lrzip.formats.safetensors.file:FORMAT",
        "onnx": "lrzip.formats.onnx.format:FORMAT",
        "program": "lrzip.formats.torch.program:FORMAT",
        "torchscript": "lrzip.formats.torch.torchscript:FORMAT",
        "module": "lrzip.formats.torch.module:FORMAT",
        "state_dict": "lrzip.formats.torch.state_dict:FORMAT",
    },
)
