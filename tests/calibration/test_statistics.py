import torch
from torch import Tensor

from lrzip.calibration.statistics import moments_of, observe_in_passes
from lrzip.calibration.subjects import Network
from lrzip.core.moments import Arguments
from lrzip.networks.programs.observe import observe_program
from lrzip.networks.programs.trace import export_network
from tests.support.calibration import layers_of
from tests.support.networks import Net, Zoo, seeded

REACHED = {"stem", "grouped", "up", "words", "attention.in_proj", "mix", "head"}


def test_hooks_and_the_graph_observe_the_same() -> None:
    model = seeded(Zoo).eval()
    batch: Arguments = (Zoo.inputs(4), {})
    layers = layers_of(model)
    by_hooks = moments_of(Network(model), layers, [batch], 1 << 20)
    program = export_network(model, *batch)

    class Graph(Network):
        def observe(self, layers, batches, observer) -> None:  # type: ignore[no-untyped-def]
            observe_program(program, {self.weight_name(layer): layer for layer in layers}, batches, observer)

    by_graph = moments_of(Graph(model), layers, [batch], 1 << 20)
    assert by_hooks.keys() == by_graph.keys() == REACHED
    for name, moments in by_hooks.items():
        assert moments.count == by_graph[name].count
        # Float32 sums in another order.
        assert torch.allclose(moments.second, by_graph[name].second, rtol=1e-4, atol=1e-6)


def test_moments_are_those_of_the_inputs_of_a_layer() -> None:
    model, x = seeded(Net).eval(), torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    layers, given = layers_of(model), list[Tensor]()
    handle = model.get_submodule("fc1").register_forward_pre_hook(lambda _, args: given.append(args[0]))
    moments = moments_of(Network(model), layers, [((x,), {})], 1 << 20)["fc1"]
    handle.remove()
    rows = given[0].double()
    assert torch.allclose(moments.second[0], rows.mT @ rows / 16, atol=1e-5)
    assert torch.allclose(moments.first[0], rows.mean(0), atol=1e-6)
    assert moments.count == 16


def test_memory_changes_the_number_of_passes_alone() -> None:
    model, x = seeded(Net).eval(), torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    passes: list[int] = []

    class Counting(Network):
        def observe(self, layers, batches, observer) -> None:  # type: ignore[no-untyped-def]
            passes.append(len(layers))
            super().observe(layers, batches, observer)

    layers = layers_of(model)
    at_once, one_by_one = (
        observe_in_passes(Counting(model), layers, [((x,), {})], positions=1 << 20, memory=memory)
        for memory in (1 << 30, 1)
    )
    assert passes == [len(layers)] + [1] * len(layers)
    assert at_once.keys() == one_by_one.keys() == {layer.name for layer in layers}
    for name, moments in at_once.items():
        assert torch.equal(moments.second, one_by_one[name].second)


def test_positions_bound_the_work() -> None:
    model, x = seeded(Net).eval(), torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batches: list[Arguments] = [((x[:8],), {}), ((x[8:],), {})]
    every = moments_of(Network(model), layers_of(model), batches, 1 << 20)["conv1"].count
    assert every == 16 * 8 * 8
    assert 0 < moments_of(Network(model), layers_of(model), batches, 256)["conv1"].count <= every // 2
