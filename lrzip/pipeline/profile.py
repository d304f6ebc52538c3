"""Profile one run of a network: the shapes of inputs, and the multiply-accumulates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrzip.core.costs import Positions, macs
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.kinds import ATTENTION
from lrzip.core.layers import Layer
from lrzip.core.structure import Stage, Structure
from lrzip.formats.protocols import Runnable, Source
from lrzip.networks.architecture import module_info
from lrzip.networks.inputs import InputShape, run


@dataclass(frozen=True)
class Site:
    """The use of a layer in a run of the network.

    Attributes:
        shape: Shape of its input in the last call.
        positions: Positions at which it is applied, over all calls.
    """

    shape: tuple[int, ...]
    positions: Positions


@dataclass(frozen=True)
class Profile:
    """One run of a network or program.

    Attributes:
        positions: Positions at which each layer is applied, by layer name.
        macs: Multiply-accumulates of all linear layers, convolutions, attention and recurrent layers.
    """

    positions: Mapping[str, Positions]
    macs: int

    def macs_of(self, layer: Layer) -> int:
        """Return the multiply-accumulates of a layer in the run."""
        return self.macs_with(layer, layer.stage)

    def macs_with(self, layer: Layer, structure: Structure) -> int:
        """Return the multiply-accumulates of a structure in the place of a layer."""
        return macs(structure, self.positions.get(layer.name))


@dataclass(frozen=True)
class NetworkProfile(Profile):
    """One run of a live network, whose layers can be run again.

    Attributes:
        model: The network.
        inputs: Shapes of its inputs, with the given batch size.
        shapes: Shape of the input of each layer in its last call, by layer name.
    """

    model: nn.Module
    inputs: Sequence[InputShape]
    shapes: Mapping[str, tuple[int, ...]]


def profile_of(
    checkpoint: Source, model: nn.Module | None, input_shapes: Sequence[str], *, needed: bool
) -> Profile | None:
    """Return the profile of a run of the network, or of the program that a checkpoint holds; None without either.

    Args:
        checkpoint: The checkpoint.
        model: The network.
        input_shapes: Shape of each input. Programs may store them.
        needed: Whether costs are requested.

    Raises:
        UsageError: Costs are requested or input shapes are given, and there is nothing that can be run.
        LrzipError: The costs of a program are requested, and cannot be determined.
    """
    if model and input_shapes:
        return profile(model, input_shapes)
    if isinstance(checkpoint, Runnable):
        return _program_profile(checkpoint, input_shapes, needed=needed or bool(input_shapes))
    if input_shapes or needed:
        raise UsageError(
            "The costs of a run are known with both `model=PKG.MOD:NET` and `input_shapes=SIZES`, or of a program."
        )
    return None


def _program_profile(checkpoint: Runnable, input_shapes: Sequence[str], *, needed: bool) -> Profile | None:
    """Return the profile of a run of a program; None if it cannot be determined and is not needed."""
    try:
        measured = checkpoint.measure([InputShape.parse(text) for text in input_shapes])
    except LrzipError:
        if needed:
            raise
        return None
    if measured is None and needed:
        raise LrzipError(
            "The costs of a run of this program cannot be determined: its shapes depend on values, or it is not "
            "trusted (`trust=True`), or it stores no inputs to run it on (`input_shapes=SIZES`)."
        )
    return Profile(*measured) if measured else None


def profile(model: nn.Module, shapes: Sequence[str]) -> NetworkProfile:
    """Run a network once, and observe the inputs of its layers.

    Args:
        model: The network, in evaluation mode.
        shapes: Shape of each input, in the syntax of `InputShape.parse`.

    Raises:
        UsageError: A shape is malformed.
        LrzipError: The network does not take these shapes.
    """
    inputs = [InputShape.parse(text) for text in shapes]
    sites: dict[str, Site] = {}
    recurrent: dict[str, int] = {}

    def observe(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.RNNBase):
                steps = arguments[0].numel() // module.input_size
                recurrent[name] = steps * sum(p.numel() for n, p in module.named_parameters() if "weight" in n)
            elif isinstance(module, nn.MultiheadAttention):
                sites[f"{name}.in_proj"] = _attention_site(module, arguments)
            elif arguments and isinstance(arguments[0], Tensor):
                positions = _positions(module, arguments[0], output)
                total = sites[name].positions.plus(positions) if name in sites else positions
                sites[name] = Site(tuple(arguments[0].shape), total)

        return hook

    with ExitStack() as hooks, _without_fast_paths(), FlopCounterMode(display=False) as counter:
        for name, module in model.named_modules():
            if module_info(module).kind or isinstance(module, nn.RNNBase | nn.MultiheadAttention):
                hooks.callback(module.register_forward_hook(observe(name)).remove)
        run(model, inputs, batch=inputs[0].sizes[0])
    counted = {name for name, counts in counter.get_flop_counts().items() if counts}
    uncounted = sum(count for name, count in recurrent.items() if not any(c.endswith(f".{name}") for c in counted))
    positions = {name: site.positions for name, site in sites.items()}
    total = counter.get_total_flops() // 2 + uncounted
    return NetworkProfile(positions, total, model, inputs, {name: site.shape for name, site in sites.items()})


def _attention_site(module: nn.MultiheadAttention, arguments: Sequence[Any]) -> Site:
    """Return the mean positions of query, key and value, over those that were passed by position."""
    given = [x for x in arguments[: ATTENTION.groups] if isinstance(x, Tensor)]
    positions = sum(x.numel() for x in given) // (module.embed_dim * max(len(given), 1))
    return Site(tuple(given[0].shape) if given else (), Positions.of(positions))


def _positions(module: nn.Module, x: Tensor, output: Any) -> Positions:
    """Return the positions at which a module is applied in one call."""
    info = module_info(module)
    assert info.kind, "only layers are observed"
    stage = Stage(info.kind, tuple(module.get_parameter("weight").shape), info.groups)
    return Positions.of_call(stage, x.shape, output.shape)


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Disable fused attention, whose products are not counted."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
