"""Two functions are timed alternately."""

import torch

from lrzip.networks.timing import time_alternately


def test_calls_alternate_after_one_of_each_to_warm_up() -> None:
    calls: list[str] = []
    found = time_alternately(lambda: calls.append("dense"), lambda: calls.append("factorized"))
    assert calls[::2] == ["dense"] * (len(calls) // 2)
    assert calls[1::2] == ["factorized"] * (len(calls) // 2)
    assert len(calls) >= 2 * 7
    assert found.dense > 0
    assert found.factorized > 0


def test_functions_run_in_inference_mode() -> None:
    modes: list[bool] = []
    time_alternately(lambda: modes.append(torch.is_inference_mode_enabled()), lambda: None)
    assert modes
    assert all(modes)
