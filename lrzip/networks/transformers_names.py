"""The names by which transformers finds the tensors of its models in files, and by which it saves them.

transformers 5 renames and converts tensors by the transforms of `conversion_mapping`, transformers 4 renames them by
the patterns in `_checkpoint_conversion_mapping` of vision-language models; both add or remove the prefix of the base
model, replace old names of normalization layers, and ignore tensors that a model lacks.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lrzip.core.structure import BRANCHES
from lrzip.networks.naming import Conversion, Resolution, Tensors

# Buffers that old files hold and models compute (`PreTrainedModel._adjust_missing_and_unexpected_keys`).
_STALE = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")


def is_pretrained(model: nn.Module) -> bool:
    """Return whether a network is a model of transformers; nothing is imported to find out."""
    module = sys.modules.get("transformers.modeling_utils")
    return module is not None and isinstance(model, module.PreTrainedModel)


def naming_of(model: nn.Module) -> "TransformersNaming | None":
    """Return the naming of a model of transformers, or None for any other network."""
    return TransformersNaming(model) if is_pretrained(model) else None


@dataclass
class _Group:
    """Tensors of a file that one transform of transformers converts together.

    Attributes:
        target: Name of the first tensor that results.
        transform: The transform.
        patterns: The pattern of the transform that each tensor matches.
    """

    target: str
    transform: Any
    patterns: dict[str, str] = field(default_factory=dict)


class TransformersNaming:
    """Names of one model of transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._state: Mapping[str, Any] = model.state_dict()
        self._modules = {name for name, _ in model.named_modules()}
        self._prefix: str = model.base_model_prefix
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightConverter
        except ImportError:
            self._transforms: Sequence[Any] | None = None
        else:
            self._transforms = get_model_conversion_mapping(model)
            self._converters = [each for each in self._transforms if isinstance(each, WeightConverter)]
            self._renamings = [each for each in self._transforms if not isinstance(each, WeightConverter)]

    def module(self, name: str) -> tuple[str, bool]:
        """Return the path of a layer in the model by its name in a file, and whether its weight is converted."""
        target, transform, _ = self._renamed(f"{name}.weight")
        return target.removesuffix(".weight"), transform is not None

    def target(self, key: str) -> str:
        """Return the name in the model of a tensor of a file, or of the first one that it is converted to."""
        return self._renamed(key)[0]

    def saved_module(self, path: str) -> str:
        """Return the name by which `save_pretrained` saves a layer, given its path in the model."""
        key = f"{path}.weight"
        if self._transforms is None:
            return _saved_by_patterns(self._model, key).removesuffix(".weight")
        from transformers.conversion_mapping import PrefixChange
        from transformers.core_model_loading import WeightConverter, apply_renamings

        loaded = getattr(self._model, "_weight_conversions", None)
        used = [each for each in self._transforms if not isinstance(each, PrefixChange)] if loaded is None else loaded
        reverse = [each.reverse_transform() for each in reversed(used) if not isinstance(each, WeightConverter)]
        return str(apply_renamings(key, reverse)).removesuffix(".weight")

    def may_lack(self, name: str) -> bool:
        """Return whether files may lack a tensor of the model."""
        return _matches(self._model._keys_to_ignore_on_load_missing, name)

    def resolve(self, shapes: Mapping[str, tuple[int, ...]]) -> Resolution:
        """Return the tensors of a file in terms of the model."""
        names: dict[str, str] = {}
        groups: dict[str, _Group] = {}
        ignored: dict[str, str] = {}
        for key in self._sorted(shapes):
            target, transform, pattern = self._found(key)
            reason = None if target in self._state or self._is_stage(target) else self._ignored(target)
            if reason:
                ignored[key] = reason
            elif transform is not None and pattern is not None:
                groups.setdefault(target, _Group(target, transform)).patterns[key] = pattern
            elif target in names.values():
                ignored[key] = f"a second tensor for `{target}`"
            else:
                names[key] = target
        conversions = [self._conversion(group, shapes) for group in groups.values()]
        ordered = {key: names[key] for key in shapes if key in names}
        return Resolution(ordered, conversions, ignored)

    def _found(self, key: str) -> tuple[str, Any, str | None]:
        """Return the name of a tensor in the model, and the transform and its pattern, if it is converted.

        The factors of a layer are named after it.
        """
        found = self._renamed(key)
        if found[0] in self._state:
            return found
        for layer, stage in _stages(key):
            path, is_converted = self.module(layer)
            if f"{path}.weight" in self._state and not is_converted:
                return f"{path}.{stage}", None, None
        return found

    def _is_stage(self, target: str) -> bool:
        return any(f"{layer}.weight" in self._state for layer, _ in _stages(target))

    def _renamed(self, key: str) -> tuple[str, Any, str | None]:
        if self._transforms is None:
            return self._with_prefix(_renamed_by_patterns(self._model, key)), None, None
        from transformers.core_model_loading import rename_source_key

        prefix, state = self._prefix, dict.fromkeys(self._state, True)
        target, pattern = rename_source_key(key, self._renamings, self._converters, prefix, state)
        if target not in self._state:
            plain, _ = rename_source_key(key, [], [], prefix, state)
            if plain in self._state:
                return plain, None, None
        transform = next((each for each in self._converters if pattern in each.source_patterns), None)
        return target, transform, pattern

    def _with_prefix(self, key: str) -> str:
        candidates = (key, key.removeprefix(f"{self._prefix}."), f"{self._prefix}.{key}")
        return next((name for name in candidates if name in self._state), key)

    def _ignored(self, target: str) -> str | None:
        """Return why loading ignores a tensor that the model lacks; None if the model should have it."""
        buffers = tuple(name for name, _ in self._model.named_buffers())
        stale = [pattern for pattern in _STALE if any(re.search(pattern, name) for name in buffers)]
        if target in buffers or _matches([*stale, *(self._model._keys_to_ignore_on_load_unexpected or ())], target):
            return "a buffer that the model computes itself, or does not use"
        *path, _ = target.split(".")
        missing = next((i for i in range(len(path)) if ".".join(path[: i + 1]) not in self._modules), None)
        if missing is None or path[missing].isdecimal():
            return None  # one of its modules lacks a tensor, or it has fewer layers
        return f"of a module that {type(self._model).__name__} does not have, so that transformers ignores it"

    def _conversion(self, group: _Group, shapes: Mapping[str, tuple[int, ...]]) -> Conversion:
        meta = {key: torch.empty(shapes[key], device="meta") for key in group.patterns}
        results = self._convert(group, meta)
        try:
            is_reversible = {key: t.shape for key, t in self._revert(group, results).items()} == {
                key: t.shape for key, t in meta.items()
            }
        except Exception:  # not every transform has a reverse, and each fails in its own way
            is_reversible = False
        return Conversion(
            tuple(group.patterns),
            {name: tuple(tensor.shape) for name, tensor in results.items()},
            lambda tensors: self._convert(group, tensors),
            (lambda tensors: self._revert(group, tensors)) if is_reversible else None,
        )

    def _convert(self, group: _Group, tensors: Tensors) -> Tensors:
        transform = deepcopy(group.transform)
        for key, pattern in group.patterns.items():
            transform.add_tensor(group.target, key, pattern, tensors[key])
        return self._realized(transform, group.target)

    def _revert(self, group: _Group, tensors: Tensors) -> Tensors:
        from transformers.core_model_loading import apply_converters, apply_renamings

        reverse = group.transform.reverse_transform()
        transforms: dict[str, Any] = {}
        for name in self._sorted(tensors):
            target, pattern = apply_converters(name, [reverse])
            transform = transforms.setdefault(target, deepcopy(reverse))
            transform.add_tensor(target, name, pattern, tensors[name])
        keys = {self._without_prefix(apply_renamings(key, self._renamings)): key for key in group.patterns}
        results = [item for target, each in transforms.items() for item in self._realized(each, target).items()]
        return {keys[self._without_prefix(name)]: tensor for name, tensor in results}

    def _realized(self, transform: Any, target: str) -> Tensors:
        found = transform.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def _sorted(self, keys: Iterable[str]) -> Sequence[str]:
        """Return names in the order in which transformers converts their tensors, such as experts by number."""
        if self._transforms is None:
            return list(keys)
        from transformers.core_model_loading import dot_natural_key

        return sorted(keys, key=dot_natural_key)

    def _without_prefix(self, name: str) -> str:
        return name.removeprefix(f"{self._prefix}.")


