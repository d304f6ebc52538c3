"""Freeze the parameters of some modules, so that training leaves them unchanged."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrzip.core.errors import UnknownName, UsageError
from lrzip.core.globs import matches


def freeze(network: nn.Module, *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> None:
    """Freeze the parameters of the modules that are not selected, in place.

    A pattern that matches a module selects all of its parameters, those of its submodules included.

    Args:
        network: The network.
        only: Patterns of the modules to train; all if it is empty.
        skip: Patterns of the modules to freeze.

    Raises:
        UnknownName: A pattern matches no module with parameters.
        UsageError: Nothing is left to train.
    """
    paths = {name: _ancestors(name) for name, _ in network.named_parameters(remove_duplicate=False)}
    for option, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns:
            if not any(matches(path, pattern) for path_list in paths.values() for path in path_list):
                raise UnknownName(f"`{option}={pattern}` matches no module with parameters.")
    frozen = {name for name, modules in paths.items() if not _is_selected(modules, only, skip)}
    if frozen == paths.keys():
        raise UsageError("`only` and `skip` leave no parameter to train.")
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)


def _is_selected(modules: Sequence[str], only: Sequence[str], skip: Sequence[str]) -> bool:
    wanted = not only or any(matches(module, pattern) for module in modules for pattern in only)
    return wanted and not any(matches(module, pattern) for module in modules for pattern in skip)


def _ancestors(parameter: str) -> Sequence[str]:
    """Return the paths of all modules that contain a parameter, except for the network itself."""
    parts = parameter.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def is_frozen_batchnorm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm whose parameters are all frozen; its statistics then stay as well."""
    parameters = list(module.parameters()) if isinstance(module, _BatchNorm) else []
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
