import pytest
from torch import nn

from lrzip.core.kinds import CONVOLUTIONS, EMBEDDING, LINEAR
from lrzip.core.structure import (
    Chain,
    Reshape,
    Select,
    Stage,
    Structure,
    Sum,
    bias_name,
    biased_part,
    join,
    leaves,
    parameters,
    parents_of_parts,
    stages,
    tensor_names,
    tensor_shapes,
)
from lrzip.networks import modules

NARROW, WIDE, SPARSE = Stage(LINEAR, (2, 7)), Stage(LINEAR, (5, 2)), Stage(LINEAR, (5, 3))
PAIR = Chain((NARROW, WIDE))
NESTED = Sum((PAIR, Chain((Select(3), SPARSE))))


def test_leaves_are_the_stages_and_selections_with_the_paths_of_their_modules() -> None:
    assert list(leaves(NESTED)) == [
        ("branches.0.0", NARROW),
        ("branches.0.1", WIDE),
        ("branches.1.0", Select(3)),
        ("branches.1.1", SPARSE),
    ]
    assert list(leaves(PAIR, "x")) == [("x.0", NARROW), ("x.1", WIDE)]
    assert list(leaves(NARROW, "x")) == [("x", NARROW)]
    assert stages(NESTED) == [NARROW, WIDE, SPARSE]


def test_names_and_shapes_are_those_of_the_state_dict_of_the_modules() -> None:
    built = modules.Sum(
        [
            nn.Sequential(nn.Linear(7, 2, bias=False), nn.Linear(2, 5, bias=False)),
            nn.Sequential(modules.Select(3, -1), nn.Linear(3, 5)),
        ]
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    bias = bias_name(NESTED)
    assert shapes.pop(bias) == (5,)
    assert dict(zip(tensor_names(NESTED), tensor_shapes(NESTED), strict=True)) == shapes


def test_parameters_are_the_elements_of_the_weights() -> None:
    assert parameters(NESTED) == 2 * 7 + 5 * 2 + 5 * 3


@pytest.mark.parametrize(
    ("structure", "path", "name"),
    [
        (NARROW, "", "bias"),
        (PAIR, "1", "1.bias"),
        (Chain((PAIR, WIDE)), "1", "1.bias"),
        (Chain((NARROW, PAIR)), "1.1", "1.1.bias"),
        (NESTED, "branches.1.1", "branches.1.1.bias"),
        (Chain((WIDE, Reshape(1, (5,), (0,), (5,)))), "1", "1.bias"),
    ],
)
def test_the_bias_belongs_to_the_last_part(structure: Structure, path: str, name: str) -> None:
    assert biased_part(structure)[0] == path
    assert bias_name(structure) == name


def test_no_structure_ends_with_a_selection() -> None:
    with pytest.raises(TypeError, match="selection"):
        bias_name(Chain((NARROW, Select(2))))


def test_stages_count_channels_over_all_groups() -> None:
    stage = Stage(CONVOLUTIONS[2], (12, 3, 5, 5), 4)
    assert (stage.outputs, stage.inputs) == (12, 12)
    rows = Stage(EMBEDDING, (50, 8))
    assert (rows.outputs, rows.inputs) == (8, 50)


def test_parents_of_parts_have_numbers_or_branches_below_them() -> None:
    names = ["a.fc.0.weight", "a.fc.1.weight", "a.b.branches.0.weight", "c.weight", "0.weight"]
    assert parents_of_parts(names) == {"a.fc", "a.b", "a.b.branches", ""}
    assert parents_of_parts(["c.weight", "c10.weight"]) == set()


def test_paths_are_joined_by_dots() -> None:
    assert (join("a.b", "weight"), join("", "weight")) == ("a.b.weight", "weight")
