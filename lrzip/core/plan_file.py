"""Plan files: JSON documents that users read, edit and pass back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrzip.core.errors import PlanMismatch
from lrzip.core.layers import FACTORIZABLE_DTYPES, TensorSpec
from lrzip.core.plan import SCHEMA, fingerprint


@dataclass(frozen=True)
class PlanEntry:
    """One decision in a plan file.

    Attributes:
        decomposition: Registered name of the decomposition.
        ranks: Ranks of the layer or group.
        dtype: Dtype of the factors.
        shapes: Shapes of the weights that are replaced, by tensor name: one for a layer, several for a group.
    """

    decomposition: str
    ranks: tuple[int, ...]
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PlanFile:
    """The parts of a plan file that determine the output; all others are informative.

    Attributes:
        choices: Decisions by the name of each weight that they replace. Layers that are not listed are left unchanged.
        kept: Names of the tensors that the file lists as kept.
        fingerprint: Fingerprint of the checkpoint that the plan was made for, if the file has one.
    """

    choices: Mapping[str, PlanEntry]
    kept: Sequence[str]
    fingerprint: str | None

    def mismatch(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        """Return the first difference of a checkpoint from the one that the plan was made for, or None."""
        for name, choice in self.choices.items():
            if name not in tensors:
                return f"it has no `{name}`"
            if tensors[name].shape != choice.shapes[name]:
                return f"`{name}` is {choice.shapes[name]} in the plan and {tensors[name].shape} in the checkpoint"
        if self.fingerprint in (None, fingerprint(tensors)):
            return None
        missing = next((name for name in self.kept if name not in tensors), None)
        return f"it has no `{missing}`" if missing else "the shapes or dtypes of tensors that the plan keeps differ"


def read_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        PlanMismatch: The file cannot be read or is not a plan.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanMismatch(f"`{path}` is not a readable plan: {error}. Write one with `save_plan=FILE`.") from error
    if (
        not isinstance(document, dict)
        or document.get("schema") != SCHEMA
        or not isinstance(document.get("layers"), list)
    ):
        raise PlanMismatch(f"`{path}` is not a plan of schema {SCHEMA}. Write one with `save_plan=FILE`.")
    choices: dict[str, PlanEntry] = {}
    for index, item in enumerate(document["layers"]):
        choice = _read_choice(item, f"`{path}`: layers[{index}]")
        for tensor in choice.shapes:
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


def _read_choice(item: object, where: str) -> PlanEntry:
    fields = _checked(item, where, {"decomposition": str, "ranks": list, "dtype": str, "tensor": str, "shape": list})
    _check_numbers(fields["ranks"], f"{where}: `ranks`")
    if fields["dtype"] not in FACTORIZABLE_DTYPES:
        known = ", ".join(sorted(FACTORIZABLE_DTYPES))
        raise PlanMismatch(f"{where}: dtype `{fields['dtype']}` is not one of {known}.")
    members = fields.get("layers", [fields])
    if not isinstance(members, list) or not members:
        raise PlanMismatch(f"{where} has no usable `layers`, got {members!r}.")
    shapes: dict[str, tuple[int, ...]] = {}
    for member in members:
        layer = _checked(member, where, {"tensor": str, "shape": list})
        _check_numbers(layer["shape"], f"{where}: `shape`")
        shapes[layer["tensor"]] = tuple(layer["shape"])
    return PlanEntry(fields["decomposition"], tuple(fields["ranks"]), fields["dtype"], shapes)


def _checked(item: object, where: str, types: Mapping[str, type]) -> dict[str, Any]:
    """Return an object of a plan file after checking the types of its fields."""
    if not isinstance(item, dict):
        raise PlanMismatch(f"{where} is not an object.")
    for key, type_ in types.items():
        if not isinstance(item.get(key), type_):
            raise PlanMismatch(f"{where} has no usable `{key}`, got {item.get(key)!r}.")
    return item


def _check_numbers(numbers: Sequence[object], what: str) -> None:
    if not all(type(number) is int for number in numbers):
        raise PlanMismatch(f"{what} takes whole numbers, got {numbers}.")
