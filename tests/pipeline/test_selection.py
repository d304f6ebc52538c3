import pytest

from lrzip.core.errors import UnknownName
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.networks.inference import infer_layers
from lrzip.pipeline.selection import rule_for, select


def found() -> list[Layer | Keep]:
    shapes = {
        "module.conv1.weight": (8, 4, 3, 3),
        "module.layer1.conv1.weight": (8, 8, 3, 3),
        "module.fc.weight": (8, 8),
        "module.depth.weight": (8, 1, 3, 3),
        "module.bn.weight": (8,),
    }
    return list(infer_layers({name: TensorSpec(name, s, "float32", 0) for name, s in shapes.items()}, prefix="module."))


def taken(**patterns: list[str]) -> list[str]:
    return [item.name for item in select(found(), **patterns) if isinstance(item, Layer)]


def test_a_pattern_matches_the_full_name() -> None:
    assert taken(skip=["conv1"]) == ["layer1.conv1", "fc"]
    assert taken(skip=["*.conv1"]) == ["conv1", "fc"]
    assert taken(only=["*conv1"]) == ["conv1", "layer1.conv1"]
    assert taken(only=["*conv1"], skip=["layer1.*"]) == ["conv1"]


def test_reasons_name_the_flag() -> None:
    reasons = {
        item.name: item.reason for item in select(found(), only=["*conv1"], skip=["conv1"]) if isinstance(item, Keep)
    }
    assert reasons["conv1"] == "matched `--skip conv1`"
    assert reasons["fc"] == "not matched by `--only`"


def test_a_name_or_a_pattern_of_more_than_wildcards_settles_an_ambiguity() -> None:
    for pattern in ("*", "**", "?????", "*.*"):
        assert "depth" not in taken(only=[pattern, "fc"])
    for pattern in ("dept?", "dep*", "depth"):
        assert taken(only=[pattern]) == ["depth"]
    assert "depth" in taken(named=["depth"])
    assert "depth" not in taken(named=["dept?"])


def test_a_pattern_settles_nothing_about_tensors_that_cannot_be_factorized() -> None:
    assert taken(only=["b*", "fc"]) == ["fc"]


def test_a_settled_layer_can_be_skipped() -> None:
    assert taken(only=["dep*", "fc"], skip=["depth"]) == ["fc"]


def test_a_tensor_that_cannot_be_factorized_cannot_be_selected() -> None:
    with pytest.raises(UnknownName, match="`bn` cannot be factorized: a vector"):
        taken(only=["bn"])


@pytest.mark.parametrize("flag", ["only", "skip", "named"])
def test_a_pattern_that_matches_nothing_is_an_error(flag: str) -> None:
    with pytest.raises(UnknownName, match=r"nope` matches no layer\. Names are: conv1, layer1"):
        taken(**{flag: ["nope"]})


def test_the_last_matching_rule_wins() -> None:
    layer = next(item for item in found() if isinstance(item, Layer) and item.name == "layer1.conv1")
    assert rule_for(layer, {"*": 1, "layer1.*": 2}, 0) == 2
    assert rule_for(layer, {"layer1.*": 2, "*": 1}, 0) == 1
    assert rule_for(layer, {"fc": 2}, 0) == 0
