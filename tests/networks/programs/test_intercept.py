from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node, symbolic_trace

from lrzip.networks.programs.intercept import Intercepted
from tests.support.networks import Net, seeded

MODEL = seeded(Net)
GRAPH = symbolic_trace(MODEL)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_every_node_is_computed_once_with_its_inputs_at_hand() -> None:
    seen: list[str] = []

    def intercept(node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        assert all(used in values for used in node.all_input_nodes)
        seen.append(node.name)
        return compute()

    found = Intercepted(GRAPH, intercept).run(X)
    assert torch.equal(found, MODEL(X))
    assert seen == [node.name for node in GRAPH.graph.nodes]
    assert len(seen) > 5


def test_the_run_continues_with_the_returned_values() -> None:
    def without_relu(node: Node, compute: Callable[[], Any], values: Mapping[Node, Any]) -> Any:
        return values[node.all_input_nodes[0]] if node.target is torch.relu else compute()

    layers = [MODEL.get_submodule(name) for name in ("conv1", "bn1", "conv2")]
    expected = MODEL.get_submodule("fc2")(MODEL.get_submodule("fc1")(nn.Sequential(*layers)(X).flatten(1)))
    assert torch.equal(Intercepted(GRAPH, without_relu).run(X), expected)
