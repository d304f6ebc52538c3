"""Load a compressed checkpoint into the network that it was made from."""

from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from lrzip.core.options import Key
from lrzip.core.stored import find_structures
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint, Stateful
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import match, wrapper_prefix
from lrzip.networks.state import load_tensors, tensors_of
from lrzip.networks.surgery import leave_fast_paths, replacement

Module = TypeVar("Module", bound=nn.Module)


def load_into(model: Module, path: str | Path, *, key: Key = None, trust: bool = False) -> Module:
    """Load a compressed checkpoint into the dense network that it was made from, in place.

    Each layer that is stored as factors is replaced by a module of these factors, usually an `nn.Sequential`, with the
    stride, padding, dilation, device and dtype of the layer. Then the state_dict is loaded with `strict=True`. A dense
    checkpoint is loaded unchanged.

    Args:
        model: Instance of the original class; its weights are overwritten.
        path: Output of `lrzip compress`, in any format.
        key: Dotted name of the entry that holds the weights in a nested file.
        trust: Whether reading may execute code from the file.

    Returns:
        The same model.

    Raises:
        LrzipError: The file does not fit the model; the model is unchanged.
    """
    with open_checkpoint(Path(path), key=key, trust=trust) as checkpoint:
        architecture = Architecture.of(model)
        matched = match(checkpoint.path, checkpoint.tensors(), architecture)
        named = {name: spec.renamed(name) for name, spec in matched.specs.items()}
        stored = find_structures(named, architecture.dense_layers)
        replacements = dict(replacement(each, model) for each in stored)
        state = matched.state(checkpoint.read)
        tied = {name: other for name, other in architecture.shared.items() if name not in state and other in state}
        state |= {name: state[other] for name, other in tied.items()}
        state = {name: tensor for name, tensor in tensors_of(model).items() if architecture.may_lack(name)} | state
        extra = _other_states(checkpoint, model)
    for name, module in replacements.items():
        model.set_submodule(name, module)
    leave_fast_paths(model)
    load_tensors(model, state | extra)
    return model


def _other_states(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Any]:
    """Return the states in a file that are no tensors, such as those of `get_extra_state`, and that the network has."""
    if not isinstance(checkpoint, Stateful):
        return {}
    prefixes = {wrapper_prefix(checkpoint.tensors(), trainer=trainer) for trainer in (False, True)}
    own = model.state_dict()
    named = {name.removeprefix(prefix): value for prefix in prefixes for name, value in checkpoint.states().items()}
    return {name: value for name, value in named.items() if name in own and not isinstance(own[name], Tensor)}
