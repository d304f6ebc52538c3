"""Decisions on small layers."""

from lrzip.core.decisions import Factorize, Replacement
from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.structure import Stage
from tests.support.candidates import DECOMPOSITIONS, linear_layer

WITH_BIAS = Layer(
    "fc1",
    "net.fc1",
    LINEAR,
    TensorSpec("net.fc1.weight", (30, 20), "float32", 2400),
    TensorSpec("net.fc1.bias", (30,), "float32", 120),
)
"""A layer with a bias, whose names in the file have a prefix."""


def low_rank(layer: Layer, rank: int, dtype: str = "float32") -> Factorize:
    """Return the decision to replace a layer by a truncated SVD."""
    return Factorize.of(layer, "svd", (rank,), DECOMPOSITIONS.of("svd").blueprint(layer, (rank,)), dtype)


def narrowed(units: int) -> Factorize:
    """Return a decision on two layers around `units` of 30 hidden units."""
    assert WITH_BIAS.bias
    bias = TensorSpec("net.fc1.bias", (units,), "float32", 4 * units)
    second = linear_layer(10, 30, "fc2")
    members = (
        Replacement(WITH_BIAS, Stage(LINEAR, (units, 20)), ((WITH_BIAS.bias, bias),)),
        Replacement(second, Stage(LINEAR, (10, units))),
    )
    return Factorize(members, "narrow", (units,), "float32")
