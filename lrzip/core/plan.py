"""The plan: which layer is factorized how, which stays whole and why, and exactly what will be written."""

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lrzip.core.errors import PlanMismatch
from lrzip.core.kinds import Kind
from lrzip.core.layers import FACTORIZABLE_DTYPES, Keep, Layer, TensorSpec
from lrzip.core.stored import Stored
from lrzip.core.structure import Leaf, Select, Structure, bias_name, join, leaves, parameters, stages

SCHEMA = 1


@dataclass(frozen=True)
class Factorize:
    """The decision to replace a layer.

    Attributes:
        layer: The layer.
        decomposition: Its registered name.
        ranks: One rank, or as many as the decomposition has.
        structure: What replaces the layer, from the decomposition's blueprint.
        dtype: Of the stored factors.
        predicted_loss: By the objective, where singular values were looked at.
    """

    layer: Layer
    decomposition: str
    ranks: tuple[int, ...]
    structure: Structure
    dtype: str
    predicted_loss: float | None = field(default=None, compare=False)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The weights that are written in place of the layer's."""
        return tuple(self._output(path, leaf) for path, leaf in leaves(self.structure))

    def _output(self, path: str, leaf: Leaf) -> TensorSpec:
        if isinstance(leaf, Select):
            return TensorSpec(self.layer.key(join(path, "index")), (leaf.count,), "int64", 8 * leaf.count)
        nbytes = FACTORIZABLE_DTYPES[self.dtype] * prod(leaf.shape)
        return TensorSpec(self.layer.key(join(path, "weight")), leaf.shape, self.dtype, nbytes)

    def stored(self, module: str) -> Stored:
        """Return the structure as it is stored under the path of a module."""
        names = (spec.name.removeprefix(self.layer.module).removeprefix(".") for spec in self.outputs)
        specs = tuple(spec.renamed(join(module, name)) for spec, name in zip(self.outputs, names, strict=True))
        return Stored(module, self.structure, specs, self.layer.bias, self.layer.stage)

    @property
    def parameters_before(self) -> int:
        """Elements of the layer's weight; the bias is the same before and after."""
        return self.layer.weight.numel

    @property
    def parameters_after(self) -> int:
        """Elements of the weights of the chain."""
        return parameters(self.structure)

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as the plan file has it."""
        predicted = {} if self.predicted_loss is None else {"predicted_loss": self.predicted_loss}
        return {
            "name": self.layer.name,
            "tensor": self.layer.weight.name,
            "kind": str(self.layer.kind),
            "shape": list(self.layer.weight.shape),
            "decomposition": self.decomposition,
            "ranks": list(self.ranks),
            "dtype": self.dtype,
            "stages": [list(stage.shape) for stage in stages(self.structure)],
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
        } | predicted


@dataclass(frozen=True)
class BudgetUse:
    """What became of a budget.

    Attributes:
        unit: `params`, `nbytes`, `macs` or `latency`, in nanoseconds.
        whole: Of the checkpoint as it is.
        limit: The budget.
        used: What the plan comes to, with all that stays whole.
        objective: What was made small.
        predicted_loss: What that comes to, over the layers that the budget is for.
        bound: No plan within the budget has less.
    """

    unit: str
    whole: int
    limit: int
    used: int
    objective: str
    predicted_loss: float
    bound: float

    def to_dict(self) -> dict[str, Any]:
        """Return the budget as plan files and `--json` have it."""
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
        spec: What is written.
        origin: The tensor of the source in whose place it stands.
        copied: Whether its bytes are those of `origin`; else they are computed.
        kind: Kind of the layer that the tensor is a weight of a structure for.
        structure: The structure, if its tensors are computed.
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
        keep: All other tensors, each with its reason.
        source: Path of the checkpoint, for people.
        fingerprint: Of the names, shapes and dtypes of the checkpoint's tensors.
        budget: What became of it, if one decided.
    """

    factorize: tuple[Factorize, ...]
    keep: tuple[Keep, ...]
    source: str
    fingerprint: str
    budget: BudgetUse | None = field(default=None, compare=False)

    @property
    def parameters_saved(self) -> int:
        """Elements that all replacements together do away with."""
        return sum(decision.parameters_before - decision.parameters_after for decision in self.factorize)

    @property
    def nbytes_saved(self) -> int:
        """Bytes of tensor data that all replacements together do away with."""
        after = sum(spec.nbytes for decision in self.factorize for spec in decision.outputs)
        return sum(decision.layer.weight.nbytes for decision in self.factorize) - after

    def layout(self, tensors: Mapping[str, TensorSpec], changed: Container[str] = ()) -> tuple[Entry, ...]:
        """Return every tensor of the output: chains in the places of weights, biases renamed to the last stage.

        Args:
            tensors: Of the source.
            changed: Names of those, beside the weights of chains, that will have other values.
        """
        weights = {decision.layer.weight.name: decision for decision in self.factorize}
        biases = {
            decision.layer.bias.name: decision.layer.key(bias_name(decision.structure))
            for decision in self.factorize
            if decision.layer.bias
        }
        entries: list[Entry] = []
        for name, spec in tensors.items():
            if name in weights:
                decision = weights[name]
                kind, structure = decision.layer.kind, decision.structure
                entries += [Entry(output, name, False, kind, structure) for output in decision.outputs]
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


