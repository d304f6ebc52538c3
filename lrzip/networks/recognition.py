"""Recognize the layers of a file: by its network if that is known, otherwise by inference."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lrzip.core.kinds import LINEAR, Kind
from lrzip.core.layers import ROOT, Keep, Layer, TensorSpec
from lrzip.core.stored import find_structures
from lrzip.networks.architecture import Architecture, ModuleInfo
from lrzip.networks.evidence import NAMED_OTHERWISE, Evidence
from lrzip.networks.inference import infer_layer, infer_layers, without_biases
from lrzip.networks.matching import match, wrapper_prefix
from lrzip.networks.weights import not_a_weight


def find_layers(
    path: Path,
    tensors: Mapping[str, TensorSpec],
    architecture: Architecture | None,
    *,
    trainer: bool = False,
    untouchable: Mapping[str, str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Sequence[Layer | Keep]:
    """Return the layers that can be factorized, and the tensors that are kept with the reason.

    Biases are part of their layer and are not listed.

    Args:
        path: Path of the file, for messages.
        tensors: All tensors of the file by name, in its order.
        architecture: The network, if it is known; otherwise layers are inferred.
        trainer: Whether a trainer wrote the file, so that `model.` is an attribute of the trainer, not of the network.
        untouchable: Tensors that the format must not replace, with the reason.
        kinds: Kinds of layers that the format knows, by the names of their weights; None for a format that does not
            store kinds.

    Raises:
        LrzipError: The file does not fit the network.
    """
    if architecture is None:
        prefix = wrapper_prefix(tensors, trainer=trainer)
        return infer_layers(tensors, prefix=prefix, untouchable=untouchable, kinds=kinds)
    matched = match(path, tensors, architecture)
    kept = [_kept(tensors[name], reason) for name, reason in matched.kept.items()]
    found = [*known_layers(matched.specs, architecture, untouchable=untouchable), *kept]
    order = {name: index for index, name in enumerate(tensors)}
    found.sort(key=lambda item: order[(item.weight if isinstance(item, Layer) else item.tensor).name])
    return found if kinds is not None else [_without_transposed(item) for item in found]


def known_layers(
    names: Mapping[str, TensorSpec], architecture: Architecture, *, untouchable: Mapping[str, str] | None = None
) -> Sequence[Layer | Keep]:
    """Return the layers of a file by its network, and the tensors that are kept with the reason.

    Args:
        names: All tensors of the file, in its order, by the names of the network.
        architecture: The network.
        untouchable: Tensors that the format must not replace, with the reason, by the names of the file.
    """
    evidence = Evidence.of({name: spec.renamed(name) for name, spec in names.items()})
    structures = find_structures(evidence.tensors, architecture.dense_layers)
    factors = {spec.name for stored in structures for spec in stored.weights}
    weights = {
        (info.kind or LINEAR).tensor_name(module, "weight"): module for module, info in architecture.layers.items()
    }
    found: list[Layer | Keep] = []
    for name, spec in names.items():
        module = weights.get(name, name.rpartition(".")[0])
        info = architecture.layers[module] if name in weights else None
        reason = (
            (untouchable or {}).get(spec.name)
            or (f"shared with {architecture.shared[name]}" if name in architecture.shared else None)
            or ("already factorized" if name in factors else None)
            or not_a_weight(spec)
        )
        if reason is None and info and info.kind and not info.reason:
            found.append(_layer(module, info, info.kind, spec, names))
            continue
        reason = reason or (info and info.reason) or _reason(name, module, spec, architecture, evidence)
        is_weight = module and (name in weights or name.endswith(".weight"))
        found.append(Keep(module if is_weight else name, spec, reason))
    return without_biases(found)


def _kept(spec: TensorSpec, reason: str) -> Keep:
    return Keep(spec.name.removesuffix(".weight"), spec, reason)


def _layer(module: str, info: ModuleInfo, kind: Kind, spec: TensorSpec, names: Mapping[str, TensorSpec]) -> Layer:
    bias = names.get(kind.tensor_name(module, "bias"))
    path = spec.name.removesuffix(kind.tensor_name("x", "weight")[1:]).removesuffix("weight")
    return Layer(module or ROOT, path, kind, spec, bias, info.groups)


def _reason(name: str, module: str, spec: TensorSpec, architecture: Architecture, evidence: Evidence) -> str:
    """Return why a tensor of a module without a known kind is kept, as specifically as inference can tell."""
    inferred = infer_layer(spec.renamed(name), evidence)
    if isinstance(inferred, Keep) and not inferred.override and inferred.reason != NAMED_OTHERWISE:
        return inferred.reason
    return f"a parameter of {architecture.classes.get(module, 'a module that the network does not have')}"


def _without_transposed(item: Layer | Keep) -> Layer | Keep:
    """Keep a transposed linear layer, whose stored factors would be mistaken for those of a linear layer."""
    if isinstance(item, Keep) or not item.kind.is_stored_transposed:
        return item
    return Keep(item.name, item.weight, "transformers' Conv1D, whose factors only a folder with `config.json` can name")
