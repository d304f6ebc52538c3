from dataclasses import replace

import pytest

from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.search.sensitivities import LayerSensitivity, Sensitivities
from lrzip.search.spread import Spread


def effect(name: str, before: float, after: Spread | None = None, *, energy: float = 0.8) -> LayerSensitivity:
    layer = Layer(name, name, LINEAR, TensorSpec(f"{name}.weight", (4, 6), "float32", 96), None)
    return LayerSensitivity(layer, energy, (2,), 20, norm=2.0, removed=0.5, before=before, after=after)


def sensitivities(*layers: LayerSensitivity) -> Sensitivities:
    return Sensitivities({"accuracy": 0.9}, "accuracy", 0.01, layers, 0, 1, 0)


def test_the_most_sensitive_layer_is_ranked_first() -> None:
    found = sensitivities(effect("a", 0.1), effect("b", 0.3), effect("c", -0.1), effect("d", 0.2))
    assert found.ranking(0.8) == ["b", "d", "a", "c"]


def test_only_layers_measured_at_the_energy_are_ranked() -> None:
    found = sensitivities(effect("a", 0.1), effect("a", 0.9, energy=0.9), effect("b", 0.2))
    assert found.ranking(0.8) == ["b", "a"]
    assert found.ranking(0.9) == ["a"]


def test_layers_are_ranked_after_fine_tuning_where_there_was_any() -> None:
    found = sensitivities(effect("a", 0.5, Spread([0.0, 0.1])), effect("b", 0.1, Spread([0.1, 0.2])))
    assert found.ranking(0.8) == ["b", "a"]
    assert [item.drop for item in found.layers] == pytest.approx([0.05, 0.15])


def test_drops_are_divided_by_norms_unless_these_are_zero() -> None:
    document = effect("a", 0.5).to_dict()
    assert document["drop_per_norm"] == 0.25
    assert document["drop_per_removed_norm"] == 1.0
    assert replace(effect("a", 0.5), removed=0.0).to_dict()["drop_per_removed_norm"] is None


def test_one_rank_is_an_integer_in_the_document_and_several_are_a_list() -> None:
    assert effect("a", 0.5).to_dict()["rank"] == 2
    assert replace(effect("a", 0.5), ranks=(2, 3)).to_dict()["rank"] == [2, 3]


def test_the_document_lists_all_layers() -> None:
    document = sensitivities(effect("a", 0.1), effect("b", 0.2)).to_dict()
    assert [layer["name"] for layer in document["layers"]] == ["a", "b"]
    assert document.keys() == {"metric", "baseline", "finetune_steps", "runs", "layers"}
