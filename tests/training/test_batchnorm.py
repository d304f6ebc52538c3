from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn

from lrzip.training.batchnorm import synchronize_batchnorm


@pytest.fixture
def process(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def input_of(dims: int) -> torch.Tensor:
    x = torch.randn(6, 4, *(5,) * dims, generator=torch.Generator().manual_seed(0)) * 2 + 3
    return x.requires_grad_()


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("dims", [0, 2])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_with_one_process_it_is_the_batch_norm_of_torch(dims: int, options: dict[str, bool | None]) -> None:
    kind = nn.BatchNorm2d if dims else nn.BatchNorm1d
    plain, synchronized = kind(4, **options), kind(4, **options)  # type: ignore[arg-type]
    synchronize_batchnorm(synchronized, torch.device("cpu"))
    for _ in range(2):
        x, y = input_of(dims), input_of(dims)
        expected, found = plain(x), synchronized(y)
        assert torch.allclose(found, expected, atol=1e-5)
        for loss in (expected.square().sum() + expected[0].sum(), found.square().sum() + found[0].sum()):
            loss.backward()
        assert x.grad is not None
        assert y.grad is not None
        assert torch.allclose(y.grad, x.grad, atol=1e-4)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(synchronized.state_dict()[name], tensor, atol=1e-6), name


def test_in_evaluation_mode_no_process_is_asked() -> None:
    norm = nn.BatchNorm1d(4).eval()
    x = input_of(0)
    expected = norm(x)
    assert torch.equal(synchronize_batchnorm(norm, torch.device("cpu"))(x), expected)
