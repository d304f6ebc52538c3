"""Time layers and networks on this machine, dense and factorized."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from lrzip.core.costs import Costs, Latency, LayerCost
from lrzip.core.decisions import Factorize
from lrzip.core.errors import UsageError
from lrzip.core.layers import Keep
from lrzip.core.plan import Plan
from lrzip.networks.inputs import example_inputs
from lrzip.networks.state import copy_of
from lrzip.networks.surgery import leave_fast_paths, replacement
from lrzip.networks.timing import time_alternately
from lrzip.pipeline.profile import NetworkProfile, Profile


def costs_of(profile: Profile, decisions: Sequence[Factorize], *, latency: bool) -> Costs:
    """Return the costs of a run before and after decisions, of each layer and in total.

    Args:
        profile: A run of the network or program.
        decisions: Layers to replace.
        latency: Whether to time the layers and the network. Programs are timed after they are written.
    """
    network = profile if isinstance(profile, NetworkProfile) and latency else None
    layers = {
        decision.group.name: LayerCost(
            _sum(profile.macs_of(layer) for layer in decision.group.layers),
            _sum(profile.macs_with(each.layer, each.structure) for each in decision.replacements),
            layer_latency(network, decision) if network else None,
        )
        for decision in decisions
    }
    saved = _sum(None if c.macs_after is None else (c.macs_before or 0) - c.macs_after for c in layers.values())
    run = profile.run
    return Costs(
        run.macs,
        None if run.macs is None or saved is None else run.macs - saved,
        layers,
        network_latency(network, decisions) if network else None,
        run.inputs,
        run.samples,
        run.not_counted,
        "a program is timed when it is written" if latency and not network else None,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """Return the sum of counts, or None if one is unknown."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def keep_slow(profile: Profile, plan: Plan, speedup: float) -> Plan:
    """Return the plan without the layers whose factors do not reach a speedup.

    Raises:
        UsageError: The speedup is not positive, or there is no network whose layers can be timed.
    """
    if not isinstance(profile, NetworkProfile):
        raise UsageError("`min_speedup` times layers of a network, which a program does not offer. Leave it out.")
    if not speedup > 0:
        raise UsageError(f"`min_speedup` must be above 0, got {speedup:g}.")
    fast: list[Factorize] = []
    keep: list[Keep] = []
    for decision in plan.factorize:
        times = layer_latency(profile, decision)
        if times and times.speedup >= speedup:
            fast.append(decision)
            continue
        layer = decision.layer
        reason = f"its factors run {times.speedup:.2f} times as fast" if times else "it does not run on these inputs"
        keep.append(Keep(layer.name, layer.weight, f"{reason}; `--min-speedup` asks for {speedup:g}"))
    return replace(plan, factorize=tuple(fast), keep=(*plan.keep, *keep))


def layer_latency(profile: NetworkProfile, decision: Factorize) -> Latency | None:
    """Return the latency of a layer and of its replacement; None for groups, and if the layer does not run."""
    shape = profile.shapes.get(decision.layer.name)
    if shape is None or len(decision.replacements) > 1:
        return None
    (only,) = decision.replacements
    path, factors = replacement(only.stored(only.layer.name, decision.dtype), profile.model)
    layer = profile.model.get_submodule(path)
    if isinstance(layer, nn.MultiheadAttention):
        h = torch.randn(shape)
        return time_alternately(
            lambda: layer(h, h, h, need_weights=False), lambda: factors(h, h, h, need_weights=False)
        )
    x = torch.zeros(shape, dtype=torch.int64) if isinstance(layer, nn.Embedding) else torch.randn(shape)
    return time_alternately(lambda: layer(x), lambda: factors(x))


def network_latency(profile: NetworkProfile, decisions: Sequence[Factorize]) -> Latency:
    """Return the latency of the network before and after replacement, with arbitrary values in the factors."""
    factorized = copy_of(profile.model)
    for decision in decisions:
        for each in decision.replacements:
            if each.layer.name in profile.shapes:
                stored = each.stored(each.layer.name, decision.dtype)
                factorized.set_submodule(*replacement(stored, factorized))
    leave_fast_paths(factorized)
    inputs = example_inputs(profile.inputs, profile.inputs[0].sizes[0])
    return time_alternately(lambda: profile.model(*inputs), lambda: factorized(*inputs))
