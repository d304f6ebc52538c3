"""Decompositions that exist only to show that structures carry more than the product needs: each is one file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lrzip.decompositions import DECOMPOSITIONS

ADDED: Mapping[str, str] = {
    "spatial": "tests.support.decompositions.spatial:Spatial",
    "depthwise-sum": "tests.support.decompositions.depthwise_sum:DepthwiseSum",
}


@contextmanager
def registered() -> Iterator[None]:
    """Add them to the registry."""
    DECOMPOSITIONS._entries.update(ADDED)
    try:
        yield
    finally:
        for name in ADDED:
            del DECOMPOSITIONS._entries[name]
