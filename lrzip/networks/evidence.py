"""Evidence about the layer of a weight, from the names and shapes of all tensors of a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec, by_module
from lrzip.core.stored import find_structures

_RECURRENT = re.compile(r"(^|[._])weight_(ih|hh|hr)(_|$)")
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|\w+_emb|wte|wpe|relative_attention_bias|shared|lut)$", re.IGNORECASE)
_FUSED_ATTENTION = re.compile(r"(^|\.)(\w*qkv|c_attn|query_key_value|in_proj|qkv_proj)$", re.IGNORECASE)
_TRANSPOSED = re.compile(r"deconv|conv_?trans|transposed?_?conv|upconv|up_?sample", re.IGNORECASE)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
NAMED_OTHERWISE = "not named `weight`, so not the weight of a layer"
_COLOR_CHANNELS = 3


@dataclass(frozen=True)
class Evidence:
    """Properties of all tensors of a file that help to recognize each of them.

    Attributes:
        tensors: All tensors by name.
        channels: First sizes of all tensors, which are their numbers of output channels, and 3 for color images.
        first_conv: Name of the first convolution, whose input channels are not the output of another tensor.
        transposed: Last names of the modules whose biases prove that their weights are stored (in, out).
        members: All tensors at or below each module, by module and by the rest of their name.
        factors: Names of the weights that are factors of stored structures.
    """

    tensors: Mapping[str, TensorSpec]
    channels: frozenset[int]
    first_conv: str | None
    transposed: frozenset[str]
    members: Mapping[str, Mapping[str, TensorSpec]]
    factors: frozenset[str]

    @classmethod
    def of(cls, tensors: Mapping[str, TensorSpec]) -> "Evidence":
        """Collect the evidence of all tensors of a file."""
        modules = {spec.name.removesuffix(".weight"): spec for spec in tensors.values() if len(spec.shape) >= 2}
        biases = {module: tensors.get(f"{module}.bias") for module in modules}
        return cls(
            tensors=tensors,
            channels=frozenset({_COLOR_CHANNELS} | {spec.shape[0] for spec in tensors.values() if spec.shape}),
            first_conv=next((spec.name for spec in tensors.values() if _is_convolution(spec)), None),
            transposed=frozenset(
                module.rpartition(".")[2]
                for module, spec in modules.items()
                if (bias := biases[module]) and bias.shape == spec.shape[1:2] != spec.shape[:1]
            ),
            members=by_module(tensors),
            factors=frozenset(spec.name for stored in find_structures(tensors) for spec in stored.weights),
        )

    def obstacle(self, module: str, bias: TensorSpec | None, spec: TensorSpec) -> str | None:
        """Return why a tensor is not the weight of a layer that factors can replace, or None.

        Args:
            module: Path of the module that the name of the tensor implies.
            bias: Bias of that module.
            spec: The tensor, with two to five dimensions.
        """
        leaf = spec.name.rpartition(".")[2]
        if _RECURRENT.search(leaf):
            return "recurrent weight, held by an LSTM, GRU or RNN and not by a layer of its own"
        if leaf in _PROJECTIONS:
            return "fused attention projection, a parameter of nn.MultiheadAttention itself"
        if leaf != "weight":
            return NAMED_OTHERWISE
        parent, _, child = module.rpartition(".")
        if child == "out_proj" and set(_PROJECTIONS[:2]) & self.members[parent].keys():
            return "read directly by nn.MultiheadAttention"
        own = {"weight", "bias"} if bias else {"weight"}
        other = next((item.name for suffix, item in self.members[module].items() if suffix not in own), None)
        if other:
            return f"its module also holds `{other}`"
        if len(spec.shape) == 2 and bias is None and _EMBEDDING.search(module):
            return "embedding"
        return _misfit(bias, spec)

    def ambiguity(self, layer: Layer) -> str | None:
        """Return why the kind of a layer is not certain enough to factorize it unless the user names it, or None."""
        out, channels, *kernel = layer.weight.shape
        leaf = layer.module.rpartition(".")[2]
        if layer.weight.name in self.factors:
            return "already factorized (`lrzip export --to dense` merges the factors)"
        if out == channels and leaf in self.transposed:
            return f"square, and other layers named `{leaf}` are stored transposed"
        if not kernel:
            return "fused attention matrix, several projections in one" if _FUSED_ATTENTION.search(leaf) else None
        if channels == 1 and out > 1:
            return "may be depthwise"
        if (layer.bias is None or out == channels) and _TRANSPOSED.search(layer.module):
            return "may be a transposed convolution, by its name"
        if self._may_be_grouped(layer):
            return f"may be a grouped convolution, since no tensor here has {channels} output channels"
        return None

    def _may_be_grouped(self, layer: Layer) -> bool:
        """Return whether a weight looks grouped as in ResNeXt: (out, out / groups, *kernel) on `out` channels."""
        out, channels = layer.weight.shape[:2]
        return (
            out > channels
            and out % channels == 0
            and channels not in self.channels
            and layer.weight.name != self.first_conv
            and any(
                _is_convolution(spec) and spec.shape[0] == out and name != layer.weight.name
                for name, spec in self.tensors.items()
            )
        )


def _is_convolution(spec: TensorSpec) -> bool:
    return len(spec.shape) - 2 in CONVOLUTIONS


def _misfit(bias: TensorSpec | None, spec: TensorSpec) -> str | None:
    """Return why a bias does not belong to a layer with this weight in the layout (out, in, ...), or None."""
    if bias is None or bias.shape == spec.shape[:1]:
        return None
    if bias.shape != spec.shape[1:2]:
        return f"its bias {bias.shape} fits neither dimension of its weight {spec.shape}"
    if len(spec.shape) > 2:
        return "transposed convolution by its bias"
    return "GPT-2 Conv1D by its bias, stored transposed"
