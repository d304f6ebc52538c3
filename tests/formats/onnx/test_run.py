"""Messages of onnxruntime become one line without the places in its source."""

import sys

import numpy as np
import pytest

from lrzip.core.errors import LrzipError
from lrzip.formats.onnx.run import message_of, run, start
from tests.support.graphs import matmul


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from /a/b.onnx failed:No graph.", "No graph"),
        ("[ONNXRuntimeError] : 2 : INVALID : /onnxruntime_src/x.cc:3 void f() Bad\nshape", "Bad shape"),
        ("", "ValueError"),
    ],
)
def test_messages_are_one_line_without_places(text: str, expected: str) -> None:
    assert message_of(ValueError(text)) == expected


def test_a_session_returns_the_named_outputs() -> None:
    session = start(matmul((3, 4), ["n", 3]).SerializeToString())
    (found,) = run(session, ["y"], {"x": np.eye(3, dtype=np.float32)}).values()
    assert found.shape == (3, 4)
    with pytest.raises(ValueError, match=r"invalid dimensions|Got: 4 Expected: 3"):
        run(session, ["y"], {"x": np.eye(4, dtype=np.float32)})


def test_a_model_that_does_not_load_is_refused() -> None:
    with pytest.raises(LrzipError, match="onnxruntime cannot run the model"):
        start(b"nothing")


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LrzipError, match=r"needs onnxruntime: .*pip install 'lrzip-nn\[onnx\]'"):
        start(b"")
