from dataclasses import dataclass
from fractions import Fraction
from math import prod

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrzip.core.costs import Costs, Latency, LayerCost, Multiplications, Positions, Timing, macs
from lrzip.core.kinds import ATTENTION, CONVOLUTIONS, EMBEDDING, LINEAR, TRANSPOSED_CONVOLUTIONS
from lrzip.core.layers import TensorSpec
from lrzip.core.stored import Stored
from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, Sum, tensor_names, tensor_shapes
from lrzip.networks.architecture import module_info
from lrzip.networks.surgery import build

CONV, TRANSPOSED = CONVOLUTIONS[2], TRANSPOSED_CONVOLUTIONS[2]
BOTH, NONE, HEIGHT, WIDTH = (True, True), (False, False), (True, False), (False, True)


@dataclass(frozen=True)
class Case:
    """A layer, the shape of its input, and a structure in its place."""

    layer: nn.Module
    inputs: tuple[int, ...]
    structure: Structure

    @property
    def dense(self) -> Stage:
        info, shape = module_info(self.layer), tuple(self.layer.get_parameter("weight").shape)
        assert info.kind
        return Stage(info.kind, shape, info.groups, (True,) * info.kind.spatial)

    @property
    def sample(self) -> torch.Tensor:
        return torch.zeros(self.inputs, dtype=torch.int64 if self.dense.kind.is_indexed else torch.float32)

    @property
    def positions(self) -> Positions:
        return Positions.of_call(self.dense, self.inputs, tuple(self.layer(self.sample).shape))

    def module(self) -> nn.Module:
        pairs = zip(tensor_names(self.structure), tensor_shapes(self.structure), strict=True)
        specs = tuple(TensorSpec(f"x.{name}", shape, "float32", 4) for name, shape in pairs)
        bias = getattr(self.layer, "bias", None)
        spec = None if bias is None else TensorSpec("x.bias", tuple(bias.shape), "float32", 4)
        return build(Stored("x", self.structure, specs, spec, self.dense), self.layer)


def strided() -> nn.Module:
    return nn.Conv2d(8, 20, 3, stride=(1, 2), padding=(0, 1))


