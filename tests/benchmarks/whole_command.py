"""Commands of lrzip compared with scripts that do the same, on checkpoints of realistic size.

    python -m tests.benchmarks.whole_command [--runs 3] [--large] [--many] [--folder SCRATCH] [--output FOLDER]

`lrzip compress --energy 0.9` is compared with a loop of `torch.linalg.svd`, and `lrzip analyze --json` with a loop of
`torch.linalg.svdvals`, both in `rival_script.py`. The checkpoint is a BERT of 110 M parameters in float32; `--large`
adds a Llama of 1 B in bfloat16, `--many` a thousand small layers. Each run is a separate process, so that times
include the start of Python and `import torch`; command and script alternate, and the best run of each counts. Ranks
are compared for all layers, errors for a few. Writes `whole_command.md` into `--output`. Linux and macOS.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.decaying_checkpoints import Shapes, bert, llama, many, write_checkpoint
from tests.benchmarks.hardware import hardware, versions
from tests.benchmarks.processes import Usage, apart, usage_of

ENERGY = "0.9"
RIVAL = Path(__file__).with_name("rival_script.py")
COMPARED = 14  # layers whose errors are compared

Ranks = Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """The best runs of one command and of the script on one checkpoint, and the differences between their results."""

    name: str
    lrzip: Usage
    rival: Usage
    differences: Sequence[str]
    remark: str

    def cells(self) -> list[str]:
        """Return the cells of a table."""
        pairs = [
            (f"{self.lrzip.seconds:.2f}", f"{self.rival.seconds:.2f}"),
            (f"{self.lrzip.cores:.2f}", f"{self.rival.cores:.2f}"),
            (f"{self.lrzip.peak / 2**20:,.0f}", f"{self.rival.peak / 2**20:,.0f}"),
        ]
        seconds, *others = pairs
        speedup = f"**{self.rival.seconds / self.lrzip.seconds:.2f}×**"
        return [self.name, *seconds, speedup, *(cell for pair in others for cell in pair), str(len(self.differences))]


def main() -> None:
    """Measure all commands on all checkpoints; print and write the table."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that gigabytes of temporary files are removed
    rows: list[Row] = []
    for name, (shapes, dtype) in checkpoints(arguments).items():
        with tempfile.TemporaryDirectory(prefix="lrzip-whole-", dir=arguments.folder) as folder:
            print(f"writing {name}", file=sys.stderr)
            source = Path(folder) / "model.safetensors"
            apart(write_checkpoint, source, shapes, dtype)
            rows.append(compression(name, source, arguments.runs))
            rows.append(analysis(name, source, arguments.runs))
    text = document(rows, arguments.runs)
    print(text, end="")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "whole_command.md").write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare lrzip's commands with scripts that do the same.")
    parser.add_argument("--runs", type=int, default=3, help="runs of each command, of which the best counts")
    parser.add_argument("--large", "--gigabyte", action="store_true", help="also a Llama of 1 B: 7 GB on disk, minutes")
    parser.add_argument("--many", action="store_true", help="also a thousand small layers")
    parser.add_argument("--quick", action="store_true", help="tiny checkpoints only, as a test")
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    return parser.parse_args()


def checkpoints(arguments: argparse.Namespace) -> Mapping[str, tuple[Shapes, str]]:
    """Return the shapes and the dtype of the checkpoints that the command line names, by name."""
    if arguments.quick:
        tiny = {"BERT, tiny": (bert(2, 64, 100), "float32"), "Llama, tiny": (llama(2, 64, 256, 100), "bfloat16")}
        return tiny | {"20 small layers": (many(20), "float32")}
    chosen = {"BERT, 110 M, float32": (bert(), "float32")}
    if arguments.many:
        chosen["1,000 small layers, float32"] = (many(), "float32")
    if arguments.large:
        chosen["Llama, 1 B, bfloat16"] = (llama(), "bfloat16")
    return chosen


def compression(name: str, source: Path, runs: int) -> Row:
    """Compare `lrzip compress` with the script."""
    ours, theirs, errors = (source.with_name(f"{stem}.safetensors") for stem in ("lrzip", "rival", "errors"))
    ask = ["compress", str(source), "--energy", ENERGY, "-o", str(ours), "--force", "--quiet"]
    lrzip, rival = contest(f"{name}: compress", ask, ["compress", str(source), str(theirs)], runs)
    apart(write_errors, source, ours, theirs, errors)
    excess = json.loads(errors.read_text(encoding="utf-8"))
    ranks = stored_ranks(theirs)
    sizes = [path.stat().st_size / 1e6 for path in (source, ours, theirs)]
    remark = f"{len(ranks)} layers factorized, {sizes[0]:,.0f} MB to {sizes[1]:,.0f} (script {sizes[2]:,.0f})"
    if excess:
        remark += f"; largest excess over the script's error in {len(excess)} layers {max(excess.values()):+.1e}"
    return Row(f"{name}: compress", lrzip, rival, list(differences(stored_ranks(ours), ranks)), remark)


