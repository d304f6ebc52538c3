"""Meters: count the parameters, bytes, multiply-accumulates or nanoseconds that a budget limits."""

from collections.abc import Iterable
from itertools import accumulate
from statistics import median

import numpy as np

from lrzip.core.decisions import Factorize
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import FACTORIZABLE_DTYPES, Layer, TensorSpec
from lrzip.core.structure import Structure, parameters
from lrzip.decompositions import Decompositions
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.latency import layer_latency, network_latency
from lrzip.pipeline.profile import NetworkProfile, Profile
from lrzip.ranks import Meter, Pick

# Shares of the largest ranks at which factors are timed.
_TIMED_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


def meter_of(
    unit: str,
    tensors: Iterable[TensorSpec],
    decompositions: Decompositions,
    *,
    dtype: str | None = None,
    profile: Profile | None = None,
) -> Meter:
    """Return the meter of a unit.

    Args:
        unit: `params`, `nbytes`, `macs`, or `latency`, which is measured on this machine.
        tensors: All tensors of the checkpoint.
        decompositions: Solver of the decompositions.
        dtype: Dtype of the factors; None for that of each layer.
        profile: A run of the network, for `macs` and `latency`.

    Raises:
        UsageError: Layers are to be timed, and there is no network.
    """

    def structure(layer: Layer, pick: Pick | None) -> Structure:
        return decompositions.of(pick.decomposition).blueprint(layer, pick.ranks) if pick else layer.stage

    def count(layer: Layer, pick: Pick | None) -> int:
        return parameters(structure(layer, pick))

    def nbytes(layer: Layer, pick: Pick | None) -> int:
        stored = (dtype if pick else None) or layer.weight.dtype
        return FACTORIZABLE_DTYPES[stored] * count(layer, pick)

    def macs(layer: Layer, pick: Pick | None) -> int:
        assert profile, "a unit of runs comes with a profile"
        count = profile.macs_with(layer, structure(layer, pick))
        if count is None:
            raise LrzipError(_uncounted(profile, f"`{layer.name}`"))
        return count

    if unit == "latency":
        if not isinstance(profile, NetworkProfile):
            raise UsageError("A budget of time measures layers of a network, which a program does not offer.")
        return _latency_meter(profile, decompositions)
    if unit == "macs":
        assert profile, "a unit of runs comes with a profile"
        if profile.run.macs is None:
            raise LrzipError(_uncounted(profile, "the network"))
        return Meter(profile.run.macs, macs)
    if unit == "nbytes":
        return Meter(sum(spec.nbytes for spec in tensors), nbytes)
    return Meter(sum(spec.numel for spec in tensors if is_parameter(spec)), count)


def _uncounted(profile: Profile, what: str) -> str:
    return f"The multiply-accumulates of {what} are not known, and a budget limits them: {profile.run.not_counted}."


def _latency_meter(profile: NetworkProfile, decompositions: Decompositions) -> Meter:
    """Return a meter that times layers, dense and at a few ranks, and interpolates between them.

    Interpolated times never decrease with the rank. For decompositions with several ranks, only
    equal shares of the largest ranks are timed, and factors with the same number of parameters count as equally fast.
    """
    curves: dict[tuple[str, str], tuple[int, list[int], list[float]]] = {}

    def curve(layer: Layer, name: str) -> tuple[int, list[int], list[float]]:
        decomposition = decompositions.of(name)
        most = decomposition.max_ranks(layer)
        shares = dict.fromkeys(tuple(max(round(share * rank), 1) for rank in most) for share in _TIMED_SHARES)
        decisions = [
            Factorize.of(layer, name, ranks, decomposition.blueprint(layer, ranks), layer.weight.dtype)
            for ranks in shares
        ]
        sizes = [decision.parameters_after for decision in decisions]
        times = [latency for decision in decisions if (latency := layer_latency(profile, decision))]
        if not times:  # a layer that does not run on these inputs takes no time
            return 0, sizes, [0.0] * len(sizes)
        dense = round(1e9 * median(latency.dense for latency in times))
        return dense, sizes, list(accumulate((1e9 * latency.factorized for latency in times), max))

    def cost(layer: Layer, pick: Pick | None) -> int:
        name = pick.decomposition if pick else decompositions.names_for(layer)[0]
        if (layer.name, name) not in curves:
            curves[layer.name, name] = curve(layer, name)
        dense, sizes, times = curves[layer.name, name]
        if pick is None:
            return dense
        size = parameters(decompositions.of(name).blueprint(layer, pick.ranks))
        return round(float(np.interp(size, sizes, times)))

    return Meter(round(1e9 * network_latency(profile, ()).dense), cost, affine=False)