def _stages(key: str) -> Iterator[tuple[str, str]]:
    """Yield the layers that a tensor may be a factor of, innermost first, with its name below each."""
    parts = key.split(".")
    for index in range(len(parts) - 2, 0, -1):
        if parts[index].isdecimal() or parts[index] == BRANCHES:
            yield ".".join(parts[:index]), ".".join(parts[index:])


def _renamed_by_patterns(model: Any, key: str) -> str:
    """Return the name of a tensor by the rules of transformers 4, except for the prefix of the base model."""
    name, _ = model._fix_state_dict_key_on_load(key)
    for pattern, replacement in _patterns(model).items():
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return str(name)


def _saved_by_patterns(model: Any, key: str) -> str:
    """Return the name by which transformers 4 saves a tensor."""
    for replacement, pattern in _patterns(model).items():
        key, count = re.subn(pattern, re.sub(r"\(.*\)", "", replacement.lstrip("^")), key)
        if count:
            break
    return key


def _patterns(model: Any) -> Mapping[str, str]:
    """Return the patterns by which transformers 4 renames the tensors of vision-language models."""
    models = getattr(sys.modules["transformers.modeling_utils"], "VLMS", ())
    names = [each.__name__.lower() for each in type(model).__mro__[:-1]]
    is_renamed = any(model_name in name for model_name in models for name in names)
    return getattr(model, "_checkpoint_conversion_mapping", {}) if is_renamed else {}


def _matches(patterns: Any, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())
