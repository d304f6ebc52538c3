"""Shapes of the inputs of a network, random inputs of these shapes, and runs on them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lrzip.core.errors import LrzipError, UsageError, typed_line

BATCH = "batch"
# Integers are often indices; 0 and 1 are valid for any table of two rows.
_INTEGER_LIMIT = 2


@dataclass(frozen=True)
class InputShape:
    """Shape of one input of a network.

    Attributes:
        sizes: Size of each dimension; an example for dynamic dimensions.
        names: Name of each dynamic dimension, None for fixed ones.
        dtype: Name of the dtype in torch.
    """

    sizes: tuple[int, ...]
    names: tuple[str | None, ...]
    dtype: str

    @classmethod
    def parse(cls, text: str) -> "InputShape":
        """Parse a shape such as `1,3,32,32` or `1,length=128:int64`. The first dimension is the batch.

        Raises:
            UsageError: The text is not a shape, or the dtype is unknown.
        """
        shape, _, dtype = text.partition(":")
        sizes: list[int] = []
        names: list[str | None] = []
        for position, part in enumerate(shape.split(",")):
            name, equals, size = part.strip().rpartition("=")
            if not size.isdigit() or int(size) < 1 or (equals and not name.isidentifier()):
                raise UsageError(
                    f"`input_shapes` takes sizes such as `1,3,32,32` or `1,length=128:int64`, got `{text}`."
                )
            sizes.append(int(size))
            names.append(name or (None if position else BATCH))
        if not isinstance(getattr(torch, dtype or "float32", None), torch.dtype):
            raise UsageError(f"`input_shapes={text}`: `{dtype}` is not a dtype of torch.")
        return cls(tuple(sizes), tuple(names), dtype or "float32")

    def sizes_at(self, batch: int) -> tuple[int, ...]:
        """Return the sizes with a given size of the batch dimension."""
        return tuple(batch if name == BATCH else size for size, name in zip(self.sizes, self.names, strict=True))

    def example(self, batch: int, generator: Generator) -> Tensor:
        """Return a random input.

        Args:
            batch: Size of the batch dimension.
            generator: Source of randomness; floating-point inputs are normal, integers are 0 or 1.
        """
        sizes = self.sizes_at(batch)
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(sizes, generator=generator).to(dtype)
        return torch.randint(_INTEGER_LIMIT, sizes, generator=generator).to(dtype)


def example_inputs(inputs: Sequence[InputShape], batch: int = 1) -> tuple[Tensor, ...]:
    """Return random inputs of a network, the same at each call."""
    generator = Generator().manual_seed(0)
    return tuple(shape.example(batch, generator) for shape in inputs)


def run(model: Any, inputs: Sequence[InputShape], *, batch: int = 1) -> list[Tensor]:
    """Return the output tensors of a network for random inputs, as a flat list.

    Raises:
        LrzipError: The network does not take inputs of these shapes.
    """
    try:
        return outputs_of(model, example_inputs(inputs, batch))
    except Exception as error:
        shapes = " ".join(f"`input_shapes={','.join(map(str, shape.sizes))}:{shape.dtype}`" for shape in inputs)
        raise LrzipError(f"The network does not take {shapes}: {typed_line(error)}.") from error


def outputs_of(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the output tensors of a network as a flat list, whatever containers hold them."""
    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(model(*inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def input_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the inputs of a network, in order; empty if its signature does not tell them."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(parameter.name for parameter in parameters if parameter.kind in named)


def described(inputs: Any) -> str:
    """Describe the dtypes and shapes of the inputs of one sample, for messages."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    texts = [f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape[1:])}" for leaf in leaves]
    return " and ".join(texts) or type(inputs).__name__
