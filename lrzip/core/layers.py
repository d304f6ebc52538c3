"""Contents of a checkpoint: tensors, layers that can be factorized, and tensors that are left unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from lrzip.core.kinds import Kind
from lrzip.core.structure import Stage, join

FACTORIZABLE_DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per element of the dtypes that can be factorized."""


_DEEPEST = 64

ROOT = "(root)"
"""Name of a layer that is itself the network."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape, dtype and size in bytes of a stored tensor; holds no data.

    `dtype` is torch's name (`float32`), or the format's own lower-cased code where torch has none (`f4`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_floating_point(self) -> bool:
        """Whether the elements are floating-point numbers of one of torch's common dtypes."""
        return self.dtype in FACTORIZABLE_DTYPES

    def renamed(self, name: str) -> "TensorSpec":
        """Return the same tensor under another name."""
        return TensorSpec(name, self.shape, self.dtype, self.nbytes)


@dataclass(frozen=True)
class Pair:
    """Two stored matrices whose product is a weight: W = scale · B A, as in LoRA.

    They are presented as one tensor (outputs + inputs, rank): B (outputs, rank) over Aᵀ (inputs, rank).

    Attributes:
        outputs: Number of rows of B.
        scale: Factor of the product.
    """

    outputs: int
    scale: float


@dataclass(frozen=True)
class Layer:
    """A layer that can be factorized.

    Attributes:
        name: Name in tables and patterns: the path of the module without wrapper prefixes.
        module: Path of the module in the file, with its prefixes; "" for the root module.
        kind: Layout of the weight.
        weight: The weight tensor.
        bias: The bias tensor (out,), if there is one.
        groups: Number of parts, stacked along the first axis of the weight, that are factorized separately.
        round_to: Default multiple to which ranks are rounded up, for the runtimes of the file format.
        pair: Layout of the weight if it is stored as a product already; None for dense weights.
    """

    name: str
    module: str
    kind: Kind
    weight: TensorSpec
    bias: TensorSpec | None
    groups: int = 1
    round_to: int = 1
    pair: Pair | None = None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Shape of the channel unfolding of one group, the first axis of the weight by all others, or of a product."""
        rows = self.weight.shape[0]
        if self.pair:
            return self.pair.outputs, rows - self.pair.outputs
        return rows // self.groups, self.weight.numel // rows

    @property
    def path(self) -> str:
        """Path of the module in the network itself, without wrapper prefixes; "" for the root module."""
        return "" if self.name == ROOT else self.name

    @property
    def stage(self) -> Stage:
        """The layer as a structure of a single stage."""
        return Stage(self.kind, self.weight.shape, self.groups, (True,) * self.kind.spatial)

    @property
    def input_size(self) -> int:
        """Size of the axis of one group's unfolding that is multiplied by inputs."""
        return self.matrix_shape[0 if self.kind.inputs_first else 1]

    def kept(self, reason: str) -> "Keep":
        """Return the decision to leave the layer unchanged, with its reason."""
        return Keep(self.name, self.weight, reason)

    def key(self, suffix: str) -> str:
        """Return the name in the file of a tensor (such as `0.weight`) below this layer's module."""
        return join(self.module, suffix)


@dataclass(frozen=True)
class Group:
    """The layers that one decision covers, because they share a dimension; usually a single one.

    Attributes:
        layers: The layers, in the order in which they run.
    """

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Names of the layers, joined by plus signs."""
        return "+".join(layer.name for layer in self.layers)


@dataclass(frozen=True)
class Keep:
    """A tensor or layer that is left unchanged.

    Attributes:
        name: Name in tables and patterns.
        tensor: The tensor.
        reason: Why it is left unchanged.
        override: Layer to factorize if it is named explicitly; None unless the reason is an ambiguity.
    """

    name: str
    tensor: TensorSpec
    reason: str
    override: Layer | None = None


def by_module(tensors: Mapping[str, TensorSpec]) -> Mapping[str, Mapping[str, TensorSpec]]:
    """Return, for each module path in the names of tensors, the tensors below it by their relative names.

    Of a path with more parts than any network has levels, only the last ones count.
    """
    modules: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in tensors.items():
        parts = name.split(".")
        for depth in range(max(len(parts) - _DEEPEST, 0), len(parts)):
            modules.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = spec
    return modules
