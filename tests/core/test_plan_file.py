import json
import re
from pathlib import Path
from typing import Any

import pytest

from lrzip.core.errors import PlanMismatch
from lrzip.core.layers import TensorSpec
from lrzip.core.plan import Plan, fingerprint
from lrzip.core.plan_file import PlanEntry, read_plan
from tests.support.candidates import linear_layer
from tests.support.damage import damaged
from tests.support.decisions import WITH_BIAS, low_rank, narrowed

TENSORS = {spec.name: spec for spec in (WITH_BIAS.weight, TensorSpec("scale", (2,), "float32", 8))}
PLAN = Plan((low_rank(WITH_BIAS, 4),), (linear_layer(4, 4, "c").kept("too small"),), "net.pt", fingerprint(TENSORS))


def written(folder: Path, document: object) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(document))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    """Return the plan with a changed entry; a change to None removes a field."""
    item = PLAN.factorize[0].to_dict() | changes
    kept = {key: value for key, value in item.items() if changes.get(key, value) is not None}
    return PLAN.to_dict() | {"layers": [kept]}


def refusal(folder: Path, document: object) -> str:
    with pytest.raises(PlanMismatch) as caught:
        read_plan(written(folder, document))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"`{folder / 'plan.json'}`")
    return message


def test_the_document_of_a_plan_is_read_again(tmp_path: Path) -> None:
    found = read_plan(written(tmp_path, PLAN.to_dict()))
    assert found.choices == {"net.fc1.weight": PlanEntry("svd", (4,), "float32", {"net.fc1.weight": (30, 20)})}
    assert (found.kept, found.fingerprint) == (["c.weight"], PLAN.fingerprint)


def test_a_group_is_one_choice_under_the_names_of_all_its_weights(tmp_path: Path) -> None:
    plan = Plan((narrowed(7),), (), "net.pt", "sha256:0")
    choices = read_plan(written(tmp_path, plan.to_dict())).choices
    assert list(choices) == ["net.fc1.weight", "fc2.weight"]
    assert choices["net.fc1.weight"] is choices["fc2.weight"]
    assert choices["fc2.weight"].shapes == {"net.fc1.weight": (30, 20), "fc2.weight": (10, 30)}


GROUP = Plan((narrowed(7), low_rank(WITH_BIAS, 4)), (), "net.pt", "sha256:0").to_dict()
GROUP["layers"] = [GROUP["layers"][0]]
DAMAGED = [pair for document in (PLAN.to_dict(), GROUP) for pair in damaged(document)]


def test_damaged_plans_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    refused = 0
    for what, document in DAMAGED:
        path = written(tmp_path, document)
        try:
            found = read_plan(path)
        except PlanMismatch as error:
            assert str(error).startswith(f"`{path}`"), what
            assert str(error).isprintable(), what
            refused += 1
        else:
            for choice in found.choices.values():
                assert all(type(rank) is int and rank > 0 for rank in choice.ranks), what
    assert refused > len(DAMAGED) / 3


@pytest.mark.parametrize("key", ["decomposition", "ranks", "dtype", "tensor", "shape"])
def test_a_field_that_is_missing_or_of_the_wrong_type_is_named(key: str, tmp_path: Path) -> None:
    assert f": `layers[0].{key}` is missing." in refusal(tmp_path, entry(**{key: None}))
    assert f": `layers[0].{key}` must be" in refusal(tmp_path, entry(**{key: 7}))


@pytest.mark.parametrize("key", ["ranks", "shape"])
@pytest.mark.parametrize("value", [4.0, "4", True, None, -1, 1 << 70], ids=repr)
def test_numbers_that_are_not_whole_are_named(key: str, value: object, tmp_path: Path) -> None:
    assert f": `layers[0].{key}[0]` must be a whole number from" in refusal(tmp_path, entry(**{key: [value]}))


def test_an_unknown_dtype_is_refused_with_the_choices(tmp_path: Path) -> None:
    message = refusal(tmp_path, entry(dtype="int8"))
    assert "`layers[0].dtype` must be one of bfloat16, float16, float32, float64, got 'int8'." in message


@pytest.mark.parametrize("layers", [7, [], {}], ids=repr)
def test_an_unusable_list_of_a_group_is_named(layers: object, tmp_path: Path) -> None:
    assert ": `layers[0].layers` must be a list" in refusal(tmp_path, entry(layers=layers))


@pytest.mark.parametrize("key", ["tensor", "shape"])
def test_fields_of_the_layers_of_a_group_are_named(key: str, tmp_path: Path) -> None:
    member = {"tensor": "a.weight", "shape": [3, 4]}
    del member[key]
    assert f": `layers[0].layers[0].{key}` is missing." in refusal(tmp_path, entry(layers=[member]))


@pytest.mark.parametrize("document", [{}, {"schema": 2, "layers": []}, {"schema": True, "layers": []}])
def test_documents_of_another_schema_are_refused(document: object, tmp_path: Path) -> None:
    assert "is not a plan of schema 1" in refusal(tmp_path, document)


@pytest.mark.parametrize("document", [[], 7, {"schema": 1}, {"schema": 1, "layers": {}}, {"schema": 1, "layers": [7]}])
def test_documents_of_another_structure_are_refused(document: object, tmp_path: Path) -> None:
    assert re.search(r"` (must be (an object|a list), got|is missing)", refusal(tmp_path, document))


def test_a_weight_is_listed_once(tmp_path: Path) -> None:
    twice = PLAN.to_dict()
    twice["layers"] *= 2
    assert "`layers[1]` names `net.fc1.weight` a second time" in refusal(tmp_path, twice)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\udcff"], ids=["empty", "cut", "deep", "bytes"])
def test_what_is_no_json_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PlanMismatch, match=re.escape(f"`{path}` ") + "(is not valid JSON|cannot be read)"):
        read_plan(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatch, match="cannot be read: "):
        read_plan(tmp_path / "none.json")


@pytest.mark.parametrize("informative", ["source", "kept", "budget"])
def test_parts_that_only_inform_may_be_missing(informative: str, tmp_path: Path) -> None:
    document = PLAN.to_dict()
    document.pop(informative, None)
    assert read_plan(written(tmp_path, document)).choices


def test_a_checkpoint_of_the_same_shapes_matches(tmp_path: Path) -> None:
    assert read_plan(written(tmp_path, PLAN.to_dict())).mismatch(TENSORS) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net.fc1.weight": None}, "it has no `net.fc1.weight`"),
        ({"net.fc1.weight": (30, 21)}, "`net.fc1.weight` is (30, 20) in the plan and (30, 21) in the checkpoint"),
        ({"scale": (3,), "c.weight": (4, 4)}, "the shapes or dtypes of tensors that the plan keeps differ"),
        ({"scale": (3,)}, "it has no `c.weight`"),
    ],
)
def test_the_first_difference_of_a_checkpoint_is_named(
    changes: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path
) -> None:
    changed = {name: TensorSpec(name, shape, "float32", 4) for name, shape in changes.items() if shape}
    tensors = {name: spec for name, spec in TENSORS.items() if name not in changes} | changed
    assert read_plan(written(tmp_path, PLAN.to_dict())).mismatch(tensors) == message


def test_a_plan_without_a_fingerprint_fits_every_checkpoint_with_its_weights(tmp_path: Path) -> None:
    found = read_plan(written(tmp_path, PLAN.to_dict() | {"source": {"path": "net.pt"}}))
    assert found.mismatch({WITH_BIAS.weight.name: WITH_BIAS.weight}) is None
