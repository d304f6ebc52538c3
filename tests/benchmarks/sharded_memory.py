"""Peak memory and CPU utilization of `lrzip compress` on a sharded transformer.

    python -m tests.benchmarks.sharded_memory [--gigabytes 4] [--folder SCRATCH]

Writes two bfloat16 checkpoints with the names of Llama, of the given size and of a quarter of it, compresses each in a
separate process, and reads every tensor of the results. Peak memory above that of `import torch` must be at most six
times the largest tensor in float32, whatever the number of layers. The vocabulary has the size of the MLP, so that the
largest tensor is also the largest factorized one. Needs twice the given size on disk. Exits with 1 if a limit is
exceeded. Linux and macOS.
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.processes import Usage, apart, usage_of
from tests.benchmarks.tables import print_table

# torch is imported only in the processes that need it: on Linux the peak memory of a process includes that of the
# process from which it was forked, so this one must stay small.
if TYPE_CHECKING:
    from torch import Generator, Tensor

WIDTH = 2048
MLP = 8192
VOCABULARY = 8192
LAYERS_A_SHARD = 4
LARGEST_TENSOR = MLP * WIDTH * 4  # bytes in float32
MEMORY_LIMIT = 6.0  # times the largest tensor
CORES_LIMIT = 0.85  # share of the available cores
ENERGY = 0.9

ATTENTION = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (WIDTH, WIDTH))
GATED_MLP = {"gate_proj": (MLP, WIDTH), "up_proj": (MLP, WIDTH), "down_proj": (WIDTH, MLP)}
LAYER = {
    **{f"self_attn.{name}.weight": shape for name, shape in ATTENTION.items()},
    **{f"mlp.{name}.weight": shape for name, shape in GATED_MLP.items()},
    "input_layernorm.weight": (WIDTH,),
    "post_attention_layernorm.weight": (WIDTH,),
}
ENDS = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
HEAD = {"lm_head.weight": (VOCABULARY, WIDTH)}


@dataclass(frozen=True)
class Trial:
    """One compression: number of layers, usage of resources, totals of the report, and faults of the output."""

    layers: int
    usage: Usage
    totals: Mapping[str, Any]
    faults: Sequence[str]


def main() -> int:
    """Measure, print a table, and return 1 if a limit is exceeded or an output is wrong."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that gigabytes of temporary files are removed
    torch = usage_of([sys.executable, "-c", "import torch"])
    trials = []
    for gigabytes in (arguments.gigabytes / 4, arguments.gigabytes):
        with tempfile.TemporaryDirectory(prefix="lrzip-memory-", dir=arguments.folder) as folder:
            trials.append(trial(Path(folder), gigabytes))
    columns = ["layers", "before", "after", "factorized", "wall s", "cores", "peak MiB", "above torch", "× largest"]
    print_table(columns, [row(trial, torch) for trial in trials])
    print(f"\n`import torch` peaks at {mebibytes(torch.peak)} MiB; the largest tensor is", end=" ")
    print(f"{mebibytes(LARGEST_TENSOR)} MiB in float32, and {MEMORY_LIMIT:g} times that are allowed above torch.")
    failures = [failure for trial in trials for failure in failures_of(trial, torch)]
    for failure in failures:
        print(f"FAILED: {failure}")
    return int(bool(failures))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure peak memory and CPU utilization on a sharded transformer.")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the larger checkpoint")
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    return parser.parse_args()


def trial(folder: Path, gigabytes: float) -> Trial:
    """Write, compress and check a checkpoint of a given size."""
    source, output, report = folder / "model", folder / "small", folder / "report.json"
    layers = layers_of(gigabytes)
    print(f"writing {layers} layers", file=sys.stderr)
    apart(write_checkpoint, source, layers)
    print("compressing", file=sys.stderr)
    command = [sys.executable, "-m", "lrzip", "compress", str(source), "--energy", str(ENERGY), "-o", str(output)]
    usage = usage_of([*command, "--json"], report)
    print("checking", file=sys.stderr)
    apart(write_faults, source, output, folder / "faults.json")
    totals = json.loads(report.read_text(encoding="utf-8"))["totals"]
    return Trial(layers, usage, totals, json.loads((folder / "faults.json").read_text(encoding="utf-8")))


def row(trial: Trial, torch: Usage) -> list[str]:
    """Return the cells of a table."""
    above = trial.usage.peak - torch.peak
    return [
        str(trial.layers),
        f"{trial.totals['nbytes_before'] / 1e9:.2f} GB",
        f"{trial.totals['nbytes_after'] / 1e9:.2f} GB",
        str(trial.totals["layers_factorized"]),
        f"{trial.usage.seconds:.1f}",
        f"{trial.usage.cores:.2f}",
        mebibytes(trial.usage.peak),
        mebibytes(above),
        f"{above / LARGEST_TENSOR:.2f}",
    ]


