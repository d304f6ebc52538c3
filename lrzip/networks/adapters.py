"""Recognize the tensors of adapters by their names: LoRA as PEFT, kohya, loralib and diffusers name it, and others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from lrzip.core.layers import FACTORIZABLE_DTYPES, TensorSpec

# Names of the factor B by that of the factor A, in the product B A.
_SECOND = {
    "lora_A": "lora_B",
    "lora_embedding_A": "lora_embedding_B",
    "lora_down": "lora_up",
    "lora.down": "lora.up",
    "lora_linear_layer.down": "lora_linear_layer.up",
}
_FACTOR = re.compile(
    r"(?P<module>(?:.*?[._])?)"
    rf"(?P<role>{'|'.join(re.escape(name) for pair in _SECOND.items() for name in pair)}|lora_mid)"
    r"(?P<rest>(?:\.[^.]+)?(?:\.weight)?)"
)
_OTHERS = re.compile(
    r"(?:^|[._])(lora_magnitude_vector|dora_scale|ia3_l|lora_E|hada_\w+|lokr_\w+|oft_\w+|boft_\w+|vera_\w+)(?:\.|$)"
)
_NAMES = {"lora_magnitude_vector": "the magnitudes of DoRA", "dora_scale": "the magnitudes of DoRA"}


@dataclass(frozen=True)
class StoredPair:
    """The factors of one adapted layer.

    Attributes:
        module: Path of the adapted layer in the names of the file.
        first: A (rank, inputs, *kernel), which is applied first.
        second: B (outputs, rank), with as many axes as `first`.
        alpha: Scalar that determines the scale of the product, if it is stored beside them.
    """

    module: str
    first: TensorSpec
    second: TensorSpec
    alpha: TensorSpec | None

    @property
    def rank(self) -> int:
        """Rank of the factors."""
        return self.first.shape[0]


def adapter_reason(name: str) -> str | None:
    """Return why a tensor is not the weight of a layer, if its name is that of a part of an adapter, or None."""
    other = _OTHERS.search(name)
    if other:
        return _NAMES.get(other[1], f"a part of an adapter (`{other[1]}`)")
    return "a factor of a LoRA adapter" if _FACTOR.fullmatch(name) else None


def find_pairs(tensors: Mapping[str, TensorSpec]) -> tuple[Mapping[str, StoredPair], Mapping[str, str]]:
    """Return the pairs of factors among tensors whose product can get another rank.

    Returns:
        The pairs, by the name of their factor A, and the reasons why other factors are no such pairs, by name.
    """
    pairs: dict[str, StoredPair] = {}
    reasons: dict[str, str] = {}
    third = {found["module"] for name in tensors if (found := _FACTOR.fullmatch(name)) and found["role"] == "lora_mid"}
    third |= {name[: found.start() + 1] for name in tensors if (found := re.search(r"[._]lora_E(\.|$)", name))}
    for name, first in tensors.items():
        found = _FACTOR.fullmatch(name)
        if not found or found["role"] not in _SECOND:
            continue
        partner = tensors.get(f"{found['module']}{_SECOND[found['role']]}{found['rest']}")
        reason = "has a third factor" if found["module"] in third else _misfit(first, partner)
        module = found["module"][:-1]
        if partner is None or reason:
            reasons |= dict.fromkeys([name, *([partner.name] if partner else [])], f"a LoRA pair that {reason}")
        else:
            pairs[name] = StoredPair(module, first, partner, tensors.get(f"{module}.alpha"))
    return pairs, reasons


def holds_base(pairs: Iterable[StoredPair], tensors: Mapping[str, TensorSpec]) -> bool:
    """Return whether tensors include the weights of layers that pairs adapt, as those of a whole network do."""
    return any(f"{pair.module}.{leaf}" in tensors for pair in pairs for leaf in ("weight", "base_layer.weight"))


def _misfit(first: TensorSpec, second: TensorSpec | None) -> str | None:
    """Return why two tensors are not factors of a product (outputs, inputs · kernel), or None."""
    if second is None:
        return "lacks its other factor"
    axes = len(first.shape)
    if axes < 2 or len(second.shape) != axes or second.shape[1] != first.shape[0] or prod(second.shape[2:]) != 1:
        return f"does not fit together, {first.shape} and {second.shape}"
    if first.dtype != second.dtype or first.dtype not in FACTORIZABLE_DTYPES or not first.numel * second.numel:
        return f"is {first.dtype} and {second.dtype}, {first.shape} and {second.shape}"
    return None
