"""Tiny models of all kinds of graphs, as files."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.graphs import GRAPHS, save


@pytest.fixture(params=GRAPHS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Mapping[str, str]]:
    build, kinds = GRAPHS[request.param]
    return save(build(), tmp_path / "dense.onnx"), kinds
