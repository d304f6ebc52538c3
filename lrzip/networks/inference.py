"""Infer the layers of a state_dict from the names and shapes of its tensors alone.

A state_dict does not store the classes of modules. A tensor whose layer cannot be inferred safely is kept, with the
reason. If naming the layer in `only` settles the ambiguity, the `Keep` carries the layer that results.
"""

from collections.abc import Mapping, Sequence

from lrzip.core.kinds import LINEAR, Kind, kind_of_shape
from lrzip.core.layers import ROOT, Keep, Layer, TensorSpec
from lrzip.networks.evidence import Evidence
from lrzip.networks.weights import not_a_weight

SETTLE = "name it in `--only` to factorize it all the same"


def infer_layers(
    tensors: Mapping[str, TensorSpec],
    *,
    prefix: str = "",
    untouchable: Mapping[str, str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Sequence[Layer | Keep]:
    """Return the layers that can be factorized, and the tensors that are kept with the reason.

    Biases are part of their layer and are not listed.

    Args:
        tensors: All tensors of the file by name, in its order.
        prefix: Prefix of wrappers, which the names of layers omit.
        untouchable: Tensors that the format must not replace, with the reason.
        kinds: Kinds of layers that the format knows, by the names of their weights.
    """
    evidence = Evidence.of(tensors)
    found = [infer_layer(spec, evidence, prefix, untouchable or {}, kinds or {}) for spec in tensors.values()]
    return without_biases(found)


def infer_layer(
    spec: TensorSpec,
    evidence: Evidence,
    prefix: str = "",
    untouchable: Mapping[str, str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Layer | Keep:
    """Return the layer of a weight, or the tensor as kept with the reason; for the arguments see `infer_layers`."""
    module = spec.name.removesuffix("weight").removesuffix(".")
    name = module.removeprefix(prefix) or ROOT
    bias = evidence.tensors.get(spec.name.removesuffix("weight") + "bias") if spec.name.endswith("weight") else None
    reason = (untouchable or {}).get(spec.name) or not_a_weight(spec)
    if not reason and kinds and spec.name in kinds:
        return Layer(name, module, kinds[spec.name], spec, bias)
    reason = reason or evidence.obstacle(module, bias, spec)
    if reason:
        return Keep(name if spec.name.endswith(".weight") else spec.name.removeprefix(prefix), spec, reason)
    layer = Layer(name, module, kind_of_shape(spec.shape) or LINEAR, spec, bias)
    ambiguity = evidence.ambiguity(layer)
    return Keep(name, spec, f"{ambiguity}; {SETTLE}", override=layer) if ambiguity else layer


def without_biases(found: Sequence[Layer | Keep]) -> Sequence[Layer | Keep]:
    """Return the items without the biases of the layers among them."""
    biases = {item.bias.name for item in found if isinstance(item, Layer) and item.bias}
    return [item for item in found if isinstance(item, Layer) or item.tensor.name not in biases]
