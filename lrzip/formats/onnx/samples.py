"""Samples of PyTorch as the arrays that onnxruntime takes."""

from collections.abc import Sequence

from lrzip.core.moments import Arguments
from lrzip.formats.onnx.feeds import Sample


def as_sample(arguments: Arguments) -> Sample:
    """Return the arguments of a call as arrays."""
    args, kwargs = arguments
    return tuple(value.numpy() for value in args), {name: value.numpy() for name, value in kwargs.items()}


def nbytes_of(samples: Sequence[Sample]) -> int:
    """Return the size of samples in bytes."""
    return sum(array.nbytes for args, kwargs in samples for array in (*args, *kwargs.values()))
