from lrzip.core.decisions import Factorize
from lrzip.core.kinds import ATTENTION
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.layout import Entry, lay_out
from lrzip.core.structure import Structure
from tests.support.candidates import linear_layer
from tests.support.decisions import WITH_BIAS, low_rank, narrowed

TENSORS = {
    name: TensorSpec(name, shape, "float32", 4)
    for name, shape in {
        "net.fc1.weight": (30, 20),
        "norm.weight": (30,),
        "net.fc1.bias": (30,),
        "fc2.weight": (10, 30),
        "fc2.bias": (10,),
        "steps": (),
    }.items()
}


def origins(entries: tuple[Entry, ...]) -> list[tuple[str, str, bool]]:
    return [(entry.spec.name, entry.origin, entry.copied) for entry in entries]


def test_a_plan_without_decisions_copies_every_tensor() -> None:
    assert lay_out((), TENSORS) == tuple(Entry(spec, name, copied=True) for name, spec in TENSORS.items())


def test_the_tensors_of_a_structure_take_the_place_of_the_weight_and_the_bias_is_renamed() -> None:
    decision = low_rank(WITH_BIAS, 4)
    entries = lay_out((decision,), TENSORS)
    assert origins(entries) == [
        ("net.fc1.0.weight", "net.fc1.weight", False),
        ("net.fc1.1.weight", "net.fc1.weight", False),
        ("norm.weight", "norm.weight", True),
        ("net.fc1.1.bias", "net.fc1.bias", True),
        ("fc2.weight", "fc2.weight", True),
        ("fc2.bias", "fc2.bias", True),
        ("steps", "steps", True),
    ]
    assert [(entry.kind, entry.structure) for entry in entries[:2]] == [(WITH_BIAS.kind, decision.structure)] * 2
    assert {(entry.kind, entry.structure) for entry in entries[2:]} == {(None, None)}


def test_every_tensor_of_the_source_has_an_entry_in_its_order() -> None:
    decisions: list[Factorize] = [low_rank(WITH_BIAS, 4), low_rank(linear_layer(10, 30, "fc2"), 3)]
    order = [entry.origin for entry in lay_out(decisions, TENSORS)]
    assert list(dict.fromkeys(order)) == list(TENSORS)
    assert len(order) == len(TENSORS) + len(decisions), "two stages in place of each weight"


def test_layers_of_another_size_keep_the_names_of_weight_and_bias() -> None:
    entries = {entry.origin: entry for entry in lay_out((narrowed(7),), TENSORS)}
    assert len(entries) == len(TENSORS)
    computed = {name: entry.spec.shape for name, entry in entries.items() if not entry.copied}
    assert computed == {"net.fc1.weight": (7, 20), "net.fc1.bias": (7,), "fc2.weight": (10, 7)}
    assert {entry.spec.name for entry in entries.values()} == set(TENSORS)
    parts: list[Structure | None] = [entry.structure for entry in entries.values()]
    assert parts == [None] * len(TENSORS)


def test_changed_tensors_are_computed_under_their_new_names() -> None:
    entries = lay_out((low_rank(WITH_BIAS, 4),), TENSORS, {"net.fc1.bias", "norm.weight"})
    assert ("net.fc1.1.bias", "net.fc1.bias", False) in origins(entries)
    assert ("norm.weight", "norm.weight", False) in origins(entries)
    assert ("fc2.bias", "fc2.bias", True) in origins(entries)


def test_the_projections_of_attention_become_a_module_of_their_own() -> None:
    specs = {
        name: TensorSpec(name, shape, "float32", 4)
        for name, shape in {"x.in_proj_weight": (24, 8), "x.in_proj_bias": (24,)}.items()
    }
    layer = Layer("x.in_proj", "x.in_proj", ATTENTION, specs["x.in_proj_weight"], specs["x.in_proj_bias"], 3)
    names = [entry.spec.name for entry in lay_out((low_rank(layer, 2),), specs)]
    assert names == ["x.in_proj.0.weight", "x.in_proj.1.weight", "x.in_proj.1.bias"]
