"""Decompositions that exist only to show that structures carry more than the product needs: each is one file."""

from collections.abc import Iterator
from contextlib import contextmanager

from lrzip.decompositions import DECOMPOSITIONS

ADDED: dict[str, str] = {
    "spatial": "tests.support.decompositions.spatial:Spatial",
    "depthwise-sum": "tests.support.decompositions.depthwise_sum:DepthwiseSum",
}
GROUPS: dict[str, str] = {
    "narrow": "tests.support.decompositions.narrow:Narrow",
}
REARRANGING: dict[str, str] = {
    "tensor-train": "tests.support.decompositions.tensor_train:TensorTrain",
}
"""Its structures are not read again from names and shapes."""


@contextmanager
def registered() -> Iterator[None]:
    """Add them to the registry."""
    DECOMPOSITIONS._entries.update(ADDED | GROUPS | REARRANGING)
    try:
        yield
    finally:
        for name in (*ADDED, *GROUPS, *REARRANGING):
            del DECOMPOSITIONS._entries[name]
