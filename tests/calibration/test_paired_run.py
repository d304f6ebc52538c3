import torch
from torch import Tensor, nn
from torch.fx import Node

from lrzip.calibration.paired_run import PairedRun
from lrzip.core.moments import Arguments
from lrzip.networks.programs.observe import tensor_names
from lrzip.networks.programs.trace import export_network

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Diamond(nn.Module):
    """A layer, two branches after it, and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.second(torch.relu(y)) + torch.tanh(y)
        return out


def inputs_of(node: Node) -> list[Node]:
    return list(node.all_input_nodes)


@torch.no_grad()
def test_both_programs_compute_the_outputs_and_forget_what_is_not_needed() -> None:
    model = Diamond().eval()
    batches: list[Arguments] = [((part,), {}) for part in X.chunk(2)]
    program = export_network(model, *batches[0])
    run = PairedRun(program, batches)
    last: Node | None = None
    held: list[int] = []
    for node in run.walk(inputs_of):
        last = node
        held.append(len([value for value in run.dense[0] if value.op == "call_function"]))
    assert last is not None
    assert max(held) <= 3  # both branches, and one of their operands
    for values in (run.dense, run.compressed):
        for part, found in zip(X.chunk(2), values, strict=True):
            assert torch.allclose(found[last], model(part))


@torch.no_grad()
def test_a_replaced_weight_counts_in_the_compressed_program_alone() -> None:
    model = Diamond().eval()
    program = export_network(model, (X,), {})
    run = PairedRun(program, [((X,), {})])
    weight = next(node for node, name in tensor_names(program).items() if name == "second.weight")
    last: Node | None = None
    for node in run.walk(inputs_of):
        if weight in node.all_input_nodes:
            run.replace(weight, torch.zeros(6, 6))
            assert torch.equal(run.dense[0][weight], model.get_parameter("second.weight"))
        last = node
    assert last is not None
    assert torch.allclose(run.dense[0][last], model(X))
    nn.init.zeros_(model.get_parameter("second.weight"))
    assert torch.allclose(run.compressed[0][last], model(X))


@torch.no_grad()
def test_a_node_comes_after_all_that_it_needs() -> None:
    model = Diamond().eval()
    program = export_network(model, (X,), {})
    computed = [node for node in program.graph.nodes if node.op == "call_function"]
    (relu,) = (node for node in computed if "relu" in node.name)
    (tanh,) = (node for node in computed if "tanh" in node.name)
    assert computed.index(relu) < computed.index(tanh)
    run = PairedRun(program, [((X,), {})])
    order = list(run.walk(lambda node: [*node.all_input_nodes, *([tanh] if node is relu else [])]))
    assert order.index(tanh) < order.index(relu)
    assert set(order) == set(computed)
