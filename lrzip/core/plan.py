"""The plan: which layers are factorized and how, and which tensors are left unchanged and why."""

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from lrzip.core.budget_use import BudgetUse
from lrzip.core.decisions import Factorize
from lrzip.core.layers import Keep, TensorSpec
from lrzip.core.layout import Entry, lay_out

SCHEMA = 1
"""Version of plan files and JSON documents."""


@dataclass(frozen=True)
class Plan:
    """Decisions on all tensors of a checkpoint, in file order; holds no data.

    Attributes:
        factorize: Decisions to replace layers.
        keep: All other tensors, each with the reason why it is left unchanged.
        source: Path of the checkpoint, for messages.
        fingerprint: Digest of the names, shapes and dtypes of the checkpoint's tensors.
        budget: Use of the budget, if there is one.
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
        """Return every tensor of the output, in the order of the source; see `lrzip.core.layout.lay_out`."""
        return lay_out(self.factorize, tensors, changed)

    def to_dict(self) -> dict[str, Any]:
        """Return the document of a plan file."""
        return {
            "schema": SCHEMA,
            "source": {"path": self.source, "fingerprint": self.fingerprint},
            "layers": [decision.to_dict() for decision in self.factorize],
            "kept": [{"name": keep.name, "tensor": keep.tensor.name, "reason": keep.reason} for keep in self.keep],
        } | ({"budget": self.budget.to_dict()} if self.budget else {})


def fingerprint(tensors: Mapping[str, TensorSpec]) -> str:
    """Return a digest of the names, shapes and dtypes of tensors, which does not depend on their order or values."""
    listing = sorted((spec.name, spec.shape, spec.dtype) for spec in tensors.values())
    return f"sha256:{hashlib.sha256(json.dumps(listing).encode()).hexdigest()}"
