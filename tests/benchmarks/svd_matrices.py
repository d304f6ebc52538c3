"""Matrices for `truncated_svd.py`: with chosen singular values, and trained weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from lrzip.core.layers import Layer
from lrzip.formats.open import open_checkpoint

# Singular values by index 1, 2, … and number of values. The exponentials are the decays of the square and of the MLP
# weights of all-MiniLM-L6-v2; at the ranks below they keep 90 % of the energy.
DECAYS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "i^-1/2": lambda i, _: i.rsqrt(),
    "i^-2": lambda i, _: i**-2,
    "0.9^i": lambda i, _: 0.9**i,
    "exp(-2.9 i/n)": lambda i, n: torch.exp(-2.9 * i / n),
    "exp(-1.8 i/n)": lambda i, n: torch.exp(-1.8 * i / n),
}
SLOW, QUADRATIC, GEOMETRIC, SQUARE, MLP = DECAYS
CASES = (
    (512, 4608, 51, SLOW),
    (512, 4608, 153, SLOW),
    (4096, 1024, 16, SLOW),
    (768, 768, 230, SLOW),
    (3072, 768, 230, SLOW),
    (768, 3072, 230, SLOW),
    (2048, 2048, 20, SLOW),
    (2048, 2048, 204, SLOW),
    (2048, 2048, 614, SLOW),
    (512, 4608, 51, QUADRATIC),
    (2048, 2048, 64, QUADRATIC),
    (512, 4608, 51, GEOMETRIC),
    (2048, 2048, 64, GEOMETRIC),
    (768, 768, 302, SQUARE),
    (2048, 2048, 804, SQUARE),
    (3072, 768, 445, MLP),
)
LARGE_CASES = ((8192, 2048, 204, SLOW), (8192, 2048, 614, SLOW), (2048, 8192, 614, SLOW), (8192, 2048, 1185, MLP))
QUICK_CASES = ((64, 256, 6, GEOMETRIC), (96, 96, 30, SQUARE), (256, 96, 24, SLOW))


@dataclass(frozen=True)
class Case:
    """A matrix to approximate, and the smallest possible Frobenius error at the rank."""

    name: str
    matrix: Tensor
    rank: int
    optimum: float


def synthetic(table: Sequence[tuple[int, int, int, str]]) -> Iterator[Case]:
    """Yield float32 matrices with random singular vectors and chosen singular values."""
    for m, n, rank, decay in table:
        generator = Generator().manual_seed(m + n)
        size = min(m, n)
        values = DECAYS[decay](torch.arange(1, size + 1, dtype=torch.float64), size)
        u, v = (torch.linalg.qr(torch.randn(side, size, dtype=torch.float64, generator=generator)).Q for side in (m, n))
        yield Case(f"{m}×{n} at {rank}, {decay}", (u * values @ v.mT).float(), rank, norm(values[rank:]))


def trained(path: Path) -> Iterator[Case]:
    """Yield the largest layers of a checkpoint with different shapes, four at most."""
    with open_checkpoint(path) as checkpoint:
        layers = [item for item in checkpoint.layers() if isinstance(item, Layer)]
        layers.sort(key=lambda layer: layer.weight.numel, reverse=True)
        shapes = {layer.matrix_shape: layer for layer in reversed(layers)}
        for layer in sorted(shapes.values(), key=layers.index)[:4]:
            matrix = checkpoint.read(layer.weight.name).flatten(1).float()
            rank = min(matrix.shape) // 4
            values = torch.linalg.svdvals(matrix.double())
            yield Case(f"{'×'.join(map(str, matrix.shape))} at {rank}, {layer.name}", matrix, rank, norm(values[rank:]))


def norm(tensor: Tensor) -> float:
    """Return the Frobenius norm of a tensor."""
    return float(torch.linalg.vector_norm(tensor))
