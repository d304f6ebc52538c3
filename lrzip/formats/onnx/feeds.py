"""Inputs of ONNX models: random ones of the declared or of given shapes, and samples.

This file runs in processes of its own (see `lrzip.core.limited`), which import no torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lrzip.core.errors import LrzipError, NotCompared

Array: TypeAlias = np.ndarray[Any, Any]
Arrays: TypeAlias = Mapping[str, Array]
Sample: TypeAlias = tuple[Sequence[Array], Arrays]
"""Positional and named inputs of one call."""

# Sizes that are tried for open dimensions: of the first dimension of a shape, and of the others. Images come first: on
# a few pixels, the outputs of many networks are constant.
_SIZES = ((2, 64), (1, 64), (1, 224), (1, 512), (1, 256), (1, 32), (2, 16), (1, 4), (2, 2), (32, 32), (256, 256))
_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_INTEGERS = {f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
# Integers of which nothing is known are 0 or 1, which are valid indices of almost any table and valid values of a mask.
_FEW = 2
_MOST_ELEMENTS, _MOST_OPEN = 1 << 24, 1 << 22
"""Largest inputs that are tried: of declared sizes, and of those of `_SIZES`."""
_LISTED = 3

_FILLS: Sequence[Callable[[np.random.Generator, tuple[int, ...]], Array]] = (
    lambda generator, shape: np.asarray(generator.standard_normal(shape)),
    lambda generator, shape: np.asarray(generator.uniform(0, 255, shape)),
)
"""Floating-point inputs: normal ones, and pixels, since some networks normalize images themselves."""


class Trial(NamedTuple):
    """Inputs to run a model on.

    Attributes:
        text: Description of the inputs.
        feeds: Inputs of one or more calls.
        other: Other inputs of the same shapes, to find out whether outputs depend on them.
    """

    text: str
    feeds: Sequence[Arrays]
    other: Arrays


@dataclass(frozen=True)
class Given:
    """Known inputs of a model: samples, or else shapes.

    Attributes:
        samples: Calibration data.
        shapes: Shape of each input; if empty, declared ones.
        limits: Bounds of integer inputs by name: the sizes of the tables that they are indices of.
    """

    samples: Sequence[Sample] = ()
    shapes: Sequence[Sequence[int]] = ()
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """The remedy if outputs are the same for all inputs that were tried."""
        if self.samples:
            return "Calibrate on other data."
        return "Give data by `calibrate=FILE`" + ("." if self.shapes else ", or sizes by `input_shapes=SIZES`.")


def trials(inputs: Sequence[Any], given: Given) -> Iterator[Trial]:
    """Yield inputs of a model, the likeliest to run first: samples if there are some, else random ones.

    Random inputs have the given shapes, or the declared ones with other sizes of the open dimensions each time. Very
    large ones are skipped, since a model may declare any size.

    Args:
        inputs: Inputs of a session of onnxruntime.
        given: What is known about them.

    Raises:
        NotCompared: An input is not a tensor of numbers, or the shapes are not those of the inputs.
    """
    if given.samples:
        feeds = [feed for sample in given.samples for feed in feeds_of(inputs, sample)]
        if not feeds:
            raise NotCompared("there are fewer samples than the batch of the model has.")
        flipped = {name: np.ascontiguousarray(np.flip(array)) for name, array in feeds[0].items()}
        yield Trial("the calibration data", feeds, feeds[1] if len(feeds) > 1 else flipped)
        return
    for item in inputs:
        if item.type not in {*_FLOATS, *_INTEGERS, "tensor(bool)"}:
            raise NotCompared(f"the input `{item.name}` is a {item.type}.")
    if given.shapes and len(given.shapes) != len(inputs):
        raise NotCompared(f"the model takes {len(inputs)} inputs, and `input_shapes` has {len(given.shapes)}.")
    for limits in (given.limits, {}) if given.limits else ({},):
        for shapes in [given.shapes] if given.shapes else _declared_shapes(inputs):
            for fill in range(len(_FILLS)):
                first, second = (random_feed(inputs, shapes, limits, seed=seed, fill=fill) for seed in (0, 1))
                yield Trial(f"random inputs of {_listed(shapes)}", [first], second)


def random_feed(
    inputs: Sequence[Any],
    shapes: Sequence[Sequence[int]],
    limits: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    fill: int = 0,
) -> Arrays:
    """Return random inputs of given shapes, the same at each call.

    Args:
        inputs: Inputs of a session of onnxruntime.
        shapes: Shape of each input.
        limits: Bounds of integer inputs by name; other integers are 0 or 1.
        seed: Seed of the generator.
        fill: Distribution of floating-point inputs, an index of `_FILLS`.
    """
    generator = np.random.default_rng(seed)
    feed = {}
    for item, shape in zip(inputs, shapes, strict=True):
        if item.type in _FLOATS:
            feed[item.name] = _FILLS[fill](generator, tuple(shape)).astype(_FLOATS[item.type])
            continue
        dtype = _INTEGERS.get(item.type, np.dtype(bool))
        limit = min((limits or {}).get(item.name, _FEW), np.iinfo(dtype).max + 1 if dtype.kind in "iu" else _FEW)
        feed[item.name] = np.asarray(generator.integers(limit, size=tuple(shape))).astype(dtype)
    return feed


def feeds_of(inputs: Sequence[Any], sample: Sample) -> Iterator[Arrays]:
    """Yield the inputs of a model, in pieces of the batch size that it declares.

    Args:
        inputs: Inputs of a session of onnxruntime.
        sample: Positional and named arrays.

    Raises:
        LrzipError: The model takes others.
    """
    args, kwargs = sample
    named = dict(zip([value.name for value in inputs], args, strict=False)) | dict(kwargs)
    if len(args) > len(inputs) or set(named) != {value.name for value in inputs}:
        names = ", ".join(f"`{value.name}`" for value in inputs)
        raise LrzipError(f"The model takes {names}, and the samples have {len(args) + len(kwargs)} inputs.")
    samples = len(next(iter(named.values())))
    declared = [value.shape[0] for value in inputs if value.shape]
    size = next((size for size in declared if isinstance(size, int) and size > 0), samples)
    for start in range(0, samples // size * size, size):
        yield {
            value.name: np.ascontiguousarray(named[value.name][start : start + size]).astype(_dtype(value))
            for value in inputs
        }


def _declared_shapes(inputs: Sequence[Any]) -> Iterator[list[tuple[int, ...]]]:
    tried: list[list[tuple[int, ...]]] = []
    for first, other in _SIZES:
        named: dict[str, int] = {}
        shapes = [_shape(item.shape, named, first, other) for item in inputs]
        is_open = any(list(item.shape) != list(shape) for item, shape in zip(inputs, shapes, strict=True))
        most = _MOST_OPEN if is_open else _MOST_ELEMENTS
        if shapes not in tried and all(prod(shape) <= most for shape in shapes):
            tried.append(shapes)
            yield shapes


def _shape(declared: Sequence[object], named: dict[str, int], first: int, other: int) -> tuple[int, ...]:
    """Return a declared shape with sizes for its open dimensions; those of the same name get the same size."""
    sizes = []
    for axis, size in enumerate(declared):
        chosen = other if axis else first
        if isinstance(size, int) and size >= 0:
            chosen = size
        elif isinstance(size, str):
            chosen = named.setdefault(size, chosen)
        sizes.append(chosen)
    return tuple(sizes)


def _listed(shapes: Sequence[Sequence[int]]) -> str:
    texts = [" × ".join(map(str, shape)) or "one number" for shape in shapes]
    return ", ".join(texts[:_LISTED]) + (" and others" if len(texts) > _LISTED else "")


def _dtype(value: Any) -> str:
    """Return the name of NumPy's dtype for a type of onnxruntime such as `tensor(float)`."""
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
