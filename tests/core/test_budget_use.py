from lrzip.core.budget_use import BudgetUse


def test_the_document_has_the_unused_part_of_the_budget() -> None:
    use = BudgetUse("params", 2600, 1000, 940, "error", 0.25, 0.125)
    assert use.to_dict() == {
        "unit": "params",
        "whole": 2600,
        "limit": 1000,
        "used": 940,
        "unused": 60,
        "objective": "error",
        "predicted_loss": 0.25,
        "bound": 0.125,
    }
