"""Layers of transformers' models are recognized by names, shapes and `config.json`."""

import pytest

from lrzip.core.kinds import LINEAR
from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.formats.safetensors.transformers_models import check_ambiguity, conv1d_weights, read_directly


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorSpec(name, shape, "float32", 0) for name, shape in names.items()}


@pytest.mark.parametrize(("model", "expected"), [("gpt2", ["h.c_fc.weight"]), ("bert", [])])
def test_weights_of_conv1d_have_a_bias_along_their_second_axis(model: str, expected: list[str]) -> None:
    tensors = specs(h__c_fc__weight=(4, 8), h__c_fc__bias=(8,), h__c_proj__weight=(4, 8), h__c_proj__bias=(4,))
    assert conv1d_weights({"model_type": model}, tensors) == expected


def test_experts_and_their_router_are_read_directly() -> None:
    tensors = specs(m__experts__0__up__weight=(8, 4), m__gate__weight=(2, 4), m__other__weight=(4, 4))
    found = read_directly({"num_experts": 2}, tensors)
    assert found.keys() == {"m.experts.0.up.weight", "m.gate.weight"}
    assert found["m.gate.weight"] == "the router of a mixture of experts"


@pytest.mark.parametrize(("tied", "settles"), [(None, False), (True, False), (False, True)])
def test_a_layer_as_long_as_the_vocabulary_is_kept(tied: bool | None, settles: bool) -> None:
    (spec,) = specs(lm_head__weight=(50, 8)).values()
    layer = Layer("lm_head", "lm_head", LINEAR, spec, None)
    config = {"text_config": {"vocab_size": 50}} | ({} if tied is None else {"tie_word_embeddings": tied})
    item = check_ambiguity(config, layer)
    assert isinstance(item, Keep)
    assert (item.override == layer) == settles
    assert check_ambiguity({"vocab_size": 51}, layer) == layer
