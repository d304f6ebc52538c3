import pytest
import torch

from lrzip.linalg.blocks.subnormals import flush_subnormals, stored, subnormals

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormal_numbers_become_zero_and_all_others_stay(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    values = torch.tensor(
        [0.0, -0.0, least, -least, info.tiny / 2, 2 * info.tiny, -2 * info.tiny, 1.0, info.max], dtype=dtype
    )
    assert int(subnormals(values).sum()) == 3
    expected = torch.tensor([0.0, -0.0, 0.0, 0.0, 0.0, 2 * info.tiny, -2 * info.tiny, 1.0, info.max], dtype=dtype)
    assert torch.equal(flush_subnormals(values), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_that_a_cast_makes_subnormal_become_zero(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    found = stored(torch.tensor([0.7 * tiny, 1.5 * tiny, 1.0], dtype=torch.float64), dtype)
    assert found.dtype == dtype
    assert (found != 0).tolist() == [False, True, True]


def test_a_float16_tensor_of_small_numbers_keeps_them() -> None:
    small = torch.full((8,), 3e-5, dtype=torch.float16)
    assert torch.equal(flush_subnormals(small), small)
    assert torch.equal(
        flush_subnormals(torch.cat([small, torch.ones(8, dtype=torch.float16)]))[:8], torch.zeros(8).half()
    )


def test_tensors_without_subnormal_numbers_are_returned_as_they_are() -> None:
    for tensor in (torch.arange(3), torch.ones(3), torch.zeros(0)):
        assert flush_subnormals(tensor) is tensor
