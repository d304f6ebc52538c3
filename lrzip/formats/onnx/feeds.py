"""Random inputs of ONNX models, by the shapes and types that the models declare."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from lrzip.core.errors import NotCompared

Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
_SEED = 0
# Sizes that are tried for symbolic dimensions: of the first dimension of a shape, and of the others.
_SIZES = ((2, 2), (1, 4), (1, 32), (1, 512), (1, 256), (32, 32), (256, 256))
_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_INTEGERS = {f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
# Integers are 0 or 1, which are valid indices of almost any table and valid values of a mask.
_INTEGER_LIMIT = 2
_MOST_ELEMENTS = 1 << 24


def feed_of_shapes(inputs: Sequence[Any], shapes: Sequence[Sequence[int]]) -> Arrays:
    """Return random inputs of given shapes, the same at each call.

    Args:
        inputs: Inputs of a session of onnxruntime.
        shapes: Shape of each input.
    """
    generator = np.random.default_rng(_SEED)
    return {item.name: _random(generator, item.type, tuple(s)) for item, s in zip(inputs, shapes, strict=True)}


def random_feeds(inputs: Sequence[Any]) -> Iterator[Arrays]:
    """Yield random inputs of the declared shapes, with other sizes of the symbolic dimensions each time.

    Inputs of more than 2²⁴ elements are skipped, since a model may declare any size.

    Args:
        inputs: Inputs of a session of onnxruntime.

    Raises:
        NotCompared: An input is not a tensor of numbers.
    """
    for item in inputs:
        if item.type not in {*_FLOATS, *_INTEGERS, "tensor(bool)"}:
            raise NotCompared(f"the input `{item.name}` is a {item.type}.")
    tried: list[list[tuple[int, ...]]] = []
    for first, other in _SIZES:
        named: dict[str, int] = {}
        shapes = [_shape(item.shape, named, first, other) for item in inputs]
        if shapes not in tried and all(prod(shape) <= _MOST_ELEMENTS for shape in shapes):
            tried.append(shapes)
            yield feed_of_shapes(inputs, shapes)


def _shape(declared: Sequence[object], named: dict[str, int], first: int, other: int) -> tuple[int, ...]:
    """Return a declared shape with sizes for its symbolic dimensions; those of the same name get the same size."""
    sizes = []
    for axis, size in enumerate(declared):
        chosen = other if axis else first
        if isinstance(size, int) and size >= 0:
            chosen = size
        elif isinstance(size, str):
            chosen = named.setdefault(size, chosen)
        sizes.append(chosen)
    return tuple(sizes)


def _random(generator: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if kind in _FLOATS:
        return np.asarray(generator.standard_normal(shape)).astype(_FLOATS[kind])
    dtype = _INTEGERS.get(kind, np.dtype(bool))
    return np.asarray(generator.integers(_INTEGER_LIMIT, size=shape)).astype(dtype)
