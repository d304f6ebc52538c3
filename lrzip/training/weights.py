"""The weights of a training and their optimizer: replicated in every process, or sharded across them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, contiguous_format, nn
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
from lrzip.networks.state import load_tensors, tensors_of
from lrzip.training.optimizers import make_optimizer, state_entries
from lrzip.training.settings import Settings

_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FULL = StateDictOptions(full_state_dict=True)


class Weights(Protocol):
    """The weights of a training and their optimizer. All processes must call each method together.

    Attributes:
        network: The network as it is called in training.
        optimizer: The optimizer of its parameters.
        entries: Names of the tensors that the optimizer keeps for a parameter, and whether they have its shape.
    """

    network: nn.Module
    optimizer: Optimizer
    entries: Mapping[str, bool]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the whole tensors of the state_dict."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state_dict on the CPU, at least in the first process."""
        ...

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the state of the optimizer, at least in the first process."""
        ...

    def load(self, state: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Load states that every process has read."""
        ...

    def release(self) -> None:
        """Remove the wrappers that training put around the network, as far as possible."""
        ...


def place(model: nn.Module, settings: Settings, accelerator: Accelerator) -> Weights:
    """Return the weights and the optimizer, on the device, replicated or sharded according to the settings.

    Raises:
        UsageError: Sharding is requested with a single process.
    """
    if not settings.shard:
        return ReplicatedWeights(model, settings, accelerator)
    if accelerator.num_processes == 1:
        raise UsageError("`shard=True` shards the weights across processes, but there is one. Start it with torchrun.")
    return ShardedWeights(model, settings, accelerator)


class ReplicatedWeights:
    """Every process holds all weights."""

    def __init__(self, model: nn.Module, settings: Settings, accelerator: Accelerator) -> None:
        self._model, self._accelerator = model, accelerator
        self.network, self.optimizer = accelerator.prepare(model, make_optimizer(model.parameters(), settings))
        self.entries = state_entries(settings)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the tensors of the state_dict."""
        return _shapes(self._model)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state_dict on the CPU."""
        return _copied(tensors_of(self._model))

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the state of the optimizer."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load(self, state: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Load states."""
        load_tensors(self._model, state)
        self.optimizer.load_state_dict(dict(optimizer_state))

    def release(self) -> None:
        """Remove autocast from the network."""
        self._accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)


class ShardedWeights:
    """Each process holds a shard of every weight, gradient and optimizer state: torch's fully_shard.

    The weights of a block are gathered while it runs. fully_shard is called here, since accelerate does not call it on
    CPUs.
    """

    def __init__(self, model: nn.Module, settings: Settings, accelerator: Accelerator) -> None:
        device = accelerator.device
        self.network = model.to(device)
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        for module in (*_blocks(model), model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        self._optimizer = make_optimizer(model.parameters(), settings)
        self.optimizer = accelerator.prepare(self._optimizer)
        self.entries = state_entries(settings)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the whole tensors of the state_dict."""
        return _shapes(self.network)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state_dict on the CPU in the first process; it is empty in the others."""
        return _copied(get_model_state_dict(self.network, options=_GATHERED))

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the state of the optimizer in the first process."""
        return get_optimizer_state_dict(self.network, self._optimizer, options=_GATHERED)

    def load(self, state: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> None:
        """Load this process's shard of full states."""
        set_model_state_dict(self.network, dict(state), options=_FULL)
        set_optimizer_state_dict(self.network, self._optimizer, dict(optimizer_state), options=_FULL)

    def release(self) -> None:
        """Leave the network unchanged: its weights stay sharded."""


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the members of the outermost module lists and sequences that share no parameter with another module."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: dict[int, nn.Module] = {}
    pending = [model]
    while pending:
        module = pending.pop()
        children = list(module.children())
        if isinstance(module, nn.ModuleList | nn.Sequential) and module is not model:
            found |= {id(child): child for child in children}
        else:
            pending.extend(children)
    unshared = (block for block in found.values() if all(uses[id(parameter)] == 1 for parameter in block.parameters()))
    return [block for block in unshared if any(True for _ in block.parameters())]


def _copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone(memory_format=contiguous_format) for name, tensor in state.items()}


def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
