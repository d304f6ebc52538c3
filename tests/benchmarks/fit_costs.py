"""Fit the cost model of `lrzip.linalg.blocks.cost` to a device.

    python -m tests.benchmarks.fit_costs [--device cpu|cuda] [--threads N]

Times products, eigendecompositions and block Lanczos on Gaussian matrices, and prints the line for
`lrzip/linalg/blocks/cost.py`, with measured and modeled times. Takes about a minute.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.cost import Rates
from lrzip.linalg.blocks.lanczos import block_lanczos, block_size, expected_dimension
from tests.benchmarks.hardware import hardware

SIZES = (256, 384, 512, 768, 1024, 1536, 2048)
RANKS = ((512, 16), (1024, 16), (1024, 64), (1024, 128), (2048, 16), (2048, 64), (2048, 128), (2048, 256))
RUNS = 3


def main() -> None:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description="Fit the cost model to a device.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads to compute with")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    product = seconds_of_product(arguments.device)
    eigh = {n: seconds_of_eigh(n, arguments.device) for n in SIZES}
    cubic, square = fit([[n**3, n**2] for n in SIZES], list(eigh.values()))
    bare = Rates(product, cubic, square, 0.0)
    steps, rest = [], []
    for n, rank in RANKS:
        size, seconds = seconds_of_lanczos(n, rank, arguments.device)
        steps.append([size / block_size(rank)])
        rest.append(max(seconds - bare.product * products(n, size, rank) - bare.eigh(size), 0.0))
    (step,) = fit(steps, rest)
    print(f"Rates(product={product:.2g}, eigh_cubic={cubic:.2g}, eigh_square={square:.2g}, step={step:.2g})")
    print(f"# {hardware(arguments.device)}, torch {torch.__version__}")
    rates = Rates(product, cubic, square, step)
    for n, seconds in eigh.items():
        print(f"# eigh of {n}: {seconds * 1e3:.1f} ms measured, {rates.eigh(n) * 1e3:.1f} ms by the model")


def seconds_of_product(device: str) -> float:
    """Return the seconds per floating-point operation in a product of large matrices."""
    matrix = torch.randn(2048, 2048, device=device)
    return best(lambda: matrix @ matrix, device) / (2 * 2048**3)


def seconds_of_eigh(n: int, device: str) -> float:
    """Return the seconds of an eigendecomposition."""
    matrix = gram(n, device)
    return best(lambda: torch.linalg.eigh(matrix), device)


def seconds_of_lanczos(n: int, rank: int, device: str) -> tuple[int, float]:
    """Return the dimension of a Krylov space that is built without checks of convergence, and the seconds it takes."""
    matrix = gram(n, device)
    size = expected_dimension(rank) // block_size(rank) * block_size(rank)

    def run() -> object:
        generator = Generator().manual_seed(0)
        start = torch.randn(n, block_size(rank), generator=generator).to(device)
        return block_lanczos(
            matrix.matmul, rank, start=start, trace=0.0, tolerance=0.0, limit=size, generator=generator
        )

    return size, best(run, device)


def products(n: int, size: int, rank: int) -> int:
    """Return the floating-point operations in the products of a Lanczos run, as the cost model counts them."""
    return 2 * n**2 * size + 5 * n * size**2 + 2 * n * size * rank


def gram(n: int, device: str) -> Tensor:
    """Return the Gram matrix of a Gaussian matrix."""
    matrix = torch.randn(n, n, generator=Generator().manual_seed(n)).to(device)
    return matrix.mT @ matrix / n


def best(run: Callable[[], object], device: str) -> float:
    """Return the seconds of the best of several runs."""
    least = math.inf
    for _ in range(RUNS):
        start = perf_counter()
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        least = min(least, perf_counter() - start)
    return least


def fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return non-negative coefficients that fit seconds with the least relative error."""
    weights = torch.tensor([1 / max(value, 1e-4) for value in seconds], dtype=torch.float64)
    left = torch.tensor(features, dtype=torch.float64) * weights[:, None]
    solution = torch.linalg.lstsq(left, torch.tensor(seconds, dtype=torch.float64) * weights).solution
    return [max(value, 0.0) for value in solution.tolist()]


if __name__ == "__main__":
    main()
