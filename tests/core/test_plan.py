from dataclasses import replace

import pytest

from lrzip.core.budget_use import BudgetUse
from lrzip.core.layers import TensorSpec
from lrzip.core.layout import lay_out
from lrzip.core.plan import Plan, fingerprint
from tests.support.candidates import linear_layer
from tests.support.decisions import WITH_BIAS, low_rank, narrowed

SPECS = {name: TensorSpec(name, (4, 3), "float32", 48) for name in ("a.weight", "b.weight")}
KEPT = linear_layer(4, 4, "c").kept("too small")
DECISIONS = low_rank(WITH_BIAS, 4), low_rank(linear_layer(40, 50, "b"), 6, "float16")
PLAN = Plan(DECISIONS, (KEPT,), "net.pt", "sha256:0")


@pytest.mark.parametrize(
    "changed",
    [{"dtype": "bfloat16"}, {"shape": (3, 4)}, {"name": "c.weight"}],
    ids=["dtype", "shape", "name"],
)
def test_the_fingerprint_depends_on_names_shapes_and_dtypes(changed: dict[str, object]) -> None:
    other = replace(SPECS["a.weight"], **changed)  # type: ignore[arg-type]
    assert fingerprint({**SPECS, "a.weight": other}) != fingerprint(SPECS)


def test_the_fingerprint_does_not_depend_on_order_or_sizes() -> None:
    reordered = {name: replace(spec, nbytes=0) for name, spec in reversed(SPECS.items())}
    assert fingerprint(reordered) == fingerprint(SPECS)


def test_savings_are_sums_over_decisions() -> None:
    assert PLAN.parameters_saved == (600 - 4 * 50) + (2000 - 6 * 90)
    assert PLAN.nbytes_saved == 4 * (600 - 4 * 50) + (4 * 2000 - 2 * 6 * 90)
    assert Plan((narrowed(7),), (), "net.pt", "sha256:0").parameters_saved == narrowed(7).parameters_before - 217


def test_the_layout_is_that_of_the_decisions() -> None:
    assert WITH_BIAS.bias
    tensors = {spec.name: spec for spec in (WITH_BIAS.weight, WITH_BIAS.bias)}
    found = PLAN.layout(tensors, {WITH_BIAS.bias.name})
    assert found == lay_out(DECISIONS, tensors, {WITH_BIAS.bias.name})
    assert [entry.copied for entry in found] == [False] * 3


def test_the_document_has_source_decisions_and_kept_tensors() -> None:
    assert PLAN.to_dict() == {
        "schema": 1,
        "source": {"path": "net.pt", "fingerprint": "sha256:0"},
        "layers": [decision.to_dict() for decision in DECISIONS],
        "kept": [{"name": "c", "tensor": "c.weight", "reason": "too small"}],
    }


def test_a_budget_is_in_the_document_and_not_compared() -> None:
    use = BudgetUse("params", 2600, 1000, 940, "error", 0.25, 0.125)
    budgeted = replace(PLAN, budget=use)
    assert budgeted == PLAN
    assert budgeted.to_dict()["budget"] == use.to_dict()
