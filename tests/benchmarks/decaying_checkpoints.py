"""Checkpoints for `whole_command.py`: random weights whose singular values decay like those of trained weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

# torch is imported only in the process that writes: on Linux the peak memory of a process includes that of the process
# from which it was forked, and the process that imports this module measures its children.
if TYPE_CHECKING:
    from torch import Generator, Tensor

Shapes = Mapping[str, tuple[int, ...]]

# σᵢ = exp(−decay · i / n), fitted to the square and to the MLP weights of all-MiniLM-L6-v2.
SQUARE_DECAY = 2.9
MLP_DECAY = 1.8
SMALL = ((128, 128), (256, 128), (128, 288), (192, 192), (256, 256), (128, 512), (256, 576))


def bert(layers: int = 12, width: int = 768, vocabulary: int = 30522) -> Shapes:
    """Return the shapes of the tensors of BERT (Devlin et al. 2019), by default of 110 M parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    linear = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    linear["attention.output.dense"] = (width, width)
    linear |= {"intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}
    for kind, rows in (("word", vocabulary), ("position", 512), ("token_type", 2)):
        shapes[f"embeddings.{kind}_embeddings.weight"] = (rows, width)
    shapes |= dict.fromkeys(("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"), (width,))
    for layer in range(layers):
        for name, shape in linear.items():
            module = f"encoder.layer.{layer}.{name}"
            shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
            if name.endswith("output.dense"):
                norm = f"{module.removesuffix('dense')}LayerNorm"
                shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes | {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}


def llama(layers: int = 14, width: int = 2048, mlp: int = 8192, vocabulary: int = 32000) -> Shapes:
    """Return the shapes of the tensors of a Llama with a tied head, by default of 1.0 B parameters."""
    linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "o")}
    linear |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in linear.items()}
        norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
        shapes |= {f"model.layers.{layer}.{norm}": (width,) for norm in norms}
    return shapes | {"model.norm.weight": (width,)}


def many(layers: int = 1000) -> Shapes:
    """Return the shapes of the weights of many small linear layers."""
    return {f"layers.{layer}.weight": SMALL[layer % len(SMALL)] for layer in range(layers)}


def write_checkpoint(path: Path, shapes: Shapes, dtype: str) -> None:
    """Write tensors of the given shapes, with ones for norms and zeros for biases.

    Matrices of the same shape share their singular vectors up to random permutations and signs.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    matrices: dict[tuple[int, ...], Tensor] = {}
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = torch.full(shape, float(name.endswith("weight")), dtype=getattr(torch, dtype))
            continue
        if "embed" in name:
            matrix = torch.randn(shape, generator=generator) * 0.02
        else:
            if shape not in matrices:
                matrices[shape] = decaying(shape, generator)
            matrix = shuffled(matrices[shape], generator)
        tensors[name] = matrix.to(getattr(torch, dtype))
    save_file(tensors, path, metadata={"format": "pt"})


def decaying(shape: tuple[int, ...], generator: "Generator") -> "Tensor":
    """Return a float32 matrix (m, n) with random singular vectors and elements of standard deviation 0.02."""
    import torch

    size = min(shape)
    decay = SQUARE_DECAY if shape[0] == shape[1] else MLP_DECAY
    values = torch.exp(-decay * torch.arange(1, size + 1) / size)
    u, v = (torch.linalg.qr(torch.randn(side, size, generator=generator)).Q for side in shape)
    matrix: Tensor = u * values @ v.mT
    return matrix * (0.02 / matrix.std())


def shuffled(matrix: "Tensor", generator: "Generator") -> "Tensor":
    """Return a matrix with randomly permuted rows and columns and random signs, which has the same singular values."""
    import torch

    for _ in range(2):
        side = len(matrix)
        order = torch.randperm(side, generator=generator)
        signs = 2.0 * torch.randint(2, (side,), generator=generator) - 1
        matrix = (matrix[order] * signs[:, None]).mT
    return matrix.contiguous()
