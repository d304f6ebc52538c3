import pytest

from lrzip.core.decisions import Factorize
from lrzip.core.kinds import CONVOLUTIONS, LINEAR
from lrzip.core.layers import Layer, TensorSpec
from lrzip.core.structure import Chain, Select, Stage, Sum
from tests.support.decisions import WITH_BIAS, low_rank, narrowed


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_the_tensors_of_a_chain_have_names_below_the_module(dtype: str, itemsize: int) -> None:
    assert low_rank(WITH_BIAS, 4, dtype).outputs == (
        TensorSpec("net.fc1.0.weight", (4, 20), dtype, itemsize * 80),
        TensorSpec("net.fc1.1.weight", (30, 4), dtype, itemsize * 120),
    )


def test_a_single_stage_keeps_the_name_of_the_weight() -> None:
    assert [(spec.name, spec.shape) for spec in narrowed(7).outputs] == [
        ("net.fc1.weight", (7, 20)),
        ("fc2.weight", (10, 7)),
    ]


def test_indices_are_integers_in_every_dtype() -> None:
    structure = Sum(
        (Chain((Stage(LINEAR, (2, 20)), Stage(LINEAR, (30, 2)))), Chain((Select(3), Stage(LINEAR, (30, 3)))))
    )
    decision = Factorize.of(WITH_BIAS, "sum", (2,), structure, "float16")
    assert decision.outputs[2] == TensorSpec("net.fc1.branches.1.0.index", (3,), "int64", 24)
    assert decision.parameters_after == 2 * 20 + 30 * 2 + 30 * 3
    assert decision.nbytes_saved == 2400 - 2 * decision.parameters_after - 24


def test_savings_are_differences_of_the_replaced_and_the_written_tensors() -> None:
    decision = low_rank(WITH_BIAS, 4, "bfloat16")
    assert (decision.parameters_before, decision.parameters_after) == (600, 4 * 50)
    assert decision.nbytes_saved == 2400 - 2 * 200


def test_savings_of_a_group_include_biases() -> None:
    decision = narrowed(7)
    assert decision.parameters_before == 30 * 20 + 30 + 10 * 30
    assert decision.parameters_after == 7 * 20 + 7 + 10 * 7
    assert decision.nbytes_saved == 4 * (decision.parameters_before - decision.parameters_after)


def test_a_structure_is_stored_under_another_path() -> None:
    (replacement,) = low_rank(WITH_BIAS, 4).replacements
    stored = replacement.stored("fc1", "float32")
    assert [spec.name for spec in stored.weights] == ["fc1.0.weight", "fc1.1.weight"]
    assert (stored.dense_name, stored.replaced, stored.bias) == ("fc1.weight", WITH_BIAS.stage, WITH_BIAS.bias)


def test_the_document_of_a_decision_has_its_layer_and_the_shapes_of_its_stages() -> None:
    spec = TensorSpec("conv.weight", (16, 8, 3, 3), "float32", 4608)
    layer = Layer("conv", "conv", CONVOLUTIONS[2], spec, None)
    assert low_rank(layer, 5).to_dict() == {
        "name": "conv",
        "tensor": "conv.weight",
        "kind": "conv2d",
        "shape": [16, 8, 3, 3],
        "decomposition": "svd",
        "ranks": [5],
        "dtype": "float32",
        "stages": [[5, 8, 3, 3], [16, 5, 1, 1]],
        "parameters_before": 1152,
        "parameters_after": 5 * 72 + 16 * 5,
    }


def test_the_document_of_a_group_lists_all_layers() -> None:
    document = narrowed(7).to_dict()
    assert (document["name"], document["tensor"], document["stages"]) == (
        "fc1+fc2",
        "net.fc1.weight",
        [[7, 20], [10, 7]],
    )
    assert document["layers"] == [
        {"name": "fc1", "tensor": "net.fc1.weight", "kind": "linear", "shape": [30, 20]},
        {"name": "fc2", "tensor": "fc2.weight", "kind": "linear", "shape": [10, 30]},
    ]
    assert "layers" not in low_rank(WITH_BIAS, 4).to_dict()


def test_a_predicted_loss_is_in_the_document_and_not_compared() -> None:
    decision = low_rank(WITH_BIAS, 4)
    predicted = Factorize(decision.replacements, "svd", (4,), "float32", predicted_loss=0.25)
    assert predicted == decision
    assert predicted.to_dict() == decision.to_dict() | {"predicted_loss": 0.25}
