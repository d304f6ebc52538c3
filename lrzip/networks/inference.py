"""What the tensors of a state_dict are: by the network they belong to, or inferred from names, shapes and biases alone.

A state_dict does not say which class a weight belongs to. What cannot be told safely without the network is kept, with
the doubt as the reason; where naming the layer in `--only` settles it, the `Keep` carries the layer that results.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrzip.core.errors import LrzipError
from lrzip.core.kinds import CONVOLUTIONS, LINEAR, Kind, kind_of_shape
from lrzip.core.layers import FACTORIZABLE_DTYPES, ROOT, Keep, Layer, TensorSpec, by_module
from lrzip.core.stored import find_structures
from lrzip.networks.architecture import Architecture

_RECURRENT = re.compile(r"(^|[._])weight_(ih|hh|hr)(_|$)")
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|\w+_emb|wte|wpe|relative_attention_bias|shared|lut)$", re.IGNORECASE)
_FUSED_ATTENTION = re.compile(r"(^|\.)(\w*qkv|c_attn|query_key_value|in_proj|qkv_proj)$", re.IGNORECASE)
_TRANSPOSED = re.compile(r"deconv|conv_?trans|transposed?_?conv|upconv|up_?sample", re.IGNORECASE)
_NAMED_OTHERWISE = "not named `weight`, so not the weight of a layer"
SETTLE = "name it in `--only` to factorize it all the same"


def wrapper_prefix(names: Iterable[str], *, trainer: bool) -> str:
    """Return the prefix that wrappers such as DataParallel and torch.compile put before every name, or "".

    Args:
        names: Tensor names. `n_averaged`, the counter of an AveragedModel, never carries a prefix.
        trainer: Whether a trainer wrote the file, so that `model.` is its attribute and not the network's own.
    """
    wrappers = ("module.", "_orig_mod.", "model.") if trainer else ("module.", "_orig_mod.")
    rest = [name for name in names if name != "n_averaged"]
    prefix = ""
    while rest:
        wrapper = next((wrapper for wrapper in wrappers if all(name.startswith(wrapper) for name in rest)), None)
        if wrapper is None:
            break
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


def find_layers(
    path: Path,
    tensors: Mapping[str, TensorSpec],
    architecture: Architecture | None,
    *,
    trainer: bool = False,
    untouchable: Mapping[str, str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Sequence[Layer | Keep]:
    """Return what each tensor of a file is: by the network where it is known, else inferred.

    Args:
        path: Of the file, for messages.
        tensors: All tensors of the file, in its order.
        architecture: Of the network.
        trainer: Whether a trainer wrote the file, so that `model.` is its attribute and not the network's own.
        untouchable: Reasons the format has found against touching a tensor, by tensor name.
        kinds: Kinds of layers that the format knows without the network, by the names of their weights; None for a
            format that has no place for kinds.
    """
    if architecture:
        found = known_layers(match_names(path, tensors, architecture), architecture, untouchable=untouchable)
        return found if kinds is not None else [_recognizable(item) for item in found]
    prefix = wrapper_prefix(tensors, trainer=trainer)
    return infer_layers(tensors, prefix=prefix, untouchable=untouchable, kinds=kinds)


def _recognizable(item: Layer | Keep) -> Layer | Keep:
    """Keep a layer whose factors could not be told from those of a linear layer, so would come back transposed."""
    if isinstance(item, Keep) or not item.kind.is_stored_transposed:
        return item
    return Keep(item.name, item.weight, "transformers' Conv1D, whose factors only a folder with `config.json` can name")


def infer_layers(
    tensors: Mapping[str, TensorSpec],
    *,
    prefix: str = "",
    untouchable: Mapping[str, str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Sequence[Layer | Keep]:
    """Return what each tensor is: a layer's weight, or kept with a reason. Biases of layers belong to their layer.

    Args:
        tensors: All tensors of the file, in its order.
        prefix: Wrapper prefix that names for people do without.
        untouchable: Reasons the format has found against touching a tensor, by tensor name.
        kinds: Kinds of layers that the format knows, by the names of their weights.
    """
    surroundings = _Surroundings.of(tensors)
    return _without_biases(
        [_infer(spec, surroundings, prefix, untouchable or {}, kinds or {}) for spec in tensors.values()]
    )


def known_layers(
    names: Mapping[str, TensorSpec], architecture: Architecture, *, untouchable: Mapping[str, str] | None = None
) -> Sequence[Layer | Keep]:
    """Return what each tensor is, as the network says.

    Args:
        names: All tensors of the file, in its order, by the network's names for them.
        architecture: Of the network.
        untouchable: Reasons the format has found against touching a tensor, by the file's names.
    """
    surroundings = _Surroundings.of({name: spec.renamed(name) for name, spec in names.items()})
    found_structures = find_structures(surroundings.tensors, architecture.dense_layers)
    chained = {spec.name for stored in found_structures for spec in stored.weights}
    weights = {
        (what.kind or LINEAR).tensor_name(module, "weight"): module for module, what in architecture.layers.items()
    }
    found: list[Layer | Keep] = []
    for name, spec in names.items():
        module = weights.get(name, name.rpartition(".")[0])
        inferred = _infer(spec.renamed(name), surroundings, "", {}, {})
        reason = (
            (untouchable or {}).get(spec.name)
            or (f"shared with {architecture.shared[name]}" if name in architecture.shared else None)
            or ("already factorized" if name in chained else None)
            or not_a_weight(spec)
        )
        what = architecture.layers[module] if name in weights else None
        if reason is None and what and what.kind and not what.reason:
            bias = names.get(what.kind.tensor_name(module, "bias"))
            path = spec.name.removesuffix(what.kind.tensor_name("x", "weight")[1:]).removesuffix("weight")
            found.append(Layer(module or ROOT, path, what.kind, spec, bias, what.groups))
            continue
        if reason is None:
            of = architecture.classes.get(module, "a module that the network does not have")
            said = isinstance(inferred, Keep) and not inferred.override and inferred.reason != _NAMED_OTHERWISE
            reason = inferred.reason if said and isinstance(inferred, Keep) else f"a parameter of {of}"
            reason = (what and what.reason) or reason
        whole = module and (name in weights or name.endswith(".weight"))
        found.append(Keep(module if whole else name, spec, str(reason)))
    return _without_biases(found)


def match_names(path: Path, tensors: Mapping[str, TensorSpec], architecture: Architecture) -> Mapping[str, TensorSpec]:
    """Return the tensors of a file by a network's names for them, wrapper prefixes aside.

    Layers may be stored as chains. Of weights that share their values, the file may have one.

    Raises:
        LrzipError: The file does not fit the network; the first difference is named.
    """
    prefixes = ["", *dict.fromkeys(wrapper_prefix(tensors, trainer=trainer) for trainer in (False, True))]
    prefix = max(prefixes, key=lambda prefix: sum(n.removeprefix(prefix) in architecture.shapes for n in tensors))
    counters = {"n_averaged"} - architecture.shapes.keys()
    found = {name.removeprefix(prefix): spec for name, spec in tensors.items() if name not in counters}
    expected = dict(architecture.shapes)
    named = {name: spec.renamed(name) for name, spec in found.items()}
    for stored in find_structures(named, architecture.dense_layers):
        replaced = {stored.dense_name, stored.dense_bias_name}
        if replaced & architecture.shared.keys():
            raise LrzipError(
                f"`{stored.module}` shares its weight with another layer of the model. "
                f"Compress with `--skip {stored.module}`."
            )
        expected = {name: shape for name, shape in expected.items() if name not in replaced}
        expected |= {spec.name: spec.shape for spec in (*stored.weights, stored.bias) if spec}
    for name in [*expected, *found]:
        there = found.get(name)
        counter = name.endswith("num_batches_tracked") and there is None  # files older than the counter lack it
        tied = there is None and architecture.shared.get(name) in found
        if (there and there.shape) != expected.get(name) and not counter and not tied:
            actual = f"has shape {there.shape}" if there else "is missing"
            wanted = f"takes {expected[name]}" if name in expected else "has no such tensor"
            raise LrzipError(f"`{path}` does not fit the model: `{name}` {actual}, the model {wanted}.")
    return found


def _without_biases(found: Sequence[Layer | Keep]) -> Sequence[Layer | Keep]:
    """Leave out the biases of layers, which belong to them."""
    biases = {item.bias.name for item in found if isinstance(item, Layer) and item.bias}
    return [item for item in found if isinstance(item, Layer) or item.tensor.name not in biases]


@dataclass(frozen=True)
class _Surroundings:
    """What the other tensors of a file tell about each one.

    Attributes:
        tensors: All of them.
        channels: Numbers of channels that some tensor puts out, and 3 for color images.
        first_conv: The first convolution, whose input channels nothing puts out.
        transposed: Last names of the modules whose biases prove that their weights are stored (in, out).
        members: All tensors at or below each module.
        factors: Names of the weights that are stages of stored chains.
    """

    tensors: Mapping[str, TensorSpec]
    channels: frozenset[int]
    first_conv: str | None
    transposed: frozenset[str]
    members: Mapping[str, Mapping[str, TensorSpec]]
    factors: frozenset[str]

    @classmethod
    def of(cls, tensors: Mapping[str, TensorSpec]) -> "_Surroundings":
        modules = {spec.name.removesuffix(".weight"): spec for spec in tensors.values() if len(spec.shape) >= 2}
        biases = {module: tensors.get(f"{module}.bias") for module in modules}
        return cls(
            tensors,
            frozenset({3} | {spec.shape[0] for spec in tensors.values() if spec.shape}),
            next((spec.name for spec in tensors.values() if len(spec.shape) - 2 in CONVOLUTIONS), None),
            frozenset(
                module.rpartition(".")[2]
                for module, spec in modules.items()
                if (bias := biases[module]) and bias.shape == spec.shape[1:2] != spec.shape[:1]
            ),
            by_module(tensors),
            frozenset(spec.name for stored in find_structures(tensors) for spec in stored.weights),
        )


def _infer(
    spec: TensorSpec,
    surroundings: _Surroundings,
    prefix: str,
    untouchable: Mapping[str, str],
    kinds: Mapping[str, Kind],
) -> Layer | Keep:
    tensors = surroundings.tensors
    module = spec.name.removesuffix("weight").removesuffix(".")
    name = module.removeprefix(prefix) or ROOT
    bias = tensors.get(spec.name.removesuffix("weight") + "bias") if spec.name.endswith("weight") else None
    reason = untouchable.get(spec.name) or not_a_weight(spec)
    if not reason and spec.name in kinds:
        return Layer(name, module, kinds[spec.name], spec, bias)
    reason = reason or _not_a_layer(module, bias, spec, surroundings)
    if reason:
        return Keep(name if spec.name.endswith(".weight") else spec.name.removeprefix(prefix), spec, reason)
    layer = Layer(name, module, kind_of_shape(spec.shape) or LINEAR, spec, bias)
    ambiguity = _ambiguity(layer, surroundings)
    return Keep(name, spec, f"{ambiguity}; {SETTLE}", override=layer) if ambiguity else layer


def is_parameter(spec: TensorSpec) -> bool:
    """Tell whether a tensor counts as parameters: floating point, and no running statistic of a batch norm."""
    buffer = spec.name.endswith(("running_mean", "running_var", "num_batches_tracked", "n_averaged"))
    return spec.dtype.startswith(("f", "bf")) and not buffer


def not_a_weight(spec: TensorSpec) -> str | None:
    """Return why a tensor cannot be the weight of a layer, by its shape and dtype alone."""
    if len(spec.shape) < 2:
        return "a vector" if spec.shape else "a scalar"
    if not spec.numel:
        return f"empty, {spec.shape}"
    if spec.dtype not in FACTORIZABLE_DTYPES:
        return f"{spec.dtype}, not one of {', '.join(sorted(FACTORIZABLE_DTYPES))}"
    if len(spec.shape) > 5:
        return f"{len(spec.shape)}-dimensional"
    return None


def _not_a_layer(module: str, bias: TensorSpec | None, spec: TensorSpec, surroundings: _Surroundings) -> str | None:
    """Return why a matrix is not the weight of a layer that a chain of layers could stand in for."""
    leaf = spec.name.rpartition(".")[2]
    if _RECURRENT.search(leaf):
        return "recurrent weight, held by an LSTM, GRU or RNN and not by a layer of its own"
    if leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return "fused attention projection, a parameter of nn.MultiheadAttention itself"
    if leaf != "weight":
        return _NAMED_OTHERWISE
    parent, _, child = module.rpartition(".")
    if child == "out_proj" and {"in_proj_weight", "q_proj_weight"} & surroundings.members[parent].keys():
        return "read directly by nn.MultiheadAttention"
    own = {"weight", "bias"} if bias else {"weight"}
    other = next((item.name for suffix, item in surroundings.members[module].items() if suffix not in own), None)
    if other:
        return f"its module also holds `{other}`"
    if len(spec.shape) == 2 and bias is None and _EMBEDDING.search(module):
        return "embedding"
    if bias is None or bias.shape == spec.shape[:1]:
        return None
    if bias.shape != spec.shape[1:2]:
        return f"its bias {bias.shape} fits neither dimension of its weight {spec.shape}"
    return (
        "transposed convolution by its bias" if len(spec.shape) > 2 else "GPT-2 Conv1D by its bias, stored transposed"
    )


def _ambiguity(layer: Layer, surroundings: _Surroundings) -> str | None:
    """Return why the kind of a layer is not certain enough to go ahead unasked."""
    out, channels, *kernel = layer.weight.shape
    leaf = layer.module.rpartition(".")[2]
    if layer.weight.name in surroundings.factors:
        return "already factorized (`lrzip export --to dense` multiplies back)"
    if out == channels and leaf in surroundings.transposed:
        return f"square, and other layers named `{leaf}` are stored transposed"
    if not kernel:
        return "fused attention matrix, several projections in one" if _FUSED_ATTENTION.search(leaf) else None
    if channels == 1 and out > 1:
        return "may be depthwise"
    if (layer.bias is None or out == channels) and _TRANSPOSED.search(layer.module):
        return "may be a transposed convolution, by its name"
    if _may_be_grouped(layer, surroundings):
        return f"may be a grouped convolution, since nothing here puts out {channels} channels"
    return None


def _may_be_grouped(layer: Layer, surroundings: _Surroundings) -> bool:
    """Tell whether a weight looks like ResNeXt's: (out, out / groups, *kernel), after a layer that puts out `out`."""
    out, channels = layer.weight.shape[:2]
    return (
        out > channels
        and out % channels == 0
        and channels not in surroundings.channels
        and layer.weight.name != surroundings.first_conv
        and any(
            len(spec.shape) - 2 in CONVOLUTIONS and spec.shape[0] == out and name != layer.weight.name
            for name, spec in surroundings.tensors.items()
        )
    )