PAIR = Chain((Stage(CONV, (5, 8, 3, 3), 1, BOTH), Stage(CONV, (20, 5, 1, 1), 1, NONE)))
SEPARABLE = Chain((Stage(CONV, (8, 1, 3, 3), 8, BOTH), Stage(CONV, (20, 8, 1, 1), 1, NONE)))
CASES = {
    "dense": Case(strided(), (2, 8, 12, 13), Stage(CONV, (20, 8, 3, 3), 1, BOTH)),
    "chain": Case(strided(), (2, 8, 12, 13), PAIR),
    "unbatched": Case(strided(), (8, 12, 13), PAIR),
    "spatial": Case(
        strided(), (2, 8, 12, 13), Chain((Stage(CONV, (5, 8, 3, 1), 1, HEIGHT), Stage(CONV, (20, 5, 1, 3), 1, WIDTH)))
    ),
    "pointwise-first": Case(
        strided(),
        (2, 8, 12, 13),
        Chain(
            (
                Stage(CONV, (4, 8, 1, 1), 1, NONE),
                Stage(CONV, (6, 4, 3, 3), 1, BOTH),
                Stage(CONV, (20, 6, 1, 1), 1, NONE),
            )
        ),
    ),
    "depthwise": Case(strided(), (2, 8, 12, 13), SEPARABLE),
    "groups": Case(
        nn.Conv2d(8, 20, 3, stride=2, groups=2, bias=False),
        (2, 8, 12, 13),
        Chain((Stage(CONV, (6, 4, 3, 3), 2, BOTH), Stage(CONV, (20, 3, 1, 1), 2, NONE))),
    ),
    "sum": Case(strided(), (2, 8, 12, 13), Sum((SEPARABLE, Chain((Select(3), Stage(CONV, (20, 3, 3, 3), 1, BOTH)))))),
    "transposed": Case(
        nn.ConvTranspose2d(12, 20, (3, 2), stride=(2, 3)),
        (2, 12, 5, 6),
        Chain((Stage(CONV, (4, 12, 1, 1), 1, NONE), Stage(TRANSPOSED, (4, 20, 3, 2), 1, BOTH))),
    ),
    "conv1d": Case(
        nn.Conv1d(6, 9, 5, dilation=2),
        (3, 6, 20),
        Chain((Stage(CONVOLUTIONS[1], (2, 6, 5), 1, (True,)), Stage(CONVOLUTIONS[1], (9, 2, 1), 1, (False,)))),
    ),
    "linear": Case(nn.Linear(20, 6), (2, 7, 20), Chain((Stage(LINEAR, (3, 20)), Stage(LINEAR, (6, 3))))),
    "rearranged": Case(
        nn.Linear(20, 6),
        (2, 7, 20),
        Chain(
            (
                Reshape(1, (4, 5), (1, 0), (5, 4)),
                Stage(LINEAR, (4, 4)),
                Reshape(2, (5, 2, 2), (1, 0, 2), (2, 10)),
                Stage(LINEAR, (3, 10)),
                Reshape(2, (2, 3), (0, 1), (6,)),
            )
        ),
    ),
    "embedding": Case(nn.Embedding(50, 12), (2, 7), Chain((Stage(EMBEDDING, (50, 3)), Stage(LINEAR, (12, 3))))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_multiply_accumulates_are_those_that_torch_counts(case: Case) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.module()(case.sample)
    assert counter.get_total_flops() > 0
    assert macs(case.structure, case.positions) == counter.get_total_flops() // 2


def test_an_embedding_multiplies_nothing() -> None:
    assert macs(Stage(EMBEDDING, (50, 12)), Positions.of(14)) == 0


def test_a_layer_that_does_not_run_costs_nothing() -> None:
    assert macs(PAIR, None) == 0


def test_positions_are_counted_for_every_choice_of_strided_axes() -> None:
    positions = Positions.of(2, (12, 13), (10, 7))
    sizes = {NONE: (12, 13), HEIGHT: (10, 13), WIDTH: (12, 7), BOTH: (10, 7)}
    assert {axes: positions.at(axes) for axes in sizes} == {axes: 2 * prod(size) for axes, size in sizes.items()}
    assert Positions.of(14).at(()) == 14


def test_calls_of_a_layer_add_up() -> None:
    one, other = Positions.of(2, (12, 13), (10, 7)), Positions.of(1, (6, 6), (4, 3))
    assert macs(PAIR, one.plus(other)) == macs(PAIR, one) + macs(PAIR, other)


def test_a_speedup_is_above_one_where_the_factorized_run_is_faster() -> None:
    assert Latency(dense=3e-3, factorized=2e-3).speedup == 1.5


def test_the_document_is_in_milliseconds() -> None:
    assert Latency(dense=3e-3, factorized=2e-3).to_dict() == {"dense_ms": 3.0, "factorized_ms": 2.0}


RUN = {"inputs": {}, "samples": 1, "not_counted": None, "not_timed": None}


def test_measured_latencies_are_added_to_costs() -> None:
    costs = Costs(9, 3, {"a": LayerCost(5, 2, None), "b": LayerCost(4, 1, None)}, None)
    network, layer = Latency(3e-3, 2e-3), Latency(2e-3, 1e-3)
    timed = costs.timed(Timing(network, {"a": layer}))
    assert timed.to_dict() == {"macs_before": 9, "macs_after": 3, "latency": network.to_dict(), "run": RUN}
    assert timed.layers == {"a": LayerCost(5, 2, layer), "b": LayerCost(4, 1, None)}
    assert costs.timed(None).not_timed == "the program does not run on random inputs of these shapes"
    assert costs.to_dict() == {"macs_before": 9, "macs_after": 3, "run": RUN}


def test_the_document_states_the_run_whose_costs_they_are() -> None:
    costs = Costs(None, None, {}, None, {"x": (1, 3, 8, 8)}, samples=2, not_counted="a", not_timed="b")
    run = {"inputs": {"x": [1, 3, 8, 8]}, "samples": 2, "not_counted": "a", "not_timed": "b"}
    assert costs.to_dict() == {"macs_before": None, "macs_after": None, "run": run}


def test_the_share_of_a_sample_is_exact() -> None:
    found = Multiplications({"a": Positions.of(6, (5,), (3,))}, 12 * 70)
    share = found.of_one(4)
    assert (share.macs, share.samples) == (3 * 70, 4)
    assert 4 * share.positions["a"].at((True,)) == 18
    assert found.of_one(9) == found, "what does not divide evenly is no sum over samples"
    assert Multiplications({}, None).of_one(4).macs is None


def test_means_of_positions_are_exact() -> None:
    """Three projections at 5, 6 and 6 positions multiply as often as three at their mean."""
    stage = Stage(ATTENTION, (3 * 8, 8))
    assert macs(stage, Positions.of(Fraction(17, 3))) == (5 + 6 + 6) * 8 * 8
