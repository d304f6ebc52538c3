"""Time of choosing ranks within a budget for all layers of a large transformer.

    python -m tests.benchmarks.allocator [--layers 500] [--width 4096]

The spectra are random decays like those of trained weights. For every objective of weights alone and several budgets,
the table has the CPU seconds, the proven gap to the optimum as a share of the loss, and the unused share of the budget.
"""

import argparse
from itertools import cycle, islice, product
from time import process_time

import numpy as np
import torch

from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions.svd import SVD
from lrzip.linalg.svd import Solver
from lrzip.pipeline.survey import candidate_of
from lrzip.ranks import Candidate, Context, Meter, Pick
from lrzip.ranks.budget import Budget
from lrzip.ranks.objectives import OBJECTIVES

SHARES = (0.2, 0.4, 0.6, 0.8)
PLAIN = [name for name in OBJECTIVES if name not in ("fisher", "sensitivity")]  # the others need a network


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--width", type=int, default=4096)
    arguments = parser.parse_args()
    candidates = transformer(arguments.layers, arguments.width)
    by_name = {candidate.layer.name: candidate for candidate in candidates}

    def cost(layer: Layer, pick: Pick | None) -> int:
        return by_name[layer.name].parameters(pick.ranks) if pick else layer.weight.numel

    meter = Meter(sum(candidate.layer.weight.numel for candidate in candidates), cost)
    print(f"{len(candidates)} layers, {sum(c.break_even_rank for c in candidates):,} ranks\n")
    print("| objective | budget | seconds | gap | unused |\n| --- | ---: | ---: | ---: | ---: |")
    for name, share in product(PLAIN, SHARES):
        start = process_time()
        context = Context(meter, objective=OBJECTIVES[name])
        spent = Budget("params", share, is_share=True).choose(candidates, context).budget
        seconds = process_time() - start
        assert spent
        gap = (spent.predicted_loss - spent.bound) / spent.predicted_loss
        unused = (spent.limit - spent.used) / spent.limit
        print(f"| {name} | {share:.0%} | {seconds:.2f} | {gap:.1e} | {unused:.1e} |")


def transformer(layers: int, width: int) -> list[Candidate]:
    """Return layers of a decoder: each block has four square weights and three of 8/3 the width."""
    generator = np.random.default_rng(0)
    decomposition = SVD(Solver())
    inner = 8 * width // 3
    shapes = [*[(width, width)] * 4, (inner, width), (inner, width), (width, inner)]
    found = []
    for index, shape in enumerate(islice(cycle(shapes), layers)):
        name = f"layer{index}"
        weight = TensorSpec(f"{name}.weight", shape, "float32", 4 * shape[0] * shape[1])
        places = np.linspace(0, 1, min(shape))
        values = (1 + 50 * places) ** -generator.uniform(0.2, 0.8) * (1 - 0.9 * places ** generator.uniform(1, 4))
        spectrum = Spectrum(torch.from_numpy(values * generator.uniform(1, 100)), shape, 1e-7)
        found.append(candidate_of(Layer(name, name, LINEAR, weight, None), "svd", decomposition, (spectrum,)))
    return found


if __name__ == "__main__":
    main()
