"""Names of layers in a folder, and their paths in a model of transformers."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lrzip.core.errors import LrzipError
from lrzip.networks.architecture import module_info

WHERE = "`quantization_config` in config.json"


def paths_of(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the paths of factorized layers in a model, by their names in the folder.

    A model may lack layers; transformers reports their tensors as unused.

    Raises:
        LrzipError: No layer is found at all.
    """
    rename = _renamer(model)
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    lost: list[str] = []
    for name in names:
        path, is_joined = rename(f"{name}.weight")
        if is_joined:
            raise LrzipError(
                f"transformers merges `{name}.weight` with other weights, which is impossible with factors. "
                f"Compress again with `skip={name}`."
            )
        if (path := path.removesuffix(".weight")) in modules:
            found[name] = path
        else:
            lost.append(name)
    if lost and not found:
        raise LrzipError(
            f"{WHERE} names `{lost[0]}`, which {type(model).__name__} does not have. "
            f"Compress again with `skip={lost[0]}`."
        )
    return found


def missing_weights(model: Any, stored: Iterable[str]) -> Sequence[str]:
    """Return the names of the weights of layers in a model that no stored tensor provides, directly or tied."""
    rename = _renamer(model)
    provided = {rename(name)[0] for name in stored}
    tied = tuple(getattr(model, "_tied_weights_keys", None) or ())
    layers = (path for path, module in model.named_modules() if module_info(module).kind)
    names = [f"{path}.weight" for path in layers]
    return [n for n in names if n not in provided and not any(re.search(pattern, n) for pattern in tied)]


def saved_name(name: str, path: str) -> str:
    """Return the name that `save_pretrained` uses for a layer, which may have the prefix of the base model."""
    return path if f".{path}".endswith(f".{name}") or f".{name}".endswith(f".{path}") else name


def _renamer(model: Any) -> Callable[[str], tuple[str, bool]]:
    """Return a function that translates the key of a folder to that of the model, as transformers does.

    Its second result is whether transformers merges the tensor with others.
    """
    state: Mapping[str, object] = model.state_dict()
    prefix: str = model.base_model_prefix
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # before transformers 5, names differ only by the prefix of the base model

        def by_prefix(key: str) -> tuple[str, bool]:
            candidates = (key, key.removeprefix(f"{prefix}."), f"{prefix}.{key}")
            return next((name for name in candidates if name in state), key), False

        return by_prefix
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]

    def rename(key: str) -> tuple[str, bool]:
        renamed, joined = rename_source_key(key, renamings, converters, prefix, state)
        if renamed not in state:
            renamed, joined = rename_source_key(key, [], [], prefix, state)
        return str(renamed), joined is not None

    return rename
