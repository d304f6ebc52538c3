"""Decisions: the layers that are replaced together, and the structures that replace them."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

from lrzip.core.layers import FACTORIZABLE_DTYPES, Group, Layer, TensorSpec
from lrzip.core.stored import Stored
from lrzip.core.structure import Leaf, Select, Structure, join, leaves, parameters, stages, tensor_names


@dataclass(frozen=True)
class Replacement:
    """One layer of a decision and the structure that replaces it.

    Attributes:
        layer: The layer.
        structure: Blueprint of the decomposition; a single `Stage` means that the layer only changes its size.
        others: Other tensors of the group that change shape under the same name, such as a bias: pairs (before, after).
    """

    layer: Layer
    structure: Structure
    others: tuple[tuple[TensorSpec, TensorSpec], ...] = ()

    def weights(self, dtype: str) -> tuple[TensorSpec, ...]:
        """Return the tensors that are written in place of the layer's weight."""
        return tuple(self._spec(path, leaf, dtype) for path, leaf in leaves(self.structure))

    def _spec(self, path: str, leaf: Leaf, dtype: str) -> TensorSpec:
        if isinstance(leaf, Select):
            return TensorSpec(self.layer.key(join(path, "index")), (leaf.count,), "int64", 8 * leaf.count)
        name = self.layer.key(join(path, "weight")) if path else self.layer.weight.name
        return TensorSpec(name, leaf.shape, dtype, FACTORIZABLE_DTYPES[dtype] * prod(leaf.shape))

    def stored(self, module: str, dtype: str) -> Stored:
        """Return the structure as it is stored under the path of a module."""
        pairs = zip(tensor_names(self.structure), self.weights(dtype), strict=True)
        specs = tuple(spec.renamed(join(module, name)) for name, spec in pairs)
        return Stored(module, self.structure, specs, self.layer.bias, self.layer.stage)

    def to_dict(self) -> dict[str, Any]:
        """Return the layer as it appears in plan files."""
        layer = self.layer
        shape = list(layer.weight.shape)
        return {"name": layer.name, "tensor": layer.weight.name, "kind": str(layer.kind), "shape": shape}


@dataclass(frozen=True)
class Factorize:
    """The decision to replace the layers of a group, usually a single layer.

    Attributes:
        replacements: The layers of the group and their structures.
        decomposition: Registered name of the decomposition.
        ranks: Ranks of the group, as many as the decomposition has.
        dtype: Dtype of the stored factors.
        predicted_loss: Loss predicted by the objective; None if no spectra were computed.
    """

    replacements: tuple[Replacement, ...]
    decomposition: str
    ranks: tuple[int, ...]
    dtype: str
    predicted_loss: float | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, layer: Layer, decomposition: str, ranks: tuple[int, ...], structure: Structure, dtype: str
    ) -> "Factorize":
        """Return the decision to replace a single layer."""
        return cls((Replacement(layer, structure),), decomposition, ranks, dtype)

    @property
    def group(self) -> Group:
        """The layers that are replaced."""
        return Group(tuple(replacement.layer for replacement in self.replacements))

    @property
    def layer(self) -> Layer:
        """The layer, or the first one of the group."""
        return self.replacements[0].layer

    @property
    def structure(self) -> Structure:
        """The structure that replaces the layer, or the first one of the group."""
        return self.replacements[0].structure

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that are written in place of the weights of the layers."""
        return tuple(spec for replacement in self.replacements for spec in replacement.weights(self.dtype))

    @property
    def parameters_before(self) -> int:
        """Number of elements of the tensors that are replaced."""
        return sum(before.numel for before in self._replaced())

    @property
    def parameters_after(self) -> int:
        """Number of elements of the floating-point tensors that replace them."""
        others = sum(after.numel for replacement in self.replacements for _, after in replacement.others)
        return others + sum(parameters(replacement.structure) for replacement in self.replacements)

    @property
    def nbytes_saved(self) -> int:
        """Bytes of tensor data that the replacement saves."""
        others = sum(after.nbytes for replacement in self.replacements for _, after in replacement.others)
        return sum(before.nbytes for before in self._replaced()) - sum(spec.nbytes for spec in self.outputs) - others

    def _replaced(self) -> list[TensorSpec]:
        """Return the dense tensors that are replaced."""
        others = [before for replacement in self.replacements for before, _ in replacement.others]
        return [replacement.layer.weight for replacement in self.replacements] + others

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as it appears in plan files."""
        members = [replacement.to_dict() for replacement in self.replacements]
        shapes = [list(stage.shape) for replacement in self.replacements for stage in stages(replacement.structure)]
        document = members[0] | {"name": self.group.name} | ({"layers": members} if len(members) > 1 else {})
        document |= {
            "decomposition": self.decomposition,
            "ranks": list(self.ranks),
            "dtype": self.dtype,
            "stages": shapes,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
        }
        return document | ({} if self.predicted_loss is None else {"predicted_loss": self.predicted_loss})
