"""Layers of transformers' models are recognized by names, shapes and `config.json`."""

import pytest

from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.formats.safetensors.transformers_models import (
    check_ambiguity,
    conv1d_weights,
    known_kinds,
    read_directly,
)


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorSpec(name, shape, "float32", 0) for name, shape in names.items()}


@pytest.mark.parametrize(("model", "expected"), [("gpt2", ["h.c_fc.weight"]), ("bert", [])])
def test_weights_of_conv1d_have_a_bias_along_their_second_axis(model: str, expected: list[str]) -> None:
    tensors = specs(h__c_fc__weight=(4, 8), h__c_fc__bias=(8,), h__c_proj__weight=(4, 8), h__c_proj__bias=(4,))
    assert conv1d_weights({"model_type": model}, tensors) == expected


@pytest.mark.parametrize("config", [{"model_type": "mixtral"}, {"text_config": {"model_type": "qwen3_moe"}}])
def test_experts_that_are_merged_and_their_router_are_read_directly(config: dict[str, object]) -> None:
    tensors = specs(m__experts__0__up__weight=(8, 4), m__gate__weight=(2, 4), m__other__weight=(4, 4))
    found = read_directly({"num_experts": 2} | config, tensors)
    assert found.keys() == {"m.experts.0.up.weight", "m.gate.weight"}
    assert found["m.gate.weight"] == "the router of a mixture of experts"


def test_experts_of_other_models_are_linear_layers_if_they_are_not_numbered_or_if_they_are_named() -> None:
    tensors = specs(m__experts__expert_0__wi__weight=(8, 4), m__experts__0__up__weight=(8, 4))
    assert not read_directly({"model_type": "switch_transformers"}, tensors)
    items = {name: Layer(name, name, LINEAR, spec, None) for name, spec in tensors.items()}
    found = {name: check_ambiguity({}, item) for name, item in items.items()}
    assert found["m.experts.expert_0.wi.weight"] is items["m.experts.expert_0.wi.weight"]
    numbered = found["m.experts.0.up.weight"]
    assert isinstance(numbered, Keep)
    assert numbered.override is items["m.experts.0.up.weight"]


def test_the_input_projection_of_a_mixer_is_linear() -> None:
    tensors = specs(m__in_proj__weight=(8, 4), m__A_log=(8, 4), a__in_proj__weight=(8, 4))
    assert known_kinds({}, tensors) == {"m.in_proj.weight": LINEAR}


@pytest.mark.parametrize(("head", "count"), [("BertForMaskedLM", 1), ("BertModel", 0), ("BertForPreTraining", 0)])
def test_a_pooler_that_the_class_does_not_load_is_kept(head: str, count: int) -> None:
    tensors = specs(bert__pooler__dense__weight=(8, 8), bert__encoder__weight=(8, 8))
    reasons = read_directly({"architectures": [head]}, tensors)
    assert len(reasons) == count
    assert set(reasons.values()) <= {"a pooler, which BertForMaskedLM does not load"}


@pytest.mark.parametrize(("tied", "settles"), [(None, False), (True, False), (False, True)])
def test_a_layer_as_long_as_the_vocabulary_is_kept(tied: bool | None, settles: bool) -> None:
    (spec,) = specs(lm_head__weight=(50, 8)).values()
    layer = Layer("lm_head", "lm_head", LINEAR, spec, None)
    config = {"text_config": {"vocab_size": 50}} | ({} if tied is None else {"tie_word_embeddings": tied})
    item = check_ambiguity(config, layer)
    assert isinstance(item, Keep)
    assert (item.override == layer) == settles
    assert check_ambiguity({"vocab_size": 51}, layer) == layer
