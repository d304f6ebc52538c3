"""Messages of onnxruntime become one line without the places in its source."""

import subprocess
import sys

import numpy as np
import pytest

from lrzip.core.errors import LrzipError, NotCompared
from lrzip.formats.onnx.run import check_loads, limits_of, message_of, new_session, require_runtime, run
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
    session = new_session(matmul((3, 4), ["n", 3]).SerializeToString(), 1)
    (found,) = run(session, ["y"], {"x": np.eye(3, dtype=np.float32)}).values()
    assert found.shape == (3, 4)
    with pytest.raises(ValueError, match=r"invalid dimensions|Got: 4 Expected: 3"):
        run(session, ["y"], {"x": np.eye(4, dtype=np.float32)})


def test_a_model_that_does_not_load_is_refused() -> None:
    with pytest.raises(LrzipError, match=r"(?i)protobuf parsing failed"):
        check_loads(b"nothing", 1)


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotCompared, match=r"pip install 'lrzip-nn\[onnx\]'"):
        require_runtime()


def test_limits_grow_with_the_model() -> None:
    small, large = limits_of(0), limits_of(1 << 30)
    assert small.nbytes < 3 << 29
    assert large.nbytes - small.nbytes >= 4 << 30


def test_files_that_run_in_processes_of_their_own_import_no_torch() -> None:
    code = "import sys, lrzip.formats.onnx.trial, lrzip.formats.onnx.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
