"""Names of layers in a folder, and their paths in a model of transformers."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lrzip.core.errors import LrzipError
from lrzip.networks.architecture import module_info
from lrzip.networks.transformers_names import TransformersNaming

WHERE = "`quantization_config` in config.json"


def paths_of(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the paths of factorized layers in a model, by their names in the folder.

    A model may lack layers; transformers reports their tensors as unused.

    Raises:
        LrzipError: No layer is found at all.
    """
    naming = TransformersNaming(model)
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    lost: list[str] = []
    for name in names:
        path, is_joined = naming.module(name)
        if is_joined:
            raise LrzipError(
                f"transformers merges `{name}.weight` with other weights, which is impossible with factors. "
                f"Compress again with `skip={name}`."
            )
        if path in modules:
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
    naming = TransformersNaming(model)
    provided = {naming.target(name) for name in stored}
    tied = tuple(getattr(model, "_tied_weights_keys", None) or ())
    layers = (path for path, module in model.named_modules() if module_info(module).kind)
    names = [f"{path}.weight" for path in layers]
    return [n for n in names if n not in provided and not any(re.search(pattern, n) for pattern in tied)]
