"""Accuracy of networks with ranks chosen by a budget, by objective and decomposition, compared with uniform energy.

    python -m tests.benchmarks.budget_curves --checkpoint resnet20.th=tests.support.networks:ResNet:blocks=3 \
        --data CIFAR10

`--data` is a folder with CIFAR-10 as `train_5.npz` and `test.npz` (x, y). Objectives are compared on training images,
so that they can be chosen by the result; `--test` measures the default objective on the test set instead. No layer is
skipped and nothing is trained. The baseline is the largest share of Σσ², the same for all layers, whose plan has at
most the same number of parameters. Writes `budget_curves.md`, or `budget_curves_test.md`, into `--output`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import lrzip
from lrzip.api.analyze import Analysis
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION
from lrzip.networks.build import build, parse_arguments
from lrzip.ranks import Context
from lrzip.ranks.energy import Energy
from lrzip.ranks.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from tests.benchmarks.hardware import hardware, versions

SHARES = (90, 80, 70, 60, 50, 40)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNIFORM = "uniform energy"
PLAIN = [name for name in OBJECTIVES if name not in ("fisher", "sensitivity")]  # those take data
Method: TypeAlias = tuple[str, str]  # objective or `uniform energy`, and decomposition


def main() -> None:
    """Measure and write the table."""
    arguments = parse()
    name = "test" if arguments.test else "train_5"
    images, labels = load(arguments.data / f"{name}.npz", None if arguments.test else arguments.images)
    objectives = [DEFAULT_OBJECTIVE] if arguments.test else PLAIN
    methods = [*((name, form) for form in DECOMPOSITIONS for name in objectives), (UNIFORM, DEFAULT_DECOMPOSITION)]
    rows: list[list[str]] = []
    for text in arguments.checkpoint:
        path, _, spec = text.partition("=")
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
            rows += rows_of(Path(path), spec, methods, images, labels)
    arguments.output.mkdir(exist_ok=True)
    file = arguments.output / f"budget_curves{'_test' if arguments.test else ''}.md"
    precision = "bfloat16" if arguments.bfloat16 else "float32"
    file.write_text(document(rows, name, len(images), precision), encoding="utf-8")
    print(f"Wrote {file}", file=sys.stderr)


def parse() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", required=True, metavar="FILE=PKG.MOD:NET[:NAME=VALUE]")
    parser.add_argument("--data", type=Path, required=True, help="folder with train_5.npz and test.npz")
    parser.add_argument("--images", type=int, default=5000, help="number of training images to compare objectives on")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, which is faster")
    parser.add_argument("--test", action="store_true", help="measure the default objective on the test set")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    return parser.parse_args()


def load(path: Path, count: int | None) -> tuple[Tensor, Tensor]:
    """Return normalized images, channels first, and labels."""
    data = np.load(path, allow_pickle=False)
    x = torch.from_numpy(data["x"][:count]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std, torch.from_numpy(data["y"][:count]).long()


def rows_of(path: Path, spec: str, methods: Sequence[Method], images: Tensor, labels: Tensor) -> Iterator[list[str]]:
    """Yield one row of accuracies per method."""
    model_spec, *given = spec.rsplit(":", spec.count(":") - 1) if spec.count(":") > 1 else (spec,)
    model = lrzip.load_into(build(model_spec, parse_arguments(given)), path).eval()
    dense = accuracy(model, images, labels)
    for name, decomposition in methods:
        networks = uniform(model, lrzip.analyze(path)) if name == UNIFORM else budgeted(model, name, decomposition)
        cells = [f"{accuracy(network, images, labels):.2f}" for network in networks]
        print(path.name, name, decomposition, *cells, file=sys.stderr)
        yield [f"{path.name} ({dense:.2f})", name, decomposition, *cells]


def budgeted(model: nn.Module, objective: str, decomposition: str) -> Iterator[nn.Module]:
    """Yield the network factorized within each share of the parameters, with ranks chosen by the budget."""
    for share in SHARES:
        yield lrzip.factorize(model, budget=f"params={share}%", objective=objective, decomposition=decomposition)


def uniform(model: nn.Module, analysis: Analysis) -> Iterator[nn.Module]:
    """Yield the network factorized within each share of the parameters, with the same energy for all layers."""
    for share in SHARES:
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            fits = parameters_at(analysis, middle) <= share / 100 * analysis.parameters
            low, high = (middle, high) if fits else (low, middle)
        yield lrzip.factorize(model, energy=low or 1e-9)


def parameters_at(analysis: Analysis, energy: float) -> int:
    """Return the parameters of the network if each layer keeps a share of its energy, where that saves parameters."""
    candidates = [item.candidate for item in analysis.layers]
    chosen = Energy(energy or 1e-9).choose(candidates, Context()).ranks
    saved = (item.layer.weight.numel - item.parameters(chosen[item.layer.name]) for item in candidates)
    return analysis.parameters - sum(max(size, 0) for size in saved)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return top-1 in percent."""
    found = torch.cat([model(batch).argmax(1) for batch in torch.split(images, 500)])
    return 100 * float((found == labels).double().mean())


def document(rows: Sequence[Sequence[str]], data: str, count: int, precision: str) -> str:
    """Return the table in Markdown, with the best of each network in bold."""
    table = [["network (dense)", "ranks by", "factors", *(f"{share} %" for share in SHARES)]]
    table.append(["---", "---", "---", *("---:" for _ in SHARES)])
    for row in rows:
        same = [other for other in rows if other[0] == row[0]]
        best = [max(float(other[column]) for other in same) for column in range(3, len(row))]
        cells = [f"**{cell}**" if float(cell) == most else cell for cell, most in zip(row[3:], best, strict=True)]
        table.append([*row[:3], *cells])
    lines = [
        "# Accuracy by budget, without data and without training\n",
        f"{hardware()}. {versions('torch')}.\n",
        f"Top-1 in percent on {count:,} images of CIFAR-10 (`{data}`), computed in {precision}, by the share of all "
        "parameters that is kept.\n",
        *(f"| {' | '.join(cells)} |" for cells in table),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
