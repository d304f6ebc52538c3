"""What layers cost to run: multiply-accumulates, and time on this machine, dense and factorized."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrzip.attention import PROJECTIONS
from lrzip.decompositions import Decompositions
from lrzip.errors import LrzipError, UsageError
from lrzip.factors import Chain, Positions, StageSpec, kernel_stage
from lrzip.formats import Runnable, Source
from lrzip.inference import is_parameter
from lrzip.inputs import InputShape, examples, run
from lrzip.layers import FACTORIZABLE_DTYPES, Keep, Layer, TensorSpec
from lrzip.modules import known
from lrzip.plan import Factorize, Plan
from lrzip.ranks.budget import Meter
from lrzip.report import Costs, Latency, LayerCost
from lrzip.surgery import leave_fast_paths, replacement
from lrzip.timing import in_turns

# Of the largest rank, at which chains are timed.
_TIMED_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


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
        """Return the multiply-accumulates of a layer; those of an embedding are none."""
        return self.macs_with(layer, [StageSpec(layer.kind, layer.weight.shape)])

    def macs_with(self, layer: Layer, stages: Sequence[StageSpec]) -> int:
        """Return the multiply-accumulates of a chain in the place of a layer; an embedding has none."""
        inputs, outputs = self.positions.get(layer.name, (0, 0))
        strided = kernel_stage([stage.shape for stage in stages])
        return sum(
            prod(stage.shape) * (inputs if index < strided else outputs)
            for index, stage in enumerate(stages)
            if stage.kind != "embedding"
        )


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
                before = sites[name].positions if name in sites else Positions(0, 0)
                sites[name] = Site(tuple(arguments[0].shape), before.plus(_positions(module, arguments[0], output)))

        return hook

    with ExitStack() as hooks, _without_fast_paths(), FlopCounterMode(display=False) as counter:
        for name, module in model.named_modules():
            if known(module).kind or isinstance(module, nn.RNNBase | nn.MultiheadAttention):
                hooks.callback(module.register_forward_hook(observe(name)).remove)
        run(model, inputs, batch=inputs[0].sizes[0])
    counted = {name for name, counts in counter.get_flop_counts().items() if counts}
    uncounted = sum(macs for name, macs in recurrent.items() if not any(c.endswith(f".{name}") for c in counted))
    positions = {name: site.positions for name, site in sites.items()}
    macs = counter.get_total_flops() // 2 + uncounted
    return NetworkProfile(positions, macs, model, inputs, {name: site.shape for name, site in sites.items()})


def meter_of(
    unit: str,
    tensors: Iterable[TensorSpec],
    decompositions: Decompositions,
    *,
    dtype: str | None = None,
    found: Profile | None = None,
) -> Meter:
    """Return what counts the parameters, the bytes of tensors or the multiply-accumulates of a checkpoint.

    Args:
        unit: `params`, `nbytes`, `macs` or `latency`, which is measured here and now.
        tensors: All of the checkpoint.
        decompositions: Of the layers that are replaced.
        dtype: Of the factors, or None for that of each layer.
        found: A run of the network, for `macs`.
    """

    def stages(layer: Layer, ranks: tuple[int, ...] | None) -> Sequence[StageSpec]:
        whole = (StageSpec(layer.kind, layer.weight.shape),)
        return decompositions.of(layer).blueprint(layer, ranks) if ranks else whole

    def parameters(layer: Layer, ranks: tuple[int, ...] | None) -> int:
        return sum(prod(stage.shape) for stage in stages(layer, ranks))

    def nbytes(layer: Layer, ranks: tuple[int, ...] | None) -> int:
        stored = (dtype if ranks else None) or layer.weight.dtype
        return FACTORIZABLE_DTYPES[stored] * parameters(layer, ranks)

    def macs(layer: Layer, ranks: tuple[int, ...] | None) -> int:
        assert found, "a run of the network is asked for before"
        return found.macs_with(layer, stages(layer, ranks))

    if unit == "latency":
        if not isinstance(found, NetworkProfile):
            raise UsageError("A budget of `latency` times layers. Give `--model PKG.MOD:NET` and `--input-shape`.")
        return _clock(found, decompositions)
    if unit == "macs":
        assert found, "a run of the network is asked for before"
        return Meter(found.macs, macs)
    if unit == "nbytes":
        return Meter(sum(spec.nbytes for spec in tensors), nbytes)
    return Meter(sum(spec.numel for spec in tensors if is_parameter(spec)), parameters)


def _clock(found: NetworkProfile, decompositions: Decompositions) -> Meter:
    """Return what times layers, dense and at a few ranks; in between, times are interpolated, and never fall.

    With several ranks, only equal shares of them are timed, and chains of as many parameters count as equally fast.
    """
    curves: dict[str, tuple[int, list[int], list[float]]] = {}

    def curve(layer: Layer) -> tuple[int, list[int], list[float]]:
        name, decomposition = decompositions.name_for(layer), decompositions.of(layer)
        most = decomposition.max_ranks(layer)
        shares = dict.fromkeys(tuple(max(round(share * rank), 1) for rank in most) for share in _TIMED_SHARES)
        decisions = [
            Factorize(layer, name, ranks, decomposition.blueprint(layer, ranks), layer.weight.dtype) for ranks in shares
        ]
        sizes = [decision.parameters_after for decision in decisions]
        times = [latency for decision in decisions if (latency := layer_latency(found, decision))]
        if not times:  # it does not run on these inputs, so that it takes no time in any form
            return 0, sizes, [0.0] * len(sizes)
        dense = round(1e9 * median(latency.dense for latency in times))
        return dense, sizes, list(accumulate((1e9 * latency.factorized for latency in times), max))

    def cost(layer: Layer, ranks: tuple[int, ...] | None) -> int:
        if layer.name not in curves:
            curves[layer.name] = curve(layer)
        dense, sizes, times = curves[layer.name]
        if ranks is None:
            return dense
        size = sum(prod(stage.shape) for stage in decompositions.of(layer).blueprint(layer, ranks))
        return round(float(np.interp(size, sizes, times)))

    return Meter(round(1e9 * whole_latency(found, ()).dense), cost, affine=False)


def costs_of(found: Profile, decisions: Sequence[Factorize], *, latency: bool) -> Costs:
    """Return what the layers of a plan and the whole network cost, before and after; times if they are asked for.

    Of a program, times are those of the whole, which `compress` measures when it is written.
    """
    network = found if isinstance(found, NetworkProfile) and latency else None
    layers = {
        decision.layer.name: LayerCost(
            found.macs_of(decision.layer),
            found.macs_with(decision.layer, decision.stages),
            layer_latency(network, decision) if network else None,
        )
        for decision in decisions
    }
    saved = sum(cost.macs_before - cost.macs_after for cost in layers.values())
    whole = whole_latency(network, decisions) if network else None
    return Costs(found.macs, found.macs - saved, layers, whole)


def keep_slow(found: Profile, plan: Plan, speedup: float) -> Plan:
    """Return the plan without the layers whose chains do not run so many times faster.

    Raises:
        UsageError: The speedup is not positive, or there is no network whose layers could be timed.
    """
    if not isinstance(found, NetworkProfile):
        raise UsageError("`--min-speedup` times layers of a network. Give `--model PKG.MOD:NET` and `--input-shape`.")
    if not speedup > 0:
        raise UsageError(f"`min-speedup` must be above 0, got {speedup:g}.")
    fast: list[Factorize] = []
    keep: list[Keep] = []
    for decision in plan.factorize:
        times = layer_latency(found, decision)
        if times and times.speedup >= speedup:
            fast.append(decision)
            continue
        layer = decision.layer
        said = f"its factors run {times.speedup:.2f} times as fast" if times else "it does not run on these inputs"
        keep.append(Keep(layer.name, layer.weight, f"{said}; `--min-speedup` asks for {speedup:g}"))
    return replace(plan, factorize=tuple(fast), keep=(*plan.keep, *keep))


def layer_latency(found: NetworkProfile, decision: Factorize) -> Latency | None:
    """Return how long a layer and its chain take on an input of the shape it gets; None where it does not run."""
    shape = found.shapes.get(decision.layer.name)
    if shape is None:
        return None
    path, chain = _replacement(found.model, decision)
    layer = found.model.get_submodule(path)
    if isinstance(layer, nn.MultiheadAttention):
        h = torch.randn(shape)
        return in_turns(lambda: layer(h, h, h, need_weights=False), lambda: chain(h, h, h, need_weights=False))
    x = torch.zeros(shape, dtype=torch.int64) if isinstance(layer, nn.Embedding) else torch.randn(shape)
    return in_turns(lambda: layer(x), lambda: chain(x))


def whole_latency(found: NetworkProfile, decisions: Sequence[Factorize]) -> Latency:
    """Return how long the network takes, and the same with the layers of a plan replaced by chains of any weights."""
    factorized = copy.deepcopy(found.model)
    for decision in decisions:
        if decision.layer.name in found.shapes:
            factorized.set_submodule(*_replacement(factorized, decision))
    leave_fast_paths(factorized)
    inputs = examples(found.inputs, found.inputs[0].sizes[0])
    return in_turns(lambda: found.model(*inputs), lambda: factorized(*inputs))


def _replacement(model: nn.Module, decision: Factorize) -> tuple[str, nn.Module]:
    layer = decision.layer
    return replacement(Chain(layer.name, decision.outputs, layer.bias, layer.kind), model)


def _attention_site(module: nn.MultiheadAttention, arguments: Sequence[Any]) -> Site:
    """Return the mean positions of query, key and value; those that were passed by name count as the query."""
    given = [x for x in arguments[:PROJECTIONS] if isinstance(x, Tensor)]
    positions = sum(x.numel() for x in given) // (module.embed_dim * max(len(given), 1))
    return Site(tuple(given[0].shape) if given else (), Positions(positions, positions))


def _positions(module: nn.Module, x: Tensor, output: Any) -> Positions:
    """Return how often each element of a module's weight is multiplied in one call."""
    if isinstance(module, nn.Embedding):
        return Positions(x.numel(), x.numel())
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        times = x.numel() // module.in_channels
        return Positions(times, times)
    out, inner, *_ = module.get_parameter("weight").shape
    if known(module).kind == "linear_transposed":
        out, inner = inner, out
    return Positions(x.numel() // (inner * getattr(module, "groups", 1)), int(output.numel()) // out)


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Keep attention from kernels whose products are not seen."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
