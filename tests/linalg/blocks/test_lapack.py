from typing import Any

import pytest
import torch
from torch import Tensor

from lrzip.linalg.blocks.lapack import NotConverged, lapack_svd
from tests.support.matrices import assert_svd, slow, with_spectrum


def test_a_decomposition_that_does_not_converge_is_repeated_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, svd, dtypes = with_spectrum((60, 40), slow(40)), torch.linalg.svd, []

    def fail_in_float32(argument: Tensor, **options: Any) -> Any:
        dtypes.append(argument.dtype)
        if argument.dtype == torch.float32:
            raise NotConverged("did not converge")
        return svd(argument, **options)

    monkeypatch.setattr(torch.linalg, "svd", fail_in_float32)
    u, s, vh = lapack_svd(matrix)
    assert dtypes == [torch.float32, torch.float64]
    assert u.dtype == s.dtype == vh.dtype == torch.float32
    assert_svd(u, s, vh)
    torch.testing.assert_close((u * s) @ vh, matrix, rtol=0, atol=1e-5)