@dataclass(frozen=True)
class PlanEntry:
    """What a plan file says of one layer."""

    decomposition: str
    ranks: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PlanFile:
    """What counts in a plan file; the rest of it is for people.

    Attributes:
        choices: By tensor name. A layer that is taken out of the file's list stays whole.
        kept: Names of the tensors that the file lists as kept.
        fingerprint: Of the checkpoint it was made for, if it says.
    """

    choices: Mapping[str, PlanEntry]
    kept: Sequence[str]
    fingerprint: str | None

    def mismatch(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        """Return the first thing in which the checkpoint is not the one the plan was made for."""
        for name, choice in self.choices.items():
            if name not in tensors:
                return f"it has no `{name}`"
            if tensors[name].shape != choice.shape:
                return f"`{name}` is {choice.shape} in the plan and {tensors[name].shape} in the checkpoint"
        if self.fingerprint in (None, fingerprint(tensors)):
            return None
        missing = next((name for name in self.kept if name not in tensors), None)
        return f"it has no `{missing}`" if missing else "the shapes or dtypes of tensors that the plan keeps differ"


def read_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        PlanMismatch: It cannot be read, or is not a plan.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanMismatch(f"`{path}` is not a readable plan: {error}. Write one with `--save-plan`.") from error
    if (
        not isinstance(document, dict)
        or document.get("schema") != SCHEMA
        or not isinstance(document.get("layers"), list)
    ):
        raise PlanMismatch(f"`{path}` is not a plan of schema {SCHEMA}. Write one with `--save-plan`.")
    choices: dict[str, PlanEntry] = {}
    for index, item in enumerate(document["layers"]):
        tensor, choice = _read_choice(item, f"`{path}`: layers[{index}]")
        if tensor in choices:
            raise PlanMismatch(f"`{path}` names `{tensor}` twice. Keep one of them.")
        choices[tensor] = choice
    kept = document.get("kept")
    names = [item.get("tensor") for item in kept if isinstance(item, dict)] if isinstance(kept, list) else []
    source = document.get("source")
    return PlanFile(
        choices,
        [name for name in names if isinstance(name, str)],
        source.get("fingerprint") if isinstance(source, dict) else None,
    )


def _read_choice(item: object, where: str) -> tuple[str, PlanEntry]:
    if not isinstance(item, dict):
        raise PlanMismatch(f"{where} is not an object.")
    for key, kind in (("tensor", str), ("decomposition", str), ("ranks", list), ("dtype", str), ("shape", list)):
        if not isinstance(item.get(key), kind):
            raise PlanMismatch(f"{where} has no usable `{key}`, got {item.get(key)!r}.")
    for key in ("ranks", "shape"):
        if not all(type(number) is int for number in item[key]):
            raise PlanMismatch(f"{where}: `{key}` takes whole numbers, got {item[key]}.")
    if item["dtype"] not in FACTORIZABLE_DTYPES:
        raise PlanMismatch(f"{where}: dtype `{item['dtype']}` is not one of {', '.join(sorted(FACTORIZABLE_DTYPES))}.")
    choice = PlanEntry(item["decomposition"], tuple(item["ranks"]), item["dtype"], tuple(item["shape"]))
    return item["tensor"], choice
