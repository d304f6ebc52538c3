"""The layout of an output file: every written tensor, and the tensor of the source that it copies or replaces."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from lrzip.core.decisions import Factorize, Replacement
from lrzip.core.kinds import Kind
from lrzip.core.layers import TensorSpec
from lrzip.core.structure import Stage, Structure, bias_name


@dataclass(frozen=True)
class Entry:
    """One tensor of an output file.

    Attributes:
        spec: The tensor that is written.
        origin: Name of the tensor of the source whose place it takes.
        copied: Whether its bytes are those of `origin`; otherwise they are computed.
        kind: Kind of the replaced layer; None for tensors that are not weights of a replacement.
        structure: Structure that the tensor is part of; None if the layer only changes its size.
    """

    spec: TensorSpec
    origin: str
    copied: bool
    kind: Kind | None = None
    structure: Structure | None = None


def lay_out(
    decisions: Sequence[Factorize], tensors: Mapping[str, TensorSpec], changed: Container[str] = ()
) -> tuple[Entry, ...]:
    """Return every tensor of the output, in the order of the source.

    The tensors of a structure take the place of the weight; the bias is renamed to that of the structure's last stage.

    Args:
        decisions: The layers that are replaced.
        tensors: Tensors of the source, by name.
        changed: Names of other tensors that get new values.
    """
    replaced = [(replacement, made.dtype) for made in decisions for replacement in made.replacements]
    weights = {replacement.layer.weight.name: _weights(replacement, dtype) for replacement, dtype in replaced}
    resized = {before.name: after for replacement, _ in replaced for before, after in replacement.others}
    biases = dict(names for replacement, _ in replaced for names in _renamed_bias(replacement))
    entries: list[Entry] = []
    for name, spec in tensors.items():
        if name in weights:
            entries += weights[name]
        elif name in resized:
            entries.append(Entry(resized[name], name, copied=False))
        else:
            entries.append(Entry(spec.renamed(biases.get(name, name)), name, copied=name not in changed))
    return tuple(entries)


def _weights(replacement: Replacement, dtype: str) -> list[Entry]:
    """Return the tensors that are written in place of the weight of a layer."""
    layer, structure = replacement.layer, replacement.structure
    parts = None if isinstance(structure, Stage) else structure
    return [Entry(spec, layer.weight.name, False, layer.kind, parts) for spec in replacement.weights(dtype)]


def _renamed_bias(replacement: Replacement) -> list[tuple[str, str]]:
    """Return the old and the new name of the bias of a layer, if it has one and becomes several stages."""
    layer, structure = replacement.layer, replacement.structure
    if layer.bias is None or isinstance(structure, Stage):
        return []
    return [(layer.bias.name, layer.key(bias_name(structure)))]
