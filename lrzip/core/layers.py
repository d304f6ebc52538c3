"""What a checkpoint holds: tensors, the layers they belong to, and what stays whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

FACTORIZABLE_DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes an element, of the dtypes that can be factorized."""


ROOT = "(root)"
"""What people call the layer that is a whole network."""


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

    def renamed(self, name: str) -> "TensorSpec":
        """Return the same tensor under another name."""
        return TensorSpec(name, self.shape, self.dtype, self.nbytes)


@dataclass(frozen=True)
class Layer:
    """A layer that can be factorized.

    Attributes:
        name: What people call it and globs match: the module's path without wrapper prefixes.
        module: The module's path in the file, with its prefixes; "" for the root module.
        kind: `linear` with weight (out, in), `linear_transposed` (in, out), `embedding` (rows, width), `conv1d`,
            `conv2d` or `conv3d` (out, in / groups, *kernel), `conv_transpose1d`, … (in, out, *kernel), `attention`
            (3 · width, width), the input projections of nn.MultiheadAttention, in three groups.
        weight: The weight tensor.
        bias: The bias tensor, (out,), if there is one.
        groups: Of a convolution: parts of the weight, one below the other, that are factorized by themselves.
        round_to: What ranks are by default rounded up to a multiple of, for what runs its format.
    """

    name: str
    module: str
    kind: str
    weight: TensorSpec
    bias: TensorSpec | None
    groups: int = 1
    round_to: int = 1

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Shape of the channel unfolding, of one group: its first dimension, and all others together."""
        rows = self.weight.shape[0]
        return rows // self.groups, self.weight.numel // rows

    @property
    def path(self) -> str:
        """The module's path in the network itself, without wrapper prefixes; "" for the root module."""
        return "" if self.name == ROOT else self.name

    def stage_names(self, count: int) -> list[str]:
        """Return the names of the weights of a chain in the network itself."""
        prefix = f"{self.path}." if self.path else ""
        return [f"{prefix}{index}.weight" for index in range(count)]

    @property
    def inputs_are_rows(self) -> bool:
        """Whether inputs multiply the rows of the channel unfolding, and not its columns."""
        return self.kind in ("embedding", "linear_transposed") or self.kind.startswith("conv_transpose")

    @property
    def input_size(self) -> int:
        """Elements of what a row or column of the unfolding of one group is multiplied by."""
        return self.matrix_shape[0 if self.inputs_are_rows else 1]

    def kept(self, reason: str) -> "Keep":
        """Return the layer as one that is left unchanged, for a reason."""
        return Keep(self.name, self.weight, reason)

    def key(self, suffix: str) -> str:
        """Return the tensor name of `suffix` (such as `0.weight`) inside this layer's module."""
        return f"{self.module}.{suffix}" if self.module else suffix


@dataclass(frozen=True)
class Keep:
    """A tensor or layer that stays whole, and why.

    `insist` is the layer that `--only NAME` makes of it where the reason is a doubt that the user can settle.
    """

    name: str
    tensor: TensorSpec
    reason: str
    override: Layer | None = None


def tensor_name(module: str, kind: str, leaf: str) -> str:
    """Return the name of the `weight` or `bias` of a layer; nn.MultiheadAttention has its input projection's itself."""
    return f"{module}{'_' if kind == 'attention' else '.'}{leaf}" if module else leaf


def by_module(tensors: Mapping[str, TensorSpec]) -> Mapping[str, Mapping[str, TensorSpec]]:
    """Return, for every module path that names imply, the tensors below it by the rest of their names."""
    modules: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in tensors.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            modules.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = spec
    return modules
