from lrzip.core.costs import Latency


def test_a_speedup_is_above_one_where_the_factorized_run_is_faster() -> None:
    assert Latency(dense=3e-3, factorized=2e-3).speedup == 1.5


def test_the_document_is_in_milliseconds() -> None:
    assert Latency(dense=3e-3, factorized=2e-3).to_dict() == {"dense_ms": 3.0, "factorized_ms": 2.0}
