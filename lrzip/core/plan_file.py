"""Plan files: JSON documents that users read, edit and pass back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrzip.core.documents import Place, Record, each, one_of, read_json, record, text, whole
from lrzip.core.errors import PlanMismatch, as_line
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
    place = Place(f"`{path}`", "Write a plan with `save_plan=FILE`.", PlanMismatch)
    document = read_json(path, place)
    if type(document.fields.get("schema")) is not int or document.fields["schema"] != SCHEMA:
        raise place.fault(f"is not a plan of schema {SCHEMA}")
    choices: dict[str, PlanEntry] = {}
    for item in document.read("layers", each(record)):
        choice = _read_choice(item)
        for tensor in choice.shapes:
            if tensor in choices:
                raise item.place.fault(f"names `{as_line(tensor)}` a second time")
            choices[tensor] = choice
    kept = document.find("kept", each(record)) or ()
    source = document.find("source", record)
    return PlanFile(
        choices,
        [name for item in kept if (name := item.find("tensor", text)) is not None],
        source.find("fingerprint", text) if source else None,
    )


def _read_choice(item: Record) -> PlanEntry:
    """Read an entry, which lists the layers of a group if it replaces several."""
    members = item.find("layers", each(record, least=1)) or (item,)
    shapes = {member.read("tensor", text): member.read("shape", each(whole())) for member in members}
    return PlanEntry(
        decomposition=item.read("decomposition", text),
        ranks=item.read("ranks", each(whole(1), least=1)),
        dtype=item.read("dtype", one_of(sorted(FACTORIZABLE_DTYPES))),
        shapes=shapes,
    )
