"""Match the names of the tensors of a file with those of a network, despite the prefixes of wrappers."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lrzip.core.errors import LrzipError
from lrzip.core.layers import TensorSpec
from lrzip.core.stored import find_structures
from lrzip.networks.architecture import Architecture

_WRAPPERS = ("module.", "_orig_mod.")
_TRAINER = "model."
# The counter of an AveragedModel, which never has a prefix.
_COUNTER = "n_averaged"


def wrapper_prefix(names: Iterable[str], *, trainer: bool) -> str:
    """Return the prefix that wrappers such as DataParallel and torch.compile add to all names, or "".

    Args:
        names: Names of tensors.
        trainer: Whether a trainer wrote the file, so that `model.` is an attribute of the trainer, not of the network.
    """
    wrappers = (*_WRAPPERS, _TRAINER) if trainer else _WRAPPERS
    rest = [name for name in names if name != _COUNTER]
    prefix = ""
    while rest:
        wrapper = next((wrapper for wrapper in wrappers if all(name.startswith(wrapper) for name in rest)), None)
        if wrapper is None:
            break
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


def match_names(path: Path, tensors: Mapping[str, TensorSpec], architecture: Architecture) -> Mapping[str, TensorSpec]:
    """Return the tensors of a file by their names in a network, without the prefixes of wrappers.

    Layers may be stored as factors. A tensor that the network shares between modules may be stored only once.

    Args:
        path: Path of the file, for messages.
        tensors: All tensors of the file by name.
        architecture: The network.

    Raises:
        LrzipError: The file does not fit the network; the message names the first difference.
    """
    prefixes = ["", *dict.fromkeys(wrapper_prefix(tensors, trainer=trainer) for trainer in (False, True))]
    prefix = max(prefixes, key=lambda prefix: sum(n.removeprefix(prefix) in architecture.shapes for n in tensors))
    counters = {_COUNTER} - architecture.shapes.keys()
    found = {name.removeprefix(prefix): spec for name, spec in tensors.items() if name not in counters}
    expected = _expected_shapes(found, architecture)
    for name in [*expected, *found]:
        spec = found.get(name)
        is_counter = name.endswith("num_batches_tracked")  # which old files lack
        is_tied = architecture.shared.get(name) in found
        if (spec.shape if spec else None) == expected.get(name) or (spec is None and (is_counter or is_tied)):
            continue
        actual = f"has shape {spec.shape}" if spec else "is missing"
        wanted = f"takes {expected[name]}" if name in expected else "has no such tensor"
        raise LrzipError(f"`{path}` does not fit the model: `{name}` {actual}, the model {wanted}.")
    return found


def _expected_shapes(found: Mapping[str, TensorSpec], architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors, with the factors of layers that are stored as such."""
    expected = dict(architecture.shapes)
    named = {name: spec.renamed(name) for name, spec in found.items()}
    for stored in find_structures(named, architecture.dense_layers):
        replaced = {stored.dense_name, stored.dense_bias_name}
        if replaced & architecture.shared.keys():
            raise LrzipError(
                f"`{stored.module}` shares its weight with another layer of the model. "
                f"Compress with `skip={stored.module}`."
            )
        expected = {name: shape for name, shape in expected.items() if name not in replaced}
        expected |= {spec.name: spec.shape for spec in (*stored.weights, stored.bias) if spec}
    return expected