def failures_of(trial: Trial, torch: Usage) -> list[str]:
    """Return the limits that a trial exceeds and the faults of its output."""
    times = (trial.usage.peak - torch.peak) / LARGEST_TENSOR
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    failures = [f"{trial.layers} layers: {fault}" for fault in trial.faults]
    if times > MEMORY_LIMIT:
        failures.append(f"{trial.layers} layers take {times:.2f} times the largest tensor.")
    if trial.usage.cores < CORES_LIMIT * cores:
        failures.append(f"{trial.layers} layers keep {trial.usage.cores:.2f} of {cores} cores busy.")
    return failures


def mebibytes(nbytes: float) -> str:
    """Return a number of bytes in MiB."""
    return f"{nbytes / 2**20:,.0f}"


def layers_of(gigabytes: float) -> int:
    """Return the number of layers of a checkpoint of about the given size, at least one."""
    ends = sum(math.prod(shape) for shape in {**ENDS, **HEAD}.values())
    return max(1, round((gigabytes * 1e9 / 2 - ends) / sum(math.prod(shape) for shape in LAYER.values())))


def shards_of(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors of each shard, with their shapes."""
    numbered = [{f"model.layers.{i}.{name}": shape for name, shape in LAYER.items()} for i in range(layers)]
    blocks: list[Mapping[str, tuple[int, ...]]] = [ENDS, *numbered, HEAD]
    starts = range(0, len(blocks), LAYERS_A_SHARD)
    return [{k: v for block in blocks[i : i + LAYERS_A_SHARD] for k, v in block.items()} for i in starts]


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write the shards, their index and a configuration."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    shards = shards_of(layers)
    names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    generator = torch.Generator().manual_seed(0)
    for name, shapes in zip(names, shards, strict=True):
        tensors = {tensor: weight(shape, generator) for tensor, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(2 * math.prod(shape) for shapes in shards for shape in shapes.values())},
        "weight_map": {tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def weight(shape: tuple[int, ...], generator: "Generator") -> "Tensor":
    """Return a bfloat16 weight; the singular values of a matrix are about i^(-1/2).

    Gaussian vectors are nearly orthogonal, so that their scales are close to the singular values.
    """
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tall = torch.randn(max(shape), min(shape), generator=generator)
    tall *= torch.arange(1, min(shape) + 1).rsqrt() / max(shape) ** 0.5
    return (tall if shape[0] >= shape[1] else tall.mT).bfloat16().contiguous()


def write_faults(source: Path, output: Path, destination: Path) -> None:
    """Write the faults of an output to a file."""
    destination.write_text(json.dumps(list(faults(source, output))), encoding="utf-8")


def faults(source: Path, output: Path) -> Iterator[str]:
    """Yield the faults of an output: in its index, its tensors, their sizes, or the other files of the folder."""
    index = json.loads((output / "model.safetensors.index.json").read_text(encoding="utf-8"))
    original = json.loads((source / "model.safetensors.index.json").read_text(encoding="utf-8"))
    found = dict(item for path in sorted(output.glob("*.safetensors")) for item in tensors_in(path))
    if index["weight_map"] != {name: shard for name, (shard, _) in found.items()}:
        yield "the index does not list what the shards hold."
    total = sum(nbytes for _, nbytes in found.values())
    if index["metadata"]["total_size"] != total:
        yield f"the index says {index['metadata']['total_size']} bytes, the tensors have {total}."
    for name in original["weight_map"]:
        module = name.removesuffix(".weight")
        if name not in found and not {f"{module}.0.weight", f"{module}.1.weight"} <= found.keys():
            yield f"`{name}` is lost."
    beside = {path.name for path in source.iterdir()} - {path.name for path in output.iterdir()}
    if beside:
        yield f"not copied: {', '.join(sorted(beside))}."
    if (output / "config.json").read_bytes() != (source / "config.json").read_bytes():
        yield "`config.json` is not a copy."


def tensors_in(path: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """Load each tensor of a file, and yield its name with the name of the file and its size in bytes."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            tensor = file.get_tensor(name)
            if not tensor.isfinite().all():
                raise ValueError(f"`{name}` in `{path.name}` is not finite.")
            yield name, (path.name, tensor.nbytes)


if __name__ == "__main__":
    sys.exit(main())
