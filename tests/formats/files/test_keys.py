from pathlib import Path

import pytest

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.keys import refuse_key


def test_a_key_is_refused_by_the_kind_of_the_file() -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"`a\.onnx` is ONNX and has no entries, so `key=model` names"):
        refuse_key(Path("a.onnx"), "model", "ONNX")


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_nothing_is_refused(key: str | None) -> None:
    refuse_key(Path("a.onnx"), key, "ONNX")
