"""Profile one run of a network: the shapes of inputs, and the multiply-accumulates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from inspect import Parameter, signature
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.costs import Multiplications, Positions, macs
from lrzip.core.errors import LrzipError, UntrustedFile, UsageError, typed_line
from lrzip.core.kinds import ATTENTION
from lrzip.core.layers import Layer
from lrzip.core.structure import Stage, Structure
from lrzip.formats.protocols import Loadable, Runnable, Source
from lrzip.networks.architecture import module_info
from lrzip.networks.counting import MacCounter
from lrzip.networks.inputs import InputShape, run

_PROJECTION = "in_proj"


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
    """One run of a network or program, and its multiplications."""

    run: Multiplications

    def macs_of(self, layer: Layer) -> int | None:
        """Return the multiply-accumulates of a layer in the run, or None if they are unknown."""
        return self.macs_with(layer, layer.stage)

    def macs_with(self, layer: Layer, structure: Structure) -> int | None:
        """Return the multiply-accumulates of a structure in the place of a layer, or None if they are unknown."""
        if self.run.macs is None or layer.name in self.run.unknown:
            return None
        return macs(structure, self.run.positions.get(layer.name))


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
        checkpoint: The checkpoint. If it contains its network, that one is run unless another is given.
        model: The network.
        input_shapes: Shape of each input. Programs may store them.
        needed: Whether costs are requested.

    Raises:
        UsageError: Costs are requested or input shapes are given, and there is nothing that can be run.
        UntrustedFile: The same, and the file contains a network or program that is not trusted.
    """
    needed = needed or bool(input_shapes)
    if model is None and isinstance(checkpoint, Runnable):
        return _program_profile(checkpoint, input_shapes, needed=needed)
    if not needed:
        return None
    if not input_shapes:
        network = "" if model is not None or isinstance(checkpoint, Loadable) else "`model=PKG.MOD:NET` and "
        raise UsageError(f"The costs of a run depend on the sizes of its inputs. Give {network}`input_shapes=SIZES`.")
    if model is None and isinstance(checkpoint, Loadable):
        model = checkpoint.network().eval()
    if model is None:
        raise UsageError(f"`{checkpoint.path}` holds only weights, which cannot be run. Give `model=PKG.MOD:NET`.")
    return profile(model, input_shapes)


def _program_profile(checkpoint: Runnable, input_shapes: Sequence[str], *, needed: bool) -> Profile | None:
    """Return the profile of a run of a program; None if it must not be run and is not needed."""
    try:
        return Profile(checkpoint.measure([InputShape.parse(text) for text in input_shapes]))
    except UntrustedFile:
        if needed:
            raise
        return None


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
    batch = inputs[0].sizes[0]
    sites: dict[str, Site] = {}
    sizes = {name: shape.sizes_at(batch) for name, shape in zip(_names(model), inputs, strict=False)}
    counter = MacCounter()
    try:
        with _observed(model, sites), counter:
            run(model, inputs, batch=batch)
        found = Multiplications({}, counter.macs, sizes, not_counted=counter.not_counted)
    except LrzipError as error:
        sites.clear()
        with _observed(model, sites):
            run(model, inputs, batch=batch)  # raises unless it was counting that failed
        cause = typed_line(error.__cause__ or error)
        found = Multiplications({}, None, sizes, not_counted=f"PyTorch cannot count this network: {cause}")
    found = replace(found, positions={name: site.positions for name, site in sites.items()})
    return NetworkProfile(found, model, inputs, {name: site.shape for name, site in sites.items()})


def _names(model: nn.Module) -> Iterator[str]:
    """Yield the names of the inputs of a network, and numbers for those of `*args`."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    named = [name for name, parameter in signature(model.forward).parameters.items() if parameter.kind in kinds]
    return chain(named, (f"input {number}" for number in count(len(named))))


@contextmanager
def _observed(model: nn.Module, sites: dict[str, Site]) -> Iterator[None]:
    """Observe the layers of a network while it runs.

    Args:
        model: The network.
        sites: Receives the use of each layer, by its name.
    """

    def observe(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if not given:
                return
            attends = isinstance(module, nn.MultiheadAttention)
            layer = f"{name}.{_PROJECTION}" if attends else name
            positions = _mean_positions(module, args, kwargs) if attends else _positions(module, given[0], output)
            total = sites[layer].positions.plus(positions) if layer in sites else positions
            sites[layer] = Site(tuple(given[0].shape), total)

        return hook

    with ExitStack() as hooks, _without_fast_paths():
        for name, module in model.named_modules():
            if module_info(module).kind or isinstance(module, nn.MultiheadAttention):
                hooks.callback(module.register_forward_hook(observe(name), with_kwargs=True).remove)
        yield


def _mean_positions(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Positions:
    """Return the mean positions at which the projections of query, key and value are applied in one call."""
    named = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    elements = sum(named[name].numel() for name in ("query", "key", "value"))
    return Positions.of(Fraction(elements, module.embed_dim * ATTENTION.groups))  # type: ignore[arg-type,operator]


def _positions(module: nn.Module, x: Tensor, output: Any) -> Positions:
    """Return the positions at which a module is applied in one call."""
    info = module_info(module)
    assert info.kind, "only layers are observed"
    stage = Stage(info.kind, tuple(module.get_parameter("weight").shape), info.groups)
    return Positions.of_call(stage, x.shape, output.shape)


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Disable fused attention, which calls no modules."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
