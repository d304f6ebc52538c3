"""Truncated SVD by lrzip and by other libraries on the same matrices.

    python -m tests.benchmarks.truncated_svd [--runs 5] [--large] [--checkpoint MODEL] [--device cuda]

The others are `torch.linalg.svd`, `torch.svd_lowrank`, scikit-learn's `randomized_svd` (both with 10 sketch vectors
beyond the rank and two power iterations) and scipy's `svds` (ARPACK). The bound is one product of the matrix with as
many columns as the rank, which every method needs at least. Matrices are float32 with random singular vectors and
chosen singular values, or the largest layer of each shape in a checkpoint, at a quarter of the smaller side.

Methods alternate within each repetition, so that drifts of the machine affect all of them, and the best run counts; a
method that takes five times as long as `torch.linalg.svd` runs once. There is a pause before each run, because idle
threads of the previous one spin for a while. The excess is the Frobenius error divided by the optimum (Eckart & Young
1936), minus 1, in float64. With `--device`, times include transfers from and to the CPU; scikit-learn and scipy run on
the CPU. Writes `truncated_svd.md` and `truncated_svd.png` into `--output`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import torch
from torch import Generator

from tests.benchmarks.hardware import hardware, versions
from tests.benchmarks.svd_matrices import CASES, LARGE_CASES, QUICK_CASES, Case, norm, synthetic, trained
from tests.benchmarks.svd_methods import FULL, LRZIP, Answer, Method, all_methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATIENCE = 5  # multiple of the time of `torch.linalg.svd` beyond which a method runs once
SAME = 1e-6  # excesses this close count as the same
BOUND = "bound"
PAUSE = 0.1  # seconds; idle threads of OpenBLAS and OpenMP spin for some hundredths of a second


@dataclass(frozen=True)
class Result:
    """Seconds of the best run, and the excess of the error over the optimum."""

    seconds: float
    excess: float

    def cell(self) -> str:
        """Return both as a cell of the table."""
        return f"{milliseconds(self.seconds)} ({excess_text(self.excess)})"


@dataclass(frozen=True)
class Row:
    """The results of all methods, lrzip included, for one matrix."""

    name: str
    results: Mapping[str, Result]
    bound: float
    method: str
    checked: float | None

    @property
    def speedup(self) -> float:
        """Time of `torch.linalg.svd` divided by that of lrzip."""
        return self.results[FULL].seconds / self.results[LRZIP].seconds

    @property
    def rival(self) -> str:
        """The fastest other method whose error is not larger than lrzip's."""
        limit = self.results[LRZIP].excess + SAME
        equals = [name for name, result in self.results.items() if name != LRZIP and result.excess <= limit]
        return min(equals or [FULL], key=lambda name: self.results[name].seconds)

    @property
    def lead(self) -> float:
        """Time of that method divided by that of lrzip; below 1, lrzip is slower."""
        return self.results[self.rival].seconds / self.results[LRZIP].seconds

    @property
    def is_broken(self) -> bool:
        """Whether the excess is larger than lrzip's bound on it."""
        return self.checked is not None and self.results[LRZIP].excess > self.checked + SAME

    def cells(self, methods: Sequence[str]) -> list[str]:
        """Return the cells of the table."""
        timings = [self.results[name].cell() if name in self.results else "–" for name in methods]
        checked = "–" if self.checked is None else excess_text(self.checked)
        lead = f"{'**slower** ' if self.lead < 1 else ''}{self.lead:.2f}× {self.rival}"
        ours = self.results[LRZIP].seconds
        ends = [f"{self.speedup:.1f}×", lead, milliseconds(self.bound), f"{ours / self.bound:.1f}×"]
        return [self.name, *timings, self.method, checked, *ends]


def main() -> None:
    """Measure all methods on all matrices; print and write the table, and draw it."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    methods = all_methods(arguments.device)
    for case in synthetic(QUICK_CASES):  # imports, and the first use of libraries and devices
        measure(case, methods, 1, arguments.device)
    rows = []
    for case in cases(arguments):
        print(f"measuring {case.name}", file=sys.stderr)
        rows.append(measure(case, methods, arguments.runs, arguments.device))
    text = document(rows, list(methods), arguments)
    print(text, end="")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "truncated_svd.md").write_text(text, encoding="utf-8")
    if find_spec("matplotlib"):
        draw(rows, list(methods), arguments.output / "truncated_svd.png")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare methods of truncated SVD.")
    parser.add_argument("--runs", type=int, default=5, help="runs of each method, of which the best counts")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--large", action="store_true", help="also measure 8192×2048 and 2048×8192, which takes minutes")
    size.add_argument("--quick", action="store_true", help="measure small matrices only, as a test")
    parser.add_argument("--checkpoint", type=Path, help="also measure the largest layers of this file")
    parser.add_argument("--device", default="cpu", help="device of lrzip and torch")
    parser.add_argument("--threads", type=int, help="threads to compute with")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    return parser.parse_args()


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield the matrices that the command line names, one at a time."""
    yield from synthetic(QUICK_CASES if arguments.quick else CASES + (LARGE_CASES if arguments.large else ()))
    if arguments.checkpoint:
        yield from trained(arguments.checkpoint)