def analysis(name: str, source: Path, runs: int) -> Row:
    """Compare `lrzip analyze` with the script."""
    ours, theirs = source.with_name("lrzip.json"), source.with_name("rival.json")
    ask = ["analyze", str(source), "--json", "--quiet"]
    lrzip, rival = contest(f"{name}: analyze", ask, ["analyze", str(source), str(theirs)], runs, output=ours)
    layers = json.loads(ours.read_text(encoding="utf-8"))["layers"]
    found = {f"{row['name']} at {key}": rank for row in layers for key, rank in row["energy_ranks"].items()}
    ranks = json.loads(theirs.read_text(encoding="utf-8"))
    expected = {f"{layer} at {key}": rank for layer, row in ranks.items() for key, rank in row.items()}
    remark = f"{len(expected)} ranks of {len(ranks)} layers"
    return Row(f"{name}: analyze", lrzip, rival, list(differences(found, expected)), remark)


def contest(
    name: str, lrzip: Sequence[str], rival: Sequence[str], runs: int, *, output: Path | None = None
) -> tuple[Usage, Usage]:
    """Run both alternately, each first in every other run, and return the best run of each."""
    commands = ([sys.executable, "-m", "lrzip", *lrzip], [sys.executable, str(RIVAL), *rival])
    usages: tuple[list[Usage], list[Usage]] = ([], [])
    for run in range(runs):
        for side in (run % 2, 1 - run % 2):
            print(f"{name}, run {run + 1}, {('lrzip', 'rival')[side]}", file=sys.stderr)
            usages[side].append(usage_of(commands[side], output if side == 0 else None))
    first, second = (min(taken, key=lambda usage: usage.seconds) for taken in usages)
    return first, second


def stored_ranks(path: Path) -> Ranks:
    """Return the ranks of the factors in a safetensors file, by layer, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    suffix = ".0.weight"
    return {name.removesuffix(suffix): tensor["shape"][0] for name, tensor in header.items() if name.endswith(suffix)}


def differences(ours: Ranks, theirs: Ranks) -> Iterator[str]:
    """Yield the differences between ranks; a layer without a rank counts as 0."""
    for name in {**theirs, **ours}:
        pair = ours.get(name, 0), theirs.get(name, 0)
        if pair[0] != pair[1]:
            yield f"`{name}` {pair[0]}, script {pair[1]}"


def write_errors(source: Path, ours: Path, theirs: Path, destination: Path) -> None:
    """Write the relative excess of lrzip's errors over the script's for the first layers that both factorize."""
    from safetensors import safe_open

    names = sorted(stored_ranks(theirs).keys() & stored_ranks(ours).keys())[:COMPARED]
    excess = {}
    with safe_open(source, "pt") as dense, safe_open(ours, "pt") as first, safe_open(theirs, "pt") as second:
        for name in names:
            weight = dense.get_tensor(f"{name}.weight").float()
            factors = [[file.get_tensor(f"{name}.{i}.weight").float() for i in (1, 0)] for file in (first, second)]
            mine, rival = (float((weight - left @ right).norm()) for left, right in factors)
            excess[name] = mine / rival - 1
    destination.write_text(json.dumps(excess), encoding="utf-8")


def document(rows: Sequence[Row], runs: int) -> str:
    """Return the table in Markdown, with the hardware and the differences between the results."""
    columns = ["checkpoint: command", "lrzip s", "script s", "faster", "lrzip cores", "script cores"]
    columns += ["lrzip MiB", "script MiB", "different ranks"]
    table = [columns, ["---", *["---:"] * (len(columns) - 1)], *(row.cells() for row in rows)]
    lines = [
        "# Whole commands against scripts\n",
        f"{hardware()}. {versions('torch', 'safetensors')}.\n",
        f"Best of {runs} alternating runs, each a separate process including the start of Python and `import torch`. "
        "The script for `compress` is a loop over `torch.linalg.svd`, that for `analyze` one over "
        "`torch.linalg.svdvals`. Cores are the average number of busy cores, MiB the peak memory.\n",
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        *(f"- {row.name}: {row.remark}." for row in rows),
        *(f"- {row.name}: {difference}." for row in rows for difference in row.differences),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
