"""The weights of a training and their optimizer: whole in every process, or shared out among them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from lrzip.core.errors import UsageError
from lrzip.training.settings import Settings, make_optimizer

_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
_WHOLE = StateDictOptions(full_state_dict=True)


class Weights(Protocol):
    """The weights of a training and their optimizer. All processes must call the methods together.

    Attributes:
        network: What to call in training.
        optimizer: Of its parameters.
    """

    network: nn.Module
    optimizer: Optimizer

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state_dict on the CPU, in the first process at least."""
        ...

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the state of the optimizer, in the first process at least."""
        ...

    def load(self, state: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Take on states that every process has read."""
        ...

    def release(self) -> None:
        """Leave the network without what training has put around it, as far as that is possible."""
        ...


def place(model: nn.Module, settings: Settings, accelerator: Accelerator) -> Weights:
    """Put a network and an optimizer where the processes train them.

    Raises:
        UsageError: There is one process, among which nothing can be shared out.
    """
    if not settings.shard:
        return FullWeights(model, settings, accelerator)
    if accelerator.num_processes == 1:
        raise UsageError("`--shard` shares out the weights among processes, but there is one. Start it with torchrun.")
    return ShardedWeights(model, settings, accelerator)


class FullWeights:
    """Every process has all weights."""

    def __init__(self, model: nn.Module, settings: Settings, accelerator: Accelerator) -> None:
        self._model, self._accelerator = model, accelerator
        self.network, self.optimizer = accelerator.prepare(model, make_optimizer(model.parameters(), settings))

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state_dict on the CPU."""
        return _copied(self._model.state_dict())

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the state of the optimizer."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load(self, state: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Take on states."""
        self._model.load_state_dict(state)
        self.optimizer.load_state_dict(dict(optimizer_state))

    def release(self) -> None:
        """Take autocast off the network."""
        self._accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)


class ShardedWeights:
    """Each process has a part of every weight, gradient and optimizer state: torch's fully_shard.

    Weights are put together block by block while a batch runs. It is called here, since accelerate leaves out CPUs.
    """

    def __init__(self, model: nn.Module, settings: Settings, accelerator: Accelerator) -> None:
        device = accelerator.device
        self.network = model.to(device)
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        for part in (*_blocks(model), model):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        self._optimizer = make_optimizer(model.parameters(), settings)
        self.optimizer = accelerator.prepare(self._optimizer)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state_dict on the CPU in the first process; it is empty in the others."""
        return _copied(get_model_state_dict(self.network, options=_GATHERED))

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the state of the optimizer in the first process."""
        return get_optimizer_state_dict(self.network, self._optimizer, options=_GATHERED)

    def load(self, state: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Take on the own part of states."""
        set_model_state_dict(self.network, dict(state), options=_WHOLE)
        set_optimizer_state_dict(self.network, self._optimizer, dict(optimizer_state), options=_WHOLE)

    def release(self) -> None:
        """Leave the network as it is: its weights are in parts."""


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the members of the outermost lists and sequences of modules, whose weights no other module shares."""
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        children = list(module.children())
        if isinstance(module, nn.ModuleList | nn.Sequential) and module is not model:
            found |= {id(child): child for child in children}
        else:
            waiting.extend(children)
    lone = (block for block in found.values() if all(users[id(parameter)] == 1 for parameter in block.parameters()))
    return [block for block in lone if any(True for _ in block.parameters())]


def _copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