def measure(case: Case, methods: Mapping[str, Method], runs: int, device: str) -> Row:
    """Time all methods and the bound alternately, and measure the errors of the last results."""
    thin = torch.randn(case.matrix.shape[1], case.rank, generator=Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {
        **{name: partial(method, case.matrix, case.rank) for name, method in methods.items()},
        BOUND: lambda: (case.matrix.to(device) @ thin.to(device)).cpu(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, Answer] = {}
    for run in range(runs):
        for name in turned(list(calls), run):
            if run and seconds[name][0] > PATIENCE * seconds[FULL][0]:
                continue
            sleep(PAUSE)
            start = perf_counter()
            answer = calls[name]()
            seconds[name].append(perf_counter() - start)
            if isinstance(answer, Answer):
                answers[name] = answer
    results = {name: Result(min(seconds[name]), excess(case, answer)) for name, answer in answers.items()}
    return Row(case.name, results, min(seconds[BOUND]), answers[LRZIP].method, answers[LRZIP].checked)


def turned(names: list[str], places: int) -> list[str]:
    """Return names rotated by a number of places."""
    shift = places % len(names)
    return names[shift:] + names[:shift]


def excess(case: Case, answer: Answer) -> float:
    """Return the error divided by the optimum, minus 1."""
    product = (answer.u.double() * answer.s) @ answer.vh.double()
    return norm(case.matrix.double() - product) / case.optimum - 1


def document(rows: Sequence[Row], methods: Sequence[str], arguments: argparse.Namespace) -> str:
    """Return the table in Markdown, with the hardware and a summary."""
    equal, full = "over the best equal", "over torch svd"
    columns = ["matrix", *methods, "lrzip's method", "checked", full, equal, BOUND, "× bound"]
    table = [columns, ["---", *["---:"] * (len(columns) - 1)], *(row.cells(methods) for row in rows)]
    lost = "; ".join(f"{row.name} ({row.lead:.2f}× {row.rival})" for row in rows if row.lead < 1)
    largest = max(rows, key=lambda row: row.results[LRZIP].excess)
    ratio = geometric_mean(row.speedup for row in rows)
    lines = [
        "# Truncated SVD\n",
        f"{hardware(arguments.device)}. {versions('torch', 'scikit-learn', 'scipy')}.\n",
        f"Milliseconds, best of {arguments.runs} alternating runs, with the excess of the error over the optimum in "
        "brackets. `checked` is lrzip's bound on its excess. An equal is another method whose error is not larger than "
        "lrzip's. The bound is one product of the matrix with as many columns as the rank.\n",
        *(f"| {' | '.join(cells)} |" for cells in table),
        f"\n- Over `torch.linalg.svd`: {ratio:.2f}×, the geometric mean of {len(rows)} rows.",
        f"- Largest excess: {excess_text(largest.results[LRZIP].excess)}, {largest.name}.",
        f"- Rows with a larger excess than lrzip's bound: {sum(row.is_broken for row in rows)}.",
        f"- Rows in which an equal is faster: {sum(row.lead < 1 for row in rows)}{f': {lost}' if lost else ''}.",
    ]
    return "\n".join(lines) + "\n"


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with three significant digits."""
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def excess_text(value: float) -> str:
    """Return an excess with two significant digits, or `0` if it is within float32 rounding."""
    return "0" if value < SAME / 2 else f"{value:.1e}".replace("e-0", "e-")


def draw(rows: Sequence[Row], methods: Sequence[str], path: Path) -> None:
    """Plot the times divided by lrzip's, with one band per matrix and one mark per method."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(figsize=(11, 2 + 0.55 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="0.95", zorder=0)
        axes.plot([row.bound / row.results[LRZIP].seconds] * 2, [y - 0.4, y + 0.4], color="black")
        for place, name in enumerate(methods):
            if name in row.results:
                draw_mark(axes, row, name, y + 0.15 * (place - (len(methods) - 1) / 2), f"C{place}")
    dots = [Line2D([], [], color=f"C{i}", marker="o", linestyle="", label=name) for i, name in enumerate(methods)]
    hollow = Line2D([], [], color="0.5", marker="o", linestyle="", fillstyle="none", label="less accurate than lrzip")
    product = Line2D([], [], color="black", label="one product, the bound")
    figure.legend(handles=[*dots, hollow, product], loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    axes.axvline(1, color="C0", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("time divided by that of lrzip: marks to the right of 1 are slower")
    axes.set_title("Numbers: excess of the error over the optimum, where it is above 0.001 %", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_mark(axes: "Axes", row: Row, name: str, y: float, color: str) -> None:
    """Plot one time, hollow if the error is larger than lrzip's, with the excess beside it unless it is negligible."""
    ours, result = row.results[LRZIP], row.results[name]
    style = "none" if result.excess > ours.excess + SAME else "full"
    x = result.seconds / ours.seconds
    axes.plot(x, y, "o", color=color, fillstyle=style, markersize=5)
    if result.excess > 1e-5:
        percent = 100 * result.excess
        text = f"+{percent:.0f} %" if percent >= 10 else f"+{percent:.1g} %"
        axes.annotate(text, (x, y), (5, 0), textcoords="offset points", fontsize=6, color=color, va="center")


if __name__ == "__main__":
    main()
