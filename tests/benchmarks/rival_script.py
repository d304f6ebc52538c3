"""The baseline of `whole_command.py`: a script with torch and safetensors that does the same as lrzip.

python tests/benchmarks/rival_script.py compress|analyze SOURCE DESTINATION
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ENERGY = 0.9
ENERGIES = (0.7, 0.8, 0.9, 0.95, 0.99)


def main() -> None:
    """Run the command that the command line names."""
    command, source, destination = sys.argv[1:]
    {"compress": compress, "analyze": analyze}[command](source, destination)


def compress(source: str, destination: str) -> None:
    """Replace linear weights by two factors of the smallest rank that keeps the energy, if that saves parameters."""
    tensors = load_file(source)
    for name, weight in linear_weights(tensors):
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        rank = energy_rank(s, ENERGY)
        if rank * sum(weight.shape) >= weight.numel():
            continue
        root = s[:rank].sqrt()
        module = name.removesuffix(".weight")
        tensors[f"{module}.0.weight"] = (root[:, None] * vh[:rank]).to(weight.dtype).contiguous()
        tensors[f"{module}.1.weight"] = (u[:, :rank] * root).to(weight.dtype).contiguous()
        if f"{module}.bias" in tensors:
            tensors[f"{module}.1.bias"] = tensors.pop(f"{module}.bias")
        del tensors[name]
    save_file(tensors, destination)


def analyze(source: str, destination: str) -> None:
    """Write the ranks for some energies, by layer."""
    ranks = {}
    for name, weight in linear_weights(load_file(source)):
        values = torch.linalg.svdvals(weight.float())
        ranks[name.removesuffix(".weight")] = {f"{energy:g}": energy_rank(values, energy) for energy in ENERGIES}
    Path(destination).write_text(json.dumps(ranks), encoding="utf-8")


def linear_weights(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of linear layers."""
    for name, tensor in list(tensors.items()):
        if tensor.dim() == 2 and "embed" not in name:
            yield name, tensor


def energy_rank(values: Tensor, share: float) -> int:
    """Return the smallest rank that keeps a share of Σσ²."""
    squares = values.double().square()
    return int((squares.cumsum(0) < share * squares.sum()).sum()) + 1


if __name__ == "__main__":
    main()
