"""The plan: which layers are factorized how, which are left unchanged and why, and exactly what will be written."""

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from lrzip.core.kinds import Kind
from lrzip.core.layers import FACTORIZABLE_DTYPES, Group, Keep, Layer, TensorSpec
from lrzip.core.stored import Stored
from lrzip.core.structure import (
    Leaf,
    Select,
    Stage,
    Structure,
    bias_name,
    join,
    leaves,
    parameters,
    stages,
    tensor_names,
)

SCHEMA = 1


@dataclass(frozen=True)
class Replacement:
    """One layer of a decision, and what replaces it.

    Attributes:
        layer: The layer.
        structure: What replaces it, from the decomposition's blueprint; a single stage is the layer in another size.
        others: Other tensors of the group, such as a bias, that get another shape under their own names, each as it
            is and as it will be.
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
        """Return the layer as plan files have it."""
        layer = self.layer
        shape = list(layer.weight.shape)
        return {"name": layer.name, "tensor": layer.weight.name, "kind": str(layer.kind), "shape": shape}


@dataclass(frozen=True)
class Factorize:
    """The decision to replace the layers of a group, usually a single layer.

    Attributes:
        replacements: The layers, each with what replaces it.
        decomposition: Registered name of the decomposition.
        ranks: One list of ranks for the group, as many as the decomposition has.
        dtype: Dtype of the stored factors.
        predicted_loss: Loss that the objective predicts, where spectra were computed.
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
        """What replaces the layer, or the first one of the group."""
        return self.replacements[0].structure

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that are written in place of the weights of the layers."""
        return tuple(spec for replacement in self.replacements for spec in replacement.weights(self.dtype))

    def stored(self, module: str) -> Stored:
        """Return the structure of the (first) layer as it is stored under the path of a module."""
        return self.replacements[0].stored(module, self.dtype)

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
        """Return the tensors that others take the places of."""
        others = [before for replacement in self.replacements for before, _ in replacement.others]
        return [replacement.layer.weight for replacement in self.replacements] + others

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plan files have it."""
        members = [replacement.to_dict() for replacement in self.replacements]
        predicted = {} if self.predicted_loss is None else {"predicted_loss": self.predicted_loss}
        structures = [replacement.structure for replacement in self.replacements]
        return (
            members[0]
            | {"name": self.group.name}
            | ({"layers": members} if len(members) > 1 else {})
            | {
                "decomposition": self.decomposition,
                "ranks": list(self.ranks),
                "dtype": self.dtype,
                "stages": [list(stage.shape) for structure in structures for stage in stages(structure)],
                "parameters_before": self.parameters_before,
                "parameters_after": self.parameters_after,
            }
            | predicted
        )


@dataclass(frozen=True)
class BudgetUse:
    """How a budget was used.

    Attributes:
        unit: `params`, `nbytes`, `macs` or `latency`, in nanoseconds.
        whole: Amount of the dense checkpoint.
        limit: The budget.
        used: Amount of the compressed checkpoint, including all that is left unchanged.
        objective: Name of the objective that was minimized.
        predicted_loss: Its value over the layers that the budget covers.
        bound: Lower bound on that value for every plan within the budget.
    """

    unit: str
    whole: int
    limit: int
    used: int
    objective: str
    predicted_loss: float
    bound: float

    def to_dict(self) -> dict[str, Any]:
        """Return the budget as plan files and JSON documents have it."""
        return {
            "unit": self.unit,
            "whole": self.whole,
            "limit": self.limit,
            "used": self.used,
            "unused": self.limit - self.used,
            "objective": self.objective,
            "predicted_loss": self.predicted_loss,
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Entry:
    """One tensor of an output file.

    Attributes:
        spec: The tensor that is written.
        origin: Name of the tensor of the source in whose place it stands.
        copied: Whether its bytes are those of `origin`; otherwise they are computed.
        kind: Kind of the layer that the tensor is a weight of a structure for.
        structure: The structure, if its tensors are computed; None for a layer that only gets another size.
    """

    spec: TensorSpec
    origin: str
    copied: bool
    kind: Kind | None = None
    structure: Structure | None = None


@dataclass(frozen=True)
class Plan:
    """Decisions on all layers of one checkpoint, in file order; holds no data.

    Attributes:
        factorize: Layers to be replaced.
        keep: All other tensors, each with the reason.
        source: Path of the checkpoint, for messages.
        fingerprint: Digest of the names, shapes and dtypes of the checkpoint's tensors.
        budget: How the budget was used, if there is one.
    """

    factorize: tuple[Factorize, ...]
    keep: tuple[Keep, ...]
    source: str
    fingerprint: str
    budget: BudgetUse | None = field(default=None, compare=False)

    @property
    def parameters_saved(self) -> int:
        """Number of elements that all replacements together save."""
        return sum(decision.parameters_before - decision.parameters_after for decision in self.factorize)

    @property
    def nbytes_saved(self) -> int:
        """Bytes of tensor data that all replacements together save."""
        return sum(decision.nbytes_saved for decision in self.factorize)

    def layout(self, tensors: Mapping[str, TensorSpec], changed: Container[str] = ()) -> tuple[Entry, ...]:
        """Return every tensor of the output, in the order of the source.

        The tensors of a structure stand in the place of the weight, and the bias is renamed to that of its last stage.

        Args:
            tensors: Tensors of the source.
            changed: Names of other tensors that get new values.
        """
        replaced = {
            replacement.layer.weight.name: (replacement, decision.dtype)
            for decision in self.factorize
            for replacement in decision.replacements
        }
        biases = {
            replacement.layer.bias.name: replacement.layer.key(bias_name(replacement.structure))
            for replacement, _ in replaced.values()
            if replacement.layer.bias and not isinstance(replacement.structure, Stage)
        }
        resized = {before.name: after for replacement, _ in replaced.values() for before, after in replacement.others}
        entries: list[Entry] = []
        for name, spec in tensors.items():
            if name in replaced:
                replacement, dtype = replaced[name]
                kind, structure = replacement.layer.kind, replacement.structure
                parts = None if isinstance(structure, Stage) else structure
                entries += [Entry(output, name, False, kind, parts) for output in replacement.weights(dtype)]
            elif name in resized:
                entries.append(Entry(resized[name], name, copied=False))
            else:
                entries.append(Entry(spec.renamed(biases.get(name, name)), name, copied=name not in changed))
        return tuple(entries)

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--save-plan` writes."""
        return {
            "schema": SCHEMA,
            "source": {"path": self.source, "fingerprint": self.fingerprint},
            "layers": [decision.to_dict() for decision in self.factorize],
            "kept": [{"name": keep.name, "tensor": keep.tensor.name, "reason": keep.reason} for keep in self.keep],
        } | ({"budget": self.budget.to_dict()} if self.budget else {})


def fingerprint(tensors: Mapping[str, TensorSpec]) -> str:
    """Return a digest of the names, shapes and dtypes of tensors, the same for every training run of a network."""
    listing = sorted((spec.name, spec.shape, spec.dtype) for spec in tensors.values())
    return f"sha256:{hashlib.sha256(json.dumps(listing).encode()).hexdigest()}"
