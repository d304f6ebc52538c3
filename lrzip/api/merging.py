"""Find the factorized layers of a checkpoint whose factors are to be merged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from lrzip.core.errors import UnknownName
from lrzip.core.globs import matches
from lrzip.core.kinds import ATTENTION, CONVOLUTIONS, EMBEDDING, TRANSPOSED_CONVOLUTIONS
from lrzip.core.layers import TensorSpec, by_module
from lrzip.core.output_options import MergedLayers
from lrzip.core.stored import DenseLayer, Stored, find_structures
from lrzip.formats.protocols import Checkpoint
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import match_names, wrapper_prefix


def factorized_layers(checkpoint: Checkpoint, model: nn.Module | None) -> Sequence[Stored]:
    """Return the factorized layers of a checkpoint, under its names."""
    if model is None:
        return find_structures(checkpoint.tensors(), checkpoint.dense_layers)
    architecture = Architecture.of(model)
    specs = match_names(checkpoint.path, checkpoint.tensors(), architecture)
    named = {name: spec.renamed(name) for name, spec in specs.items()}
    return [_stored_as(stored, specs) for stored in find_structures(named, architecture.dense_layers)]


def _stored_as(stored: Stored, specs: Mapping[str, TensorSpec]) -> Stored:
    """Return a structure under the names of the file, given its tensors by the names of the network."""
    suffix = stored.weights[0].name.removeprefix(stored.module)
    weights = tuple(specs[spec.name] for spec in stored.weights)
    bias = specs[stored.bias.name] if stored.bias else None
    return replace(stored, module=weights[0].name.removesuffix(suffix), weights=weights, bias=bias)


def selected_layers(factorized: Sequence[Stored], layers: MergedLayers) -> Sequence[Stored]:
    """Return the factorized layers that are selected for merging, by names with or without wrapper prefixes.

    Raises:
        UnknownName: A pattern matches no factorized layer.
    """
    prefix = wrapper_prefix((stored.module for stored in factorized), trainer=True)

    def is_matched(stored: Stored, patterns: Sequence[str]) -> bool:
        names = (stored.module, stored.module.removeprefix(prefix))
        return any(matches(name, pattern) for name in names for pattern in patterns)

    for option, patterns in vars(layers).items():
        for pattern in patterns:
            if not any(is_matched(stored, [pattern]) for stored in factorized):
                raise UnknownName(f"`{option}={pattern}` matches no factorized layer.")
    wanted = [stored for stored in factorized if not layers.only or is_matched(stored, layers.only)]
    return [stored for stored in wanted if not is_matched(stored, layers.skip)]


def ambiguous_modules(checkpoint: Checkpoint, factorized: Sequence[Stored]) -> Sequence[str]:
    """Return the modules that may be factorized layers, of a kind that only the architecture can confirm."""
    tensors, known = checkpoint.tensors(), {stored.module for stored in factorized}
    modules = by_module(tensors)
    guesses = [dict.fromkeys(modules, DenseLayer(kind)) for kind in _AMBIGUOUS_KINDS]
    guesses.append(dict(_depthwise_chains(modules)))
    found = {stored.module for layers in guesses for stored in find_structures(tensors, layers)}
    return sorted(found - known)


_AMBIGUOUS_KINDS = (EMBEDDING, ATTENTION, *TRANSPOSED_CONVOLUTIONS.values())


def _depthwise_chains(modules: Mapping[str, Mapping[str, TensorSpec]]) -> Iterator[tuple[str, DenseLayer]]:
    """Yield the layers that a depthwise and a pointwise convolution may replace, with as many channels as filters."""
    for module, under in modules.items():
        first, second = under.get("0.weight"), under.get("1.weight")
        if first is None or second is None or len(first.shape) - 2 not in CONVOLUTIONS or first.shape[1] != 1:
            continue
        if second.shape[1:] == (first.shape[0], *(1,) * (len(first.shape) - 2)):
            kind, shape = CONVOLUTIONS[len(first.shape) - 2], (second.shape[0], first.shape[0], *first.shape[2:])
            yield module, DenseLayer(kind, shape)
