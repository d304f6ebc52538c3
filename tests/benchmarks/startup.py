"""Time of starting `lrzip`, compared with importing torch.

    python -m tests.benchmarks.startup [--runs 7] [--checkpoint model.pt] [--folder SCRATCH]

Times `import torch`, `lrzip --help`, a shell completion and `lrzip compress` of a small checkpoint, each in a separate
process, and checks whether help and completion import torch. Exits with 1 if a limit is exceeded.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from tests.benchmarks.tables import print_table

LRZIP = str(Path(sys.executable).with_name("lrzip"))
SAMPLE = Path(__file__).parents[2] / "samples" / "digits.pt"
COMPLETION = {"_LRZIP_COMPLETE": "complete_bash", "COMP_WORDS": "lrzip co", "COMP_CWORD": "1"}
# Limits in seconds: for what should feel instant, and for a command beyond `import torch`.
INSTANT = 0.3
ABOVE_TORCH = 1.0


@dataclass(frozen=True)
class Timing:
    """Wall times of all runs of one command in seconds, and the limit on the best of them."""

    name: str
    seconds: Sequence[float]
    torch: bool
    limit: float | None = None

    @property
    def best(self) -> float:
        """The fastest run."""
        return min(self.seconds)

    def row(self) -> list[str]:
        """Return the cells of a table."""
        limit = f"{self.limit:.2f}" if self.limit else ""
        imported = "yes" if self.torch else "no"
        return [self.name, f"{self.best:.3f}", f"{median(self.seconds):.3f}", limit, imported, verdict(self.failures())]

    def failures(self) -> list[str]:
        """Return the limits that are exceeded; commands that should feel instant must not import torch either."""
        slow = [f"takes {self.best:.3f} s"] if self.limit and self.best > self.limit else []
        heavy = ["imports torch"] if self.torch and self.limit == INSTANT else []
        return slow + heavy


def main() -> int:
    """Measure, print a table, and return 1 if a limit is exceeded."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lrzip-startup-", dir=arguments.folder) as folder:
        timings = measure(arguments.checkpoint, Path(folder), arguments.runs)
    columns = ["command", "best s", "median s", "limit s", "torch", "verdict"]
    print_table(columns, [timing.row() for timing in timings])
    print(f"\ncompress, best run above the best `import torch`: {timings[-1].best - timings[0].best:.3f} s")
    return int(any(timing.failures() for timing in timings))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure how long lrzip takes to start.")
    parser.add_argument("--runs", type=int, default=7, help="runs of each command")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint to compress; by default samples/digits.pt")
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    return parser.parse_args()


def measure(checkpoint: Path | None, folder: Path, runs: int) -> list[Timing]:
    """Return the timings of all commands, those of `import torch` first and those of compress last."""
    model = checkpoint or (SAMPLE if SAMPLE.exists() else resnet20(folder / "resnet20.pt"))
    compress = ["compress", str(model), "--energy", "0.9", "-o", str(folder / "out.pt"), "--force"]
    torch = timed("import torch", [sys.executable, "-c", "import torch"], runs)
    return [
        Timing("import torch", torch, torch=True),
        timed_lrzip("lrzip --help", ["--help"], runs, limit=INSTANT),
        timed_lrzip("completion of `lrzip co`", [], runs, environment=COMPLETION, limit=INSTANT),
        timed_lrzip(f"lrzip compress {model.name}", compress, runs, limit=min(torch) + ABOVE_TORCH),
    ]


def timed_lrzip(
    name: str, arguments: Sequence[str], runs: int, *, limit: float, environment: Mapping[str, str] | None = None
) -> Timing:
    """Time `lrzip` with these arguments."""
    seconds = timed(name, [LRZIP, *arguments], runs, environment)
    return Timing(name, seconds, imports_torch(arguments, environment), limit)


def timed(name: str, command: Sequence[str], runs: int, environment: Mapping[str, str] | None = None) -> list[float]:
    """Return the wall times of a command, after a first run that fills the disk cache."""
    seconds = []
    for _ in range(runs + 1):
        start = perf_counter()
        run(command, environment)
        seconds.append(perf_counter() - start)
    print(f"measured {name}", file=sys.stderr)
    return seconds[1:]


def imports_torch(arguments: Sequence[str], environment: Mapping[str, str] | None) -> bool:
    """Return whether `lrzip` with these arguments imports torch, by Python's trace of imports."""
    trace = run([sys.executable, "-X", "importtime", LRZIP, *arguments], environment).stderr
    return bool(re.search(r"\| +torch$", trace, re.MULTILINE))


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and return the completed process."""
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True)


def verdict(failures: Sequence[str]) -> str:
    """Return the failures as the cell of a table."""
    return ", ".join(failures) or "ok"


def resnet20(path: Path) -> Path:
    """Write random weights with the shapes of a ResNet-20 for CIFAR-10 (He et al. 2016, section 4.2)."""
    import torch

    convolutions = {"conv1": (16, 3)}
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(3):
            before = width // 2 if stage > 1 and block == 0 else width
            convolutions[f"layer{stage}.{block}.conv1"] = (width, before)
            convolutions[f"layer{stage}.{block}.conv2"] = (width, width)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (out, channels) in convolutions.items():
        state[f"{name}.weight"] = torch.randn(out, channels, 3, 3, generator=generator)
        norm = name.replace("conv", "bn")
        state |= {f"{norm}.{leaf}": torch.ones(out) for leaf in ("weight", "bias", "running_mean", "running_var")}
    state["fc.weight"], state["fc.bias"] = torch.randn(10, 64, generator=generator), torch.zeros(10)
    torch.save(state, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
