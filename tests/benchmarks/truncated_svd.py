"""Truncated SVD by lrzip, torch and scikit-learn, side by side on the same matrices.

    python tests/benchmarks/truncated_svd.py [--runs 3] [--large] [--threads N]

The matrices are float32 with singular values σᵢ = i^(-1/2), the slow decay of trained weights. A cell is the best time
of several runs in milliseconds and, in brackets, by how much the Frobenius error exceeds the optimum (Eckart & Young
1936). The randomized methods all take 10 more sketch vectors than the rank, and two power iterations.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter

import torch
from torch import Generator, Tensor

from lrzip.linalg.svd import Solver, truncated_svd

CASES = ((512, 4608, 51), (512, 4608, 153), (768, 768, 230), (3072, 768, 230), (2048, 2048, 204), (2048, 2048, 614))
LARGE_CASES = ((8192, 2048, 204), (8192, 2048, 614))
OVERSAMPLE = 10
POWER_ITERATIONS = 2

Triplets = tuple[Tensor, Tensor, Tensor]  # u (m, rank), s (rank,), vh (rank, n)
Method = Callable[[Tensor, int], Triplets]


@dataclass(frozen=True)
class Result:
    """Seconds of the best run, and the error over the smallest possible one, less 1."""

    seconds: float
    excess: float

    def cell(self) -> str:
        """Return both as a table shows them."""
        return f"{self.seconds * 1000:,.0f} ({max(self.excess, 0):.2%})"


def main() -> None:
    """Measure all methods on all matrices and print a table."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    methods = all_methods()
    rows = []
    for m, n, rank in CASES + (LARGE_CASES if arguments.large else ()):
        print(f"measuring {m}×{n}, rank {rank}", file=sys.stderr)
        matrix, spectrum = matrix_with_spectrum(m, n)
        cells = [measure(method, matrix, spectrum, rank, arguments.runs).cell() for method in methods.values()]
        rows.append([f"{m}×{n}", str(rank), *cells, picked(matrix, rank)])
    print_table(["shape", "rank", *methods, "auto picks"], rows)
    print(f"\nms, best of {arguments.runs}, and error above the optimum; {torch.get_num_threads()} threads")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare methods of truncated SVD.")
    parser.add_argument("--runs", type=int, default=3, help="of each method, of which the best counts")
    parser.add_argument("--large", action="store_true", help="also measure 8192×2048, which takes minutes")
    parser.add_argument("--threads", type=int, help="threads to compute with")
    return parser.parse_args()


def all_methods() -> Mapping[str, Method]:
    """Return what is compared, by name; scikit-learn only where it is installed."""
    methods: dict[str, Method] = {f"lrzip {name}": lrzip_method(name) for name in ("exact", "randomized", "auto")}
    methods |= {"torch svd": torch_svd, "torch svd_lowrank": torch_svd_lowrank}
    return methods | ({"sklearn": sklearn_randomized_svd} if find_spec("sklearn") else {})


def matrix_with_spectrum(m: int, n: int) -> tuple[Tensor, Tensor]:
    """Return a float32 matrix (m, n) with random singular vectors, and its singular values i^(-1/2) in float64."""
    generator = Generator().manual_seed(m + n)
    size = min(m, n)
    values = torch.arange(1, size + 1, dtype=torch.float64).rsqrt()
    u, v = (torch.linalg.qr(torch.randn(side, size, dtype=torch.float64, generator=generator)).Q for side in (m, n))
    return (u * values @ v.mT).float(), values


def measure(method: Method, matrix: Tensor, spectrum: Tensor, rank: int, runs: int) -> Result:
    """Run a method several times, and measure the error of its last answer in float64."""
    best = math.inf
    for _ in range(runs):
        start = perf_counter()
        u, s, vh = method(matrix, rank)
        best = min(best, perf_counter() - start)
    error = torch.linalg.matrix_norm(matrix.double() - (u.double() * s) @ vh.double())
    return Result(best, float(error / spectrum[rank:].square().sum().sqrt()) - 1)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns, the first to the left and the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for first, *others in (columns, *rows):
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print(first.ljust(widths[0]), *cells, sep="  ")


def picked(matrix: Tensor, rank: int) -> str:
    """Return the method that `auto` chooses."""
    return truncated_svd(matrix, rank, solver=Solver(), generator=Generator().manual_seed(0))[3]


def lrzip_method(name: str) -> Method:
    """Return lrzip's `truncated_svd` by one of its methods."""
    solver = Solver(name, OVERSAMPLE, POWER_ITERATIONS)

    def run(matrix: Tensor, rank: int) -> Triplets:
        return truncated_svd(matrix, rank, solver=solver, generator=Generator().manual_seed(0))[:3]

    return run


def torch_svd(matrix: Tensor, rank: int) -> Triplets:
    """Compute everything and cut."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], vh[:rank]


def torch_svd_lowrank(matrix: Tensor, rank: int) -> Triplets:
    """Sketch, as torch does it; its randomness is global."""
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(matrix, q=min(rank + OVERSAMPLE, *matrix.shape), niter=POWER_ITERATIONS)
    return u[:, :rank], s[:rank], v[:, :rank].mT


def sklearn_randomized_svd(matrix: Tensor, rank: int) -> Triplets:
    """Sketch, as scikit-learn does it."""
    from sklearn.utils.extmath import randomized_svd

    u, s, vh = randomized_svd(matrix.numpy(), rank, n_oversamples=OVERSAMPLE, n_iter=POWER_ITERATIONS, random_state=0)
    return torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(vh)


if __name__ == "__main__":
    main()
