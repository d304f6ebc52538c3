"""Views share elements only if they use the same ones, whatever storage they lie in."""

import pytest
import torch
from torch import Tensor

from lrzip.formats.files.views import View, shared_views

FLAT = torch.arange(240.0)
MATRIX = FLAT[:120].reshape(10, 12)


def shared(**tensors: Tensor) -> dict[str, str]:
    return shared_views(
        {
            name: View(
                t.untyped_storage().data_ptr(), t.element_size(), int(t.storage_offset()), tuple(t.shape), t.stride()
            )
            for name, t in tensors.items()
        }
    )


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": FLAT[:100], "b": FLAT[100:160], "c": FLAT[160:]},
        {"q": MATRIX[:3], "k": MATRIX[3:6], "v": MATRIX[6:]},
        {"q": MATRIX[:, :4], "k": MATRIX[:, 4:8], "v": MATRIX[:, 8:]},
        {"even": FLAT[::2], "odd": FLAT[1::2]},
        {"left": MATRIX.T[:5], "right": MATRIX.T[5:]},
        {"a": torch.ones(3), "b": torch.ones(3)},
    ],
)
def test_disjoint_views_of_one_storage_share_nothing(tensors: dict[str, Tensor]) -> None:
    assert shared(**tensors) == {}


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"a": MATRIX, "b": MATRIX.T}, {"a": "b", "b": "a"}),
        ({"a": FLAT[:100], "b": FLAT[99:]}, {"a": "b", "b": "a"}),
        ({"all": MATRIX, "q": MATRIX[:, :4], "other": FLAT[120:]}, {"all": "q", "q": "all"}),
        ({"q": MATRIX[:, :4], "v": MATRIX[:, 4:], "row": MATRIX[0, 6:8]}, {"v": "row", "row": "v"}),
        ({"a": FLAT[:4], "b": FLAT[2:8], "c": FLAT[6:9]}, {"a": "b", "b": "a", "c": "a"}),
        ({"a": FLAT[:8], "b": FLAT.view(torch.int32)[4:20]}, {"a": "b", "b": "a"}),
        ({"a": FLAT[:8], "b": FLAT.view(torch.int16)[4:20]}, {"a": "b", "b": "a"}),
    ],
)
def test_views_of_the_same_elements_are_shared(tensors: dict[str, Tensor], expected: dict[str, str]) -> None:
    assert shared(**tensors) == expected
