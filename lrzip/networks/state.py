"""State of live networks: their tensors, beside which modules may keep states of any type."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrzip.core.errors import LrzipError

Module = TypeVar("Module", bound=nn.Module)


def tensors_of(model: nn.Module, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """Return the tensors of the state_dict of a network.

    Other entries, such as the results of `get_extra_state` and the packed weights of quantized modules, are left out.

    Args:
        model: The network.
        keep_vars: Whether to return parameters themselves, as `state_dict` does.

    Raises:
        LrzipError: A parameter or buffer has no shape yet.
    """
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=keep_vars).items():
        if is_lazy(value):
            raise LrzipError(f"`{name}` has no shape before the network has run (lazy). Run it on an input first.")
        if isinstance(value, Tensor):
            found[name] = value
    return found


def load_tensors(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state_dict strictly; entries that are no tensors may be missing, and then stay as they are.

    Raises:
        RuntimeError: A tensor is missing, has another shape, or has no place.
    """
    own = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    model.load_state_dict(own | dict(state))


def copy_of(model: Module) -> Module:
    """Return a deep copy of a network.

    Tensors that a module computed from its parameters, such as the weights of `torch.nn.utils.weight_norm`, have a
    history, which copies do not share; they are computed again in the next run.
    """
    computed = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed if not value.is_leaf}
    return copy.deepcopy(model, memo)
