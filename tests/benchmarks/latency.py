"""Latency of dense and factorized networks in PyTorch and in onnxruntime.

    python -m tests.benchmarks.latency [--quick] [--output FOLDER]

Three networks with random weights, whose values do not affect the time of a product: the ResNet-20 of CIFAR-10, a
network of ResNet-18's size for images of 224 × 224, and an encoder of BERT's size for 128 tokens. The parameters of
every layer are divided by 2 and by 4 (`--ratio`), with the SVD. PyTorch times are those of `lrzip compress --latency`:
medians of alternating runs of dense and factorized, for the whole network and for each layer alone. Writes `latency.md`
into `--output`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import lrzip
from lrzip.core.costs import Costs
from lrzip.formats.live import LiveSource
from lrzip.formats.traced import save_onnx
from lrzip.networks.inputs import InputShape, example_inputs
from lrzip.networks.programs.trace import trace
from lrzip.pipeline.latency import costs_of
from lrzip.pipeline.profile import profile
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session
from lrzip.ranks.ratio import Ratio
from tests.benchmarks.hardware import hardware, versions
from tests.support.networks import ResNet

RATIOS = (2.0, 4.0)
RUNS = 15


class Stage(nn.Sequential):
    """A block of ResNet-18 (He et al. 2016): two 3×3 convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """A network of ResNet-18's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        self.layers = nn.Sequential(
            *(nn.Sequential(Stage(a, b, 2 if b > 64 else 1), Stage(b, b, 1)) for a, b in pairwise(widths))
        )
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        out: Tensor = self.fc(self.layers(x).mean((2, 3)))
        return out


class EncoderLayer(nn.Module):
    """A layer of BERT (Devlin et al. 2019), with the norms before the blocks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Encoder(nn.Module):
    """An encoder of BERT's size, without its embeddings."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet-20, 1 × 3 × 32 × 32": (ResNet, "1,3,32,32"),
    "ResNet-18, 1 × 3 × 224 × 224": (ResNet18, "1,3,224,224"),
    "BERT encoder, 128 tokens": (Encoder, "1,128,768"),
}
QUICK: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet-20": (ResNet, "1,3,32,32"),
    "encoder, tiny": (lambda: Encoder(1, 64, 2), "1,16,64"),
}


def main() -> None:
    """Measure all networks; print and write the tables."""
    parser = argparse.ArgumentParser(description="Time factorized networks beside dense ones.")
    parser.add_argument("--quick", action="store_true", help="tiny networks only, as a test")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    arguments = parser.parse_args()
    rows, details = [], []
    for name, (make, shape) in (QUICK if arguments.quick else NETWORKS).items():
        torch.manual_seed(0)
        model = make().eval()
        for ratio in RATIOS:
            print(f"measuring {name}, ratio {ratio:g}", file=sys.stderr)
            costs = measured(model, shape, ratio)
            rows.append(row(name, model, shape, ratio, costs))
            details.append(f"- {name}, ratio {ratio:g}: {layers_text(costs)}")
    text = document(rows, details)
    print(text, end="")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "latency.md").write_text(text, encoding="utf-8")


def measured(model: nn.Module, shape: str, ratio: float) -> Costs:
    """Return the costs of a network, dense and with every layer factorized at a ratio."""
    found = profile(model, [shape])
    plan = Session(LiveSource(model), Request(Ratio(ratio))).plan()
    return costs_of(found, plan.factorize, latency=True)


def row(name: str, model: nn.Module, shape: str, ratio: float, costs: Costs) -> list[str]:
    """Return the cells of the table."""
    assert costs.latency
    assert costs.macs_before
    assert costs.macs_after
    small = lrzip.factorize(model, ratio=ratio)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in (model, small)]
    cells = [name, f"{sizes[0]:.2f} → {sizes[1]:.2f}", f"{costs.macs_before / 1e9:.3f} → {costs.macs_after / 1e9:.3f}"]
    slower = sum(1 for cost in costs.layers.values() if cost.latency and cost.latency.speedup < 1)
    cells += [f"{1e3 * costs.latency.dense:.2f} → {1e3 * costs.latency.factorized:.2f}", speedup(costs.latency.speedup)]
    cells.append(f"{slower} of {len(costs.layers)}")
    if find_spec("onnxruntime"):
        dense, factorized = onnx_seconds([model, small], shape)
        cells += [f"{1e3 * dense:.2f} → {1e3 * factorized:.2f}", speedup(dense / factorized)]
    return cells


def speedup(value: float) -> str:
    """Return a speedup, in bold unless it is below 1."""
    return f"**{value:.2f}×**" if value >= 1 else f"{value:.2f}×"


def onnx_seconds(models: Sequence[nn.Module], shape: str) -> list[float]:
    """Return the median seconds of one run of each network in onnxruntime, run alternately."""
    import onnxruntime

    inputs = [InputShape.parse(shape)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions: list[Any] = []
    with TemporaryDirectory() as folder:
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.onnx"
            save_onnx(trace(model, inputs), path)
            sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    feed = {sessions[0].get_inputs()[0].name: example_inputs(inputs)[0].numpy()}
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(RUNS):
        for session, times in zip(sessions, seconds, strict=True):
            start = perf_counter()
            session.run(None, feed)
            times.append(perf_counter() - start)
    return [median(times) for times in seconds]


def layers_text(costs: Costs) -> str:
    """Return the layers with the smallest and the largest speedup."""
    ranked = sorted((cost.latency.speedup, name) for name, cost in costs.layers.items() if cost.latency)
    worst = ", ".join(f"`{name}` {value:.2f}×" for value, name in ranked[:3])
    best = ", ".join(f"`{name}` {value:.2f}×" for value, name in ranked[:-4:-1])
    return f"slowest alone {worst}; fastest {best}."


def document(rows: Sequence[Sequence[str]], details: Sequence[str]) -> str:
    """Return the table in Markdown, with the hardware and the speedups of layers."""
    columns = ["network", "parameters, M", "MACs, G", "PyTorch ms", "faster", "layers slower alone"]
    columns += ["onnxruntime ms", "faster"] * (len(rows[0]) > len(columns))
    table = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    lines = [
        "# Dense and factorized networks\n",
        f"{hardware()}. {versions('torch', 'onnxruntime')}.\n",
        "Parameters of each layer divided by 2 and by 4; median of alternating runs with batch size 1; float32.\n",
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        *details,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
