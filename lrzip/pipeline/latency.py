"""Seconds of layers and networks on this machine, dense and factorized."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from lrzip.core.costs import Costs, Latency, LayerCost
from lrzip.core.errors import UsageError
from lrzip.core.layers import Keep
from lrzip.core.plan import Factorize, Plan
from lrzip.networks.inputs import example_inputs
from lrzip.networks.surgery import leave_fast_paths, replacement
from lrzip.networks.timing import time_alternately
from lrzip.pipeline.profile import NetworkProfile, Profile


def costs_of(found: Profile, decisions: Sequence[Factorize], *, latency: bool) -> Costs:
    """Return what the layers of a plan and the whole network cost, before and after; times if they are asked for.

    Of a program, times are those of the whole, which `compress` measures when it is written.
    """
    network = found if isinstance(found, NetworkProfile) and latency else None
    layers = {
        decision.group.name: LayerCost(
            sum(found.macs_of(layer) for layer in decision.group.layers),
            sum(found.macs_with(each.layer, each.structure) for each in decision.replacements),
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
    """Return the latency of a layer and of its replacement; None where it does not run, and for groups."""
    shape = found.shapes.get(decision.layer.name)
    if shape is None or len(decision.replacements) > 1:
        return None
    (only,) = decision.replacements
    path, chain = replacement(only.stored(only.layer.name, decision.dtype), found.model)
    layer = found.model.get_submodule(path)
    if isinstance(layer, nn.MultiheadAttention):
        h = torch.randn(shape)
        return time_alternately(lambda: layer(h, h, h, need_weights=False), lambda: chain(h, h, h, need_weights=False))
    x = torch.zeros(shape, dtype=torch.int64) if isinstance(layer, nn.Embedding) else torch.randn(shape)
    return time_alternately(lambda: layer(x), lambda: chain(x))


def whole_latency(found: NetworkProfile, decisions: Sequence[Factorize]) -> Latency:
    """Return how long the network takes, and the same with the layers of a plan replaced by chains of any weights."""
    factorized = copy.deepcopy(found.model)
    for decision in decisions:
        for each in decision.replacements:
            if each.layer.name in found.shapes:
                stored = each.stored(each.layer.name, decision.dtype)
                factorized.set_submodule(*replacement(stored, factorized))
    leave_fast_paths(factorized)
    inputs = example_inputs(found.inputs, found.inputs[0].sizes[0])
    return time_alternately(lambda: found.model(*inputs), lambda: factorized(*inputs))
