"""Profile one run of a network: what its layers are applied to, and its multiply-accumulates."""

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
    """What a layer is applied to in a run of the network.

    Attributes:
        shape: Of its (last) input.
        positions: How often each element of its weight is multiplied.
    """

    shape: tuple[int, ...]
    positions: Positions


@dataclass(frozen=True)
class Profile:
    """One run of a network or program.

    Attributes:
        positions: How often each element of a layer's weight is multiplied, by the layer's name.
        macs: Multiply-accumulates of the whole: of linear layers, convolutions, attention and recurrent layers.
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
    """One run of a live network, whose parts can be run again.

    Attributes:
        model: The network.
        inputs: What it ran on, at the batch size given.
        shapes: Of the (last) input of each layer, by module.
    """

    model: nn.Module
    inputs: Sequence[InputShape]
    shapes: Mapping[str, tuple[int, ...]]


def profile_of(
    checkpoint: Source, model: nn.Module | None, input_shapes: Sequence[str], *, needed: bool
) -> Profile | None:
    """Return what a run of the network shows, or of the program that a file holds; None where neither is known.

    Args:
        checkpoint: The file.
        model: The network.
        input_shapes: One for each input. A program may know them itself.
        needed: Whether costs were asked for.

    Raises:
        UsageError: They were, and it is not known how to run anything.
    """
    if model and input_shapes:
        return profile(model, input_shapes)
    if isinstance(checkpoint, Runnable):
        return _program_profile(checkpoint, input_shapes, needed=needed or bool(input_shapes))
    if input_shapes or needed:
        raise UsageError(
            "What a run costs can be told with both `--model PKG.MOD:NET` and `--input-shape`, or of a program."
        )
    return None


def _program_profile(checkpoint: Runnable, input_shapes: Sequence[str], *, needed: bool) -> Profile | None:
    """Return what a run of a program shows, or None where that cannot be told and was not asked for."""
    try:
        measured = checkpoint.measure([InputShape.parse(text) for text in input_shapes])
    except LrzipError:
        if needed:
            raise
        return None
    if measured is None and needed:
        raise LrzipError(
            "What a run of this program costs cannot be told: its shapes depend on values, or it is not trusted "
            "(`--trust`), or it stores no inputs to run it on (`--input-shape`)."
        )
    return Profile(*measured) if measured else None


def profile(model: nn.Module, shapes: Sequence[str]) -> NetworkProfile:
    """Run a network once and see what its layers are applied to.

    Args:
        model: In evaluation mode.
        shapes: One for each input, as `InputShape.parse` takes them.

    Raises:
        UsageError: A shape is none.
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
    """Return the mean positions of query, key and value; those that were passed by name count as the query."""
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
    """Keep attention from kernels whose products are not seen."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
