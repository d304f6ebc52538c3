"""Approximate matrices with a fast and a slow spectral decay by sketches and by the exact SVD; plot error against rank.

The first experiment of a report on randomized SVD (Kant 2025, Compression of Neural Networks, section 10.3): 500 × 400
matrices with condition numbers 1.41e18 and 121, ranks 5 to 100, the basic sketch with 5, 10 and 20 vectors beyond the
rank, one and two power iterations, and the SRFT.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.direct import direct_svd
from lrzip.linalg.blocks.rangefinder import power_iteration, srft_range, subspace_iteration

SHAPE = (500, 400)
RANKS = range(5, 101, 5)
SHOWN = (10, 20, 50, 100)
SEEDS = 5

NUMBERS = torch.arange(400, dtype=torch.float64)
SPECTRA = {
    "fast decay, 10^(-18.15 i/399)": 10 ** (-18.15 * NUMBERS / 399),
    "slow decay, i^(-0.8)": (NUMBERS + 1) ** -0.8,
}

RangeFinder = Callable[[Tensor, int, Generator], Tensor]  # matrix, rank, randomness ↦ orthonormal columns


def basic(oversample: int) -> RangeFinder:
    """Return a range finder: a Gaussian sketch without power iterations."""
    return lambda matrix, rank, generator: power_iteration(
        matrix, rank + oversample, power_iterations=0, generator=generator
    )


def power(iterations: int) -> RangeFinder:
    """Return a range finder: subspace iteration with ten vectors beyond the rank."""
    return lambda matrix, rank, generator: subspace_iteration(
        matrix, rank + 10, power_iterations=iterations, generator=generator
    )


def srft(matrix: Tensor, rank: int, generator: Generator) -> Tensor:
    """Return an orthonormal basis by a subsampled fast transform with ten vectors beyond the rank."""
    return srft_range(matrix, rank + 10, generator=generator)


METHODS: Mapping[str, RangeFinder] = {
    "basic, p = 5": basic(5),
    "basic, p = 10": basic(10),
    "basic, p = 20": basic(20),
    "SRFT, p = 10": srft,
    "power, q = 1": power(1),
    "power, q = 2": power(2),
}


def main() -> None:
    """Measure all errors, print them at some ranks, and plot them."""
    parser = argparse.ArgumentParser(description="Error against rank for randomized and exact SVD.")
    parser.add_argument("--output", type=Path, help="plot to write, such as matrix_compression.png")
    output: Path | None = parser.parse_args().output
    curves = {name: errors(with_spectrum(values), values) for name, values in SPECTRA.items()}
    for name, methods in curves.items():
        print_table(name, methods)
    if output:
        draw(curves, output)


def with_spectrum(values: Tensor) -> Tensor:
    """Return a matrix with given singular values and random singular vectors."""
    generator = Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(side, len(values), dtype=torch.float64, generator=generator)).Q for side in SHAPE
    )
    matrix: Tensor = (u * values) @ v.mT
    return matrix


def errors(matrix: Tensor, values: Tensor) -> dict[str, list[float]]:
    """Return the Frobenius error by method and rank, the mean over `SEEDS` seeds.

    The error of the exact SVD is the root of the sum of the squared singular values beyond the rank.
    """
    curves = {
        name: [sum(error(matrix, find, rank, seed) for seed in range(SEEDS)) / SEEDS for rank in RANKS]
        for name, find in METHODS.items()
    }
    return curves | {"deterministic": [float(torch.linalg.vector_norm(values[rank:])) for rank in RANKS]}


def error(matrix: Tensor, find: RangeFinder, rank: int, seed: int) -> float:
    """Return the Frobenius error of the leading singular triplets within the range that a method finds."""
    u, s, vh = direct_svd(matrix, find(matrix, rank, Generator().manual_seed(seed)))
    return float(torch.linalg.matrix_norm(matrix - (u[:, :rank] * s[:rank]) @ vh[:rank]))


def print_table(title: str, methods: Mapping[str, list[float]]) -> None:
    """Print the ratio of each error to that of the exact SVD."""
    best = methods["deterministic"]
    print(f"\n{title}: error over the best possible, at rank {', '.join(map(str, SHOWN))}")
    for name, curve in methods.items():
        shown = (curve[RANKS.index(rank)] / best[RANKS.index(rank)] for rank in SHOWN)
        print(f"  {name:<15}" + "".join(f"{value:9.4f}" for value in shown))


def draw(curves: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Plot error against rank, and its ratio to that of the exact SVD, with one column per matrix."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(11, 7.5), sharex=True, layout="constrained")
    for (title, methods), (above, below) in zip(curves.items(), axes.T, strict=True):
        for name, curve in methods.items():
            style = {"color": "black", "linestyle": "--"} if name == "deterministic" else {}
            above.semilogy(RANKS, curve, label=name, **style)
            ratios = [value / best for value, best in zip(curve, methods["deterministic"], strict=True)]
            below.plot(RANKS, ratios, label=name, **style)
        above.set_title(title)
        below.set_xlabel("rank")
    axes[0, 0].set_ylabel("Frobenius error")
    axes[1, 0].set_ylabel("over the best possible")
    axes[0, 1].legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
