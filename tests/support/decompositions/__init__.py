"""Decompositions for tests of structures and groups that the decompositions of the product do not need.

Each is one file, like those in `lrzip/decompositions`, and supports neither solvers nor calibration.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lrzip.decompositions import DECOMPOSITIONS

ADDED: dict[str, str] = {
    "depthwise-sum": "tests.support.decompositions.depthwise_sum:DepthwiseSum",
}
"""Decompositions of single layers."""
GROUPS: dict[str, str] = {
    "narrow": "tests.support.decompositions.narrow:Narrow",
}
"""Decompositions of groups of layers."""
REARRANGING: dict[str, str] = {
    "tensor-train": "tests.support.decompositions.tensor_train:TensorTrain",
}
"""Decompositions whose structures cannot be recognized by the names and shapes of tensors."""


@contextmanager
def registered() -> Iterator[None]:
    """Register all of them."""
    DECOMPOSITIONS._entries.update(ADDED | GROUPS | REARRANGING)
    try:
        yield
    finally:
        for name in (*ADDED, *GROUPS, *REARRANGING):
            del DECOMPOSITIONS._entries[name]
