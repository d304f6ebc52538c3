"""Evidence about the layer of a weight, from the names and shapes of all tensors of a file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrzip.core.kinds import CONVOLUTIONS
from lrzip.core.layers import Layer, TensorSpec, by_module
from lrzip.core.stored import find_structures
from lrzip.networks import words
from lrzip.networks.flow import may_be_grouped, may_be_transposed, norm_of_transposed
from lrzip.networks.neighbors import Neighbors

_RECURRENT = ("weight_ih", "weight_hh", "weight_hr")
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Layers of a state-space mixer whose weights some implementations pass to a kernel.
_MIXED = ("in_proj", "x_proj", "dt_proj", "out_proj")
NAMED_OTHERWISE = "not named `weight`, so not the weight of a layer"
_COLOR_CHANNELS = 3
# Longest usual kernels by number of spatial axes; longer ones are more likely features.
_KERNELS = {1: 8, 2: 32, 3: 32}
# Numbers of parts that one projection computes: gates, or queries, keys and values.
_PARTS = (1, 2, 3, 4)
# Kernels of square weights with several spatial axes that mostly belong to upsampling.
_UPSAMPLING = {2, 4}


@dataclass(frozen=True)
class Evidence:
    """Properties of all tensors of a file that help to recognize each of them.

    Attributes:
        tensors: All tensors by name.
        channels: First sizes of all tensors, which are their numbers of output channels, and 3 for color images.
        convolutions: Number of convolutions by first size.
        first_conv: Name of the first convolution, whose input channels are not the output of another tensor.
        inputs: Number of matrices and convolutions by second size, and of norms by size.
        has_biases: Whether a matrix has a bias, or is named like an embedding, so that one without is suspicious.
        transposed: Names of the modules, without indices, whose biases or norms prove that they are stored (in, out).
        members: All tensors at or below each module, by module and by the rest of their name.
        factors: Names of the weights that are factors of stored structures.
        neighbors: Modules in the order in which they probably run.
    """

    tensors: Mapping[str, TensorSpec]
    channels: frozenset[int]
    convolutions: Mapping[int, int]
    first_conv: str | None
    inputs: Mapping[int, int]
    has_biases: bool
    transposed: frozenset[str]
    members: Mapping[str, Mapping[str, TensorSpec]]
    factors: frozenset[str]
    neighbors: Neighbors

    @classmethod
    def of(cls, tensors: Mapping[str, TensorSpec]) -> "Evidence":
        """Collect the evidence of all tensors of a file."""
        modules = {spec.name.removesuffix(".weight"): spec for spec in tensors.values() if len(spec.shape) >= 2}
        biases = {module: tensors.get(f"{module}.bias") for module in modules}
        convolutions = [spec for spec in tensors.values() if _is_convolution(spec)]
        norms = [s for name, s in tensors.items() if len(s.shape) == 1 and name.removesuffix(".bias") not in modules]
        neighbors = Neighbors(tensors)
        return cls(
            tensors=tensors,
            channels=frozenset({_COLOR_CHANNELS} | {spec.shape[0] for spec in tensors.values() if spec.shape}),
            convolutions=Counter(spec.shape[0] for spec in convolutions),
            first_conv=next((spec.name for spec in convolutions), None),
            inputs=Counter([*(spec.shape[1] for spec in modules.values()), *(spec.shape[0] for spec in norms)]),
            has_biases=any(biases.values()) or any(map(words.embedding_by_name, modules)),
            transposed=frozenset(
                _without_index(module)
                for module, spec in modules.items()
                if ((bias := biases[module]) and bias.shape == spec.shape[1:2] != spec.shape[:1])
                or (_is_convolution(spec) and not bias and norm_of_transposed(module, spec, neighbors))
            ),
            members=by_module(tensors),
            factors=frozenset(spec.name for stored in find_structures(tensors) for spec in stored.weights),
            neighbors=neighbors,
        )

    def obstacle(self, module: str, bias: TensorSpec | None, spec: TensorSpec) -> str | None:
        """Return why a tensor is not the weight of a layer that factors can replace, or None.

        Args:
            module: Path of the module that the name of the tensor implies.
            bias: Bias of that module.
            spec: The tensor, with two to five dimensions.
        """
        leaf = spec.name.rpartition(".")[2]
        if any(f"_{name}_" in f"_{leaf}_" for name in _RECURRENT):
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
        if len(spec.shape) == 2 and bias is None and words.embedding_by_name(module) == "certain":
            return "embedding"
        if _is_convolution(spec) and bias is None and norm_of_transposed(module, spec, self.neighbors):
            return "transposed convolution by the norm beside it"
        return _misfit(bias, spec)

    def ambiguity(self, layer: Layer) -> str | None:
        """Return why the kind of a layer is not certain enough to factorize it unless the user names it, or None."""
        out, channels, *kernel = layer.weight.shape
        if layer.weight.name in self.factors:
            return "already factorized (`lrzip export --to dense` merges the factors)"
        if out == channels and _without_index(layer.module) in self.transposed:
            return f"square, and other layers named `{_without_index(layer.module)}` are stored transposed"
        return self._of_convolution(layer) if kernel else self._of_matrix(layer)

    def _of_matrix(self, layer: Layer) -> str | None:
        """Return why a matrix may not be the weight of a linear layer, or None."""
        rows, columns = layer.weight.shape
        parent, _, child = layer.module.rpartition(".")
        if child in _MIXED and "A_log" in self.members[parent]:
            return "may be read directly by the mixer of a state-space model"
        if layer.bias or words.attention_by_name(child):
            return None
        if words.embedding_by_name(layer.module):
            return "may be an embedding, by its name"
        if not self.has_biases or words.linear_by_name(layer.module):
            return None
        before = self.neighbors.numbered(layer.module, -1)
        follows = before is not None and before.weight.shape[0] == columns
        is_read = any(self.inputs[rows // parts] > (rows == parts * columns) for parts in _PARTS if not rows % parts)
        if follows or is_read:
            return None
        return f"may be an embedding, since it has no bias and no tensor here takes {rows} inputs"

    def _of_convolution(self, layer: Layer) -> str | None:
        """Return why a weight with a kernel may not be that of an ordinary convolution, or None."""
        out, channels, *kernel = layer.weight.shape
        if channels == 1 and out > 1:
            return "may be depthwise"
        if (layer.bias is None or out == channels) and words.transposed_by_name(layer.module):
            return "may be a transposed convolution, by its name"
        if may_be_transposed(layer, self.neighbors):
            return "may be a transposed convolution, by the sizes of the layers beside it"
        if out == channels > 1 and len(kernel) > 1 and set(kernel) <= _UPSAMPLING:
            return f"may be a transposed convolution, by its kernel of {kernel[0]}"
        if not words.convolution_by_name(layer.module) and _is_long(channels, kernel):
            return f"may be a bilinear layer or a stack of matrices, since its kernel would be {max(kernel)} long"
        if may_be_grouped(layer, self.neighbors):
            return "may be a grouped convolution, by the width of the layer before it"
        if self._resembles_grouped(layer):
            return f"may be a grouped convolution, since no tensor here has {channels} output channels"
        return None

    def _resembles_grouped(self, layer: Layer) -> bool:
        """Return whether a weight looks grouped as in ResNeXt: (out, out / groups, *kernel) on `out` channels."""
        out, channels = layer.weight.shape[:2]
        return (
            out > channels
            and out % channels == 0
            and channels not in self.channels
            and layer.weight.name != self.first_conv
            and self.convolutions[out] > 1
        )


def _is_convolution(spec: TensorSpec) -> bool:
    return len(spec.shape) - 2 in CONVOLUTIONS


def _is_long(channels: int, kernel: Sequence[int]) -> bool:
    """Return whether a kernel is so long that its axes are probably features."""
    return channels > 1 and (max(kernel) > _KERNELS[len(kernel)] or list(kernel) == [channels] > [_KERNELS[1] // 2])


def _without_index(module: str) -> str:
    """Return the last name of a module that is not an index, which layers of one kind share."""
    return next(words.parts_of(module), "")


def _misfit(bias: TensorSpec | None, spec: TensorSpec) -> str | None:
    """Return why a bias does not belong to a layer with this weight in the layout (out, in, ...), or None."""
    if bias is None or bias.shape == spec.shape[:1]:
        return None
    if bias.shape != spec.shape[1:2]:
        return f"its bias {bias.shape} fits neither dimension of its weight {spec.shape}"
    if len(spec.shape) > 2:
        return "transposed convolution by its bias"
    return "GPT-2 Conv1D by its bias, stored transposed"
