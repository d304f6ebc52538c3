"""Export: a checkpoint in another format, or with its chains multiplied back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

import lrzip
from lrzip.errors import LrzipError, UsageError
from lrzip.factors import Chain, compose, find_chains
from lrzip.files.atomic import check_output
from lrzip.formats import Checkpoint, create, not_carried, open_checkpoint, output_format
from lrzip.layers import TensorSpec
from lrzip.plan import SCHEMA, Entry

TARGETS = ("safetensors", "state-dict", "dense")


@dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes:
        source: What was read.
        output: What was written.
        target: `safetensors`, `state-dict` or `dense`.
        tensors: Number of tensors written.
        chains: Names of the layers that were multiplied back.
        dropped: Entries of the source that were not carried over, each with its reason.
        version: Of lrzip.
    """

    source: Path
    output: Path
    target: str
    tensors: int
    chains: Sequence[str]
    dropped: Sequence[tuple[str, str]]
    version: str

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "input": str(self.source),
            "output": str(self.output),
            "to": self.target,
            "tensors": self.tensors,
            "multiplied": list(self.chains),
            "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped],
        }


def export(
    path: str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    key: str | None = None,
    trust: bool = False,
    force: bool = False,
) -> Export:
    """Write a checkpoint in another format.

    `safetensors` and `state-dict` copy every tensor under its name. `dense` multiplies the chains that `compress` wrote
    back, in float32 (float64 for float64) and rounded to their dtype, under the names of the original layers, in the
    source's own format or the one that the output's suffix names.

    Args:
        path: A file of torch.save, torch.export.save or safetensors, or a folder of sharded safetensors.
        to: `safetensors`, `state-dict` or `dense`.
        output: Where to write; by default beside the source.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the file.
        force: Overwrite an existing output.

    Raises:
        LrzipError: It could not be done; nothing is written.
    """
    if to not in TARGETS:
        raise UsageError(f"`to` must be one of {', '.join(TARGETS)}, got {to}.")
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source, to)
    check_output(destination, source, force=force)
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        format_ = _format(destination, to, checkpoint)
        chains = find_chains(checkpoint.tensors()) if to == "dense" else ()
        if to == "dense" and not chains:
            raise LrzipError(f"`{path}` has no factorized layers to multiply back. It is dense already.")
        view = checkpoint.bare() if to == "state-dict" else checkpoint
        lost = not_carried(format_, view, optimizer=bool(chains))
        bared = {name: "a bare state_dict has no place for it" for name in checkpoint.others if name not in view.others}
        layout = _layout(checkpoint.tensors(), chains)
        with create(destination, view, layout, format_=format_, drop=list(lost)) as writer:
            for chain in chains:
                dense = compose([checkpoint.read(spec.name) for spec in chain.weights], chain.kind)
                writer.put(chain.dense_name, dense.to(getattr(torch, chain.weights[0].dtype)))
    multiplied = [chain.module for chain in chains]
    dropped = tuple((lost | bared).items())
    return Export(source, destination, to, len(layout), multiplied, dropped, lrzip.__version__)


def default_output(source: Path, to: str) -> Path:
    """Return `model.safetensors`, `model.state_dict.pt` or `model.dense.pt` for `model.pt`."""
    path = source if source.name else source.absolute()
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    endings = {"safetensors": ".safetensors", "state-dict": ".state_dict.pt", "dense": f".dense{suffix}"}
    return path.with_name(stem + endings[to])


def _format(destination: Path, to: str, checkpoint: Checkpoint) -> str:
    wanted = {"safetensors": "safetensors", "state-dict": "state_dict", "dense": checkpoint.format}[to]
    found = output_format(destination, wanted)
    if to != "dense" and found != wanted:
        raise UsageError(f"`--to {to}` does not write {destination.suffix} files, got `{destination}`.")
    return found


def _layout(tensors: Mapping[str, TensorSpec], chains: Sequence[Chain]) -> tuple[Entry, ...]:
    """Return every tensor of the output: dense weights in the places of first stages, biases under their old names."""
    first = {chain.weights[0].name: chain for chain in chains}
    later = {spec.name for chain in chains for spec in chain.weights[1:]}
    biases = {chain.bias.name: chain.dense_name.removesuffix("weight") + "bias" for chain in chains if chain.bias}
    entries: list[Entry] = []
    for name, spec in tensors.items():
        if name in first:
            shape = first[name].dense_shape
            dense = TensorSpec(first[name].dense_name, shape, spec.dtype, spec.nbytes // spec.numel * prod(shape))
            entries.append(Entry(dense, name, copied=False))
        elif name not in later:
            entries.append(Entry(spec.renamed(biases.get(name, name)), name, copied=True))
    return tuple(entries)
