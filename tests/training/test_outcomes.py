import json

from lrzip.training.outcomes import Epoch


def test_an_epoch_is_a_line_of_json_even_with_scores_that_are_not_finite() -> None:
    epoch = Epoch(1, 4, 0.01, None, {"accuracy": 0.5, "r2": float("nan")}, 1.23456)
    document = {"epoch": 1, "step": 4, "lr": 0.01, "loss": None, "metrics": {"accuracy": 0.5, "r2": None}}
    assert json.loads(json.dumps(epoch.to_dict(), allow_nan=False)) == document | {"seconds": 1.235}
